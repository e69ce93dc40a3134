import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from typer.testing import CliRunner

from spherecf.cli import app
from spherecf.data import open_pairs, open_source, write_records
from spherecf.embeddings import Embeddings
from spherecf.training import BackboneConfig, ConfidenceConfig

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "recipes"
RECIPES = sorted(FOLDER.glob("*.toml"))
SECOND = {path.name for path in RECIPES if f" train confidence recipes/{path.name}" in path.read_text()}
PEOPLE, IMAGES, PAIRS = 16, 10, 100


def load(path: Path) -> BackboneConfig | ConfidenceConfig:
    return (ConfidenceConfig if path.name in SECOND else BackboneConfig).load(path)


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    found = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules["scaling"] = module  # its dataclasses look themselves up
    found.loader.exec_module(module)
    return module


def test_both_stages_are_here() -> None:
    assert {"confidence.toml", "scf-reference.toml", "scf-light.toml", "tiny-confidence.toml"} == SECOND
    pairs = {f"ms1mv2-{net}-{head}.toml" for net in ("r100", "r50", "r34") for head in ("arcface", "cosface")}
    assert pairs <= {path.name for path in RECIPES} - SECOND


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_is_read_and_says_how_it_is_run(path: Path) -> None:
    config, text = load(path), path.read_text()
    assert config.fit.epochs >= 1
    stage = "confidence" if path.name in SECOND else "backbone"
    assert f"spherecf train {stage} recipes/{path.name} " in text and "--data" in text
    named = re.findall(r"recipes/([\w.-]+\.toml)", text)
    assert set(named) <= {other.name for other in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_cost_follows_from_the_numbers_beside_it(path: Path, scaling: ModuleType) -> None:
    cost = scaling.Cost.of(path.read_text())
    if cost is None:
        assert path.stem.startswith(("tiny", "lfw")) or path.stem in ("backbone", "confidence")
        return
    config = load(path)
    assert (cost.hours, cost.gpu_hours) == cost.computed()
    if cost.unit == "views":
        assert cost.count == (1 + config.views.degraded) * (1 + config.views.flip)
    else:
        assert cost.count == config.fit.epochs
    if path.name not in SECOND:
        assert f"{cost.images:,} images;" in path.read_text().splitlines()[0]
        assert [config.network.name, config.margin.kind] == path.stem.split("-")[1:]


def test_defaults_are_written_out() -> None:
    assert BackboneConfig.load(FOLDER / "backbone.toml") == BackboneConfig()
    assert ConfidenceConfig.load(FOLDER / "confidence.toml") == ConfidenceConfig()


def test_every_setting_is_explained() -> None:
    text = (FOLDER / "README.md").read_text()
    for config in (BackboneConfig(), ConfidenceConfig()):
        for table, settings in config.to_dict().items():
            names = [f"{table}.{name}" for name in settings] if isinstance(settings, dict) else [table]
            assert [name for name in names if f"`{name}`" not in text] == []


def spherecf(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def world(shared: Path, folder: Path) -> None:
    """Some people of LFW to learn from, and pairs of other people."""
    lfw, pairs = open_source(shared / "data" / "lfw"), open_pairs(shared / "data" / "lfw" / "pairs.txt")
    people = np.argsort(-np.bincount(lfw.labels), kind="stable")[:PEOPLE]
    known = np.concatenate([np.flatnonzero(lfw.labels == person)[:IMAGES] for person in people])
    left, right = pairs.rows(lfw.keys)
    others = ~np.isin(lfw.labels[left], people) & ~np.isin(lfw.labels[right], people)
    free = [np.flatnonzero(others & (pairs.mated == mated)) for mated in (True, False)]
    chosen = np.concatenate([rows[:: len(rows) // PAIRS][:PAIRS] for rows in free])
    write_records(lfw.subset(np.sort(known)), folder / "train")
    write_records(lfw.subset(np.unique(np.r_[left[chosen], right[chosen]])), folder / "test")
    lines = [
        f"{number % 10 + 1}\t{pairs.left[pair]}\t{pairs.right[pair]}\t{int(pairs.mated[pair])}"
        for number, pair in enumerate(chosen)
    ]
    (folder / "pairs.txt").write_text("\n".join(["fold\tleft\tright\tmated", *lines]) + "\n")


@pytest.mark.slow
def test_tiny_recipes_from_nothing(shared: Path, tmp_path: Path) -> None:
    world(shared, tmp_path)
    data, run, test = tmp_path / "train", tmp_path / "run", tmp_path / "test"
    first, second = FOLDER / "tiny-backbone.toml", FOLDER / "tiny-confidence.toml"
    spherecf("train", "backbone", first, "--data", data, "--out", run, "--device", "cpu")
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert history[-1]["train_loss"] < 0.3 * history[0]["train_loss"]
    backbone = ("--backbone", run / "backbone.safetensors")
    report = json.loads(
        spherecf(
            "train", "confidence", second, "--data", data, "--out", tmp_path / "scf", *backbone,
            "--prototypes", run / "prototypes.safetensors",
        )
    )  # fmt: skip
    assert report["best_epoch"] > 0 and report["data"]["used"] == PEOPLE * IMAGES
    clean, poor = tmp_path / "clean.safetensors", tmp_path / "poor.safetensors"
    spherecf("embed", report["model"], test, clean, *backbone)
    spherecf("embed", report["model"], test, poor, *backbone, "--degrade", "cross")
    result = json.loads(
        spherecf("evaluate", "tenfold", clean, "--pairs", tmp_path / "pairs.txt", "--json", "--draws", 0)
    )
    assert result["counts"]["pairs"] == 2 * PAIRS
    assert result["scores"]["cosine"]["accuracy"]["value"] > 0.65  # chance is 0.5, with a deviation of 0.035
    before, after = Embeddings.load(clean), Embeddings.load(poor)
    assert np.median(before.log_kappa) > np.median(after.log_kappa)
    assert (before.log_kappa > after.log_kappa).mean() > 0.6
