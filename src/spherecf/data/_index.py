"""The files beside a ``.rec``: its index, its property file and the names of its records."""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Int64

from spherecf.common.files import write_atomically
from spherecf.common.progress import progress
from spherecf.data._keys import PackedKeys, PickedKeys, refuse_duplicates
from spherecf.data._recordio import map_records, scan_records
from spherecf.data._text import iter_lines
from spherecf.errors import FileFormatError, InputError

_BLOCK = 1 << 20  # bytes of an index parsed at once
_SHOWN = 1 << 26  # bytes between two steps of the progress bar
_LARGEST = np.iinfo(np.int64).max


def read_index(path: Path, size: int) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """(record numbers in increasing order, their byte offsets), each offset inside a file of ``size`` bytes.

    Raises:
        FileFormatError: with the line or record, if the index is damaged, or of another file.
    """
    numbers, offsets = _parse(path)
    outside = np.flatnonzero((offsets < 0) | (offsets > size - 8) | (offsets % 4 != 0))
    if len(outside):
        row = outside[0]
        raise FileFormatError(
            path,
            f"record {numbers[row]}: offset {offsets[row]} is not a multiple of 4 within the {size} bytes of "
            f"{path.with_suffix('.rec').name} ({len(outside)} such records).",
            "The .rec is truncated or the index belongs to another file.",
        )
    if not _increases(numbers):
        order = np.argsort(numbers)
        numbers, offsets = numbers[order], offsets[order]
    for column, what in ((numbers, "record number"), (offsets, "offset")):
        ordered = column if _increases(column) else np.sort(column)
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(twice):
            raise FileFormatError(path, f"{what} {twice[0]} occurs more than once.")
    return numbers, offsets


def write_index(path: str | Path) -> Path:
    """Write the ``.idx`` of a ``.rec`` beside it, by walking from record to record.

    The numbers are those in the records' headers; where some are alike, as tools write that leave them 0, the
    records are counted from 0 in their order.

    Args:
        path: the ``.rec``, or the folder of ``train.rec``.

    Returns:
        Where the index is.

    Raises:
        InputError: there is an index already; move it away first.
        FileFormatError: the walk meets a byte where a record should start and none does.
        StorageError: the disk is full or not writable; nothing is left behind.

    Example:
        >>> import tempfile
        >>> from spherecf.data import orl_faces, write_records
        >>> path = write_records(orl_faces().subset(range(20)), f"{tempfile.mkdtemp()}/orl").path
        >>> index = path.with_suffix(".idx")
        >>> before = index.read_text()
        >>> index.unlink()
        >>> write_index(path).read_text() == before
        True
    """
    path = Path(path) / "train.rec" if Path(path).is_dir() else Path(path)
    index = path.with_suffix(".idx")
    if index.exists():
        raise InputError(f"{index}: exists, and nothing is overwritten; move it away first.")
    data, numbers, offsets, shown = map_records(path), array("Q"), array("Q"), 0
    with progress("indexing bytes", len(data)) as advance:
        for number, offset in scan_records(data, path):
            numbers.append(number)
            offsets.append(offset)
            if offset - shown > _SHOWN:
                advance(offset - shown)
                shown = offset
    if not numbers:
        raise FileFormatError(path, "expected records, the file holds none.")
    if len(np.unique(numbers)) < len(numbers) or max(numbers) >= _LARGEST:
        numbers = array("Q", range(len(offsets)))

    def write(stream: IO[bytes]) -> None:
        stream.writelines(b"%d\t%d\n" % line for line in zip(numbers, offsets))

    write_atomically(index, write)
    return index


def _increases(column: Int64[np.ndarray, " n"]) -> bool:
    return bool((column[1:] > column[:-1]).all())


def _parse(path: Path) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Both columns as they stand, block by block: neither the text nor a copy is ever held as a whole."""
    columns = array("q"), array("q")
    try:
        with path.open("rb") as stream:
            while text := stream.read(_BLOCK) + stream.readline():
                if text.isspace():
                    continue
                if text.translate(None, b"0123456789 \t\r\n"):
                    raise _bad_line(path)
                numbers = np.fromstring(text, np.int64, sep=" ")
                if len(numbers) % 2 or numbers.max() == _LARGEST:  # NumPy stops at the largest number
                    raise _bad_line(path)
                for place, column in enumerate(columns):
                    column.frombytes(numbers[place::2].tobytes())
    except OSError as error:
        raise FileFormatError(
            path,
            f"cannot read the index ({error.strerror}).",
            "It belongs beside the .rec; `spherecf data index FILE.rec` makes it from the records.",
        ) from error
    if not columns[0]:
        raise FileFormatError(path, "expected lines `number<TAB>offset`, the index is empty.")
    numbers, offsets = (np.frombuffer(column, np.int64) for column in columns)
    return numbers, offsets


def _bad_line(path: Path) -> FileFormatError:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            fields = line.split()
            if fields and (len(fields) != 2 or not all(field.isdigit() for field in fields)):
                line = line.rstrip(b"\r\n")
                return FileFormatError(
                    path, f"line {number}: expected `number<TAB>offset`, got {line[:60]!r}."
                )
            if any(int(field) >= _LARGEST for field in fields):
                return FileFormatError(path, f"line {number}: a number beyond all records, {line[:60]!r}.")
    return FileFormatError(path, "expected lines `number<TAB>offset`.")


def read_property(path: Path) -> tuple[tuple[int, int] | None, int | None]:
    """((height, width), identities) of the ``property`` file, (None, None) without one."""
    if not path.exists():
        return None, None
    text = path.read_bytes()[:200].decode("latin-1").strip()
    fields = [field.strip() for field in text.split(",")]
    if len(fields) != 3 or not all(field.isdecimal() and int(field) > 0 for field in fields):
        raise FileFormatError(path, f"expected `identities,height,width`, got {text[:60]!r}.")
    classes, height, width = map(int, fields)
    return (height, width), classes


def read_names(path: Path, numbers: Int64[np.ndarray, " n"]) -> Sequence[str]:
    """The name of each record, from lines ``record number<TAB>name`` in any order; the last one counts.

    Raises:
        FileFormatError: with the line; or records without name, or a name for two of them.
    """
    found = array("q")

    def names() -> Iterator[str]:
        for line_number, line in iter_lines(path):
            number, tab, name = line.partition("\t")
            if not tab or not name or not (number.isascii() and number.isdecimal() and len(number) < 19):
                raise FileFormatError(
                    path, f"line {line_number}: expected `record number<TAB>name`, got {line[:60]!r}."
                )
            found.append(int(number))
            yield name

    packed = PackedKeys(names())
    listed = np.array(found, np.int64)
    order = np.argsort(listed, kind="stable")
    places = np.searchsorted(listed, numbers, side="right", sorter=order) - 1
    rows = order[places] if len(order) else np.zeros(0, np.int64)
    missing = numbers[listed[rows] != numbers] if len(rows) else numbers
    if len(missing):
        raise FileFormatError(
            path,
            f"no name for {len(missing)} of {len(numbers)} records, among them {missing[:3].tolist()}.",
        )
    keys = packed if np.array_equal(rows, np.arange(len(packed))) else PickedKeys(packed, rows)
    refuse_duplicates(keys, path)
    return keys
