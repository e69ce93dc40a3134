"""Which files are photos, and which of them are already assessed."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

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
"""Endings that make a file in a folder a photo; a file that is named itself is taken whatever its ending."""

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class PhotoFile:
    """One file: what to call it, where it lies, and its path below the folder that was named."""

    name: str
    path: Path
    below: Path


@dataclass
class PhotoFiles:
    """In the order of the arguments, folders by name; ``ignored`` other files, ``unreadable`` folders."""

    photos: list[PhotoFile] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)


def find_photos(paths: Sequence[str | Path]) -> PhotoFiles:
    """The photos that paths name, folders with all below them; a file named twice is taken once.

    Names that start with a dot are left out of folders. A folder that cannot be read is listed with the
    reason. A named file that does not exist is kept: reading it will say so.

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
    r"""The path as one line of text that can be written anywhere.

    Bytes that are no UTF-8 become ``\\xff``, and so do signs that break a line or steer a terminal.

    Example:
        >>> printable(Path(os.fsdecode(b"caf\\xe9.jpg")))
        'caf\\xe9.jpg'
        >>> printable(Path("two" + chr(10) + "lines.jpg"))
        'two\\nlines.jpg'
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return _CONTROLS.sub(lambda sign: sign[0].encode("unicode_escape").decode(), text)


def _walk(folder: Path, found: PhotoFiles, above: tuple[Path, ...]) -> Iterator[Path]:
    try:
        real = folder.resolve()
        if real in above:  # a link to a folder above itself would never end
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
    except OSError:  # a link to itself, or to where we may not look: this entry only, not the folder it is in
        return False


Key = tuple[str, int, int]
"""Path, size in bytes (-1: not there), time of change in nanoseconds."""

_START = b'{"path": "'


@dataclass
class _Line:
    path: str
    bytes: int
    mtime_ns: int
    maker: str
    record: dict[str, Any]


class Journal:
    """Records by path, size and time of change, made by one model with one setting.

    A line is on disk before the next photo begins. A last line that is not whole, after kill -9 or on a full
    disk, is dropped; lines by another model, or of a file that has changed since, stay but do not count.

    Args:
        path: the file; made where there is none.
        maker: names model, detector and settings: records of another maker are not used.

    Raises:
        FileFormatError: the file holds something else.
        StorageError: it cannot be read or made.

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
        self._stream: IO[bytes] | None = None
        try:
            self._end = self._read() if self.path.exists() else 0
        except OSError as error:
            raise StorageError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def find(self, key: Key) -> dict[str, Any] | None:
        """The record of a photo that has not changed since, or None."""
        return self._known.get(key)

    def add(self, photo: PhotoFile, record: dict[str, Any], key: Key) -> None:
        """Append one record.

        Raises:
            StorageError: the disk is full or not writable; what was added before is kept.
        """
        line = {"path": key[0], "bytes": key[1], "mtime_ns": key[2], "maker": self.maker, "record": record}
        try:
            if self._stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self.path.open("ab")
                self._stream.truncate(self._end)
            self._stream.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._stream.flush()
        except OSError as error:
            self._stream = None
            raise StorageError(
                f"{self.path}: could not be written ({error.strerror or error}) at {photo.name}; what was "
                "assessed before is kept. Free some space, then run the same command again."
            ) from error
        self._known[key] = record

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream is not None:
            self._stream.close()

    def _read(self) -> int:
        """Fill ``_known``; the length of what is whole."""
        end = 0
        with self.path.open("rb") as stream:
            for number, raw in enumerate(stream, 1):
                if not raw.endswith(b"\n") and (raw.startswith(_START) or _START.startswith(raw)):
                    break  # torn
                try:
                    line = checked(_Line, parse_json(raw, self.path, "a record"), f"line {number}")
                except (FileFormatError, InputError) as error:
                    raise FileFormatError(
                        self.path, f"line {number} is no record of `spherecf quality --resume`.",
                        "Choose another file.",
                    ) from error  # fmt: skip
                if line.maker == self.maker:
                    self._known[line.path, line.bytes, line.mtime_ns] = line.record
                end += len(raw)
        return end
