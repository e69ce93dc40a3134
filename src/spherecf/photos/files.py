"""Find photo files, and keep a journal of assessed photos."""

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

from spherecf.common.files import locked, make_folder, sync_folder
from spherecf.common.parsing import checked, parse_json
from spherecf.errors import FileFormatError, InputError, StorageError

PHOTO_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".pgm", ".ppm", ".pbm", ".pnm", ".jp2", ".avif", ".heic", ".heif",
))  # fmt: skip
"""File extensions of photos in folders. A file that is named explicitly may have any extension."""

_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class PhotoFile:
    """A photo: its printable name, its path, and its path relative to the parent of the searched folder."""

    name: str
    path: Path
    below: Path


@dataclass
class PhotoFiles:
    """Result of `find_photos`.

    Attributes:
        photos: photos in the order of the arguments; the content of folders is sorted by name.
        ignored: files in folders that are not photos by their extension.
        unreadable: folders that cannot be read, with the reason.
    """

    photos: list[PhotoFile] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def find_photos(paths: str | Path | Sequence[str | Path]) -> PhotoFiles:
    """Find the photos among files and in folders, recursively. A file that occurs twice is listed once.
    A single path need not be in a list.

    Hidden entries of folders (with a leading dot) are skipped. Folders that cannot be read are listed with
    the reason. A file that is named explicitly is listed even if it does not exist; reading it then reports
    the error.

    Example:
        >>> from spherecf.data import orl_faces
        >>> files = find_photos(orl_faces().root / "s1")
        >>> len(files.photos), files.photos[0].below.as_posix()
        (10, 's1/1.pgm')
    """
    if isinstance(paths, str | Path):  # its characters would be paths, and "/" the whole disk
        paths = [paths]
    result, seen = PhotoFiles(), set()
    for argument in map(Path, paths):
        is_folder = os.path.isdir(argument)  # noqa: PTH112, pathlib's raises for a name that is too long
        for path in _walk(argument, result, ()) if is_folder else [argument]:
            key = os.path.normpath(path.absolute())
            if path is not argument and path.suffix.lower() not in PHOTO_SUFFIXES:
                result.ignored.append(printable(path))
            elif key not in seen:
                seen.add(key)
                below = Path(path.name)
                if is_folder:
                    below = argument.resolve().name / path.relative_to(argument)
                result.photos.append(PhotoFile(printable(path), path, below))
    return result


def printable(path: Path) -> str:
    r"""Return the path as one line of printable text.

    Bytes that are not UTF-8, line breaks and control characters become escapes such as ``\\xff``.

    Example:
        >>> printable(Path(os.fsdecode(b"caf\\xe9.jpg")))
        'caf\\xe9.jpg'
        >>> printable(Path("two" + chr(10) + "lines.jpg"))
        'two\\nlines.jpg'
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return _CONTROL_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _walk(folder: Path, result: PhotoFiles, parents: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files below a folder; unreadable folders are added to ``result``."""
    try:
        resolved = folder.resolve()
        if resolved in parents:  # a link to a parent folder would recurse forever
            return
        entries = sorted((entry.name, _is_folder(entry)) for entry in os.scandir(folder))
    except OSError as error:
        result.unreadable.append((printable(folder), error.strerror or str(error)))
        return
    for name, is_folder in entries:
        if name.startswith("."):
            continue
        if is_folder:
            yield from _walk(folder / name, result, (*parents, resolved))
        else:
            yield folder / name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, or no permission: skip this entry, but not the whole folder
        return False


Key = tuple[str, int, int]
"""Path, size in bytes (-1: missing), modification time in nanoseconds."""

_LINE_PREFIX = b'{"path": "'
_SYNC_SECONDS = 1.0  # interval between syncs, since each takes a disk some milliseconds
_MAX_UNSYNCED_BYTES = 1 << 20  # upper bound on the bytes written between two syncs


@dataclass
class _Line:
    path: str
    bytes: int
    mtime_ns: int
    maker: str
    record: dict[str, Any]


class Journal:
    """File of assessments by path, size and modification time, for one model and one set of settings.

    Each line is written before the next photo is assessed, so no record is lost if the process is killed; a
    power cut loses those of the last second. When the file is read, an incomplete last line and zeros left by
    a power cut are dropped. Lines from another model or for a file that has changed are kept but ignored. A
    ``with`` block locks the file against writes by other processes.

    Args:
        path: file of the journal; created if missing.
        maker: fingerprint of model, detector and settings; records of another maker are ignored.

    Raises:
        FileFormatError: the file is not a journal.
        StorageError: the file cannot be read or created, or another process is writing to it (on entering a
            ``with`` block).

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
        self._records: dict[Key, dict[str, Any]] = {}
        self._stream: FileIO | None = None
        self._lock = ExitStack()
        self._size_when_read, self._last_sync = 0, 0.0
        try:
            self._end = self._read() if self.path.exists() else 0  # length of the complete lines, in bytes
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def find(self, key: Key) -> dict[str, Any] | None:
        """The record of a photo that has not changed since it was assessed; None if there is none."""
        return self._records.get(key)

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
            if time.monotonic() - self._last_sync > _SYNC_SECONDS:
                self._sync()
            self._end += len(text)
        except OSError as error:
            self._close()
            raise StorageError(
                f"{self.path}: could not be written ({error.strerror or error}) at {photo.name}; earlier "
                "assessments are kept. Free some disk space, then run the same command again."
            ) from error
        self._records[key] = record

    def __enter__(self) -> "Journal":
        self._lock.enter_context(locked(self.path, "the file of finished assessments"))
        if self.path.exists() and self.path.stat().st_size != self._size_when_read:
            self._end = self._read()  # another process has written to it since
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._sync()
        except OSError as error:
            raise StorageError(f"{self.path}: could not be written ({error.strerror or error})") from error
        finally:
            self._close()
            self._lock.close()

    def _sync(self) -> None:
        if self._stream is not None and self._stream.seekable():
            os.fsync(self._stream.fileno())
        self._last_sync = time.monotonic()

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def _read(self) -> int:
        """Read the records, and return the length of the complete lines in bytes."""
        end, self._size_when_read = 0, self.path.stat().st_size
        with self.path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                # After a power cut, zeros may replace bytes that had not yet reached the disk.
                start, has_zeros = raw.rstrip(b"\0\n"), b"\0" in raw
                unsynced = self._size_when_read - end < _MAX_UNSYNCED_BYTES
                incomplete = not raw.endswith(b"\n") or (has_zeros and unsynced)
                is_record = (
                    start.startswith(_LINE_PREFIX)
                    or _LINE_PREFIX.startswith(start)
                    or (has_zeros and number > 1)
                )
                if incomplete and is_record:
                    break
                try:
                    line = checked(_Line, parse_json(raw, self.path, "a record"), f"line {number}")
                except (FileFormatError, InputError) as error:
                    raise FileFormatError(
                        self.path, f"line {number} is not a record of `spherecf quality --resume`.",
                        "Choose another file.",
                    ) from error  # fmt: skip
                if line.maker == self.maker:
                    self._records[line.path, line.bytes, line.mtime_ns] = line.record
                end += len(raw)
        return end
