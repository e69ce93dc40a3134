"""The command of the SCF reference: translates its options, data and checkpoints to those of this library."""

import json
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spherecf.common.files import write_atomically
from spherecf.common.progress import console
from spherecf.data import ImageSource, ListFile, RecordFile
from spherecf.errors import FileFormatError, InputError
from spherecf.models import FrozenBackbone, original_head_state
from spherecf.training import (
    MODEL_FILE,
    ConfidenceConfig,
    FitState,
    GivenPrototypes,
    Monitor,
    join_ranks,
    prototypes_for,
    train_confidence,
)

_PATIENCE = 20_000  # steps without a lower loss before ReduceLROnPlateau lowers the rate, as in the reference


def train(options: Namespace) -> dict[str, Any]:
    """Train in this process, which may be one of several started by ``torchrun``.

    Returns:
        The report on rank 0, an empty dictionary on other ranks.

    Raises:
        InputError: data, recogniser and classifier do not fit together.
        FileFormatError: data or files are missing or damaged.
        SpherecfError: as in `train_confidence`.
    """
    folder = Path(options.output_dir)
    with join_ranks("auto" if options.cuda else "cpu") as ranks:
        if options.cuda and ranks.device.type == "cpu" and ranks.is_main:
            console.print("no GPU found: training on the CPU, as with --no_cuda", highlight=False)
        source = find_data(options.dataset, Path(options.dataroot))
        backbone = open_backbone(options, str(ranks.device))
        # Check early: `train_confidence` checks only after the recogniser has processed all images.
        GivenPrototypes(source, prototypes_for(source, options.saved_fc), backbone.dim)
        config = to_config(options, len(source), ranks.size)
        if ranks.is_main:
            text = json.dumps(vars(options), sort_keys=True, indent=4)
            write_atomically(folder / "hparams.json", lambda stream: stream.write(text.encode()))
        model = train_confidence(
            backbone, source, folder, config,
            ranks=ranks,
            monitor=Monitor(options.tensorboard and "reference", epoch_saver(folder / "ckpts")),
        )  # fmt: skip
        if not ranks.is_main:
            return {}
        record = model.record
        return {
            "model": str(folder / MODEL_FILE),
            "checkpoint": str(folder / "ckpts" / _checkpoint_name(options.epochs)),
            "last": record["history"][-1],
            "data": record["data"],
        }


def find_data(name: str, root: Path) -> ImageSource:
    """Open ``ROOT/list/NAME_list.txt``, or else a RecordIO set in ``ROOT/NAME`` or ``ROOT``.

    The labels in a list must be row numbers of the classifier, possibly with gaps (`prototypes_for`).

    Raises:
        FileFormatError: neither exists, or the data is damaged.
    """
    listed = root / "list" / f"{name}_list.txt"
    if listed.exists():
        source = ListFile(listed, root, name)
        if invalid := [label for label in source.identities if not label.isdecimal()]:
            raise FileFormatError(
                listed, f"expected labels 0, 1, ... (rows of the classifier), got {invalid[0]!r}."
            )
        return source
    for folder in (root / name, root):
        if (folder / "train.rec").exists():
            return RecordFile(folder)
    tried = ", ".join(map(str, (listed, root / name / "train.rec", root / "train.rec")))
    raise FileFormatError(
        root, f"no data set {name!r}: looked for {tried}.", "Pass the folder that contains it as --dataroot."
    )


def open_backbone(options: Namespace, device: str) -> FrozenBackbone:
    """Load the recogniser, with the reference's preprocessing unless the file is from `train_backbone`.

    Raises:
        InputError: the size of its feature map or embedding differs from the options.
    """
    # Files from `train_backbone` store their preprocessing; the reference's checkpoints do not.
    path = Path(options.saved_bkb)
    preprocessing = None if path.suffix == ".safetensors" else "scf"
    backbone = FrozenBackbone.from_checkpoint(path, preprocessing, device=device)
    channels, height, width = backbone.feature_shape
    for option, expected, actual, output in (
        ("convf_dim", options.convf_dim, channels * height * width, f"map {channels}x{height}x{width}"),
        ("z_dim", options.z_dim, backbone.dim, "embedding"),
    ):
        if expected != actual:
            raise InputError(
                f"--{option} {expected} does not fit {path}: the {output} of this {backbone.name} has "
                f"{actual} numbers; pass --{option} {actual}, or another checkpoint"
            )
    return backbone


def to_config(options: Namespace, images: int, ranks: int) -> ConfidenceConfig:
    """Settings of the reference's method: its head on clean and mirrored images, Adam with coupled weight
    decay.

    Raises:
        InputError: a number is out of range.
    """
    # The reference counts patience in steps, this library counts it in epochs.
    steps_per_epoch = max(1, math.ceil(images / max(1, options.batch_size)))
    schedules: dict[str | None, dict[str, Any]] = {
        None: {"name": "constant"},
        "StepLR": {"name": "step", "step_size": options.step_size, "gamma": options.gamma},
        "ReduceLROnPlateau": {"name": "plateau", "gamma": 0.1, "patience": _PATIENCE // steps_per_epoch},
    }
    return ConfidenceConfig.from_dict(
        {
            "seed": options.seed,
            "head": {"kind": "linear"},
            "views": {"degraded": 0, "flip": True, "per_epoch": "one"},
            "features": {"finetune": options.finetune_bkb},
            "prototypes": {"file": options.saved_fc},
            "loss": {"variant": options.loss, "radius": options.radius},
            "fit": {"epochs": options.epochs, "batch_size": options.batch_size, "held_out": 0.0},
            "optimizer": {
                "name": "adam",
                "lr": options.lr,
                "weight_decay": options.weight_decay,
                "decay_vectors": True,
                "clip_value": options.max_grad_clip,
                "clip_norm": options.max_grad_norm,
                "fused": True,
            },
            "schedule": schedules[options.lr_scheduler],
            # The reference trains in float32; `auto` would be bfloat16 on a GPU.
            "engine": {"workers": max(1, math.ceil(options.num_workers / ranks)), "precision": "float32"},
        }
    )


def epoch_saver(folder: Path) -> Callable[[FitState], None]:
    """Hook that writes ``ckpt_eN.pt`` with the reference's keys after each epoch, atomically."""

    def save(state: FitState) -> None:
        content = {
            "epoch": state.epoch,
            "global_step": state.step - 1,
            "uncer_net_state_dict": original_head_state(state.head),
            "opt_state": _original_optimizer(state.optimizer),
        }
        if state.backbone is not None:
            content["backbone_state_dict"] = state.backbone.state_dict()
        path = folder / _checkpoint_name(state.epoch + 1)
        write_atomically(path, lambda stream: torch.save(content, stream))

    return save


def _checkpoint_name(epoch: int) -> str:
    return f"ckpt_e{epoch}.pt"


def _original_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """State of the optimizer without empty parameter groups, as in the reference's checkpoints."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [group for group in state["param_groups"] if group["params"]]}
