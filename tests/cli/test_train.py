"""`spherecf train`: both stages, from a recipe to a model."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import picture
from tests.models.conftest import save_described
from typer.testing import CliRunner

from spherecf import load
from spherecf.cli import app
from spherecf.data import PairList, SyntheticImages, open_source, write_pair_bin
from spherecf.errors import FileFormatError, InputError, ModelError

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


def arguments(world: Path, *options: str) -> list[str]:
    return [
        "train", "confidence", str(world / "recipe.toml"), "--data", str(world / "people"),
        "--out", str(world / "run"), "--backbone", str(world / "tiny.onnx"), *options,
    ]  # fmt: skip


def test_train_confidence_writes_a_model_and_reports(world: Path) -> None:
    result = CliRunner().invoke(app, arguments(world, "--seed", "3"), catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    model = load(report["model"], world / "tiny.onnx")
    assert model.record["config"]["seed"] == 3 and report["fingerprint"] == model.fingerprint()
    assert report["data"]["used"] == 15 and np.isfinite(report["last"]["held_out_loss"])


def test_images_left_out_are_counted(world: Path) -> None:
    (world / "people" / "p0" / "0.jpg").write_text("text")
    result = CliRunner().invoke(app, arguments(world), catch_exceptions=False)
    assert result.exit_code == 0 and list(json.loads(result.stdout)["data"]["skipped"]) == ["p0/0.jpg"]
    assert "1 images could not be used; the JSON report lists them" in result.stderr


def test_only_a_checkpoint_can_be_finetuned(world: Path) -> None:
    result = CliRunner().invoke(app, arguments(world, "--finetune-backbone"))
    assert isinstance(result.exception, ModelError) and "tiny: cannot be fine-tuned" in str(result.exception)


BACKBONE = """
[network]
name = "r18"
dim = 16
options = {size = 32, width = 0.25}
[fit]
epochs = 2
batch_size = 12
[optimizer]
lr = 0.01
"""
SYNTHETIC = "synthetic:images=48,identities=6,size=32"


def backbone_arguments(folder: Path, out: str = "backbone") -> list[str]:
    (folder / "backbone.toml").write_text(BACKBONE)
    return [
        "train",
        "backbone",
        str(folder / "backbone.toml"),
        "--data",
        SYNTHETIC,
        "--out",
        str(folder / out),
    ]


def test_both_stages_from_scratch(tmp_path: Path) -> None:
    """Train a recogniser with verification after each epoch, then a head on it with its own prototypes."""
    source = open_source(SYNTHETIC)
    rng = np.random.default_rng(0)
    left, right = rng.permutation(48)[:40].reshape(2, 20)
    keys = list(source.keys)
    pairs = PairList(
        "few", [keys[i] for i in left], [keys[i] for i in right],
        source.labels[left] == source.labels[right], np.arange(20) // 2,
    )  # fmt: skip
    write_pair_bin(source, pairs, tmp_path / "few.bin")
    command = [*backbone_arguments(tmp_path), "--validate", str(tmp_path / "few.bin"), "--device", "cpu"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    first = json.loads(result.stdout)
    assert result.exit_code == 0 and 0 <= first["last"]["few_accuracy"] <= 1
    assert first["data"]["used"] == 48 and first["data"]["identities"] == 6
    (tmp_path / "head.toml").write_text("[views]\ndegraded = 1\n[fit]\nepochs = 2\nheld_out = 0.3\n")
    command = ["train", "confidence", str(tmp_path / "head.toml"), "--data", SYNTHETIC]
    command += ["--out", str(tmp_path / "head"), "--backbone", first["backbone"]]
    command += ["--prototypes", first["prototypes"], "--device", "cpu"]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    second = json.loads(result.stdout)
    assert result.exit_code == 0
    model = load(second["model"], first["backbone"])
    assert model.record["config"]["prototypes"]["file"] == first["prototypes"]


@pytest.mark.parametrize(
    "size, kinds, files, error, message",
    [
        (64, 2, ["few"], FileFormatError, "expected an image of 32x32"),
        (32, 1, ["few"], InputError, r"few\.bin: mated: 4 mated and 0 non-mated pairs"),
        (32, 2, ["few", "other/few"], InputError, "another pair file is named few, too"),
    ],
)
def test_pair_files_that_cannot_be_evaluated_are_refused_before_training(
    tmp_path: Path, size: int, kinds: int, files: list[str], error: type[Exception], message: str
) -> None:
    images = SyntheticImages(8, 4, (size, size))
    mated, keys = np.arange(4) % kinds == 0, list(images.keys)
    (tmp_path / "other").mkdir()
    command = [*backbone_arguments(tmp_path), "--device", "cpu"]
    for name in files:
        path = tmp_path / f"{name}.bin"
        write_pair_bin(images, PairList("few", keys[:4], keys[4:], mated, np.arange(4)), path)
        command += ["--validate", str(path)]
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, command, catch_exceptions=False)
    assert not (tmp_path / "backbone" / "history.jsonl").exists()


def test_a_transformer_from_scratch_to_onnx(tmp_path: Path) -> None:
    """Stage 1 with masking and stochastic depth, stage 2 on the tokens, and export of both."""
    network = BACKBONE.replace("r18", "vit_t").replace("width = 0.25", "width = 0.0625")
    arguments = backbone_arguments(tmp_path)
    (tmp_path / "backbone.toml").write_text(network.replace("lr = 0.01", 'name = "adamw"\nlr = 0.001'))
    (tmp_path / "head.toml").write_text("[views]\ndegraded = 1\n[fit]\nepochs = 2\nheld_out = 0.3\n")
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu"], catch_exceptions=False)
    first = json.loads(result.stdout)
    backbone = ["--backbone", first["backbone"]]
    command = ["train", "confidence", str(tmp_path / "head.toml"), "--data", SYNTHETIC, *backbone]
    command += ["--out", str(tmp_path / "head"), "--prototypes", first["prototypes"], "--device", "cpu"]
    second = json.loads(CliRunner().invoke(app, command, catch_exceptions=False).stdout)
    model = load(second["model"], first["backbone"])
    assert model.backbone.name == "vit_t" and model.backbone.feature_shape == (16, 3, 3)
    command = ["export", "onnx", str(tmp_path / "both.onnx"), "--model", second["model"], *backbone]
    report = CliRunner().invoke(app, command, catch_exceptions=False)
    assert report.exit_code == 0 and (tmp_path / "both.onnx").exists()


@pytest.mark.slow
def test_torchrun_trains_one_network(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command = [*launcher, "spherecf", *backbone_arguments(tmp_path, "two"), "--device", "cpu"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    two_ranks = json.loads(completed.stdout)["last"]["train_loss"]
    one_rank = CliRunner().invoke(app, [*backbone_arguments(tmp_path, "one"), "--device", "cpu"])
    assert json.loads(one_rank.stdout)["last"]["train_loss"] == pytest.approx(two_ranks, rel=5e-3)


def test_an_unknown_setting_in_a_recipe_is_refused(world: Path) -> None:
    (world / "recipe.toml").write_text("[fit]\nepoks = 3\n")
    with pytest.raises(FileFormatError, match=r"unknown setting fit\.epoks"):
        CliRunner().invoke(app, arguments(world), catch_exceptions=False)
