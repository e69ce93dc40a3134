"""`spherecf data import`: features of other tools as an embeddings file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from spherecf.cli import data
from spherecf.embeddings import Embeddings
from spherecf.errors import FileFormatError, InputError

runner = CliRunner()
RAW = np.random.default_rng(0).normal(size=(3, 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Features (each a pair of halves), keys, and meta files in a different order from the keys."""
    np.save(tmp_path / "feats.npy", np.vstack([RAW, np.zeros((1, 8))]))
    (tmp_path / "keys.txt").write_text("a.jpg\nb.jpg\nc.jpg\nd.jpg\n")
    (tmp_path / "ijbb_face_tid_mid.txt").write_text("4.jpg 1 1\n3.jpg 1 1\n2.jpg 2 2\n1.jpg 3 3\n")
    scores = "".join(f"{n}.jpg {' '.join(['5'] * 10)} 0.{n}\n" for n in range(1, 5))
    (tmp_path / "ijbb_name_5pts_score.txt").write_text(scores)
    return tmp_path


def run(folder: Path, *options: str) -> Any:
    command = ["import", str(folder / "feats.npy"), str(folder / "out.safetensors")]
    return runner.invoke(data.app, [*command, *(option.replace("FOLDER", str(folder)) for option in options)])


def test_keys_from_a_file(folder: Path) -> None:
    result = run(folder, "--keys", "FOLDER/keys.txt", "--alignment", "arcface112")
    assert result.exit_code == 0, result.exception
    report = json.loads(result.stdout)
    assert report["images"] == 3 and report["dim"] == 8 and report["log_kappa"] == "constant"
    assert report["skipped"] == [{"key": "d.jpg", "reason": "all features are 0"}] and report["flip"] is None
    e = Embeddings.load(folder / "out.safetensors")
    assert list(e.keys) == ["a.jpg", "b.jpg", "c.jpg"] and e.provenance["alignment"] == "arcface112"
    assert e.fingerprint() == report["fingerprint"] and "3 of 4 rows imported" in result.stderr


def test_keys_and_detector_scores_from_the_meta_files(folder: Path) -> None:
    result = run(folder, "--meta", "FOLDER", "--set", "ijbb", "--halves", "--flip", "sum")
    assert result.exit_code == 0, result.exception
    e = Embeddings.load(folder / "out.safetensors")
    assert list(e.keys) == ["4.jpg", "3.jpg", "2.jpg"] and e.dim == 4 and e.provenance["flip"] == "sum"
    assert e.extras["detector_score"] == pytest.approx([0.4, 0.3, 0.2]) and e.skipped[0][0] == "1.jpg"
    total = RAW[:, :4] + RAW[:, 4:]
    assert e.mu == pytest.approx(total / np.linalg.norm(total, axis=1, keepdims=True), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], FileFormatError, "rows have no keys"),
        (["--keys", "FOLDER/none"], FileFormatError, "cannot read"),
        (["--keys", "FOLDER/feats.npy"], FileFormatError, "expected text, but this is a NumPy array"),
        (["--keys", "FOLDER/keys.txt", "--meta", "FOLDER"], InputError, "not both"),
        (["--keys", "FOLDER/keys.txt", "--halves"], InputError, "to say how the two halves are combined"),
        (["--keys", "FOLDER/keys.txt", "--flip", "max"], InputError, "expected 'none' or 'sum'"),
        (
            ["--keys", "FOLDER/ijbb_name_5pts_score.txt", "--halves"],
            InputError,
            "how the two halves are combined",
        ),
        (["--meta", "FOLDER"], FileFormatError, "no such file, neither here nor in"),
    ],
)
def test_invalid_options_are_refused(
    folder: Path, options: list[str], error: type[Exception], message: str
) -> None:
    result = run(folder, *options)
    assert result.exit_code == 1 and not (folder / "out.safetensors").exists()
    with pytest.raises(error, match=message):
        raise result.exception


def test_help_ends_with_an_example() -> None:
    help_text = runner.invoke(data.app, ["import", "--help"]).stdout.rstrip()
    assert "Example: spherecf data import" in " ".join(help_text.splitlines()[-3:])
