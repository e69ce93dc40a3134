"""Small file helpers every room may use: hashes and writes that are whole or not there."""

import errno
import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from spherecf.errors import StorageError


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Call ``write(stream)`` on a temporary neighbour, flush it to disk, then rename it over ``path``.

    A reader sees the old file or the new one, never half of one, also after kill -9 or on a full disk. A
    device or a pipe is written to as it is.

    Raises:
        StorageError: the disk is full or not writable, or ``path`` is a folder; it is as it was before.
    """
    path = Path(path)
    if _is_device(path):
        try:
            with path.open("wb") as stream:
                write(stream)
        except OSError as error:
            raise StorageError(f"{path}: could not be written ({error.strerror or error})") from error
        return path
    temporary = _neighbour(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path}: could not be written ({error.strerror or error}); the previous file, if any, is "
            "unchanged. Free some space or choose another folder, then run the same command again."
        ) from error
    finally:
        with suppress(OSError):  # it was renamed, or never came to be
            temporary.unlink()
    return path


def check_destination(path: str | Path) -> None:
    """Refuse a file that `write_atomically` could not write, before the work that it is to hold.

    Raises:
        StorageError: ``path`` is a folder, a folder above it is none or not writable, or the name is too
            long.

    Example:
        >>> check_destination("/")
        Traceback (most recent call last):
        spherecf.errors.StorageError: /: is a folder; give the name of a file in it
    """
    path = Path(path)
    if _is_device(path):
        return
    try:
        with suppress(FileNotFoundError):
            _neighbour(path).stat()
        _check_folder(path.absolute().parent)
    except OSError as error:
        raise StorageError(
            f"{path}: could not be written ({error.strerror}); choose another name or folder"
        ) from error


def check_folder(path: str | Path) -> None:
    """`check_destination` for a folder of files to write, which may be missing.

    Raises:
        StorageError: it, or a folder above it, is no folder or not writable.
    """
    try:
        _check_folder(Path(path).absolute())
    except OSError as error:
        raise StorageError(
            f"{path}: nothing could be written there ({error.strerror}); choose another folder"
        ) from error


def _check_folder(folder: Path) -> None:
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"no right to write in {folder}")


def _is_device(path: Path) -> bool:
    if os.path.isdir(path):  # noqa: PTH112, pathlib's raises for a name that is too long
        raise StorageError(f"{path}: is a folder; give the name of a file in it")
    return os.path.exists(path) and not os.path.isfile(path)  # noqa: PTH110, PTH113, likewise


def _neighbour(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex}.part")
