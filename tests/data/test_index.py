from pathlib import Path

import numpy as np
import pytest

from spherecf.data import records as records_module
from spherecf.data.recordio import MAGIC_BYTES, pack_record
from spherecf.data.records import read_index, read_names, write_index
from spherecf.errors import FileFormatError, InputError


def test_index_blocks_are_split_at_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "_BLOCK", 10)
    rng = np.random.default_rng(0)
    numbers = rng.permutation(1000)
    (tmp_path / "x.idx").write_text("".join(f"{number}\t{4 * number}\r\n\n" for number in numbers))
    record_numbers, offsets = read_index(tmp_path / "x.idx", 4008)
    assert record_numbers.tolist() == list(range(1000)) and offsets.tolist() == list(range(0, 4000, 4))


@pytest.mark.parametrize(
    ("line", "message"),
    [("7\t-4", "expected"), ("+7\t4", "expected"), ("7\t4\t8", "expected"), ("7", "expected"),
     ("9223372036854775808\t4", "a record number or offset is too large"), ("0x7 4", "expected")],
)  # fmt: skip
def test_errors_state_the_line_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.setattr(records_module, "_BLOCK", 10)
    lines = [f"{number}\t{8 * number}" for number in range(50)]
    (tmp_path / "x.idx").write_text("\n".join([*lines[:30], line, *lines[30:]]))
    with pytest.raises(FileFormatError, match=f"line 31: {message}"):
        read_index(tmp_path / "x.idx", 1000)


def test_names_may_be_unordered_and_include_extra_records(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("9\tnine\n2\ttwo\n5\told\n1\tone\n5\tfive\n")
    names = read_names(tmp_path / "names.txt", np.array([1, 2, 5]))
    assert names == ["one", "two", "five"]
    with pytest.raises(FileFormatError, match=r"1 of 2 have none, e.g. \[3\]"):
        read_names(tmp_path / "names.txt", np.array([2, 3]))
    (tmp_path / "names.txt").write_text("")
    with pytest.raises(FileFormatError, match="2 of 2 have none"):
        read_names(tmp_path / "names.txt", np.array([2, 3]))


@pytest.mark.parametrize(("numbers", "listed"), [((5, 3, 9), [5, 3, 9]), ((0, 0, 0), [0, 1, 2])])
def test_an_index_is_rebuilt_from_the_records(
    tmp_path: Path, numbers: tuple[int, ...], listed: list[int]
) -> None:
    records = [pack_record(number, (1.0,), b"x" * number + MAGIC_BYTES * number) for number in numbers]
    (tmp_path / "x.rec").write_bytes(b"".join(records) + bytes(64))
    lines = [line.split(b"\t") for line in write_index(tmp_path / "x.rec").read_bytes().splitlines()]
    assert [int(number) for number, _ in lines] == listed
    assert [int(offset) for _, offset in lines] == [0, len(records[0]), len(records[0] + records[1])]
    with pytest.raises(InputError, match="not overwritten"):
        write_index(tmp_path / "x.rec")


def test_a_damaged_file_gets_no_index(tmp_path: Path) -> None:
    records = pack_record(1, (1.0,), b"abcd") * 2
    for data, message in [
        (records + b"junk", "expected a record at byte"),
        (records[:-8], "declares 28 bytes, but only 20 follow"),
        (b"<!DOCTYPE html>" * 9, "byte 0: expected the record magic.*not a RecordIO file"),
        (bytes(64), "but the file has none"),
    ]:
        (tmp_path / "x.rec").write_bytes(data)
        with pytest.raises(FileFormatError, match=message):
            write_index(tmp_path / "x.rec")
        assert not (tmp_path / "x.idx").exists()
