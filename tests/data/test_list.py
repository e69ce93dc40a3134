import unicodedata
from pathlib import Path

import pytest
from tests.conformance.sources import ImageSourceConformance

from spherecf.data import ImageError, ListFile, describe, open_source
from spherecf.errors import FileFormatError


def write(folder: Path, *lines: str) -> Path:
    path = folder / "list.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


class TestListFile(ImageSourceConformance):
    @pytest.fixture
    def source(self, folder: Path) -> ListFile:
        return ListFile(write(folder, "cleo/1.jpg 7", "ann/1.jpg 10", "./ann/2.jpg\t10", "bob/1.jpg -1"))


def test_numeric_labels_sort_numerically_and_minus_one_means_unknown(folder: Path) -> None:
    source = ListFile(write(folder, "# a comment", "cleo/1.jpg 7", "", "ann/1.jpg 10", "bob/1.jpg -1"))
    assert source.identities == ["7", "10"] and source.labels.tolist() == [0, 1, -1]


def test_paths_may_contain_spaces_and_refer_to_another_root(folder: Path, tmp_path: Path) -> None:
    (folder / "ann" / "two words.jpg").write_bytes((folder / "ann/1.jpg").read_bytes())
    path = write(tmp_path, "ann/two words.jpg ann", "bob/1.jpg\tbob b")
    source = ListFile(path, root=folder)
    assert source.keys == ["ann/two words.jpg", "bob/1.jpg"] and source.identities == ["ann", "bob b"]


def test_absolute_paths_are_read(folder: Path, tmp_path: Path) -> None:
    source = ListFile(write(tmp_path, f"{folder}/ann/1.jpg 0"))
    assert source.image(0).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["ann/1.jpg 0", "ann/2.jpg"], "line 2: expected `image_path label`"),
        (["ann/1.jpg\t0\t3"], "line 1: expected"),
        (["ann/1.jpg 0", "bob/1.jpg 1", "./ann/1.jpg 0"], "line 3: ann/1.jpg is already on line 1"),
        (["nowhere/1.jpg 0"], "line 1: no such image"),
        (["# only this"], "the file has none"),
    ],
)
def test_errors_state_the_line_number(folder: Path, lines: list[str], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        ListFile(write(folder, *lines))


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="No such file"):
        ListFile(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"abc \xff\xfe")
    with pytest.raises(FileFormatError, match="byte 4"):
        ListFile(tmp_path / "binary.txt")


def test_the_error_of_a_missing_image_states_its_line(folder: Path) -> None:
    source = ListFile(write(folder, "ann/1.jpg 0", "ann/gone.jpg 0"))
    with pytest.raises(ImageError, match=r"line 2.*gone"):
        source.read(1)


LINES = ["ann/1.jpg", "ann/2.jpg", "bob/1.jpg", "cleo/1.jpg"]


def listed(
    folder: Path, form: str, labels: tuple[str, ...] = ("0", "0", "1", "2"), header: str = ""
) -> ListFile:
    lines = [form.format(name, label, row) for row, (name, label) in enumerate(zip(LINES, labels))]
    source = open_source(write(folder, *([header] if header else []), *lines))
    assert isinstance(source, ListFile)
    return source


@pytest.mark.parametrize(
    ("form", "header"),
    [
        ("{0},{1}", ""),
        ('"{0}", "{1}"', ""),
        ("{0};{1}", "path;label"),
        ("{0},{1}", "image_path,identity"),
        ("{1},{0}", "label,path"),
        ("{1} {0}", ""),
        ("{0}\t{1}\r", ""),
        ("{2}\t{1}.000000\t{0}", ""),
        ("{2}\t{1}\t{0}", ""),
        ("{2}\t{1}.0\t0.5\t{0}", ""),
        ("{2} {1}.0 {0}", ""),
        ("1\t{0}\t{1}", ""),
        ("0\t{0}\t{1}\t1\t2\t30\t40", ""),
        ("1\t{0}\t{1}" + "\t5" * 14, ""),
    ],
)
def test_list_formats_of_other_tools_are_read_alike(folder: Path, form: str, header: str) -> None:
    source = listed(folder, form, header=header)
    assert source.keys == LINES and source.labels.tolist() == [0, 0, 1, 2]
    assert source.identities == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1\t2\t1", "line 1.*MXNet.*insightface"),
        ("1\tann/1.jpg\tann", "line 1"),
        ("x\t0\tann/1.jpg", "line 1"),
        ("1\tann/1.jpg\t0\t5", "line 1"),
        ("C:\\faces\\ann\\1.jpg 0", "line 1.*drive"),
        ("x" * 300 + "/1.jpg 0", "line 1.*300 bytes"),
        ("ann 0", "line 1.*folder"),
        ("ann\0/1.jpg 0", "line 1: expected the path of an image, got"),
        ("<!DOCTYPE html>", "HTML"),
    ],
)
def test_unknown_lines_are_refused_with_the_line_number(folder: Path, line: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        ListFile(write(folder, line))


def test_labels_are_numeric_only_if_all_are_numbers(folder: Path) -> None:
    source = listed(folder, "{0}\t{1}", ("10.000000", "9.0", "-1.000000", "2"))
    assert source.identities == ["2", "9", "10"] and source.labels.tolist() == [2, 1, -1, 0]
    assert listed(folder, "{0}\t{1}", ("1.5", "a", "1.0", "a")).identities == ["1.0", "1.5", "a"]
    for label in ("0.5", "nan", "inf", "1e300", "0.1e999000000", "1e99999999999999999999"):
        with pytest.raises(FileFormatError, match=f"line 3: label '{label}'"):
            listed(folder, "{0}\t{1}", ("0.0", "1.0", label, "2.0"))


def test_backslashes_separate_folders_unless_a_file_name_contains_one(folder: Path) -> None:
    source = ListFile(write(folder, "ann\\1.jpg 0", "bob\\1.jpg 1"))
    assert source.keys == ["ann/1.jpg", "bob/1.jpg"] and source.image(1).shape == (16, 16, 3) and source.notes
    (folder / "ann\\1.jpg").write_bytes(b"x")
    assert ListFile(write(folder, "ann\\1.jpg 0")).keys == ["ann\\1.jpg"]


def test_unicode_forms_of_one_name_are_one_person_and_one_path(folder: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Jos\u00e9") for form in ("NFC", "NFD"))
    (folder / nfd).mkdir()
    (folder / nfd / "1.jpg").write_bytes((folder / "ann/1.jpg").read_bytes())
    source = ListFile(write(folder, f"{nfc}/1.jpg\t{nfc}", f"ann/1.jpg\t{nfd}"))
    assert source.identities == [nfc] and source.image(0).shape == (16, 16, 3)
    with pytest.raises(FileFormatError, match="already on line 1"):
        ListFile(write(folder, f"{nfc}/1.jpg\t{nfc}", f"{nfd}/1.jpg\t{nfd}"))
    with pytest.raises(FileFormatError, match=f"line 1: no such image.*{nfc}/2.jpg"):
        ListFile(write(folder, f"{nfc}/2.jpg\t{nfc}"))  # in neither form


def test_missing_images_are_counted_and_listed(folder: Path) -> None:
    with pytest.raises(
        FileFormatError, match=r"2 of 3 images are missing: x/1\.jpg \(line 1\), y/1\.jpg \(line 3\)"
    ):
        ListFile(write(folder, "x/1.jpg 0", "ann/1.jpg 0", "y/1.jpg 1"))
    facts = describe(ListFile(write(folder, "ann/1.jpg 0", "y/1.jpg 1")))
    assert facts["missing"] == ["y/1.jpg"]
