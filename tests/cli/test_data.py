"""`spherecf data`: inspect, convert, check and index."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.models.conftest import save_described
from tests.tiny import write_people
from typer.testing import CliRunner

from spherecf.cli import data
from spherecf.data import open_source
from spherecf.errors import InputError

runner = CliRunner()


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    for number in range(20):
        path = tmp_path / f"faces/p{number // 4}/{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".jpg", np.full((8, 8, 3), number * 10, np.uint8))[1].tobytes())
    return tmp_path / "faces"


def test_inspect_prints_json(faces: Path) -> None:
    (faces / "p0/0.jpg").write_text("text")
    result = runner.invoke(data.app, ["inspect", str(faces), "--json", "--decode"])
    facts = json.loads(result.stdout)
    assert result.exit_code == 0 and facts["images"] == 20 and facts["broken"][0]["key"] == "p0/0.jpg"


def test_inspect_shows_a_table_on_stderr(faces: Path) -> None:
    (faces / "p0/0.jpg").write_text("text")
    completed = spherecf("data", "inspect", str(faces), "--decode")
    assert completed.returncode == 0 and completed.stdout == ""
    assert "IdentityFolder" in completed.stderr and "p0/0.jpg" in completed.stderr


def test_convert_to_records_and_back(faces: Path, tmp_path: Path) -> None:
    (faces / "p1/4.jpg").write_text("text")
    result = runner.invoke(data.app, ["convert", str(faces), str(tmp_path / "rec")])
    report = json.loads(result.stdout)
    assert report["kind"] == "RecordFile" and report["images"] == 19
    assert [item["key"] for item in report["skipped"]] == ["p1/4.jpg"]
    runner.invoke(data.app, ["convert", str(tmp_path / "rec"), str(tmp_path / "back")])
    assert open_source(tmp_path / "back").keys == open_source(tmp_path / "rec").keys


def test_convert_to_a_pair_file(faces: Path, tmp_path: Path) -> None:
    keys = open_source(faces).keys
    lines = [
        "fold\tleft\tright\tmated",
        *(f"{fold + 1}\t{keys[0]}\t{keys[fold + 4]}\t0" for fold in range(10)),
    ]
    (tmp_path / "pairs.txt").write_text("\n".join(lines))
    result = runner.invoke(
        data.app,
        ["convert", str(faces), str(tmp_path / "toy.bin"), "--pairs", str(tmp_path / "pairs.txt")],
    )
    assert json.loads(result.stdout)["kind"] == "PairBin"
    images, mated = pickle.loads((tmp_path / "toy.bin").read_bytes())
    assert len(images) == 20 and mated == [False] * 10


@pytest.mark.parametrize("options", [["--to", "zip"], ["--to", "bin"], ["--to", "rec", "--pairs", "x.txt"]])
def test_convert_refuses_contradictory_options(faces: Path, tmp_path: Path, options: list[str]) -> None:
    result = runner.invoke(data.app, ["convert", str(faces), str(tmp_path / "out"), *options])
    assert isinstance(result.exception, InputError) and not (tmp_path / "out").exists()


def test_failure_is_one_message_and_exit_code_1(tmp_path: Path) -> None:
    completed = spherecf("data", "inspect", str(tmp_path / "none"))
    assert completed.returncode == 1 and completed.stdout == ""
    assert "no such file or folder" in completed.stderr and "Traceback" not in completed.stderr


def test_convert_to_a_list(faces: Path, tmp_path: Path) -> None:
    result = runner.invoke(data.app, ["convert", str(faces), str(tmp_path / "out"), "--to", "list"])
    assert json.loads(result.stdout)["kind"] == "ListFile"
    written, source = open_source(tmp_path / "out/list.txt"), open_source(faces)
    assert (
        written.keys == [f"images/{key}" for key in source.keys] and written.identities == source.identities
    )
    assert written.read(7) == source.read(7)


def test_check_reports_as_json_and_to_a_file(faces: Path, tmp_path: Path) -> None:
    (faces / "p0/0.jpg").write_text("text")
    (faces / "p1/again.jpg").write_bytes((faces / "p2/8.jpg").read_bytes())
    command = ["check", str(faces), "--pixels-only", "--json", "--out", str(tmp_path / "report.json")]
    report = json.loads(runner.invoke(data.app, command).stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert [item["key"] for item in report["corrupt"]] == ["p0/0.jpg"]
    assert [group["identities"] for group in report["duplicates"]] == [["p1", "p2"]]


def test_check_shows_a_summary_on_stderr(faces: Path, tmp_path: Path) -> None:
    (faces / "p1/again.jpg").write_bytes((faces / "p2/8.jpg").read_bytes())
    completed = spherecf("data", "check", str(faces), "--pixels-only", "--against", str(faces))
    assert completed.returncode == 0 and completed.stdout == ""
    assert "several identities: 1" in completed.stderr and "p1/again.jpg, p2/8.jpg" in completed.stderr
    assert "names in both sets: 5" in completed.stderr


def test_inspect_accepts_a_synthetic_set() -> None:
    result = runner.invoke(data.app, ["inspect", "synthetic:images=9,identities=2,size=8", "--json"])
    assert json.loads(result.stdout)["identities"] == 2


@pytest.mark.parametrize("verb", ["inspect", "convert", "check"])
def test_help_ends_with_an_example(verb: str) -> None:
    help_text = runner.invoke(data.app, [verb, "--help"]).stdout.rstrip()
    assert help_text.splitlines()[-1].strip().startswith(f"Example: spherecf data {verb}")


def spherecf(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in its own process."""
    command = [sys.executable, "-c", "from spherecf.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_index_creates_only_a_missing_index(faces: Path, tmp_path: Path) -> None:
    runner.invoke(data.app, ["convert", str(faces), str(tmp_path / "rec")])
    index = tmp_path / "rec/train.idx"
    before = index.read_text()
    refused = runner.invoke(data.app, ["index", str(tmp_path / "rec")])
    assert isinstance(refused.exception, InputError) and index.read_text() == before
    index.unlink()
    created = runner.invoke(data.app, ["index", str(tmp_path / "rec/train.rec")])
    assert created.exit_code == 0 and created.stdout.strip() == str(index) and index.read_text() == before


def test_inspect_reports_folds_with_one_kind_of_pairs(faces: Path, tmp_path: Path) -> None:
    images = [path.read_bytes() for path in sorted(faces.rglob("*.jpg"))]
    (tmp_path / "own.bin").write_bytes(pickle.dumps((images, [True] * 5 + [False] * 5)))
    result = runner.invoke(data.app, ["inspect", str(tmp_path / "own.bin")])
    assert "10 of 10 folds" in " ".join(result.output.split())


def test_check_shows_what_the_recogniser_suspects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two folders of one person, a photo of her in a folder of another, and a second set with her."""
    save_described(tmp_path / "tiny.onnx")
    people = write_people(tmp_path, people=8, pictures=6)
    shutil.copytree(people / "p0", people / "again")
    shutil.copytree(people / "p0", tmp_path / "other" / "17")
    command = ["check", str(people), "--backbone", str(tmp_path / "tiny.onnx"), "--fpir", "0.2"]
    options = ["--against", str(tmp_path / "other"), "--out", str(tmp_path / "report.json")]
    result = runner.invoke(data.app, [*command, *options])
    assert result.exit_code == 0, result.exception
    faces, shown = (
        json.loads((tmp_path / "report.json").read_text())["faces"],
        " ".join(result.stderr.split()),
    )
    assert "names in both sets: unknown, because the names of one set are numbers" in shown
    assert "tiny: a label is suspect if the cosine to its own identity is below" in shown
    assert f"suspect labels among {faces['judged']} images" in shown
    for name, title in (("same_person", "pairs of identities"), ("overlap", "identities of the two sets")):
        assert f"{title} that look like the same person: {len(faces[name])} " in shown and faces[name]
        first = faces[name][0]
        assert f"{first['left']} and {first['right']}: {first['cosine']:.3f}" in shown
