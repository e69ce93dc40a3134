"""`spherecf doctor`: check the installation."""

from typing import TYPE_CHECKING

import typer
from rich.markup import escape
from rich.table import Table

from spherecf.cli.output import AsLines, print_lines
from spherecf.common.progress import console

if TYPE_CHECKING:
    from spherecf.doctor import Finding

EXAMPLE = "Example: spherecf doctor"


def doctor(as_lines: AsLines = False) -> None:
    """Check the installation: packages, networks, model, a self test on a face, optional extras, disk space.

    Prints one JSON line per check. The exit code is 1 if a required part does not work.
    """
    from spherecf.doctor import diagnose

    findings = diagnose()
    print_lines((finding.to_dict() for finding in findings), as_lines)
    table = Table(title="spherecf doctor")
    for column in ("", "check", "result", "remedy"):
        table.add_column(column)
    for finding in findings:
        table.add_row(*map(escape, (_mark(finding), finding.name, finding.detail, finding.remedy)))
    console.print(table)
    if not all(finding.ok for finding in findings if finding.required):
        raise typer.Exit(1)


def _mark(finding: "Finding") -> str:
    return "ok" if finding.ok else "failed" if finding.required else "-"
