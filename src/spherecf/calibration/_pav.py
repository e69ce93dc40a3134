"""The best rising step function through rates: pool adjacent violators."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError


def pool_adjacent_violators(positives: ArrayLike, totals: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Non-descending rates closest to ``positives / totals`` in weighted squares (and in log likelihood).

    Neighbours whose rates do not rise are pooled until all do: Ayer et al., Annals of Mathematical Statistics
    26, 1955. One pass over the places where the rate changes.

    Args:
        positives: (n,) of each group, in the order in which the rate should rise.
        totals: (n,) size of each group, positive.

    Returns:
        (starts, rates), both (blocks,): block b spans the groups from ``starts[b]`` up to the next start; the
        rates rise strictly.

    Raises:
        InputError: no groups, shapes that differ, or an empty group.

    Example:
        >>> starts, rates = pool_adjacent_violators([0, 1, 0, 1], [1, 1, 1, 1])
        >>> starts.tolist(), rates.tolist()
        ([0, 1, 3], [0.0, 0.5, 1.0])
    """
    hits, mass = np.asarray(positives, np.float64), np.asarray(totals, np.float64)
    if hits.ndim != 1 or hits.shape != mass.shape or not hits.size or not (mass > 0).all():
        raise InputError(
            f"pool_adjacent_violators: expected two (n,) arrays, n >= 1, of non-empty groups; got "
            f"{hits.shape} and {mass.shape}"
        )
    changes = np.append(True, np.diff(hits / mass) != 0)  # equal neighbours end in one block anyway
    first = np.flatnonzero(changes)
    groups = zip(first.tolist(), np.add.reduceat(hits, first).tolist(), np.add.reduceat(mass, first).tolist())
    blocks: list[tuple[int, float, float]] = []
    for start, hit, size in groups:
        while blocks and blocks[-1][1] * size >= hit * blocks[-1][2]:
            start, before, more = blocks.pop()
            hit, size = hit + before, size + more
        blocks.append((start, hit, size))
    starts, sums, sizes = (np.asarray(column) for column in zip(*blocks))
    return starts, sums / sizes
