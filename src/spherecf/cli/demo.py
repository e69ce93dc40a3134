"""`spherecf demo`: the main job on real faces, start to end."""

import json
from pathlib import Path
from typing import Annotated

import typer

from spherecf.cli.output import folder_to_write
from spherecf.common.progress import console

EXAMPLE = "Example: spherecf demo --data photos/ --out demo-photos"


def demo(
    data: Annotated[
        Path | None, typer.Option(help="Photos or crops of known people (default: the ORL faces).")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for report, heads and caches.", callback=folder_to_write)
    ] = Path("spherecf-demo"),
    seed: Annotated[int, typer.Option(help="Of the split, pairs, degradations and head.")] = 0,
    draws: Annotated[int, typer.Option(help="Bootstrap draws of the intervals.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables as JSON on stdout.")] = False,
) -> None:
    """Give a recogniser a confidence: train on half of the people, test on the others, write a report.

    Without --data: the default recogniser (SFace) and the ORL faces, both from packages that pip installed.
    Clean and degraded pairs are compared by cosine and by mutual likelihood.
    """
    from spherecf.demo import demo as run_demo
    from spherecf.demo import show, tables

    found = run_demo(out, data, seed=seed, draws=draws)
    show(found.result, console)
    for note in found.notes:
        console.print(note, highlight=False, markup=False, soft_wrap=True)
    if as_json:
        typer.echo(json.dumps([table.to_dict() for table in tables(found.result)], indent=2))
    else:
        typer.echo(f"report: {found.files.html}")
