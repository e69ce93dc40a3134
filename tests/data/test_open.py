import pickle
from pathlib import Path

import pytest

from spherecf.data import (
    IdentityFolder,
    ListFile,
    PairBin,
    RecordFile,
    open_pairs,
    open_source,
    write_records,
)
from spherecf.errors import FileFormatError


def test_every_layout_is_recognised(folder: Path, tmp_path: Path, pictures: list[bytes]) -> None:
    write_records(IdentityFolder(folder), tmp_path / "rec")
    (tmp_path / "list.txt").write_text("faces/ann/1.jpg ann\n")
    (tmp_path / "toy.bin").write_bytes(pickle.dumps((pictures, [True] * 3)))
    for path, kind in [
        (folder, IdentityFolder),
        (tmp_path / "rec", RecordFile),
        (tmp_path / "rec/train.rec", RecordFile),
        (tmp_path / "list.txt", ListFile),
        (tmp_path / "toy.bin", PairBin),
    ]:
        assert type(open_source(path)) is kind


def test_the_pairs_of_a_bin_are_a_pair_list(tmp_path: Path, pictures: list[bytes]) -> None:
    (tmp_path / "toy.bin").write_bytes(pickle.dumps((pictures, [True, False, True])))
    pairs = open_pairs(tmp_path / "toy.bin")
    assert pairs.left == ["toy/000000", "toy/000002", "toy/000004"] and pairs.mated.tolist() == [1, 0, 1]


def test_list_paths_may_be_relative_to_another_root(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("ann/1.jpg ann\n")
    assert len(open_source(tmp_path / "list.txt", root=folder)) == 1


def test_unknown_files_are_refused_with_the_supported_layouts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.npz").write_bytes(bytes(50))
    for path in (tmp_path / "none", tmp_path / "empty", tmp_path / "x.npz", folder / "ann/1.jpg"):
        with pytest.raises(FileFormatError, match=r"Supported: a folder with train\.rec"):
            open_source(path)


def test_a_pair_list_opened_as_images_is_identified(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("10\t300\n")
    with pytest.raises(FileFormatError, match="this is a list of pairs"):
        open_source(tmp_path / "pairs.txt")
