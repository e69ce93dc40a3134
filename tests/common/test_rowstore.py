import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spherecf.common import rowstore
from spherecf.common.rowstore import Column, RowStore, SealedRows
from spherecf.common.sealing import Key
from spherecf.errors import InputError, StorageError

COLUMNS: dict[str, Column] = {"x": ((3,), "float32"), "ok": ((), "bool")}


def rows(start: int, count: int) -> dict[str, np.ndarray]:
    number = np.arange(start, start + count, dtype=np.float32)
    return {"x": np.stack([number, number + 0.5, -number], 1), "ok": number % 2 == 0}


def open_store(folder: Path, identity: dict | None = None, count: int = 10) -> RowStore:
    return RowStore(folder, count, COLUMNS, identity or {"data": "a"})


def test_rows_are_read_back(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.append(rows(0, 6))
    store.append(rows(6, 4))
    assert store.complete
    reopened = open_store(tmp_path / "store")
    assert reopened.complete
    for name, column in rows(0, 10).items():
        assert np.array_equal(reopened.arrays[name], column) and reopened.arrays[name].dtype == column.dtype


def test_only_committed_rows_count_after_a_crash(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.append(rows(0, 4))
    store.notes["skipped"] = {"a": "b"}
    store.commit()
    store.append(rows(4, 3))  # never committed, as in a power failure
    reopened = open_store(tmp_path / "store")
    assert reopened.done == 4 and reopened.notes == {"skipped": {"a": "b"}} and not reopened.complete
    reopened.append(rows(4, 6))
    assert np.array_equal(open_store(tmp_path / "store").arrays["x"], rows(0, 10)["x"])


@pytest.mark.parametrize("limit", ["_COMMIT_BYTES", "_COMMIT_SECONDS"])
def test_rows_are_committed_automatically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    store = open_store(tmp_path / "store")
    store.append(rows(0, 4))
    assert open_store(tmp_path / "store").done == 0
    monkeypatch.setattr(rowstore, limit, 0)
    store.append(rows(4, 2))
    assert open_store(tmp_path / "store").done == 6


@pytest.mark.parametrize(
    ("identity", "columns", "count", "changed"),
    [
        ({"data": "b"}, COLUMNS, 10, "data"),
        ({"data": "a"}, {**COLUMNS, "y": ((), "float32")}, 10, "columns"),
        ({"data": "a"}, {"x": COLUMNS["x"]}, 10, "columns"),
        ({"data": "a"}, COLUMNS, 11, "rows"),
    ],
)
def test_another_identity_starts_from_zero_and_says_so(
    tmp_path: Path, identity: dict, columns: dict, count: int, changed: str, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "store"
    open_store(folder).append(rows(0, 10))
    open_store(folder)
    assert capsys.readouterr().err == ""
    store = RowStore(folder, count, columns, identity)
    assert f"the 10 rows of an earlier run differ in {changed}; they are deleted" in capsys.readouterr().err
    assert store.done == 0 and store.notes == {} and not store.arrays["x"].any()
    assert {path.name for path in folder.iterdir()} == {"state.json", *(f"{name}.bin" for name in columns)}


@pytest.mark.parametrize(
    "state",
    [
        "", "{", "[]", "{}", '{"done": 3}', '{"identity": 1, "done": 3, "notes": {}}', "\xff", "[" * 5000,
        '{"identity": {}, "done": 1.5, "notes": {}}', '{"identity": {}, "done": true, "notes": []}',
    ],
)  # fmt: skip
def test_a_damaged_state_starts_from_zero(tmp_path: Path, state: str) -> None:
    open_store(tmp_path / "store").append(rows(0, 10))
    (tmp_path / "store" / "state.json").write_bytes(state.encode("latin-1"))
    assert open_store(tmp_path / "store").done == 0


def test_a_forged_state_cannot_touch_files_elsewhere(tmp_path: Path) -> None:
    open_store(tmp_path / "store").append(rows(0, 10))
    (tmp_path / "mine.bin").write_bytes(b"x")
    state = {"identity": {"columns": {"../mine": [[], "float32"]}}, "done": 1, "notes": {}}
    (tmp_path / "store" / "state.json").write_text(json.dumps(state))
    assert open_store(tmp_path / "store").done == 0 and (tmp_path / "mine.bin").exists()


@pytest.mark.parametrize("done", [-1, 11, 2.0])
def test_an_impossible_row_count_starts_from_zero(tmp_path: Path, done: float) -> None:
    open_store(tmp_path / "store").append(rows(0, 10))
    state = json.loads((tmp_path / "store" / "state.json").read_text())
    (tmp_path / "store" / "state.json").write_text(json.dumps({**state, "done": done}))
    assert open_store(tmp_path / "store").done == 0


@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_damaged_array_starts_from_zero(tmp_path: Path, damage: str) -> None:
    open_store(tmp_path / "store").append(rows(0, 10))
    array = tmp_path / "store" / "x.bin"
    array.unlink() if damage == "gone" else array.write_bytes(array.read_bytes()[:-4])
    store = open_store(tmp_path / "store")
    assert store.done == 0 and array.stat().st_size == 10 * 3 * 4


def test_bad_rows_are_refused_and_change_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    store.append(rows(0, 8))
    with pytest.raises(InputError, match="expected the columns"):
        store.append({"x": rows(8, 2)["x"]})
    with pytest.raises(InputError, match="of 10"):
        store.append(rows(8, 3))
    with pytest.raises(InputError, match=r"\[1, 2\]"):
        store.append({"x": rows(8, 2)["x"], "ok": rows(8, 1)["ok"]})
    store.append(rows(8, 2))
    assert store.complete and np.array_equal(store.arrays["x"], rows(0, 10)["x"])


def test_remove_deletes_only_files_of_the_store(tmp_path: Path) -> None:
    open_store(tmp_path / "mine").remove()
    assert not (tmp_path / "mine").exists()
    store = open_store(tmp_path / "shared")
    (tmp_path / "shared" / "letter.txt").write_text("text")
    store.remove()
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["letter.txt"]


def test_a_full_disk_is_reported_at_once_and_leaves_no_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved = []

    def fallocate(descriptor: int, offset: int, size: int) -> None:
        if reserved:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserved.append(size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate, raising=False)
    with pytest.raises(StorageError, match=r"cannot reserve 0\.0 MiB \(No space left on device\)"):
        open_store(tmp_path / "deep" / "store")
    assert reserved and list(tmp_path.iterdir()) == []


def test_rows_that_cannot_be_flushed_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path / "store")
    store.append(rows(0, 2))
    store.commit()
    store.append(rows(2, 3))
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="2 of 10 are kept"):
        patch.setattr(np.memmap, "flush", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        store.commit()
    assert store.done == 2 and open_store(tmp_path / "store").done == 2


def test_a_restarted_store_leaves_arrays_in_use_unchanged(tmp_path: Path) -> None:
    reading = open_store(tmp_path / "store")
    reading.append(rows(0, 10))
    original = {name: array.copy() for name, array in reading.arrays.items()}
    open_store(tmp_path / "store", {"data": "another"}).append(rows(5, 10))
    (tmp_path / "store" / "state.json").unlink()
    open_store(tmp_path / "store")
    assert all(np.array_equal(array, original[name]) for name, array in reading.arrays.items())


def test_part_states_left_by_an_interrupted_join_are_removed(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store")
    part = store.part(0, 10)
    part.append(rows(0, 10))
    part_state = part.state_file.read_bytes()
    store.join([part])
    part.state_file.write_bytes(part_state)
    assert open_store(tmp_path / "store").complete and not part.state_file.exists()


def test_free_space_is_checked_where_reserving_is_unsupported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", fallocate, raising=False)
    open_store(tmp_path / "store").append(rows(0, 10))
    assert open_store(tmp_path / "store").complete
    with pytest.raises(StorageError, match="No space left on device"):
        open_store(tmp_path / "large", count=1 << 50)
    assert not (tmp_path / "large").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if result.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {result.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_store_larger_than_a_small_disk_is_refused(small_disk: Path) -> None:
    with pytest.raises(StorageError, match="No space left on device"):
        open_store(small_disk / "store", count=1 << 20)
    assert list(small_disk.iterdir()) == []
    open_store(small_disk / "store", count=1000)


def test_a_file_in_place_of_the_store_is_reported_and_kept(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match="store: cannot reserve"):
        open_store(tmp_path / "store")
    assert (tmp_path / "store").read_text() == "a file"


def test_rows_that_cannot_be_opened_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(tmp_path / "store").append(rows(0, 5))

    def memmap(path: Path, *_: object, **__: object) -> None:  # root could open any file
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(np, "memmap", memmap)
    with pytest.raises(StorageError, match=r"store: cannot be written \(Permission denied\); choose another"):
        open_store(tmp_path / "store")


def sealed_store(folder: Path, count: int = 4) -> SealedRows:
    return SealedRows(folder, count, COLUMNS, {"data": "a"}, Key(bytes(range(32)), "the test"))


def test_damaged_sealed_rows_are_computed_again(tmp_path: Path) -> None:
    store = sealed_store(tmp_path / "store")
    for start in (0, 2):
        store.append(rows(start, 2))
        store.commit()
    assert sealed_store(tmp_path / "store").complete
    path = tmp_path / "store" / "rows-2.sealed"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    reopened = sealed_store(tmp_path / "store")
    assert reopened.done == 2 and reopened.arrays["x"][:2].tolist() == rows(0, 2)["x"].tolist()
    reopened.append(rows(2, 2))
    assert sealed_store(tmp_path / "store").complete


def test_sealed_rows_larger_than_the_disk_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"No space left on device.*Nothing was written"):
        sealed_store(tmp_path / "store", 1 << 50)
    assert not list(tmp_path.iterdir())


def test_rows_that_cannot_be_deleted_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RowStore(tmp_path / "rows", 2, {"a": ((), "float32")}, {})
    store.append({"a": np.zeros(2, np.float32)})

    def fail(path: Path, missing_ok: bool = False) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fail)
        with pytest.raises(StorageError, match=r"state\.json: could not be deleted \(Input/output error\)"):
            store.remove()
    store.remove()
    assert not store.folder.exists()
