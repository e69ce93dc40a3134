"""`spherecf reproduce`: the paper's tables in conditions one can have at home."""

import json
from pathlib import Path
from typing import Annotated

import typer

from spherecf.cli.options import open_backbone
from spherecf.cli.output import folder_to_write
from spherecf.common.progress import console

EXAMPLE = (
    "Example: spherecf reproduce lfw/ cfp/ --pairs cfp/pairs_FP.txt --pairs cfp/pairs_FF.txt "
    "--backbone mobilefacenet-512.onnx --out runs/reproduce"
)


def reproduce(
    train: Annotated[Path, typer.Argument(help="Aligned crops of the people to train on.")],
    test: Annotated[Path, typer.Argument(help="Aligned crops of other people, which the pairs name.")],
    pairs: Annotated[list[Path], typer.Option(help="Pair list of the test images; may be repeated.")],
    out: Annotated[
        Path, typer.Option(help="Folder for the report, heads and caches.", callback=folder_to_write)
    ],
    backbone: Annotated[
        list[Path] | None, typer.Option(help="Further recogniser beside SFace; may be repeated.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML with the settings of the heads.")] = None,
    seeds: Annotated[int, typer.Option(help="Repetitions, each with its own heads and templates.")] = 6,
    draws: Annotated[int, typer.Option(help="Bootstrap draws of people; 0 for no intervals.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Train SCF, SCF as released, SCF-G, PFE-v and PFE-G, and compare them with the cosine.

    Pairs, templates of several images (pooled by mean, norm, detector score and each head's confidence) and
    open-set searches; clean and degraded; every number over several seeds with paired intervals over people.
    People of TRAIN who look like somebody of TEST are not learnt from. Interrupted, the same command goes on
    where it stopped.
    """
    from spherecf.data import open_pairs, open_source
    from spherecf.experiments import present_reproduction, reproduction_tables, show_tables
    from spherecf.experiments import reproduce as run
    from spherecf.report import require_matplotlib
    from spherecf.training import ConfidenceConfig

    require_matplotlib()  # before the work, not after
    config = ConfidenceConfig() if recipe is None else ConfidenceConfig.load(recipe)
    recognisers = [open_backbone(path, "") for path in (None, *(backbone or []))]
    result = run(
        recognisers,
        open_source(train),
        open_source(test),
        [open_pairs(path) for path in pairs],
        out,
        config,
        seeds=range(seeds),
        draws=draws,
    )
    files = present_reproduction(result, out / "report", {"config": config.to_dict()})
    found = reproduction_tables(result)
    show_tables(found, console)
    if as_json:
        typer.echo(json.dumps([table.to_dict() for table in found], indent=2))
    else:
        typer.echo(f"report: {files.html}")
