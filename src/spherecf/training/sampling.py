"""Which images make up which batch, a function of seed and epoch alone, and how they are shown."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt8

from spherecf.data import ImageSource, Keys, View
from spherecf.errors import InputError
from spherecf.training.loop import Rows


def shuffled_batches(
    rows: Rows, batch_size: int, seed: int, epoch: int, *, drop_last: bool = False
) -> list[Rows]:
    """An epoch over ``rows`` in random order, in batches.

    Args:
        drop_last: batches of exactly ``batch_size``, what is left over waits for another epoch; otherwise
            batches of nearly equal size, at most ``batch_size``, over all rows. A set smaller than a batch is
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

    Each identity's rows are shuffled and cut into groups, the groups shuffled; what is left over of an
    identity waits for another epoch.

    Args:
        rows, labels: (n,) what there is, and of whom.
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
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    whole = np.diff(np.r_[starts, len(order)]) // per_identity * per_identity
    order = order[place < np.repeat(whole, np.diff(np.r_[starts, len(order)]))]
    groups = rng.permutation(order.reshape(-1, per_identity))
    per_batch = max(1, batch_size // per_identity)
    return [rows[part.reshape(-1)] for part in _cut(groups, per_batch, False)] if len(groups) else []


def _cut(order: Rows, batch_size: int, drop_last: bool) -> list[Rows]:
    if drop_last and len(order) >= batch_size:
        whole = len(order) // batch_size
        return list(order[: whole * batch_size].reshape(whole, batch_size))
    # A batch of one cannot be normalised: the rest joins the others.
    return np.array_split(order, max(1, math.ceil(len(order) / batch_size)))


@dataclass(frozen=True, eq=False)
class People:
    """Whom to learn: images (rows of the source), their classes 0 .. n - 1, and the classes' names."""

    rows: Rows
    classes: Rows  # by row of the source, -1 for those left out
    names: list[str]
    left_out: dict[str, int]

    @classmethod
    def of(cls, source: ImageSource, least: int) -> "People":
        labels = source.labels
        counts = np.bincount(labels[labels >= 0], minlength=len(source.identities))
        kept = np.flatnonzero(counts >= least)
        if len(kept) < 2:
            raise InputError(
                f"{source.name}: expected at least two identities with {least} or more images, got "
                f"{len(kept)} (of {len(source.identities)} identities, {len(source)} images)"
            )
        number = np.full(len(counts) + 1, -1)  # the last stands for label -1
        number[kept] = np.arange(len(kept))
        classes = number[labels]
        left_out = {
            "images_without_identity": int((labels < 0).sum()),
            "identities_without_images": int((counts == 0).sum()),
            "identities_with_too_few_images": int(((counts > 0) & (counts < least)).sum()),
            "their_images": int(counts[(counts > 0) & (counts < least)].sum()),
        }
        return cls(np.flatnonzero(classes >= 0), classes, [source.identities[i] for i in kept], left_out)


class Shown(ImageSource):
    """Rows that are views of another source's images: decoded and shown by whoever reads them, in threads.

    Args:
        source: the images.
        rows: how many rows there are.
        choose: row to (image, view); must be a function of the row alone.
    """

    def __init__(self, source: ImageSource, rows: int, choose: Callable[[int], tuple[int, View]]) -> None:
        self.source, self._choose, self._rows = source, choose, rows
        # The parent's labels serve; a row's own are of no use here, and would be an array of all rows.
        super().__init__(source.name, np.zeros(0, np.int64), [])

    def __len__(self) -> int:
        return self._rows

    def image_of(self, row: int) -> int:
        """The image that a row shows."""
        return self._choose(row)[0]

    @property
    def keys(self) -> Sequence[str]:
        return _ShownKeys(self)

    def read(self, index: int) -> bytes:
        return self.source.read(self.image_of(index))

    def sizes(self) -> Int64[np.ndarray, " n"]:
        return np.zeros(0, np.int64)

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        image, view = self._choose(index)
        return view(self.source.image(image, size), self.source.keys[image]).image


class _ShownKeys(Keys):
    def __init__(self, shown: Shown) -> None:
        self._shown = shown

    def __len__(self) -> int:
        return len(self._shown)

    def _get(self, row: int) -> str:
        return self._shown.source.keys[self._shown.image_of(row)]
