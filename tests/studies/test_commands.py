import json
from pathlib import Path

import pytest
from studies.__main__ import app
from tests.models.conftest import save_described
from tests.studies.conftest import make_people
from typer.testing import CliRunner

from spherecf.data import open_source
from spherecf.errors import InputError

RECIPE = "[views]\ndegraded = 1\n[fit]\nepochs = 1\nbatch_size = 8\nheld_out = 0.3\n"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    save_described(tmp_path / "tiny.onnx")
    make_people(tmp_path / "train", 5, 3, 0)
    test = open_source(make_people(tmp_path / "test", 4, 3, 7000))
    lines = ["fold\tleft\tright\tmated"]
    for fold in (1, 2):
        for person in ("p0", "p1"):
            lines.append(f"{fold}\t{person}/0.jpg\t{person}/{fold}.jpg\t1")
            lines.append(f"{fold}\t{person}/0.jpg\tp{fold + 1}/1.jpg\t0")
    (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "recipe.toml").write_text(RECIPE)
    assert len(test) == 12
    return tmp_path


def arguments(world: Path, *options: str) -> list[str]:
    return [
        "cross-quality", str(world / "train"), str(world / "test"),
        "--pairs", str(world / "pairs.txt"), "--out", str(world / "out"),
        "--recipe", str(world / "recipe.toml"), "--backbone", str(world / "tiny.onnx"),
        "--seeds", "1", "--draws", "5", *options,
    ]  # fmt: skip


def test_the_command_prints_json_and_writes_a_report(world: Path) -> None:
    result = CliRunner().invoke(app, arguments(world, "--json"), catch_exceptions=False)
    assert result.exit_code == 0
    tables = json.loads(result.stdout)
    assert [table["title"] for table in tables][:2] == [
        "Scores", "Mutual likelihood score against the cosine"
    ]  # fmt: skip
    assert len(tables[0]["rows"]) == 5
    assert (world / "out" / "report" / "report.html").exists()


def test_the_command_prints_the_path_of_the_report(world: Path) -> None:
    result = CliRunner().invoke(app, arguments(world), catch_exceptions=False)
    assert result.stdout.strip() == f"report: {world / 'out' / 'report' / 'report.html'}"


def test_pairs_of_unknown_images_are_refused(world: Path) -> None:
    text = (world / "pairs.txt").read_text().replace("p1/0.jpg", "p1/77.jpg")
    (world / "pairs.txt").write_text(text)
    with pytest.raises(InputError, match="1 images of the list are not among the 12 images given"):
        CliRunner().invoke(app, arguments(world), catch_exceptions=False)
