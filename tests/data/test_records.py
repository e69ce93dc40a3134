import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.sources import ImageSourceConformance

from spherecf.data import (
    IdentityFolder,
    ImageError,
    RecordFile,
    Skipped,
    SyntheticImages,
    describe,
    iter_images,
    write_records,
)
from spherecf.data.recordio import pack_record
from spherecf.errors import FileFormatError


@pytest.fixture
def records(folder: Path, tmp_path: Path) -> Path:
    write_records(IdentityFolder(folder), tmp_path / "rec")
    return tmp_path / "rec"


def write_plain(folder: Path, records: list[bytes]) -> Path:
    """Write raw records, numbered in order, without header or property file."""
    folder.mkdir()
    offsets = np.cumsum([0, *map(len, records)])[:-1]
    (folder / "train.rec").write_bytes(b"".join(records))
    (folder / "train.idx").write_text("".join(f"{row}\t{offset}\n" for row, offset in enumerate(offsets)))
    return folder


def patch(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def offset_of(records: Path, number: int) -> int:
    return int((records / "train.idx").read_text().splitlines()[number].split("\t")[1])


class TestRecordFile(ImageSourceConformance):
    @pytest.fixture
    def source(self, records: Path) -> RecordFile:
        return RecordFile(records)


class TestWithoutHeader(ImageSourceConformance):
    @pytest.fixture
    def source(self, tmp_path: Path, pictures: list[bytes]) -> RecordFile:
        packed = [pack_record(row, (float(row // 2),), data) for row, data in enumerate(pictures)]
        return RecordFile(write_plain(tmp_path / "plain", packed))


def test_names_give_keys_and_identities(records: Path) -> None:
    source = RecordFile(records)
    assert source.keys[:4] == ["ann/1.jpg", "ann/2.jpg", "ann/deep/3.jpg", "bob/1.jpg"]
    assert source.identities == ["ann", "bob", "cleo"] and source.picture_size == (16, 16)


def test_without_names_keys_are_record_numbers(records: Path) -> None:
    (records / "names.txt").unlink()
    source = RecordFile(records / "train.rec")
    assert source.keys == ["1", "2", "3", "4", "5", "6"] and source.identities == ["0", "1", "2"]
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 2]


def test_without_header_every_record_is_an_image(tmp_path: Path, pictures: list[bytes]) -> None:
    packed = [pack_record(row, (float(row % 2),), data) for row, data in enumerate(pictures)]
    source = RecordFile(write_plain(tmp_path / "plain", packed))
    assert source.name == "plain" and source.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert [source.read(row) for row in range(6)] == pictures


def test_the_first_of_several_labels_is_used(tmp_path: Path, pictures: list[bytes]) -> None:
    packed = [pack_record(0, (4.0, 9.0), pictures[0]), pack_record(1, (2.0,), pictures[1], as_list=True)]
    assert RecordFile(write_plain(tmp_path / "plain", packed)).labels.tolist() == [4, 2]


def test_image_labels_win_over_contradictory_ranges(tmp_path: Path, pictures: list[bytes]) -> None:
    images = [pack_record(row + 1, (float(row),), data) for row, data in enumerate(pictures[:4])]
    ranges = [
        pack_record(5, (1.0, 3.0)),
        pack_record(6, (3.0, 5.0)),
    ]  # declares two people with two images each
    folder = write_plain(tmp_path / "odd", [pack_record(0, (5.0, 7.0)), *images, *ranges])
    assert RecordFile(folder).labels.tolist() == [0, 1, 2, 3]


def test_split_records_are_rejoined(tmp_path: Path, pictures: list[bytes]) -> None:
    content = b"\xff\xd8\xff\xe0" + bytes.fromhex("0a23d7ce") * 2 + b"tail"
    source = RecordFile(write_plain(tmp_path / "plain", [pack_record(0, (0.0,), content)]))
    assert source.read(0) == content


def test_index_order_does_not_matter(records: Path) -> None:
    fingerprint = RecordFile(records).fingerprint()
    lines = (records / "train.idx").read_text().splitlines()
    (records / "train.idx").write_text("\n".join(reversed(lines)))
    assert RecordFile(records).fingerprint() == fingerprint


def test_bad_magic_is_reported_with_its_byte_and_can_be_skipped(records: Path) -> None:
    position = offset_of(records, 2)
    patch(records / "train.rec", position, b"XXXX")
    source = RecordFile(records)
    with pytest.raises(ImageError, match=rf"ann/2\.jpg.*byte {position}: expected the record magic"):
        source.read(1)
    skipped: list[Skipped] = []
    rows = [
        row for batch in iter_images(source, on_error="skip", skipped=skipped) for row in batch.rows.tolist()
    ]
    assert rows == [0, 2, 3, 4, 5] and [item.key for item in skipped] == ["ann/2.jpg"]
    assert describe(source, decode=True)["broken"][0]["key"] == "ann/2.jpg"


def test_a_truncated_file_is_refused_on_opening(records: Path) -> None:
    path = records / "train.rec"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(FileFormatError, match=r"record 7: expected an offset .* truncated"):
        RecordFile(records)


def test_a_truncated_last_record_is_refused_on_opening(records: Path) -> None:
    path = records / "train.rec"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(FileFormatError, match="declares 32 bytes, but only 20 follow"):
        RecordFile(records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda text: text.replace("\t0\n", "\t2\n", 1),
            "record 0: expected an offset that is a multiple of 4 .*got 2",
        ),
        (
            lambda text: text.replace("\t0\n", "\t400000000\n", 1),
            "record 0: expected an offset .*got 400000000",
        ),
        (lambda text: text + "3\t40\n", "record number 3 occurs more than once"),
        (lambda text: text + "11\t40\n", "offset 40 occurs more than once"),
        (lambda text: "zero\t0\n" + text, "line 1: expected `number<TAB>offset`"),
        (lambda text: text.replace("\n", " ", 1), "line 1: expected `number<TAB>offset`"),
        (lambda text: text + "11\n", "line 11: expected"),
        (lambda text: "99999999999999999999\t0\n" + text, "record"),
        (lambda text: "", "empty"),
        (lambda text: "\n \n", "the index is empty"),
        (lambda text: text.replace("\t", "\v"), "expected lines `number<TAB>offset`"),
    ],
)
def test_a_wrong_index_is_refused(records: Path, change: Callable[[str], str], message: str) -> None:
    path = records / "train.idx"
    path.write_text(change(path.read_text()))
    with pytest.raises(FileFormatError, match=message):
        RecordFile(records)


def test_offsets_inside_a_record_are_detected(records: Path) -> None:
    path = records / "train.idx"
    lines = path.read_text().splitlines()
    lines[2] = f"2\t{offset_of(records, 2) + 4}"
    path.write_text("\n".join(lines))
    with pytest.raises(ImageError, match=r"expected the record magic.*Does the index belong to this file"):
        RecordFile(records).read(1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2,16,16", "declares 2 identities, but labels go up to 2"),
        ("3;16;16", "expected `identities,height,width`"),
        ("", "got ''"),
    ],
)
def test_a_wrong_property_is_refused(records: Path, text: str, message: str) -> None:
    (records / "property").write_text(text)
    with pytest.raises(FileFormatError, match=message):
        RecordFile(records)


def test_a_folder_in_place_of_a_property_file_is_refused(records: Path) -> None:
    (records / "property").unlink(missing_ok=True)
    (records / "property").mkdir()
    with pytest.raises(FileFormatError, match="property: cannot read the file"):
        RecordFile(records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("bob/2.jpg", "bob/1.jpg"), "1 keys occur more than once: bob/1.jpg"),
        (lambda text: text.replace("5\tbob/2.jpg\n", ""), "1 of 6 have none"),
        (lambda text: text.replace("\t", " "), "line 1: expected `record number<TAB>name`"),
    ],
)
def test_wrong_names_are_refused(records: Path, change: Callable[[str], str], message: str) -> None:
    path = records / "names.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(FileFormatError, match=message):
        RecordFile(records)


@pytest.mark.parametrize("name", ["train.rec", "train.idx"])
def test_missing_and_empty_files_are_refused(records: Path, name: str) -> None:
    (records / name).write_bytes(b"")
    with pytest.raises(FileFormatError, match="empty"):
        RecordFile(records)
    (records / name).unlink()
    with pytest.raises(FileFormatError, match=f"{name}.*No such file"):
        RecordFile(records / "train.rec")


def test_names_without_a_folder_name_no_identities(tmp_path: Path, pictures: list[bytes]) -> None:
    packed = [pack_record(row, (float(row // 2),), data) for row, data in enumerate(pictures)]
    folder = write_plain(tmp_path / "plain", packed)
    (folder / "names.txt").write_text("".join(f"{row}\tname{row}.jpg\n" for row in range(6)))
    source = RecordFile(folder)
    assert source.keys[5] == "name5.jpg" and source.identities == ["0", "1", "2"]


@pytest.mark.parametrize("label", [float("nan"), 1.5, -2.0])
def test_labels_that_are_not_whole_numbers_are_refused(
    tmp_path: Path, pictures: list[bytes], label: float
) -> None:
    folder = write_plain(tmp_path / "plain", [pack_record(0, (label,), pictures[0])])
    with pytest.raises(FileFormatError, match="expected a whole number as label"):
        RecordFile(folder)


def test_lfw_counts_match_the_published_set(shared: Path) -> None:
    source = RecordFile(shared / "data" / "lfw")
    assert (len(source), len(source.identities), source.picture_size) == (13233, 5749, (112, 112))
    assert source.keys[0] == "AJ_Cook/AJ_Cook_0001.jpg" and source.identities[0] == "AJ_Cook"
    people = np.array([key.split("/")[0] for key in source.keys])
    assert (people == np.array(source.identities)[source.labels]).all()


def test_invalid_identity_ranges_are_refused(tmp_path: Path, pictures: list[bytes]) -> None:
    image = pack_record(1, (0.0,), pictures[0])
    for labels in [(1.0, float("nan")), (1.0,), (0.5, 2.0)]:
        records = [pack_record(0, (2.0, 3.0)), image, pack_record(2, labels, as_list=True)]
        with pytest.raises(FileFormatError, match=r"identity record at byte .* expected a range"):
            RecordFile(write_plain(tmp_path / str(labels), records))


def test_an_invalid_header_record_is_refused(tmp_path: Path, pictures: list[bytes]) -> None:
    records = [pack_record(0, (2.5, float("inf"))), pack_record(1, (0.0,), pictures[0])]
    with pytest.raises(FileFormatError, match="header record 0: expected two record numbers"):
        RecordFile(write_plain(tmp_path / "bad", records))


def test_pickling_shares_the_index_out_of_band(tmp_path: Path) -> None:
    """The pickle of a large set stays small: index arrays and names travel as separate buffers."""
    source = RecordFile(write_records(SyntheticImages(300, 5, size=(8, 8)), tmp_path / "many").path.parent)
    assert source.keys[7] == "0/35"
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(source, 5, buffer_callback=buffers.append)
    assert len(head) < 3000 and sum(len(buffer.raw()) for buffer in buffers) > 300 * 24
    copy = pickle.loads(head, buffers=[memoryview(bytes(buffer.raw())) for buffer in buffers])
    assert copy.keys == source.keys and copy.fingerprint() == source.fingerprint()
    assert all(copy.read(row) == source.read(row) for row in range(0, 300, 37))
    source.path.unlink()
    with pytest.raises(FileFormatError, match="No such file"):
        pickle.loads(head, buffers=buffers)
