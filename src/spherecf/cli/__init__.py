"""The command `spherecf`: a thin layer over the Python API, with related commands in one file.

JSON goes to stdout; tables, messages and progress go to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage.
Each command imports its dependencies inside its function, which keeps `spherecf --help` fast.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from spherecf.cli import (
    calibrate,
    data,
    deploy,
    embed,
    evaluate,
    gallery,
    photos,
    quality,
    setup,
    train,
)
from spherecf.cli.options import run_command
from spherecf.common.version import __version__

app = typer.Typer(
    name="spherecf",
    help="Sphere Confidence Face: a calibrated confidence for any face recogniser.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command(epilog=setup.DEMO_EXAMPLE)(setup.demo)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.command(epilog=quality.EXAMPLE)(quality.quality)
app.command(epilog=photos.COMPARE_EXAMPLE)(photos.compare)
app.command(epilog=photos.TEMPLATE_EXAMPLE)(photos.template)
app.command(epilog=calibrate.EXAMPLE)(calibrate.calibrate)
app.add_typer(gallery.app, name="gallery")
app.add_typer(setup.key_app, name="key")
app.command(epilog=embed.EXAMPLE)(embed.embed)
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(deploy.export_app, name="export")
app.command(epilog=deploy.SERVE_EXAMPLE)(deploy.serve)
app.command(epilog=setup.DOCTOR_EXAMPLE)(setup.doctor)


def _print_version(requested: bool | None) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool | None = typer.Option(
        None, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
    key_file: Annotated[
        Path | None,
        typer.Option(
            envvar="SPHERECF_KEY_FILE",
            show_envvar=True,
            help="Key file of encrypted galleries and embeddings files. Create it with `spherecf key make`.",
        ),
    ] = None,
) -> None:
    setup.use_key_file(key_file)


def main() -> None:
    """Entry point. Errors of this library become one line on stderr and exit code 1."""
    sys.exit(run_command(app))
