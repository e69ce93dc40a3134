"""Which images make up which batch: a function of seed and epoch alone, so there is nothing to save."""

import math

import numpy as np

from spherecf.training._task import Rows


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
