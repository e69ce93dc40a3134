"""`spherecf demo`, `doctor` and `key`: try an installation, check it, and encrypt what it keeps."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from spherecf.cli.options import (
    AsLines,
    AsReport,
    DeviceName,
    Draws,
    folder_to_write,
    print_lines,
    print_text,
)
from spherecf.common.progress import console
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.common.sealing import Key
    from spherecf.doctor import Finding

DEMO_EXAMPLE = "Example: spherecf demo --data photos/ --out demo-photos"


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


DOCTOR_EXAMPLE = "Example: spherecf doctor"


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


key_app = typer.Typer(help="Encrypt galleries and embeddings files.", no_args_is_help=True)

Paths = Annotated[list[Path], typer.Argument(help="Galleries and embeddings files.")]


@key_app.callback()
def _root() -> None:
    pass


@key_app.command(epilog="Example: spherecf key make people.key")
def make(file: Annotated[Path, typer.Argument(help="File to write.")]) -> None:
    """Make a random key in a new file that its owner alone can read.

    Whoever has the key can read all that is encrypted with it, and without it nobody can: keep a copy in
    another place than the data.
    """
    from spherecf.common.sealing import make_key

    print_text(f"{file}: the key {make_key(file).id}")


@key_app.command(
    epilog="Example: spherecf --key-file=people.key key encrypt people.gallery faces.safetensors"
)
def encrypt(paths: Paths) -> None:
    """Encrypt files with the key in use; each is whole before or after, and the same command goes on.

    A gallery is written anew, so that its file holds nothing of before. The blocks that an embeddings file
    had before, and backups, are yours to erase.
    """
    _reseal(paths, None, _key_in_use(), "encrypted")


@key_app.command(epilog="Example: spherecf --key-file=people.key key decrypt people.gallery")
def decrypt(paths: Paths) -> None:
    """Decrypt files that are encrypted with the key in use."""
    _reseal(paths, _key_in_use(), None, "decrypted")


@key_app.command(epilog="Example: spherecf --key-file=old.key key change people.gallery --to new.key")
def change(
    paths: Paths, to: Annotated[Path, typer.Option(help="File of the new key.", show_default=False)]
) -> None:
    """Encrypt files, which are encrypted with the key in use, with another key."""
    from spherecf.common.sealing import read_key

    _reseal(paths, _key_in_use(), read_key(to), "encrypted with the new key")


def use_key_file(path: Path | None) -> None:
    """Callback of --key-file: the variable is where everything looks."""
    from spherecf.common.sealing import KEY_FILE

    if path is not None:
        os.environ[KEY_FILE] = str(path)


def _key_in_use() -> "Key":
    from spherecf.common.sealing import KEY_FILE, current_key

    key = current_key()
    if key is None:
        raise InputError(f"there is no key; name its file in {KEY_FILE}, or with `spherecf --key-file=FILE`")
    return key


def _reseal(paths: list[Path], key: "Key | None", new: "Key | None", done: str) -> None:
    for path in paths:
        changed = _function_for(path)(path, key, new)
        print_text(f"{path}: {done}" if changed else f"{path}: was {done} before")


def _function_for(path: Path) -> "Callable[[Path, Key | None, Key | None], bool]":
    from spherecf.common.files import SQLITE, describe_content
    from spherecf.embeddings import reseal_embeddings
    from spherecf.gallery import reseal_gallery

    return reseal_gallery if describe_content(path) == SQLITE else reseal_embeddings
