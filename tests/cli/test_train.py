import json
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import picture
from tests.models.conftest import save_described
from typer.testing import CliRunner

from spherecf import load
from spherecf.cli import app
from spherecf.errors import FileFormatError

RECIPE = "[views]\ndegraded = 1\n[fit]\nepochs = 2\nbatch_size = 8\nheld_out = 0.3\n"


@pytest.fixture
def world(tmp_path: Path) -> Path:
    save_described(tmp_path / "tiny.onnx")
    for person in range(5):
        for number in range(3):
            path = tmp_path / "people" / f"p{person}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(10 * person + number))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def arguments(world: Path, *more: str) -> list[str]:
    return [
        "train", "confidence", str(world / "recipe.toml"), "--data", str(world / "people"),
        "--out", str(world / "run"), "--backbone", str(world / "tiny.onnx"), *more,
    ]  # fmt: skip


def test_trains_and_reports(world: Path) -> None:
    done = CliRunner().invoke(app, arguments(world, "--seed", "3"), catch_exceptions=False)
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    model = load(report["model"], world / "tiny.onnx")
    assert model.record["config"]["seed"] == 3 and report["fingerprint"] == model.fingerprint()
    assert report["data"]["used"] == 15 and np.isfinite(report["last"]["held_out_loss"])


def test_a_mistake_in_the_recipe(world: Path) -> None:
    (world / "recipe.toml").write_text("[fit]\nepoks = 3\n")
    with pytest.raises(FileFormatError, match=r"unknown setting fit\.epoks"):
        CliRunner().invoke(app, arguments(world), catch_exceptions=False)
