"""train.py accepts the command line of the reference implementation, and writes its files."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.data.conftest import picture
from tests.reference.original_heads import linear_table, log_kappa
from torch import nn
from torch.nn.functional import normalize

from spherecf import load
from spherecf.cli import reference_run
from spherecf.cli.reference import main, parse
from spherecf.cli.reference_run import find_data, to_config
from spherecf.data import ListFile, RecordFile, write_records
from spherecf.errors import FileFormatError, InputError
from spherecf.models import FrozenBackbone, load_backbone, load_confidence_head, make_backbone
from spherecf.training import prototypes_for

ROOT = Path(__file__).resolve().parents[2]
PEOPLE, EACH = 4, 3
# Options as in the README of the reference; paths are added by `command`.
VERBATIM = (
    "--dataset ms1m --seed 777 --num_workers 8 --lr 3e-5 --lr_scheduler StepLR --step_size 2 --gamma 0.5 "
    "--z_dim 512 --radius 64 --max_grad_clip 0 --max_grad_norm 0 --tensorboard"
)

SMALL = (
    "--dataset ms1m --seed 777 --batch_size 4 --epochs 2 --lr 1e-3 --lr_scheduler StepLR --step_size 1 "
    "--gamma 0.5 --convf_dim 256 --z_dim 16 --radius 64 --no_cuda"
)


def build_world(folder: Path, size: int, dim: int) -> Path:
    """Write images, their list, a recogniser and its classifier, in the layout of the reference."""
    lines = []
    for row in range(PEOPLE * EACH):
        path = folder / "images" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(row, ".png", size, size))
        listed_path = path if row % 2 else path.relative_to(folder)  # absolute and relative paths
        lines.append(f"{listed_path} {row // EACH}\n")
    (folder / "list").mkdir()
    (folder / "list" / "ms1m_list.txt").write_text("".join(lines))
    source = ListFile(folder / "list" / "ms1m_list.txt", folder)
    images = torch.stack([torch.from_numpy(source.image(row)) for row in range(len(source))])
    torch.save(recogniser(images, dim).state_dict(), folder / "bkb.pth")
    mu = FrozenBackbone.from_checkpoint(folder / "bkb.pth")(images).mu
    weight = 3 * mu.reshape(PEOPLE, EACH, dim).mean(1)
    torch.save({"arc_face_state_dict": {"weight": weight}, "epoch": 1}, folder / "fc.pt")
    return folder


def recogniser(images: torch.Tensor, dim: int) -> nn.Module:
    """An untrained network whose batch statistics match the images, as after training."""
    torch.manual_seed(0)
    network = make_backbone("ir-50", dim=dim, size=images.shape[1], width=0.125)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network((images.permute(0, 3, 1, 2).float() - 127.5) / 128)
    return network


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return build_world(tmp_path, 32, 16)


def command(world: Path, *options: str, out: str = "out") -> list[str]:
    files = ("--saved_bkb", str(world / "bkb.pth"), "--saved_fc", str(world / "fc.pt"))
    return [*SMALL.split(), "--dataroot", str(world), "--output_dir", str(world / out), *files, *options]


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def checkpoint(world: Path, epoch: int, out: str = "out") -> dict:
    content: dict = torch.load(world / out / "ckpts" / f"ckpt_e{epoch}.pt", weights_only=True)
    return content


def test_writes_the_files_of_the_reference(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert main(command(world, "--tensorboard")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["data"]["used"] == 12 and len(report["data"]["views"]) == 2
    assert sorted(path.name for path in (world / "out" / "ckpts").iterdir()) == ["ckpt_e1.pt", "ckpt_e2.pt"]
    events = accumulator.EventAccumulator(str(world / "out" / "runs"))
    events.Reload()
    terms = ["neg_kappa_times_cos_theta", "neg_dim_scalar_times_log_kappa", "log_iv_kappa"]
    for tag in ["kappa", "total_loss", *terms]:
        assert [event.step for event in events.Scalars(tag)] == list(range(6)), tag
    hparams = json.loads((world / "out" / "hparams.json").read_text())
    assert (hparams["dataset"], hparams["gpu_ids"], hparams["cuda"]) == ("ms1m", "0", False)
    assert (hparams["lr"], hparams["loss"], hparams["weight_decay"]) == (1e-3, "exact", 5e-4)
    first, second = checkpoint(world, 1), checkpoint(world, 2)
    assert list(first) == ["epoch", "global_step", "uncer_net_state_dict", "opt_state"]
    # 12 images in batches of 4: steps 0, 1, 2 and 3, 4, 5.
    assert [(c["epoch"], c["global_step"]) for c in (first, second)] == [(0, 2), (1, 5)]
    assert list(first["uncer_net_state_dict"]) == list(linear_table(256))


def test_the_reference_can_continue_from_a_checkpoint(world: Path) -> None:
    assert main(command(world)) == 0
    saved = checkpoint(world, 2)
    parameters = [nn.Parameter(tensor) for tensor in linear_table(256).values()]
    optimizer = torch.optim.Adam(parameters, lr=1.0, weight_decay=1.0)
    optimizer.load_state_dict(saved["opt_state"])
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4]
    for parameter in parameters:
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        assert float(optimizer.state[parameter]["step"]) == 6


def test_a_checkpoint_contains_the_head_of_the_model(world: Path) -> None:
    assert main(command(world)) == 0
    model = load(world / "out" / "confidence.safetensors", world / "bkb.pth")
    assert model.backbone.preprocessing.std == 128.0
    path = world / "out" / "ckpts" / "ckpt_e2.pt"
    head = load_confidence_head(path, feature_shape=model.backbone.feature_shape)
    source = find_data("ms1m", world)
    output = model.backbone(torch.stack([torch.from_numpy(source.image(row)) for row in range(4)]))
    inputs = (output.features, output.embedding)
    with torch.no_grad():
        kappas = model.head.log_kappa(*inputs)
        assert torch.equal(head.log_kappa(*inputs), kappas)
        original = log_kappa(checkpoint(world, 2)["uncer_net_state_dict"], output.features.flatten(1))
    torch.testing.assert_close(original.flatten(), kappas)
    assert float(kappas.std()) > 0


def test_an_interrupted_run_continues(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(command(world, out="whole")) == 0
    epoch_saver = reference_run.epoch_saver

    def interrupting_saver(folder: Path) -> Callable:
        save = epoch_saver(folder)

        def interrupt_or_save(state: object) -> None:
            if state.epoch == 1:
                raise KeyboardInterrupt
            save(state)

        return interrupt_or_save

    with monkeypatch.context() as patch:
        patch.setattr(reference_run, "epoch_saver", interrupting_saver)
        assert main(command(world)) == 130
    before = (world / "out" / "ckpts" / "ckpt_e1.pt").stat().st_mtime_ns
    assert not (world / "out" / "confidence.safetensors").exists()
    assert main(command(world)) == 0
    assert (world / "out" / "ckpts" / "ckpt_e1.pt").stat().st_mtime_ns == before
    resumed, uninterrupted = (checkpoint(world, 2, out)["uncer_net_state_dict"] for out in ("out", "whole"))
    assert all(torch.equal(resumed[key], uninterrupted[key]) for key in uninterrupted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_processor_is_used(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")  # and restored, because the command sets it
    words = [word for word in command(world, "--gpu_ids", "3") if word != "--no_cuda"]
    assert main(words) == 0 and os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert "no GPU found: training on the CPU, as with --no_cuda" in last_error(capsys)


def test_a_finetuned_recogniser_is_in_the_checkpoint(world: Path) -> None:
    assert main(command(world, "--finetune_bkb", "--epochs", "1")) == 0
    saved = checkpoint(world, 1)
    before = torch.load(world / "bkb.pth", weights_only=True)
    assert list(saved["backbone_state_dict"]) == list(before)
    torch.save(saved["backbone_state_dict"], world / "tuned.pth")
    tuned = load_backbone(world / "tuned.pth").state_dict()
    assert not torch.equal(tuned["output_layer.3.weight"], before["output_layer.3.weight"])


@pytest.mark.parametrize("folder", ["ms1m", "."])
def test_a_record_set_is_found(world: Path, folder: str) -> None:
    write_records(find_data("ms1m", world), world / "records" / folder)
    source = find_data("ms1m", world / "records")
    assert isinstance(source, RecordFile) and source.labels.tolist() == [r // EACH for r in range(12)]
    assert main(command(world, "--dataroot", str(world / "records"), "--epochs", "1")) == 0


def test_labels_of_a_list_are_class_indices(world: Path) -> None:
    path = world / "list" / "some_list.txt"
    path.write_text("images/0.png 007\nimages/1.png -1\nimages/2.png 2\n")
    source, weight = find_data("some", world), normalize(torch.randn(8, 16))
    torch.save({"arc_face_state_dict": {"weight": weight}}, world / "fc.pt")
    prototypes = prototypes_for(source, world / "fc.pt")
    torch.testing.assert_close(prototypes[source.labels[[0, 2]]], weight[[7, 2]])
    part = source.subset([0, 2])
    torch.testing.assert_close(prototypes_for(part, world / "fc.pt")[part.labels], weight[[7, 2]])
    path.write_text("images/0.png Ann\nimages/1.png Bo\n")
    with pytest.raises(FileFormatError, match=r"some_list\.txt: expected labels 0, 1, .* got 'Ann'"):
        find_data("some", world)


@pytest.mark.parametrize(
    "label, message",
    [
        ("99999999999999999999", "1 of 2 identities of some have no prototype there (99999999999999999999"),
        ("3000000000", "1 of 2 identities of some have no prototype there (3000000000"),
        ("-1", "nothing to learn from"),
    ],
)
def test_labels_out_of_range_are_reported(
    world: Path, capsys: pytest.CaptureFixture[str], label: str, message: str
) -> None:
    first = "-1" if label == "-1" else "0"
    (world / "list" / "some_list.txt").write_text(f"images/0.png {first}\nimages/1.png {label}\n")
    assert main(command(world, "--dataset", "some")) == 1
    assert message in last_error(capsys)


def test_missing_data_sets_are_explained(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(world, "--dataset", "webface")) == 1
    error = last_error(capsys)
    for path in ("list/webface_list.txt", "webface/train.rec", "train.rec"):
        assert str(world / path) in error
    assert not (world / "out" / "hparams.json").exists()


@pytest.mark.parametrize(
    "option, number, message",
    [
        (
            "--convf_dim",
            "25088",
            "--convf_dim 25088 does not fit {bkb}: the map 64x2x2 of this ir-50 has 256",
        ),
        ("--z_dim", "512", "--z_dim 512 does not fit {bkb}: the embedding of this ir-50 has 16 numbers"),
        ("--lr", "-1", "optimizer.lr must be greater than 0, got -1.0"),
        ("--batch_size", "0", "fit.batch_size must be at least 2, got 0"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(
    world: Path, capsys: pytest.CaptureFixture[str], option: str, number: str, message: str
) -> None:
    assert main(command(world, option, number)) == 1
    assert message.format(bkb=world / "bkb.pth") in last_error(capsys)


def test_too_few_prototypes_are_reported_before_the_pass(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"arc_face_state_dict": {"weight": torch.ones(2, 16)}}, world / "fc.pt")
    assert main(command(world)) == 1
    assert "2 of 4 identities of ms1m have no prototype there (2, 3" in last_error(capsys)
    assert not (world / "out" / "cache").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--radius", "64"], "required: --dataset"),
        (["--worker_num", "2"], "unrecognized arguments"),
        (["--gpu_ids", "0,0"], "expected different numbers such as 0,1, got '0,0'"),
        (["--lr_scheduler", "Cosine"], "invalid choice: 'Cosine'"),
        (["--max_grad", "0"], "ambiguous option"),
    ],
)
def test_wrong_usage_is_exit_code_2(
    world: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as error:
        parse(arguments if "--radius" in arguments else command(world, *arguments))
    assert error.value.code == 2 and message in last_error(capsys)


def test_step_lr_needs_step_size_and_gamma(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [argument for argument in command(world) if argument not in ("--gamma", "0.5")]
    with pytest.raises(SystemExit):
        parse(arguments)
    assert "StepLR needs --step_size and --gamma" in last_error(capsys)


def test_options_become_a_config(world: Path) -> None:
    options = parse(command(world, *VERBATIM.split(), "--epochs", "30", "--gpu_ids", "0", "1"))
    assert options.gpu_ids == "0,1" == parse(command(world, "--gpu_ids", "0,1")).gpu_ids
    config = to_config(options, 12, 2)
    assert (config.head.kind, config.loss.variant, config.loss.radius) == ("linear", "exact", 64.0)
    assert (config.views.degraded, config.views.flip, config.views.per_epoch) == (0, True, "one")
    assert (config.schedule.name, config.schedule.step_size, config.schedule.gamma) == ("step", 2, 0.5)
    assert (config.optimizer.clip_norm, config.optimizer.lr, config.fit.held_out) == (0.0, 3e-5, 0.0)
    assert (config.engine.workers, config.seed, config.fit.epochs) == (4, 777, 30)
    assert config.engine.precision == "float32"  # as in the reference, also on a GPU
    plateau = parse(command(world, "--lr_scheduler", "ReduceLROnPlateau", "--loss", "released"))
    schedule = to_config(plateau, 5_000 * 4, 1).schedule
    assert (schedule.name, schedule.gamma, schedule.patience) == ("plateau", 0.1, 4)  # 20,000 steps
    assert to_config(plateau, 12, 1).loss.variant == "released"
    with pytest.raises(InputError, match=r"loss\.radius must be greater than 0"):
        to_config(parse(command(world, "--radius", "0")), 12, 1)


def run(world: Path, *arguments: str, cwd: Path = ROOT) -> None:
    command_line = [sys.executable, str(ROOT / "train.py"), *arguments]
    completed = subprocess.run(command_line, cwd=cwd, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr


@pytest.mark.slow
def test_the_readme_command_of_the_reference_runs(tmp_path: Path) -> None:
    world = build_world(tmp_path, 112, 512)
    options = "--gpu_ids 0 --batch_size 1024 --output_dir out --saved_bkb bkb.pth --saved_fc fc.pt --epochs 2"
    run(world, *VERBATIM.split(), *options.split(), "--convf_dim", "3136", cwd=world)
    assert {"runs", "ckpts", "hparams.json", "confidence.safetensors"} <= {
        path.name for path in (world / "out").iterdir()
    }
    assert checkpoint(world, 2)["global_step"] == 1


@pytest.mark.slow
def test_each_gpu_id_is_one_process(world: Path) -> None:
    run(world, *command(world, out="one"))
    run(world, *command(world, "--gpu_ids", "0,1", out="two"))
    one_rank, two_ranks = (
        [json.loads(line) for line in (world / out / "history.jsonl").read_text().splitlines()]
        for out in ("one", "two")
    )
    assert [facts["train_loss"] for facts in two_ranks] == pytest.approx(
        [facts["train_loss"] for facts in one_rank], rel=1e-5
    )
    model = load(world / "two" / "confidence.safetensors", world / "bkb.pth")
    assert model.record["ranks"] == 2
