"""Collection of photos from files and folders, and their printable names."""

import os
from pathlib import Path

import pytest

from spherecf.photos import find_photos


def create_files(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folders_are_searched_recursively_in_order(tmp_path: Path) -> None:
    create_files(
        tmp_path, "in/b.JPG", "in/a/z.heic", "in/a/y.webp", "in/notes.txt", "in/.hidden.jpg", "in/.git/c.jpg"
    )
    result = find_photos([tmp_path / "in"])
    assert [photo.below.as_posix() for photo in result.photos] == ["in/a/y.webp", "in/a/z.heic", "in/b.JPG"]
    assert result.ignored == [str(tmp_path / "in/notes.txt")] and result.unreadable == []


def test_a_single_path_is_not_taken_for_its_characters(tmp_path: Path) -> None:
    create_files(tmp_path, "in/a.jpg")
    for path in (tmp_path / "in", str(tmp_path / "in")):
        assert [photo.path.name for photo in find_photos(path).photos] == ["a.jpg"]


def test_files_keep_the_given_order_without_duplicates(tmp_path: Path) -> None:
    create_files(tmp_path, "b.jpg", "a.jpg", "strange.bin", ".dot.jpg")
    paths = [tmp_path / name for name in ("b.jpg", "strange.bin", ".dot.jpg", "none.jpg")]
    result = find_photos([*paths, tmp_path, str(tmp_path / "." / "b.jpg")])
    assert [photo.path.name for photo in result.photos] == [
        "b.jpg",
        "strange.bin",
        ".dot.jpg",
        "none.jpg",
        "a.jpg",
    ]


def test_a_folder_that_cannot_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_files(tmp_path, "in/a.jpg", "in/locked/b.jpg")
    scandir = os.scandir

    def deny(folder: Path) -> object:
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", deny)
    result = find_photos([tmp_path / "in"])
    assert [photo.path.name for photo in result.photos] == ["a.jpg"]
    assert result.unreadable == [(str(tmp_path / "in/locked"), "Permission denied")]


def test_a_link_to_a_parent_folder_is_not_followed_forever(tmp_path: Path) -> None:
    create_files(tmp_path, "in/deep/a.jpg")
    (tmp_path / "in/deep/again").symlink_to(tmp_path / "in")
    assert [photo.path.name for photo in find_photos([tmp_path / "in"]).photos] == ["a.jpg"]


def test_names_that_are_not_utf8_can_be_printed(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    try:
        Path(os.fsdecode(folder + b"/caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system accepts only UTF-8 names")
    create_files(tmp_path, "été 面.jpg")
    names = [photo.name for photo in find_photos([tmp_path]).photos]
    assert [Path(name).name for name in names] == ["caf\\xe9.jpg", "été 面.jpg"]
    "".join(names).encode()


def test_a_broken_link_hides_no_photos(tmp_path: Path) -> None:
    create_files(tmp_path, "in/a.jpg")
    (tmp_path / "in" / "loop").symlink_to("loop")
    result = find_photos([tmp_path / "in"])
    assert [photo.path.name for photo in result.photos] == ["a.jpg"] and result.unreadable == []
    assert result.ignored == [str(tmp_path / "in" / "loop")]


def test_a_too_long_name_is_kept() -> None:
    (photo,) = find_photos(["a" * 300 + ".jpg"]).photos
    assert photo.name.startswith("aaa")


def test_names_are_one_line_without_control_characters(tmp_path: Path) -> None:
    create_files(tmp_path, "in/two\nlines \x1b[31m\u2028.jpg")
    (photo,) = find_photos([tmp_path / "in"]).photos
    assert photo.name.endswith(r"two\nlines \x1b[31m\u2028.jpg") and photo.path.is_file()
