"""Small file helpers every room may use: hashes and writes that are whole or not there."""

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

    A reader sees the old file or the new one, never half of one, also after kill -9 or on a full disk.

    Raises:
        StorageError: the disk is full or not writable; ``path`` is as it was before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
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
