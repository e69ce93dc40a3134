"""Find photo files, and keep a journal of those already assessed."""

import errno
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from spherecf.common.files import held, make_folder, sync_folder
from spherecf.common.parsing import checked, parse_json
from spherecf.errors import FileFormatError, InputError, StorageError

PHOTO_SUFFIXES = frozenset(
    (
        *(
            ".jpg",
            ".jpeg",
            ".jpe",
            ".jfif",
            ".png",
            ".apng",
            ".webp",
            ".tif",
            ".tiff",
            ".bmp",
            ".dib",
            ".gif",
        ),
        *(".pgm", ".ppm", ".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif"),
    )
)
"""File extensions of photos in folders; a file that is named explicitly is used whatever its extension."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class PhotoFile:
    """One file: its printable name, its path, and its path relative to the folder that was searched."""

    name: str
    path: Path
    below: Path


@dataclass
class PhotoFiles:
    """Photos in the order of the arguments, folders sorted by name; ignored files; unreadable folders."""

    photos: list[PhotoFile] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def find_photos(paths: Sequence[str | Path]) -> PhotoFiles:
    """The photos in files and folders, searched recursively; a file that occurs twice is listed once.

    Hidden entries (leading dot) of folders are ignored. A folder that cannot be read is listed with the
    reason. A named file that does not exist is kept; reading it reports the error.

    Example:
        >>> from spherecf.data import orl_faces
        >>> found = find_photos([orl_faces().root / "s1"])
        >>> len(found.photos), found.photos[0].below.as_posix()
        (10, 's1/1.pgm')
    """
    found, seen = PhotoFiles(), set()
    for given in map(Path, paths):
        is_folder = os.path.isdir(given)  # noqa: PTH112, pathlib's raises for a name that is too long
        files = _walk(given, found, ()) if is_folder else [given]
        above = given.resolve().parent if is_folder else None
        for path in files:
            key = os.path.normpath(path.absolute())
            if path is not given and path.suffix.lower() not in PHOTO_SUFFIXES:
                found.ignored.append(printable(path))
            elif key not in seen:
                seen.add(key)
                below = Path(path.name) if above is None else given.resolve().name / path.relative_to(given)
                found.photos.append(PhotoFile(printable(path), path, below))
    return found


def printable(path: Path) -> str:
    r"""The path as one line of printable text.

    Bytes that are not UTF-8, line breaks and control characters become escapes such as ``\\xff``.

    Example:
        >>> printable(Path(os.fsdecode(b"caf\\xe9.jpg")))
        'caf\\xe9.jpg'
        >>> printable(Path("two" + chr(10) + "lines.jpg"))
        'two\\nlines.jpg'
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _walk(folder: Path, found: PhotoFiles, above: tuple[Path, ...]) -> Iterator[Path]:
    try:
        real = folder.resolve()
        if real in above:  # a link to one of its parents would recurse forever
            return
        entries = sorted((entry.name, _is_folder(entry)) for entry in os.scandir(folder))
    except OSError as error:
        found.unreadable.append((printable(folder), error.strerror or str(error)))
        return
    for name, is_folder in entries:
        if name.startswith("."):
            continue
        if is_folder:
            yield from _walk(folder / name, found, (*above, real))
        else:
            yield folder / name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself or without permission: skip this entry only, not its folder
        return False


Key = tuple[str, int, int]
"""Path, size in bytes (-1: missing), modification time in nanoseconds."""

_START = b'{"path": "'
_SYNC_SECONDS, _UNSYNCED = 1.0, 1 << 20  # a sync costs a disk milliseconds; bytes that may lie between two


@dataclass
class _Line:
    path: str
    bytes: int
    mtime_ns: int
    maker: str
    record: dict[str, Any]


class Journal:
    """Assessments by path, size and modification time, for one model and one set of settings.

    Each line is written before the next photo begins: kill -9 costs none, a power cut those of the last
    second. An incomplete last line, and zeros that a power cut leaves, are dropped; lines by another model,
    or of a file that has changed since, are kept but ignored. In a ``with`` block no other process can write
    to it.

    Args:
        path: the file; created if missing.
        maker: fingerprint of model, detector and settings; records of another maker are ignored.

    Raises:
        FileFormatError: it is a file of another kind.
        StorageError: it cannot be read or created, or another process writes to it (in a ``with`` block).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "done.jsonl"
        >>> photo = PhotoFile("a.jpg", path, Path("a.jpg"))
        >>> with Journal(path, "model") as journal:
        ...     journal.add(photo, {"photo": "a.jpg"}, ("a.jpg", 10, 5))
        >>> Journal(path, "model").find(("a.jpg", 10, 5)), Journal(path, "other").find(("a.jpg", 10, 5))
        ({'photo': 'a.jpg'}, None)
    """

    def __init__(self, path: str | Path, maker: str) -> None:
        self.path, self.maker = Path(path), maker
        self._known: dict[Key, dict[str, Any]] = {}
        self._stream: FileIO | None = None
        self._held, self._read_bytes, self._synced = ExitStack(), 0, 0.0
        try:
            self._end = self._read() if self.path.exists() else 0
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def find(self, key: Key) -> dict[str, Any] | None:
        """The record of a photo that has not changed since it was assessed, or None."""
        return self._known.get(key)

    def add(self, photo: PhotoFile, record: dict[str, Any], key: Key) -> None:
        """Append one record.

        Raises:
            StorageError: the disk is full or not writable; earlier records are kept.
        """
        line = {"path": key[0], "bytes": key[1], "mtime_ns": key[2], "maker": self.maker, "record": record}
        try:
            if self._stream is None:
                make_folder(self.path.parent)
                self._stream = self.path.open("ab", buffering=0)
                self._stream.truncate(self._end)
                sync_folder(self.path.parent)
            text = json.dumps(line, allow_nan=False).encode() + b"\n"
            if self._stream.write(text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if time.monotonic() - self._synced > _SYNC_SECONDS:
                self._sync()
            self._end += len(text)
        except OSError as error:
            self._close()
            raise StorageError(
                f"{self.path}: could not be written ({error.strerror or error}) at {photo.name}; earlier "
                "assessments are kept. Free some space, then run the same command again."
            ) from error
        self._known[key] = record

    def __enter__(self) -> "Journal":
        self._held.enter_context(held(self.path, "the file of finished assessments"))
        if self.path.exists() and self.path.stat().st_size != self._read_bytes:
            self._end = self._read()  # another process was still writing
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._sync()
        except OSError as error:
            raise StorageError(f"{self.path}: could not be written ({error.strerror or error})") from error
        finally:
            self._close()
            self._held.close()

    def _sync(self) -> None:
        if self._stream is not None and self._stream.seekable():
            os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _read(self) -> int:
        """Fill ``_known``; return the length of the complete lines."""
        end, self._read_bytes = 0, self.path.stat().st_size
        with self.path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                # After a power cut, zeros may stand for what was not yet on the disk.
                begun, zeros = raw.rstrip(b"\0\n"), b"\0" in raw
                torn = not raw.endswith(b"\n") or (zeros and self._read_bytes - end < _UNSYNCED)
                ours = begun.startswith(_START) or _START.startswith(begun) or (zeros and number > 1)
                if torn and ours:
                    break
                try:
                    line = checked(_Line, parse_json(raw, self.path, "a record"), f"line {number}")
                except (FileFormatError, InputError) as error:
                    raise FileFormatError(
                        self.path, f"line {number} is not a record of `spherecf quality --resume`.",
                        "Choose another file.",
                    ) from error  # fmt: skip
                if line.maker == self.maker:
                    self._known[line.path, line.bytes, line.mtime_ns] = line.record
                end += len(raw)
        return end
