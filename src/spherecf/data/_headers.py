"""Headers of many records at once: no Python object per record, no content touched."""

from collections.abc import Iterator
from mmap import mmap
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt32

from spherecf.data._recordio import MAGIC, read_record
from spherecf.errors import FileFormatError

_BLOCK = 65536  # records looked at at once
_FRAME, _HEADER = 8, 24  # bytes
_LISTED = 8  # 32-bit words from a record's start to its listed labels
LARGEST = 2.0**62  # beyond all record numbers
EXACT = 1 << 24  # float32 holds every whole number up to here


def read_labels(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Int64[np.ndarray, " n"]:
    """The label of each record, the first one where several are listed.

    Raises:
        FileFormatError: a record is damaged, or its label is no whole number from 0 to 2^24; with its byte.
    """
    labels = np.empty(len(offsets), np.int64)
    for start, part in _blocks(offsets):
        found = _first_labels(data, part, path)
        with np.errstate(invalid="ignore"):
            bad = np.flatnonzero(~((found >= 0) & (found == np.floor(found)) & (found <= EXACT)))
        if len(bad):
            raise FileFormatError(
                path,
                f"record at byte {part[bad[0]]}: expected a whole number as label (0 to {EXACT}, up to which "
                f"float32 is exact), got {found[bad[0]]}.",
            )
        labels[start : start + len(part)] = found
    return labels


def read_ranges(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Int64[np.ndarray, "n 2"]:
    """(first image, one past the last) of each identity record."""
    ranges = np.empty((len(offsets), 2), np.int64)
    for start, part in _blocks(offsets):
        words, at, whole = _look(data, part)
        flags = words[at + 2]
        second = np.minimum(at + _LISTED + 1, len(words) - 1)  # a record of one label may end the file
        labels = np.stack([words[second - 1], words[second]], 1).view("<f4")
        for row in np.flatnonzero(~whole).tolist():
            record = read_record(data, int(part[row]), path)
            flags[row], labels[row] = record.flag, (*record.labels, np.nan)[:2]
        with np.errstate(invalid="ignore"):
            counts = (labels >= 0) & (labels == np.floor(labels)) & (labels < LARGEST)
        bad = np.flatnonzero((flags != 2) | ~counts.all(1) | (labels[:, 0] > labels[:, 1]))
        if len(bad):
            offset = int(part[bad[0]])
            got = read_record(data, offset, path).labels[:3]
            raise FileFormatError(path, f"identity record at byte {offset}: expected a range, got {got}.")
        ranges[start : start + len(part)] = labels
    return ranges


def are_bare(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Bool[np.ndarray, " n"]:
    """Whether records hold labels and no content, as header and identity records do."""
    bare = np.empty(len(offsets), bool)
    for start, part in _blocks(offsets):
        words, at, whole = _look(data, part)
        result = (words[at + 2] > 0) & (words[at + 1] == _HEADER + 4 * words[at + 2].astype(np.int64))
        for row in np.flatnonzero(~whole).tolist():
            result[row] = is_bare(data, int(part[row]), path)
        bare[start : start + len(part)] = result
    return bare


def is_bare(data: mmap, offset: int, path: Path) -> bool:
    record = read_record(data, offset, path)
    return record.flag > 0 and not record.content


def _first_labels(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Float32[np.ndarray, " n"]:
    words, at, whole = _look(data, offsets)
    found: Float32[np.ndarray, " n"] = words[at + np.where(whole & (words[at + 2] > 0), _LISTED, 3)].view(
        "<f4"
    )
    for row in np.flatnonzero(~whole).tolist():  # split, at the very end, or damaged: one by one
        found[row] = read_record(data, int(offsets[row]), path).labels[0]
    return found


def _look(
    data: mmap, offsets: Int64[np.ndarray, " n"]
) -> tuple[UInt32[np.ndarray, " m"], Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The file as 32-bit words, where each record starts, and whether its header can be read in one piece."""
    words = np.frombuffer(data, "<u4", len(data) // 4)
    at = offsets // 4
    whole = at + _LISTED < len(words)
    at = np.where(whole, at, 0)
    length, flag = words[at + 1].astype(np.int64), words[at + 2].astype(np.int64)
    whole &= (words[at] == MAGIC) & (length >> 29 == 0) & (offsets + _FRAME + length <= len(data))
    whole &= length >= _HEADER + 4 * flag
    return words, at, whole


def _blocks(offsets: Int64[np.ndarray, " n"]) -> Iterator[tuple[int, Int64[np.ndarray, " m"]]]:
    for start in range(0, len(offsets), _BLOCK):
        yield start, offsets[start : start + _BLOCK]
