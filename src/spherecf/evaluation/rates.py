"""Verification rates, exact: error counts at every threshold, TMR at FMR, EER, AUC, DET, nearest point.

Scores are sorted once; a threshold is an observed score, acceptance is score >= threshold, and tied scores
are accepted together. Counts may carry leading batch axes (one row per bootstrap draw), so a rate and its
interval come from the same code.

No array of counts is made, so the memory is that of the scores; and of the non-mated ones only the largest
are sorted until a rate needs the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import allowed_errors, check_pairs, threshold_at_rate, unresolved_rate
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

    def at_rate(self, fmr: float) -> Array:
        """(...) index of the smallest threshold whose FMR is at most this.

        `spherecf.calibration.threshold_at_rate` where counts are at hand instead of scores.
        """
        limit = allowed_errors(fmr, self.non_mated)  # (...)
        if not limit.ndim:  # the counts ascend, so a million of them need no full pass
            return np.asarray(np.searchsorted(self.false, limit, side="right") - 1)
        return np.asarray((self.false <= limit[..., None]).sum(-1) - 1)


@dataclass(frozen=True, eq=False)
class SortedPairs:
    """Pairs in descending order of score: ``order`` sorts them, ``ends`` closes each group of tied scores."""

    scores: Array
    mated: Array
    order: Array
    ends: Array

    def curve(self, weights: Array | None = None) -> Curve:
        """Counts; ``weights`` (..., n) in the original order of the pairs replaces the count of one each."""
        # Only the last of tied scores counts: none of them can be accepted without the others.
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


def sort_pairs(scores: ArrayLike, mated: ArrayLike) -> SortedPairs:
    """Sort pairs once for all metrics.

    Raises:
        InputError: NaN scores, shapes that differ, or only one kind of pair.
    """
    s, m = check_pairs(scores, mated)
    order = np.argsort(-s, kind="stable")
    s, m = s[order], m[order]  # (n,) descending
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


Targets = float | Sequence[float] | NDArray[Any]

_DET_POINTS = 200


@dataclass(frozen=True)
class TmrAtFmr:
    """The largest TMR whose FMR does not exceed ``target``, with the counts behind it."""

    target: float
    tmr: float | None
    fmr: float | None
    threshold: float | None
    true_matches: int | None
    false_matches: int | None
    mated: int
    non_mated: int
    unresolved: str | None = None
    """Why there is no number: the target asks for less than one false match among all non-mated pairs."""


def tmr_at_fmr(scores: ArrayLike, mated: ArrayLike, targets: Targets) -> list[TmrAtFmr]:
    """Largest TMR over thresholds with FMR <= target, acceptance score >= threshold.

    A target below 1/N, N the number of non-mated pairs, cannot be resolved: the entry then has no rates and
    says why. (The habit of taking the ROC point nearest to the target exceeds it most of the time.)

    Raises:
        InputError: a target outside 0 .. 1, NaN scores, or only one kind of pair.

    Example:
        >>> entries = tmr_at_fmr([0.9, 0.8, 0.8, 0.1], [True, True, False, False], [0.5, 0.1])
        >>> entries[0].tmr, entries[0].false_matches, entries[0].threshold, entries[1].tmr
        (1.0, 1, 0.8, None)
    """
    return tmr_of_curve(roc(scores, mated), targets)


def tmr_of_curve(curve: Curve, targets: Targets) -> list[TmrAtFmr]:
    """`tmr_at_fmr` for counts at hand."""
    results = []
    mated, non_mated = int(curve.mated), int(curve.non_mated)
    for target in check_targets(targets):
        if allowed_errors(target, non_mated) < 1:
            results.append(unresolved(target, mated, non_mated))
            continue
        at = int(curve.at_rate(target))
        true, false = int(curve.true[at]), int(curve.false[at])
        threshold = float(curve.thresholds[at])
        results.append(
            TmrAtFmr(target, true / mated, false / non_mated, threshold, true, false, mated, non_mated)
        )
    return results


def unresolved(target: float, mated: int, non_mated: int) -> TmrAtFmr:
    """The entry of a target that asks for less than one false match."""
    why = unresolved_rate("FMR", target, non_mated)
    return TmrAtFmr(target, None, None, None, None, None, mated, non_mated, why)


def check_targets(targets: Targets) -> list[float]:
    """FMR targets as a list of floats, each within 0 .. 1."""
    checked: list[float] = np.atleast_1d(np.asarray(targets, np.float64)).tolist()
    for target in checked:
        if not 0 < target <= 1:
            raise InputError(f"FMR target: expected 0 < target <= 1, got {target}")
    return checked


def tmr_rates(curve: Curve, target: float) -> NDArray[Any]:
    """TMR at FMR <= target for every row of a batched curve, (...); the counts may be weights."""
    at = curve.at_rate(target)[..., None]  # (..., 1)
    return np.asarray(np.take_along_axis(curve.true, at, -1).squeeze(-1) / curve.mated)


def eer_rates(curve: Curve) -> NDArray[Any]:
    """Equal error rate of every row of a batched curve, (...); see `eer`."""
    fmr, fnmr = curve.fmr, curve.fnmr
    after = np.argmax(fmr >= fnmr, axis=-1)[..., None]  # the first point past the crossing; never point 0
    before = after - 1
    f0, f1 = np.take_along_axis(fmr, before, -1), np.take_along_axis(fmr, after, -1)
    n0, n1 = np.take_along_axis(fnmr, before, -1), np.take_along_axis(fnmr, after, -1)
    share = (n0 - f0) / ((n0 - f0) + (f1 - n1))
    return np.asarray((f0 + share * (f1 - f0)).squeeze(-1))


def auc_rates(curve: Curve) -> NDArray[Any]:
    """Area under the ROC of every row of a batched curve, (...); see `auc`."""
    area = (np.diff(curve.false) * (curve.true[..., 1:] + curve.true[..., :-1])).sum(-1) / 2
    return np.asarray(area / (curve.mated * curve.non_mated))


def eer(scores: ArrayLike, mated: ArrayLike) -> float:
    """Equal error rate: where FMR and FNMR cross, on the straight line between the two points around it.

    Raises:
        InputError: NaN scores or only one kind of pair.

    Example:
        >>> eer([0.9, 0.7, 0.8, 0.1], [True, True, False, False])
        0.5
    """
    return float(eer_rates(roc(scores, mated)))


def auc(scores: ArrayLike, mated: ArrayLike) -> float:
    """Chance that a mated pair scores above a non-mated one, ties counted half (area under the ROC).

    Raises:
        InputError: NaN scores or only one kind of pair.

    Example:
        >>> auc([0.9, 0.7, 0.8, 0.1], [True, True, False, False])
        0.75
    """
    return float(auc_rates(roc(scores, mated)))


def det_curve(scores: ArrayLike, mated: ArrayLike) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(fmr, fnmr, thresholds) at every corner of the staircase, thresholds descending.

    Points inside a straight run of the staircase are left out; no information is lost.

    Raises:
        InputError: NaN scores or only one kind of pair.

    Example:
        >>> fmr, fnmr, thresholds = det_curve([0.9, 0.8, 0.7, 0.1], [True, True, False, False])
        >>> fmr.tolist(), fnmr.tolist()
        ([0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    """
    curve = roc(scores, mated)
    # A point goes where the step to it and the step from it run along the same axis.
    step = np.stack([np.diff(curve.false), np.diff(curve.true)])  # (2, k - 1)
    corner = np.ones(curve.thresholds.size, bool)
    flat = (step == 0).astype(int)
    corner[1:-1] = ~((flat[:, 1:] & flat[:, :-1]).any(0))
    return curve.fmr[corner], curve.fnmr[corner], curve.thresholds[corner]


def spread(fmr: NDArray[Any], fnmr: NDArray[Any]) -> NDArray[Any]:
    """At most 400 corners of the DET curve, evenly over the decades of both rates, as it is plotted."""
    if fmr.size <= 2 * _DET_POINTS:
        return np.arange(fmr.size)
    rising = np.searchsorted(fmr, np.geomspace(fmr[fmr > 0].min(), 1, _DET_POINTS))
    falling = fmr.size - 1 - np.searchsorted(fnmr[::-1], np.geomspace(fnmr[fnmr > 0].min(), 1, _DET_POINTS))
    return np.unique(np.concatenate([[0, fmr.size - 1], rising, falling]))  # both rates reach 1, so all exist


@dataclass(frozen=True)
class NearestPoint:
    """The point of the ROC nearest to ``target``, and what it really is."""

    target: float
    tmr: float
    fmr: float
    """Really reached there."""
    excess: float
    """``fmr - target``: above zero the TMR flatters, below zero it is too modest."""


def tmr_at_nearest_fmr(scores: ArrayLike, mated: ArrayLike, targets: Targets) -> list[NearestPoint]:
    """TAR at FAR as the IJB scripts of insightface and its descendants count it, to compare with old papers.

    Of the corners of the ROC (scikit-learn's ``roc_curve`` leaves out points within a straight run) it takes
    the one with the smallest ``|FMR - target|``, of equals the one with the larger FMR. That point may accept
    more non-mated pairs than the target allows. For numbers of your own use `tmr_at_fmr`.

    Source: ``eval_ijbc.py`` in insightface's ``recognition/arcface_torch``.

    Raises:
        InputError: a target outside 0 .. 1, NaN scores, or only one kind of pair.

    Example:
        >>> scores, mated = [0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, False, False]
        >>> found = tmr_at_nearest_fmr(scores, mated, 0.2)[0]
        >>> found.tmr, round(found.fmr, 3), round(found.excess, 3)
        (1.0, 0.333, 0.133)
    """
    return nearest_of_curve(roc(scores, mated), targets)


def nearest_of_curve(curve: Curve, targets: Targets) -> list[NearestPoint]:
    """`tmr_at_nearest_fmr` for counts at hand."""
    keep = np.ones(curve.thresholds.size, bool)
    # A point goes if the step to it equals the step from it; the first observed score always stays.
    keep[2:-1] = (np.diff(curve.false[1:], 2) != 0) | (np.diff(curve.true[1:], 2) != 0)
    fmr, tmr = curve.fmr[keep][::-1], curve.tmr[keep][::-1]  # from the right: the larger of equals first
    found = []
    for target in check_targets(targets):
        at = int(np.argmin(np.abs(fmr - target)))
        found.append(NearestPoint(target, float(tmr[at]), float(fmr[at]), float(fmr[at]) - target))
    return found


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
        # Everything from here on is sorted, and none of it is below what stands before.
        self._unsorted = non_mated.size - -(-non_mated.size // _TAIL)
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
        s, m = check_pairs(scores, mated, keep_type=True)
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
        for target in check_targets(targets):
            # The tail that is sorted must hold one score more than may be accepted; mostly it does.
            few = allowed_errors(target, non_mated) < non_mated - self._unsorted
            tail = self._others[self._unsorted :] if few else self.non_mated
            threshold = threshold_at_rate(self.mated, tail, target, trials=non_mated)
            if threshold is None:
                results.append(unresolved(target, mated, non_mated))
                continue
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

        # FMR - FNMR falls with the threshold, so the score where it changes sign is found by bisection.
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
