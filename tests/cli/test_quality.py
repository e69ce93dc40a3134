"""`spherecf quality`: ranking, output files, resumption, and refusals."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console
from tests.faces.pictures import jpeg, portrait
from tests.models import graphs
from tests.tiny import TINY
from typer.testing import CliRunner, Result

from spherecf import photos as photos_room
from spherecf.cli import app, main, quality
from spherecf.data import encode_image
from spherecf.errors import FileFormatError, InputError, ModelError, StorageError
from spherecf.models import ConfidenceModel, FrozenBackbone, load
from spherecf.models.heads import LinearHead
from spherecf.photos import FaceAssessor, rank_photos


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``photos/`` with two portraits, a photo of two people, one without a face, and unusable files."""
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


def test_a_shortened_list_mentions_the_json_output_only_if_it_has_the_rest(folder: Path) -> None:
    for number in range(21):
        (folder / "photos" / f"{number}.txt").write_text("none")
        (folder / "photos" / f"{number}.jpg").touch()
    result = call("photos")
    assert len(lines(result)) == 27 and ".txt" not in result.stdout
    assert "... and 3 more (the JSON output lists all of them)" in result.stderr  # 21 empty and 2 others
    assert "... and 2 more\n" in result.stderr  # ignored files


def test_ranks_every_face_and_lists_photos_without_one(folder: Path) -> None:
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


def test_command_equals_the_python_function(folder: Path) -> None:
    assert lines(call("photos")) == json.loads(json.dumps(rank_photos(["photos"])))


def test_main_faces_can_be_sorted_by_name(folder: Path) -> None:
    rows = lines(call("photos", "--faces", "main", "--sort", "name"))
    assert [row["photo"] for row in rows] == sorted({row["photo"] for row in rows}) and len(rows) == 5


def test_csv_scores_and_sheet_are_written(folder: Path) -> None:
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


def test_good_photos_are_copied_and_listed(folder: Path) -> None:
    rows = [row for row in lines(call("photos", "--faces", "main")) if row["rank"]]
    min_quality = rows[1]["quality"]
    options = (
        "photos",
        "--min-quality",
        str(min_quality),
        "--copy-to",
        "kept",
        "--keep-list",
        "k",
        "--reject-list",
        "r",
    )
    result = call(*options)
    assert len(lines(result)) == 6
    kept_names = (folder / "k").read_text().split()
    rejected_names = (folder / "r").read_text().split()
    assert kept_names and {*kept_names, *rejected_names} == {row["photo"] for row in rows}
    assert {str(path.relative_to("kept")) for path in Path("kept").rglob("*.*")} == set(kept_names)
    assert f"{len(kept_names)} photos copied" in result.stderr and "0 photos copied" in call(*options).stderr


def test_interrupted_run_is_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lines(call("photos"))
    assess_files = photos_room.assess_files

    def interrupted_after_2(*args: object, **options: object):  # type: ignore[no-untyped-def]
        for index, photo in enumerate(assess_files(*args, **options)):  # type: ignore[arg-type]
            yield photo
            if index == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(photos_room, "assess_files", interrupted_after_2)
    interrupted = call("photos", "--resume", "done.jsonl")
    assert interrupted.exit_code == 130 and len(interrupted.stdout.splitlines()) >= 2
    message = interrupted.stderr.replace("\n", " ")
    assert "interrupted after 2 of 5 photos: run the same command again" in message
    assert "--resume FILE" in call("photos").stderr
    monkeypatch.setattr(photos_room, "assess_files", assess_files)
    n_recorded = Path("done.jsonl").read_text().count("\n")
    acquired = []
    acquire = FaceAssessor._acquire
    monkeypatch.setattr(
        FaceAssessor, "_acquire", lambda self, photo: acquired.append(photo) or acquire(self, photo)
    )
    assert lines(call("photos", "--resume", "done.jsonl")) == expected and len(acquired) == 5 - n_recorded


def test_invalid_model_options_are_refused(folder: Path) -> None:
    assert isinstance(call("photos", "--model", "none.safetensors").exception, FileFormatError)
    assert isinstance(call("photos", "--backbone", "none.onnx").exception, ModelError)
    assert isinstance(call("photos", "--detector", "none.onnx").exception, ModelError)
    assert isinstance(call("photos", "--engine", "steam").exception, ModelError | InputError)
    ConfidenceModel((shipped := load()).backbone, shipped.head).save(folder / "raw.safetensors")
    result = call("photos", "--model", "raw.safetensors", "--min-quality", "9")
    assert isinstance(result.exception, InputError) and not result.stdout
    assert str(result.exception) == "--min-quality needs a calibrated model; this one is not calibrated"
    rows = lines(call("photos/one.png", "--max-megapixels", "0.02", "--engine", "torch"))
    assert rows[0]["failure"] == "too_large" and "0.02" in rows[0]["reason"]


def test_repairs_of_the_recogniser_are_reported(folder: Path) -> None:
    onnx.save(graphs.iresnet(batch=1), "fixed.onnx")
    backbone = FrozenBackbone.from_onnx("fixed.onnx", preprocessing=TINY)
    ConfidenceModel(backbone, LinearHead(*backbone.feature_shape)).save("fixed.safetensors")
    result = call("photos/one.png", "--model", "fixed.safetensors", "--backbone", "fixed.onnx")
    assert lines(result)[0]["kappa"] > 0 and "fixed: fixed batch of 1 made dynamic" in result.stderr


def test_a_missing_file_is_reported_as_a_failure(folder: Path) -> None:
    (row,) = lines(call("none.jpg"))
    assert row["failure"] == "unreadable" and row["quality"] == -1


def test_invalid_options_are_refused_before_the_work(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").touch()
    empty = call("empty")
    assert isinstance(empty.exception, InputError) and "no photos in empty" in str(empty.exception)
    assert "notes.txt" in empty.stderr
    into_archive = ["--copy-to", "photos", "--min-quality", "0"]
    for options in (["--copy-to", "x"], ["--keep-list", "x"], ["--sheet", "s.pdf"], into_archive):
        result = call("photos", *options)
        assert isinstance(result.exception, InputError) and not result.stdout, options
    assert call("photos", "--min-quality", "101").exit_code == 2 and call().exit_code == 2


def test_a_file_that_cannot_be_written_is_refused_before_the_work(folder: Path) -> None:
    (folder / "file").touch()
    for option in ("--csv", "--scores", "--keep-list", "--reject-list", "--resume"):
        result = call("photos", option, "file/t.csv")
        assert isinstance(result.exception, StorageError) and "t.csv" in str(result.exception)
        assert not result.stdout
    assert isinstance(call("photos", "--sheet", "photos").exception, StorageError)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_failed_output_file_loses_no_line_on_stdout(folder: Path) -> None:
    result = call("photos", "--csv", "/dev/full")
    assert isinstance(result.exception, StorageError) and len(result.stdout.splitlines()) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_stdout_loses_no_output_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        options = ["--csv", "t.csv", "--keep-list", "k", "--min-quality", "0"]
        monkeypatch.setattr(sys, "argv", ["spherecf", "quality", "photos", *options])
        with pytest.raises(SystemExit) as error:
            main()
    assert error.value.code == 1 and len(Path("t.csv").read_text().splitlines()) == 7 and Path("k").exists()


def test_command_runs_as_a_module(folder: Path) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "spherecf", "quality", "photos/wall.png"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(completed.stdout)["failure"] == "no_face" and "OpenCV" not in completed.stderr


def shown(rows: list[dict]) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(quality._table(rows))
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


ROW = {"photo": "a\\[/x].jpg", "face": 0, "kappa": 9.0, "quality": 5, "rank": 1, "reasons": []}


def test_names_are_not_parsed_as_markup() -> None:
    assert ROW["photo"] in shown([ROW])


def test_the_table_has_the_best_and_the_worst_faces() -> None:
    lines = shown([{**ROW, "rank": rank, "photo": f"{rank}.jpg"} for rank in range(1, 48)]).splitlines()
    names = [line.split()[1] for line in lines[1:] if ".jpg" in line]
    assert names == [f"{rank}.jpg" for rank in (*range(1, 21), *range(28, 48))]
    assert "... 7 more ..." in lines[21]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals on this system")
def test_a_terminal_gets_the_table_instead_of_lines(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, child = os.openpty()
    os.set_blocking(parent, False)
    with os.fdopen(child, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "argv", ["spherecf", "quality", "photos/one.png"])
        with pytest.raises(SystemExit) as error:
            main()
        with pytest.raises(BlockingIOError):
            os.read(parent, 100)  # nothing is there
    os.close(parent)
    assert error.value.code == 0
    assert re.search(r"rank +photo .*\n.*1 +photos/one.png +1 ", capsys.readouterr().err)
