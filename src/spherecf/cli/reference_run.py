"""The SCF reference's command: its options as our settings, its data, its checkpoints."""

import json
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
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
    """Train in this process, or as one of those that ``torchrun`` started.

    Returns:
        The report on rank 0, an empty dictionary on other ranks.

    Raises:
        InputError: data, recogniser and classifier do not fit together.
        FileFormatError: no such data or files, or damaged ones.
        SpherecfError: as in `train_confidence`.
    """
    folder = Path(options.output_dir)
    with join_ranks("auto" if options.cuda else "cpu") as ranks:
        if options.cuda and ranks.device.type == "cpu" and ranks.is_main:
            console.print("no GPU here: training on the CPU, as with --no_cuda", highlight=False)
        source = find_data(options.dataset, Path(options.dataroot))
        backbone = open_backbone(options, str(ranks.device))
        # Checked now: `train_confidence` would find out only after the recogniser's pass over all images.
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
            "checkpoint": str(folder / "ckpts" / _name(options.epochs)),
            "last": record["history"][-1],
            "data": record["data"],
        }


def find_data(name: str, root: Path) -> ImageSource:
    """``ROOT/list/NAME_list.txt``, else a RecordIO set in ``ROOT/NAME`` or ``ROOT``.

    The labels of a list are rows of the classifier as they stand, also where numbers are left out.

    Raises:
        FileFormatError: neither is there, or it is damaged.
    """
    listed = root / "list" / f"{name}_list.txt"
    if listed.exists():
        return _numbered(ListFile(listed, root, name))
    for folder in (root / name, root):
        if (folder / "train.rec").exists():
            return RecordFile(folder)
    tried = ", ".join(map(str, (listed, root / name / "train.rec", root / "train.rec")))
    raise FileFormatError(
        root, f"no data set {name!r}: looked for {tried}.", "Give the folder that holds one as --dataroot."
    )


def _numbered(source: ListFile) -> ListFile:
    """Restore the labels that are written in the list, which `ListFile` has numbered from 0 without gaps."""
    words = [word for word in source.identities if not word.isdecimal()]
    if words:
        raise FileFormatError(
            source.path, f"expected labels 0, 1, ... (rows of the classifier), got {words[0]!r}."
        )
    numbers = np.array(source.identities, np.int64)
    source.labels = np.where(source.labels < 0, -1, numbers[source.labels])
    source.identities = [str(number) for number in range(int(numbers.max(initial=-1)) + 1)]
    return source


def open_backbone(options: Namespace, device: str) -> FrozenBackbone:
    """The recogniser, with the reference's pixel format unless the file is one of `train_backbone`.

    Raises:
        InputError: its map or embedding has another size than the options.
    """
    # Files of `train_backbone` carry their pixel format; the reference's checkpoints do not.
    path = Path(options.saved_bkb)
    pixels = None if path.suffix == ".safetensors" else "scf"
    backbone = FrozenBackbone.from_checkpoint(path, pixels, device=device)
    channels, height, width = backbone.feature_shape
    for option, expected, actual, what in (
        ("convf_dim", options.convf_dim, channels * height * width, f"map {channels}x{height}x{width}"),
        ("z_dim", options.z_dim, backbone.dim, "embedding"),
    ):
        if expected != actual:
            raise InputError(
                f"--{option} {expected} does not fit {path}: the {what} of this {backbone.name} has {actual} "
                f"numbers; pass --{option} {actual}, or another checkpoint"
            )
    return backbone


def to_config(options: Namespace, images: int, ranks: int) -> ConfidenceConfig:
    """The reference's method: its head on clean and mirrored images, Adam with coupled weight decay.

    Raises:
        InputError: a number out of range.
    """
    # The reference's patience is in steps, ours in epochs.
    steps = max(1, math.ceil(images / max(1, options.batch_size)))
    schedules: dict[str | None, dict[str, Any]] = {
        None: {"name": "constant"},
        "StepLR": {"name": "step", "step_size": options.step_size, "gamma": options.gamma},
        "ReduceLROnPlateau": {"name": "plateau", "gamma": 0.1, "patience": _PATIENCE // steps},
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
            "engine": {"workers": max(1, math.ceil(options.num_workers / ranks))},
        }
    )


def epoch_saver(folder: Path) -> Callable[[FitState], None]:
    """A hook that writes ``ckpt_eN.pt`` after each epoch, with the reference's keys, atomically."""

    def save(state: FitState) -> None:
        content = {
            "epoch": state.epoch,
            "global_step": state.step - 1,
            "uncer_net_state_dict": original_head_state(state.head),
            "opt_state": _original_optimizer(state.optimizer),
        }
        if state.backbone is not None:
            content["backbone_state_dict"] = state.backbone.state_dict()
        path = folder / _name(state.epoch + 1)
        write_atomically(path, lambda stream: torch.save(content, stream))

    return save


def _name(epoch: int) -> str:
    return f"ckpt_e{epoch}.pt"


def _original_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state without empty groups, as the reference's checkpoints have it."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [group for group in state["param_groups"] if group["params"]]}
