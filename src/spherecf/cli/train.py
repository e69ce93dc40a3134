"""`spherecf train`: train a recogniser, or a confidence head for a recogniser."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from spherecf.cli.options import (
    BackboneFile,
    DtypeName,
    EngineName,
    ListRoot,
    PresetName,
    folder_to_write,
    open_backbone,
)
from spherecf.common.progress import console

app = typer.Typer(help="Train a recogniser, or a confidence head for a recogniser.", no_args_is_help=True)

Data = Annotated[
    str,
    typer.Option(
        help="Aligned face crops with identity labels, in any layout that `spherecf data inspect` reads."
    ),
]
Seed = Annotated[int | None, typer.Option(help="Random seed (default: the seed in the recipe).")]
Device = Annotated[str, typer.Option(help="Device to train on: auto, cpu, cuda or cuda:N.")]
Events = Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard event files.")]


@app.command(
    epilog="Example: spherecf train backbone recipes/backbone.toml --data faces/ --out runs/backbone"
)
def backbone(
    recipe: Annotated[Path, typer.Argument(help="TOML file with the settings, e.g. recipes/backbone.toml.")],
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the network, prototypes, history and checkpoints.", callback=folder_to_write
        ),
    ],
    validate: Annotated[
        list[Path] | None,
        typer.Option(help="Pair .bin file for verification after each epoch. May be repeated."),
    ] = None,
    seed: Seed = None,
    root: ListRoot = None,
    device: Device = "auto",
    tensorboard: Events = False,
) -> None:
    """Stage 1: train a recogniser with a margin softmax loss.

    To train with several processes, use `torchrun --nproc-per-node 8 -m spherecf train backbone ...`. After
    an interruption, run the same command again, with any number of processes; training resumes within the
    epoch. Prints a JSON report on stdout: the files written, the data used, the images left out with the
    reason, and the last epoch.
    """
    from spherecf.data import open_source
    from spherecf.training import BackboneConfig, join_ranks, train_backbone
    from spherecf.validation import verification

    config = BackboneConfig.load(recipe)
    config = config if seed is None else config.with_seed(seed)
    size = config.network.options.get("size", 112)
    expected = (size, size) if type(size) is int else None  # any other size is refused with the network
    check = verification(validate, expected) if validate else None
    with join_ranks(device) as ranks:
        source = open_source(data, root)
        result = train_backbone(source, out, config, ranks=ranks, validate=check, tensorboard=tensorboard)
        if ranks.is_main:
            report = {
                "backbone": str(result.path),
                "prototypes": str(result.prototypes),
                "last": result.history[-1],
                "data": result.record["data"],
            }
            _report(report)


@app.command(
    epilog="Example: spherecf train confidence recipes/confidence.toml --data faces/ --out runs/faces"
)
def confidence(
    recipe: Annotated[
        Path, typer.Argument(help="TOML file with the settings, e.g. recipes/confidence.toml.")
    ],
    data: Data,
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the model, its history and the feature cache.", callback=folder_to_write
        ),
    ],
    backbone: BackboneFile = None,
    preprocessing: PresetName = "",
    prototypes: Annotated[
        Path | None,
        typer.Option(
            help="File of prototypes, the weights of the classifier (default: the recipe's, or class means)."
        ),
    ] = None,
    finetune_backbone: Annotated[
        bool,
        typer.Option(
            "--finetune-backbone", help="Also train the recogniser, which must be a PyTorch checkpoint."
        ),
    ] = False,
    seed: Seed = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of the feature cache, to share it between runs.")
    ] = None,
    root: ListRoot = None,
    engine: EngineName = "auto",
    dtype: DtypeName = "float32",
    device: Device = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(help="Batch size of the recogniser, in images (default: 32, or 256 on a GPU)."),
    ] = None,
    tensorboard: Events = False,
) -> None:
    """Stage 2: freeze a recogniser and train its confidence head.

    Each view of an image is embedded once and cached on disk; the head is trained on the cache. Data that
    would not fit on the disk is streamed. After an interruption, run the same command again; it resumes and
    gives the identical result. Prints a JSON report on stdout: the path of the model, the data used, the
    images left out with the reason, and the losses.
    """
    from spherecf.data import open_source
    from spherecf.training import MODEL_FILE, ConfidenceConfig, Monitor, join_ranks, train_confidence

    config = ConfidenceConfig.load(recipe)
    config = config if seed is None else config.with_seed(seed)
    if prototypes is not None:
        config = replace(config, prototypes=replace(config.prototypes, file=str(prototypes)))
    if finetune_backbone:
        config = replace(config, features=replace(config.features, finetune=True))
    with join_ranks(device) as ranks:
        model = train_confidence(
            open_backbone(backbone, preprocessing, engine, str(ranks.device), dtype),
            open_source(data, root),
            out,
            config,
            cache=cache,
            batch_size=batch_size,
            ranks=ranks,
            monitor=Monitor(tensorboard),
        )
        record = model.record
        if ranks.is_main:
            report = {
                "model": str(out / MODEL_FILE),
                "fingerprint": model.fingerprint(),
                "initial_kappa": record["initial_kappa"],
                "best_epoch": record["best_epoch"],
                "last": record["history"][-1],
                "counts": record["counts"],
                "data": record["data"],
            }
            _report(report)


def _report(report: dict[str, Any]) -> None:
    typer.echo(json.dumps(report, indent=2))
    left_out = report["data"]["skipped"]
    if left_out:
        console.print(f"[yellow]{len(left_out)} images could not be used; the JSON report lists them[/]")
