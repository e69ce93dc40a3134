import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import BrokenImages, NamedRows, check_losses, inject_nan, interrupt_at
from tests.training.rank_jobs import CONFIG, ROOT, config, images, run, start

from spherecf.data import ImageError, SyntheticImages
from spherecf.errors import FileFormatError, InputError, SpherecfError, StorageError
from spherecf.models import FrozenBackbone, load_prototypes, prototype_identities
from spherecf.training import Ranks, TrainedBackbone, checkpoint, train_backbone


def history(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (torch.load(sorted(p.glob("checkpoints/*/common.pt"))[-1])["network"] for p in (first, second))
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def single_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainedBackbone]:
    """An uninterrupted training in one process: 2 epochs of 4 steps."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train_backbone(images(), folder, config())


def test_training_learns_and_saves_backbone_prototypes_and_history(
    single_run: tuple[Path, TrainedBackbone],
) -> None:
    folder, result = single_run
    first, last = result.history
    assert last["train_loss"] < 0.8 * first["train_loss"] and last["train_cosine"] > first["train_cosine"]
    assert [line["train_loss"] for line in history(folder)] == [h["train_loss"] for h in result.history]
    backbone = FrozenBackbone.from_checkpoint(result.path)
    assert backbone.dim == 16 and backbone.preprocessing.size == (32, 32)
    assert load_prototypes(result.prototypes).shape == (6, 16)
    assert prototype_identities(result.prototypes) == images().identities
    assert result.record["data"]["used"] == 48 and result.record["config"] == config().to_dict()


def test_several_ranks_give_the_loss_curve_of_one(
    tmp_path: Path, single_run: tuple[Path, TrainedBackbone]
) -> None:
    run("backbone", tmp_path, 3)
    rank_history = history(tmp_path)
    for expected, actual in zip(single_run[1].history, rank_history, strict=True):
        for name in ("train_loss", "train_cosine"):
            np.testing.assert_allclose(actual[name], expected[name], rtol=2e-3)
    torch.testing.assert_close(
        load_prototypes(tmp_path / "prototypes.safetensors"), load_prototypes(single_run[1].prototypes),
        rtol=0.02, atol=0.01,
    )  # fmt: skip


def test_micro_batches_on_several_ranks_give_the_loss_curve_of_one(tmp_path: Path) -> None:
    changes = {"engine": {"accumulate": 2}}
    expected = train_backbone(images(), tmp_path / "one", config(**changes)).history
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "config.json").write_text(json.dumps(changes))
    run("backbone", tmp_path / "two", 2)
    losses = [metrics["train_loss"] for metrics in history(tmp_path / "two")]
    np.testing.assert_allclose(losses, [metrics["train_loss"] for metrics in expected], rtol=2e-3)


@pytest.mark.parametrize("step", [1, 3, 6])
def test_ctrl_c_within_an_epoch_loses_no_step(
    tmp_path: Path, single_run: tuple[Path, TrainedBackbone], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, step)
        train_backbone(images(), tmp_path, config())
    saved = sorted((tmp_path / "checkpoints").iterdir())
    assert int(saved[-1].name.split("-")[0]) == step + 1, "the step in progress is finished and then saved"
    result = train_backbone(images(), tmp_path, config())
    assert result.history == single_run[1].history and same_weights(tmp_path, single_run[0])
    assert torch.equal(load_prototypes(result.prototypes), load_prototypes(single_run[1].prototypes))


@pytest.mark.parametrize(
    "changes",
    [
        {"margin": {"sample_rate": 0.5}, "optimizer": {"name": "adamw", "lr": 1e-3}},
        {
            "margin": {"kind": "sphereface2"},
            "network": {"options": {"size": 32, "width": 0.25, "dropout": 0.4}},
        },
        {"margin": {"kind": "adaface"}, "engine": {"precision": "float16"}},
    ],
)
def test_every_state_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Sampled rows with Adam moments, margin parameters, dropout, batch statistics and loss scale."""
    uninterrupted = train_backbone(images(), tmp_path / "whole", config(**changes))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5)
        train_backbone(images(), tmp_path / "cut", config(**changes))
    resumed = train_backbone(images(), tmp_path / "cut", config(**changes))
    assert resumed.history == uninterrupted.history and same_weights(tmp_path / "cut", tmp_path / "whole")
    assert torch.equal(load_prototypes(resumed.prototypes), load_prototypes(uninterrupted.prototypes))


def test_training_resumes_after_sigkill_within_an_epoch(
    tmp_path: Path, single_run: tuple[Path, TrainedBackbone]
) -> None:
    script = (
        "import os, signal, sys, pathlib; from tests.training import rank_jobs as jobs\n"
        "from spherecf.training import Ranks; from spherecf.training.backbone import _BackboneTask as Task\n"
        "begin = Task.begin\n"
        "def kill(task, rows, step):\n"
        "    if step == 6: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    begin(task, rows, step)\n"
        "Task.begin = kill\n"
        "jobs.backbone_job(Ranks(), pathlib.Path(sys.argv[1]))"
    )
    (tmp_path / "config.json").write_text(json.dumps({"engine": {"save_minutes": 1e-9}}))
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    # At least the second-last checkpoint is complete; the last may have been in progress.
    saved = [int(p.name[:9]) for p in sorted((tmp_path / "checkpoints").glob("[0-9]*"))]
    assert saved in ([4, 5], [5, 6])
    result = train_backbone(images(), tmp_path, config())  # the save interval does not affect the result
    assert result.history == single_run[1].history and same_weights(tmp_path, single_run[0])


@pytest.mark.slow
def test_training_resumes_with_another_number_of_ranks(
    tmp_path: Path, single_run: tuple[Path, TrainedBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 2)
        train_backbone(images(), tmp_path, config())
    run("backbone", tmp_path, 2)
    check_losses(history(tmp_path), single_run[1].history)


def test_the_other_ranks_report_a_dead_rank_and_training_resumes(
    tmp_path: Path, single_run: tuple[Path, TrainedBackbone]
) -> None:
    (code, errors), (dead, _) = start("dying in the second epoch", tmp_path, 2)
    assert dead == 9 and code != 0
    assert "RankError: rank 0 of 2: another rank is gone" in errors
    assert "run the same command again, with any number of ranks" in errors
    result = train_backbone(images(), tmp_path, config())
    check_losses(result.history, single_run[1].history)


@pytest.mark.parametrize("moment", ["before the first step", "after the first step"])
def test_a_rank_that_dies_while_torch_synchronises_is_reported(tmp_path: Path, moment: str) -> None:
    (code, errors), (dead, _) = start(f"dying {moment}", tmp_path, 2)
    assert dead == 9 and code != 0
    assert "RankError: rank 0 of 2: another rank is gone" in errors


@pytest.mark.parametrize(
    "engine",
    [
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"accumulate": 2},
        {"channels_last": False},
        {"checkpointing": True},
    ],
)
def test_engine_settings_give_similar_loss_curves(
    tmp_path: Path, single_run: tuple[Path, TrainedBackbone], engine: dict[str, Any]
) -> None:
    # float16 training starts with overflowing steps, so it needs more epochs.
    epochs = 4 if engine.get("precision") == "float16" else 2
    result = train_backbone(images(), tmp_path, config(engine=engine, fit={"epochs": epochs}))
    first, last = result.history[0]["train_loss"], result.history[-1]["train_loss"]
    if engine.get("checkpointing"):
        assert result.history == single_run[1].history
    elif "channels_last" in engine:
        np.testing.assert_allclose(last, single_run[1].history[-1]["train_loss"], rtol=1e-2)
    elif engine.get("precision") == "bfloat16":
        np.testing.assert_allclose(last, single_run[1].history[-1]["train_loss"], rtol=0.1)
    else:  # half-batch statistics or overflowing steps change the curve, but it still falls
        assert last < 0.9 * first
    assert ("overflows" in result.history[0]) == (engine.get("precision") == "float16")


@pytest.mark.slow
@pytest.mark.compiler
def test_compiled_training_gives_the_same_loss(
    tmp_path: Path, single_run: tuple[Path, TrainedBackbone]
) -> None:
    result = train_backbone(images(), tmp_path, config(engine={"compile": True}))
    np.testing.assert_allclose(
        result.history[-1]["train_loss"], single_run[1].history[-1]["train_loss"], rtol=1e-2
    )


def test_broken_images_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    source = BrokenImages(48, 6, size=(32, 32))
    result = train_backbone(source, tmp_path, config())
    expected = {source.keys[index] for index in range(3, 48, 10)}
    assert set(result.record["data"]["skipped"]) == expected
    assert all("truncated" in reason for reason in result.record["data"]["skipped"].values())
    assert result.record["data"]["used"] == 48 - len(expected)
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_a_batch_without_a_readable_image_is_a_step_without_loss(tmp_path: Path) -> None:
    source = images()
    unreadable = {int(row) for row in np.flatnonzero(source.labels >= 3)}
    read = source.image

    def image(index: int, size: tuple[int, int] | None = None) -> Any:
        if index in unreadable:
            raise ImageError(source.where(index), "truncated image.")
        return read(index, size)

    source.image = image  # type: ignore[method-assign]
    result = train_backbone(source, tmp_path, config(fit={"batch_size": 2}))
    assert set(result.record["data"]["skipped"]) == {source.keys[row] for row in unreadable}
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert all(np.isfinite(value) for facts in result.history for value in facts.values())


def test_a_nan_loss_stops_training_and_lists_the_keys_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject_nan(monkeypatch, 1)
    with pytest.raises(
        SpherecfError, match=r"epoch 1, batch 2: the loss is nan, in a batch of 12 with .*not-finite"
    ):
        train_backbone(images(), tmp_path, config())
    (path,) = tmp_path.glob("not-finite-*.json")
    facts = json.loads(path.read_text())
    assert len(facts["keys"]) == 12 and set(facts["keys"]) <= set(images().keys) and facts["batch"] == 2


def test_batches_with_a_nan_loss_are_skipped_on_request_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject_nan(monkeypatch, 1)
    result = train_backbone(images(), tmp_path, config(engine={"on_nan": "skip"}))
    assert result.history[0]["not_finite"] == 1 and "not_finite" not in result.history[1]
    assert all(np.isfinite(value) for facts in result.history for value in facts.values())
    assert all(bool(torch.isfinite(value).all()) for value in result.network.state_dict().values())
    assert len(list(tmp_path.glob("not-finite-*.json"))) == 1


def test_training_ends_if_all_batches_of_an_epoch_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject_nan(monkeypatch, *range(4))
    with pytest.raises(SpherecfError, match="all of its 4 batches were skipped"):
        train_backbone(images(), tmp_path, config(engine={"on_nan": "skip"}))


def test_training_resumes_in_another_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 2)
        train_backbone(images(), tmp_path, config())
    result = train_backbone(images(), tmp_path, config(engine={"precision": "float16"}))
    assert len(result.history) == 2


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, single_run: tuple[Path, TrainedBackbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically, calls = checkpoint.write_atomically, []

    def full(path: Path, write: Any) -> Path:
        calls.append(path)
        if len(calls) > 3:  # two files of the first epoch and one of the second
            raise StorageError(f"{path}: could not be written (No space left on device)")
        return write_atomically(path, write)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
        patch.setattr(checkpoint, "write_atomically", full)
        train_backbone(images(), tmp_path, config())
    assert [p.name[:9] for p in (tmp_path / "checkpoints").iterdir()] == ["000000004"]
    assert train_backbone(images(), tmp_path, config()).history == single_run[1].history


def test_checkpoints_of_other_settings_are_not_resumed(
    tmp_path: Path, single_run: tuple[Path, TrainedBackbone], capsys: pytest.CaptureFixture[str]
) -> None:
    longer = config(optimizer={"lr": 0.02}, fit={"epochs": 3})
    first_result = train_backbone(images(), tmp_path, longer)
    assert "checkpoints" not in capsys.readouterr().err
    assert train_backbone(images(), tmp_path, config()).history == single_run[1].history
    expected = f"starting from the beginning, because the 2 checkpoints in {tmp_path} are of other settings"
    assert expected in capsys.readouterr().err
    # Nor are they deleted: each run keeps its own checkpoints, even if the other is further ahead.
    assert train_backbone(images(), tmp_path, longer).history == first_result.history
    assert "resuming at the end, after 12 steps" in capsys.readouterr().err


def test_validation_results_are_added_to_the_history(tmp_path: Path) -> None:
    embeddings = []

    def validate(backbone: FrozenBackbone) -> dict[str, float]:
        embeddings.append(backbone(np.zeros((1, 32, 32, 3), np.uint8)).mu)
        return {"lfw_accuracy": 0.5 + len(embeddings) / 10}

    result = train_backbone(images(), tmp_path, config(), validate=validate)
    assert [facts["lfw_accuracy"] for facts in result.history] == [0.6, 0.7]
    assert not torch.equal(embeddings[0], embeddings[1])


def test_fewer_than_two_usable_identities_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"at least two identities with 2 or more images, got 1 \(of 3"):
        train_backbone(NamedRows(np.array([0, 0, 2, -1])), tmp_path, config(fit={"min_images": 2}))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"fit": {"batch_size": 6}, "engine": {"accumulate": 4}}, "a batch of 6 images in 4 parts"),
        ({"margin": {"kind": "sphereface2", "options": {"t": "3"}}}, "t: expected a number, got '3'"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_training(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train_backbone(images(), tmp_path, config(**changes))
    assert not list(tmp_path.iterdir())


def test_training_starts_from_a_checkpoint(tmp_path: Path, single_run: tuple[Path, TrainedBackbone]) -> None:
    start = str(single_run[1].path)
    result = train_backbone(
        images(), tmp_path / "more", config(network={**CONFIG["network"], "start": start})
    )
    assert result.history[0]["train_loss"] < single_run[1].history[0]["train_loss"]
    other_dim = {**CONFIG["network"], "dim": 8, "start": start}
    with pytest.raises(InputError, match=r"network\.start: .* contains r18 of dim 16.*the recipe asks for 8"):
        train_backbone(images(), tmp_path / "other", config(network=other_dim))


def test_identities_without_images_have_no_prototype(tmp_path: Path) -> None:
    source = images()
    source.labels = source.labels * 2  # only even labels have images
    source.identities = [f"p{i}" for i in range(12)]
    result = train_backbone(source, tmp_path, config())
    assert result.record["data"]["left_out"]["identities_without_images"] == 6
    assert prototype_identities(result.prototypes) == [f"p{i}" for i in range(0, 12, 2)]


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    source = SyntheticImages(48, 6, size=(40, 40))
    with pytest.raises(InputError, match=r"none of its 48 images could be used.*expected an image of"):
        train_backbone(source, tmp_path, config())


def test_a_damaged_checkpoint_is_reported_by_name(tmp_path: Path) -> None:
    train_backbone(images(), tmp_path, config(fit={"epochs": 1}))
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    (newest / "common.pt").write_bytes(b"half")
    with pytest.raises(FileFormatError, match=r"common\.pt: damaged"):
        train_backbone(images(), tmp_path, config(fit={"epochs": 1}))
    assert CONFIG["fit"]["epochs"] == 2


def write_checkpoint(folder: Path, identity: str, ranks: Ranks) -> Path:
    """The checkpoint of one step; the ranks write one after the other."""
    with checkpoint.CheckpointWriter(folder, identity, ranks) as writer:
        writer.save(1, common=lambda: {"place": 7}, private={}, shard={"weight": torch.ones(2, 3)})
        writer.wait()
    (path,) = (folder / "checkpoints").iterdir()
    return path


def test_a_checkpoint_belongs_to_one_run_and_needs_the_files_of_all_ranks(tmp_path: Path) -> None:
    identity = "0123456789"
    with pytest.raises(FileFormatError, match="expected a checkpoint of this run, found none"):
        checkpoint.load_sharded(tmp_path, identity, "weight")
    path = write_checkpoint(tmp_path, identity, Ranks())
    loaded = checkpoint.load_checkpoint(tmp_path, identity, Ranks())
    assert loaded is not None and (loaded.step, loaded.common) == (1, {"place": 7})
    assert torch.equal(checkpoint.load_sharded(tmp_path, identity, "weight"), torch.ones(2, 3))
    # The name of the folder has only the first eight digits.
    assert checkpoint.load_checkpoint(tmp_path, identity[:8] + "ab", Ranks()) is None
    rank_file = path / "rank-0-of-1.pt"
    rank_file.rename(path / "rank-0-of-2.pt")
    with pytest.raises(FileFormatError, match=r"incomplete: rank-1-of-2\.pt is missing.*all ranks see this"):
        checkpoint.load_checkpoint(tmp_path, identity, Ranks())
    (path / "rank-0-of-2.pt").unlink()
    with pytest.raises(FileFormatError, match=r"incomplete: rank-0-of-1\.pt is missing"):
        checkpoint.load_checkpoint(tmp_path, identity, Ranks())


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    with pytest.raises(StorageError, match=r"checkpoints/.*cannot be created \(.*\); choose another folder"):
        write_checkpoint(tmp_path, "0123456789", Ranks())


@pytest.mark.slow
def test_a_transformer_learns_on_one_and_two_ranks(tmp_path: Path) -> None:
    """With adamw; masks and drop paths are off, because each rank draws its own."""
    changes: dict[str, Any] = {
        "network": {"name": "vit_t", "options": {"size": 32, "width": 0.0625, "mask": 0.0, "drop_path": 0.0}},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
    }
    single = train_backbone(images(), tmp_path / "one", config(**changes))
    assert single.history[1]["train_loss"] < single.history[0]["train_loss"]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "config.json").write_text(json.dumps(changes))
    run("backbone", tmp_path / "two", 2)
    check_losses(history(tmp_path / "two"), single.history)
    frozen = FrozenBackbone.from_checkpoint(tmp_path / "two" / "backbone.safetensors")
    assert (frozen.name, frozen.feature_shape) == ("vit_t", (16, 3, 3))
    with pytest.raises(InputError, match="drop_path and mask in"):
        train_backbone(images(), tmp_path / "no", config(network={"name": "vit_t", "options": {"mask": 1.5}}))
