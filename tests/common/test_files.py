import errno
import fcntl
import hashlib
import io
import json
import os
import re
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save as numpy_bytes
from safetensors.torch import save as safe_bytes, save_file as safe_file
from tests.models import graphs

from spherecf.common.files import (
    Lock,
    check_destination,
    check_folder,
    describe_content,
    locked,
    sha256_file,
    write_atomically,
)
from spherecf.common.tensorfile import map_tensors, open_tensors, write_tensors
from spherecf.errors import FileFormatError, StorageError
from spherecf.models import save_prototypes


def test_a_file_is_written_completely_and_its_folder_created(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "new" / "file.bin", lambda stream: stream.write(b"content"))
    assert path.read_bytes() == b"content" and [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert sha256_file(path) == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("bug")]
)
def test_a_failed_write_leaves_only_the_old_file(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write_half(stream: IO[bytes]) -> None:
        stream.write(b"ha")
        raise failure

    error_type = StorageError if isinstance(failure, OSError) else type(failure)
    with pytest.raises(error_type) as caught:
        write_atomically(path, write_half)
    if isinstance(failure, OSError):
        assert "No space left on device" in str(caught.value) and "unchanged" in str(caught.value)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_folder_may_be_renamed_as_soon_as_it_has_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def replace_and_move(temporary: Path, target: Path) -> Path:  # as rank 0 does with a complete checkpoint
        replaced = replace(temporary, target)
        target.parent.rename(tmp_path / "complete")
        return replaced

    monkeypatch.setattr(Path, "replace", replace_and_move)
    write_atomically(tmp_path / "part" / "file.bin", lambda stream: stream.write(b"content"))
    assert [path.name for path in (tmp_path / "complete").iterdir()] == ["file.bin"]


def test_a_partial_file_of_a_killed_process_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".file.bin.part").write_bytes(b"half of something longer")
    path = write_atomically(tmp_path / "file.bin", lambda stream: stream.write(b"content"))
    assert path.read_bytes() == b"content" and list(tmp_path.iterdir()) == [path]


def test_concurrent_writers_take_turns(tmp_path: Path) -> None:
    path, begun, released = tmp_path / "file.bin", threading.Event(), threading.Event()

    def write_slowly(stream: IO[bytes]) -> None:
        begun.set()
        assert released.wait(30)
        stream.write(b"first")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(write_atomically, path, write_slowly)
        assert begun.wait(30)
        second = pool.submit(write_atomically, path, lambda stream: stream.write(b"second"))
        assert not wait([second], 0.2).done
        released.set()
        first.result(30), second.result(30)
    assert path.read_bytes() == b"second" and list(tmp_path.iterdir()) == [path]


def test_folders_are_synced_after_the_file_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record_fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record_fsync)
    write_atomically(tmp_path / "new" / "file", lambda stream: stream.write(b"x"))
    folder = str(tmp_path / "new")
    assert synced == [str(tmp_path), f"{folder}/.file.part", folder]


def test_a_second_process_learns_which_process_holds_the_lock(tmp_path: Path) -> None:
    (tmp_path / "rows-lock").write_text("4711")  # left by a killed process
    with (
        locked(tmp_path / "rows", "this folder"),
        pytest.raises(StorageError, match=rf"rows: this folder is in use by process {os.getpid()}; wait"),
    ):
        locked(tmp_path / "rows", "this folder").__enter__()
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "new" / "rows", "this folder"):
        assert (tmp_path / "new" / "rows-lock").exists()
    assert not list(tmp_path.iterdir())


def test_a_lock_whose_file_disappears_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, attempts = fcntl.flock, list[int]()

    def flock_late(stream: IO[bytes], operation: int) -> None:
        attempts.append(operation)
        if len(attempts) == 1:
            (tmp_path / "lock").unlink()  # another process has released the lock since the file was opened
        flock(stream, operation)

    monkeypatch.setattr(fcntl, "flock", flock_late)
    with Lock(tmp_path / "lock", "this folder"):
        assert len(attempts) == 2 and (tmp_path / "lock").read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_a_lock_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match=r"taken/lock: cannot be written .*choose a folder that is writ"):
        Lock(tmp_path / "taken" / "lock", "this folder")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_files_are_written_where_there_are_no_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(stream: IO[bytes], operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    if number == errno.EIO:  # a fault, not a lack of locks
        with pytest.raises(StorageError, match="Input/output error"):
            write_atomically(tmp_path / "file", lambda stream: stream.write(b"x"))
        return
    (tmp_path / ".file.part").write_bytes(b"that of another process")
    names: list[str] = []
    write_atomically(
        tmp_path / "file",
        lambda stream: (stream.write(b"new"), names.extend(p.name for p in tmp_path.iterdir())),
    )
    assert (tmp_path / "file").read_bytes() == b"new"
    assert len(names) == 2 and {p.name for p in tmp_path.iterdir()} == {"file", ".file.part"}
    with Lock(tmp_path / "lock", "this folder"):
        assert (tmp_path / "lock").exists()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_folders_that_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Some network drives cannot sync a folder; any other error is reported."""
    fsync = os.fsync

    def fsync_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_files)
    if number == errno.EIO:
        with pytest.raises(StorageError, match="Input/output error"):
            write_atomically(tmp_path / "file", lambda stream: stream.write(b"x"))
    else:
        write_atomically(tmp_path / "file", lambda stream: stream.write(b"x"))
        assert (tmp_path / "file").read_bytes() == b"x"


def test_a_read_only_folder_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with locked(tmp_path / "rows", "this folder"):
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", [1, 2])
def test_disk_errors_within_torch_save_are_reported(tmp_path: Path, failing: int) -> None:
    class Full(io.BytesIO):
        writes = 0

        def write(self, data: Any) -> int:
            self.writes += 1
            if self.writes == failing:
                raise OSError(28, "No space left on device")
            return super().write(data)

    content = {"weight": torch.zeros(9)}
    with pytest.raises(StorageError, match=r"No space left on device\); the previous file"):
        write_atomically(tmp_path / "file.pt", lambda stream: torch.save(content, Full()))
    with pytest.raises(RuntimeError, match="not of the disk"):
        write_atomically(
            tmp_path / "file.pt", lambda stream: (_ for _ in ()).throw(RuntimeError("not of the disk"))
        )
    assert not list(tmp_path.iterdir())


def test_a_file_in_place_of_the_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(StorageError, match="could not be written"):
        write_atomically(tmp_path / "taken" / "file.bin", lambda stream: stream.write(b"x"))


@pytest.mark.parametrize("check", [check_destination, lambda path: write_atomically(path, print)])
def test_impossible_destinations_are_refused(tmp_path: Path, check: Callable[[Path], object]) -> None:
    (tmp_path / "taken").write_text("a file")
    for path in (tmp_path, tmp_path / "taken" / "below" / "file", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError):
            check(path)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_checking_a_valid_destination_writes_nothing(tmp_path: Path) -> None:
    check_destination(tmp_path / "new" / "newer" / "file")
    check_folder(tmp_path / "new")
    check_folder(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "taken").write_text("a file")
    check_destination(tmp_path / "taken")
    for folder in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(StorageError, match="taken"):
            check_folder(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are not supported")
def test_a_pipe_is_written_directly_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_destination(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / "pipe", lambda stream: stream.write(b"content"))
    assert os.read(reader, 100) == b"content" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_file_permissions_follow_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    path = write_atomically(tmp_path / "file", lambda stream: stream.write(b"content"))
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def saved_bytes(save: Callable[[IO[bytes]], object]) -> bytes:
    stream = io.BytesIO()
    save(stream)
    return stream.getvalue()


def zip_bytes(*names: str) -> bytes:
    def save(stream: IO[bytes]) -> None:
        with zipfile.ZipFile(stream, "w") as archive:
            for name in names:
                archive.writestr(name, "content")

    return saved_bytes(save)


def tar_bytes(mode: str) -> bytes:
    def save(stream: IO[bytes]) -> None:
        with tarfile.open(fileobj=stream, mode=mode) as archive:
            archive.addfile(tarfile.TarInfo("model/weights.bin"), io.BytesIO())

    return saved_bytes(save)


CONTENTS = {
    "empty": (b"", "empty file"),
    "zeros": (bytes(100), "zero bytes"),
    "html": (b"\xef\xbb\xbf\n <!-- x --><HTML><head>", "HTML page"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "bucket": (
        b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
        "error message from a file server",
    ),
    "api": (json.dumps({"error": "not found"}).encode(), "JSON"),
    "gzip": (tar_bytes("w:gz"), "gzip archive: unpack"),
    "tar": (tar_bytes("w"), "tar archive: unpack"),
    "zip": (zip_bytes("model/weights.bin"), r"zip archive of 1 files \(model/weights.bin"),
    "empty zip": (zip_bytes(), "an empty zip"),
    "cut zip": (zip_bytes("a")[:40], "truncated or damaged zip archive"),
    "npz": (zip_bytes("a.npy", "b.npy"), "NumPy"),
    "npy": (saved_bytes(lambda stream: np.save(stream, np.eye(2))), "NumPy array"),
    "torch": (saved_bytes(lambda stream: torch.save({}, stream)), "a torch file$"),
    "old torch": (
        saved_bytes(lambda stream: torch.save({}, stream, _use_new_zipfile_serialization=False)),
        "torch file in the format before",
    ),
    "exported": (zip_bytes("net/archive_format", "net/data.txt"), "an exported program"),
    "script": (zip_bytes("net/data.pkl", "net/code/__torch__.py"), "TorchScript"),
    "pickle": (b"\x80\x04\x95\x00", "pickle"),
    "onnx": (graphs.iresnet().SerializeToString(), "ONNX"),
    "safetensors": (safe_bytes({"a": torch.ones(1)}), "safetensors"),
    "safetensors, its length like a pickle": (b"\x80\x04" + bytes(6) + b'{"a":{"dtype"', "safetensors"),
    "picture": (b"\xff\xd8\xff\xe0\x00", "JPEG"),
    "text": (b"hello\nworld", r"text file beginning with 'hello"),
    "noise": (b"\x01\x02\xf0\xf1\xf2\xf3\xf4\xf5\xf6", "bytes 01 02 f0 f1"),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_file_types_are_identified_by_their_first_bytes(tmp_path: Path, kind: str) -> None:
    content, name = CONTENTS[kind]
    (tmp_path / "file").write_bytes(content)
    assert re.search(name, describe_content(tmp_path / "file"))


def test_folders_and_missing_files_are_identified(tmp_path: Path) -> None:
    assert describe_content(tmp_path) == "a folder"
    assert "No such file" in describe_content(tmp_path / "absent")


def test_tensors_of_any_shape_and_order_round_trip_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spherecf.common.tensorfile._BLOCK", 100)
    tensors = {
        "flags": np.array([True, False]), "count": np.array(7), "none": np.zeros((0, 3), np.float32),
        "turned": np.arange(60, dtype=np.float32).reshape(4, 15).T, "wide": np.eye(2, 90),
        "big end": np.arange(3, dtype=">f8"),
    }  # fmt: skip
    path = write_tensors(tmp_path / "t.safetensors", tensors, {"note": "ü"})
    mapped, library = map_tensors(path), load_file(path)
    plain = {
        name: np.array(tensor, tensor.dtype.newbyteorder("="), order="C") for name, tensor in tensors.items()
    }
    assert path.read_bytes() == numpy_bytes(plain, {"note": "ü"})
    with open_tensors(path, "a test") as file:
        assert file.metadata() == {"note": "ü"}
    for name, tensor in tensors.items():
        assert np.array_equal(mapped[name], tensor) and np.array_equal(library[name], tensor), name
        assert mapped[name].shape == tensor.shape and mapped[name].flags.aligned


def test_bfloat16_prototypes_are_saved_as_float32(tmp_path: Path) -> None:
    rows = torch.randn(3, 4).bfloat16()
    path = save_prototypes(tmp_path / "p.safetensors", rows, ["a", "b", "c"])
    assert torch.equal(torch.from_numpy(load_file(path)["prototypes"]), rows.float())
    safe_file({"prototypes": rows}, path)
    with pytest.raises(FileFormatError, match="BF16"):
        map_tensors(path)
