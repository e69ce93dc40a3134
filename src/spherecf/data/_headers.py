"""Labels out of the headers of many records at once: no Python object per record, no content touched."""

import math
from mmap import mmap
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from spherecf.data._recordio import MAGIC, read_record
from spherecf.errors import FileFormatError

_BLOCK = 65536  # records looked at at once
_HEADER, _LISTED = 24, 8  # bytes of a header; 32-bit words from a record's start to its listed labels


def is_count(value: float) -> bool:
    """A whole number, 0 or more."""
    return math.isfinite(value) and value >= 0 and value == int(value)


def read_labels(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Int64[np.ndarray, " n"]:
    """The label of each record, the first one where several are listed.

    Raises:
        FileFormatError: a record is damaged, or its label is no whole number from 0 on; with its byte.
    """
    labels = np.empty(len(offsets), np.int64)
    for start in range(0, len(offsets), _BLOCK):
        part = offsets[start : start + _BLOCK]
        found = _first_labels(data, part, path)
        with np.errstate(invalid="ignore"):
            bad = np.flatnonzero(~((found >= 0) & (found == np.floor(found)) & (found < 2**62)))
        if len(bad):
            raise FileFormatError(
                path,
                f"record at byte {part[bad[0]]}: expected a whole number as label, got {found[bad[0]]}.",
            )
        labels[start : start + len(part)] = found
    return labels


def read_ranges(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Int64[np.ndarray, "n 2"]:
    """(first image, one past the last) of each identity record.

    Raises:
        FileFormatError: a record is damaged, or holds anything but two record numbers; with its byte.
    """
    ranges = np.empty((len(offsets), 2), np.int64)
    for row, offset in enumerate(offsets.tolist()):
        labels = read_record(data, offset, path).labels
        if len(labels) != 2 or not all(map(is_count, labels)):
            raise FileFormatError(path, f"identity record at byte {offset}: expected a range, got {labels}.")
        ranges[row] = labels
    return ranges


def _first_labels(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Float32[np.ndarray, " n"]:
    words = np.frombuffer(data, "<u4", len(data) // 4)
    at = offsets // 4
    whole = at + _LISTED < len(words)
    at = np.where(whole, at, 0)
    length, flag = words[at + 1].astype(np.int64), words[at + 2].astype(np.int64)
    whole &= (words[at] == MAGIC) & (length >> 29 == 0) & (offsets + 8 + length <= len(data))
    whole &= length >= _HEADER + 4 * flag
    found: Float32[np.ndarray, " n"] = words[at + np.where(flag > 0, _LISTED, 3)].view("<f4")
    for row in np.flatnonzero(~whole).tolist():  # split, at the very end, or damaged: one by one
        found[row] = read_record(data, int(offsets[row]), path).labels[0]
    return found
