import errno
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from spherecf.common import rowstore
from spherecf.common.rowstore import Column, RowStore
from spherecf.errors import InputError, StorageError

COLUMNS: dict[str, Column] = {"x": ((3,), "float32"), "ok": ((), "bool")}


def rows(start: int, count: int) -> dict[str, np.ndarray]:
    number = np.arange(start, start + count, dtype=np.float32)
    return {"x": np.stack([number, number + 0.5, -number], 1), "ok": number % 2 == 0}


def fresh(folder: Path, identity: dict | None = None, count: int = 10) -> RowStore:
    return RowStore(folder, count, COLUMNS, identity or {"data": "a"})


def test_rows_come_back(tmp_path: Path) -> None:
    store = fresh(tmp_path / "store")
    store.append(rows(0, 6))
    store.append(rows(6, 4))
    assert store.complete
    again = fresh(tmp_path / "store")
    assert again.complete
    for name, column in rows(0, 10).items():
        assert np.array_equal(again.arrays[name], column) and again.arrays[name].dtype == column.dtype


def test_only_what_was_committed_counts(tmp_path: Path) -> None:
    store = fresh(tmp_path / "store")
    store.append(rows(0, 4))
    store.notes["skipped"] = {"a": "b"}
    store.commit()
    store.append(rows(4, 3))  # then the power goes
    again = fresh(tmp_path / "store")
    assert again.done == 4 and again.notes == {"skipped": {"a": "b"}} and not again.complete
    again.append(rows(4, 6))
    assert np.array_equal(fresh(tmp_path / "store").arrays["x"], rows(0, 10)["x"])


@pytest.mark.parametrize("limit", ["_COMMIT_BYTES", "_COMMIT_SECONDS"])
def test_commits_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    store = fresh(tmp_path / "store")
    store.append(rows(0, 4))
    assert fresh(tmp_path / "store").done == 0
    monkeypatch.setattr(rowstore, limit, 0)
    store.append(rows(4, 2))
    assert fresh(tmp_path / "store").done == 6


@pytest.mark.parametrize(
    ("identity", "columns", "count"),
    [
        ({"data": "b"}, COLUMNS, 10),
        ({"data": "a"}, {**COLUMNS, "y": ((), "float32")}, 10),
        ({"data": "a"}, {"x": COLUMNS["x"]}, 10),
        ({"data": "a"}, COLUMNS, 11),
    ],
)
def test_another_identity_starts_afresh(tmp_path: Path, identity: dict, columns: dict, count: int) -> None:
    folder = tmp_path / "store"
    fresh(folder).append(rows(0, 10))
    store = RowStore(folder, count, columns, identity)
    assert store.done == 0 and store.notes == {} and not store.arrays["x"].any()
    assert {path.name for path in folder.iterdir()} == {"state.json", *(f"{name}.bin" for name in columns)}


@pytest.mark.parametrize(
    "state",
    [
        "", "{", "[]", "{}", '{"done": 3}', '{"identity": 1, "done": 3, "notes": {}}', "\xff", "[" * 5000,
        '{"identity": {}, "done": 1.5, "notes": {}}', '{"identity": {}, "done": true, "notes": []}',
    ],
)  # fmt: skip
def test_a_damaged_state_starts_afresh(tmp_path: Path, state: str) -> None:
    fresh(tmp_path / "store").append(rows(0, 10))
    (tmp_path / "store" / "state.json").write_bytes(state.encode("latin-1"))
    assert fresh(tmp_path / "store").done == 0


def test_a_state_leads_to_no_file_elsewhere(tmp_path: Path) -> None:
    fresh(tmp_path / "store").append(rows(0, 10))
    (tmp_path / "mine.bin").write_bytes(b"x")
    state = {"identity": {"columns": {"../mine": [[], "float32"]}}, "done": 1, "notes": {}}
    (tmp_path / "store" / "state.json").write_text(json.dumps(state))
    assert fresh(tmp_path / "store").done == 0 and (tmp_path / "mine.bin").exists()


@pytest.mark.parametrize("done", [-1, 11, 2.0])
def test_an_impossible_count_starts_afresh(tmp_path: Path, done: float) -> None:
    fresh(tmp_path / "store").append(rows(0, 10))
    state = json.loads((tmp_path / "store" / "state.json").read_text())
    (tmp_path / "store" / "state.json").write_text(json.dumps({**state, "done": done}))
    assert fresh(tmp_path / "store").done == 0


@pytest.mark.parametrize("damage", ["shorter", "gone"])
def test_a_damaged_array_starts_afresh(tmp_path: Path, damage: str) -> None:
    fresh(tmp_path / "store").append(rows(0, 10))
    array = tmp_path / "store" / "x.bin"
    array.unlink() if damage == "gone" else array.write_bytes(array.read_bytes()[:-4])
    store = fresh(tmp_path / "store")
    assert store.done == 0 and array.stat().st_size == 10 * 3 * 4


def test_bad_rows_are_refused_and_change_nothing(tmp_path: Path) -> None:
    store = fresh(tmp_path / "store")
    store.append(rows(0, 8))
    with pytest.raises(InputError, match="expected the columns"):
        store.append({"x": rows(8, 2)["x"]})
    with pytest.raises(InputError, match="of 10"):
        store.append(rows(8, 3))
    with pytest.raises(InputError, match=r"\[1, 2\]"):
        store.append({"x": rows(8, 2)["x"], "ok": rows(8, 1)["ok"]})
    store.append(rows(8, 2))
    assert store.complete and np.array_equal(store.arrays["x"], rows(0, 10)["x"])


def test_remove_takes_its_own_files_only(tmp_path: Path) -> None:
    fresh(tmp_path / "mine").remove()
    assert not (tmp_path / "mine").exists()
    store = fresh(tmp_path / "shared")
    (tmp_path / "shared" / "letter.txt").write_text("dear")
    store.remove()
    assert [path.name for path in (tmp_path / "shared").iterdir()] == ["letter.txt"]


def test_a_full_disk_is_said_first_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserved = []

    def fallocate(descriptor: int, offset: int, size: int) -> None:
        if reserved:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserved.append(size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate, raising=False)
    with pytest.raises(StorageError, match=r"cannot reserve 0\.0 MiB \(No space left on device\)"):
        fresh(tmp_path / "deep" / "store")
    assert reserved and list(tmp_path.iterdir()) == []


def test_rows_that_the_disk_does_not_take_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fresh(tmp_path / "store")
    store.append(rows(0, 2))
    store.commit()
    store.append(rows(2, 3))
    with monkeypatch.context() as patch, pytest.raises(StorageError, match="2 of 10 are kept"):
        patch.setattr(np.memmap, "flush", lambda _: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        store.commit()
    assert store.done == 2 and fresh(tmp_path / "store").done == 2


def test_rows_made_anew_leave_those_that_another_run_still_reads(tmp_path: Path) -> None:
    reading = fresh(tmp_path / "store")
    reading.append(rows(0, 10))
    before = {name: array.copy() for name, array in reading.arrays.items()}
    fresh(tmp_path / "store", {"data": "another"}).append(rows(5, 10))
    (tmp_path / "store" / "state.json").unlink()
    fresh(tmp_path / "store")
    assert all(np.array_equal(array, before[name]) for name, array in reading.arrays.items())


def test_states_of_parts_are_not_left_where_joining_was_cut_off(tmp_path: Path) -> None:
    whole = fresh(tmp_path / "store")
    part = whole.part(0, 10)
    part.append(rows(0, 10))
    kept = part.state_file.read_bytes()
    whole.join([part])
    part.state_file.write_bytes(kept)
    assert fresh(tmp_path / "store").complete and not part.state_file.exists()


def test_a_file_system_that_cannot_reserve_is_asked_for_its_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", fallocate, raising=False)
    fresh(tmp_path / "store").append(rows(0, 10))
    assert fresh(tmp_path / "store").complete
    with pytest.raises(StorageError, match="No space left on device"):
        fresh(tmp_path / "large", count=1 << 50)
    assert not (tmp_path / "large").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode != 0:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    with pytest.raises(StorageError, match="No space left on device"):
        fresh(small_disk / "store", count=1 << 20)
    assert list(small_disk.iterdir()) == []
    fresh(small_disk / "store", count=1000)


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(StorageError, match="store: cannot reserve"):
        fresh(tmp_path / "store")
    assert (tmp_path / "store").read_text() == "a file"
