import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spherecf.data import RecordFile, encode_image, records as records_module, write_index
from spherecf.data.recordio import MAGIC_BYTES, pack_record
from spherecf.errors import FileFormatError

PEOPLE, EACH = 3, 2
Lines = list[tuple[int, int]]
Records = list[tuple[int, bytes]]


def image(number: int, label: float) -> bytes:
    grey = np.full((8, 8, 3), number * 9 % 256, np.uint8)
    return pack_record(number, (float(label),), encode_image(grey, ".jpg"))


def record_set(start: int = 1, people: int = PEOPLE, each: int = EACH) -> Records:
    """The common layout: header, images from record ``start`` on, then one identity record per person."""
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
    """Write ``train.rec`` (the records, then ``tail``) and an index whose lines ``change`` may alter."""
    folder.mkdir(exist_ok=True)
    offsets = np.cumsum([0, *(len(data) for _, data in records)]).tolist()
    lines = change([(number, offset) for (number, _), offset in zip(records, offsets)])
    (folder / "train.rec").write_bytes(b"".join(data for _, data in records) + tail)
    (folder / "train.idx").write_text("".join(f"{number}\t{offset}\n" for number, offset in lines))
    return folder


@pytest.mark.parametrize("start", [1, 2**24 - 3, 2**24 + 101, 2**25 - 5, 2**25 + 1, 2**26 + 3])
@pytest.mark.parametrize("header", [True, False])
def test_float32_rounding_never_moves_an_image_to_another_identity(
    tmp_path: Path, start: int, header: bool
) -> None:
    records = record_set(start, people=4, each=7)
    source = RecordFile(save(tmp_path / "set", records if header else records[1:]))
    assert source.labels.tolist() == [label for label in range(4) for _ in range(7)]
    assert list(source.keys) == [str(number) for number in range(start, start + 28)]


@pytest.mark.parametrize("start", [1, 2**24 - 3])
@pytest.mark.parametrize("listed", range(1, 10))
def test_a_short_index_is_refused_rather_than_read_as_a_smaller_set(
    tmp_path: Path, start: int, listed: int
) -> None:
    with pytest.raises(FileFormatError, match=r"index lists|index lists none"):
        RecordFile(save(tmp_path / "set", record_set(start), lambda lines: lines[:listed]))


def test_a_short_index_is_reported_with_both_counts_and_can_be_rebuilt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "set", record_set(), lambda lines: lines[:5])
    with pytest.raises(
        FileFormatError, match=r"declares images up to record 6, but the index lists 4 images,.*data index"
    ):
        RecordFile(folder)
    (folder / "train.idx").unlink()
    monkeypatch.setattr(records_module, "_PROGRESS_BYTES", 1)  # a step of the progress bar per record
    assert write_index(folder) == folder / "train.idx"
    assert len(RecordFile(folder)) == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:3] + lines[4:],  # without an image in the middle
        lambda lines: lines[:1] + lines[2:],  # without the first image
        lambda lines: lines[:6] + lines[7:],  # without the last image
        lambda lines: lines[1:3] + lines[4:],  # without record 0 and one image
        lambda lines: lines[1:5],  # without record 0 and the end
        lambda lines: [(number - 1, offset) for number, offset in lines[1:]],  # renumbered from 0
    ],
)
def test_missing_or_shifted_index_lines_are_detected(
    tmp_path: Path, change: Callable[[Lines], Lines]
) -> None:
    with pytest.raises(FileFormatError, match="the index lists"):
        RecordFile(save(tmp_path / "set", record_set(), change))


@pytest.mark.parametrize(
    "records",
    [
        record_set()[1:],  # record 0 was never written
        record_set()[1:] + record_set()[:1],  # record 0 is written last, once its numbers are known
        record_set()[:1] + record_set()[7:] + record_set()[1:7],  # identity records before the images
        [(0, pack_record(0, (7.0, 3.0))), *record_set()[1:7]],  # a count, but no identity records
        [(0, pack_record(0, (7.0, 3.0), b"an image that is ignored")), *record_set()[1:7]],
        record_set()[1:7],  # images only
        [(n, pack_record(n, (float((n - 1) // 2), 1.0), b"two labels, a picture")) for n in range(1, 7)],
        record_set()[:7] + [(n, pack_record(n, (1.0, 7.0))) for n in (7, 8, 9)],  # ranges that overlap
    ],
)  # fmt: skip
def test_layouts_of_common_tools_are_read(tmp_path: Path, records: Records) -> None:
    source = RecordFile(save(tmp_path / "set", records))
    assert list(source.keys) == list("123456") and source.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(source.identities) == 3


def test_an_index_without_the_first_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"starts at byte \d+ and does not list the record at byte 0"):
        RecordFile(save(tmp_path / "set", record_set()[1:7], lambda lines: lines[1:]))


def test_a_split_identity_record_is_read(tmp_path: Path) -> None:
    """Its second number, which other tools may set, contains the magic word, at which records are split."""
    header = struct.pack("<IfQQ", 2, 0.0, 2, int.from_bytes(MAGIC_BYTES, "little"))
    ahead, behind = (header + struct.pack("<2f", 1.0, 2.0)).split(MAGIC_BYTES)
    parts = [(1, ahead), (3, behind)]
    split = b"".join(MAGIC_BYTES + struct.pack("<I", kind << 29 | len(part)) + part for kind, part in parts)
    records = [(0, pack_record(0, (2.0, 4.0))), (1, image(1, 0)), (2, split), (3, pack_record(3, (2.0, 2.0)))]
    source = RecordFile(save(tmp_path / "set", records))
    assert source.labels.tolist() == [0] and list(source.keys) == ["1"]
    with pytest.raises(FileFormatError, match=r"identity record at byte .* got \(1\.0, nan\)"):
        broken = split.replace(struct.pack("<f", 2.0), struct.pack("<f", float("nan")))
        RecordFile(save(tmp_path / "broken", [*records[:2], (2, broken), records[3]]))


@pytest.mark.parametrize("change", [lambda lines: lines[1:], lambda lines: lines[1:7]])
def test_the_index_may_omit_records_that_are_not_images(
    tmp_path: Path, change: Callable[[Lines], Lines]
) -> None:
    source = RecordFile(save(tmp_path / "set", record_set(), change))
    assert source.labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_labels_of_a_shuffled_index_are_those_of_the_images(tmp_path: Path) -> None:
    """Two images that are not at the ends of their identities' ranges are exchanged."""
    records = record_set(people=2, each=3)

    def exchange(lines: Lines) -> Lines:
        offsets = dict(lines)
        return list((offsets | {2: offsets[5], 5: offsets[2]}).items())

    assert RecordFile(save(tmp_path / "set", records)).labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert RecordFile(save(tmp_path / "other", records, exchange)).labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_two_concatenated_sets_are_refused(tmp_path: Path) -> None:
    concatenated = record_set() + record_set()
    renumbered = [(row, data) for row, (_, data) in enumerate(concatenated)]
    with pytest.raises(FileFormatError, match="declares images up to record 6, but the index lists 16"):
        RecordFile(save(tmp_path / "renumbered", renumbered))
    with pytest.raises(FileFormatError, match=r"record 6 looks like an identity record.*images follow"):
        RecordFile(
            save(tmp_path / "headless", [(row, data) for row, (_, data) in enumerate(concatenated[1:])])
        )
    with pytest.raises(FileFormatError, match=r"index lists 10 records.*another record follows"):
        RecordFile(save(tmp_path / "first", concatenated, lambda lines: lines[:10]))
    with pytest.raises(FileFormatError, match="record number 0 occurs more than once"):
        RecordFile(save(tmp_path / "both", concatenated))


@pytest.mark.parametrize(("header", "declared"), [((6.0, 6.0), 5), ((8.0, 11.0), 7), ((0.0, 0.0), -1)])
def test_a_contradictory_header_is_refused_but_may_be_left_out_of_the_index(
    tmp_path: Path, header: tuple[float, float], declared: int
) -> None:
    records = [(0, pack_record(0, header)), *record_set()[1:7]]
    with pytest.raises(
        FileFormatError, match=f"declares images up to record {declared}, but the index lists 6"
    ):
        RecordFile(save(tmp_path / "set", records))
    assert len(RecordFile(save(tmp_path / "set", records, lambda lines: lines[1:]))) == 6


def test_only_zero_padding_may_follow_the_last_record(tmp_path: Path) -> None:
    assert len(RecordFile(save(tmp_path / "zeros", record_set(), tail=bytes(999)))) == 6
    for tail in (b"garbage!", image(10, 1.0)[:40]):
        with pytest.raises(FileFormatError, match=f"the {len(tail)} bytes after it are not a record"):
            RecordFile(save(tmp_path / str(len(tail)), record_set(), tail=tail))


def test_a_record_without_content_counts_as_one_broken_image(tmp_path: Path) -> None:
    records = record_set()
    records[3] = 3, pack_record(3, (1.0, 0.0))  # two labels, as in sets with two labels per image
    source = RecordFile(save(tmp_path / "set", records))
    assert len(source) == 6 and source.read(2) == b""


def test_implausibly_large_labels_are_refused_before_allocation(tmp_path: Path) -> None:
    for label, message in [(1e7, "10000001 identities for only 1 images"), (2e9, "expected a whole number")]:
        with pytest.raises(FileFormatError, match=message):
            RecordFile(save(tmp_path / str(label), [(0, image(0, label))]))
    folder = save(tmp_path / "set", [(0, image(0, 0.0))])
    (folder / "property").write_text(f"{10**12},112,112")
    with pytest.raises(FileFormatError, match="1000000000000 identities"):
        RecordFile(folder)
