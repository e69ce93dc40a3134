from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
import pytest

from spherecf.data.recordio import MAGIC_BYTES, pack_record, read_labels, read_ranges, read_record
from spherecf.errors import FileFormatError


def write(tmp_path: Path, records: list[bytes]) -> tuple[mmap, np.ndarray, Path]:
    path = tmp_path / "x.rec"
    path.write_bytes(b"".join(records))
    with path.open("rb") as stream:
        data = mmap(stream.fileno(), 0, access=ACCESS_READ)
    return data, np.cumsum([0, *map(len, records)])[:-1], path


def test_bulk_labels_equal_labels_read_record_by_record(tmp_path: Path) -> None:
    records = [
        pack_record(0, (7.0,), b"picture"),
        pack_record(1, (3.0, 9.0), b"x" * 50),
        pack_record(2, (5.0,), b"y", as_list=True),
        pack_record(3, (2.0**24,), bytes(4) + MAGIC_BYTES + b"split"),
        pack_record(4, (1.0,)),  # the last record of the file
    ]
    data, offsets, path = write(tmp_path, records)
    single_labels = [int(read_record(data, offset, path).labels[0]) for offset in offsets.tolist()]
    assert read_labels(data, offsets, path).tolist() == single_labels == [7, 3, 5, 2**24, 1]
    assert read_labels(data, offsets[::-1], path).tolist() == single_labels[::-1]
    assert read_labels(data, offsets[:0], path).tolist() == []


def test_errors_state_the_byte_of_a_damaged_record(tmp_path: Path) -> None:
    records = [pack_record(row, (1.0,), b"x" * 40) for row in range(3)]
    for position, bad_bytes, message in [
        (0, b"XXXX", "expected the record magic"),
        (4, b"\xff\xff\x00\x00", "declares"),
    ]:
        damaged = bytearray(records[1])
        damaged[position : position + 4] = bad_bytes
        data, offsets, path = write(tmp_path, [records[0], bytes(damaged), records[2]])
        with pytest.raises(FileFormatError, match=rf"byte {offsets[1]}\b.*{message}"):
            read_labels(data, offsets, path)


@pytest.mark.parametrize("label", [float("nan"), float("inf"), 0.5, -1.0])
def test_labels_that_are_not_whole_numbers_are_refused(tmp_path: Path, label: float) -> None:
    data, offsets, path = write(tmp_path, [pack_record(0, (1.0,)), pack_record(1, (label,), b"x" * 40)])
    with pytest.raises(FileFormatError, match=f"byte {offsets[1]}: expected a whole number"):
        read_labels(data, offsets, path)


def test_identity_ranges_are_read(tmp_path: Path) -> None:
    data, offsets, path = write(tmp_path, [pack_record(9, (1.0, 4.0)), pack_record(10, (4.0, 6.0))])
    assert read_ranges(data, offsets, path).tolist() == [[1, 4], [4, 6]]
