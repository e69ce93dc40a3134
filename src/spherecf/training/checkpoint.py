"""Checkpoints: one folder per saved step, written by all ranks, complete or absent."""

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
_OF_A_RANK = ("own", "shard")
_PART, _OLD, _GONE = ".part", ".old", ".gone"  # endings of folders that are no checkpoints, yet or any more
_PATIENCE = 60.0  # seconds, after an error, for the files of other ranks


def identity_of(facts: Mapping[str, Any]) -> str:
    """Hash of the settings and data that a state belongs to."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as one rank needs it.

    Attributes:
        step: global step after which it was saved.
        common: state that is the same on all ranks.
        private: state of this rank alone; None if the number of ranks has changed.
        shard: this rank's rows of the sharded tensors, by name, whatever the number of ranks that saved them.
    """

    step: int
    common: dict[str, Any]
    private: dict[str, Any] | None
    shard: dict[str, Tensor]


class CheckpointWriter:
    """Writes checkpoints by a thread, from a copy in the processor's memory, while training goes on.

    One is under way at most. All ranks call `save` and `wait` together; the threads use no collectives, which
    would get between those of the training. At the end of a ``with`` block, also after an error, the
    checkpoint under way is completed.

    Args:
        folder: of the run, seen by all ranks.
        identity: of the run.
        ranks: that write it.
        keep: number of newest checkpoints of this run that remain.
    """

    def __init__(self, folder: Path, identity: str, ranks: Ranks, keep: int = 2) -> None:
        self._folder, self._identity, self._ranks, self._keep = folder, identity, ranks, keep
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._abandoned = threading.Event()
        self._written: Future[None] | None = None  # this rank's files
        self._renamed: Future[None] | None = None  # on rank 0: the folder of all ranks' files
        ranks.run_on_main(lambda: _tidy(folder, identity, keep), "looking for checkpoints")

    def save(
        self,
        step: int,
        *,
        common: Callable[[], Mapping[str, Any]],
        private: Mapping[str, Any],
        shard: Mapping[str, Tensor],
    ) -> None:
        """Begin a checkpoint, after the one before it is complete.

        Args:
            common: gives the state that is the same on all ranks; called on rank 0.
            private: state of this rank.
            shard: this rank's rows of the sharded tensors, by name, and scalars.

        Raises:
            StorageError, RankError: as in `wait`, of the one before, or the folder cannot be created.
        """
        self.wait()
        ranks, target = self._ranks, self._folder / FOLDER / f"{step:09d}-{self._identity[:8]}"
        # All ranks write into a hidden folder; when all are done, renaming it makes the checkpoint exist.
        temporary = _aside(target, _PART)
        ranks.run_on_main(lambda: _new(temporary), "saving a checkpoint")
        files: dict[str, Any] = {_name(ranks.rank, ranks.size): {"own": private, "shard": shard}}
        if ranks.is_main:
            files[_COMMON] = {"identity": self._identity, "step": step, **common()}
        copies = _copy(files)
        self._written = self._thread.submit(_write_files, temporary, copies)
        if ranks.is_main:
            self._renamed = self._thread.submit(self._rename, self._written, temporary, target)

    @property
    def failed(self) -> bool:
        """Whether this rank could not write; `wait` says why."""
        return self._written is not None and self._written.done() and self._written.exception() is not None

    def wait(self) -> None:
        """Until the checkpoint under way, if there is one, is complete.

        Raises:
            StorageError: the disk is full; the checkpoint before this one is intact.
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
        # Files appear whole, so a checkpoint is complete when those of all ranks are there.
        names = [_name(rank, self._ranks.size) for rank in range(self._ranks.size)]
        while written.exception() or not all((temporary / name).exists() for name in names):
            if written.exception() or self._abandoned.wait(0.1):
                shutil.rmtree(temporary, ignore_errors=True)
                return
        # No folder is deleted in part under the name of a checkpoint: it is renamed first. Older ones go once
        # the newest is on the disk.
        try:
            if target.exists():
                target.rename(_aside(target, _OLD))
            temporary.rename(target)
            sync_folder(target.parent)
            _tidy(self._folder, self._identity, self._keep)
        except OSError as error:
            raise StorageError(
                f"{target}: cannot be written ({error.strerror}); the checkpoint before it is intact"
            ) from error

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._end(_PATIENCE)

    def _end(self, patience: float) -> None:
        """Complete what is under way; ranks that are gone are waited for ``patience`` seconds."""
        if self._written is not None:
            self._written.exception()
        if self._renamed is not None:
            wait([self._renamed], patience)
        self._abandoned.set()
        self._thread.shutdown()


def load_checkpoint(
    folder: Path, identity: str, ranks: Ranks, rows: slice | None = None
) -> Checkpoint | None:
    """The newest checkpoint of a run, or None if it has none.

    Args:
        rows: this rank's rows of the sharded tensors; None if there are none.

    Raises:
        FileFormatError: a file is damaged.
    """
    newest = next(iter(_saved(folder, identity)), None)
    # Rank 0 decides: on a network file system others may not see the newest folder yet.
    path = ranks.broadcast_object(newest)
    if path is None:
        return None
    return ranks.run_on_all(lambda: _load(path, identity, ranks, rows), f"reading {path}")


def load_sharded(folder: Path, identity: str, name: str) -> Tensor:
    """All rows of one sharded tensor, from the newest checkpoint of a run.

    Raises:
        FileFormatError: there is no such checkpoint, or it is damaged.
    """
    saved = _saved(folder, identity)
    if not saved:
        raise FileFormatError(folder / FOLDER, "expected a checkpoint of this run, found none.")
    return torch.cat([_read(path, *_OF_A_RANK)["shard"][name] for path in _rank_files(saved[0])])


def _load(path: Path, identity: str, ranks: Ranks, rows: slice | None) -> Checkpoint | None:
    common = _read(path / _COMMON, "identity", "step")
    if common.pop("identity") != identity:  # the folder's name has its first eight digits only
        return None
    files = _rank_files(path)
    private = _read(files[ranks.rank], *_OF_A_RANK)["own"] if len(files) == ranks.size else None
    return Checkpoint(common.pop("step"), common, private, _join(files, rows))


def _rank_files(path: Path) -> list[Path]:
    """The files of all ranks that wrote a checkpoint, in rank order."""
    present = sorted(path.glob("rank-*-of-*.pt"))
    sizes = [int(count) for file in present if (count := file.stem.split("-")[-1]).isdecimal()]
    size = min(sizes[:1], default=1)
    files = [path / _name(rank, size) for rank in range(size)]
    if missing := [file.name for file in files if file not in present]:
        raise FileFormatError(
            path,
            f"incomplete: {', '.join(missing)} is missing.",
            "Do all ranks see this folder? Or delete it.",
        )
    return files


def _aside(checkpoint: Path, ending: str) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}{ending}")


def _tidy(folder: Path, identity: str, keep: int) -> None:
    """Keep the newest checkpoints; delete what a killed process left, restore what it had set aside."""
    for hidden in (folder / FOLDER).glob(".*"):
        checkpoint = hidden.with_name(hidden.stem.removeprefix("."))
        if hidden.suffix == _OLD and not checkpoint.exists():
            hidden.rename(checkpoint)
        elif hidden.suffix in (_PART, _OLD, _GONE):
            shutil.rmtree(hidden, ignore_errors=True)
    for old in _saved(folder, identity)[keep:]:
        shutil.rmtree(old.rename(_aside(old, _GONE)), ignore_errors=True)


def _new(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be created ({error.strerror}); choose another folder"
        ) from error


def _saved(folder: Path, identity: str) -> list[Path]:
    """Complete checkpoints of a run, newest first."""
    return sorted((folder / FOLDER).glob(f"[0-9]*-{identity[:8]}"), reverse=True)


def _name(rank: int, size: int) -> str:
    return f"rank-{rank}-of-{size}.pt"


def _copy(value: Any) -> Any:
    """A copy that later steps do not change, its tensors in the processor's memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        twin = copy(value) if isinstance(value, dict) else dict(value)  # a state dictionary has attributes
        twin.update({name: _copy(item) for name, item in value.items()})
        return twin
    return type(value)(map(_copy, value)) if isinstance(value, list | tuple) else value


def _write_files(folder: Path, files: Mapping[str, Any]) -> None:
    for name, content in files.items():
        write_atomically(folder / name, partial(torch.save, content))


def _read(path: Path, *names: str) -> dict[str, Any]:
    """The content of a file, which must have these names."""
    try:
        # Not mapped: the file may be deleted while what was read is still in use.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load: pickle and zip errors of many classes, with advice to execute the file
        content = None
    if not isinstance(content, dict) or not set(names) <= set(content):
        raise FileFormatError(
            path,
            f"damaged: expected what this run saved, it is {describe_content(path)}.",
            f"Delete {path.parent} to go on from the previous checkpoint, or from the start.",
        )
    return content


def _join(files: Sequence[Path], wanted: slice | None) -> dict[str, Tensor]:
    """The wanted rows of the sharded tensors, as contiguous shards in rank order hold them, and scalars."""
    if wanted is None:
        return {}
    pieces: dict[str, list[Tensor]] = {}
    begin = 0  # first row of the current file's shard
    for path in files:
        shard = _read(path, *_OF_A_RANK)["shard"]
        rows = len(shard["weight"])
        for name, value in shard.items():
            if value.ndim:
                value = value[max(wanted.start - begin, 0) : max(wanted.stop - begin, 0)]
            pieces.setdefault(name, []).append(value)
        begin += rows
    return {
        name: values[0].clone() if not values[0].ndim else torch.cat(values)
        for name, values in pieces.items()
    }
