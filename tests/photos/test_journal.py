"""The journal of `spherecf quality --resume`: growth, damage, concurrent use and full disks."""

import os
import sys
from pathlib import Path

import pytest

from spherecf.errors import FileFormatError, StorageError
from spherecf.photos import files
from spherecf.photos.files import Journal, PhotoFile

PHOTO = PhotoFile("a.jpg", Path("a.jpg"), Path("a.jpg"))


def keys(path: Path, maker: str = "m") -> list[int]:
    journal = Journal(path, maker)
    return [size for size in range(10) if journal.find(("a.jpg", size, 1))]


def add(path: Path, *sizes: int, maker: str = "m") -> None:
    with Journal(path, maker) as journal:
        for size in sizes:
            journal.add(PHOTO, {"photo": "ä"}, ("a.jpg", size, 1))


def test_journal_grows_over_runs_and_separates_models(tmp_path: Path) -> None:
    path = tmp_path / "new" / "done.jsonl"
    add(path, 1, 2)
    add(path, 3)
    add(path, 4, maker="other")
    assert keys(path) == [1, 2, 3] and keys(path, "other") == [4]
    assert Journal(path, "m").find(("a.jpg", 1, 1)) == {"photo": "ä"}


def test_every_line_is_written_at_once(tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    journal = Journal(path, "m")
    journal.add(PHOTO, {}, ("a.jpg", 1, 1))
    journal.add(PHOTO, {"photo": "a.jpg"}, ("a.jpg", 2, 1))
    assert path.read_text().count("\n") == 2  # the journal is still open


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_torn_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "done.jsonl"
    add(path, 1, 2)
    path.write_bytes(path.read_bytes()[:-cut])
    assert keys(path) == [1]
    add(path, 3)
    assert keys(path) == [1, 3]


@pytest.mark.parametrize(
    "tail", [b"\0" * 40, b'{"path": "a\0\0\0', b"\0" * 9 + b'rd": {}}\n', b'{"path"\0\0\n']
)
def test_zeros_left_by_a_power_cut_are_dropped(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "done.jsonl"
    add(path, 1, 2)
    path.write_bytes(path.read_bytes() + tail)
    assert keys(path) == [1, 2]
    add(path, 3)
    assert keys(path) == [1, 2, 3] and b"\0" not in path.read_bytes()


def test_zeros_in_the_middle_are_refused_as_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MAX_UNSYNCED_BYTES", 100)
    path = tmp_path / "done.jsonl"
    add(path, 1, 2, 3)
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(b"mtime", b"\0\0\0\0\0") + third)
    with pytest.raises(FileFormatError, match="line 2 is not a record"):
        Journal(path, "m")


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    with Journal(path, "m") as journal:
        with pytest.raises(StorageError, match=rf"in use by process {os.getpid()}"):
            Journal(path, "m").__enter__()
        journal.add(PHOTO, {}, ("a.jpg", 1, 1))
    assert [file.name for file in tmp_path.iterdir()] == ["done.jsonl"]


def test_lines_added_by_another_process_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    add(path, 1)
    journal = Journal(path, "m")
    add(path, 2)
    with journal:
        journal.add(PHOTO, {"photo": "ä"}, ("a.jpg", 3, 1))
    assert keys(path) == [1, 2, 3]


def test_a_failed_write_loses_no_earlier_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "done.jsonl"
    with Journal(path, "m") as journal:
        journal.add(PHOTO, {"photo": "ä"}, ("a.jpg", 1, 1))
        with monkeypatch.context() as patch, pytest.raises(StorageError, match="Input/output error"):
            patch.setattr(files, "_SYNC_SECONDS", -1.0)
            patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            journal.add(PHOTO, {"photo": "ä"}, ("a.jpg", 2, 1))
        journal.add(PHOTO, {"photo": "ä"}, ("a.jpg", 3, 1))
    assert keys(path) == [1, 3]


def test_other_files_are_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "diary.txt"
    record = '{"path": "a", "bytes": 1, "mtime_ns": 2, "maker": "m", "record": {}}\n'
    replacements = [
        ("1,", "1.5,"),
        ("1,", "true,"),
        ('"a"', "1"),
        ("{}", "[]"),
        ("{}", '{"x": NaN}'),
        ("{}", "[" * 3000),
    ]
    invalid = [record.replace(*change) for change in replacements]
    for text in ("Dear diary,\n", '{"a": 1}\n', "[]\n", *invalid):
        path.write_text(text)
        with pytest.raises(FileFormatError, match="line 1 is not a record"):
            Journal(path, "m")
        assert path.read_text() == text


def test_a_text_without_a_newline_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "diary.txt"
    path.write_text("Dear diary")
    with pytest.raises(FileFormatError, match="line 1 is not a record"):
        Journal(path, "m")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "done.jsonl"
    journal = Journal(path, "m")
    journal._stream = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    with pytest.raises(StorageError, match=r"a\.jpg; earlier assessments are kept"):
        journal.add(PHOTO, {}, ("a.jpg", 1, 1))
    assert journal.find(("a.jpg", 1, 1)) is None


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot be read \(Is a directory\)"):
        Journal(tmp_path, "m")


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
def test_a_disk_that_takes_a_part_of_a_line_is_reported(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "done.jsonl"
    add(path, 1)
    size, limits = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path, "m") as journal:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
        try:
            with pytest.raises(StorageError, match=r"No space left on device\) at a\.jpg; earlier assess"):
                journal.add(PHOTO, {"photo": "ä"}, ("a.jpg", 2, 1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.stat().st_size == size + 20
        journal.add(PHOTO, {"photo": "ä"}, ("a.jpg", 3, 1))
    assert keys(path) == [1, 3]


def test_a_last_write_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "done.jsonl"
    journal = Journal(path, "m").__enter__()
    journal.add(PHOTO, {"photo": "ä"}, ("a.jpg", 1, 1))
    with monkeypatch.context() as patch, pytest.raises(StorageError, match=r"\(Input/output error\)"):
        patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        journal.__exit__(None, None, None)
    add(path, 2)  # the lock is released
    assert keys(path) == [1, 2]
