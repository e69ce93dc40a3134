from pathlib import Path

import pytest
from tests.conformance.sources import ImageSourceConformance

from spherecf.data import ImageError, ListFile
from spherecf.errors import FileFormatError


def write(folder: Path, *lines: str) -> Path:
    path = folder / "list.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


class TestListFile(ImageSourceConformance):
    @pytest.fixture
    def source(self, folder: Path) -> ListFile:
        return ListFile(write(folder, "cleo/1.jpg 7", "ann/1.jpg 10", "./ann/2.jpg\t10", "bob/1.jpg -1"))


def test_numbers_sort_as_numbers_and_minus_one_is_unknown(folder: Path) -> None:
    source = ListFile(write(folder, "# a comment", "cleo/1.jpg 7", "", "ann/1.jpg 10", "bob/1.jpg -1"))
    assert source.identities == ["7", "10"] and source.labels.tolist() == [0, 1, -1]


def test_names_blanks_and_another_root(folder: Path, tmp_path: Path) -> None:
    (folder / "ann" / "two words.jpg").write_bytes((folder / "ann/1.jpg").read_bytes())
    path = write(tmp_path, "ann/two words.jpg ann", "bob/1.jpg\tbob b")
    source = ListFile(path, root=folder)
    assert source.keys == ["ann/two words.jpg", "bob/1.jpg"] and source.identities == ["ann", "bob b"]


def test_absolute_paths(folder: Path, tmp_path: Path) -> None:
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
def test_mistakes_are_named_with_their_line(folder: Path, lines: list[str], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        ListFile(write(folder, *lines))


def test_no_file_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="No such file"):
        ListFile(tmp_path / "none.txt")
    (tmp_path / "binary.txt").write_bytes(b"abc \xff\xfe")
    with pytest.raises(FileFormatError, match="byte 4"):
        ListFile(tmp_path / "binary.txt")


def test_a_missing_picture_is_named_by_its_line(folder: Path) -> None:
    source = ListFile(write(folder, "ann/1.jpg 0", "ann/gone.jpg 0"))
    with pytest.raises(ImageError, match=r"line 2.*gone"):
        source.read(1)
