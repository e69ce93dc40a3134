"""`spherecf demo`: train, test and report on real faces."""

import json
from pathlib import Path
from typing import Annotated

import typer

from spherecf.cli.options import DeviceName, Draws
from spherecf.cli.output import AsReport, folder_to_write, print_text
from spherecf.common.progress import console

EXAMPLE = "Example: spherecf demo --data photos/ --out demo-photos"


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Photos or crops, one sub-folder per person (default: the ORL faces).")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the report, heads and caches.", callback=folder_to_write)
    ] = Path("spherecf-demo"),
    seed: Annotated[int, typer.Option(help="Seed of the split, pairs, degradations and head.")] = 0,
    draws: Draws = 1000,
    device: DeviceName = "cpu",
    as_json: AsReport = False,
) -> None:
    """Train a confidence head on half of the people, test it on the others, and write a report.

    By default it uses the recogniser SFace and the ORL faces, both from installed packages. Clean and
    degraded pairs are compared by cosine and by mutual likelihood score.
    """
    from spherecf.demo import demo as run_demo, show_tables
    from spherecf.models import FrozenBackbone

    done = run_demo(out, data, seed=seed, draws=draws, backbone=FrozenBackbone.default(device=device))
    show_tables(done.tables, console)
    for note in done.notes:
        print_text(note)
    if as_json:
        typer.echo(json.dumps([table.to_dict() for table in done.tables], indent=2))
    else:
        typer.echo(f"report: {done.files.html}")
