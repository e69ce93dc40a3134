"""`spherecf template`: strangers, the saved template, and refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spherecf.cli import app
from spherecf.data import encode_image, orl_faces
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError

RUNNER = CliRunner()
PEOPLE = orl_faces().root


@pytest.fixture
def anna(tmp_path: Path) -> Path:
    """Four photos of one person, one of another, and a file that is not a photo."""
    folder = tmp_path / "anna"
    folder.mkdir()
    for number in range(1, 5):
        shutil.copy(PEOPLE / "s1" / f"{number}.pgm", folder / f"{number}.pgm")
    shutil.copy(PEOPLE / "s2" / "1.pgm", folder / "9.pgm")
    (folder / "notes.txt").write_text("not a photo")
    return folder


def run(*arguments: str) -> tuple[dict, str]:
    result = RUNNER.invoke(app, ["template", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), result.stderr


def test_a_stranger_is_reported_and_excluded(anna: Path, tmp_path: Path) -> None:
    shutil.copy(anna / "1.pgm", anna / "2 again.pgm")
    line, messages = run(str(anna))
    assert [photo["stranger"] for photo in line["photos"]] == [False] * 5 + [True]
    assert "different person?" in messages and "not photos: 1" in messages
    assert "duplicate of" in " ".join(messages.split())
    out = tmp_path / "anna.safetensors"
    line, _ = run(str(anna), "--exclude-strangers", "--out", str(out))
    assert len(line["pooled"]) == 5 and line["written"] == str(out)
    saved = Embeddings.load(out)
    assert saved.keys == ["anna"] and saved.kappa[0] == pytest.approx(line["kappa"], rel=1e-5)
    assert set(saved.provenance) >= {"model", "backbone", "radius", "pooled", "environment"}


def test_a_photo_without_a_face_is_shown_with_the_reason(anna: Path) -> None:
    (anna / "wall.png").write_bytes(encode_image(np.full((9, 9, 3), 90, np.uint8)))
    line, messages = run(str(anna))
    assert line["photos"][-1]["kappa"] is None and "no face found in 9x9 px" in " ".join(messages.split())


def test_wrong_usage_is_refused(anna: Path, tmp_path: Path) -> None:
    result = RUNNER.invoke(app, ["template", str(anna), "--name", "anna"])
    assert result.exit_code == 2
    with pytest.raises(InputError, match=r"none of the 1 photos has a usable face. The first, .*gone.jpg: "):
        run(str(tmp_path / "gone.jpg"))
