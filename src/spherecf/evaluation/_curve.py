"""Exact error counts at every threshold, the one thing all verification rates are read from.

Scores are sorted once; a threshold is an observed score, acceptance is score >= threshold, and tied scores
are accepted together. Counts may carry leading batch axes (one row per bootstrap draw), so a rate and its
interval come from the same code.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Curve:
    """Accepted counts at descending thresholds; the first is +inf, where nothing is accepted.

    ``false`` and ``true`` are (..., k) accepted non-mated and mated counts (weights in a bootstrap).
    """

    thresholds: Array
    false: Array
    true: Array

    @property
    def non_mated(self) -> Array:
        """Number of non-mated pairs, (...)."""
        return np.asarray(self.false[..., -1])

    @property
    def mated(self) -> Array:
        """Number of mated pairs, (...)."""
        return np.asarray(self.true[..., -1])

    @property
    def fmr(self) -> Array:
        """False match rate at every threshold, (..., k)."""
        rates: Array = self.false / self.non_mated[..., None]
        return rates

    @property
    def tmr(self) -> Array:
        """True match rate at every threshold, (..., k)."""
        rates: Array = self.true / self.mated[..., None]
        return rates

    @property
    def fnmr(self) -> Array:
        """False non-match rate at every threshold, (..., k)."""
        return 1 - self.tmr


@dataclass(frozen=True, eq=False)
class SortedPairs:
    """Pairs in descending order of score: ``order`` sorts them, ``ends`` closes each group of tied scores."""

    scores: Array
    mated: Array
    order: Array
    ends: Array

    def curve(self, weights: Array | None = None) -> Curve:
        """Counts; ``weights`` (..., n) in the original order of the pairs replaces the count of one each."""
        if weights is None:
            true = np.cumsum(self.mated)[self.ends]
            false = self.ends + 1 - true
        else:
            sorted_weights = weights[..., self.order]
            true = np.cumsum(sorted_weights * self.mated, axis=-1)[..., self.ends]
            false = np.cumsum(sorted_weights * ~self.mated, axis=-1)[..., self.ends]
        start = np.zeros((*true.shape[:-1], 1), true.dtype)
        thresholds = np.concatenate([[np.inf], self.scores[self.ends]])
        return Curve(thresholds, np.concatenate([start, false], -1), np.concatenate([start, true], -1))


def check_pairs(scores: ArrayLike, mated: ArrayLike) -> tuple[Array, Array]:
    """Scores as float64 and mated as bool, or an `InputError` that says what is wrong with them."""
    s, m = np.asarray(scores, np.float64), np.asarray(mated)
    if s.ndim != 1 or s.shape != m.shape:
        raise InputError(f"scores and mated: expected two (n,) arrays, got {s.shape} and {m.shape}")
    if m.dtype != np.bool_ and not np.isin(m, (0, 1)).all():
        raise InputError(f"mated: expected booleans or 0 and 1, got values like {m.reshape(-1)[:3].tolist()}")
    bad = np.flatnonzero(np.isnan(s))
    if bad.size:
        raise InputError(
            f"scores: {bad.size} of {s.size} are NaN, first pair {bad[0]}; leave out or repair them"
        )
    m = m.astype(bool)
    if m.all() or not m.any():
        raise InputError(
            f"mated: {int(m.sum())} mated and {int((~m).sum())} non-mated pairs; "
            "error rates need both kinds, check the pair list"
        )
    return s, m


def sort_pairs(scores: ArrayLike, mated: ArrayLike) -> SortedPairs:
    """Sort pairs once for all metrics.

    Raises:
        InputError: NaN scores, shapes that differ, or only one kind of pair.
    """
    s, m = check_pairs(scores, mated)
    order = np.argsort(-s, kind="stable")
    s, m = s[order], m[order]
    ends = np.append(np.flatnonzero(s[1:] != s[:-1]), s.size - 1)
    return SortedPairs(s, m, order, ends)


def roc(scores: ArrayLike, mated: ArrayLike) -> Curve:
    """All operating points, exactly: one per distinct score, plus the one that accepts nothing.

    Args:
        scores: (n,) larger = more alike; ties are accepted together.
        mated: (n,) true where both images show one person.

    Raises:
        InputError: NaN scores, shapes that differ, or only one kind of pair.

    Example:
        >>> curve = roc([0.9, 0.8, 0.8, 0.1], [True, True, False, False])
        >>> curve.thresholds.tolist(), curve.true.tolist(), curve.false.tolist()
        ([inf, 0.9, 0.8, 0.1], [0, 1, 2, 2], [0, 0, 1, 2])
    """
    return sort_pairs(scores, mated).curve()
