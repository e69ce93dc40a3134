import os
from pathlib import Path

import pytest

from spherecf.photos import find_photos


def made(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folders_by_name_with_all_below_them(tmp_path: Path) -> None:
    made(
        tmp_path, "in/b.JPG", "in/a/z.heic", "in/a/y.webp", "in/notes.txt", "in/.hidden.jpg", "in/.git/c.jpg"
    )
    found = find_photos([tmp_path / "in"])
    assert [photo.below.as_posix() for photo in found.photos] == ["in/a/y.webp", "in/a/z.heic", "in/b.JPG"]
    assert found.ignored == [str(tmp_path / "in/notes.txt")] and found.unreadable == []


def test_files_come_as_named_and_once(tmp_path: Path) -> None:
    made(tmp_path, "b.jpg", "a.jpg", "strange.bin", ".dot.jpg")
    paths = [tmp_path / name for name in ("b.jpg", "strange.bin", ".dot.jpg", "none.jpg")]
    found = find_photos([*paths, tmp_path, str(tmp_path / "." / "b.jpg")])
    assert [photo.path.name for photo in found.photos] == [
        "b.jpg",
        "strange.bin",
        ".dot.jpg",
        "none.jpg",
        "a.jpg",
    ]


def test_a_folder_that_cannot_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "in/a.jpg", "in/locked/b.jpg")
    scandir = os.scandir

    def deny(folder: Path) -> object:
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", deny)
    found = find_photos([tmp_path / "in"])
    assert [photo.path.name for photo in found.photos] == ["a.jpg"]
    assert found.unreadable == [(str(tmp_path / "in/locked"), "Permission denied")]


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    made(tmp_path, "in/deep/a.jpg")
    (tmp_path / "in/deep/again").symlink_to(tmp_path / "in")
    assert [photo.path.name for photo in find_photos([tmp_path / "in"]).photos] == ["a.jpg"]


def test_names_that_are_no_text_can_be_written(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    try:
        Path(os.fsdecode(folder + b"/caf\xe9.jpg")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes text only")
    made(tmp_path, "été 面.jpg")
    names = [photo.name for photo in find_photos([tmp_path]).photos]
    assert [Path(name).name for name in names] == ["caf\\xe9.jpg", "été 面.jpg"]
    "".join(names).encode()


def test_a_link_that_leads_nowhere_hides_no_photos(tmp_path: Path) -> None:
    made(tmp_path, "in/a.jpg")
    (tmp_path / "in" / "loop").symlink_to("loop")
    found = find_photos([tmp_path / "in"])
    assert [photo.path.name for photo in found.photos] == ["a.jpg"] and found.unreadable == []
    assert found.ignored == [str(tmp_path / "in" / "loop")]


def test_a_name_that_no_system_takes_is_kept() -> None:
    (photo,) = find_photos(["a" * 300 + ".jpg"]).photos
    assert photo.name.startswith("aaa")


def test_a_name_is_one_line_without_controls(tmp_path: Path) -> None:
    made(tmp_path, "in/two\nlines \x1b[31m\u2028.jpg")
    (photo,) = find_photos([tmp_path / "in"]).photos
    assert photo.name.endswith(r"two\nlines \x1b[31m\u2028.jpg") and photo.path.is_file()
