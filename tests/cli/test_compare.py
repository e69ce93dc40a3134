"""`spherecf compare`: decisions of single pairs and of tables of pairs."""

import csv
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from spherecf.cli import app
from spherecf.data import orl_faces
from spherecf.errors import FileFormatError, InputError

RUNNER = CliRunner()
PEOPLE = orl_faces().root
ANNA, ANNA_2, BOB = (str(PEOPLE / name) for name in ("s1/1.pgm", "s1/2.pgm", "s2/1.pgm"))


def run(*arguments: str) -> tuple[list[dict], str]:
    result = RUNNER.invoke(app, ["compare", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()], result.stderr


def test_reports_a_match_with_its_error_rates() -> None:
    (line,), summary = run(ANNA, ANNA_2, "--max-fmr", "1e-2")
    assert line["decision"] == "match" and line["llr"] > 0 and line["evidence"] >= line["accept"]
    assert 0 < line["fmr_measured"] <= line["fmr_upper"] <= 1e-2
    assert [photo["photo"] for photo in line["photos"]] == [ANNA, ANNA_2]
    assert "MATCH: at most 1 in 100 pairs of different people" in summary and "likelihood ratio" in summary


def test_a_photo_compared_with_itself_is_noted() -> None:
    _, summary = run(ANNA, ANNA)
    assert "a match is meaningless" in summary


def test_compares_the_pairs_of_a_table(tmp_path: Path) -> None:
    wall = tmp_path / "wall.pgm"
    wall.write_bytes(b"P5 90 90 255 " + bytes(8100))
    table = tmp_path / "pairs.csv"
    table.write_text(f"{ANNA},{BOB}\n\n{ANNA},{wall}\n{ANNA},{tmp_path / 'gone.jpg'}\n")
    lines, summary = run("--pairs", str(table))
    assert [line["decision"] for line in lines[1:]] == ["undecided", "undecided"]
    assert (
        lines[0]["decision"] != "match"
        and "no face" in lines[1]["reason"]
        and "no such" in lines[2]["reason"]
    )
    assert lines[2]["photos"][1]["failure"] == "unreadable" and "3 pairs at FMR 0.0001" in summary


@pytest.mark.parametrize(
    "arguments", [[ANNA], [], [ANNA, BOB, "--pairs", "x.csv"], [ANNA, BOB, "--face", "0"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    result = RUNNER.invoke(app, ["compare", *arguments])
    assert result.exit_code == 2 and result.stdout == ""


def test_errors_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rate of 0\.5; there are rules for 0\.01, 0\.001, 0\.0001"):
        run(ANNA, BOB, "--max-fmr", "0.5")
    table = tmp_path / "pairs.csv"
    for text, problem in (
        ("a,b,c\n", "row 1: expected two photos, got 3"),
        ("a,\n", "row 1.*empty"),
        ("", "contains no pairs"),
    ):
        table.write_text(text)
        with pytest.raises((FileFormatError, InputError), match=problem):
            run("--pairs", str(table))
    with pytest.raises(FileFormatError, match="expected a CSV file with two columns"):
        run("--pairs", str(tmp_path / "gone.csv"))


def test_names_are_printed_on_one_line(tmp_path: Path) -> None:
    table, odd_name = tmp_path / "pairs.csv", tmp_path / os.fsdecode(b"two\nlines \xff \xe2\x80\xa8.pgm")
    odd_name.write_bytes(b"P5 90 90 255 " + bytes(8100))
    with table.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        csv.writer(stream).writerow([str(tmp_path / "two\nlines.pgm"), ANNA])
    (tmp_path / "two\nlines.pgm").write_bytes(odd_name.read_bytes())
    for arguments in (["--pairs", str(table)], [str(odd_name), ANNA]):
        (line,), _ = run(*arguments)
        name = line["photos"][0]["photo"]
        assert line["photos"][0]["failure"] == "no_face" and name.isprintable() and r"two\nlines" in name
