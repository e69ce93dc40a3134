"""Checks of calibration data, how far it can carry a likelihood ratio, and intervals of counted errors.

Binomial tails and intervals are exact, on arrays, right in the far tails too. scipy is imported by the
functions that need it: a quarter of a second that opening a model does not pay.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError

Numbers = ArrayLike | float | int
"""A number or an array of any shape."""

_MAX_COUNT = 2**53  # up to here float64 counts exactly


def check_mated(mated: ArrayLike) -> NDArray[np.bool_]:
    """Flags "both show one person" as booleans, from booleans or from 0 and 1.

    Raises:
        InputError: other values, such as the subjects themselves or -1.

    Example:
        >>> check_mated([1, 0]).tolist()
        [True, False]
    """
    flags = np.asarray(mated)
    if flags.dtype != np.bool_ and not np.isin(flags, (0, 1)).all():
        got = flags.reshape(-1)[:3].tolist()
        raise InputError(f"mated: expected booleans or 0 and 1, got values like {got}")
    return flags.astype(bool, copy=False)


def check_pairs(
    scores: ArrayLike, mated: ArrayLike, *, keep_type: bool = False
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(scores (n,), flags (n,)) of pairs of both kinds, ready to be counted; no copy where none is needed.

    Args:
        scores: (n,) infinite ones are fine, NaN is not.
        mated: (n,) true where both show one person.
        keep_type: leave float32 scores as they are, where there are too many to widen; else float64.

    Raises:
        InputError: NaN scores, shapes that differ, flags that are none, or only one kind of pair.

    Example:
        >>> check_pairs([0.9, 0.1], [1, 0])
        (array([0.9, 0.1]), array([ True, False]))
    """
    s = np.asarray(scores)
    if not (keep_type and s.dtype == np.float32):
        s = s.astype(np.float64, copy=False)
    if s.ndim != 1 or s.shape != np.shape(mated):
        raise InputError(f"scores and mated: expected two (n,) arrays, got {s.shape} and {np.shape(mated)}")
    m = check_mated(mated)
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


def labelled(scores: ArrayLike, mated: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """(scores of mated pairs, scores of non-mated pairs) as float64, all of them finite."""
    s, m = check_pairs(scores, mated)
    bad = np.flatnonzero(np.isinf(s))
    if bad.size:
        raise InputError(f"scores: {bad.size} of {s.size} are infinite, first pair {bad[0]}")
    return s[m], s[~m]


def finite(scores: Numbers, what: str = "scores") -> NDArray[Any]:
    """Values of any shape as float64, none of them NaN."""
    s = np.asarray(scores, np.float64)
    if np.isnan(s).any():
        raise InputError(f"{what}: {int(np.isnan(s).sum())} of {s.size} are NaN; a failure has no {what}")
    return s


def check_counts(what: str, smallest: int = 0, /, **counts: int | None) -> None:
    """Refuse a number of things, where one is given, that is below ``smallest`` or beyond counting.

    Raises:
        InputError: it is named.
    """
    for name, count in counts.items():
        if count is not None and not smallest <= count <= _MAX_COUNT:
            raise InputError(f"{what}: expected {name} >= {smallest} and at most 2^53, got {count:.6g}")


def check_shares(what: str, **shares: float | None) -> None:
    """Refuse a share, where one is given, that lies outside 0 .. 1.

    Raises:
        InputError: it is named.
    """
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"{what}: expected {name} within 0 .. 1, got {share:g}")


def check_radius(what: str, radius: float | None) -> None:
    """Refuse what is the radius of no sphere; None stands for a score without one.

    Raises:
        InputError: it is not positive and finite.
    """
    if radius is not None and not 0 < radius < math.inf:
        raise InputError(f"{what}: expected a positive radius, got {radius:g}")


def llr_limits(mated: int, non_mated: int) -> tuple[float, float]:
    """Smallest and largest log-likelihood ratio that so many pairs can support.

    Rule of succession: one pair of each kind, not yet seen, may lie beyond every score seen. So the ratio of
    the two tails is at most ``(m + 1) / (m + 2) * (n + 2)`` for m mated and n non-mated pairs, and at least
    the mirror image. Claims beyond the data are the commonest fault of likelihood ratios: Vergeer et al.,
    Science & Justice 56, 2016.

    Raises:
        InputError: no pair of one kind.

    Example:
        >>> [round(end, 3) for end in llr_limits(100, 1000)]
        [-4.624, 6.9]
    """
    if mated < 1 or non_mated < 1:
        raise InputError(f"llr_limits: expected pairs of both kinds, got {mated} and {non_mated}")
    up = math.log((mated + 1) / (mated + 2) * (non_mated + 2))
    down = math.log((non_mated + 1) / (non_mated + 2) * (mated + 2))
    return -down, up


Array = NDArray[Any]


def binomial_cdf(count: Numbers, trials: Numbers, rate: Numbers) -> Array:
    """P(X <= count) for X binomial: ``trials`` draws, each an error with probability ``rate``.

    Equals the regularised incomplete beta function 1 - I_rate(count + 1, trials - count) (DLMF 8.17.5). The
    arguments are broadcast. This is the p-value of "the error rate exceeds ``rate``" when ``count`` errors
    were seen.

    Raises:
        InputError: a negative number of trials, or a rate outside 0 .. 1.

    Example:
        >>> binomial_cdf([0, 1, 2], 2, 0.5).round(6).tolist()
        [0.25, 0.75, 1.0]
    """
    from scipy.special import betaincc

    k, n, p = np.broadcast_arrays(*(np.asarray(part, np.float64) for part in (count, trials, rate)))
    if not (n >= 0).all() or not ((p >= 0) & (p <= 1)).all():
        raise InputError("binomial: expected trials >= 0 and rates within 0 .. 1")
    within = (k >= 0) & (k < n)  # elsewhere the tail holds nothing, or everything
    tail = betaincc(np.where(within, k + 1, 1), np.where(within, n - k, 1), p)
    return np.asarray(np.where(within, tail, k >= n), np.float64)


def binomial_upper(count: Numbers, trials: Numbers, delta: float) -> Array:
    """One-sided Clopper-Pearson bound: the rate is below it with probability at least 1 - delta.

    The rate at which `binomial_cdf` is ``delta``, to 1e-10 of itself; 1 where every trial was an error.

    Raises:
        InputError: more errors than trials, or ``delta`` outside 0 .. 1.

    Example:
        >>> bool(np.isclose(binomial_upper(0, 298, 0.05), 1 - 0.05 ** (1 / 298)))  # no error in 298
        True
    """
    from scipy.special import betainccinv

    k, n = _counts(count, trials)
    if not 0 < delta < 1:
        raise InputError(f"delta: expected 0 < delta < 1, got {delta}")
    return np.asarray(np.where(k < n, betainccinv(k + 1, np.where(k < n, n - k, 1), delta), 1.0))


def clopper_pearson(count: Numbers, trials: Numbers, level: float = 0.95) -> tuple[Array, Array]:
    """Exact two-sided interval of a rate (Clopper and Pearson, Biometrika 26, 1934); 0 .. 1 without trials.

    Exact for independent trials. Pairs that share people are not: their interval is the bootstrap over
    subjects.

    Raises:
        InputError: more errors than trials, or ``level`` outside 0 .. 1.

    Example:
        >>> low, high = clopper_pearson(0, 10)
        >>> float(low), round(float(high), 4)
        (0.0, 0.3085)
    """
    from scipy.special import betaincinv

    k, n = _counts(count, trials)
    half = (1 - level) / 2
    high = binomial_upper(k, n, half)
    # Not 1 - binomial_upper(n - k, n, half), which has lost most digits where the rate is small.
    low = np.where(k > 0, betaincinv(np.where(k > 0, k, 1), n - k + 1, half), 0.0)
    return np.asarray(low), high


def wilson(count: Numbers, trials: Numbers, level: float = 0.95) -> tuple[Array, Array]:
    """Wilson's score interval of a rate (JASA 22, 1927): close to exact on average; 0 .. 1 without trials.

    Raises:
        InputError: more errors than trials.

    Example:
        >>> [round(float(end), 4) for end in wilson(5, 10)]
        [0.2366, 0.7634]
    """
    k, n = _counts(count, trials)
    z = NormalDist().inv_cdf((1 + level) / 2)
    rate = k / np.maximum(n, 1)
    middle = (k + z * z / 2) / (n + z * z)
    half = z * np.sqrt(n * rate * (1 - rate) + z * z / 4) / (n + z * z)
    return np.asarray(np.clip(middle - half, 0, 1)), np.asarray(np.clip(middle + half, 0, 1))


def _counts(count: Numbers, trials: Numbers) -> tuple[Array, Array]:
    k, n = np.broadcast_arrays(np.asarray(count, np.float64), np.asarray(trials, np.float64))
    if not ((k >= 0) & (k <= n)).all():
        raise InputError("binomial: expected counts within 0 .. trials")
    return k, n
