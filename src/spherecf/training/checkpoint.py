"""Checkpoints: a folder per saved step, written by all ranks, that is complete or not there."""

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
    """What `load_checkpoint` found.

    Attributes:
        step: global step it was saved after.
        common: what all ranks have the same of.
        own: this rank's private state, None where the number of ranks has changed.
        shard: rows of this rank's part, by name, put together from the parts as they were saved.
    """

    step: int
    common: dict[str, Any]
    own: dict[str, Any] | None
    shard: dict[str, Tensor]


def save_checkpoint(
    folder: Path,
    step: int,
    identity: str,
    ranks: Ranks,
    *,
    common: Callable[[], Mapping[str, Any]],
    own: Mapping[str, Any],
    shard: Mapping[str, Tensor],
    keep: int = 2,
) -> None:
    """Write a checkpoint, whole or not at all, and drop all but the newest ``keep`` of this run.

    Args:
        folder: of the run, seen by all ranks.
        common: called on rank 0 alone.
        own: each rank's.
        shard: this rank's rows of what is divided, by name, and scalars.

    Raises:
        StorageError: the disk is full; the checkpoint before is intact.
        RankError: another rank could not write.
    """
    place = folder / FOLDER / f"{step:09d}-{identity[:8]}"
    part = place.with_name(f".{place.name}.part")
    ranks.lead(lambda: _new(part), "saving a checkpoint")

    def write() -> None:
        _write(part / _name(ranks.rank, ranks.size), {"own": dict(own), "shard": dict(shard)})
        if ranks.leads:
            _write(part / _COMMON, {"identity": identity, "step": step, **common()})

    try:
        ranks.together(write, "saving a checkpoint")
    except StorageError:
        if ranks.leads:
            shutil.rmtree(part, ignore_errors=True)
        raise

    def finish() -> None:
        shutil.rmtree(place, ignore_errors=True)
        part.rename(place)
        for old in _saved(folder, identity)[keep:]:
            shutil.rmtree(old, ignore_errors=True)

    ranks.lead(finish, "saving a checkpoint")


def load_checkpoint(
    folder: Path, identity: str, ranks: Ranks, part: slice | None = None
) -> Checkpoint | None:
    """The newest checkpoint of this very run, or None where there is none or it is another run's.

    Args:
        part: this rank's rows of what is divided.

    Raises:
        FileFormatError: a file is damaged.
    """
    newest = next(iter(_saved(folder, identity)), None)
    place = ranks.tell(newest)  # one rank looks, so that all go on from the same step
    if place is None:
        return None
    return ranks.together(lambda: _load(place, identity, ranks, part), f"reading {place}")


def load_divided(folder: Path, identity: str, name: str) -> Tensor:
    """All rows of one divided tensor, as the newest checkpoint of a run has them.

    Raises:
        FileFormatError: there is no such checkpoint, or it is damaged.
    """
    places = _saved(folder, identity)
    if not places:
        raise FileFormatError(folder / FOLDER, "expected a checkpoint of this run, found none.")
    return torch.cat([_read(path, *_OF_A_RANK)["shard"][name] for path in _parts(places[0])])


def _load(place: Path, identity: str, ranks: Ranks, part: slice | None) -> Checkpoint | None:
    common = _read(place / _COMMON, "identity", "step")
    if common.pop("identity") != identity:
        return None
    files = _parts(place)
    own = _read(files[ranks.rank], *_OF_A_RANK)["own"] if len(files) == ranks.size else None
    return Checkpoint(common.pop("step"), common, own, _join(files, part))


def _parts(place: Path) -> list[Path]:
    """The files of all ranks that wrote a checkpoint, in rank order."""
    found = sorted(place.glob("rank-*-of-*.pt"))
    sizes = [int(count) for path in found if (count := path.stem.split("-")[-1]).isdecimal()]
    size = min(sizes[:1], default=1)
    files = [place / _name(rank, size) for rank in range(size)]
    if missing := [path.name for path in files if path not in found]:
        raise FileFormatError(
            place,
            f"incomplete: {', '.join(missing)} is missing.",
            "Do all ranks see this folder? Or delete it.",
        )
    return files


def _new(folder: Path) -> None:
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error


def _saved(folder: Path, identity: str) -> list[Path]:
    """Complete checkpoints of a run, newest first."""
    return sorted((folder / FOLDER).glob(f"[0-9]*-{identity[:8]}"), reverse=True)


def _name(rank: int, size: int) -> str:
    return f"rank-{rank}-of-{size}.pt"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_atomically(path, lambda stream: torch.save(dict(content), stream))


def _read(path: Path, *names: str) -> dict[str, Any]:
    """What one file holds, these names at least."""
    try:
        # Not mapped: the file may be deleted while what was read is still in use.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch.load: pickle and zip errors of many classes, with advice to execute the file
        content = None
    if not isinstance(content, dict) or not set(names) <= set(content):
        raise FileFormatError(
            path,
            f"damaged: expected what this run saved, it is {describe_content(path)}.",
            f"Delete {path.parent} to go on from the checkpoint before, or afresh.",
        )
    return content


def _join(files: Sequence[Path], part: slice | None) -> dict[str, Tensor]:
    """Rows ``part`` of the divided tensors; scalars are the same everywhere."""
    if part is None:
        return {}
    pieces: dict[str, list[Tensor]] = {}
    begin = 0
    for path in files:
        shard = _read(path, *_OF_A_RANK)["shard"]
        rows = len(shard["weight"])
        for name, value in shard.items():
            if value.ndim:
                value = value[max(part.start - begin, 0) : max(part.stop - begin, 0)]
            pieces.setdefault(name, []).append(value)
        begin += rows
    return {
        name: values[0].clone() if not values[0].ndim else torch.cat(values)
        for name, values in pieces.items()
    }
