import struct
from pathlib import Path

import pytest

from spherecf.data import recordio
from spherecf.data.recordio import MAGIC_BYTES, pack_record, read_record
from spherecf.errors import FileFormatError

PATH = Path("x.rec")


def test_layout_matches_mxnet() -> None:
    header = struct.pack("<IfQQ", 0, 3.0, 9, 0)
    assert pack_record(9, (3.0,), b"abcde") == (
        MAGIC_BYTES + struct.pack("<I", 29) + header + b"abcde" + bytes(3)
    )
    header = struct.pack("<IfQQ", 2, 0.0, 0, 0) + struct.pack("<2f", 5.0, 8.0)
    assert pack_record(0, (5.0, 8.0)) == MAGIC_BYTES + struct.pack("<I", 32) + header


@pytest.mark.parametrize("length", range(9))
def test_content_of_every_length_round_trips(length: int) -> None:
    content = bytes(range(1, length + 1))
    packed = pack_record(4, (2.0,), content)
    record = read_record(b"pad." + packed + pack_record(5, (0.0,)), 4, PATH)
    assert len(packed) % 4 == 0
    assert (record.number, record.labels, record.content) == (4, (2.0,), content)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (MAGIC_BYTES, 2),
        (b"ab" + MAGIC_BYTES + b"cd", 1),  # not at a 4-byte boundary: not split
        (b"abcd" + MAGIC_BYTES + b"e", 2),
        (MAGIC_BYTES * 3 + b"tail", 4),
        (b"abcd" + MAGIC_BYTES + b"x" + MAGIC_BYTES + b"yyy" + MAGIC_BYTES, 3),
    ],
)
def test_records_containing_the_magic_word_are_split_and_rejoined(content: bytes, parts: int) -> None:
    packed = pack_record(1, (0.0,), content)
    aligned = [offset for offset in range(0, len(packed), 4) if packed[offset : offset + 4] == MAGIC_BYTES]
    assert len(aligned) == parts
    flags = [struct.unpack_from("<I", packed, offset + 4)[0] >> 29 for offset in aligned]
    assert flags == ([0] if parts == 1 else [1, *[2] * (parts - 2), 3])
    assert read_record(packed, 0, PATH).content == content


def test_a_part_longer_than_its_length_field_allows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recordio, "_LENGTH", 40)  # instead of 512 MiB
    assert len(pack_record(1, (0.0,), bytes(16))) == 48
    assert len(pack_record(1, (0.0,), bytes(16) + MAGIC_BYTES + bytes(40))) == 96  # in two parts
    with pytest.raises(
        FileFormatError, match="record 1: a part has 41 bytes, but RecordIO allows at most 40"
    ):
        pack_record(1, (0.0,), bytes(17))


def test_label_lists_round_trip() -> None:
    record = read_record(pack_record(1, (1.5, 2.0, -3.0), b"xy"), 0, PATH)
    assert record.labels == (1.5, 2.0, -3.0) and record.content == b"xy"


@pytest.mark.parametrize(
    ("data", "offset", "message"),
    [
        (b"abcdefgh" * 4, 8, "byte 8: expected the record magic 0xced7230a, got 0x64636261"),
        (pack_record(1, (0.0,), b"abcd")[:-4], 0, "record at byte 0 declares 28 bytes, but only 24 follow"),
        (pack_record(1, (0.0,)), 32, "expected a record at byte 32"),
        (MAGIC_BYTES + struct.pack("<I", 4) + b"abcd", 0, "4 bytes, but its header alone takes 24"),
        (MAGIC_BYTES + struct.pack("<IIfQQ", 24, 9, 0, 0, 0), 0, "declares 9 labels"),
        (MAGIC_BYTES + struct.pack("<I", 3 << 29), 0, "continuation flag 0 or 1, got 3"),
        (
            MAGIC_BYTES + struct.pack("<I", 1 << 29) + pack_record(1, (0.0,)),
            0,
            "continuation flag 2 or 3, got 0",
        ),
        (MAGIC_BYTES + struct.pack("<I", 1 << 29), 0, "expected a record at byte 8"),
    ],
)
def test_errors_state_the_byte_of_the_damage(data: bytes, offset: int, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_record(data, offset, PATH)
