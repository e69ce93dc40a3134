"""`spherecf train`: train on images of known people."""

import json
from pathlib import Path
from typing import Annotated

import typer

from spherecf._progress import console
from spherecf.cli._backbone import BackboneFile, EngineName, PresetName, open_backbone

app = typer.Typer(help="Train a confidence head for a recogniser.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass


@app.command(
    epilog="Example: spherecf train confidence recipes/confidence.toml --data faces/ --out runs/faces"
)
def confidence(
    recipe: Annotated[Path, typer.Argument(help="TOML with the settings, e.g. recipes/confidence.toml.")],
    data: Annotated[Path, typer.Option(help="Aligned crops of known people, any layout that `data` knows.")],
    out: Annotated[Path, typer.Option(help="Folder for the model, its history and the feature cache.")],
    backbone: BackboneFile = None,
    preprocessing: PresetName = "",
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Feature cache to share between runs.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Where the paths of a list file start (default: its folder).")
    ] = None,
    engine: EngineName = "auto",
    batch_size: Annotated[int, typer.Option(help="Images per call of the recogniser.")] = 32,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Also write event files.")] = False,
) -> None:
    """Stage 2: freeze a recogniser and train the head that says how sure it is.

    Every image is embedded once per view into a cache on disk, then the head learns from the cache.
    Interrupted, the same command goes on where it stopped, to the identical result. The report, as JSON on
    stdout: the model's path, what was used, what was left out and why, and the losses.
    """
    from spherecf.data import open_source
    from spherecf.training import MODEL_FILE, ConfidenceConfig, train_confidence

    config = ConfidenceConfig.load(recipe)
    if seed is not None:
        config = config.with_seed(seed)
    model = train_confidence(
        open_backbone(backbone, preprocessing, engine),
        open_source(data, root),
        out,
        config,
        cache=cache,
        batch_size=batch_size,
        tensorboard=tensorboard,
    )
    record = model.record
    report = {
        "model": str(out / MODEL_FILE),
        "fingerprint": model.fingerprint(),
        "initial_kappa": record["initial_kappa"],
        "best_epoch": record["best_epoch"],
        "last": record["history"][-1],
        "counts": record["counts"],
        "data": record["data"],
    }
    typer.echo(json.dumps(report, indent=2))
    left_out = record["data"]["skipped"]
    if left_out:
        console.print(f"[yellow]{len(left_out)} images could not be used; the report lists them[/]")
