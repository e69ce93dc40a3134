"""Checkpoints: one folder per saved step, written by all ranks, complete or absent."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spherecf.common.files import describe_content, write_atomically
from spherecf.errors import FileFormatError, StorageError
from spherecf.training.distributed import Ranks

FOLDER = "checkpoints"
_COMMON = "common.pt"
_OF_A_RANK = ("own", "shard")


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


def save_checkpoint(
    folder: Path,
    step: int,
    identity: str,
    ranks: Ranks,
    *,
    common: Callable[[], Mapping[str, Any]],
    private: Mapping[str, Any],
    shard: Mapping[str, Tensor],
    keep: int = 2,
) -> None:
    """Write a checkpoint, whole or not at all, and drop all but the newest ``keep`` of this run.

    Args:
        folder: of the run, seen by all ranks.
        common: gives the state that is the same on all ranks; called on rank 0.
        private: state of this rank.
        shard: this rank's rows of the sharded tensors, by name, and scalars.

    Raises:
        StorageError: the disk is full; the previous checkpoint is intact.
        RankError: another rank could not write.
    """
    target = folder / FOLDER / f"{step:09d}-{identity[:8]}"
    # All ranks write into a hidden folder; when all are done, renaming it makes the checkpoint exist.
    temporary = target.with_name(f".{target.name}.part")
    ranks.run_on_main(lambda: _new(temporary), "saving a checkpoint")

    def write() -> None:
        _write(temporary / _name(ranks.rank, ranks.size), {"own": dict(private), "shard": dict(shard)})
        if ranks.is_main:
            _write(temporary / _COMMON, {"identity": identity, "step": step, **common()})

    try:
        ranks.run_on_all(write, "saving a checkpoint")
    except StorageError:
        if ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise

    def finish() -> None:
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
        for old in _saved(folder, identity)[keep:]:
            shutil.rmtree(old, ignore_errors=True)

    ranks.run_on_main(finish, "saving a checkpoint")


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


def _new(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: cannot be created ({error.strerror}); choose another folder"
        ) from error


def _saved(folder: Path, identity: str) -> list[Path]:
    """Complete checkpoints of a run, newest first."""
    return sorted((folder / FOLDER).glob(f"[0-9]*-{identity[:8]}"), reverse=True)


def _name(rank: int, size: int) -> str:
    return f"rank-{rank}-of-{size}.pt"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, lambda stream: torch.save(dict(content), stream))


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
