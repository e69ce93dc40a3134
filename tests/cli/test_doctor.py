import importlib
import json
from collections.abc import Callable

import cv2
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail
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


@pytest.mark.parametrize(
    "fault", [ImportError("libGL is missing"), cv2.error("no"), Fail("no"), AttributeError("x")]
)
def test_a_library_that_does_not_load_is_a_finding(monkeypatch: pytest.MonkeyPatch, fault: Exception) -> None:
    whole: Callable = importlib.import_module

    def broken(name: str) -> object:
        if name in ("cv2", "pymilvus"):
            raise fault
        return whole(name)

    monkeypatch.setattr(importlib, "import_module", broken)
    found = {finding.name: finding for finding in doctor.diagnose()}
    assert not found["cv2"].ok and type(fault).__name__ in found["cv2"].detail and found["torch"].ok
    assert not found["extra milvus"].ok and found["extra serve"].ok
