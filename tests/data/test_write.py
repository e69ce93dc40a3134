import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import picture

from spherecf.data import (
    IdentityFolder,
    ImageError,
    ImageSource,
    ListFile,
    PairBin,
    PairList,
    RecordFile,
    Skipped,
    open_pairs,
    write_folder,
    write_list,
    write_pair_bin,
    write_records,
    writers as writers_module,
)
from spherecf.errors import InputError, StorageError


def same(one: ImageSource, other: ImageSource) -> bool:
    """Whether keys, labels, identities and stored bytes are equal, in order."""
    contents = ([source.read(row) for row in range(len(source))] for source in (one, other))
    return (
        one.keys == other.keys
        and one.labels.tolist() == other.labels.tolist()
        and one.identities == other.identities
        and next(contents) == next(contents)
    )


def test_folder_to_records_and_back_round_trips(folder: Path, tmp_path: Path) -> None:
    source = IdentityFolder(folder)
    records = write_records(source, tmp_path / "rec")
    assert same(source, records) and same(source, write_folder(records, tmp_path / "again"))


def test_record_layout(folder: Path, tmp_path: Path) -> None:
    write_records(IdentityFolder(folder), tmp_path / "rec")
    data = (tmp_path / "rec/train.rec").read_bytes()
    offsets = [int(line.split("\t")[1]) for line in (tmp_path / "rec/train.idx").read_text().splitlines()]
    assert (tmp_path / "rec/property").read_text() == "3,16,16" and len(offsets) == 1 + 6 + 3
    assert struct.unpack_from("<IIIfQQ2f", data, 0) == (0xCED7230A, 32, 2, 0.0, 0, 0, 7.0, 10.0)
    assert struct.unpack_from("<IIIfQQ2f", data, offsets[8]) == (0xCED7230A, 32, 2, 0.0, 8, 0, 4.0, 6.0)
    assert struct.unpack_from("<IfQ", data, offsets[4] + 8) == (0, 1.0, 4)


def test_a_subset_keeps_its_label_numbers(folder: Path, tmp_path: Path) -> None:
    part = IdentityFolder(folder).subset([5, 0])
    records = write_records(part, tmp_path / "rec")
    assert records.keys == ["ann/1.jpg", "cleo/1.jpg"] and records.labels.tolist() == [0, 2]
    assert len(records.identities) == 3


def test_other_formats_are_stored_as_png(tmp_path: Path) -> None:
    root = tmp_path / "grey" / "p"
    root.mkdir(parents=True)
    (root / "1.pgm").write_bytes(b"P5 4 4 255 " + bytes(range(16)))
    source = IdentityFolder(tmp_path / "grey")
    records = write_records(source, tmp_path / "rec")
    assert records.read(0).startswith(b"\x89PNG") and np.array_equal(records.image(0), source.image(0))
    assert write_folder(source, tmp_path / "copy").read(0) == source.read(0)


def test_broken_images_are_skipped_and_listed_or_raise(folder: Path, tmp_path: Path) -> None:
    (folder / "bob/1.jpg").write_bytes(picture(0)[:-20])
    source = IdentityFolder(folder)
    for write in (write_records, write_folder):
        with pytest.raises(ImageError, match=r"bob/1\.jpg"):
            write(source, tmp_path / "new")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["faces"]
        skipped: list[Skipped] = []
        result = write(source, tmp_path / write.__name__, skipped=skipped)
        assert len(result) == 5 and [item.key for item in skipped] == ["bob/1.jpg"]
        (tmp_path / write.__name__).rename(folder.parent.parent / f"{tmp_path.name}-{write.__name__}")


def test_a_set_of_broken_images_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad/p").mkdir(parents=True)
    (tmp_path / "bad/p/1.jpg").write_text("text")
    for write in (write_records, write_folder):
        with pytest.raises(InputError, match="all 1 are broken"):
            write(IdentityFolder(tmp_path / "bad"), tmp_path / "new", skipped=[])


def test_existing_files_are_not_overwritten(folder: Path, tmp_path: Path) -> None:
    for write in (write_records, write_folder):
        with pytest.raises(InputError, match="not an empty folder"):
            write(IdentityFolder(folder), folder)
    (tmp_path / "empty").mkdir()
    assert len(write_records(IdentityFolder(folder), tmp_path / "empty")) == 6


def test_a_full_disk_leaves_no_partial_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers_module, "pack_record", full)
    with pytest.raises(StorageError, match="No space left"):
        write_records(IdentityFolder(folder), tmp_path / "rec")
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_records_require_identities(folder: Path, tmp_path: Path) -> None:
    (folder / "loose.jpg").write_bytes(picture(9))
    with pytest.raises(InputError, match="1 of 7 have none"):
        write_records(IdentityFolder(folder), tmp_path / "rec")
    assert write_folder(IdentityFolder(folder), tmp_path / "copy").labels.tolist().count(-1) == 1


@pytest.mark.parametrize("key", ["ann/../../out.jpg", "../out.jpg", "ann/.hidden.jpg", "ann/a\\b.jpg"])
def test_keys_cannot_escape_the_target_folder(folder: Path, tmp_path: Path, key: str) -> None:
    records = write_records(IdentityFolder(folder), tmp_path / "rec").path.parent
    names = (records / "names.txt").read_text()
    (records / "names.txt").write_text(names.replace("ann/1.jpg", key))
    with pytest.raises(InputError, match="not a safe file name"):
        write_folder(RecordFile(records), tmp_path / "new")
    assert not list(tmp_path.rglob("out.jpg"))


def test_a_set_that_records_cannot_hold_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writers_module, "EXACT", 9)  # instead of 2^24
    with pytest.raises(InputError, match="at most 8 images and identities in total, got 9; write several"):
        write_records(IdentityFolder(folder), tmp_path / "rec")
    (folder / "ann/1.jpg").rename(folder / "ann/a\tb.jpg")
    monkeypatch.setattr(writers_module, "EXACT", 10)
    with pytest.raises(InputError, match=r"a key contains a tab or a line break, which names\.txt cannot"):
        write_records(IdentityFolder(folder), tmp_path / "rec")
    assert [path.name for path in tmp_path.iterdir()] == ["faces"]


def test_two_keys_with_the_same_target_path_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("ann/1.jpg -1\nbob/1.jpg b\n")
    (folder / "ann_1.jpg").write_bytes(picture(3))
    (tmp_path / "list.txt").write_text("ann/1.jpg -1\nann_1.jpg -1\n")
    with pytest.raises(InputError, match=r"would both be written to ann_1\.jpg"):
        write_folder(ListFile(tmp_path / "list.txt", folder), tmp_path / "new")


def test_pair_bin_round_trips(folder: Path, tmp_path: Path) -> None:
    source = IdentityFolder(folder)
    rows = [(row % 6, (row * 5 + 1) % 6) for row in range(20)]
    mated = np.array([source.labels[left] == source.labels[right] for left, right in rows])
    fold = np.repeat(np.arange(10), 2)[::-1].copy()
    pairs = PairList("toy", [source.keys[a] for a, _ in rows], [source.keys[b] for _, b in rows], mated, fold)
    pair_bin = write_pair_bin(source, pairs, tmp_path / "toy.bin")
    assert pair_bin.pairs.mated.tolist() == mated[np.argsort(fold, kind="stable")].tolist()
    assert pair_bin.read(0) == source.read(rows[18][0]) and pair_bin.read(1) == source.read(rows[18][1])
    assert same(pair_bin, write_pair_bin(pair_bin, pair_bin.pairs, tmp_path / "copy" / "toy.bin"))


def test_pair_bin_refuses_folds_other_than_ten_of_equal_size(folder: Path, tmp_path: Path) -> None:
    source = IdentityFolder(folder)
    fold = np.repeat(np.arange(5), 4)
    pairs = PairList("toy", source.keys[:1] * 20, source.keys[1:2] * 20, np.ones(20, bool), fold)
    with pytest.raises(InputError, match=r"ten folds of equal size .*got folds of \[4, 4, 4, 4, 4\]"):
        write_pair_bin(source, pairs, tmp_path / "toy.bin")


@pytest.mark.slow
def test_lfw_round_trips(shared: Path, tmp_path: Path) -> None:
    source = RecordFile(shared / "data/lfw")
    part = source.subset(range(1000))
    rewritten = write_records(write_folder(part, tmp_path / "folder"), tmp_path / "rec")
    assert rewritten.fingerprint() == part.fingerprint()
    packed = write_pair_bin(source, open_pairs(shared / "data/lfw/pairs.txt"), tmp_path / "lfw.bin")
    original = PairBin(shared / "data/lfw.bin")
    assert all(packed.read(row) == original.read(row) for row in range(len(original)))


def test_a_list_preserves_names_labels_and_unknown_identities(folder: Path, tmp_path: Path) -> None:
    (folder / "loose.jpg").write_bytes((folder / "bob/1.jpg").read_bytes())
    source = IdentityFolder(folder)
    listed = write_list(source, tmp_path / "new")
    assert listed.name == "new" and listed.identities == ["ann", "bob", "cleo"]
    assert listed.keys == [f"images/{key}" for key in source.keys]
    assert listed.labels.tolist() == source.labels.tolist() and -1 in listed.labels
    assert all(listed.read(row) == source.read(row) for row in range(len(source)))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["images", "list.txt"]


def test_images_without_a_suffix_get_that_of_their_format(tmp_path: Path) -> None:
    stored = [picture(0), picture(1, ".png"), picture(2, ".bmp"), picture(3)]
    (tmp_path / "toy.bin").write_bytes(pickle.dumps((stored, [True, False])))
    source = PairBin(tmp_path / "toy.bin")
    listed = write_list(source, tmp_path / "new")
    assert [key.rsplit("/", 1)[1] for key in listed.keys] == [
        "toy_000000.jpg", "toy_000001.png", "toy_000002.png", "toy_000003.jpg"
    ]  # fmt: skip
    assert [listed.read(row) == stored[row] for row in range(4)] == [True, True, False, True]
    assert all(np.array_equal(listed.image(row), source.image(row)) for row in range(4))


def test_names_that_a_list_cannot_represent_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "ann").rename(folder / "-1")
    with pytest.raises(InputError, match=r"1 names of identities cannot be written to a list .*first '-1'"):
        write_list(IdentityFolder(folder), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_list_omits_broken_images(folder: Path, tmp_path: Path) -> None:
    (folder / "ann/2.jpg").write_text("text")
    skipped: list[Skipped] = []
    listed = write_list(IdentityFolder(folder), tmp_path / "new", skipped=skipped)
    assert len(listed) == 5 and [item.key for item in skipped] == ["ann/2.jpg"]
