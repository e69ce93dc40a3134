"""MXNet's RecordIO framing: encode and decode records, and read the headers of many records at once.

A part is ``magic, word, payload, zero padding to 4 bytes``. The top 3 bits of the word are the continuation
flag: the part is a whole record (0), or the first (1), a middle (2) or the last (3) part of one. The low 29
bits hold the length of the payload. A record is split wherever its payload contains the magic word at a
4-byte boundary; the word is left out there and restored on joining, so a reader can find the next record from
any position. The payload of an image record starts with flag uint32, label float32, id uint64, id2 uint64;
flag > 0 is the number of float32 labels that follow.
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
_START = struct.Struct("<III")  # frame, and the flag of the header
_LENGTH = (1 << 29) - 1  # mask of the payload's length, and its maximum
_TAIL = 4096  # bytes after the last record that are checked to be zero padding


class Record(NamedTuple):
    """One record: number of listed labels (0: one label, in the header), labels, record number, content."""

    flag: int
    labels: tuple[float, ...]
    number: int
    content: bytes


def map_records(path: Path) -> mmap:
    """The bytes of a ``.rec``, memory-mapped.

    Raises:
        FileFormatError: the file does not exist, is not readable, or is empty.
    """
    try:
        with path.open("rb") as stream:
            return mmap(stream.fileno(), 0, access=ACCESS_READ)
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror}).") from error
    except ValueError as error:  # raised by mmap for an empty file
        raise FileFormatError(path, "expected records, but the file is empty.", "Copy it again.") from error


def read_record(data: mmap | bytes, offset: int, path: Path) -> Record:
    """The record that starts at byte ``offset``.

    Raises:
        FileFormatError: with the byte position, if the magic word, a length or a continuation flag is wrong.
    """
    payload = _read_payload(data, offset, path)
    if len(payload) < _HEADER.size:
        raise FileFormatError(
            path,
            f"record at byte {offset}: {len(payload)} bytes, but its header alone takes 24.",
            "The file is damaged; copy it again.",
        )
    flag, label, number, _ = _HEADER.unpack_from(payload)
    end = _HEADER.size + 4 * flag
    if len(payload) < end:
        raise FileFormatError(
            path,
            f"record at byte {offset}: its header declares {flag} labels, but it has only {len(payload)} "
            "bytes.",
        )
    labels = struct.unpack_from(f"<{flag}f", payload, _HEADER.size) if flag else (label,)
    return Record(flag, labels, number, payload[end:])


def read_content(data: mmap | bytes, offset: int, path: Path) -> bytes:
    """``read_record(...).content``, with a fast path for records in one part with one label (nearly all).

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
    """(number, byte offset) of all records in file order, without reading their content.

    The number is the one in the record's header; zeros after the last record are padding.

    Raises:
        FileFormatError: with the byte position, if no record starts where one should, or a record does not
            end.
    """
    offset = 0
    while not only_padding_follows(data, offset):
        parts, end = _read_parts(data, offset, path)
        begin, stop = parts[0]
        whole = stop - begin >= _HEADER.size
        number = _HEADER.unpack_from(data, begin)[2] if whole else read_record(data, offset, path).number
        yield number, offset
        offset = end


def record_end(data: mmap | bytes, offset: int, path: Path) -> int:
    """Byte at which the record at ``offset`` ends, padding included: the start of the next one.

    Raises:
        FileFormatError: as `read_record`.
    """
    return _read_parts(data, offset, path)[1]


def only_padding_follows(data: mmap | bytes, offset: int) -> bool:
    """Whether only zeros follow."""
    return not data[offset : offset + _TAIL].strip(b"\0")


def _read_payload(data: mmap | bytes, offset: int, path: Path) -> bytes:
    parts = [data[begin:end] for begin, end in _read_parts(data, offset, path)[0]]
    return parts[0] if len(parts) == 1 else MAGIC_BYTES.join(parts)


def _read_parts(data: mmap | bytes, offset: int, path: Path) -> tuple[list[tuple[int, int]], int]:
    """(begin and end of each part's payload, end of the record)."""
    start, parts = offset, list[tuple[int, int]]()
    while True:
        kind, begin, end = _read_frame(data, offset, path)
        expected = (0, 1) if not parts else (2, 3)
        if kind not in expected:
            raise FileFormatError(
                path,
                f"record at byte {start}: expected a part with continuation flag {expected[0]} or "
                f"{expected[1]}, got {kind}.",
                "The file is damaged; copy it again.",
            )
        parts.append((begin, end))
        offset = end + -(end - begin) % 4
        if kind in (0, 3):
            return parts, offset


def _read_frame(data: mmap | bytes, offset: int, path: Path) -> tuple[int, int, int]:
    """(continuation flag, begin and end of the payload) of the part at ``offset``."""
    if not 0 <= offset <= len(data) - _FRAME.size:
        raise FileFormatError(
            path,
            f"expected a record at byte {offset}, but the file has only {len(data)} bytes.",
            "It may be truncated; copy it again.",
        )
    magic, word = _FRAME.unpack_from(data, offset)
    if magic != MAGIC:
        raise FileFormatError(
            path,
            f"byte {offset}: expected the record magic 0x{MAGIC:08x}, got 0x{magic:08x}.",
            "Does the index belong to this file?" if offset else "This is not a RecordIO file.",
        )
    length, begin = word & _LENGTH, offset + _FRAME.size
    if begin + length > len(data):
        raise FileFormatError(
            path,
            f"record at byte {offset} declares {length} bytes, but only {len(data) - begin} follow.",
            "The file is truncated; copy it again.",
        )
    return word >> 29, begin, begin + length


def pack_record(number: int, labels: tuple[float, ...], content: bytes = b"", as_list: bool = False) -> bytes:
    """Encode one record, framed and padded; ``as_list`` stores even a single label as a list.

    Raises:
        FileFormatError: a part is longer than its 29-bit length allows.

    Example:
        >>> read_record(pack_record(7, (3.0,), b"picture"), 0, Path("x.rec")).content
        b'picture'
    """
    if as_list or len(labels) != 1:
        header = _HEADER.pack(len(labels), 0.0, number, 0) + struct.pack(f"<{len(labels)}f", *labels)
    else:
        header = _HEADER.pack(0, labels[0], number, 0)
    parts = _split_at_magic(header + content)
    framed = []
    for index, part in enumerate(parts):
        if len(part) > _LENGTH:
            raise FileFormatError(
                f"record {number}", f"a part has {len(part)} bytes, but RecordIO allows at most {_LENGTH}."
            )
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


_BLOCK = 65536  # records per vectorised step
_FRAME_BYTES, _HEADER_BYTES = 8, 24
_LISTED = 8  # 32-bit words from a record's start to its listed labels
MAX_NUMBER = 2.0**62  # larger than any record number
EXACT = 1 << 24  # float32 represents every whole number up to this one


def read_labels(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Int64[np.ndarray, " n"]:
    """The label of each record, or its first label if several are listed.

    Raises:
        FileFormatError: with the byte position, if a record is damaged, or its label is not a whole number
            from 0 to 2^24.
    """
    labels = np.empty(len(offsets), np.int64)
    for start, block in _in_blocks(offsets):
        values = _first_labels(data, block, path)
        with np.errstate(invalid="ignore"):
            bad = np.flatnonzero(~((values >= 0) & (values == np.floor(values)) & (values <= EXACT)))
        if len(bad):
            raise FileFormatError(
                path,
                f"record at byte {block[bad[0]]}: expected a whole number as label, from 0 to {EXACT} (where "
                f"float32 is exact), got {values[bad[0]]}.",
            )
        labels[start : start + len(block)] = values
    return labels


def read_ranges(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Int64[np.ndarray, "n 2"]:
    """(first image, one past the last) of each identity record."""
    ranges = np.empty((len(offsets), 2), np.int64)
    for start, block in _in_blocks(offsets):
        words, starts, whole = _header_words(data, block)
        flags = words[starts + 2]
        second = np.minimum(starts + _LISTED + 1, len(words) - 1)  # the last record may have only one label
        labels = np.stack([words[second - 1], words[second]], 1).view("<f4")
        for row in np.flatnonzero(~whole).tolist():
            record = read_record(data, int(block[row]), path)
            flags[row], labels[row] = record.flag, (*record.labels, np.nan)[:2]
        with np.errstate(invalid="ignore"):
            valid = (labels >= 0) & (labels == np.floor(labels)) & (labels < MAX_NUMBER)
        bad = np.flatnonzero((flags != 2) | ~valid.all(1) | (labels[:, 0] > labels[:, 1]))
        if len(bad):
            offset = int(block[bad[0]])
            got = read_record(data, offset, path).labels[:3]
            raise FileFormatError(
                path, f"identity record at byte {offset}: expected a range of images (two labels), got {got}."
            )
        ranges[start : start + len(block)] = labels
    return ranges


def have_no_content(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Bool[np.ndarray, " n"]:
    """Whether each record has labels but no content, as header and identity records do."""
    empty = np.empty(len(offsets), bool)
    for start, block in _in_blocks(offsets):
        words, starts, whole = _header_words(data, block)
        result = (words[starts + 2] > 0) & (
            words[starts + 1] == _HEADER_BYTES + 4 * words[starts + 2].astype(np.int64)
        )
        for row in np.flatnonzero(~whole).tolist():
            result[row] = has_no_content(data, int(block[row]), path)
        empty[start : start + len(block)] = result
    return empty


def has_no_content(data: mmap, offset: int, path: Path) -> bool:
    record = read_record(data, offset, path)
    return record.flag > 0 and not record.content


def _first_labels(data: mmap, offsets: Int64[np.ndarray, " n"], path: Path) -> Float32[np.ndarray, " n"]:
    words, starts, whole = _header_words(data, offsets)
    labels: Float32[np.ndarray, " n"] = words[
        starts + np.where(whole & (words[starts + 2] > 0), _LISTED, 3)
    ].view("<f4")
    for row in np.flatnonzero(~whole).tolist():  # split, at the very end, or damaged: one by one
        labels[row] = read_record(data, int(offsets[row]), path).labels[0]
    return labels


def _header_words(
    data: mmap, offsets: Int64[np.ndarray, " n"]
) -> tuple[UInt32[np.ndarray, " m"], Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """(the file as 32-bit words, index of each record's first word, whether its header is in one piece).

    A record whose header is not in one piece must be read by `read_record`; one at the very end of the file
    gets the index 0.
    """
    words = np.frombuffer(data, "<u4", len(data) // 4)
    starts = offsets // 4
    whole = starts + _LISTED < len(words)
    starts = np.where(whole, starts, 0)
    length, flag = words[starts + 1].astype(np.int64), words[starts + 2].astype(np.int64)
    whole &= (words[starts] == MAGIC) & (length >> 29 == 0) & (offsets + _FRAME_BYTES + length <= len(data))
    whole &= length >= _HEADER_BYTES + 4 * flag
    return words, starts, whole


def _in_blocks(offsets: Int64[np.ndarray, " n"]) -> Iterator[tuple[int, Int64[np.ndarray, " m"]]]:
    for start in range(0, len(offsets), _BLOCK):
        yield start, offsets[start : start + _BLOCK]
