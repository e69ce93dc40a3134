import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spherecf.cli import app
from spherecf.data import orl_faces
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError

RUNNER = CliRunner()
PEOPLE = orl_faces().root


@pytest.fixture
def anna(tmp_path: Path) -> Path:
    """Four photos of one person, one of another, and a file that is no photo."""
    folder = tmp_path / "anna"
    folder.mkdir()
    for number in range(1, 5):
        shutil.copy(PEOPLE / "s1" / f"{number}.pgm", folder / f"{number}.pgm")
    shutil.copy(PEOPLE / "s2" / "1.pgm", folder / "9.pgm")
    (folder / "notes.txt").write_text("not a photo")
    return folder


def run(*words: str) -> tuple[dict, str]:
    done = RUNNER.invoke(app, ["template", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout), done.stderr


def test_finds_the_stranger_and_leaves_it_out(anna: Path, tmp_path: Path) -> None:
    line, shown = run(str(anna))
    assert [photo["stranger"] for photo in line["photos"]] == [False] * 4 + [True]
    assert "different person?" in shown and "not photos: 1" in shown
    out = tmp_path / "anna.safetensors"
    line, _ = run(str(anna), "--exclude-strangers", "--out", str(out))
    assert len(line["pooled"]) == 4 and line["written"] == str(out)
    saved = Embeddings.load(out)
    assert saved.keys == ["anna"] and saved.kappa[0] == pytest.approx(line["kappa"], rel=1e-5)
    assert set(saved.provenance) >= {"model", "backbone", "radius", "pooled", "environment"}


def test_wrong_use(anna: Path, tmp_path: Path) -> None:
    done = RUNNER.invoke(app, ["template", str(anna), "--name", "anna"])
    assert done.exit_code == 2
    with pytest.raises(InputError, match=r"none of the 1 photos has a usable face. The first, .*gone.jpg: "):
        run(str(tmp_path / "gone.jpg"))
