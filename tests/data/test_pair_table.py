"""Pair lists of users, in their various text formats."""

from pathlib import Path

import numpy as np
import pytest

from spherecf.data import PairBin, open_pairs, open_source
from spherecf.errors import FileFormatError

ROWS = [
    ("a/1.jpg", "a/2.jpg", 1),
    ("a/1.jpg", "b/1.jpg", 0),
    ("b/1.jpg", "b/2.jpg", 1),
    ("b/2.jpg", "c/1.jpg", 0),
]


def write(folder: Path, content: str | bytes, name: str = "own.txt") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(form: str, labels: tuple[str, str] = ("0", "1"), header: str = "") -> str:
    return header + "".join(form.format(left, right, labels[mated]) + "\n" for left, right, mated in ROWS)


@pytest.mark.parametrize(
    "content",
    [
        table("{0} {1} {2}"),
        table("{0}\t{1}\t{2}"),
        table("{0},{1},{2}"),
        table("{0}; {1}; {2}"),
        table("{0}  {1}\t {2}").replace("\t", " "),
        "\ufeff" + table("{0} {1} {2}").replace("\n", "\r\n") + "\r\n\r\n",
        "# my pairs\n" + table("{0} {1} {2}"),
        table('"{0}","{1}",{2}'),
        table("{0} {1} {2}", ("-1", "1")),
        table("{0} {1} {2}", ("0.0", "1.000000")),
        table("{0},{1},{2}", ("False", "True"), "path1,path2,same\n"),
        table("{0},{1},{2}", header="img1,img2,issame\n"),
        table("{0} {1} {2}", ("different", "same"), "image1 image2 label\n"),
        table("{0}\t{1}\t{2}", ("no", "yes"), "left\tright\tmated\n"),
        table("{2};{0};{1}", header="Is_Same;Image A;Image B\n"),
        table("7,{1},{0},{2}", header=",path_2,path_1,match\n"),
        table("{2} {0} {1}"),
        table("{0} {1} {2}").replace("/", "\\"),
    ],
)
def test_every_format_gives_the_same_pairs(tmp_path: Path, content: str) -> None:
    pairs = open_pairs(write(tmp_path, content))
    assert list(zip(pairs.left, pairs.right, pairs.mated.astype(int).tolist())) == ROWS
    assert pairs.subjects == (["a", "a", "b", "b"], ["a", "b", "b", "c"])


def test_a_first_pair_that_could_be_a_header_is_a_pair(tmp_path: Path) -> None:
    """Its label is also that of later pairs."""
    pairs = open_pairs(write(tmp_path, "img1 img2 same\nimg3 img4 same\nimg1 img3 different\n"))
    assert pairs.left == ["img1", "img3", "img1"] and pairs.mated.tolist() == [True, True, False]


@pytest.mark.parametrize("form", ["{fold} {0} {1} {2}", "{0},{1},{2},{fold}"])
def test_fold_columns_are_preserved(tmp_path: Path, form: str) -> None:
    lines = [form.format(*row, fold=1 + position // 2) for position, row in enumerate(ROWS)]
    assert open_pairs(write(tmp_path, "\n".join(lines))).fold.tolist() == [0, 0, 1, 1]
    assert open_pairs(write(tmp_path, "\n".join(lines[::-1]))).fold.tolist() == [1, 1, 0, 0]


def test_names_with_spaces_need_another_separator(tmp_path: Path) -> None:
    pairs = open_pairs(write(tmp_path, "Ann Lee/1.jpg\tAnn Lee/2.jpg\t1\nAnn Lee/1.jpg\tBo, Jr/1.jpg\t0\n"))
    assert pairs.right == ["Ann Lee/2.jpg", "Bo, Jr/1.jpg"]
    with pytest.raises(FileFormatError, match="line 1"):
        open_pairs(write(tmp_path, "Ann Lee/1.jpg Ann Lee/2.jpg 1\n"))


def test_generated_folds_are_consecutive_and_of_equal_size(tmp_path: Path) -> None:
    rows = [(f"a/{n}.jpg", f"{'ab'[n % 2]}/{n + 99}.jpg", 1 - n % 2) for n in range(45)]
    pairs = open_pairs(write(tmp_path, "".join(f"{a} {b} {mated}\n" for a, b, mated in rows)))
    assert pairs.fold.tolist() == sorted(pairs.fold.tolist())
    assert np.bincount(pairs.fold).tolist() == [5] * 5 + [4] * 5


@pytest.mark.parametrize(("mated", "non_mated", "folds"), [(40, 60, 10), (60, 3, 3), (10, 10, 10)])
def test_a_list_sorted_by_label_has_both_kinds_in_each_fold(
    tmp_path: Path, mated: int, non_mated: int, folds: int
) -> None:
    lines = [f"a/{n}.jpg a/{n + 99}.jpg 1" for n in range(mated)] + [
        f"a/{n}.jpg b/{n}.jpg 0" for n in range(non_mated)
    ]
    pairs = open_pairs(write(tmp_path, "\n".join(lines)))
    kinds = [np.bincount(pairs.fold[pairs.mated == kind], minlength=folds) for kind in (True, False)]
    assert pairs.folds == folds and all(counts.min() > 0 and np.ptp(counts) <= 1 for counts in kinds)
    assert open_pairs(tmp_path / "own.txt").fingerprint() == pairs.fingerprint()


@pytest.mark.parametrize(
    "text",
    [
        "1.jpg 2.jpg 1\n1.jpg 3.jpg 0\n",  # no folders
        "x/1.jpg x/2.jpg 1\nx/1.jpg y/1.jpg 1\nx/1.jpg y/2.jpg 0\n",  # one person in two folders
        "day1/1.jpg day1/2.jpg 1\nday1/1.jpg day1/3.jpg 0\nday1/1.jpg day2/3.jpg 0\n",
        "x/1.jpg y/2.jpg 0\nx/1.jpg z/3.jpg 0\n",  # no mated pair shows that folders are people
    ],
)
def test_subjects_are_unknown_unless_folders_identify_them(tmp_path: Path, text: str) -> None:
    assert open_pairs(write(tmp_path, text)).subjects is None


def test_subject_folders_follow_the_common_prefix(tmp_path: Path) -> None:
    pairs = open_pairs(write(tmp_path, table("data/lfw/{0} data/lfw/{1} {2}")))
    assert pairs.subjects == (["a", "a", "b", "b"], ["a", "b", "b", "c"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table("{0} {1} {2}") + "c/1.jpg c/2.jpg 2\n", "line 5.*'2'"),
        (table("{0} {1} {2}") + "c/1.jpg c/2.jpg\n", "line 5"),
        (table("{0},{1},{2}") + '"c/1.jpg,c/2.jpg,1\n', "line 5.*a quote is not closed"),
        (table("{0} {1} {2}") + "c/1.jpg c/2.jpg -1\n", "line 5 has the label -1 and line 2 the label 0"),
        (table("{0} {1} {2}") + "c/1.jpg c/1.jpg 1\n", "line 5.*itself"),
        (table("{0} {1} {2}") + "b/1.jpg a/1.jpg 1\n", "line 5.*line 2"),
        (table("{0} {1} {2}") + "C:\\c\\1.jpg C:\\c\\2.jpg 1\n", "line 5.*drive"),
        ("1 0 1\n1 0 1\n", "`left right label` or `label left right`"),
        ("a/1.jpg 0\nb/1.jpg 1\n", "line 1"),
        ("1\ta/1.jpg\t0\n1\tb/1.jpg\t1\n", "no known layout"),
        ("0\t1.0\ta/1.jpg\n", "line 1"),
        ("Ann\t1\t4\nBo\t1\tCleo\t2\n", "line 1"),
        ("img1,img2,img1,same\na,b,c,1\n", "could both be the left"),
        ("a\0/1.jpg b/1.jpg 1\n", "line 1: expected the path of an image"),
        ("left right label\n", "expected pairs after the header"),
        ("<!DOCTYPE html>\n", "HTML"),
        ("", "empty"),
    ],
)
def test_invalid_tables_are_refused_with_the_line_number(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        open_pairs(write(tmp_path, text))


@pytest.mark.parametrize("fold", ["9223372036854775808", "9" * 5000, "2147483648", "4", "0", "-1", "x"])
@pytest.mark.parametrize("form", ["{fold}\t{0}\t{1}\t{2}", "{0},{1},{2},{fold}"])
def test_invalid_fold_numbers_are_refused(tmp_path: Path, fold: str, form: str) -> None:
    header = "fold\tleft\tright\tmated\n" if "\t" in form else "left,right,label,fold\n"
    folds = ["1", "2", "1", fold]
    lines = [form.format(*row, fold=number) for number, row in zip(folds, ROWS)]
    with pytest.raises(FileFormatError, match=f"line 5.*{fold[:20]}"):
        open_pairs(write(tmp_path, header + "\n".join(lines)))


def test_other_encodings_are_refused_by_name(tmp_path: Path) -> None:
    for encoding, message in (("latin-1", "byte 3"), ("utf-16", "UTF-16")):
        with pytest.raises(FileFormatError, match=message):
            open_pairs(write(tmp_path, "Jos\u00e9/1.jpg Bo/1.jpg 0\n".encode(encoding)))


def test_binary_files_given_as_a_list_are_identified(tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_bytes((80).to_bytes(8, "little") + b'{"mu": {"dtype": "F32"}}\xff\n')
    with pytest.raises(FileFormatError, match="expected text, but this is a safetensors file"):
        open_pairs(tmp_path / "pairs.txt")


def test_a_pair_table_opened_as_images_is_identified(tmp_path: Path) -> None:
    for text in (table("{0} {1} {2}"), table("{0},{1},{2}", header="path1,path2,same\n")):
        with pytest.raises(FileFormatError, match="list of pairs"):
            open_source(write(tmp_path, text))


def test_official_lists_written_as_a_table_give_the_same_pairs(shared: Path, tmp_path: Path) -> None:
    official, packed = open_pairs(shared / "data/lfw/pairs.txt"), PairBin(shared / "data/lfw.bin").pairs
    rows = zip(official.left, official.right, official.mated.astype(int).tolist())
    reread = open_pairs(
        write(tmp_path, "".join(f"{left}\t{right}\t{mated}\n" for left, right, mated in rows))
    )
    assert reread.fingerprint() == official.fingerprint() and reread.subjects == official.subjects
    assert (reread.fold == packed.fold).all()
