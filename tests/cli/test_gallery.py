"""`spherecf gallery`: all verbs, on real faces."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from spherecf.cli import app
from spherecf.cli.gallery import _test_rules
from spherecf.data import orl_faces
from spherecf.errors import InputError
from spherecf.gallery import Gallery

RUNNER = CliRunner()
PEOPLE = orl_faces().root


def run(*arguments: str | Path) -> tuple[list[dict[str, Any]], str]:
    result = RUNNER.invoke(app, ["gallery", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Three people with three photos each; one of them also has a file without a face."""
    for person in ("s1", "s2", "s3"):
        (tmp_path / "people" / person).mkdir(parents=True)
        for number in (1, 2, 3):
            shutil.copy(PEOPLE / person / f"{number}.pgm", tmp_path / "people" / person)
    (tmp_path / "people" / "s3" / "wall.png").write_bytes(b"nothing")
    return tmp_path / "people"


def test_enrol_identify_list_and_remove(people: Path, tmp_path: Path) -> None:
    path = tmp_path / "gallery"
    lines, messages = run("enrol", path, "--folders", people)
    assert [(line["identity"], line["status"], line["images"]) for line in lines] == [
        (name, "enrolled", 3) for name in ("s1", "s2", "s3")
    ]
    assert lines[2]["left_out"][0]["photo"].endswith("wall.png") and "skipped" in messages
    shutil.copy(PEOPLE / "s1" / "4.pgm", people / "s1")
    shutil.copy(PEOPLE / "s3" / "5.pgm", people / "s3" / "1.pgm")  # another image under the same name
    (people / "s2").rename(tmp_path / "s2")
    shutil.copy(PEOPLE / "s4" / "1.pgm", people)
    second_run, messages = run("enrol", path, "--folders", people)
    assert [line["status"] for line in second_run] == ["added", "renewed", "no folder"]
    assert [line["images"] for line in second_run] == [4, 3, 3] and "still enrolled" in messages
    assert len(second_run[1]["added"]) == len(second_run[1]["removed"]) == 1 and "s1: added" in messages
    assert "in no sub-folder" in messages and "people: 1" in messages
    wall = people / "s3" / "wall.png"
    results, messages = run(
        "identify", path, PEOPLE / "s2" / "9.pgm", PEOPLE / "s9" / "1.pgm", wall, "--top", "2"
    )
    assert [line["candidates"][0]["identity"] for line in results[:1]] == ["s2"]
    assert results[0]["answer"] == "identified" and results[0]["identity"] == "s2"
    assert results[1]["identity"] is None and len(results[1]["candidates"]) == 2
    assert results[2]["answer"] == "undecided" and results[2]["candidates"] == [] and "s2" in messages
    enrolments, _ = run("enrol", path, "s2", PEOPLE / "s2", "--add")
    assert enrolments[0]["images"] == 10
    assert run("remove", path, "s1", " s1")[0] == [{"identity": "s1", "removed": 1}]
    people_listed, _ = run("list", path)
    assert [(line["identity"], line["images"]) for line in people_listed] == [("s2", 10), ("s3", 3)]
    info, _ = run("info", path)
    assert info[0]["identities"] == 2 and info[0]["images"] == 13
    run("compact", path)
    (people / "s3" / "notes.txt").write_text("not a photo")
    results, messages = run("identify", path, people / "s3")
    assert len(results) == 4 and "not photos: 1" in messages and "notes.txt" in messages
    (tmp_path / "no photos").mkdir()
    with pytest.raises(InputError, match="found no photos in"):
        run("identify", path, tmp_path / "no photos")


def test_wrong_usage_is_refused(people: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "gallery")
    for arguments in (["enrol", path], ["enrol", path, "Anna"], ["enrol", path, "A", "b", "--folders", "c"]):
        assert RUNNER.invoke(app, ["gallery", *arguments]).exit_code == 2
    with pytest.raises(InputError, match="no gallery"):
        run("identify", path, PEOPLE / "s1" / "1.pgm")
    with pytest.raises(InputError, match="nothing was enrolled"):
        run("enrol", path, "Anna", people / "s3" / "wall.png")
    with pytest.raises(InputError, match="not enrolled: Bob"):
        run("remove", path, "Bob")
    with pytest.raises(InputError, match="one sub-folder of photos per person"):
        run("enrol", path, "--folders", people / "s1")


def test_a_gallery_without_calibration_has_no_rules_to_test() -> None:
    with Gallery.open(":memory:", model="m" * 64, dim=4, radius=1.0) as gallery:
        gallery.enrol("anna", np.eye(4, dtype=np.float32)[:1], [9.0], media=["a"], sources=["a.jpg"])
        assert _test_rules(gallery, 10) == (
            None, "the model is not calibrated, so there are no rules to check"
        )  # fmt: skip


def test_info_tests_the_rules_on_the_members(tmp_path: Path) -> None:
    for person in range(1, 23):
        (tmp_path / "people" / f"s{person}").mkdir(parents=True)
        for number in (1, 2)[: 1 + person % 2]:
            shutil.copy(PEOPLE / f"s{person}" / f"{number}.pgm", tmp_path / "people" / f"s{person}")
    run("enrol", tmp_path / "gallery", "--folders", tmp_path / "people")
    (facts,), messages = run("info", tmp_path / "gallery")
    report = facts["members"]
    assert report["counts"] == {"members": 22, "images": 33, "mated": 22, "non_mated": 33 * 21 - 55}
    rules = {(rule["rule"]["score"], rule["rule"]["alpha"]): rule for rule in report["rules"]}
    assert {score for score, _ in rules} == {"evidence", "evidence-template"}
    assert rules["evidence", 1e-2]["matches"] == 22  # eleven people have two photos each
    assert rules["evidence", 1e-8]["verdict"] == "open" and facts["members_untested"] is None
    assert "22 of 22 members" in " ".join(messages.split())
    (facts,), messages = run("info", tmp_path / "gallery", "--members", "10")
    assert facts["members"] is None and "at least 20 members, got 10" in messages
    (facts,), messages = run("info", tmp_path / "gallery", "--members", "0")
    assert facts["members"] is None and facts["members_untested"] is None
    # One person under two names
    (tmp_path / "again" / "also s1").mkdir(parents=True)
    shutil.copy(PEOPLE / "s1" / "3.pgm", tmp_path / "again" / "also s1")
    _, messages = run("enrol", tmp_path / "gallery", "--folders", tmp_path / "again")
    assert "resembles s1" in " ".join(messages.split())
    _, messages = run("info", tmp_path / "gallery")
    assert "s1 and also s1 look alike" in " ".join(messages.split())
