"""`spherecf doctor`: what is installed, and does it work?"""

from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from spherecf.cli.output import AsLines, lines_wanted, print_lines
from spherecf.common.progress import console

if TYPE_CHECKING:
    from spherecf.doctor import Finding

EXAMPLE = "Example: spherecf doctor"


def doctor(as_lines: AsLines = False) -> None:
    """Check the installation: packages, default networks, shipped model, a face, optional parts, disk.

    One JSON line per finding. Exit code 1 where something required does not work.
    """
    from spherecf.doctor import diagnose

    findings = diagnose()
    if lines_wanted(as_lines):
        print_lines(finding.to_dict() for finding in findings)
    table = Table(title="spherecf doctor")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column)
    for one in findings:
        table.add_row(*map(escape, (_mark(one), one.name, one.detail, one.remedy)))
    console.print(table)
    if not all(finding.ok for finding in findings if finding.required):
        raise typer.Exit(1)


def _mark(finding: "Finding") -> str:
    return "ok" if finding.ok else "broken" if finding.required else "-"
