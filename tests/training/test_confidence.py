import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spherecf import load
from spherecf.data import IdentityFolder, open_source
from spherecf.errors import InputError, MissingDependencyError, StorageError
from spherecf.models import FrozenBackbone
from spherecf.training import MODEL_FILE, ConfidenceConfig, Monitor, fit_confidence, prepare, train_confidence

CONFIG = ConfidenceConfig.from_dict(
    {"views": {"degraded": 2}, "fit": {"epochs": 4, "batch_size": 16, "held_out": 0.3}}
)


def settings(**tables: dict[str, Any]) -> ConfidenceConfig:
    """The configuration of these tests with other tables."""
    return ConfidenceConfig.from_dict({**CONFIG.to_dict(), **tables})


SCRIPT = """
import sys
from spherecf.data import open_source
from spherecf.models import FrozenBackbone, Preprocessing
from spherecf.training import ConfidenceConfig, train_confidence
recogniser, people, folder, config = sys.argv[1:]
backbone = FrozenBackbone.from_onnx(recogniser, preprocessing=Preprocessing("rgb", 127.5, 127.5, (16, 16)))
train_confidence(backbone, open_source(people), folder, ConfidenceConfig.load(config), batch_size=6)
"""


def test_training_saves_a_model_with_a_complete_record(
    tmp_path: Path, recogniser: FrozenBackbone, people: Path
) -> None:
    source = open_source(people)
    model = train_confidence(recogniser, source, tmp_path / "run", CONFIG)
    record = model.record
    assert record["data"]["images"] == 33 and record["data"]["used"] == 31
    assert record["data"]["only_one_of_identity"] == 1
    assert list(record["data"]["skipped"]) == ["p0/3.jpg"]
    assert record["counts"]["train_rows"] + record["counts"]["held_out_rows"] == 31 * 3
    assert record["config"] == CONFIG.to_dict() and "spherecf" in record["versions"]
    reloaded = load(tmp_path / "run" / MODEL_FILE, recogniser)
    images = np.stack([source.image(row) for row in (1, 2)])
    torch.testing.assert_close(reloaded.embed(images)[1], model.embed(images)[1])
    assert reloaded.fingerprint() == model.fingerprint()


def test_the_linear_head_trains_on_maps(tmp_path: Path, recogniser: FrozenBackbone, people: Path) -> None:
    config = settings(head={"kind": "linear"})
    model = train_confidence(recogniser, open_source(people), tmp_path / "run", config)
    assert model.head.kind == "linear" and len(model.record["history"]) == 4


def test_directions_are_centred_on_the_training_images(
    tmp_path: Path, recogniser: FrozenBackbone, people: Path
) -> None:
    source = open_source(people)
    config = settings(features={"centre": 1.0})
    plain = train_confidence(recogniser, source, tmp_path / "plain", CONFIG)
    model = train_confidence(recogniser, source, tmp_path / "centred", config)
    images = np.stack([source.image(row) for row in range(len(source)) if source.keys[row] != "p0/3.jpg"])
    assert torch.equal(model.embed(images)[1], plain.embed(images)[1]), "kappa stays as it is"
    before, after = (m.embed(images)[0].mean(0).norm() for m in (plain, model))
    assert after < 0.5 * before
    assert load(tmp_path / "centred" / MODEL_FILE, recogniser).fingerprint() == model.fingerprint()


def test_centring_without_space_for_a_cache_is_refused_before_training(
    tmp_path: Path, recogniser: FrozenBackbone, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spherecf.training.confidence.streams", lambda *arguments: True)
    config = settings(features={"centre": 1.0})
    with pytest.raises(InputError, match=r"features\.centre needs a cache"):
        train_confidence(recogniser, open_source(people), tmp_path / "run", config)


def test_classifier_prototypes_also_use_people_with_one_image(
    tmp_path: Path, recogniser: FrozenBackbone, people: Path
) -> None:
    source = open_source(people)
    rows = np.stack([source.image(row) for row in range(len(source)) if source.keys[row] != "p0/3.jpg"])
    mean = recogniser(rows).mu.mean(0)
    np.save(tmp_path / "classifier.npy", mean.repeat(len(source.identities), 1).numpy())
    config = settings(prototypes={"file": str(tmp_path / "classifier.npy")})
    record = train_confidence(recogniser, source, tmp_path / "run", config).record
    assert record["data"]["used"] == 32, "with a classifier, people with one image are used, too"
    # Data prepared in a separate call are fitted to the same prototypes.
    prepared = prepare(recogniser, source, config, tmp_path / "cache")
    assert fit_confidence(recogniser, prepared, config).record["history"] == record["history"]


def test_data_with_one_image_per_person_is_refused(
    tmp_path: Path, recogniser: FrozenBackbone, people: Path
) -> None:
    source = IdentityFolder(people)
    first_images = [source.keys.index(f"p{person}/0.jpg") for person in range(8)]
    with pytest.raises(InputError, match="of 8 images 0 have no identity and 8 are the only image of theirs"):
        train_confidence(recogniser, source.subset(first_images), tmp_path / "run", CONFIG)


def test_missing_tensorboard_is_reported_before_the_first_image(
    tmp_path: Path, recogniser: FrozenBackbone, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # importing it raises ImportError
    with pytest.raises(MissingDependencyError, match="TensorBoard is not installed"):
        train_confidence(recogniser, IdentityFolder(people), tmp_path / "run", monitor=Monitor(True))
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_reported_before_the_first_image(
    tmp_path: Path, recogniser: FrozenBackbone, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(FrozenBackbone, "run", None)
    with pytest.raises(StorageError, match=r"cannot reserve .*No space left"):
        train_confidence(recogniser, open_source(people), tmp_path / "run", CONFIG)


def test_a_shared_cache_is_reused(
    tmp_path: Path, recogniser: FrozenBackbone, people: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(people)
    train_confidence(recogniser, source, tmp_path / "one", CONFIG, cache=tmp_path / "cache")
    monkeypatch.setattr(FrozenBackbone, "run", None)
    train_confidence(recogniser, source, tmp_path / "two", CONFIG.with_seed(1), cache=tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.parametrize("seconds_after_start", [0.0, 0.15])
def test_training_resumes_after_sigkill(
    tmp_path: Path,
    recogniser: FrozenBackbone,
    recogniser_file: Path,
    people: Path,
    seconds_after_start: float,
) -> None:
    config = settings(fit={**CONFIG.to_dict()["fit"], "epochs": 40})
    uninterrupted = train_confidence(
        recogniser, open_source(people), tmp_path / "whole", config, batch_size=6
    )
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[views]\ndegraded = 2\n[fit]\nepochs = 40\nbatch_size = 16\nheld_out = 0.3\n")
    folder = tmp_path / "killed"
    arguments = [str(recogniser_file), str(people), str(folder), str(recipe)]
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], stderr=subprocess.DEVNULL)
    history = folder / "history.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if history.exists() and history.read_text():
            break
        time.sleep(0.002)
    time.sleep(seconds_after_start)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed = not (folder / MODEL_FILE).exists()
    subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=True, stderr=subprocess.DEVNULL)
    resumed = load(folder / MODEL_FILE, recogniser)
    expected = uninterrupted.head.state_dict()
    assert all(torch.equal(expected[k], v) for k, v in resumed.head.state_dict().items())
    assert len([json.loads(line) for line in history.read_text().splitlines()]) == 40
    if not killed:
        pytest.skip("training finished before the signal; its result was checked")
