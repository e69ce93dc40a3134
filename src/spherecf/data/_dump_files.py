"""What other tools dump, as arrays: .npy and .npz without unpickling, and text lines of MagFace."""

import io
import math
import re
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from spherecf.common.files import describe_content
from spherecf.common.names import has_image_suffix, is_number, is_whole
from spherecf.common.parsing import reading
from spherecf.data._text import SEPARATORS, iter_lines, split_cells
from spherecf.errors import FileFormatError

_READ = (
    "Read are .npy, .npz, and text lines `image f1 f2 ...` (feat.list of MagFace, .csv); pickles are not "
    "opened."
)
_HEADER = 10_000  # bytes: what NumPy reads at most


def load_npy(path: Path) -> NDArray[Any]:
    """The array of a .npy, mapped.

    Raises:
        FileFormatError: damaged, truncated, more than one array, or pickled.
    """
    with path.open("rb") as stream:
        shape, order, dtype, start = _header(path, stream.read(_HEADER), path.name, path.stat().st_size)
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    with reading(path, "an array"):
        return np.memmap(path, dtype, "r", start, shape, order)


def load_npz(path: Path, names: Mapping[str, Sequence[str]]) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz by our name, where ``names`` tells what others call it.

    Raises:
        FileFormatError: no such archive, several arrays of one meaning, damaged or pickled ones.
    """
    with reading(path, "a .npz", "Write it again, with numpy.savez."):
        archive = ZipFile(path)
    with archive:
        members = [info.filename for info in archive.infolist()]
        arrays: dict[str, NDArray[Any]] = {}
        for ours, theirs in names.items():
            known = [member for member in members if member.removesuffix(".npy").lower() in theirs]
            if len(known) > 1:
                shown = [member.removesuffix(".npy") for member in known]
                raise FileFormatError(path, f"{shown} could all be the {ours}.", "Keep one of them.")
            for member in known:
                with reading(path, f"a .npz (array {member!r})", "Write it again, with numpy.savez."):
                    arrays[ours] = _member(path, archive, member)
    if "features" not in arrays:
        expected, held = (
            ", ".join(names["features"]),
            sorted(member.removesuffix(".npy") for member in members),
        )
        raise FileFormatError(path, f"expected an array called {expected}; it holds {held[:20]}.")
    return arrays


def load_text(path: Path, keyed: bool) -> dict[str, NDArray[Any]]:
    """``features`` and, unless the rows have none, ``keys`` of lines ``image f1 f2 ...``.

    Args:
        path: UTF-8 text; tabs, commas, semicolons or blanks separate. A header must number the features.
        keyed: the keys come from elsewhere, and a row may be features alone.

    Raises:
        FileFormatError: no such text, or with the line that does not fit.
    """
    separator, first, width = _form(path)
    names, values = list[str](), array("f")
    for number, line in iter_lines(path):
        if number < first:
            continue
        cells = split_cells(line, separator)
        if len(cells) != width:
            raise FileFormatError(
                path, f"line {number}: {len(cells)} cells, but {width} on line {first}.",
                "Names with blanks need tabs or commas.",
            )  # fmt: skip
        names.append(cells[0])
        try:
            values.extend(map(float, cells[1:]))
        except ValueError as error:
            raise FileFormatError(path, f"line {number}: expected `image f1 f2 ...` ({error}).") from error
    features = np.frombuffer(values, np.float32).reshape(len(names), width - 1)
    if not all(map(is_number, names)):
        return {"features": features, "keys": np.array(names)}
    whole = all(map(is_whole, names)) and len({*names}) == len(names)
    if keyed and whole and len(names) > 1:
        raise FileFormatError(
            path, "the first numbers of its lines could be names of images or features.",
            "Leave the keys away, or take the first column out.",
        )  # fmt: skip
    if whole and not keyed:
        return {"features": features, "keys": np.array(names)}
    return {"features": np.column_stack([np.array(names, np.float32), features])}


def describe_dump(path: Path) -> FileFormatError:
    """The refusal of a file that is no dump."""
    return FileFormatError(path, f"expected features, this is {describe_content(path)}.", _READ)


def _form(path: Path) -> tuple[str | None, int, int]:
    """(separator, number of the first line behind a header, number of cells)."""
    number, line = next(iter_lines(path), (0, ""))
    for separator in SEPARATORS:
        cells = split_cells(line, separator)
        if len(cells) < 3:
            continue
        if _is_header(cells):
            return separator, number + 1, len(cells)
        if all(map(is_number, cells[1:])):
            return separator, number, len(cells)
    raise describe_dump(path)


def _is_header(cells: Sequence[str]) -> bool:
    """Whether the cells behind the first one are numbered: f0, f1, ..., or 0, 1, ..."""
    matches = [re.fullmatch(r"(\D*[A-Za-z_ ]\D*|)(\d{1,9})", cell) for cell in cells[1:]]
    words = {match[1] for match in matches if match}
    numbers = [int(match[2]) for match in matches if match]
    in_order = numbers in ([*range(len(matches))], [*range(1, len(matches) + 1)])
    return len(words) == 1 and in_order and not is_number(cells[0]) and not has_image_suffix(cells[0])


def _member(path: Path, archive: ZipFile, member: str) -> NDArray[Any]:
    content = archive.read(member)
    shape, order, dtype, start = _header(path, content[:_HEADER], member, len(content))
    return np.frombuffer(content, dtype, offset=start).reshape(shape, order=order)


def _header(
    path: Path, head: bytes, name: str, size: int
) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any], int]:
    """Shape, order, dtype and place of an array, checked against the bytes that there are."""
    width = 2 if head[6:7] == b"\1" else 4
    start = 8 + width + int.from_bytes(head[8 : 8 + width], "little")
    if head[:6] != b"\x93NUMPY" or start > len(head):  # NumPy's advice on long headers is to trust the file
        raise FileFormatError(path, f"{name}: not readable as a .npy: no header of its kind.", _READ)
    with reading(path, f"a .npy ({name})", "Write it again, with numpy.save."):
        header = io.BytesIO(head)
        version = np.lib.format.read_magic(header)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(header)
    if dtype.hasobject:
        raise FileFormatError(
            path, f"{name}: an array of Python objects is pickled, and pickles are not opened.",
            "Save names as strings: numpy.savez(..., names=numpy.array(names, dtype=str)).",
        )  # fmt: skip
    promised, there = math.prod(shape) * dtype.itemsize, size - start
    if promised != there or min(shape, default=0) < 0:
        raise FileFormatError(
            path, f"{name}: not readable as a .npy: {dtype} of shape {shape} takes {promised} bytes, {there} "
            "are there.", "It is truncated, or several arrays were saved into one file.",
        )  # fmt: skip
    return shape, "F" if fortran else "C", dtype, start
