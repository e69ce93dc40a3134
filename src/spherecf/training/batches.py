"""Batches as a function of seed and epoch, the training identities, and the copy to the device."""

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
    """Shuffle ``rows`` and divide them into the batches of an epoch.

    Args:
        rows: to shuffle.
        batch_size: rows per batch.
        seed, epoch: determine the order.
        drop_last: True for batches of exactly ``batch_size``, leaving out the remainder. False for batches of
            nearly equal size, at most ``batch_size``, of all rows. If there are fewer rows than
            ``batch_size``, they form one batch.

    Example:
        >>> [len(batch) for batch in shuffled_batches(np.arange(10), 4, seed=0, epoch=0)]
        [4, 3, 3]
        >>> [len(batch) for batch in shuffled_batches(np.arange(10), 4, seed=0, epoch=0, drop_last=True)]
        [4, 4]
    """
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return _split(order, batch_size, drop_last)


def grouped_batches(
    rows: Rows, labels: Rows, per_identity: int, batch_size: int, seed: int, epoch: int
) -> list[Rows]:
    """Divide rows into batches of groups of ``per_identity`` rows of one identity, for pairwise losses.

    Each identity's rows are shuffled and divided into groups, and then the groups are shuffled. The remainder
    of each identity is left out in this epoch.

    Args:
        rows: (n,) to draw from.
        labels: (n,) identity of each row.
        per_identity: size of a group, at least 2.
        batch_size: rows per batch, rounded down to whole groups.
        seed, epoch: determine the order.

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
    # Of each identity keep the first rows, as many as a multiple of per_identity allows.
    position = np.arange(len(order)) - np.repeat(starts, counts)
    grouped = counts // per_identity * per_identity
    order = order[position < np.repeat(grouped, counts)]
    groups = rng.permutation(order.reshape(-1, per_identity))  # (groups, per_identity)
    per_batch = max(1, batch_size // per_identity)
    return [rows[part.reshape(-1)] for part in _split(groups, per_batch, False)] if len(groups) else []


def _split(order: Rows, batch_size: int, drop_last: bool) -> list[Rows]:
    if drop_last and len(order) >= batch_size:
        batches = len(order) // batch_size
        return list(order[: batches * batch_size].reshape(batches, batch_size))
    # Nearly equal batches, since batch normalisation cannot process a last batch of a single image.
    return np.array_split(order, max(1, math.ceil(len(order) / batch_size)))


@dataclass(frozen=True, eq=False)
class TrainingIdentities:
    """The identities that a backbone is trained to classify.

    Attributes:
        rows: (n,) rows of the source to train on.
        classes: (len(source),) class 0 .. len(names) - 1 of every image, -1 if it is left out.
        names: name of each class.
        left_out: number of images and identities left out, by reason.
    """

    rows: Rows
    classes: Rows
    names: list[str]
    left_out: dict[str, int]

    @classmethod
    def of(cls, source: ImageSource, min_images: int) -> "TrainingIdentities":
        """Select the identities of a source with at least ``min_images`` images.

        Raises:
            InputError: fewer than two identities.
        """
        labels = source.labels
        counts = np.bincount(labels[labels >= 0], minlength=len(source.identities))
        selected = np.flatnonzero(counts >= min_images)
        if len(selected) < 2:
            raise InputError(
                f"{source.name}: expected at least two identities with {min_images} or more images, got "
                f"{len(selected)} (of {len(source.identities)} identities, {len(source)} images)"
            )
        class_of = np.full(len(counts) + 1, -1)  # the last entry is for label -1
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


def to_part(batch: ImageBatch) -> Part:
    """Convert a decoded batch to a `Part` whose data are the images."""
    skipped = {item.key: item.reason for item in batch.skipped}
    return Part(batch.rows, torch.from_numpy(batch.images), skipped)


def on_device(parts: Iterable[Part], device: torch.device) -> Generator[Part, None, None]:
    """Yield the parts with their tensors on ``device``; on the CPU they are unchanged.

    For a GPU, each part is copied on a side stream as soon as the previous part is requested, and without
    waiting if its memory is pinned.
    """
    if device.type == "cpu":
        yield from parts
    else:
        stream = SideStream(device)
        yield from begun_ahead(parts, stream.start, stream.finish)


class SideStream:
    """Copies data to a GPU while it computes: `start` does not wait; `finish` makes the GPU wait."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._copying: deque[tuple[Any, Any]] = deque()  # (event, data to keep until it occurs)

    def start(self, part: Part) -> tuple[Part, Any]:
        """Start copying a part; returns the part on the device and the event that ends the copy."""
        with torch.cuda.stream(self._stream):
            data = _map_tensors(part.data, lambda tensor: tensor.to(self._device, non_blocking=True))
            copied = self._stream.record_event()
        self._copying.append((copied, part.data))
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        return part._replace(data=data), copied

    def finish(self, started: tuple[Part, Any]) -> Part:
        """Make the GPU's current stream wait for the copy; returns the part."""
        part, copied = started
        current = torch.cuda.current_stream(self._device)
        current.wait_event(copied)  # the GPU waits, this process does not
        # The memory belongs to the side stream: do not reuse it before the current stream is done with it.
        _map_tensors(part.data, lambda tensor: tensor.record_stream(current))
        return part


def _map_tensors(data: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to a tensor, or to every tensor of a named tuple."""
    return function(data) if isinstance(data, Tensor) else type(data)(*(function(tensor) for tensor in data))
