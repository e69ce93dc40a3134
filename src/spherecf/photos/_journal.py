"""What is already assessed: a file of JSON lines that grows photo by photo and outlives Ctrl-C."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from spherecf.common.parsing import checked, parse_json
from spherecf.errors import FileFormatError, InputError, StorageError
from spherecf.photos._files import PhotoFile

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
