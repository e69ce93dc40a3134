"""The official IJB files: read unmodified, and refused with the line number where they are invalid."""

from pathlib import Path

import numpy as np
import pytest

from spherecf.data import IjbMeta, TemplateList, TemplatePairs, read_ijb, write_ijb
from spherecf.errors import FileFormatError, InputError

ENTRIES = "1.jpg 1 10\n2.jpg 1 10\n3.jpg 1 11\n4.jpg 2 12\n5.jpg 3 13\n6.jpg 4 14\n"
PAIRS = "1 2 1\n1 3 0\n4 2 0\n"
SCORES = "".join(f"{n}.jpg {' '.join(str(10 * n + i) for i in range(10))} 0.{n}\n" for n in range(1, 7))
GALLERY_1 = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n1,100,a.jpg\n1,100,b.jpg\n"
GALLERY_2 = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n3,102,a.jpg\n"
PROBES = "TEMPLATE_ID,SUBJECT_ID\n4,103\n2,100\n"
FILES = {
    "face_tid_mid.txt": ENTRIES, "template_pair_label.txt": PAIRS, "name_5pts_score.txt": SCORES,
    "1N_gallery_G1.csv": GALLERY_1, "1N_gallery_G2.csv": GALLERY_2, "1N_probe_mixed.csv": PROBES,
}  # fmt: skip


def written(folder: Path, name: str = "ijbc", **changed: str) -> Path:
    """Write a complete set; ``changed`` replaces file contents ("pairs" is short for the pair list etc.)."""
    short = {"entries": 0, "pairs": 1, "scores": 2, "g1": 3, "g2": 4, "probes": 5}
    names = list(FILES)
    folder.mkdir(exist_ok=True, parents=True)
    for suffix, text in (FILES | {names[short[key]]: text for key, text in changed.items()}).items():
        file_suffix = suffix if name == "ijbc" else suffix.replace("_G", "_S")
        (folder / f"{name}_{file_suffix}").write_text(text)
    return folder


@pytest.mark.parametrize("where", [".", "meta"])
def test_all_official_files_are_read(tmp_path: Path, where: str) -> None:
    written(tmp_path / where)
    meta = read_ijb(tmp_path, set="ijbc")
    assert meta.name == "ijbc" and len(meta) == 6 and not meta.absent
    assert list(meta.files[:2]) == ["1.jpg", "2.jpg"] and meta.media.tolist() == [10, 10, 11, 12, 13, 14]
    assert meta.pairs is not None and meta.pairs.mated.tolist() == [True, False, False]
    assert meta.points is not None and meta.points[0].tolist() == [[10 + i, 11 + i] for i in range(0, 10, 2)]
    assert meta.detector_score == pytest.approx(np.arange(1, 7) / 10)
    assert meta.galleries["G1"].templates.tolist() == [1] and meta.galleries["G2"].subjects.tolist() == [102]
    assert meta.probes is not None and meta.probes.templates.tolist() == [2, 4]
    assert meta.subjects() == {1: 100, 3: 102, 2: 100, 4: 103}


def test_ijbb_file_names_differ_from_ijbc(tmp_path: Path) -> None:
    meta = read_ijb(written(tmp_path, "ijbb"), set="ijbb")
    assert list(meta.galleries) == ["S1", "S2"]
    with pytest.raises(FileFormatError, match="no such file, neither here nor in the sub-folder meta"):
        read_ijb(tmp_path, set="ijbc")


def test_missing_files_give_none_and_a_reason(tmp_path: Path) -> None:
    (tmp_path / "ijbc_face_tid_mid.txt").write_text(ENTRIES)
    meta = read_ijb(tmp_path)
    assert meta.pairs is None and meta.probes is None and meta.detector_score is None and not meta.galleries
    assert set(meta.absent) == {f"ijbc_{name}" for name in FILES if name != "face_tid_mid.txt"}


def test_an_image_in_two_templates_needs_one_landmark_line(tmp_path: Path) -> None:
    meta = read_ijb(written(tmp_path, entries=ENTRIES + "1.jpg 4 15\n"))
    assert meta.detector_score is not None and meta.detector_score[-1] == meta.detector_score[0]


def test_a_written_set_reads_back_unchanged(tmp_path: Path) -> None:
    meta = read_ijb(written(tmp_path / "a", entries=ENTRIES + "1.jpg 4 15\n"))
    reread = read_ijb(write_ijb(tmp_path / "b", meta))
    assert reread.fingerprint() == meta.fingerprint() and not reread.absent
    assert np.array_equal(reread.points, meta.points)
    other_pairs = read_ijb(written(tmp_path / "c", pairs="1 2 1\n1 3 0\n4 2 1\n"))
    assert other_pairs.fingerprint() != read_ijb(written(tmp_path / "a")).fingerprint()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"entries": ENTRIES + "7.jpg 4\n"}, "face_tid_mid.txt: line 7: expected `file template medium`"),
        ({"entries": ENTRIES + "7.jpg x 3\n"}, "face_tid_mid.txt: line 7: .*template 'x' is not a 32-bit"),
        ({"entries": ENTRIES + "\n2.jpg 1 9\n"}, "mid.txt: line 8: '2.jpg' is listed twice in template 1"),
        ({"entries": ""}, "face_tid_mid.txt: .*the file has none"),
        ({"pairs": PAIRS + "9 1 0\n"}, "label.txt: line 4: template 9 has no image .* \\(1 pairs have"),
        ({"pairs": PAIRS + "1 9 0\n"}, "label.txt: line 4: template 9 has no image"),
        ({"pairs": PAIRS + "1 2\n"}, "label.txt: line 4: .*2 fields instead of 3"),
        ({"pairs": PAIRS + "1 2 2\n"}, "label.txt: line 4: expected label 0 or 1, got 2"),
        ({"pairs": PAIRS + "2 1 0\n"}, "label.txt: line 4: templates 2 and 1 are non-mated here and mated"),
        ({"pairs": "1 2 1\n"}, "label.txt: line 1: 1 mated and 0 non-mated pairs; error rates need both"),
        ({"pairs": "1 3 0\n"}, "label.txt: line 1: 0 mated and 1 non-mated"),
        ({"pairs": ""}, "label.txt: .*the file has none"),
        ({"scores": SCORES + SCORES[:40].splitlines()[0] + "\n"}, "line 7: '1.jpg' is listed twice"),
        ({"scores": SCORES.split("\n", 1)[1]}, "1 of 6 are not listed, first '1.jpg'"),
        ({"scores": SCORES.replace("0.3", "nan")}, "score.txt: line 3: .*score 'nan' is not a finite number"),
        ({"scores": "1.jpg 1 2 3\n"}, "score.txt: line 1: .*4 fields instead of 12"),
        ({"g1": GALLERY_1 + "1,104,c.jpg\n"}, "G1.csv: line 4: template 1 is of subject 104 here and of 100"),
        ({"g1": GALLERY_1 + "2,100,c.jpg\n"}, "G1.csv: line 4: .*subject 100 has two, 1 and 2"),
        ({"g2": GALLERY_2 + "77,1,c.jpg\n"}, "G2.csv: line 3: template 77 has no image"),
        ({"g1": "1,100,a.jpg\n"}, "G1.csv: line 1: expected a header line"),
        ({"probes": PROBES + "x,1\n"}, "probe_mixed.csv: line 4: .*template 'x' is not a 32-bit"),
        ({"probes": PROBES + "3,103\n"}, "probe_mixed.csv: line 4: template 3 is of subject 103 here"),
    ],
)  # fmt: skip
def test_invalid_files_are_refused_with_the_line_number(
    tmp_path: Path, changed: dict[str, str], message: str
) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_ijb(written(tmp_path, **changed))


def test_sets_that_the_ijb_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected one of ijbb, ijbc"):
        read_ijb(tmp_path, set="ijba")
    ids = np.array([1, 2])
    spaced = IjbMeta("mine", ["a b.jpg", "c.jpg"], ids, ids)
    with pytest.raises(InputError, match="1 names contain spaces"):
        write_ijb(tmp_path, spaced)
    enrolled = {"mine": TemplateList(ids[:1], ids[:1])}
    with pytest.raises(InputError, match="galleries: ijbc has"):
        write_ijb(tmp_path, IjbMeta("mine", ["a", "c"], ids, ids, galleries=enrolled))
    scored = IjbMeta("mine", ["a", "c"], ids, ids, detector_score=np.ones(2, np.float32))
    with pytest.raises(InputError, match="only one of them"):
        write_ijb(tmp_path, scored)
    assert not list(tmp_path.glob("*1N*"))


def test_errors_in_constructed_pairs_state_the_row() -> None:
    ids = np.array([1, 2, 3])
    pairs = TemplatePairs(ids[:2], np.array([2, 9]), np.array([True, False]))
    with pytest.raises(InputError, match="mine: pairs, row 1: template 9 has no image"):
        IjbMeta("mine", ["a", "b", "c"], ids, ids, pairs)
    with pytest.raises(InputError, match="columns of equal length"):
        IjbMeta("mine", ["a", "b"], ids, ids)
    for mated, message in [
        ([True], r"pairs, row 0: expected three columns of equal length, at least 1, got \[2, 2, 1\]"),
        ([True, True], "pairs, row 0: 2 mated and 0 non-mated pairs; error rates need both"),
    ]:
        with pytest.raises(InputError, match=message):
            IjbMeta("mine", ["a", "b", "c"], ids, ids, TemplatePairs(ids[:2], ids[1:], np.array(mated)))
    assert IjbMeta("mine", ["a", "b", "c"], ids, ids).repeated_pairs() == 0
    meta = IjbMeta("mine", ["a", "b", "c"], ids, ids, TemplatePairs(
        np.array([1, 2, 3, 1]), np.array([2, 1, 1, 3]), np.array([True, True, False, False])
    ))  # fmt: skip
    assert meta.repeated_pairs() == 2
