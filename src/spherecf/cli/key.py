"""`spherecf key`: make a key; encrypt galleries and embeddings files, decrypt them, change their key."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spherecf.cli.output import print_text
from spherecf.errors import InputError

if TYPE_CHECKING:
    from spherecf.common.sealing import Key

app = typer.Typer(help="Encrypt galleries and embeddings files.", no_args_is_help=True)

Paths = Annotated[list[Path], typer.Argument(help="Galleries and embeddings files.")]


@app.callback()
def _root() -> None:
    pass


@app.command(epilog="Example: spherecf key make people.key")
def make(file: Annotated[Path, typer.Argument(help="File to write.")]) -> None:
    """Make a random key in a new file that its owner alone can read.

    Whoever has the key can read all that is encrypted with it, and without it nobody can: keep a copy in
    another place than the data.
    """
    from spherecf.common.sealing import make_key

    print_text(f"{file}: the key {make_key(file).id}")


@app.command(epilog="Example: spherecf --key-file=people.key key encrypt people.gallery faces.safetensors")
def encrypt(paths: Paths) -> None:
    """Encrypt files with the key in use; each is whole before or after, and the same command goes on.

    A gallery is written anew, so that its file holds nothing of before. The blocks that an embeddings file
    had before, and backups, are yours to erase.
    """
    _reseal(paths, None, _key_in_use(), "encrypted")


@app.command(epilog="Example: spherecf --key-file=people.key key decrypt people.gallery")
def decrypt(paths: Paths) -> None:
    """Decrypt files that are encrypted with the key in use."""
    _reseal(paths, _key_in_use(), None, "decrypted")


@app.command(epilog="Example: spherecf --key-file=old.key key change people.gallery --to new.key")
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
