"""Exact verification rates: error counts at every threshold, TMR at FMR, EER, AUC, DET, nearest ROC point.

Thresholds are observed scores; a pair is accepted if score >= threshold, so ties are accepted together.

`SortedPairs` and `Curve` sort all scores once and count at every threshold. Counts may have leading batch
axes, one row per bootstrap draw, so a rate and its interval come from the same code. `ScoreSplit` is for
millions of pairs: it needs no array of counts, and sorts only the largest non-mated scores until a rate needs
the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import allowed_errors, check_pairs, threshold_at_rate, unresolved_rate
from spherecf.errors import InputError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Curve:
    """Numbers of accepted pairs at descending thresholds; in a bootstrap, sums of weights."""

    thresholds: Array
    """(k,) descending; the first is +inf, at which nothing is accepted."""
    false: Array
    """(..., k) accepted non-mated pairs."""
    true: Array
    """(..., k) accepted mated pairs."""

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
        """(...) index of the smallest threshold whose FMR is at most ``fmr``.

        The equivalent of `spherecf.calibration.threshold_at_rate` for counts instead of scores.
        """
        limit = allowed_errors(fmr, self.non_mated)  # (...)
        if not limit.ndim:  # the counts ascend, so bisection is faster than a full pass
            return np.asarray(np.searchsorted(self.false, limit, side="right") - 1)
        return np.asarray((self.false <= limit[..., None]).sum(-1) - 1)


@dataclass(frozen=True, eq=False)
class SortedPairs:
    """Pairs in descending order of score."""

    scores: Array
    """(n,) descending."""
    mated: Array
    """(n,) in the same order."""
    order: Array
    """(n,) original index of each pair."""
    ends: Array
    """Position of the last pair of each group of tied scores."""

    def curve(self, weights: Array | None = None) -> Curve:
        """Accepted counts; ``weights`` (..., n), in the original order of the pairs, replaces counts of 1."""
        # Tied scores are accepted together, so only the position of the last one is an operating point.
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
        InputError: a score is NaN, the shapes differ, or the pairs are of one kind only.
    """
    s, m = check_pairs(scores, mated)
    order = np.argsort(-s, kind="stable")
    s, m = s[order], m[order]  # (n,) descending
    ends = np.append(np.flatnonzero(s[1:] != s[:-1]), s.size - 1)
    return SortedPairs(s, m, order, ends)


def roc(scores: ArrayLike, mated: ArrayLike) -> Curve:
    """Receiver operating characteristic: one point per distinct score, and one that accepts nothing.

    Args:
        scores: (n,) larger = more alike; ties are accepted together.
        mated: (n,) true where both images show the same person.

    Raises:
        InputError: a score is NaN, the shapes differ, or the pairs are of one kind only.

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
    """The highest TMR whose FMR does not exceed ``target``, with the underlying counts."""

    target: float
    tmr: float | None
    fmr: float | None
    threshold: float | None
    true_matches: int | None
    false_matches: int | None
    mated: int
    non_mated: int
    unresolved: str | None = None
    """Why there are no rates: the target allows less than one false match among all non-mated pairs."""


def tmr_at_fmr(scores: ArrayLike, mated: ArrayLike, targets: Targets) -> list[TmrAtFmr]:
    """True match rate at a false match rate: the highest TMR over thresholds with FMR <= target.

    Targets below 1/N, where N is the number of non-mated pairs, cannot be resolved: such an entry has a
    reason instead of rates. (The common practice of taking the ROC point nearest to the target often exceeds
    the target; see `tmr_at_nearest_fmr`.)

    Args:
        scores: (n,) larger = more alike; a pair is accepted if score >= threshold.
        mated: (n,) true where both images show the same person.
        targets: FMR targets, 0 < target <= 1.

    Returns:
        One entry per target.

    Raises:
        InputError: a target is out of range, a score is NaN, or the pairs are of one kind only.

    Example:
        >>> entries = tmr_at_fmr([0.9, 0.8, 0.8, 0.1], [True, True, False, False], [0.5, 0.1])
        >>> entries[0].tmr, entries[0].false_matches, entries[0].threshold, entries[1].tmr
        (1.0, 1, 0.8, None)
    """
    return tmr_of_curve(roc(scores, mated), targets)


def tmr_of_curve(curve: Curve, targets: Targets) -> list[TmrAtFmr]:
    """`tmr_at_fmr` from counts."""

    def accept(target: float) -> tuple[Any, Any, Any]:
        index = int(curve.at_rate(target))
        return curve.thresholds[index], curve.false[index], curve.true[index]

    return _tmr_entries(targets, int(curve.mated), int(curve.non_mated), accept)


def _tmr_entries(
    targets: Targets, mated: int, non_mated: int, accept: Callable[[float], tuple[Any, Any, Any]]
) -> list[TmrAtFmr]:
    """An entry per target; ``accept`` gives (threshold, false, true matches) where the target is resolved."""
    entries = []
    for target in check_targets(targets):
        if allowed_errors(target, non_mated) < 1:
            reason = unresolved_rate("FMR", target, non_mated)
            entries.append(TmrAtFmr(target, *(None,) * 5, mated, non_mated, reason))
            continue
        threshold, false, true = accept(target)
        rates = int(true) / mated, int(false) / non_mated
        entries.append(TmrAtFmr(target, *rates, float(threshold), int(true), int(false), mated, non_mated))
    return entries


def check_targets(targets: Targets, rate: str = "FMR") -> list[float]:
    """Convert targets of a rate to a list of floats, and check that 0 < target <= 1."""
    checked: list[float] = np.atleast_1d(np.asarray(targets, np.float64)).tolist()
    for target in checked:
        if not 0 < target <= 1:
            raise InputError(f"{rate} target: expected 0 < target <= 1, got {target}")
    return checked


def tmr_rates(curve: Curve, target: float) -> NDArray[Any]:
    """TMR at FMR <= target for every row of a batched curve, (...); the counts may be weights."""
    index = curve.at_rate(target)[..., None]  # (..., 1)
    return np.asarray(np.take_along_axis(curve.true, index, -1).squeeze(-1) / curve.mated)


def eer_rates(curve: Curve) -> NDArray[Any]:
    """Equal error rate of every row of a batched curve, (...); see `eer`."""
    fmr, fnmr = curve.fmr, curve.fnmr
    after = np.argmax(fmr >= fnmr, axis=-1)[..., None]  # first point after the crossing; never point 0
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
    """Equal error rate: the rate at which FMR and FNMR are equal.

    The crossing is interpolated linearly between the two adjacent operating points.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show the same person.

    Raises:
        InputError: a score is NaN, or the pairs are of one kind only.

    Example:
        >>> eer([0.9, 0.7, 0.8, 0.1], [True, True, False, False])
        0.5
    """
    return float(eer_rates(roc(scores, mated)))


def auc(scores: ArrayLike, mated: ArrayLike) -> float:
    """Area under the ROC: the probability that a mated pair scores above a non-mated one, ties counted half.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show the same person.

    Raises:
        InputError: a score is NaN, or the pairs are of one kind only.

    Example:
        >>> auc([0.9, 0.7, 0.8, 0.1], [True, True, False, False])
        0.75
    """
    return float(auc_rates(roc(scores, mated)))


def det_curve(scores: ArrayLike, mated: ArrayLike) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Detection error trade-off: FMR and FNMR at every corner of the curve.

    Points within straight runs are left out, which loses no information.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show the same person.

    Returns:
        (fmr, fnmr, thresholds), (k,) each, thresholds descending.

    Raises:
        InputError: a score is NaN, or the pairs are of one kind only.

    Example:
        >>> fmr, fnmr, thresholds = det_curve([0.9, 0.8, 0.7, 0.1], [True, True, False, False])
        >>> fmr.tolist(), fnmr.tolist()
        ([0.0, 0.0, 1.0], [1.0, 0.0, 0.0])
    """
    curve = roc(scores, mated)
    # A point is no corner if the steps to it and from it run along the same axis.
    step = np.stack([np.diff(curve.false), np.diff(curve.true)])  # (2, k - 1)
    is_corner = np.ones(curve.thresholds.size, bool)
    is_zero = (step == 0).astype(int)
    is_corner[1:-1] = ~((is_zero[:, 1:] & is_zero[:, :-1]).any(0))
    return curve.fmr[is_corner], curve.fnmr[is_corner], curve.thresholds[is_corner]


def spread(fmr: NDArray[Any], fnmr: NDArray[Any]) -> NDArray[Any]:
    """Indices of up to about 400 points of a DET curve, evenly spread over the decades of both rates."""
    if fmr.size <= 2 * _DET_POINTS:
        return np.arange(fmr.size)
    by_fmr = np.searchsorted(fmr, np.geomspace(fmr[fmr > 0].min(), 1, _DET_POINTS))
    by_fnmr = fmr.size - 1 - np.searchsorted(fnmr[::-1], np.geomspace(fnmr[fnmr > 0].min(), 1, _DET_POINTS))
    return np.unique(np.concatenate([[0, fmr.size - 1], by_fmr, by_fnmr]))  # in range: both rates reach 1


@dataclass(frozen=True)
class NearestPoint:
    """The ROC point whose FMR is nearest to ``target``."""

    target: float
    tmr: float
    fmr: float
    """FMR of this point."""
    excess: float
    """``fmr - target``; if positive, the TMR is better than at the target, if negative, worse."""


def tmr_at_nearest_fmr(scores: ArrayLike, mated: ArrayLike, targets: Targets) -> list[NearestPoint]:
    """TMR at the ROC point nearest to a target FMR, as many papers report it.

    This is how the IJB scripts of insightface and its descendants compute TAR at FAR, for comparison with
    published results. Of the ROC points (without those inside straight runs, like scikit-learn's
    ``roc_curve``) it takes the one with the smallest ``|FMR - target|``; if two are equally near, the one
    with the larger FMR. The FMR of that point may exceed the target. For new results use `tmr_at_fmr`.

    Source: ``eval_ijbc.py`` in insightface's ``recognition/arcface_torch``.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show the same person.
        targets: FMR targets, 0 < target <= 1.

    Raises:
        InputError: a target is out of range, a score is NaN, or the pairs are of one kind only.

    Example:
        >>> scores, mated = [0.9, 0.8, 0.7, 0.6, 0.5], [True, False, True, False, False]
        >>> point = tmr_at_nearest_fmr(scores, mated, 0.2)[0]
        >>> point.tmr, round(point.fmr, 3), round(point.excess, 3)
        (1.0, 0.333, 0.133)
    """
    return nearest_of_curve(roc(scores, mated), targets)


def nearest_of_curve(curve: Curve, targets: Targets) -> list[NearestPoint]:
    """`tmr_at_nearest_fmr` from counts."""
    keep = np.ones(curve.thresholds.size, bool)
    # Leave out points at which the step to the point equals that from it, but never the first score.
    keep[2:-1] = (np.diff(curve.false[1:], 2) != 0) | (np.diff(curve.true[1:], 2) != 0)
    fmr, tmr = curve.fmr[keep][::-1], curve.tmr[keep][::-1]  # descending: argmin picks the larger FMR
    points = []
    for target in check_targets(targets):
        nearest = int(np.argmin(np.abs(fmr - target)))
        rate = float(fmr[nearest])
        points.append(NearestPoint(target, float(tmr[nearest]), rate, rate - target))
    return points


_TAIL = 8  # at first, only the largest 1 / _TAIL of the non-mated scores is sorted: most rates need no more


class ScoreSplit:
    """Scores of mated and non-mated pairs, for exact rates of many millions of pairs.

    The results equal those of `tmr_at_fmr`, `eer` and `det_curve`, with less memory and time.

    Example:
        >>> split = ScoreSplit.of([0.9, 0.8, 0.8, 0.1], [True, True, False, False])
        >>> split.tmr_at_fmr(0.5)[0].tmr, split.eer(), split.non_mated.tolist()
        (1.0, 0.25, [0.1, 0.8])
    """

    def __init__(self, mated: Array, non_mated: Array) -> None:
        """Take ownership of both arrays and sort them in place; `of` leaves its arguments unchanged."""
        self.mated, self._non_mated = mated, non_mated
        self.mated.sort()
        # The scores from this index on are sorted, and none of them is smaller than those before.
        self._sorted_from = non_mated.size - -(-non_mated.size // _TAIL)
        self._non_mated.partition(self._sorted_from)
        self._non_mated[self._sorted_from :].sort()

    @classmethod
    def of(cls, scores: ArrayLike, mated: ArrayLike) -> "ScoreSplit":
        """Split the scores by kind of pair and sort them, keeping their dtype.

        Args:
            scores: (n,) larger = more alike; ties are accepted together.
            mated: (n,) true where both images show the same person.

        Raises:
            InputError: a score is NaN, the shapes differ, or the pairs are of one kind only.
        """
        s, m = check_pairs(scores, mated, keep_type=True)
        return cls(s[m], s[~m])

    @property
    def non_mated(self) -> Array:
        """(n,) all non-mated scores, ascending."""
        self._non_mated[: self._sorted_from].sort()
        self._sorted_from = 0
        return self._non_mated

    def tmr_at_fmr(self, targets: Targets) -> list[TmrAtFmr]:
        """The same as `spherecf.evaluation.tmr_at_fmr`."""
        non_mated = self._non_mated.size

        def accept(target: float) -> tuple[Any, Any, Any]:
            # The sorted tail must hold one score more than may be accepted, which is the usual case.
            is_enough = allowed_errors(target, non_mated) < non_mated - self._sorted_from
            tail = self._non_mated[self._sorted_from :] if is_enough else self.non_mated
            threshold = threshold_at_rate(self.mated, tail, target, trials=non_mated)
            return threshold, *self._accepted(threshold)

        return _tmr_entries(targets, self.mated.size, non_mated, accept)

    def eer(self) -> float:
        """The same as `spherecf.evaluation.eer`."""

        def rates(threshold: Any) -> tuple[float, float]:
            false, true = self._accepted(threshold)
            return int(false) / self._non_mated.size, 1 - int(true) / self.mated.size

        # FMR - FNMR falls as the threshold rises, so bisection finds the score at which it changes sign.
        def last_crossed(scores: Array) -> Any:
            low, high = -1, scores.size
            while high - low > 1:
                middle = (low + high) // 2
                fmr, fnmr = rates(scores[middle])
                low, high = (middle, high) if fmr >= fnmr else (low, middle)
            return scores[low] if low >= 0 else None

        tail = last_crossed(self._non_mated[self._sorted_from :])
        crossed = [last_crossed(self.mated), last_crossed(self.non_mated) if tail is None else tail]
        after = max(score for score in crossed if score is not None)
        (f0, n0), (f1, n1) = rates(self._next_larger(after)), rates(after)
        share = (n0 - f0) / ((n0 - f0) + (f1 - n1))
        return float(f0 + share * (f1 - f0))

    def det(self, points: int | None = None) -> tuple[Array, Array, Array]:
        """The same as `det_curve`; with more than ``points`` corners, thinned evenly over the decades.

        Returns:
            (fmr, fnmr, thresholds), (k,) each, thresholds descending.
        """
        kinds = self.mated, self.non_mated
        mated_scores = np.unique(self.mated)
        ends = np.array([np.inf, min(scores[0] for scores in kinds)], mated_scores.dtype)
        t = np.unique(np.concatenate([mated_scores, self._next_larger(mated_scores), ends]))[::-1]
        below = np.full(t.shape, -np.inf, t.dtype)  # the next smaller score of any pair
        for scores in kinds:
            index = np.searchsorted(scores, t, "left")
            below = np.maximum(below, np.where(index > 0, scores[index - 1], below))
        # A threshold is no corner if one of the counts changes neither at it nor at the next one.
        is_straight = np.zeros(t.size, bool)
        for scores in kinds:
            is_straight |= ~(_is_in(t, scores) | _is_in(below, scores))
        is_straight[[0, -1]] = False
        t = t[~is_straight]
        false, true = self._accepted(t)
        fmr, fnmr = false / self._non_mated.size, 1 - true / self.mated.size
        if points is not None and t.size > points:
            thinned = spread(fmr, fnmr)
            return fmr[thinned], fnmr[thinned], t[thinned].astype(np.float64)
        return fmr, fnmr, t.astype(np.float64)

    def _accepted(self, thresholds: Any) -> tuple[Any, Any]:
        """Numbers of (false, true) matches."""
        non_mated = self._sorted_down_to(thresholds)
        false = non_mated.size - np.searchsorted(non_mated, thresholds, "left")
        return false, self.mated.size - np.searchsorted(self.mated, thresholds, "left")

    def _next_larger(self, scores: Any) -> Any:
        """The next larger score of any pair; infinity for the largest."""
        larger = np.full(np.shape(scores), np.inf, self.mated.dtype)
        for column in (self.mated, self._sorted_down_to(scores)):
            index = np.searchsorted(column, scores, "right")
            candidates = np.where(index < column.size, column[np.minimum(index, column.size - 1)], np.inf)
            larger = np.minimum(larger, candidates)
        return larger.astype(self.mated.dtype)

    def _sorted_down_to(self, scores: Any) -> Array:
        """Ascending non-mated scores: only the sorted tail if it reaches below ``scores``, else all."""
        if self._sorted_from and np.min(scores) > self._non_mated[self._sorted_from]:
            return self._non_mated[self._sorted_from :]
        return self.non_mated


def _is_in(values: Array, ascending: Array) -> NDArray[np.bool_]:
    index = np.minimum(np.searchsorted(ascending, values), ascending.size - 1)
    is_in: NDArray[np.bool_] = ascending[index] == values
    return is_in
