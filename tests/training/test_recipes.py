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
    spec = importlib.util.spec_from_file_location("scaling", ROOT / "benchmarks" / "scaling.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scaling"] = module  # required by its dataclasses
    spec.loader.exec_module(module)
    return module


def test_recipes_of_both_stages_are_present() -> None:
    assert {"confidence.toml", "scf-reference.toml", "scf-light.toml", "tiny-confidence.toml"} == SECOND
    pairs = {f"ms1mv2-{net}-{head}.toml" for net in ("r100", "r50", "r34") for head in ("arcface", "cosface")}
    assert pairs <= {path.name for path in RECIPES} - SECOND


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_states_its_command(path: Path) -> None:
    config, text = load(path), path.read_text()
    assert config.fit.epochs >= 1
    assert config.engine.precision == "auto" or path.stem == "lfw-backbone"  # which is for a CPU
    stage = "confidence" if path.name in SECOND else "backbone"
    assert f"spherecf train {stage} recipes/{path.name} " in text and "--data" in text
    named = re.findall(r"recipes/([\w.-]+\.toml)", text)
    assert set(named) <= {recipe.name for recipe in RECIPES}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_stated_cost_follows_from_the_stated_numbers(path: Path, scaling: ModuleType) -> None:
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


def test_the_default_recipes_equal_the_defaults() -> None:
    assert BackboneConfig.load(FOLDER / "backbone.toml") == BackboneConfig()
    assert ConfidenceConfig.load(FOLDER / "confidence.toml") == ConfidenceConfig()


def test_every_setting_is_documented() -> None:
    text = (FOLDER / "README.md").read_text()
    for config in (BackboneConfig(), ConfidenceConfig()):
        for table, settings in config.to_dict().items():
            names = [f"{table}.{name}" for name in settings] if isinstance(settings, dict) else [table]
            assert [name for name in names if f"`{name}`" not in text] == []


def spherecf(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def write_data(shared: Path, folder: Path) -> None:
    """Write training images of some LFW people, and test pairs of other people."""
    lfw, pairs = open_source(shared / "data" / "lfw"), open_pairs(shared / "data" / "lfw" / "pairs.txt")
    people = np.argsort(-np.bincount(lfw.labels), kind="stable")[:PEOPLE]
    train_rows = np.concatenate([np.flatnonzero(lfw.labels == person)[:IMAGES] for person in people])
    left, right = pairs.rows(lfw.keys)
    no_training_subject = ~np.isin(lfw.labels[left], people) & ~np.isin(lfw.labels[right], people)
    candidates = [np.flatnonzero(no_training_subject & (pairs.mated == mated)) for mated in (True, False)]
    pair_rows = np.concatenate([rows[:: len(rows) // PAIRS][:PAIRS] for rows in candidates])
    write_records(lfw.subset(np.sort(train_rows)), folder / "train")
    write_records(lfw.subset(np.unique(np.r_[left[pair_rows], right[pair_rows]])), folder / "test")
    lines = [
        f"{number % 10 + 1}\t{pairs.left[pair]}\t{pairs.right[pair]}\t{int(pairs.mated[pair])}"
        for number, pair in enumerate(pair_rows)
    ]
    (folder / "pairs.txt").write_text("\n".join(["fold\tleft\tright\tmated", *lines]) + "\n")


@pytest.mark.slow
def test_tiny_recipes_train_and_evaluate_end_to_end(shared: Path, tmp_path: Path) -> None:
    write_data(shared, tmp_path)
    data, run, test = tmp_path / "train", tmp_path / "run", tmp_path / "test"
    backbone_recipe, confidence_recipe = FOLDER / "tiny-backbone.toml", FOLDER / "tiny-confidence.toml"
    spherecf("train", "backbone", backbone_recipe, "--data", data, "--out", run, "--device", "cpu")
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert history[-1]["train_loss"] < 0.3 * history[0]["train_loss"]
    backbone = ("--backbone", run / "backbone.safetensors")
    report = json.loads(
        spherecf(
            "train", "confidence", confidence_recipe, "--data", data, "--out", tmp_path / "scf", *backbone,
            "--prototypes", run / "prototypes.safetensors",
        )
    )  # fmt: skip
    assert report["best_epoch"] > 0 and report["data"]["used"] == PEOPLE * IMAGES
    clean, degraded = tmp_path / "clean.safetensors", tmp_path / "poor.safetensors"
    spherecf("embed", report["model"], test, clean, *backbone)
    spherecf("embed", report["model"], test, degraded, *backbone, "--degrade", "cross")
    result = json.loads(
        spherecf("evaluate", "tenfold", clean, "--pairs", tmp_path / "pairs.txt", "--json", "--draws", 0)
    )
    assert result["counts"]["pairs"] == 2 * PAIRS
    # chance level: 0.5, with a deviation of 0.035
    assert result["scores"]["cosine"]["accuracy"]["value"] > 0.65
    clean_embeddings, degraded_embeddings = Embeddings.load(clean), Embeddings.load(degraded)
    assert np.median(clean_embeddings.log_kappa) > np.median(degraded_embeddings.log_kappa)
    assert (clean_embeddings.log_kappa > degraded_embeddings.log_kappa).mean() > 0.6
