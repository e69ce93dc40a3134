"""What the photo commands print: JSON lines for programs, tables for people."""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import typer

AsLines = Annotated[
    bool, typer.Option("--json", help="JSON lines on stdout; the default where stdout is no terminal.")
]


def lines_wanted(asked: bool) -> bool:
    """True where a program reads stdout; at a terminal the table on stderr is enough unless asked."""
    return asked or not sys.stdout.isatty()


def print_lines(rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object per line on stdout, keys in order, NaN refused."""
    for row in rows:
        typer.echo(json.dumps(row, ensure_ascii=False, allow_nan=False))
