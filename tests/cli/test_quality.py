import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tests.faces.pictures import jpeg, portrait
from typer.testing import CliRunner, Result

from spherecf import photos as rooms
from spherecf.cli import app, main, quality
from spherecf.data import encode_image
from spherecf.errors import FileFormatError, InputError, ModelError, StorageError
from spherecf.photos import FaceAssessor, rank_photos


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``photos/`` with two portraits, one of two people, one without a face, and files that are no photos."""
    monkeypatch.chdir(tmp_path)
    below = tmp_path / "photos" / "old"
    below.mkdir(parents=True)
    (below / "été.jpg").write_bytes(jpeg(portrait(0)))
    (below / "two.jpg").write_bytes(jpeg(np.hstack([portrait(12), portrait(25)])))
    (tmp_path / "photos" / "one.png").write_bytes(encode_image(portrait(50)))
    (tmp_path / "photos" / "wall.png").write_bytes(encode_image(np.full((90, 120, 3), 90, np.uint8)))
    (tmp_path / "photos" / "torn.jpg").write_bytes(jpeg(portrait(3))[:-300])
    (tmp_path / "photos" / "notes.txt").write_text("none")
    return tmp_path


def call(*options: str) -> Result:
    return CliRunner().invoke(app, ["quality", *options])


def lines(result: Result) -> list[dict]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_ranks_every_face_and_lists_what_has_none(folder: Path) -> None:
    result = call("photos")
    rows = lines(result)
    assert [row["rank"] for row in rows] == [1, 2, 3, 4, None, None]
    assert sorted(row["photo"] for row in rows) == [
        "photos/old/two.jpg", "photos/old/two.jpg", "photos/old/été.jpg", "photos/one.png", "photos/torn.jpg",
        "photos/wall.png",
    ]  # fmt: skip
    kappas = [row["kappa"] for row in rows[:4]]
    assert kappas == sorted(kappas, reverse=True) and all(0 <= row["quality"] <= 100 for row in rows[:4])
    assert {row["photo"]: row["failure"] for row in rows[4:]} == {
        "photos/torn.jpg": "truncated", "photos/wall.png": "no_face",
    }  # fmt: skip
    assert "4 faces in 5 photos" in result.stderr and "photos without a usable face: 2" in result.stderr
    assert "no face found in 120x90 px" in result.stderr and "photos/notes.txt" in result.stderr


def test_is_the_python_function(folder: Path) -> None:
    assert lines(call("photos")) == json.loads(json.dumps(rank_photos(["photos"])))


def test_main_faces_by_name(folder: Path) -> None:
    rows = lines(call("photos", "--faces", "main", "--sort", "name"))
    assert [row["photo"] for row in rows] == sorted({row["photo"] for row in rows}) and len(rows) == 5


def test_files_beside_the_lines(folder: Path) -> None:
    result = call(
        "photos", "--csv", "t.csv", "--scores", "s.txt", "--scores-of", "quality", "--sheet", "s.html"
    )
    rows = lines(result)
    assert len((folder / "t.csv").read_text().splitlines()) == 7
    scores = dict(line.rsplit(" ", 1) for line in (folder / "s.txt").read_text().splitlines())
    assert scores["photos/wall.png"] == "-1" and len(scores) == 5
    best = next(row for row in rows if row["face"] == 0)
    assert scores[best["photo"]] == str(best["quality"])
    assert (folder / "s.html").read_text().count("<img") == 4 and "written: s.html" in result.stderr


def test_an_archive_is_thinned_by_copies_and_lists(folder: Path) -> None:
    rows = [row for row in lines(call("photos", "--faces", "main")) if row["rank"]]
    least = rows[1]["quality"]
    options = (
        "photos",
        "--min-quality",
        str(least),
        "--copy-to",
        "kept",
        "--keep-list",
        "k",
        "--reject-list",
        "r",
    )
    result = call(*options)
    assert len(lines(result)) == 6
    kept = (folder / "k").read_text().split()
    assert kept and set(kept) | set((folder / "r").read_text().split()) == {row["photo"] for row in rows}
    assert {str(path.relative_to("kept")) for path in Path("kept").rglob("*.*")} == set(kept)
    assert f"{len(kept)} photos copied" in result.stderr and "0 photos copied" in call(*options).stderr


def test_resumes_where_it_was_interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lines(call("photos"))
    real = rooms.assess_files

    def stopped(*args: object, **more: object):  # type: ignore[no-untyped-def]
        for place, photo in enumerate(real(*args, **more)):  # type: ignore[arg-type]
            yield photo
            if place == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(rooms, "assess_files", stopped)
    cut = call("photos", "--resume", "done.jsonl")
    assert cut.exit_code == 130 and len(cut.stdout.splitlines()) >= 2
    assert "interrupted after 2 of 5 photos: run the same command again" in cut.stderr.replace("\n", " ")
    assert "--resume FILE" in call("photos").stderr
    monkeypatch.setattr(rooms, "assess_files", real)
    done = Path("done.jsonl").read_text().count("\n")
    asked = []
    acquire = FaceAssessor._acquire
    monkeypatch.setattr(
        FaceAssessor, "_acquire", lambda self, photo: asked.append(photo) or acquire(self, photo)
    )
    assert lines(call("photos", "--resume", "done.jsonl")) == expected and len(asked) == 5 - done


def test_the_options_of_the_model(folder: Path) -> None:
    assert isinstance(call("photos", "--model", "none.safetensors").exception, FileFormatError)
    assert isinstance(call("photos", "--backbone", "none.onnx").exception, ModelError)
    assert isinstance(call("photos", "--detector", "none.onnx").exception, ModelError)
    assert isinstance(call("photos", "--engine", "steam").exception, ModelError | InputError)
    rows = lines(call("photos/one.png", "--max-megapixels", "0.02", "--engine", "torch"))
    assert rows[0]["failure"] == "too_large" and "0.02" in rows[0]["reason"]


def test_a_named_file_that_is_not_there_is_an_outcome(folder: Path) -> None:
    (row,) = lines(call("none.jpg"))
    assert row["failure"] == "unreadable" and row["quality"] == -1


def test_what_cannot_be_done_is_said_before_the_work(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").touch()
    nothing = call("empty")
    assert isinstance(nothing.exception, InputError) and "no photos in empty" in str(nothing.exception)
    assert "notes.txt" in nothing.stderr
    for options in (["--copy-to", "x"], ["--keep-list", "x"], ["--sheet", "s.pdf"]):
        assert isinstance(call("photos", *options).exception, InputError), options
    assert call("photos", "--min-quality", "101").exit_code == 2 and call().exit_code == 2


def test_a_file_that_cannot_be_written_is_refused_before_the_work(folder: Path) -> None:
    (folder / "file").touch()
    for option in ("--csv", "--scores", "--keep-list", "--reject-list", "--resume"):
        result = call("photos", option, "file/t.csv")
        assert isinstance(result.exception, StorageError) and "t.csv" in str(result.exception)
        assert not result.stdout
    assert isinstance(call("photos", "--sheet", "photos").exception, StorageError)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_failed_file_loses_no_line(folder: Path) -> None:
    result = call("photos", "--csv", "/dev/full")
    assert isinstance(result.exception, StorageError) and len(result.stdout.splitlines()) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_stdout_loses_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        words = ["spherecf", "quality", "photos", "--csv", "t.csv", "--keep-list", "k", "--min-quality", "0"]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 1 and len(Path("t.csv").read_text().splitlines()) == 7 and Path("k").exists()


def test_the_command_itself(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "spherecf", "quality", "photos/wall.png"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["failure"] == "no_face" and "OpenCV" not in done.stderr


def test_a_name_is_no_markup() -> None:
    row = {"photo": "a\\[/x].jpg", "face": 0, "kappa": 9.0, "quality": 5, "rank": 1, "reasons": []}
    table = quality._table([row])
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    assert row["photo"] in console.file.getvalue()  # type: ignore[attr-defined]
