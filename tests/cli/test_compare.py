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
ANNA, AGAIN, BOB = (str(PEOPLE / name) for name in ("s1/1.pgm", "s1/2.pgm", "s2/1.pgm"))


def run(*words: str) -> tuple[list[dict], str]:
    done = RUNNER.invoke(app, ["compare", *words], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_says_match_and_why() -> None:
    (line,), table = run(ANNA, AGAIN, "--max-fmr", "1e-2")
    assert line["decision"] == "match" and line["llr"] > 0 and line["evidence"] >= line["accept"]
    assert 0 < line["fmr_seen"] <= line["fmr_upper"] <= 1e-2
    assert [one["photo"] for one in line["photos"]] == [ANNA, AGAIN]
    assert "MATCH: at most 1 in 100 pairs of different people" in table and "likelihood ratio" in table


def test_many_pairs_from_a_table(tmp_path: Path) -> None:
    wall = tmp_path / "wall.pgm"
    wall.write_bytes(b"P5 90 90 255 " + bytes(8100))
    table = tmp_path / "pairs.csv"
    table.write_text(f"{ANNA},{BOB}\n\n{ANNA},{wall}\n{ANNA},{tmp_path / 'gone.jpg'}\n")
    lines, shown = run("--pairs", str(table))
    assert [line["decision"] for line in lines[1:]] == ["undecided", "undecided"]
    assert (
        lines[0]["decision"] != "match"
        and "no face" in lines[1]["reason"]
        and "no such" in lines[2]["reason"]
    )
    assert lines[2]["photos"][1]["failure"] == "unreadable" and "3 pairs at FMR 0.0001" in shown


@pytest.mark.parametrize("words", [[ANNA], [], [ANNA, BOB, "--pairs", "x.csv"], [ANNA, BOB, "--face", "0"]])
def test_wrong_usage_is_exit_code_2(words: list[str]) -> None:
    done = RUNNER.invoke(app, ["compare", *words])
    assert done.exit_code == 2 and done.stdout == ""


def test_refuses_with_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no decision rule for mls.*there are: "):
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


def test_any_name_is_one_line(tmp_path: Path) -> None:
    table, odd = tmp_path / "pairs.csv", tmp_path / os.fsdecode(b"two\nlines \xff \xe2\x80\xa8.pgm")
    odd.write_bytes(b"P5 90 90 255 " + bytes(8100))
    with table.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
        csv.writer(stream).writerow([str(tmp_path / "two\nlines.pgm"), ANNA])
    (tmp_path / "two\nlines.pgm").write_bytes(odd.read_bytes())
    for words in (["--pairs", str(table)], [str(odd), ANNA]):
        (line,), _ = run(*words)
        name = line["photos"][0]["photo"]
        assert line["photos"][0]["failure"] == "no_face" and name.isprintable() and r"two\nlines" in name
