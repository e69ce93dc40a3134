"""`spherecf demo` on the user's own photos."""

import json
from pathlib import Path

import pytest
from tests.studies.conftest import CONFIG, make_people
from typer.testing import CliRunner

from spherecf.cli import app
from spherecf.demo import run as run_module
from spherecf.models import FrozenBackbone


@pytest.fixture
def quick(tiny: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a recogniser that takes a millisecond, and a small configuration."""
    monkeypatch.setattr(FrozenBackbone, "default", classmethod(lambda cls, **options: tiny))
    monkeypatch.setattr(run_module, "CONFIG", CONFIG)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> FrozenBackbone:
    import onnx
    from tests.models import graphs
    from tests.models.conftest import TINY

    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    onnx.save(graphs.iresnet(), path)
    return FrozenBackbone.from_onnx(path, preprocessing=TINY)


def test_demo_on_own_photos_writes_a_report(quick: None, tmp_path: Path) -> None:
    data = make_people(tmp_path / "mine", 8, 3, 0)
    options = ["demo", "--data", str(data), "--out", str(tmp_path / "out"), "--draws", "5"]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stdout == f"report: {tmp_path / 'out' / 'report' / 'report.html'}\n"
    assert "small data set" in result.stderr
    tables = json.loads(CliRunner().invoke(app, [*options, "--json"], catch_exceptions=False).stdout)
    assert {row[1] for row in tables[0]["rows"]} == {"clean/clean", "clean/cross", "cross/cross"}
