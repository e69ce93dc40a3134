"""Error versus discard (EDC) and rejection curves: the benefit of discarding images of low confidence."""

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
    """FNMR of the remaining mated pairs as a step function of the discarded fraction."""

    threshold: float | None
    start: float | None
    """FNMR before discarding."""
    discard_fraction: list[float]
    fnmr: list[float]
    """``fnmr[i]`` holds from ``discard_fraction[i]`` up to the next fraction."""
    pauc: dict[str, float]
    """Area under the step function from 0 to each limit ("0.2", "0.3")."""
    pauc_normalised: dict[str, float]
    """``pauc`` / (limit * start): 1 is an uninformative confidence, smaller is better."""
    unresolved: str | None = None
    """Why there is no curve or no normalised area."""


def pair_quality(left: ArrayLike, right: ArrayLike) -> NDArray[Any]:
    """(n,) quality of pairs: the smaller quality of the two images.

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
    """Error versus discard characteristic: FNMR as pairs of low quality are discarded.

    The threshold is set on all pairs and then kept fixed. Mated pairs are discarded in order of increasing
    quality, pairs of equal quality together, and the FNMR of the remaining pairs is measured.

    Source: T. Schlett et al., "Considerations on the Evaluation of Biometric Quality Assessment Algorithms",
    arXiv 2303.13294.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show the same person.
        quality: (n,) quality of each pair, larger = better; see `pair_quality`.
        start_fnmr: use the largest threshold whose FNMR on all pairs is at most this rate; or
        fmr: use the threshold with the highest TMR among those whose FMR on all pairs is at most this rate.
        limits: upper limits of the discarded fraction for the partial areas.

    Raises:
        InputError: a score or quality is NaN, the pairs are of one kind only, or not exactly one of
            ``start_fnmr`` and ``fmr`` is given.

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
    fractions, rates = _edc_steps(s[m] < threshold, q[m])
    start = float(rates[0])
    areas = {f"{limit:g}": _area(fractions, rates, limit) for limit in limits}
    normalised = {f"{limit:g}": areas[f"{limit:g}"] / (limit * start) for limit in limits} if start else {}
    reason = None if start else "no mated pair fails at this threshold: there is no error to discard"
    return Edc(threshold, start, fractions.tolist(), rates.tolist(), areas, normalised, reason)


def _threshold_at_fnmr(mated_scores: NDArray[Any], fnmr: float) -> float:
    if not 0 <= fnmr < 1:
        raise InputError(f"start_fnmr: expected 0 <= start_fnmr < 1, got {fnmr}")
    return float(np.sort(mated_scores)[int(allowed_errors(fnmr, mated_scores.size))])


def _edc_steps(is_error: NDArray[Any], quality: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """(discarded fraction, FNMR of the remaining pairs) at the start of each step."""
    order = np.argsort(quality, kind="stable")
    is_error, quality = is_error[order], quality[order]
    n_discarded = np.concatenate([[0], np.flatnonzero(np.diff(quality)) + 1])  # ties go together
    errors_discarded = np.concatenate([[0], np.cumsum(is_error)])[n_discarded]
    fnmr = (is_error.sum() - errors_discarded) / (is_error.size - n_discarded)
    return n_discarded / is_error.size, fnmr


def _area(fractions: NDArray[Any], values: NDArray[Any], limit: float) -> float:
    if not 0 < limit <= 1:
        raise InputError(f"pAUC limit: expected 0 < limit <= 1, got {limit}")
    return float((np.diff(np.append(np.minimum(fractions, limit), limit)) * values).sum())


@dataclass(frozen=True)
class RejectionCurve:
    """TMR at FMR <= target of the remaining pairs, by rejected fraction."""

    target: float
    fractions: list[float]
    tmr: list[float | None]
    """None where the target is unresolved."""
    pairs: list[int]
    """Number of remaining pairs."""


def rejection_curve(
    scores: ArrayLike,
    mated: ArrayLike,
    quality: ArrayLike,
    target: float,
    *,
    images: tuple[ArrayLike, ArrayLike] | None = None,
    fractions: Sequence[float] = FRACTIONS,
) -> RejectionCurve:
    """TMR at FMR after rejecting each fraction of lowest confidence (the paper's rejection figure).

    The threshold is set again for each fraction. Units (pairs or images) of equal quality are rejected
    together, as soon as the fraction exceeds the share of units with lower quality.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show the same person.
        quality: (n,) quality of pairs, larger = better; with ``images``, (images,) quality of images.
        target: FMR target.
        images: (left, right) indices into ``quality`` of the images of each pair, (n,) each; a pair remains
            if both images do.
        fractions: rejected fractions, 0 <= fraction < 1.

    Raises:
        InputError: a score or quality is NaN, the shapes differ, or the pairs are of one kind only.

    Example:
        >>> rejection_curve([3, 1, 2, 0], [1, 1, 0, 0], [2, 1, 2, 2], 0.5, fractions=[0.0, 0.5]).tmr
        [1.0, None]
    """
    s, m = check_pairs(scores, mated)
    q = _check_quality(quality, None if images else s.size)
    share_below = np.searchsorted(np.sort(q), q, side="left") / q.size  # share of units of lower quality
    if images is not None:
        left, right = (np.asarray(index, np.int64) for index in images)
        share_below = np.minimum(share_below[left], share_below[right])
    tmr: list[float | None] = []
    n_remaining: list[int] = []
    pairs = sort_pairs(s, m)
    for fraction in fractions:
        remains = share_below >= fraction
        n_remaining.append(int(remains.sum()))
        if not (remains & m).any() or not (remains & ~m).any():
            tmr.append(None)
            continue
        tmr.append(tmr_of_curve(pairs.curve(remains.astype(np.int64)), target)[0].tmr)
    return RejectionCurve(float(target), [float(f) for f in fractions], tmr, n_remaining)


def _check_quality(quality: ArrayLike, n: int | None) -> NDArray[Any]:
    q = np.asarray(quality, np.float64)
    if q.ndim != 1 or (n is not None and q.size != n):
        raise InputError(f"quality: expected one per {'pair' if n else 'image'} ({n or 'n'},), got {q.shape}")
    nan_indices = np.flatnonzero(np.isnan(q))
    if nan_indices.size:
        raise InputError(f"quality: {nan_indices.size} of {q.size} are NaN, first at {nan_indices[0]}")
    return q
