"""Read text lines and tables, and hold image names compactly, without a Python object for each.

A name held this way takes the bytes of its UTF-8 form plus 8.
"""

import csv
import re
import warnings
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import index
from pathlib import Path
from pickle import PickleBuffer
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np
from jaxtyping import Int64
from numpy.typing import NDArray

from spherecf.common.files import describe_content
from spherecf.common.parsing import composed, is_number
from spherecf.errors import FileFormatError

SEPARATORS = ("\t", ",", ";", None)
"""Cell separators, in the order in which they are tried; None means white space."""

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_MAX_NAME_BYTES = 255  # of one part of a path, on all common file systems
UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, stripped line) of all lines that are not blank.

    Raises:
        FileFormatError: the file does not exist, or is not UTF-8 text.
    """
    return list(iter_lines(path))


def iter_lines(path: Path) -> Iterator[tuple[int, str]]:
    """`read_lines` one by one."""
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if text := line.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        raise _encoding_error(path) from error
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror}).") from error


def split_cells(line: str, separator: str | None) -> list[str]:
    """The cells of a line, stripped; an empty list if a quote is not closed.

    Example:
        >>> split_cells('"Lee, Ann/1.jpg",1', ","), split_cells("a b  c", None)
        (['Lee, Ann/1.jpg', '1'], ['a', 'b', 'c'])
    """
    if separator is None or separator == "\t":
        return [cell.strip() for cell in line.split(separator)]
    try:
        (cells,) = csv.reader([line], delimiter=separator, skipinitialspace=True, strict=True)
    except csv.Error:
        return []
    return [cell.strip() for cell in cells]


def check_name(path: Path, number: int, name: str) -> None:
    """Reject text that cannot be the path of an image on this machine.

    Raises:
        FileFormatError: it is empty, too long, contains a zero byte, or starts with a Windows drive letter.
    """
    if not name or "\0" in name:
        raise FileFormatError(path, f"line {number}: expected the path of an image, got {name[:80]!r}.")
    if name[1:2] == ":" and _DRIVE.match(name):
        raise FileFormatError(
            path,
            f"line {number}: {name[:80]!r} starts with a Windows drive letter.",
            "Write paths relative to the folder of the images, e.g. Ann/1.jpg.",
        )
    if len(name) * 4 <= _MAX_NAME_BYTES:  # the quick test for most names: a character takes up to 4 bytes
        return
    longest = max(len(part.encode("utf-8", "surrogateescape")) for part in re.split(r"[\\/]", name))
    if longest > _MAX_NAME_BYTES:
        raise FileFormatError(
            path,
            f"line {number}: a file or folder name of {longest} bytes, {name[:40]!r}...; the limit is 255.",
        )


def _encoding_error(path: Path) -> FileFormatError:
    """The error for a file that is not UTF-8, with the position of the first invalid byte."""
    position = 0
    with path.open("rb") as stream:
        for line in stream:
            if not position and line.startswith(UTF16):
                return FileFormatError(path, "expected UTF-8 text, but this is UTF-16.", "Save it as UTF-8.")
            if b"\0" in line:
                return FileFormatError(path, f"expected text, but this is {describe_content(path)}.")
            try:
                line.decode()
            except UnicodeDecodeError as error:
                position += error.start
                break
            position += len(line)
    return FileFormatError(
        path,
        f"expected UTF-8 text, but byte {position} is not valid UTF-8.",
        "If the file is Latin-1 (or cp1252), convert it: iconv -f CP1252 -t UTF-8 FILE.",
    )


_EXPECTED = {"O": "a name", "i": "a 32-bit whole number", "f": "a finite number"}


def read_table(
    path: Path, columns: Mapping[str, str], *, delimiter: str | None = None, header: bool = False
) -> NDArray[Any]:
    """Read a text table into a structured array; blank lines are ignored.

    Args:
        path: UTF-8 text, one row per line.
        columns: NumPy type of each column by name ("O" for names, "i4", "f4", ...); with a ``delimiter``
            these are the first columns, and others may follow.
        delimiter: ","; by default spaces or tabs, and no further columns.
        header: the first line names the columns.

    Raises:
        FileFormatError: with the number of the first line that does not fit, and what was expected there.
    """
    dtype = np.dtype(list(columns.items()))
    used = range(len(columns)) if delimiter else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "no data": reported below
            warnings.simplefilter("error", DeprecationWarning)  # older NumPy would read 2.5 as 2
            rows: NDArray[Any] = np.loadtxt(
                path, dtype, comments=None, ndmin=1, delimiter=delimiter, usecols=used,
                skiprows=_line(path, 0)[0] if header else 0, encoding="utf-8-sig",
            )  # fmt: skip
        finite = all(np.isfinite(rows[name]).all() for name in columns if dtype[name].kind == "f")
    except (ValueError, OSError):
        finite = False
    if not finite or (header and not _mismatch(_line(path, 0)[1], dtype, delimiter)):
        raise _table_error(path, dtype, delimiter, header)
    if not len(rows):
        raise FileFormatError(
            path, f"expected lines `{_format_text(dtype, delimiter)}`, but the file has none."
        )
    return rows


def line_number(path: Path, row: int, *, header: bool = False) -> int:
    """Line number in the file of row ``row`` of `read_table`."""
    return _line(path, row + int(header))[0]


def _line(path: Path, wanted_row: int) -> tuple[int, str]:
    for row, (number, line) in enumerate(iter_lines(path)):
        if row == wanted_row:
            return number, line
    return 0, ""


def _table_error(path: Path, dtype: np.dtype[Any], delimiter: str | None, header: bool) -> FileFormatError:
    """The error for the first line that does not fit, found line by line."""
    for position, (number, line) in enumerate(iter_lines(path)):
        if header and position == 0:
            if not _mismatch(line, dtype, delimiter):
                expected = f"a header line, then `{_format_text(dtype, delimiter)}`"
                return FileFormatError(path, f"line {number}: expected {expected}, got {line[:80]!r}.")
        elif reason := _mismatch(line, dtype, delimiter):
            return FileFormatError(
                path,
                f"line {number}: expected `{_format_text(dtype, delimiter)}`, got {line[:80]!r}: {reason}.",
            )
    return FileFormatError(path, "could not be parsed as a table.", "Is it plain text?")


def _mismatch(line: str, dtype: np.dtype[Any], delimiter: str | None) -> str:
    """Why the line is not a row of the table; empty if it is one."""
    names = list(dtype.names or ())
    fields = line.split(delimiter)
    if len(fields) < len(names) or (delimiter is None and len(fields) > len(names)):
        return f"{len(fields)} fields instead of {len(names)}"
    for name, field in zip(names, fields):
        kind = dtype[name]
        if kind.kind == "O":
            continue
        if not is_number(field):  # NumPy converts 1_000 here, but not in a table
            return f"{name} {field!r} is not {_EXPECTED[kind.kind]}"
        try:
            value = np.array(field.strip()).astype(kind)
        except (ValueError, OverflowError):
            return f"{name} {field!r} is not {_EXPECTED[kind.kind]}"
        if not np.isfinite(value):
            return f"{name} {field!r} is not {_EXPECTED[kind.kind]}"
    return ""


def _format_text(dtype: np.dtype[Any], delimiter: str | None) -> str:
    names = list(dtype.names or ())
    shown = names if len(names) < 8 else [*names[:2], "...", names[-1]]
    return (delimiter or " ").join(shown) + (f"{delimiter}..." if delimiter else "")


_KINDS = {"key": "image", "image": "image", "subject": "subject", "template": "template"}


class Groups(NamedTuple):
    """The group of each image, subject or template."""

    of: str
    """What is grouped: "image", "subject" or "template"."""
    groups: dict[str, str]
    """Group by name."""


def read_groups(path: str | Path) -> Groups:
    """Read lines ``name,group`` below a header that states what the names refer to.

    The header is ``image,group`` (or ``key,group``), ``subject,group`` or ``template,group``. Names may
    contain commas, since the last comma separates, and may be quoted. They are returned in composed Unicode
    form (NFC), those of images with slashes. Blank lines are ignored.

    Raises:
        FileFormatError: with the line number: an unknown header, a line without a comma, or a name in two
            groups.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "groups.csv"
        >>> _ = path.write_text("subject,group\\nAnn_Lee,A\\nBo_Ray,B\\n")
        >>> read_groups(path)
        Groups(of='subject', groups={'Ann_Lee': 'A', 'Bo_Ray': 'B'})
    """
    path = Path(path)
    kind, groups = "", dict[str, str]()
    for number, line in iter_lines(path):
        cells = split_cells(line, ",") if '"' in line else []
        name, group = cells if len(cells) == 2 else map(str.strip, line.rpartition(",")[::2])
        name = composed(name).replace("\\", "/") if kind == "image" else composed(name)
        if not kind:
            if name not in _KINDS or group != "group":
                raise FileFormatError(
                    path, f"line {number}: expected the header `image,group`, `subject,group` or "
                    f"`template,group`, got {line[:80]!r}."
                )  # fmt: skip
            kind = _KINDS[name]
        elif not name or not group:
            raise FileFormatError(path, f"line {number}: expected `{kind},group`, got {line[:80]!r}.")
        elif groups.setdefault(name, group) != group:
            raise FileFormatError(
                path,
                f"line {number}: {kind} {name!r} is in group {group!r} here and in {groups[name]!r} above.",
                "Keep one of the two lines.",
            )
    if not groups:
        raise FileFormatError(path, "expected a header and lines `image,group`, but the file has none.")
    return Groups(kind, groups)


class Keys(Sequence[str]):
    """An immutable sequence of strings, each created on access; equal to any sequence of the same strings.

    Slices are lists. Like a list, it is not hashable.

    Example:
        >>> from spherecf.data import orl_faces
        >>> keys = orl_faces().subset([0, 399]).keys
        >>> keys, keys[-1], keys == ["s1/1.pgm", "s9/9.pgm"]
        (Keys(2: 's1/1.pgm', ...), 's9/9.pgm', True)
    """

    __hash__ = None  # type: ignore[assignment]

    @abstractmethod
    def _get(self, row: int) -> str:
        """The key at ``row``, 0 <= row < len(self)."""

    @overload
    def __getitem__(self, row: SupportsIndex) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: SupportsIndex | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self._get(selected) for selected in range(*row.indices(len(self)))]
        position = index(row)
        position += len(self) * (position < 0)
        if not 0 <= position < len(self):
            raise IndexError(f"key {row} is out of range: there are {len(self)} keys")
        return self._get(position)

    def __iter__(self) -> Iterator[str]:
        return map(self._get, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(key == given for key, given in zip(self, other))

    def __repr__(self) -> str:
        return f"Keys({len(self)}: {', '.join(map(repr, self[:1]))}{', ...' * (len(self) > 1)})"


class NumberKeys(Keys):
    """Keys that are whole numbers, stored as integers.

    Example:
        >>> NumberKeys(np.arange(7, 9))[:]
        ['7', '8']
    """

    def __init__(self, numbers: Int64[np.ndarray, " n"]) -> None:
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def _get(self, row: int) -> str:
        return str(self._numbers.item(row))


class PackedKeys(Keys):
    """Any strings, stored as one block of UTF-8 and the offset of each end.

    Example:
        >>> PackedKeys(["ann/1.jpg", "bob/1.jpg"])[1]
        'bob/1.jpg'
    """

    def __init__(self, keys: Iterable[str]) -> None:
        blob, ends = bytearray(), array("q", [0])
        for key in keys:
            blob += key.encode("utf-8", "surrogateescape")
            ends.append(len(blob))
        self._blob, self._ends = bytes(blob), np.array(ends, np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _get(self, row: int) -> str:
        start, end = self._ends[row : row + 2].tolist()
        return str(self._blob[start:end], "utf-8", "surrogateescape")

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        if protocol < 5:
            return reduced
        kind, arguments, state = reduced[:3]
        # Out of band, so that processes can share the bytes of all names.
        return kind, arguments, {**state, "_blob": PickleBuffer(self._blob)}


class PickedKeys(Keys):
    """A selection of another sequence's keys.

    Example:
        >>> PickedKeys("abc", np.array([2, 0]))[:]
        ['c', 'a']
    """

    def __init__(self, keys: Sequence[str], rows: Int64[np.ndarray, " n"]) -> None:
        self._keys, self._rows = keys, rows

    def __len__(self) -> int:
        return len(self._rows)

    def _get(self, row: int) -> str:
        return self._keys[int(self._rows[row])]


def repeats(keys: Sequence[str]) -> list[tuple[int, int]]:
    """(row, first row) of every key that occurred at an earlier row; takes 8 bytes per key.

    Example:
        >>> repeats(["a", "b", "a"])
        [(2, 0)]
    """
    hashes = np.fromiter(map(hash, keys), np.int64, len(keys))
    ordered = np.sort(hashes)
    repeated_hashes = ordered[1:][ordered[1:] == ordered[:-1]]
    first: dict[str, int] = {}
    rows = np.flatnonzero(np.isin(hashes, repeated_hashes)).tolist() if len(repeated_hashes) else []
    return [(row, first[keys[row]]) for row in rows if first.setdefault(keys[row], row) != row]


def refuse_duplicates(keys: Sequence[str], where: Any) -> None:
    """Raise a `FileFormatError` that names the first few keys that occur more than once."""
    duplicates = list(dict.fromkeys(keys[row] for row, _ in repeats(keys)))
    if duplicates:
        raise FileFormatError(
            where,
            f"{len(duplicates)} keys occur more than once: {', '.join(duplicates[:3])}.",
            "Keys must be unique; remove the duplicates.",
        )


def read_keys(path: str | Path) -> list[str]:
    """Read keys from a text file, one per line; blank lines are ignored, backslashes become slashes.

    Raises:
        FileFormatError: the file does not exist, or is not UTF-8 text.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "names.txt"
        >>> _ = path.write_text("ann/1.jpg\\nbob 2.jpg\\n")
        >>> read_keys(path)
        ['ann/1.jpg', 'bob 2.jpg']
    """
    return [line.replace("\\", "/") for _, line in read_lines(Path(path))]
