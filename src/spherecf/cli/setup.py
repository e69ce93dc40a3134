"""`spherecf demo`, `doctor` and `key`: try SphereCF, check the installation, and encrypt stored data."""

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
        Path | None,
        typer.Option(
            help="Folder of photos or face crops, one sub-folder per person (default: the ORL faces)."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the report, heads and caches.", callback=folder_to_write)
    ] = Path("spherecf-demo"),
    seed: Annotated[
        int, typer.Option(help="Random seed for the split, the pairs, the degradations and the head.")
    ] = 0,
    draws: Draws = 1000,
    device: DeviceName = "cpu",
    as_json: AsReport = False,
) -> None:
    """Train a confidence head on half of the people, test it on the other half, and write a report.

    The recogniser SFace and the ORL faces come from installed packages; nothing is downloaded. The report
    compares cosine and mutual likelihood score on clean and degraded pairs.
    """
    from spherecf.demo import demo as run_demo, show_tables
    from spherecf.models import FrozenBackbone

    result = run_demo(out, data, seed=seed, draws=draws, backbone=FrozenBackbone.default(device=device))
    show_tables(result.tables, console)
    for note in result.notes:
        print_text(note)
    if as_json:
        typer.echo(json.dumps([table.to_dict() for table in result.tables], indent=2))
    else:
        typer.echo(f"report: {result.files.html}")


DOCTOR_EXAMPLE = "Example: spherecf doctor"


def doctor(as_lines: AsLines = False) -> None:
    """Check the installation: packages, networks, model, a self-test on a face, optional extras, disk space.

    Prints one JSON line per check. Exits with 1 if a required check fails.
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


@key_app.command(epilog="Example: spherecf key make people.key")
def make(file: Annotated[Path, typer.Argument(help="Key file to create.")]) -> None:
    """Create a random key in a new file that only its owner can read.

    Anyone who has the key can read the data encrypted with it. Data whose key is lost cannot be recovered.
    Back up the key, separately from the data.
    """
    from spherecf.common.sealing import make_key

    print_text(f"{file}: created the key {make_key(file).id}")


@key_app.command(
    epilog="Example: spherecf --key-file=people.key key encrypt people.gallery faces.safetensors"
)
def encrypt(paths: Paths) -> None:
    """Encrypt files with the current key (`--key-file`).

    Each file is replaced atomically. After an interruption, run the same command again to continue. A
    gallery is rewritten, and its file contains no unencrypted remains. Erase backups yourself, and the disk
    blocks that held an unencrypted embeddings file.
    """
    _reseal(paths, None, _key_in_use(), "encrypted")


@key_app.command(epilog="Example: spherecf --key-file=people.key key decrypt people.gallery")
def decrypt(paths: Paths) -> None:
    """Decrypt files that are encrypted with the current key (`--key-file`)."""
    _reseal(paths, _key_in_use(), None, "decrypted")


@key_app.command(epilog="Example: spherecf --key-file=old.key key change people.gallery --to new.key")
def change(paths: Paths, to: Annotated[Path, typer.Option(help="New key file.", show_default=False)]) -> None:
    """Re-encrypt files from the current key (`--key-file`) to another key."""
    from spherecf.common.sealing import read_key

    _reseal(paths, _key_in_use(), read_key(to), "encrypted with the new key")


def use_key_file(path: Path | None) -> None:
    """Callback of --key-file: set the environment variable from which the library reads the key."""
    from spherecf.common.sealing import KEY_FILE

    if path is not None:
        os.environ[KEY_FILE] = str(path)


def _key_in_use() -> "Key":
    from spherecf.common.sealing import KEY_FILE, current_key

    key = current_key()
    if key is None:
        raise InputError(f"no key file given; set {KEY_FILE}, or use `spherecf --key-file=FILE ...`")
    return key


def _reseal(paths: list[Path], old_key: "Key | None", new_key: "Key | None", outcome: str) -> None:
    for path in paths:
        changed = _reseal_function(path)(path, old_key, new_key)
        print_text(f"{path}: {outcome}" if changed else f"{path}: already {outcome}")


def _reseal_function(path: Path) -> "Callable[[Path, Key | None, Key | None], bool]":
    from spherecf.common.files import SQLITE, describe_content
    from spherecf.embeddings import reseal_embeddings
    from spherecf.gallery import reseal_gallery

    return reseal_gallery if describe_content(path) == SQLITE else reseal_embeddings
