"""Checkpoints: one folder per saved step, written by all ranks, and atomic: complete or absent."""

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spherecf.common.files import describe_content, make_folder, sync_folder, write_atomically
from spherecf.errors import FileFormatError, RankError, StorageError
from spherecf.training.distributed import Ranks

FOLDER = "checkpoints"
_COMMON = "common.pt"
_RANK_KEYS = ("own", "shard")
_PART, _OLD, _DELETED = ".part", ".old", ".gone"  # suffixes of incomplete, replaced and deleted checkpoints
_MAX_WAIT = 60.0  # seconds to wait, after an error, for the files of other ranks


def identity_of(facts: Mapping[str, Any]) -> str:
    """Hash of the settings and data that a checkpoint depends on."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as loaded by one rank.

    Attributes:
        step: number of steps before it was saved.
        common: state that is the same on all ranks.
        private: state of this rank; None if the number of ranks has changed.
        shard: this rank's rows of the sharded tensors, by name, for any number of ranks that saved them.
    """

    step: int
    common: dict[str, Any]
    private: dict[str, Any] | None
    shard: dict[str, Tensor]


class CheckpointWriter:
    """Writes checkpoints in a thread, from a copy in CPU memory, while training continues.

    At most one checkpoint is written at a time. All ranks call `save` and `wait` together. The threads use no
    collectives, which would interfere with those of the training. At the end of a ``with`` block, also after
    an error, the pending checkpoint is completed.

    Args:
        folder: of the run, which all ranks must see.
        identity: of the run.
        ranks: that write together.
        keep: number of checkpoints of this run to keep.
    """

    def __init__(self, folder: Path, identity: str, ranks: Ranks, keep: int = 2) -> None:
        self._folder, self._identity, self._ranks, self._keep = folder, identity, ranks, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._abandoned = threading.Event()
        self._written: Future[None] | None = None  # this rank's files
        self._renamed: Future[None] | None = None  # on rank 0: the folder of all ranks' files
        ranks.run_on_main(lambda: _clean_up(folder, identity, keep), "looking for checkpoints")

    def save(
        self,
        step: int,
        *,
        common: Callable[[], Mapping[str, Any]],
        private: Mapping[str, Any],
        shard: Mapping[str, Tensor],
    ) -> None:
        """Start writing a checkpoint, once the previous one is complete.

        Args:
            step: number of steps so far.
            common: returns the state that is the same on all ranks; called on rank 0.
            private: state of this rank.
            shard: this rank's rows of the sharded tensors, by name, and scalars.

        Raises:
            StorageError, RankError: as `wait`, for the previous checkpoint, or the folder cannot be created.
        """
        self.wait()
        ranks, target = self._ranks, self._folder / FOLDER / f"{step:09d}-{self._identity[:8]}"
        # All ranks write into a hidden folder; renaming it, when all are done, creates the checkpoint.
        temporary = _hidden_path(target, _PART)
        ranks.run_on_main(lambda: _create_folder(temporary), "saving a checkpoint")
        files: dict[str, Any] = {_rank_file_name(ranks.rank, ranks.size): {"own": private, "shard": shard}}
        if ranks.is_main:
            files[_COMMON] = {"identity": self._identity, "step": step, **common()}
        copies = _copy_to_cpu(files)
        self._written = self._thread.submit(_write_files, temporary, copies)
        if ranks.is_main:
            self._renamed = self._thread.submit(self._rename, self._written, temporary, target)

    @property
    def failed(self) -> bool:
        """Whether this rank failed to write; `wait` raises the reason."""
        return self._written is not None and self._written.done() and self._written.exception() is not None

    def wait(self) -> None:
        """Wait until the pending checkpoint, if any, is complete.

        Raises:
            StorageError: the disk is full; the previous checkpoint is intact.
            RankError: another rank could not write.
        """
        if self._written is None:
            return
        try:
            self._ranks.run_on_all(self._written.result, "saving a checkpoint")
        except (StorageError, RankError):
            self._end(0)
            raise
        self._ranks.run_on_main(lambda: self._renamed and self._renamed.result(), "saving a checkpoint")
        self._written = self._renamed = None

    def _rename(self, written: Future[None], temporary: Path, target: Path) -> None:
        # Files are written atomically: the checkpoint is complete when the files of all ranks exist.
        names = [_rank_file_name(rank, self._ranks.size) for rank in range(self._ranks.size)]
        while written.exception() or not all((temporary / name).exists() for name in names):
            if written.exception() or self._abandoned.wait(0.1):
                shutil.rmtree(temporary, ignore_errors=True)
                return
        # Rename a folder before deleting it: a partly deleted one must not look like a checkpoint. Delete
        # older checkpoints once the newest is on the disk.
        try:
            if target.exists():
                target.rename(_hidden_path(target, _OLD))
            sync_folder(temporary)  # the names of all files, before the checkpoint exists
            temporary.rename(target)
            sync_folder(target.parent)
            _clean_up(self._folder, self._identity, self._keep)
        except OSError as error:
            raise StorageError(
                f"{target}: cannot be written ({error.strerror}); the previous checkpoint is intact"
            ) from error

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._end(_MAX_WAIT)

    def _end(self, max_wait: float) -> None:
        """Complete the pending checkpoint, waiting at most ``max_wait`` seconds for other ranks."""
        if self._written is not None:
            self._written.exception()
        if self._renamed is not None:
            wait([self._renamed], max_wait)
        self._abandoned.set()
        self._thread.shutdown()


def load_checkpoint(
    folder: Path, identity: str, ranks: Ranks, rows: slice | None = None
) -> Checkpoint | None:
    """Load the newest checkpoint of a run; None if there is none.

    Args:
        folder: of the run.
        identity: of the run.
        ranks: that load together.
        rows: this rank's rows of the sharded tensors; None if there are none.

    Raises:
        FileFormatError: a file is damaged.
    """
    newest = next(iter(_checkpoints(folder, identity)), None)
    # Rank 0 decides for all: on a network file system other ranks may not see the newest folder yet.
    path = ranks.broadcast_object(newest)
    if path is None:
        return None
    return ranks.run_on_all(lambda: _load(path, identity, ranks, rows), f"reading {path}")


def other_checkpoints(folder: Path, identity: str) -> int:
    """Number of complete checkpoints of other runs in the folder of a run."""
    return len({*(folder / FOLDER).glob("[0-9]*-*")} - {*_checkpoints(folder, identity)})


def load_sharded(folder: Path, identity: str, name: str) -> Tensor:
    """Load all rows of a sharded tensor from the newest checkpoint of a run.

    Raises:
        FileFormatError: there is no checkpoint, or it is damaged.
    """
    saved = _checkpoints(folder, identity)
    if not saved:
        raise FileFormatError(folder / FOLDER, "expected a checkpoint of this run, found none.")
    return torch.cat([_read(path, *_RANK_KEYS)["shard"][name] for path in _rank_files(saved[0])])


def _load(path: Path, identity: str, ranks: Ranks, rows: slice | None) -> Checkpoint | None:
    common = _read(path / _COMMON, "identity", "step")
    if common.pop("identity") != identity:  # the folder's name has only its first eight digits
        return None
    files = _rank_files(path)
    private = _read(files[ranks.rank], *_RANK_KEYS)["own"] if len(files) == ranks.size else None
    return Checkpoint(common.pop("step"), common, private, _join_shards(files, rows))


def _rank_files(path: Path) -> list[Path]:
    """The files of all ranks that wrote a checkpoint, in rank order."""
    present = sorted(path.glob("rank-*-of-*.pt"))
    sizes = [int(count) for file in present if (count := file.stem.split("-")[-1]).isdecimal()]
    size = min(sizes[:1], default=1)
    files = [path / _rank_file_name(rank, size) for rank in range(size)]
    if missing := [file.name for file in files if file not in present]:
        raise FileFormatError(
            path,
            f"incomplete: {', '.join(missing)} is missing.",
            "Check that all ranks see this folder, or delete it.",
        )
    return files


def _hidden_path(checkpoint: Path, ending: str) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}{ending}")


def _clean_up(folder: Path, identity: str, keep: int) -> None:
    """Delete old checkpoints and the remains of a killed process; restore a checkpoint it was replacing."""
    for hidden in (folder / FOLDER).glob(".*"):
        checkpoint = hidden.with_name(hidden.stem.removeprefix("."))
        if hidden.suffix == _OLD and not checkpoint.exists():
            hidden.rename(checkpoint)
        elif hidden.suffix in (_PART, _OLD, _DELETED):
            shutil.rmtree(hidden, ignore_errors=True)
    for old in _checkpoints(folder, identity)[keep:]:
        shutil.rmtree(old.rename(_hidden_path(old, _DELETED)), ignore_errors=True)


def _create_folder(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be created ({error.strerror}); choose another folder"
        ) from error


def _checkpoints(folder: Path, identity: str) -> list[Path]:
    """Complete checkpoints of a run, newest first."""
    return sorted((folder / FOLDER).glob(f"[0-9]*-{identity[:8]}"), reverse=True)


def _rank_file_name(rank: int, size: int) -> str:
    return f"rank-{rank}-of-{size}.pt"


def _copy_to_cpu(value: Any) -> Any:
    """A copy that later steps do not modify, with its tensors in CPU memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        # `copy` keeps the attributes of a state dictionary.
        copied = copy(value) if isinstance(value, dict) else dict(value)
        copied.update({name: _copy_to_cpu(item) for name, item in value.items()})
        return copied
    return type(value)(map(_copy_to_cpu, value)) if isinstance(value, list | tuple) else value


def _write_files(folder: Path, files: Mapping[str, Any]) -> None:
    for name, content in files.items():
        write_atomically(folder / name, partial(torch.save, content))


def _read(path: Path, *names: str) -> dict[str, Any]:
    """The content of a file, which must have these keys."""
    try:
        # Not memory-mapped: the file may be deleted while its content is still in use.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load raises many classes of pickle and zip errors, with unsafe advice
        content = None
    if not isinstance(content, dict) or not set(names) <= set(content):
        raise FileFormatError(
            path,
            f"damaged: expected a file saved by this run, it is {describe_content(path)}.",
            f"Delete {path.parent} to resume from the previous checkpoint, or from the start.",
        )
    return content


def _join_shards(files: Sequence[Path], selected: slice | None) -> dict[str, Tensor]:
    """Selected rows of the sharded tensors, from contiguous shards in rank order, and scalars."""
    if selected is None:
        return {}
    pieces: dict[str, list[Tensor]] = {}
    begin = 0  # first row of the current file's shard
    for path in files:
        shard = _read(path, *_RANK_KEYS)["shard"]
        rows = len(shard["weight"])
        for name, value in shard.items():
            if value.ndim:
                value = value[max(selected.start - begin, 0) : max(selected.stop - begin, 0)]
            pieces.setdefault(name, []).append(value)
        begin += rows
    return {
        name: values[0].clone() if not values[0].ndim else torch.cat(values)
        for name, values in pieces.items()
    }
