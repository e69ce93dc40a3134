"""The main workflow on real faces, through the command line: train, embed, evaluate. Needs `shared`."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from spherecf.cli import app
from spherecf.data import open_pairs, open_source, write_records
from spherecf.embeddings import Embeddings

pytestmark = pytest.mark.slow

RECIPE = "[views]\ndegraded = 1\n[fit]\nepochs = 8\nbatch_size = 64\nheld_out = 0.2\n"
FOLDS, PAIRS = 2, 60  # out of LFW's ten folds with 300 mated and 300 non-mated pairs each


def spherecf(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.fixture(scope="module")
def files(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """LFW as .rec: test images of the pairs of two folds, and training images of other people."""
    folder = tmp_path_factory.mktemp("lfw")
    lfw = open_source(shared / "data" / "lfw")
    header, *lines = (shared / "data" / "lfw" / "pairs.txt").read_text().splitlines()
    half = int(header.split()[1])
    starts = [fold * 2 * half + kind * half for fold in range(FOLDS) for kind in range(2)]
    pair_lines = [line for start in starts for line in lines[start : start + PAIRS]]
    (folder / "pairs.txt").write_text("\n".join([f"{FOLDS}\t{PAIRS}", *pair_lines]) + "\n")
    rows = np.unique(np.concatenate(open_pairs(folder / "pairs.txt").rows(lfw.keys)))
    test_labels = np.unique(lfw.labels[rows])
    counts = np.bincount(lfw.labels)
    candidates = np.flatnonzero((counts >= 2) & (counts <= 6))
    train_labels = [label for label in candidates if label not in test_labels][:60]
    write_records(lfw.subset(np.flatnonzero(np.isin(lfw.labels, train_labels))), folder / "train")
    write_records(lfw.subset(rows), folder / "test")
    (folder / "recipe.toml").write_text(RECIPE)
    return {name: folder / name for name in ("train", "test", "pairs.txt", "recipe.toml", "run")}


@pytest.fixture(scope="module")
def model(files: dict[str, Path]) -> Path:
    report = json.loads(
        spherecf("train", "confidence", files["recipe.toml"], "--data", files["train"], "--out", files["run"])
    )
    assert report["data"]["used"] >= 120 and not report["data"]["skipped"]
    return Path(report["model"])


@pytest.fixture(scope="module")
def clean(model: Path, files: dict[str, Path]) -> Path:
    out = files["run"] / "clean.safetensors"
    spherecf("embed", model, files["test"], out)
    return out


def test_accuracy_of_sface_on_lfw(clean: Path, files: dict[str, Path]) -> None:
    options = (clean, "--pairs", files["pairs.txt"])
    report = json.loads(spherecf("evaluate", "tenfold", *options, "--json", "--draws", 20))
    assert report["counts"]["pairs"] == 2 * FOLDS * PAIRS and report["counts"]["failed_images"] == 0
    accuracy = {score: result["accuracy"]["value"] for score, result in report["scores"].items()}
    assert accuracy["cosine"] > 0.99 and accuracy["mls"] > 0.985
    line = spherecf("evaluate", "tenfold", *options, "--draws", 0).splitlines()[0]
    assert "Accuracy-Flip: 0.99" in line


def test_kappa_falls_with_degradation(model: Path, clean: Path, files: dict[str, Path]) -> None:
    out = files["run"] / "cross.safetensors"
    spherecf("embed", model, files["test"], out, "--degrade", "cross", "--seed", 5)
    before, after = Embeddings.load(clean), Embeddings.load(out)
    assert before.keys == after.keys
    assert (after.log_kappa < before.log_kappa).mean() > 0.9
    severity = after.extras["severity"]
    severe, mild = severity > np.quantile(severity, 0.8), severity < np.quantile(severity, 0.2)
    assert np.median(after.log_kappa[severe]) < np.median(after.log_kappa[mild]) - 0.5
