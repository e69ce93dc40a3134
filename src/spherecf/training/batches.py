"""Batches as a function of seed and epoch alone, the identities to train on, and the way to the device."""

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spherecf.common.progress import begun_ahead
from spherecf.data import ImageBatch, ImageSource
from spherecf.errors import InputError
from spherecf.training.loop import Part, Rows


def shuffled_batches(
    rows: Rows, batch_size: int, seed: int, epoch: int, *, drop_last: bool = False
) -> list[Rows]:
    """An epoch over ``rows`` in random order, in batches.

    Args:
        drop_last: batches of exactly ``batch_size``; the remainder of the shuffled rows is left out. False:
            batches of nearly equal size, at most ``batch_size``, over all rows. Fewer rows than a batch are
            one batch.

    Example:
        >>> [len(batch) for batch in shuffled_batches(np.arange(10), 4, seed=0, epoch=0)]
        [4, 3, 3]
        >>> [len(batch) for batch in shuffled_batches(np.arange(10), 4, seed=0, epoch=0, drop_last=True)]
        [4, 4]
    """
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return _cut(order, batch_size, drop_last)


def grouped_batches(
    rows: Rows, labels: Rows, per_identity: int, batch_size: int, seed: int, epoch: int
) -> list[Rows]:
    """Batches of groups: ``per_identity`` rows of one identity side by side, as pairwise losses need them.

    Each identity's rows are shuffled and cut into groups, then the groups are shuffled. The remainder of an
    identity is left out of this epoch.

    Args:
        rows: (n,) to draw from.
        labels: (n,) identity of each.
        per_identity: size of a group, at least 2.
        batch_size: rows per batch, rounded down to whole groups.

    Example:
        >>> batches = grouped_batches(np.arange(6), np.array([0, 0, 0, 1, 1, 1]), 2, 4, seed=0, epoch=0)
        >>> [len(batch) for batch in batches]
        [4]
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(rows))
    order = order[np.argsort(labels[order], kind="stable")]
    sorted_labels = labels[order]
    starts = np.flatnonzero(np.r_[True, sorted_labels[1:] != sorted_labels[:-1]])
    counts = np.diff(np.r_[starts, len(order)])  # (identities,)
    # Keep, of each identity, the multiple of per_identity that comes first in its shuffled order.
    position = np.arange(len(order)) - np.repeat(starts, counts)
    grouped = counts // per_identity * per_identity
    order = order[position < np.repeat(grouped, counts)]
    groups = rng.permutation(order.reshape(-1, per_identity))  # (groups, per_identity)
    per_batch = max(1, batch_size // per_identity)
    return [rows[part.reshape(-1)] for part in _cut(groups, per_batch, False)] if len(groups) else []


def _cut(order: Rows, batch_size: int, drop_last: bool) -> list[Rows]:
    if drop_last and len(order) >= batch_size:
        batches = len(order) // batch_size
        return list(order[: batches * batch_size].reshape(batches, batch_size))
    # Nearly equal batches: batch normalisation cannot take a last batch of one.
    return np.array_split(order, max(1, math.ceil(len(order) / batch_size)))


@dataclass(frozen=True, eq=False)
class TrainingIdentities:
    """The identities that a backbone is trained to classify.

    Attributes:
        rows: (n,) rows of the source: the images to train on.
        classes: (len(source),) class 0 .. len(names) - 1 of every image, -1 if it is left out.
        names: of the classes.
        left_out: counts of what is left out, by reason.
    """

    rows: Rows
    classes: Rows
    names: list[str]
    left_out: dict[str, int]

    @classmethod
    def of(cls, source: ImageSource, min_images: int) -> "TrainingIdentities":
        """The identities of a source with at least ``min_images`` images.

        Raises:
            InputError: fewer than two.
        """
        labels = source.labels
        counts = np.bincount(labels[labels >= 0], minlength=len(source.identities))
        selected = np.flatnonzero(counts >= min_images)
        if len(selected) < 2:
            raise InputError(
                f"{source.name}: expected at least two identities with {min_images} or more images, got "
                f"{len(selected)} (of {len(source.identities)} identities, {len(source)} images)"
            )
        class_of = np.full(len(counts) + 1, -1)  # one entry more, which label -1 indexes
        class_of[selected] = np.arange(len(selected))
        classes = class_of[labels]
        too_few = (counts > 0) & (counts < min_images)
        left_out = {
            "images_without_identity": int((labels < 0).sum()),
            "identities_without_images": int((counts == 0).sum()),
            "identities_with_too_few_images": int(too_few.sum()),
            "their_images": int(counts[too_few].sum()),
        }
        return cls(np.flatnonzero(classes >= 0), classes, [source.identities[i] for i in selected], left_out)


def part_of(batch: ImageBatch) -> Part:
    """A decoded batch as a part of which the images are the data."""
    skipped = {item.key: item.reason for item in batch.skipped}
    return Part(batch.rows, torch.from_numpy(batch.images), skipped)


def on_device(parts: Iterable[Part], device: torch.device) -> Generator[Part, None, None]:
    """The parts, their tensors on ``device``; on the CPU they are given on as they are.

    On a GPU each is copied on a stream of its own, without waiting where its memory is pinned, as soon as the
    one before it is asked for.
    """
    if device.type == "cpu":
        yield from parts
    else:
        stream = SideStream(device)
        yield from begun_ahead(parts, stream.start, stream.finish)


class SideStream:
    """Copies to a GPU beside what it computes: `start` does not wait for a copy, in `finish` the GPU does."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copying: deque[tuple[Any, Any]] = deque()  # (event, data that must stay until it has happened)

    def start(self, part: Part) -> tuple[Part, Any]:
        with torch.cuda.stream(self._stream):
            data = _each(part.data, lambda tensor: tensor.to(self._device, non_blocking=True))
            copied = self._stream.record_event()
        self._copying.append((copied, part.data))
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        return part._replace(data=data), copied

    def finish(self, started: tuple[Part, Any]) -> Part:
        part, copied = started
        present = torch.cuda.current_stream(self._device)
        present.wait_event(copied)  # the GPU waits, this process does not
        # The memory belongs to the other stream, which may have it back only when this one has used it.
        _each(part.data, lambda tensor: tensor.record_stream(present))
        return part


def _each(data: Any, work: Callable[[Tensor], Any]) -> Any:
    """Of a tensor, or of every tensor of a named tuple."""
    return work(data) if isinstance(data, Tensor) else type(data)(*(work(tensor) for tensor in data))
