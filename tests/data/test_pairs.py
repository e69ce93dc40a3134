from pathlib import Path

import numpy as np
import pytest

from spherecf.data import (
    PairBin,
    PairList,
    RecordFile,
    open_pairs,
    open_source,
    read_cfp_pairs,
    read_lfw_pairs,
)
from spherecf.errors import FileFormatError, InputError

LFW = ["2\t1", "Ann\t1\t4", "Ann\t2\tBob B\t1", "Cleo\t10\t2", "Cleo\t1\tAnn\t1"]
CFP = ["fold\tleft\tright\tmated", "1\t1/f/1.jpg\t1/p/1.jpg\t1", "2\t1/f/1.jpg\t2/p/1.jpg\t0"]


def write(folder: Path, lines: list[str]) -> Path:
    path = folder / "pairs.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_lfw_format_is_read(tmp_path: Path) -> None:
    pairs = open_pairs(write(tmp_path, LFW))
    assert pairs.left == ["Ann/Ann_0001.jpg", "Ann/Ann_0002.jpg", "Cleo/Cleo_0010.jpg", "Cleo/Cleo_0001.jpg"]
    assert pairs.right[1] == "Bob B/Bob B_0001.jpg"
    assert pairs.mated.tolist() == [True, False, True, False] and pairs.fold.tolist() == [0, 0, 1, 1]
    assert pairs.subjects_right == ["Ann", "Bob B", "Cleo", "Ann"]


def test_lfw_development_list_is_one_fold(tmp_path: Path) -> None:
    assert open_pairs(write(tmp_path, ["1", *LFW[1:3]])).folds == 1


@pytest.mark.parametrize(
    ("row", "line", "message"),
    [
        (0, "ten 300", "line 1: expected `folds"),
        (0, "3\t1", "line 1 declares 3 folds of 2 x 1 pairs = 6 lines, but 4 follow"),
        (0, "0\t0", "line 1"),
        (1, "Ann\t1", "line 2: expected `name n m`"),
        (1, "Ann\t1\tBob\t2", "line 2: expected `name n m`"),
        (4, "Ann\t1\t2", "line 5: expected `name n other m`"),
        (4, "Ann\t1\tAnn\t2", "line 5: expected `name n other m`"),
        (3, "Cleo\tx\t2", "line 4: expected image numbers"),
    ],
)
def test_lfw_errors_state_the_line_number(tmp_path: Path, row: int, line: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_lfw_pairs(write(tmp_path, [*LFW[:row], line, *LFW[row + 1 :]]))


def test_cfp_format_is_read(tmp_path: Path) -> None:
    pairs = open_pairs(write(tmp_path, CFP))
    assert pairs.mated.tolist() == [True, False] and pairs.fold.tolist() == [0, 1]
    assert pairs.subjects_left == ["1", "1"] and pairs.subjects_right == ["1", "2"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["left\tright", *CFP[1:]], "line 1: expected 'fold<TAB>left"),
        ([*CFP, "3\t1/f/1.jpg\t1/p/1.jpg"], "line 4: expected `fold left right label`"),
        ([*CFP, "0\t1/f/1.jpg\t1/p/1.jpg\t1"], "line 4"),
        ([*CFP, "2\t1/f/1.jpg\t1/p/1.jpg\tperhaps"], "line 4"),
        ([*CFP, "2\t1/f/1.jpg\t1/p/1.jpg\t0"], "line 4: mated is 0, which contradicts the subjects"),
        ([*CFP, "2\t1/f/1.jpg\t1/p/1.jpg\t1"], r"folds of equal size, got \[1, 2\]"),
        ([*CFP, "4\t1/f/1.jpg\t1/p/1.jpg\t1"], "line 4: expected a fold from 1 to"),
        (CFP[:1], "folds of equal size"),
        ([], "line 1: .* an empty file"),
    ],
)
def test_cfp_errors_state_the_line_number(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_cfp_pairs(write(tmp_path, lines))


def test_files_that_are_not_pair_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="Supported: LFW's"):
        open_pairs(write(tmp_path, ["ann/1.jpg 0"]))
    with pytest.raises(FileFormatError, match="No such file"):
        open_pairs(tmp_path / "none.txt")


def toy(**changes: object) -> PairList:
    columns = {
        "left": ["a", "b"],
        "right": ["c", "c"],
        "mated": np.array([True, False]),
        "fold": np.array([0, 1]),
    }
    return PairList("toy", **(columns | changes))  # type: ignore[arg-type]


def test_rows_are_looked_up_and_unknown_keys_reported() -> None:
    left, right = toy().rows(["c", "x", "b", "a"])
    assert left.tolist() == [3, 2] and right.tolist() == [0, 0]
    with pytest.raises(InputError, match=r"toy: 2 images .* among the 2 images given.*b, c.*look like a, x"):
        toy().rows(["a", "x"])


@pytest.mark.parametrize(
    "changes",
    [{"left": ["a"]}, {"fold": np.array([0, 2])}, {"fold": np.array([-1, 0])}, {"subjects_left": ["p"]}],
)
def test_inconsistent_columns_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match="toy: "):
        toy(**changes)


def test_fingerprint_depends_on_keys_labels_and_folds() -> None:
    changes = [{}, {"left": ["b", "a"]}, {"mated": np.array([True, True])}, {"fold": np.array([0, 0])}]
    changes.append({"left": ["a", "b\0c"], "right": ["c", "c"]})
    assert len({toy(**change).fingerprint() for change in changes}) == 5
    assert toy().fingerprint() == toy(subjects_left=["p", "q"]).fingerprint()


def test_lfw_list_and_bin_contain_the_same_pairs(shared: Path) -> None:
    pairs, records = open_pairs(shared / "data/lfw/pairs.txt"), RecordFile(shared / "data/lfw")
    packed = PairBin(shared / "data/lfw.bin")
    assert (pairs.mated == packed.pairs.mated).all() and (pairs.fold == packed.pairs.fold).all()
    left, right = pairs.rows(records.keys)
    for pair in range(0, len(pairs), 37):
        assert records.read(int(left[pair])) == packed.read(2 * pair)
        assert records.read(int(right[pair])) == packed.read(2 * pair + 1)


def test_cfp_lists_match_the_folder(shared: Path) -> None:
    source = open_source(shared / "data/cfp")
    for kind in ("FP", "FF"):
        pairs = open_pairs(shared / f"data/cfp/pairs_{kind}.txt")
        assert (len(pairs), pairs.folds, int(pairs.mated.sum())) == (7000, 10, 3500)
        left, right = pairs.rows(source.keys)
        assert ((source.labels[left] == source.labels[right]) == pairs.mated).all()


def test_lfw_names_match_keys_with_any_suffix_and_root(tmp_path: Path) -> None:
    pairs = open_pairs(write(tmp_path, LFW))
    keys = sorted({*pairs.left, *pairs.right})
    expected = [rows.tolist() for rows in pairs.rows(keys)]
    for old, new in ((".jpg", ".png"), (".jpg", ".JPG"), (".jpg", ""), ("/", "\\")):
        assert [rows.tolist() for rows in pairs.rows([key.replace(old, new) for key in keys])] == expected
    assert [rows.tolist() for rows in pairs.rows([f"lfw/{key}" for key in keys])] == expected
    with pytest.raises(InputError, match="Ann_0001"):
        pairs.rows([*(key.replace(".jpg", ".png") for key in keys), "Ann/Ann_0001.bmp"])


def test_a_path_is_refused_as_the_name_of_a_person(tmp_path: Path) -> None:
    """Its first folder would be read as the person, so that the non-mated Ann and Ann/1 would coincide."""
    path = tmp_path / "pairs.txt"
    path.write_text("1\t1\nAnn\t1\t2\nAnn\t2\tAnn/1\t1\n")
    with pytest.raises(FileFormatError, match="line 3"):
        open_pairs(path)
