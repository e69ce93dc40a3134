import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.data.conftest import picture
from tests.reference.original_heads import linear_table, log_kappa
from torch import nn

from spherecf import load
from spherecf.cli import reference_run
from spherecf.cli.reference import main, parse
from spherecf.cli.reference_run import find_data, to_config
from spherecf.data import ListFile, RecordFile, open_source, write_records
from spherecf.errors import FileFormatError, InputError
from spherecf.models import FrozenBackbone, load_backbone, load_confidence_head, make_backbone

ROOT = Path(__file__).resolve().parents[2]
PEOPLE, EACH = 4, 3
# As its README writes them; the rest, which depends on the world, is in `command`.
VERBATIM = (
    "--dataset ms1m --seed 777 --num_workers 8 --lr 3e-5 --lr_scheduler StepLR --step_size 2 --gamma 0.5 "
    "--z_dim 512 --radius 64 --max_grad_clip 0 --max_grad_norm 0 --tensorboard"
)

SMALL = (
    "--dataset ms1m --seed 777 --batch_size 4 --epochs 2 --lr 1e-3 --lr_scheduler StepLR --step_size 1 "
    "--gamma 0.5 --convf_dim 256 --z_dim 16 --radius 64 --no_cuda"
)


def build_world(folder: Path, size: int, dim: int) -> Path:
    """Pictures, the list of them, a recogniser and its classifier, as the reference keeps them."""
    lines = []
    for row in range(PEOPLE * EACH):
        path = folder / "images" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(row, ".png", size, size))
        shown = path if row % 2 else path.relative_to(folder)  # absolute paths and relative ones
        lines.append(f"{shown} {row // EACH}\n")
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
    """Untrained, but its statistics fit the images, as they do after training."""
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


def command(world: Path, *more: str, out: str = "out") -> list[str]:
    files = ("--saved_bkb", str(world / "bkb.pth"), "--saved_fc", str(world / "fc.pt"))
    return [*SMALL.split(), "--dataroot", str(world), "--output_dir", str(world / out), *files, *more]


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def checkpoint(world: Path, epoch: int, out: str = "out") -> dict:
    content: dict = torch.load(world / out / "ckpts" / f"ckpt_e{epoch}.pt", weights_only=True)
    return content


def test_writes_what_the_reference_writes(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    # 12 pictures in batches of 4: steps 0, 1, 2 and 3, 4, 5.
    assert [(c["epoch"], c["global_step"]) for c in (first, second)] == [(0, 2), (1, 5)]
    assert list(first["uncer_net_state_dict"]) == list(linear_table(256))


def test_the_reference_can_go_on_from_its_checkpoint(world: Path) -> None:
    assert main(command(world)) == 0
    saved = checkpoint(world, 2)
    theirs = [nn.Parameter(tensor) for tensor in linear_table(256).values()]
    optimizer = torch.optim.Adam(theirs, lr=1.0, weight_decay=1.0)
    optimizer.load_state_dict(saved["opt_state"])
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4]
    for parameter in theirs:
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        assert float(optimizer.state[parameter]["step"]) == 6


def test_its_checkpoint_holds_the_head_of_the_model(world: Path) -> None:
    assert main(command(world)) == 0
    model = load(world / "out" / "confidence.safetensors", world / "bkb.pth")
    assert model.backbone.preprocessing.std == 128.0
    path = world / "out" / "ckpts" / "ckpt_e2.pt"
    head = load_confidence_head(path, feature_shape=model.backbone.feature_shape)
    source = find_data("ms1m", world)
    output = model.backbone(torch.stack([torch.from_numpy(source.image(row)) for row in range(4)]))
    given = (output.features, output.embedding)
    with torch.no_grad():
        kappas = model.head.log_kappa(*given)
        assert torch.equal(head.log_kappa(*given), kappas)
        original = log_kappa(checkpoint(world, 2)["uncer_net_state_dict"], output.features.flatten(1))
    torch.testing.assert_close(original.flatten(), kappas)
    assert float(kappas.std()) > 0


def test_goes_on_where_it_stopped(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(command(world, out="whole")) == 0
    make = reference_run.epoch_saver

    def stopping(folder: Path) -> Callable:
        save = make(folder)

        def show(state: object) -> None:
            if state.epoch == 1:
                raise KeyboardInterrupt
            save(state)

        return show

    with monkeypatch.context() as patch:
        patch.setattr(reference_run, "epoch_saver", stopping)
        assert main(command(world)) == 130
    before = (world / "out" / "ckpts" / "ckpt_e1.pt").stat().st_mtime_ns
    assert not (world / "out" / "confidence.safetensors").exists()
    assert main(command(world)) == 0
    assert (world / "out" / "ckpts" / "ckpt_e1.pt").stat().st_mtime_ns == before
    ours, whole = (checkpoint(world, 2, out)["uncer_net_state_dict"] for out in ("out", "whole"))
    assert all(torch.equal(ours[key], whole[key]) for key in whole)


def test_a_recogniser_that_learns_is_in_the_checkpoint(world: Path) -> None:
    assert main(command(world, "--finetune_bkb", "--epochs", "1")) == 0
    saved = checkpoint(world, 1)
    before = torch.load(world / "bkb.pth", weights_only=True)
    assert list(saved["backbone_state_dict"]) == list(before)
    torch.save(saved["backbone_state_dict"], world / "tuned.pth")
    tuned = load_backbone(world / "tuned.pth").state_dict()
    assert not torch.equal(tuned["output_layer.3.weight"], before["output_layer.3.weight"])


@pytest.mark.parametrize("place", ["ms1m", "."])
def test_a_record_set_is_found(world: Path, place: str) -> None:
    write_records(find_data("ms1m", world), world / "records" / place)
    source = find_data("ms1m", world / "records")
    assert isinstance(source, RecordFile) and source.labels.tolist() == [r // EACH for r in range(12)]
    assert main(command(world, "--dataroot", str(world / "records"), "--epochs", "1")) == 0


def test_labels_of_a_list_are_rows_of_the_classifier(world: Path) -> None:
    path = world / "list" / "some_list.txt"
    path.write_text("images/0.png 7\nimages/1.png -1\nimages/2.png 2\n")
    assert open_source(path, world).labels.tolist() == [1, -1, 0]
    source = find_data("some", world)
    assert source.labels.tolist() == [7, -1, 2] and source.identities[7] == "7"
    path.write_text("images/0.png Ann\nimages/1.png Bo\n")
    with pytest.raises(FileFormatError, match=r"some_list\.txt: expected labels 0, 1, .* got 'Ann'"):
        find_data("some", world)


def test_no_data(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(world, "--dataset", "webface")) == 1
    error = last_error(capsys)
    for place in ("list/webface_list.txt", "webface/train.rec", "train.rec"):
        assert str(world / place) in error
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
def test_numbers_that_do_not_fit(
    world: Path, capsys: pytest.CaptureFixture[str], option: str, number: str, message: str
) -> None:
    assert main(command(world, option, number)) == 1
    assert message.format(bkb=world / "bkb.pth") in last_error(capsys)


def test_too_few_prototypes_are_told_before_the_pass(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"arc_face_state_dict": {"weight": torch.ones(2, 16)}}, world / "fc.pt")
    assert main(command(world)) == 1
    assert "2 of 4 identities of ms1m have no prototype there (2, 3" in last_error(capsys)
    assert not (world / "out" / "cache").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--radius", "64"], "required: --dataset"),
        (["--worker_num", "2"], "unrecognized arguments"),
        (["--gpu_ids", "0,0"], "expected different numbers such as 0,1, got '0,0'"),
        (["--lr_scheduler", "Cosine"], "invalid choice: 'Cosine'"),
        (["--max_grad", "0"], "ambiguous option"),
    ],
)
def test_usage(world: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words if "--radius" in words else command(world, *words))
    assert ended.value.code == 2 and message in last_error(capsys)


def test_step_lr_needs_its_numbers(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for word in command(world) if word not in ("--gamma", "0.5")]
    with pytest.raises(SystemExit):
        parse(words)
    assert "StepLR needs --step_size and --gamma" in last_error(capsys)


def test_what_the_options_become(world: Path) -> None:
    options = parse(command(world, *VERBATIM.split(), "--epochs", "30", "--gpu_ids", "0", "1"))
    assert options.gpu_ids == "0,1" == parse(command(world, "--gpu_ids", "0,1")).gpu_ids
    config = to_config(options, 12, 2)
    assert (config.head.kind, config.loss.variant, config.loss.radius) == ("linear", "exact", 64.0)
    assert (config.views.degraded, config.views.flip, config.views.per_epoch) == (0, True, "one")
    assert (config.schedule.name, config.schedule.step_size, config.schedule.gamma) == ("step", 2, 0.5)
    assert (config.optimizer.clip_norm, config.optimizer.lr, config.fit.held_out) == (0.0, 3e-5, 0.0)
    assert (config.engine.workers, config.seed, config.fit.epochs) == (4, 777, 30)
    plateau = parse(command(world, "--lr_scheduler", "ReduceLROnPlateau", "--loss", "released"))
    schedule = to_config(plateau, 5_000 * 4, 1).schedule
    assert (schedule.name, schedule.gamma, schedule.patience) == ("plateau", 0.1, 4)  # 20,000 steps
    assert to_config(plateau, 12, 1).loss.variant == "released"
    with pytest.raises(InputError, match=r"loss\.radius must be greater than 0"):
        to_config(parse(command(world, "--radius", "0")), 12, 1)


def run(world: Path, *more: str, cwd: Path = ROOT) -> None:
    words = [sys.executable, str(ROOT / "train.py"), *more]
    done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_command_of_its_readme(tmp_path: Path) -> None:
    world = build_world(tmp_path, 112, 512)
    more = "--gpu_ids 0 --batch_size 1024 --output_dir out --saved_bkb bkb.pth --saved_fc fc.pt --epochs 2"
    run(world, *VERBATIM.split(), *more.split(), "--convf_dim", "3136", cwd=world)
    assert {"runs", "ckpts", "hparams.json", "confidence.safetensors"} <= {
        path.name for path in (world / "out").iterdir()
    }
    assert checkpoint(world, 2)["global_step"] == 1


@pytest.mark.slow
def test_one_process_for_each_id(world: Path) -> None:
    run(world, *command(world, out="one"))
    run(world, *command(world, "--gpu_ids", "0,1", out="two"))
    one, two = (
        [json.loads(line) for line in (world / out / "history.jsonl").read_text().splitlines()]
        for out in ("one", "two")
    )
    assert [facts["train_loss"] for facts in two] == pytest.approx(
        [facts["train_loss"] for facts in one], rel=1e-5
    )
    model = load(world / "two" / "confidence.safetensors", world / "bkb.pth")
    assert model.record["ranks"] == 2
