"""`spherecf export onnx`: options, report, and refusals."""

import json
from pathlib import Path

import onnx
import pytest
from tests.tiny import tiny_model
from typer.testing import CliRunner, Result

from spherecf.cli import app
from spherecf.errors import FileFormatError, InputError, ModelError, StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with ``tiny.onnx`` and the model ``model.safetensors`` for it."""
    tiny_model(tmp_path).save(tmp_path / "model.safetensors")
    return tmp_path


def call(folder: Path, out: str, *options: str, model: str = "model.safetensors") -> Result:
    files = ["--model", str(folder / model), "--backbone", str(folder / "tiny.onnx")]
    return CliRunner().invoke(app, ["export", "onnx", str(folder / out), *files, *options])


def test_writes_the_file_and_reports_as_json(folder: Path) -> None:
    result = call(folder, "out.onnx")
    report = json.loads(result.stdout)
    assert (
        report["path"] == str(folder / "out.onnx") and report["bytes"] == (folder / "out.onnx").stat().st_size
    )
    assert report["inputs"] == {"image": "uint8 (batch, 16, 16, 3)"}
    assert report["parity"]["log_kappa"] < 1e-4 and report["parity"]["batches"] == [1, 2, 7]
    assert "log_kappa: float32 (batch,)" in result.stderr
    assert "without kappa_percentile: the model is not calibrated" in result.stderr


def test_options_select_inputs_and_outputs(folder: Path) -> None:
    report = json.loads(
        call(folder, "out.onnx", "--preprocessing", "outside", "--outputs", "embedding").stdout
    )
    assert report["inputs"] == {"image": "float32 (batch, 3, 16, 16)"}
    assert list(report["outputs"]) == ["embedding"] and report["missing"] == {}


def test_the_shipped_model_can_be_exported(tmp_path: Path) -> None:
    out = tmp_path / "sface.onnx"
    report = json.loads(CliRunner().invoke(app, ["export", "onnx", str(out)]).stdout)
    assert list(report["outputs"]) == ["embedding", "log_kappa", "kappa_percentile"]
    assert [output.name for output in onnx.load(out).graph.output] == list(report["outputs"])


def test_input_files_are_never_overwritten(folder: Path) -> None:
    before = (folder / "tiny.onnx").read_bytes()
    result = call(folder, "tiny.onnx")
    assert isinstance(result.exception, InputError) and "choose another output file" in str(result.exception)
    assert (folder / "tiny.onnx").read_bytes() == before


def test_files_that_are_not_models_are_refused(folder: Path) -> None:
    (folder / "short").write_bytes((folder / "model.safetensors").read_bytes()[:-50])
    for name, kind in (("short", FileFormatError), ("absent", FileFormatError)):
        assert isinstance(call(folder, "out.onnx", model=name).exception, kind)
    (folder / "tiny.onnx").write_bytes(b"another one")
    assert isinstance(call(folder, "out.onnx").exception, ModelError)
    assert not (folder / "out.onnx").exists()


def test_an_output_path_that_cannot_be_written_is_refused(folder: Path) -> None:
    (folder / "file").write_text("no folder")
    assert isinstance(call(folder, "file/out.onnx").exception, StorageError)


def test_wrong_usage_and_help(folder: Path) -> None:
    assert call(folder, "out.onnx", "--preprocessing", "both").exit_code == 2
    assert "Example: spherecf export onnx" in CliRunner().invoke(app, ["export", "onnx", "--help"]).stdout
