"""Arrays on disk that are filled row by row and survive interruption: the basis of all resumable passes."""

import contextlib
import errno
import json
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from spherecf.common.files import make_folder, sync_folder, write_atomically
from spherecf.common.parsing import checked, parse_json
from spherecf.common.progress import print_text
from spherecf.common.sealing import Key, matching_key, sealed_with
from spherecf.common.tensorfile import sealed_tensors, write_tensors
from spherecf.errors import FileFormatError, InputError, StorageError

Column = tuple[tuple[int, ...], str]
"""Shape of one row and NumPy dtype name."""

_COMMIT_BYTES, _COMMIT_SECONDS = 64 << 20, 20.0  # maximum loss on kill -9, whichever is reached first

_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


def _reserve_bytes(stream: IO[bytes], size: int) -> None:
    """Give the file its final size, or raise OSError if the disk has not enough space."""
    if hasattr(os, "posix_fallocate") and size:
        try:
            os.posix_fallocate(stream.fileno(), 0, size)
            return
        except OSError as error:
            if error.errno not in _NO_FALLOCATE:
                raise
    # macOS and some network file systems: the file will be sparse, so check the free space instead.
    if shutil.disk_usage(Path(stream.name).parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    stream.truncate(size)


@dataclass
class _State:
    """The state file: identity of the rows, number of rows done, and notes of the passes."""

    identity: dict[str, Any]
    done: int
    notes: dict[str, Any]


class RowStore:
    """A folder of ``NAME.bin`` arrays with a fixed number of rows, filled in order.

    Disk space is reserved before the first row, so a full disk is reported at the start and not after an
    hour. A row counts as done only when its bytes are on disk; opening the folder again continues after the
    last such row.

    Args:
        folder: folder of the arrays.
        rows: total number of rows.
        columns: shape of one row and dtype of each array, by name.
        identity: JSON-serialisable facts that must be equal for rows to be reused (data and model hashes,
            settings). The rows of a folder with another identity are deleted.

    Raises:
        StorageError: there is not enough space, or the folder is not writable.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> store = RowStore(folder, 3, {"x": ((2,), "float32")}, {"data": "abc"})
        >>> store.append({"x": np.ones((2, 2), np.float32)})
        >>> store.commit()
        >>> RowStore(folder, 3, {"x": ((2,), "float32")}, {"data": "abc"}).done
        2
    """

    def __init__(
        self, folder: str | Path, rows: int, columns: Mapping[str, Column], identity: Mapping[str, Any]
    ) -> None:
        self.folder, self.rows, self.columns = Path(folder), rows, dict(columns)
        self.identity: dict[str, Any] = json.loads(
            json.dumps({"rows": rows, "columns": self.columns, **identity}, sort_keys=True)
        )
        self.done = 0
        self.notes: dict[str, Any] = {}
        self.arrays: dict[str, NDArray[Any]]
        self._pending, self._committed = 0, time.monotonic()
        try:
            if not self._resume():
                self._reserve()
            self.arrays = self._open_arrays()
        except StorageError:  # a StorageError is also an OSError
            raise
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot be written ({error.strerror or error}); choose another folder"
            ) from error

    @staticmethod
    def bytes_needed(rows: int, columns: Mapping[str, Column]) -> int:
        """Size on disk in bytes."""
        return rows * sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in columns.values())

    @property
    def complete(self) -> bool:
        """Whether all rows are on disk."""
        return self.done == self.rows

    def append(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Write the next rows of every column; they are committed automatically every 64 MiB or 20 s.

        Raises:
            InputError: the columns differ from the store's, or there are more rows than are left.
        """
        if set(values) != set(self.columns):
            raise InputError(f"expected the columns {sorted(self.columns)}, got {sorted(values)}")
        start = self.done + self._pending
        counts = {len(value) for value in values.values()}
        if len(counts) != 1 or start + max(counts) > self.rows:
            raise InputError(
                f"rows {start}.. of {self.rows}: expected columns of equal length with at most "
                f"{self.rows - start} rows, got {sorted(counts)}"
            )
        (count,) = counts
        for name, value in values.items():
            self.arrays[name][start : start + count] = value
        self._pending += count
        due = self.bytes_needed(self._pending, self.columns) > _COMMIT_BYTES
        due = due or time.monotonic() - self._committed > _COMMIT_SECONDS
        if due or start + count == self.rows:
            self.commit()

    def commit(self) -> None:
        """Flush to disk and record the rows as done.

        Raises:
            StorageError: the disk is full or failed; the rows of earlier commits are kept.
        """
        try:
            for array in self.arrays.values():
                if isinstance(array, np.memmap):
                    array.flush()
        except OSError as error:
            raise StorageError(
                f"{self.folder}: rows could not be written ({error.strerror or error}); {self.done} of "
                f"{self.rows} are kept. Run the same command again to continue."
            ) from error
        self.done, self._pending, self._committed = self.done + self._pending, 0, time.monotonic()
        self._save_state()

    def part(self, start: int, stop: int) -> "RowStore":
        """Rows ``start`` to ``stop`` - 1 as a separate store in the same files, to fill parts in parallel.

        Example:
            >>> import tempfile
            >>> whole = RowStore(tempfile.mkdtemp(), 3, {"x": ((), "float32")}, {})
            >>> parts = [whole.part(0, 2), whole.part(2, 3)]
            >>> for number, part in enumerate(parts):
            ...     part.append({"x": np.full(part.rows, number, np.float32)})
            >>> whole.join(parts)
            >>> whole.complete, whole.arrays["x"].tolist()
            (True, [0.0, 0.0, 1.0])
        """
        return _RowPart(self, start, stop)

    def join(self, parts: Iterable["RowStore"]) -> None:
        """Take over finished parts that together cover all rows, and their notes on skipped images."""
        parts = list(parts)
        for part in parts:
            self.notes.setdefault("skipped", {}).update(part.notes.get("skipped", {}))
        self.done = self.rows
        self._save_state()
        self._delete_files(part.state_file for part in parts)

    def remove(self) -> None:
        """Delete the arrays, and the folder if it is then empty."""
        self.arrays.clear()
        self._clear(self.columns)

    @property
    def state_file(self) -> Path:
        """The file that records which rows are done."""
        return self.folder / "state.json"

    def _open_arrays(self) -> dict[str, NDArray[Any]]:
        # A complete store may be on a read-only disk.
        mode: Literal["r", "r+"] = "r" if self.complete and not os.access(self.state_file, os.W_OK) else "r+"
        return {
            name: np.memmap(self._path(name), dtype, mode, shape=(self.rows, *shape))
            if self.rows and math.prod(shape)
            else np.zeros((self.rows, *shape), dtype)
            for name, (shape, dtype) in self.columns.items()
        }

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.bin"

    def _save_state(self) -> None:
        state = {"identity": self.identity, "done": self.done, "notes": self.notes}
        write_atomically(self.state_file, lambda stream: stream.write(json.dumps(state).encode()))

    def _resume(self) -> bool:
        """Continue from the rows of an earlier run, if they have the same identity and are intact."""
        state = self._state()
        if state is None:
            return False
        sizes_match = all(
            self._path(name).is_file()
            and self._path(name).stat().st_size == self.bytes_needed(self.rows, {name: column})
            for name, column in self.columns.items()
        )
        if state.identity == self.identity and sizes_match and 0 <= state.done <= self.rows:
            self.done, self.notes = state.done, state.notes
            if self.complete:  # an earlier run may have been killed before it deleted the states of its parts
                with contextlib.suppress(OSError):
                    self._delete_files(self.folder.glob("rows-*-*.json"))
            return True
        self._report_replaced(state)
        columns = state.identity.get("columns", ())
        self._clear(name for name in columns if Path(name).name == name)
        return False

    def _report_replaced(self, state: "_State") -> None:
        """Tell which facts of an earlier run differ, since its rows may have taken hours."""
        facts = {*self.identity, *state.identity}
        changed = sorted(name for name in facts if self.identity.get(name) != state.identity.get(name))
        if state.done > 0 and changed:
            print_text(
                f"{self.folder}: the {state.done:,} rows of an earlier run differ in {', '.join(changed)}; "
                "they are deleted and computed again"
            )

    def _state(self) -> "_State | None":
        """The content of the state file; None if there is no valid one."""
        try:
            text = self.state_file.read_bytes()
            return checked(_State, parse_json(text, self.state_file, "a state"), "state")
        except (OSError, FileFormatError, InputError):
            return None

    def _clear(self, columns: Iterable[str]) -> None:
        """Delete the files of this store, and the folder if it is then empty; other files are kept."""
        parts = *self.folder.glob("rows-*-*.json"), *self.folder.glob("rows-*.sealed")
        self._delete_files([self.folder / "state.json", *parts, *map(self._path, columns)])
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    @staticmethod
    def _delete_files(files: Iterable[Path]) -> None:
        """Delete files that may exist."""
        for path in files:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(
                    f"{path}: could not be deleted ({error.strerror}); run the same command again"
                ) from error

    def _reserve(self) -> None:
        """Create files of the final size, or raise an error and leave nothing behind."""
        needed = self.bytes_needed(self.rows, self.columns)
        missing_folders = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            make_folder(self.folder)
            # Create new files instead of overwriting: another process may still read the old ones.
            self._delete_files([self.state_file, *map(self._path, self.columns)])
            for name, column in self.columns.items():
                with self._path(name).open("wb") as stream:
                    _reserve_bytes(stream, self.bytes_needed(self.rows, {name: column}))
                    os.fsync(stream.fileno())
            sync_folder(self.folder)
            self._save_state()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._clear(self.columns)
                for path in missing_folders[1:]:
                    path.rmdir()
            raise self._space_error(needed, error) from error

    def _space_error(self, needed: int, error: OSError) -> StorageError:
        return StorageError(
            f"{self.folder}: cannot reserve {needed / 2**20:,.1f} MiB ({error.strerror or error}). "
            "Nothing was written. Free some space, choose another folder, or use fewer images or views."
        )


class _RowPart(RowStore):
    """Some rows of another store, in the files of that store but with a separate state."""

    def __init__(self, whole: RowStore, start: int, stop: int) -> None:
        self.folder, self.rows, self.columns = whole.folder, stop - start, whole.columns
        self.identity = {**whole.identity, "part": [start, stop]}
        self.arrays = {name: array[start:stop] for name, array in whole.arrays.items()}
        self.done, self.notes, self._range = 0, {}, (start, stop)
        self._pending, self._committed = 0, time.monotonic()
        state = self._state()
        if state is not None and state.identity == self.identity and 0 <= state.done <= self.rows:
            self.done, self.notes = state.done, state.notes

    @property
    def state_file(self) -> Path:
        return self.folder / f"rows-{self._range[0]}-{self._range[1]}.json"


class SealedRows(RowStore):
    """A store whose rows are in memory and, encrypted, on disk: one sealed file per commit.

    Args:
        folder, rows, columns, identity: as for `RowStore`.
        key: key that the files are sealed with.

    Raises:
        StorageError: there is not enough space, or the folder is not writable.
        InputError: rows in the folder are sealed with another key.

    Example:
        >>> import tempfile
        >>> args = tempfile.mkdtemp(), 3, {"x": ((2,), "float32")}, {}, Key(bytes(32), "an example")
        >>> store = SealedRows(*args)
        >>> store.append({"x": np.ones((2, 2), np.float32)})
        >>> store.commit()
        >>> SealedRows(*args).arrays["x"].tolist()
        [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    """

    def __init__(
        self, folder: str | Path, rows: int, columns: Mapping[str, Column], identity: Mapping[str, Any],
        key: Key,
    ) -> None:  # fmt: skip
        self._key, self._loaded_rows = key, list[dict[str, NDArray[Any]]]()
        super().__init__(folder, rows, columns, identity)

    def commit(self) -> None:
        """Seal the rows appended since the last commit into a new file."""
        if self._pending:
            start, end = self.done, self.done + self._pending
            state = {"identity": self.identity, "done": end, "notes": self.notes}
            rows = {name: array[start:end] for name, array in self.arrays.items()}
            write_tensors(self._sealed(start), rows, {"state": json.dumps(state)}, self._key)
        self.done, self._pending, self._committed = self.done + self._pending, 0, time.monotonic()

    def _sealed(self, start: int) -> Path:
        return self.folder / f"rows-{start}.sealed"

    def _resume(self) -> bool:
        plain = self._state()
        if plain is not None:  # rows of a run without a key
            self._clear(name for name in plain.identity.get("columns", ()) if Path(name).name == name)
        while (file := self._sealed(self.done)).exists():
            key = matching_key(self._key, file, sealed_with(file) or "none")
            try:
                rows, metadata = sealed_tensors(file, key, "rows of an earlier run")
                state = checked(_State, parse_json(metadata["state"], file, "a state"), "state")
            except (KeyError, FileFormatError):
                break  # damaged: its rows are computed again
            if state.identity != self.identity:
                self._report_replaced(state)
                self._clear(())
                return False
            if {len(column) for column in rows.values()} != {state.done - self.done}:
                break  # a file of other rows under this name
            self._loaded_rows.append(rows)
            self.done, self.notes = state.done, state.notes
        return bool(self._loaded_rows)

    def _reserve(self) -> None:
        needed = self.bytes_needed(self.rows, self.columns)
        try:
            make_folder(self.folder)
            if shutil.disk_usage(self.folder).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):
                self.folder.rmdir()
            raise self._space_error(needed, error) from error

    def _open_arrays(self) -> dict[str, NDArray[Any]]:
        arrays = {name: np.zeros((self.rows, *shape), dtype) for name, (shape, dtype) in self.columns.items()}
        start = 0
        for rows in self._loaded_rows:
            for name, column in rows.items():
                arrays[name][start : start + len(column)] = column
            start += len(column)
        self._loaded_rows.clear()
        return arrays
