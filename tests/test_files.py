import hashlib
from pathlib import Path
from typing import IO

import pytest

from spherecf._files import sha256_file, write_atomically
from spherecf.errors import StorageError


def test_writes_the_whole_file_and_makes_its_folder(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "new" / "file.bin", lambda stream: stream.write(b"content"))
    assert path.read_bytes() == b"content" and [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert sha256_file(path) == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bug")]
)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def half(stream: IO[bytes]) -> None:
        stream.write(b"ha")
        raise failure

    expected = StorageError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(expected) as caught:
        write_atomically(path, half)
    if isinstance(failure, OSError):
        assert "No space left on device" in str(caught.value) and "unchanged" in str(caught.value)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match="could not be written"):
        write_atomically(tmp_path / "taken" / "file.bin", lambda stream: stream.write(b"x"))


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    path = write_atomically(tmp_path / "file", lambda stream: stream.write(b"content"))
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
