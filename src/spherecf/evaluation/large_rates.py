"""Exact rates of millions of pairs: mated and non-mated scores sorted apart, counts by bisection.

No array of counts is made, so the memory is that of the scores; and of the non-mated ones only the largest
are sorted until a rate needs the others.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError
from spherecf.evaluation.rates import Targets, TmrAtFmr, allowed_false, spread, unresolved

Array = NDArray[Any]

_TAIL = 8  # one non-mated score of so many is sorted at first: error rates are read among the largest


class ScoreSplit:
    """Scores of mated and of non-mated pairs, the numbers of `tmr_at_fmr`, `eer` and `det_curve` from them.

    Example:
        >>> split = ScoreSplit.of([0.9, 0.8, 0.8, 0.1], [True, True, False, False])
        >>> split.tmr_at_fmr(0.5)[0].tmr, split.eer(), split.non_mated.tolist()
        (1.0, 0.25, [0.1, 0.8])
    """

    def __init__(self, mated: Array, non_mated: Array) -> None:
        """Takes the two arrays over and sorts them in place; `of` leaves the caller's as they are."""
        self.mated, self._others = mated, non_mated
        self.mated.sort()
        self._unsorted = non_mated.size - -(
            -non_mated.size // _TAIL
        )  # the rest is sorted, none of it is below
        self._others.partition(self._unsorted)
        self._others[self._unsorted :].sort()

    @classmethod
    def of(cls, scores: ArrayLike, mated: ArrayLike) -> "ScoreSplit":
        """Split and sort; the type of the scores is kept.

        Args:
            scores: (n,) larger = more alike; ties are accepted together.
            mated: (n,) true where both show one person.

        Raises:
            InputError: NaN scores, shapes that differ, or only one kind of pair.
        """
        s, m = check_many(scores, mated)
        return cls(s[m], s[~m])

    @property
    def non_mated(self) -> Array:
        """(n,) ascending."""
        self._others[: self._unsorted].sort()
        self._unsorted = 0
        return self._others

    def tmr_at_fmr(self, targets: Targets) -> list[TmrAtFmr]:
        """As `spherecf.evaluation.tmr_at_fmr`."""
        results = []
        mated, non_mated = self.mated.size, self._others.size
        for target in np.atleast_1d(np.asarray(targets, np.float64)).tolist():
            allowed = int(allowed_false(target, non_mated))
            if allowed < 1:
                results.append(unresolved(target, mated, non_mated))
                continue
            threshold = self._threshold(allowed)
            false, true = (int(count) for count in self._accepted(threshold))
            results.append(
                TmrAtFmr(
                    target, true / mated, false / non_mated, float(threshold), true, false, mated, non_mated
                )
            )
        return results

    def eer(self) -> float:
        """As `spherecf.evaluation.eer`."""

        def rates(threshold: Any) -> tuple[float, float]:
            false, true = self._accepted(threshold)
            return int(false) / self._others.size, 1 - int(true) / self.mated.size

        def last_crossed(side: Array) -> Any:
            low, high = -1, side.size
            while high - low > 1:
                middle = (low + high) // 2
                fmr, fnmr = rates(side[middle])
                low, high = (middle, high) if fmr >= fnmr else (low, middle)
            return side[low] if low >= 0 else None

        tail = last_crossed(self._others[self._unsorted :])
        found = [last_crossed(self.mated), last_crossed(self.non_mated) if tail is None else tail]
        after = max(score for score in found if score is not None)
        (f0, n0), (f1, n1) = rates(self._above(after)), rates(after)
        share = (n0 - f0) / ((n0 - f0) + (f1 - n1))
        return float(f0 + share * (f1 - f0))

    def det(self, points: int | None = None) -> tuple[Array, Array, Array]:
        """As `det_curve`: (fmr, fnmr, thresholds); above ``points`` thinned, evenly over the decades."""
        sides = self.mated, self.non_mated
        hits = np.unique(self.mated)
        ends = np.array([np.inf, min(side[0] for side in sides)], hits.dtype)
        t = np.unique(np.concatenate([hits, self._above(hits), ends]))[::-1]
        below = np.full(t.shape, -np.inf, t.dtype)
        for side in sides:
            at = np.searchsorted(side, t, "left")
            below = np.maximum(below, np.where(at > 0, side[at - 1], below))
        flat = np.zeros(t.size, bool)
        for side in sides:  # a corner is where both counts change, coming or going
            flat |= ~(_among(t, side) | _among(below, side))
        flat[[0, -1]] = False
        t = t[~flat]
        false, true = self._accepted(t)
        fmr, fnmr = false / self._others.size, 1 - true / self.mated.size
        if points is not None and t.size > points:
            thin = spread(fmr, fnmr)
            return fmr[thin], fnmr[thin], t[thin].astype(np.float64)
        return fmr, fnmr, t.astype(np.float64)

    def _threshold(self, allowed: int) -> Any:
        """The smallest observed score with at most so many false matches; infinity if there is none."""
        if allowed >= self._others.size:
            return min(self.mated[0], self.non_mated[0])
        at = self._others.size - 1 - allowed
        return self._above(self._others[at] if at >= self._unsorted else self.non_mated[at])

    def _accepted(self, thresholds: Any) -> tuple[Any, Any]:
        """(false, true) matches."""
        others = self._reaching(thresholds)
        false = others.size - np.searchsorted(others, thresholds, "left")
        return false, self.mated.size - np.searchsorted(self.mated, thresholds, "left")

    def _above(self, scores: Any) -> Any:
        """The next larger score of any pair; infinity above the largest."""
        found = np.full(np.shape(scores), np.inf, self.mated.dtype)
        for side in (self.mated, self._reaching(scores)):
            at = np.searchsorted(side, scores, "right")
            found = np.minimum(found, np.where(at < side.size, side[np.minimum(at, side.size - 1)], np.inf))
        return found.astype(self.mated.dtype)

    def _reaching(self, scores: Any) -> Array:
        """The non-mated scores in order, as far down as these scores."""
        if self._unsorted and np.min(scores) > self._others[self._unsorted]:
            return self._others[self._unsorted :]
        return self.non_mated


def _among(values: Array, side: Array) -> NDArray[np.bool_]:
    at = np.minimum(np.searchsorted(side, values), side.size - 1)
    found: NDArray[np.bool_] = side[at] == values
    return found


def check_many(scores: ArrayLike, mated: ArrayLike) -> tuple[Array, NDArray[np.bool_]]:
    """As `spherecf.evaluation.rates.check_pairs`, without a copy of float scores."""
    s, m = np.asarray(scores), np.asarray(mated)
    s = s if s.dtype in (np.float32, np.float64) else s.astype(np.float64)
    if s.ndim != 1 or s.shape != m.shape:
        raise InputError(f"scores and mated: expected two (n,) arrays, got {s.shape} and {m.shape}")
    if m.dtype != np.bool_ and not np.isin(m, (0, 1)).all():
        raise InputError(f"mated: expected booleans or 0 and 1, got values like {m[:3].tolist()}")
    m = m.astype(bool, copy=False)
    bad = np.flatnonzero(np.isnan(s))
    if bad.size:
        raise InputError(
            f"scores: {bad.size} of {s.size} are NaN, first pair {bad[0]}; leave out or repair them"
        )
    if m.all() or not m.any():
        raise InputError(
            f"mated: {int(m.sum())} mated and {int((~m).sum())} non-mated pairs; "
            "error rates need both kinds, check the pair list"
        )
    return s, m
