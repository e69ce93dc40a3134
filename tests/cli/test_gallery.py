"""The gallery verbs on real faces."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from spherecf.cli import app
from spherecf.data import orl_faces
from spherecf.errors import InputError

RUNNER = CliRunner()
PEOPLE = orl_faces().root


def run(*words: str | Path) -> tuple[list[dict[str, Any]], str]:
    done = RUNNER.invoke(app, ["gallery", *map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Three people of three photos, one of them with a file that shows nobody."""
    for person in ("s1", "s2", "s3"):
        (tmp_path / "people" / person).mkdir(parents=True)
        for number in (1, 2, 3):
            shutil.copy(PEOPLE / person / f"{number}.pgm", tmp_path / "people" / person)
    (tmp_path / "people" / "s3" / "wall.png").write_bytes(b"nothing")
    return tmp_path / "people"


def test_enrol_identify_list_and_remove(people: Path, tmp_path: Path) -> None:
    place = tmp_path / "gallery"
    lines, said = run("enrol", place, "--folders", people)
    assert [(line["identity"], line["status"], line["images"]) for line in lines] == [
        (name, "enrolled", 3) for name in ("s1", "s2", "s3")
    ]
    assert lines[2]["left_out"][0]["photo"].endswith("wall.png") and "skipped" in said
    shutil.copy(PEOPLE / "s1" / "4.pgm", people / "s1")
    shutil.copy(PEOPLE / "s3" / "5.pgm", people / "s3" / "1.pgm")  # another picture under the same name
    (people / "s2").rename(tmp_path / "s2")
    shutil.copy(PEOPLE / "s4" / "1.pgm", people)
    again, said = run("enrol", place, "--folders", people)
    assert [line["status"] for line in again] == ["added", "renewed", "no folder"]
    assert [line["images"] for line in again] == [4, 3, 3] and "still enrolled" in said
    assert len(again[1]["added"]) == len(again[1]["removed"]) == 1 and "s1: added" in said
    assert "in no sub-folder" in said and "people: 1" in said
    wall = people / "s3" / "wall.png"
    found, said = run("identify", place, PEOPLE / "s2" / "9.pgm", PEOPLE / "s9" / "1.pgm", wall, "--top", "2")
    assert [line["candidates"][0]["identity"] for line in found[:1]] == ["s2"]
    assert found[0]["answer"] == "identified" and found[0]["identity"] == "s2"
    assert found[1]["identity"] is None and len(found[1]["candidates"]) == 2
    assert found[2]["answer"] == "undecided" and found[2]["candidates"] == [] and "s2" in said
    more, _ = run("enrol", place, "s2", PEOPLE / "s2", "--add")
    assert more[0]["images"] == 10
    assert run("remove", place, "s1")[0] == [{"identity": "s1", "removed": 1}]
    listed, _ = run("list", place)
    assert [(line["identity"], line["images"]) for line in listed] == [("s2", 10), ("s3", 3)]
    facts, _ = run("info", place)
    assert facts[0]["identities"] == 2 and facts[0]["images"] == 13
    run("compact", place)


def test_wrong_use(people: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "gallery")
    for words in (["enrol", place], ["enrol", place, "Anna"], ["enrol", place, "A", "b", "--folders", "c"]):
        assert RUNNER.invoke(app, ["gallery", *words]).exit_code == 2
    with pytest.raises(InputError, match="no gallery"):
        run("identify", place, PEOPLE / "s1" / "1.pgm")
    with pytest.raises(InputError, match="nothing was enrolled"):
        run("enrol", place, "Anna", people / "s3" / "wall.png")
    with pytest.raises(InputError, match="not enrolled: Bob"):
        run("remove", place, "Bob")
    with pytest.raises(InputError, match="one sub-folder of photos per person"):
        run("enrol", place, "--folders", people / "s1")


def test_info_says_whether_the_rules_hold_for_the_members(tmp_path: Path) -> None:
    for person in range(1, 23):
        (tmp_path / "people" / f"s{person}").mkdir(parents=True)
        for number in (1, 2)[: 1 + person % 2]:
            shutil.copy(PEOPLE / f"s{person}" / f"{number}.pgm", tmp_path / "people" / f"s{person}")
    run("enrol", tmp_path / "gallery", "--folders", tmp_path / "people")
    (facts,), said = run("info", tmp_path / "gallery")
    found = facts["members"]
    assert found["counts"] == {"members": 22, "images": 33, "mated": 22, "non_mated": 33 * 21 - 55}
    rates = {(one["rule"]["score"], one["rule"]["alpha"]): one for one in found["rules"]}
    assert {score for score, _ in rates} == {"evidence", "evidence-template"}
    assert rates["evidence", 1e-2]["matches"] == 22  # by the other photo of each of eleven
    assert rates["evidence", 1e-8]["verdict"] == "open" and facts["members_untold"] is None
    assert "22 of 22 members" in " ".join(said.split())
    (facts,), said = run("info", tmp_path / "gallery", "--members", "10")
    assert facts["members"] is None and "at least 20 members, got 10" in said
    (facts,), said = run("info", tmp_path / "gallery", "--members", "0")
    assert facts["members"] is None and facts["members_untold"] is None
