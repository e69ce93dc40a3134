from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spherecf.data import RecordFile, encode_image, write_index
from spherecf.data.recordio import pack_record
from spherecf.errors import FileFormatError

PEOPLE, EACH = 3, 2
Lines = list[tuple[int, int]]
Records = list[tuple[int, bytes]]


def image(number: int, label: float) -> bytes:
    grey = np.full((8, 8, 3), number * 9 % 256, np.uint8)
    return pack_record(number, (float(label),), encode_image(grey, ".jpg"))


def field_set(start: int = 1, people: int = PEOPLE, each: int = EACH) -> Records:
    """The field's layout: header, images from record ``start`` on, one identity record each."""
    end = start + people * each
    images = [(number, image(number, (number - start) // each)) for number in range(start, end)]
    ranges = [(start + each * k, start + each * (k + 1)) for k in range(people)]
    identities = [
        (end + k, pack_record(end + k, tuple(map(float, range_)))) for k, range_ in enumerate(ranges)
    ]
    return [(0, pack_record(0, (float(end), float(end + people)))), *images, *identities]


def save(
    folder: Path, records: Records, change: Callable[[Lines], Lines] = lambda lines: lines, tail: bytes = b""
) -> Path:
    """``train.rec`` of the records and ``tail``, and its index, of whose lines ``change`` makes others."""
    folder.mkdir(exist_ok=True)
    offsets = np.cumsum([0, *(len(data) for _, data in records)]).tolist()
    lines = change([(number, offset) for (number, _), offset in zip(records, offsets)])
    (folder / "train.rec").write_bytes(b"".join(data for _, data in records) + tail)
    (folder / "train.idx").write_text("".join(f"{number}\t{offset}\n" for number, offset in lines))
    return folder


@pytest.mark.parametrize("start", [1, 2**24 - 3, 2**24 + 101, 2**25 - 5, 2**25 + 1, 2**26 + 3])
@pytest.mark.parametrize("header", [True, False])
def test_float32_rounding_moves_no_image(tmp_path: Path, start: int, header: bool) -> None:
    records = field_set(start, people=4, each=7)
    source = RecordFile(save(tmp_path / "set", records if header else records[1:]))
    assert source.labels.tolist() == [label for label in range(4) for _ in range(7)]
    assert list(source.keys) == [str(number) for number in range(start, start + 28)]


@pytest.mark.parametrize("start", [1, 2**24 - 3])
@pytest.mark.parametrize("listed", range(1, 10))
def test_a_short_index_is_never_a_smaller_set(tmp_path: Path, start: int, listed: int) -> None:
    with pytest.raises(FileFormatError, match=r"index lists|index lists none"):
        RecordFile(save(tmp_path / "set", field_set(start), lambda lines: lines[:listed]))


def test_a_short_index_is_told_with_both_numbers_and_made_anew(tmp_path: Path) -> None:
    folder = save(tmp_path / "set", field_set(), lambda lines: lines[:5])
    with pytest.raises(
        FileFormatError, match=r"declares images up to record 6, but the index lists 4 images,.*data index"
    ):
        RecordFile(folder)
    (folder / "train.idx").unlink()
    assert write_index(folder) == folder / "train.idx"
    assert len(RecordFile(folder)) == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:3] + lines[4:],  # an image in the middle
        lambda lines: lines[:1] + lines[2:],  # the first image
        lambda lines: lines[:6] + lines[7:],  # the last image
        lambda lines: lines[1:3] + lines[4:],  # record 0 and an image
        lambda lines: lines[1:5],  # record 0 and the end
        lambda lines: [(number - 1, offset) for number, offset in lines[1:]],  # numbered anew from 0
    ],
)
def test_lines_that_are_missing_or_shifted_are_noticed(
    tmp_path: Path, change: Callable[[Lines], Lines]
) -> None:
    with pytest.raises(FileFormatError, match="the index lists"):
        RecordFile(save(tmp_path / "set", field_set(), change))


@pytest.mark.parametrize(
    "records",
    [
        field_set()[1:],  # record 0 never written
        field_set()[1:] + field_set()[:1],  # written at the end, when its numbers were known
        field_set()[:1] + field_set()[7:] + field_set()[1:7],  # identity records before the images
        [(0, pack_record(0, (7.0, 3.0))), *field_set()[1:7]],  # number of identities, and none recorded
        [(0, pack_record(0, (7.0, 3.0), b"a picture nobody looks at")), *field_set()[1:7]],
        field_set()[1:7],  # images only
        [(n, pack_record(n, (float((n - 1) // 2), 1.0), b"two labels, a picture")) for n in range(1, 7)],
        field_set()[:7] + [(n, pack_record(n, (1.0, 7.0))) for n in (7, 8, 9)],  # ranges that overlap
    ],
)  # fmt: skip
def test_layouts_of_the_fields_tools(tmp_path: Path, records: Records) -> None:
    source = RecordFile(save(tmp_path / "set", records))
    assert list(source.keys) == list("123456") and source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(source.identities) == 3


@pytest.mark.parametrize("change", [lambda lines: lines[1:], lambda lines: lines[1:7]])
def test_lines_of_records_that_are_no_images_may_be_missing(
    tmp_path: Path, change: Callable[[Lines], Lines]
) -> None:
    source = RecordFile(save(tmp_path / "set", field_set(), change))
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_two_sets_in_one_file_are_refused(tmp_path: Path) -> None:
    twice = field_set() + field_set()
    renumbered = [(row, data) for row, (_, data) in enumerate(twice)]
    with pytest.raises(FileFormatError, match="declares images up to record 6, but the index lists 16"):
        RecordFile(save(tmp_path / "renumbered", renumbered))
    with pytest.raises(FileFormatError, match=r"record 6 looks like an identity record.*images follow"):
        RecordFile(save(tmp_path / "headless", [(row, data) for row, (_, data) in enumerate(twice[1:])]))
    with pytest.raises(FileFormatError, match=r"index lists 10 records.*another record follows"):
        RecordFile(save(tmp_path / "first", twice, lambda lines: lines[:10]))
    with pytest.raises(FileFormatError, match="record number 0 occurs more than once"):
        RecordFile(save(tmp_path / "both", twice))


@pytest.mark.parametrize(("header", "promised"), [((6.0, 6.0), 5), ((8.0, 11.0), 7), ((0.0, 0.0), -1)])
def test_a_header_with_other_numbers_is_refused_and_can_be_left_out(
    tmp_path: Path, header: tuple[float, float], promised: int
) -> None:
    records = [(0, pack_record(0, header)), *field_set()[1:7]]
    with pytest.raises(
        FileFormatError, match=f"declares images up to record {promised}, but the index lists 6"
    ):
        RecordFile(save(tmp_path / "set", records))
    assert len(RecordFile(save(tmp_path / "set", records, lambda lines: lines[1:]))) == 6


def test_what_follows_the_last_record(tmp_path: Path) -> None:
    assert len(RecordFile(save(tmp_path / "zeros", field_set(), tail=bytes(999)))) == 6
    for tail in (b"garbage!", image(10, 1.0)[:40]):
        with pytest.raises(FileFormatError, match=f"the {len(tail)} bytes after it are not a record"):
            RecordFile(save(tmp_path / str(len(tail)), field_set(), tail=tail))


def test_a_picture_without_bytes_is_one_broken_image(tmp_path: Path) -> None:
    records = field_set()
    records[3] = 3, pack_record(3, (1.0, 0.0))  # two labels, as in sets where images have two
    source = RecordFile(save(tmp_path / "set", records))
    assert len(source) == 6 and source.read(2) == b""


def test_labels_that_no_set_has_take_no_memory(tmp_path: Path) -> None:
    for label, message in [(1e7, "10000001 identities for only 1 images"), (2e9, "expected a whole number")]:
        with pytest.raises(FileFormatError, match=message):
            RecordFile(save(tmp_path / str(label), [(0, image(0, label))]))
    folder = save(tmp_path / "set", [(0, image(0, 0.0))])
    (folder / "property").write_text(f"{10**12},112,112")
    with pytest.raises(FileFormatError, match="1000000000000 identities"):
        RecordFile(folder)
