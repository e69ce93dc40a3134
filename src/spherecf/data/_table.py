"""Text tables of millions of lines: parsed at once by NumPy, and by the line where something is wrong."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.data._text import iter_lines
from spherecf.errors import FileFormatError

_EXPECTED = {"O": "a name", "i": "a whole number of 32 bits", "f": "a finite number"}


def read_table(
    path: Path, columns: Mapping[str, str], *, delimiter: str | None = None, header: bool = False
) -> NDArray[Any]:
    """A text table as a structured array; blank lines do not count.

    Args:
        path: UTF-8 text, one row per line.
        columns: name to NumPy type ("O" for names, "i4", "f4", ...); of comma-separated files the first ones.
        delimiter: "," where more columns may follow, default: blanks or tabs and nothing more.
        header: the first line names the columns.

    Raises:
        FileFormatError: with the number of the first line that does not fit, and what was expected there.
    """
    dtype = np.dtype(list(columns.items()))
    few = range(len(columns)) if delimiter else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "no data": told below
            rows: NDArray[Any] = np.loadtxt(
                path, dtype, comments=None, ndmin=1, delimiter=delimiter, usecols=few, skiprows=int(header),
                encoding="utf-8-sig",
            )  # fmt: skip
        finite = all(np.isfinite(rows[name]).all() for name in columns if dtype[name].kind == "f")
    except (ValueError, OSError):
        finite = False
    if not finite or (header and _is_row(_line(path, 0)[1], dtype, delimiter)):
        raise _complaint(path, dtype, delimiter, header)
    if not len(rows):
        raise FileFormatError(path, f"expected lines `{_form(dtype, delimiter)}`, the file has none.")
    return rows


def line_number(path: Path, row: int, *, header: bool = False) -> int:
    """Which line of the file row ``row`` of `read_table` is."""
    return _line(path, row + int(header))[0]


def _line(path: Path, place: int) -> tuple[int, str]:
    for position, (number, line) in enumerate(iter_lines(path)):
        if position == place:
            return number, line
    return 0, ""


def _complaint(path: Path, dtype: np.dtype[Any], delimiter: str | None, header: bool) -> FileFormatError:
    """The first line that does not fit, found line by line."""
    for position, (number, line) in enumerate(iter_lines(path)):
        if header and position == 0:
            if _is_row(line, dtype, delimiter):
                expected = f"a header line, then `{_form(dtype, delimiter)}`"
                return FileFormatError(path, f"line {number}: expected {expected}, got {line[:80]!r}.")
        elif reason := _misfit(line, dtype, delimiter):
            return FileFormatError(
                path, f"line {number}: expected `{_form(dtype, delimiter)}`, got {line[:80]!r}: {reason}."
            )
    return FileFormatError(path, "could not be parsed as a table.", "Is it plain text?")


def _is_row(line: str, dtype: np.dtype[Any], delimiter: str | None) -> bool:
    return not _misfit(line, dtype, delimiter)


def _misfit(line: str, dtype: np.dtype[Any], delimiter: str | None) -> str:
    """Why the line is no row, empty if it is one."""
    names = list(dtype.names or ())
    fields = line.split(delimiter)
    if len(fields) < len(names) or (delimiter is None and len(fields) > len(names)):
        return f"{len(fields)} fields instead of {len(names)}"
    for name, field in zip(names, fields):
        kind = dtype[name]
        if kind.kind == "O":
            continue
        try:
            value = np.array(field.strip()).astype(kind)
        except (ValueError, OverflowError):
            return f"{name} {field!r} is not {_EXPECTED[kind.kind]}"
        if not np.isfinite(value):
            return f"{name} {field!r} is not {_EXPECTED[kind.kind]}"
    return ""


def _form(dtype: np.dtype[Any], delimiter: str | None) -> str:
    names = list(dtype.names or ())
    shown = names if len(names) < 8 else [*names[:2], "...", names[-1]]
    return (delimiter or " ").join(shown) + (f"{delimiter}..." if delimiter else "")
