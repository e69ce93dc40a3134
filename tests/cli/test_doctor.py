import json

import pytest
from typer.testing import CliRunner

from spherecf import doctor
from spherecf.cli import app
from spherecf.errors import ModelError
from spherecf.models import FrozenBackbone

RUNNER = CliRunner()


def test_a_sound_installation() -> None:
    done = RUNNER.invoke(app, ["doctor"], catch_exceptions=False)
    found = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.exit_code == 0 and all(line["ok"] for line in found.values() if line["required"])
    assert "kappa" in found["self test"]["detail"] and "sface" in found["recogniser"]["detail"]
    assert {f"extra {name}" for name in doctor.EXTRAS} < set(found) and "self test" in done.stderr


def test_what_is_broken_is_named_and_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> FrozenBackbone:
        raise ModelError("the file is another one")

    monkeypatch.setattr(FrozenBackbone, "default", gone)
    monkeypatch.setattr(doctor, "EXTRAS", {"gallery": ("no_such_module",)})
    done = RUNNER.invoke(app, ["doctor"], catch_exceptions=False)
    found = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.exit_code == 1 and not found["recogniser"]["ok"]
    assert found["recogniser"]["detail"] == "the file is another one"
    assert not found["extra gallery"]["ok"] and not found["extra gallery"]["required"]
    assert found["extra gallery"]["remedy"] == 'pip install "spherecf[gallery]"'
