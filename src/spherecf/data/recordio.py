"""RecordIO framing as MXNet lays it out: bytes to records and back, and headers of many records at once.

A part is ``magic, word, payload, zero padding to 4 bytes``; the word's top 3 bits say whether the part is a
whole record (0) or the first (1), a middle (2) or the last (3) part of one, its low 29 bits hold the
payload's length. A record is split wherever its payload contains the magic word at a 4-byte boundary; the
word itself is left out and comes back on joining, so that a reader can find the next record from anywhere.
The payload of an image record starts with flag uint32, label float32, id uint64, id2 uint64; flag > 0 means
that so many float32 labels follow.
"""

import struct
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt32

from spherecf.errors import FileFormatError

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
_FRAME = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_START = struct.Struct("<III")  # frame, and the header's flag
_LENGTH = (1 << 29) - 1
_TAIL = 4096  # bytes behind the last record that are looked at: padding is zeros


class Record(NamedTuple):
    """One record: how many labels are listed (0: one, in the header), the labels, its number, its content."""

    flag: int
    labels: tuple[float, ...]
    number: int
    content: bytes


def map_records(path: Path) -> mmap:
    """The bytes of a ``.rec``, mapped into memory.

    Raises:
        FileFormatError: no such file, not readable, or empty.
    """
    try:
        with path.open("rb") as stream:
            return mmap(stream.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror}).") from error
    except ValueError as error:  # what mmap says of a file without bytes
        raise FileFormatError(path, "expected records, the file is empty.") from error


def read_record(data: mmap | bytes, offset: int, path: Path) -> Record:
    """The record that starts at byte ``offset``.

    Raises:
        FileFormatError: with the byte position, if the magic word, a length or a continuation flag is wrong.
    """
    payload = _read_payload(data, offset, path)
    if len(payload) < _HEADER.size:
        raise FileFormatError(
            path, f"record at byte {offset}: {len(payload)} bytes, its header alone takes 24."
        )
    flag, label, number, _ = _HEADER.unpack_from(payload)
    end = _HEADER.size + 4 * flag
    if len(payload) < end:
        raise FileFormatError(
            path, f"record at byte {offset}: header promises {flag} labels, {len(payload)} bytes in all."
        )
    labels = struct.unpack_from(f"<{flag}f", payload, _HEADER.size) if flag else (label,)
    return Record(flag, labels, number, payload[end:])


def read_content(data: mmap | bytes, offset: int, path: Path) -> bytes:
    """``read_record(...).content``, at once where the record is whole and has one label, as nearly all are.

    Raises:
        FileFormatError: as `read_record`.
    """
    begin = offset + _FRAME.size + _HEADER.size
    if offset >= 0 and begin <= len(data):
        magic, length, flag = _START.unpack_from(data, offset)
        end = offset + _FRAME.size + length
        if magic == MAGIC and flag == 0 and length <= _LENGTH and begin <= end <= len(data):
            return data[begin:end]
    return read_record(data, offset, path).content


def scan_records(data: mmap | bytes, path: Path) -> Iterator[tuple[int, int]]:
    """(number, byte offset) of all records, one after the other, without touching their content.

    The number is the one in the record's header; zeros behind the last record are padding.

    Raises:
        FileFormatError: with the byte position, where a record should start and none does, or none ends.
    """
    offset = 0
    while not ends_at(data, offset):
        parts, end = _read_parts(data, offset, path)
        begin, stop = parts[0]
        whole = stop - begin >= _HEADER.size
        number = _HEADER.unpack_from(data, begin)[2] if whole else read_record(data, offset, path).number
        yield number, offset
        offset = end


def record_end(data: mmap | bytes, offset: int, path: Path) -> int:
    """Where the record at byte ``offset`` ends, padding included: where the next one starts.

    Raises:
        FileFormatError: as `read_record`.
    """
    return _read_parts(data, offset, path)[1]


def ends_at(data: mmap | bytes, offset: int) -> bool:
    """Whether nothing follows but zeros."""
    return not data[offset : offset + _TAIL].strip(b"\0")


def _read_payload(data: mmap | bytes, offset: int, path: Path) -> bytes:
    parts = [data[begin:end] for begin, end in _read_parts(data, offset, path)[0]]
    return parts[0] if len(parts) == 1 else MAGIC_BYTES.join(parts)


def _read_parts(data: mmap | bytes, offset: int, path: Path) -> tuple[list[tuple[int, int]], int]:
    """(begin and end of each part's payload, where the record ends)."""
    start, parts = offset, list[tuple[int, int]]()
    while True:
        kind, begin, end = _read_frame(data, offset, path)
        expected = (0, 1) if not parts else (2, 3)
        if kind not in expected:
            raise FileFormatError(
                path,
                f"record at byte {start}: part with continuation flag {kind} where {expected} was expected.",
            )
        parts.append((begin, end))
        offset = end + -(end - begin) % 4
        if kind in (0, 3):
            return parts, offset


def _read_frame(data: mmap | bytes, offset: int, path: Path) -> tuple[int, int, int]:
    """(continuation flag, begin and end of the payload) of the part at ``offset``."""
    if not 0 <= offset <= len(data) - _FRAME.size:
        raise FileFormatError(
            path, f"no record at byte {offset}: the file has {len(data)} bytes.", "Is it complete?"
        )
    magic, word = _FRAME.unpack_from(data, offset)
    if magic != MAGIC:
        raise FileFormatError(
            path,
            f"byte {offset}: expected the record magic 0x{MAGIC:08x}, got 0x{magic:08x}.",
            "Is the index of this file?" if offset else "This is no RecordIO file.",
        )
    length, begin = word & _LENGTH, offset + _FRAME.size
    if begin + length > len(data):
        raise FileFormatError(
            path,
            f"record at byte {offset} promises {length} bytes, only {len(data) - begin} follow.",
            "The file is truncated; copy it again.",
        )
    return word >> 29, begin, begin + length


def pack_record(number: int, labels: tuple[float, ...], content: bytes = b"", several: bool = False) -> bytes:
    """One record, framed and padded; ``several`` stores the labels as a list even if there is one.

    Raises:
        FileFormatError: a part is longer than the 29 bits of its length allow.

    Example:
        >>> read_record(pack_record(7, (3.0,), b"picture"), 0, Path("x.rec")).content
        b'picture'
    """
    if several or len(labels) != 1:
        header = _HEADER.pack(len(labels), 0.0, number, 0) + struct.pack(f"<{len(labels)}f", *labels)
    else:
        header = _HEADER.pack(0, labels[0], number, 0)
    parts = _split_at_magic(header + content)
    framed = []
    for index, part in enumerate(parts):
        if len(part) > _LENGTH:
            raise FileFormatError(f"record {number}", f"{len(part)} bytes, the format allows {_LENGTH}.")
        kind = 0 if len(parts) == 1 else 1 if index == 0 else 3 if index == len(parts) - 1 else 2
        framed.append(_FRAME.pack(MAGIC, kind << 29 | len(part)) + part + bytes(-len(part) % 4))
    return b"".join(framed)


def _split_at_magic(payload: bytes) -> list[bytes]:
    parts, begin, position = [], 0, payload.find(MAGIC_BYTES)
    while position >= 0:
        if position % 4 == 0:
            parts.append(payload[begin:position])
            begin = position + 4
        position = payload.find(MAGIC_BYTES, position + (4 if position % 4 == 0 else 1))
    return [*parts, payload[begin:]]


_BLOCK = 65536  # records looked at at once
_FRAME_BYTES, _HEADER_BYTES = 8, 24  # bytes
_LISTED = 8  # 32-bit words from a record's start to its listed labels
MAX_NUMBER = 2.0**62  # beyond all record numbers
EXACT = 1 << 24  # float32 holds every whole number up to here


def read_labels(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Int64[np.ndarray, " n"]:
    """The label of each record, the first one where several are listed.

    Raises:
        FileFormatError: a record is damaged, or its label is no whole number from 0 to 2^24; with its byte.
    """
    labels = np.empty(len(offsets), np.int64)
    for start, part in _blocks(offsets):
        values = _first_labels(data, part, path)
        with np.errstate(invalid="ignore"):
            bad = np.flatnonzero(~((values >= 0) & (values == np.floor(values)) & (values <= EXACT)))
        if len(bad):
            raise FileFormatError(
                path,
                f"record at byte {part[bad[0]]}: expected a whole number as label (0 to {EXACT}, up to which "
                f"float32 is exact), got {values[bad[0]]}.",
            )
        labels[start : start + len(part)] = values
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
            counts = (labels >= 0) & (labels == np.floor(labels)) & (labels < MAX_NUMBER)
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
        result = (words[at + 2] > 0) & (words[at + 1] == _HEADER_BYTES + 4 * words[at + 2].astype(np.int64))
        for row in np.flatnonzero(~whole).tolist():
            result[row] = is_bare(data, int(part[row]), path)
        bare[start : start + len(part)] = result
    return bare


def is_bare(data: mmap, offset: int, path: Path) -> bool:
    record = read_record(data, offset, path)
    return record.flag > 0 and not record.content


def _first_labels(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Float32[np.ndarray, " n"]:
    words, at, whole = _look(data, offsets)
    labels: Float32[np.ndarray, " n"] = words[at + np.where(whole & (words[at + 2] > 0), _LISTED, 3)].view(
        "<f4"
    )
    for row in np.flatnonzero(~whole).tolist():  # split, at the very end, or damaged: one by one
        labels[row] = read_record(data, int(offsets[row]), path).labels[0]
    return labels


def _look(
    data: mmap, offsets: Int64[np.ndarray, " n"]
) -> tuple[UInt32[np.ndarray, " m"], Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """The file as 32-bit words, where each record starts, and whether its header can be read in one piece."""
    words = np.frombuffer(data, "<u4", len(data) // 4)
    at = offsets // 4
    whole = at + _LISTED < len(words)
    at = np.where(whole, at, 0)
    length, flag = words[at + 1].astype(np.int64), words[at + 2].astype(np.int64)
    whole &= (words[at] == MAGIC) & (length >> 29 == 0) & (offsets + _FRAME_BYTES + length <= len(data))
    whole &= length >= _HEADER_BYTES + 4 * flag
    return words, at, whole


def _blocks(offsets: Int64[np.ndarray, " n"]) -> Iterator[tuple[int, Int64[np.ndarray, " m"]]]:
    for start in range(0, len(offsets), _BLOCK):
        yield start, offsets[start : start + _BLOCK]
