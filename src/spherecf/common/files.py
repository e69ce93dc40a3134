"""Small file helpers: what a file is, hashes, and writes that are whole or not there."""

import errno
import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO
from uuid import uuid4
from zipfile import ZipFile

from spherecf.errors import StorageError

_HEAD = 512  # bytes that tell what a file is
_SHOWN = 40  # characters quoted of a file that no pattern below knows

NUMPY, SAFETENSORS, TORCH = "a NumPy array (.npy)", "a safetensors file", "a torch file"
SQLITE = "an SQLite database, as a gallery is"
OLD_TORCH, TORCHSCRIPT = "a torch file of the format before 1.6", "a TorchScript archive (torch.jit.save)"

# What comes where another file was expected, by its first bytes, with what to do where there is one answer.
_CONTENTS = {
    rb".{4}\x00{4}\{[\s\"}]": SAFETENSORS,  # first: its length may begin like anything below
    rb"spherecf\.sealed": "an encrypted file of SphereCF: `spherecf key decrypt` decrypts it",
    rb"version https://git-lfs\.": "a Git LFS pointer, not the file itself: run `git lfs pull`",
    rb"(<!--.*?-->\s*)?<(!doctype html|html|head|body|title)": "an HTML page: download the file itself",
    rb"(<\?xml[^>]*>\s*)?<(Error|AccessDenied)\b": "an error message of a file server: download it again",
    rb"<\?xml": "an XML text",
    rb"[{\[]\s*[\"{\[\d}\]]": "a JSON text",
    rb"\x1f\x8b": "a gzip archive: unpack it first",
    rb"BZh[1-9]": "a bzip2 archive: unpack it first",
    rb"\xfd7zXZ\x00": "an xz archive: unpack it first",
    rb"\x28\xb5\x2f\xfd": "a zstd archive: unpack it first",
    rb"PK\x05\x06": "an empty zip archive",
    rb"SQLite format 3\x00": SQLITE,
    rb"7z\xbc\xaf\x27\x1c": "a 7z archive: unpack it first",
    rb"Rar!\x1a\x07": "a RAR archive: unpack it first",
    rb".{257}ustar": "a tar archive: unpack it first",
    rb"\x93NUMPY": NUMPY,
    rb"\x89HDF\r\n": "an HDF5 file, as Keras and MATLAB write",
    rb"MATLAB 5": "a MATLAB file",
    rb".{4}TFL3": "a TensorFlow Lite model",
    rb"\x12\x01\x00{6}": "parameters of MXNet (.params): convert the model to ONNX",
    rb"\x0a\x23\xd7\xce": "a RecordIO file (.rec)",
    rb"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9": OLD_TORCH,
    rb"\x80[\x02-\x05]": "a pickle",
    rb"\x08[\x01-\x1f][\x12\x1a\x22\x28\x32\x3a\x42]": "an ONNX model",
    rb"\xff\xd8\xff": "a JPEG picture",
    rb"\x89PNG": "a PNG picture",
    rb"%PDF": "a PDF document",
    rb"\x7fELF": "a program",
}


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes, read in blocks."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def describe_content(path: str | Path) -> str:
    """What a file is by its first bytes, for the message that it is not what was expected; never raises.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "backbone.pth"
        >>> _ = path.write_text("<!DOCTYPE html><html>Sign in</html>")
        >>> describe_content(path)
        'an HTML page: download the file itself'
    """
    path = Path(path)
    try:
        if path.is_dir():
            return "a folder"
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
        if head.startswith(b"PK\x03\x04"):
            return _describe_zip(path)
    except OSError as error:
        return f"not readable ({error.strerror or error})"
    if not head.strip(b"\x00"):
        return "a file of zero bytes alone" if head else "an empty file"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, name in _CONTENTS.items():
        if any(re.match(pattern, start, re.DOTALL | re.IGNORECASE) for start in (head, text)):
            return name
    return _quote(head)


def _describe_zip(path: Path) -> str:
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # of zipfile: its own, and whatever a wrong length or name leads to
        return "a zip archive, as torch writes too, that is cut short or damaged: download it again"
    if any(name.endswith("/data.pkl") for name in names):
        script = any("/code/" in name for name in names)
        return TORCHSCRIPT if script else TORCH
    if any(name.endswith(("archive_format", "serialized_exported_program.json")) for name in names):
        return "an exported program (torch.export.save)"
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz)"
    return f"a zip archive of {len(names)} files ({', '.join(names)[:_SHOWN]}...): unpack it first"


def _quote(head: bytes) -> str:
    text = head[:_SHOWN].decode("utf-8", errors="ignore")
    if text.isprintable() or text.replace("\n", " ").replace("\t", " ").replace("\r", " ").isprintable():
        return f"a text beginning with {text!r}"
    return f"a file beginning with the bytes {head[:8].hex(' ')}"


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
