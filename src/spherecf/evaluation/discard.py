"""Error versus discard, and rejection curves: what discarding images of low confidence gains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import allowed_errors, check_pairs
from spherecf.errors import InputError
from spherecf.evaluation.rates import sort_pairs, tmr_of_curve

PAUC_LIMITS = (0.2, 0.3)
FRACTIONS = tuple(round(0.05 * i, 2) for i in range(20))


@dataclass(frozen=True)
class Edc:
    """FNMR of the mated pairs that remain, as a step function of the discarded fraction."""

    threshold: float | None
    start: float | None
    """FNMR with nothing discarded."""
    discard_fraction: list[float]
    fnmr: list[float]
    """``fnmr[i]`` holds from ``discard_fraction[i]`` up to the next one."""
    pauc: dict[str, float]
    """Area under the steps from 0 to each limit ("0.2", "0.3")."""
    pauc_normalised: dict[str, float]
    """The same over limit * start: 1 is a confidence that tells nothing, smaller is better."""
    unresolved: str | None = None


def pair_quality(left: ArrayLike, right: ArrayLike) -> NDArray[Any]:
    """Quality of a pair: the smaller of its two images'.

    Example:
        >>> pair_quality([1.0, 5.0], [3.0, 2.0]).tolist()
        [1.0, 2.0]
    """
    return np.minimum(np.asarray(left, np.float64), np.asarray(right, np.float64))


def edc(
    scores: ArrayLike,
    mated: ArrayLike,
    quality: ArrayLike,
    *,
    start_fnmr: float | None = None,
    fmr: float | None = None,
    limits: Sequence[float] = PAUC_LIMITS,
) -> Edc:
    """Error versus discard (Schlett et al., arXiv 2303.13294): does discarding by quality remove the errors?

    The threshold is fixed on all pairs, and stays; mated pairs are then discarded in order of quality,
    those of equal quality together, and FNMR is taken over what remains.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show one person.
        quality: (n,) quality of each pair, larger = better; see `pair_quality`.
        start_fnmr: fix the largest threshold whose FNMR on all pairs is at most this; or
        fmr: fix the threshold of the largest TMR with FMR at most this.
        limits: largest discarded fractions for the partial areas.

    Raises:
        InputError: NaN scores or qualities, one kind of pair only, or not exactly one of the two starts.

    Example:
        >>> result = edc([0.9, 0.8, 0.2, 0.1], [1, 1, 1, 0], [3, 2, 1, 9], start_fnmr=0.4, limits=[0.5])
        >>> [round(x, 3) for x in result.discard_fraction], [round(x, 3) for x in result.fnmr]
        ([0.0, 0.333, 0.667], [0.333, 0.0, 0.0])
    """
    s, m = check_pairs(scores, mated)
    q = _check_quality(quality, s.size)
    if (start_fnmr is None) == (fmr is None):
        raise InputError("edc: give exactly one of start_fnmr and fmr")
    if fmr is not None:
        point = tmr_of_curve(sort_pairs(s, m).curve(), fmr)[0]
        if point.threshold is None:
            return Edc(None, None, [], [], {}, {}, point.unresolved)
        threshold = point.threshold
    else:
        threshold = _threshold_at_fnmr(s[m], start_fnmr or 0.0)
    fractions, rates = _steps(s[m] < threshold, q[m])
    start = float(rates[0])
    areas = {f"{limit:g}": _area(fractions, rates, limit) for limit in limits}
    relative = {f"{limit:g}": areas[f"{limit:g}"] / (limit * start) for limit in limits} if start else {}
    why = None if start else "no mated pair fails at this threshold: there is no error to discard"
    return Edc(threshold, start, fractions.tolist(), rates.tolist(), areas, relative, why)


def _threshold_at_fnmr(genuine: NDArray[Any], fnmr: float) -> float:
    if not 0 <= fnmr < 1:
        raise InputError(f"start_fnmr: expected 0 <= start_fnmr < 1, got {fnmr}")
    return float(np.sort(genuine)[int(allowed_errors(fnmr, genuine.size))])


def _steps(wrong: NDArray[Any], quality: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    order = np.argsort(quality, kind="stable")
    wrong, quality = wrong[order], quality[order]
    gone = np.concatenate([[0], np.flatnonzero(np.diff(quality)) + 1])  # discarded so far, ties whole
    errors_gone = np.concatenate([[0], np.cumsum(wrong)])[gone]
    return gone / wrong.size, (wrong.sum() - errors_gone) / (wrong.size - gone)


def _area(fractions: NDArray[Any], values: NDArray[Any], limit: float) -> float:
    if not 0 < limit <= 1:
        raise InputError(f"pAUC limit: expected 0 < limit <= 1, got {limit}")
    return float((np.diff(np.append(np.minimum(fractions, limit), limit)) * values).sum())


@dataclass(frozen=True)
class RejectionCurve:
    """TMR at FMR <= target among the pairs that remain, per rejected fraction; None where not resolved."""

    target: float
    fractions: list[float]
    tmr: list[float | None]
    pairs: list[int]
    """Pairs that remain."""


def rejection_curve(
    scores: ArrayLike,
    mated: ArrayLike,
    quality: ArrayLike,
    target: float,
    *,
    images: tuple[ArrayLike, ArrayLike] | None = None,
    fractions: Sequence[float] = FRACTIONS,
) -> RejectionCurve:
    """TMR at FMR, measured anew after rejecting the fraction with the lowest confidence (the paper's figure).

    Units of equal quality stay or go together (they go as soon as the fraction exceeds the share of worse
    ones).

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show one person.
        quality: (n,) of pairs, larger = better; with ``images``, (images,) of images.
        target: FMR.
        images: (left, right) index of the images of each pair into ``quality``; a pair stays
            if both its images do.
        fractions: rejected fractions, 0 .. below 1.

    Raises:
        InputError: NaN, shapes that do not fit, or only one kind of pair at the start.

    Example:
        >>> rejection_curve([3, 1, 2, 0], [1, 1, 0, 0], [2, 1, 2, 2], 0.5, fractions=[0.0, 0.5]).tmr
        [1.0, None]
    """
    s, m = check_pairs(scores, mated)
    q = _check_quality(quality, None if images else s.size)
    level = np.searchsorted(np.sort(q), q, side="left") / q.size  # share of units that are worse
    if images is not None:
        left, right = (np.asarray(index, np.int64) for index in images)
        level = np.minimum(level[left], level[right])
    tmr: list[float | None] = []
    remain: list[int] = []
    pairs = sort_pairs(s, m)
    for fraction in fractions:
        kept = level >= fraction
        remain.append(int(kept.sum()))
        if not (kept & m).any() or not (kept & ~m).any():
            tmr.append(None)
            continue
        tmr.append(tmr_of_curve(pairs.curve(kept.astype(np.int64)), target)[0].tmr)
    return RejectionCurve(float(target), [float(f) for f in fractions], tmr, remain)


def _check_quality(quality: ArrayLike, n: int | None) -> NDArray[Any]:
    q = np.asarray(quality, np.float64)
    if q.ndim != 1 or (n is not None and q.size != n):
        raise InputError(f"quality: expected one per {'pair' if n else 'image'} ({n or 'n'},), got {q.shape}")
    bad = np.flatnonzero(np.isnan(q))
    if bad.size:
        raise InputError(f"quality: {bad.size} of {q.size} are NaN, first at {bad[0]}")
    return q
