"""RecordIO sets: records, index, property and names, mutated together or separately."""

import cv2
import numpy as np
from tests.fuzz.harness import fuzz, write

from spherecf.data import ImageError, RecordFile, write_index
from spherecf.data.recordio import pack_record

_FILES = ("train.idx", "property", "names.txt", "train.rec")
_SEPARATOR = b"\n=====\n"  # between the files of one input


def _image(seed: int) -> bytes:
    return cv2.imencode(".png", np.full((6, 6, 3), 40 * seed, np.uint8))[1].tobytes()


def _make_set(start: int = 1, labels: int = 1, header: bool = True, identities: bool = True) -> bytes:
    """Three people with two images each, as written by the usual tools."""
    end = start + 6
    records = {0: pack_record(0, (float(end), float(end + 3)))} if header else {}
    for row in range(6):
        row_labels = (float(row // 2), 1.0)[:labels]
        records[start + row] = pack_record(start + row, row_labels, _image(row), as_list=labels > 1)
    for person in range(3 if identities else 0):
        first = start + 2 * person
        records[end + person] = pack_record(end + person, (float(first), float(first + 2)))
    offsets = np.cumsum([0, *map(len, records.values())])[:-1].tolist()
    index = "".join(f"{number}\t{offset}\n" for number, offset in zip(records, offsets))
    names = "".join(f"{start + row}\tp{row // 2}/{row}.png\n" for row in range(6))
    return _SEPARATOR.join([index.encode(), b"3,6,6", names.encode(), b"".join(records.values())])


def _make_split_records() -> bytes:
    magic = bytes.fromhex("0a23d7ce")
    records = [pack_record(row, (float(row % 2),), b"abcd" + magic * row + b"tail") for row in range(4)]
    offsets = np.cumsum([0, *map(len, records)])[:-1].tolist()
    index = "".join(f"{row}\t{offset}\r\n" for row, offset in enumerate(offsets))
    return _SEPARATOR.join([index.encode(), b"", b"", b"".join(records)])


_SEEDS = {
    "header": _make_set(),
    "beyond 2^24": _make_set(2**24 - 3),
    "two labels": _make_set(labels=2),
    "no header": _make_set(header=False),
    "images only": _make_set(header=False, identities=False),
    "split records": _make_split_records(),
}
_TOKENS = [
    bytes.fromhex("0a23d7ce"), _SEPARATOR, b"\0\0\x80\x7f", b"\0\0\xc0\x7f", b"\0\0\x80\x4b",
    b"\xff\xff\x7f\x7f", b"\0\0\x80\xbf", pack_record(0, (7.0, 10.0)), pack_record(3, (1.0,), b"x"),
    b"\t0\n", b"7\t40\n",
]  # fmt: skip


def _open(data: bytes) -> RecordFile:
    parts = data.split(_SEPARATOR, len(_FILES) - 1)
    for name, part in zip(_FILES, parts + [b""] * (len(_FILES) - len(parts))):
        path = write(f"records/{name}", part)
        if not part and name in ("property", "names.txt"):
            path.unlink()
    return RecordFile(path)


@fuzz(_SEEDS, name="RecordIO", tokens=_TOKENS)
def test_recordio(data: bytes) -> None:
    source = _open(data)
    assert len(source) == len(source.keys) == len(set(source.keys)) == len(source.sizes()) > 0
    assert source.labels.min() >= 0 and source.labels.max() < len(source.identities)
    assert len(source.fingerprint()) == 64
    for row in range(len(source)):
        try:
            source.image(row)
        except ImageError:
            continue


@fuzz(
    {name: data.split(_SEPARATOR)[-1] for name, data in _SEEDS.items()},
    name="RecordIO without index",
    tokens=_TOKENS,
)
def test_index_from_records(data: bytes) -> None:
    path = write("unindexed/train.rec", data)
    path.with_suffix(".idx").unlink(missing_ok=True)
    write_index(path)
    assert len(RecordFile(path)) > 0
