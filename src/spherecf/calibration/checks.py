"""Checks of calibration data, limits of likelihood ratios, and exact binomial tails and intervals.

The binomial functions work on arrays and are accurate in the far tails as well. scipy is imported inside the
functions that need it, because importing it takes a quarter of a second, which opening a model should not.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError

Numbers = ArrayLike | float | int
"""A number or an array of any shape."""

_MAX_COUNT = 2**53  # float64 represents all integers up to here


def real_numbers(values: Any, what: str) -> NDArray[Any]:
    """Values of any shape as an array: anything that NumPy accepts, or a tensor of any device and type.

    Numbers other than float32 become float64.

    Raises:
        InputError: the values are not real numbers, or rows differ in length.

    Example:
        >>> real_numbers([1, 2], "scores")
        array([1., 2.])
    """
    if hasattr(values, "detach"):  # a tensor, recognised without importing torch
        values = values.detach().cpu()
        values = (values if str(values.dtype) == "torch.float32" else values.double()).numpy()
    try:
        array = np.asarray(values)
        if array.dtype.kind in "fiubO":
            return array.astype(np.float32 if array.dtype == np.float32 else np.float64, copy=False)
        problem = f"got {array.dtype}"
    except (TypeError, ValueError) as error:
        problem = str(error)
    raise InputError(f"{what}: expected real numbers: {problem}")


def check_mated(mated: ArrayLike) -> NDArray[np.bool_]:
    """The flags of mated pairs as booleans.

    Args:
        mated: booleans, or 0 and 1, true for pairs of the same person.

    Raises:
        InputError: other values, such as subject ids or -1.

    Example:
        >>> check_mated([1, 0]).tolist()
        [True, False]
    """
    flags = np.asarray(mated)
    if flags.dtype != np.bool_ and not np.isin(flags, (0, 1)).all():
        examples = flags.reshape(-1)[:3].tolist()
        raise InputError(f"mated: expected booleans or 0 and 1, got values like {examples}")
    return flags.astype(bool, copy=False)


def check_pairs(
    scores: ArrayLike, mated: ArrayLike, *, keep_type: bool = False
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Scores (n,) and flags (n,) of mated and non-mated pairs, checked; copied only if necessary.

    Args:
        scores: (n,) scores; they may be infinite, but not NaN.
        mated: (n,) true for mated pairs.
        keep_type: keep float32 scores, to save memory. Otherwise scores become float64.

    Raises:
        InputError: scores are NaN, shapes differ, ``mated`` has other values than flags, or mated or
            non-mated pairs are missing.

    Example:
        >>> check_pairs([0.9, 0.1], [1, 0])
        (array([0.9, 0.1]), array([ True, False]))
    """
    s = real_numbers(scores, "scores")
    if not (keep_type and s.dtype == np.float32):
        s = s.astype(np.float64, copy=False)
    if s.ndim != 1 or s.shape != np.shape(mated):
        raise InputError(f"scores and mated: expected two (n,) arrays, got {s.shape} and {np.shape(mated)}")
    m = check_mated(mated)
    bad = np.flatnonzero(np.isnan(s))
    if bad.size:
        raise InputError(
            f"scores: {bad.size} of {s.size} are NaN, first pair {bad[0]}; leave these pairs out"
        )
    if m.all() or not m.any():
        raise InputError(
            f"mated: {int(m.sum())} mated and {int((~m).sum())} non-mated pairs; "
            "error rates need both kinds; check the pair list"
        )
    return s, m


def split_scores(scores: ArrayLike, mated: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """The scores of mated and of non-mated pairs as float64, checked to be finite."""
    s, m = check_pairs(scores, mated)
    bad = np.flatnonzero(np.isinf(s))
    if bad.size:
        raise InputError(f"scores: {bad.size} of {s.size} are infinite, first pair {bad[0]}")
    return s[m], s[~m]


def finite(scores: Numbers, what: str = "scores") -> NDArray[Any]:
    """Values of any shape as float64, checked not to be NaN."""
    s = real_numbers(scores, what).astype(np.float64, copy=False)
    if np.isnan(s).any():
        raise InputError(
            f"{what}: {int(np.isnan(s).sum())} of {s.size} are NaN; leave out images that could not be "
            "assessed"
        )
    return s


def check_counts(what: str, smallest: int = 0, /, **counts: int | None) -> None:
    """Refuse counts below ``smallest`` or above 2^53; None is accepted.

    Raises:
        InputError: a count is out of range; the message names it.
    """
    for name, count in counts.items():
        if count is not None and not smallest <= count <= _MAX_COUNT:
            raise InputError(f"{what}: expected {name} >= {smallest} and at most 2^53, got {count:.6g}")


def check_shares(what: str, **shares: float | None) -> None:
    """Refuse shares outside 0 .. 1; None is accepted.

    Raises:
        InputError: a share is out of range; the message names it.
    """
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"{what}: expected {name} within 0 .. 1, got {share:g}")


def check_radius(what: str, radius: float | None) -> None:
    """Refuse a radius that is not positive and finite; None, for a score without radius, is accepted.

    Raises:
        InputError: the radius is out of range.
    """
    if radius is not None and not 0 < radius < math.inf:
        raise InputError(f"{what}: expected a positive radius, got {radius:g}")


def llr_limits(mated: int, non_mated: int) -> tuple[float, float]:
    """The smallest and the largest natural-log likelihood ratio that a number of pairs can support.

        log((m + 1) / (m + 2) * (n + 2))     is the upper limit for m mated and n non-mated pairs,
        -log((n + 1) / (n + 2) * (m + 2))    the lower limit.

    By the rule of succession, one unseen pair of each kind may be beyond all observed scores, which limits
    the ratio of the tails. Ratios that the data do not support are the most common fault of likelihood ratio
    systems: Vergeer et al., Science & Justice 56, 2016.

    Raises:
        InputError: there are no mated or no non-mated pairs.

    Example:
        >>> [round(end, 3) for end in llr_limits(100, 1000)]
        [-4.624, 6.9]
    """
    if mated < 1 or non_mated < 1:
        raise InputError(f"llr_limits: expected pairs of both kinds, got {mated} and {non_mated}")
    upper = math.log((mated + 1) / (mated + 2) * (non_mated + 2))
    lower = -math.log((non_mated + 1) / (non_mated + 2) * (mated + 2))
    return lower, upper


Array = NDArray[Any]


def binomial_cdf(count: Numbers, trials: Numbers, rate: Numbers) -> Array:
    """P(X <= count) for the number X of errors in independent trials with error probability ``rate``.

    It equals the regularised incomplete beta function 1 - I_rate(count + 1, trials - count) (DLMF 8.17.5),
    and is the p-value of the null hypothesis "the error rate is at least ``rate``" if ``count`` errors were
    observed. The arguments are broadcast.

    Raises:
        InputError: a number of trials is negative, or a rate is outside 0 .. 1.

    Example:
        >>> binomial_cdf([0, 1, 2], 2, 0.5).round(6).tolist()
        [0.25, 0.75, 1.0]
    """
    from scipy.special import betaincc

    k, n, p = np.broadcast_arrays(*(np.asarray(values, np.float64) for values in (count, trials, rate)))
    if not (n >= 0).all() or not ((p >= 0) & (p <= 1)).all():
        raise InputError("binomial: expected trials >= 0 and rates within 0 .. 1")
    in_range = (k >= 0) & (k < n)  # elsewhere the probability is 0 or 1
    tail = betaincc(np.where(in_range, k + 1, 1), np.where(in_range, n - k, 1), p)
    return np.asarray(np.where(in_range, tail, k >= n), np.float64)


def binomial_upper(count: Numbers, trials: Numbers, delta: float) -> Array:
    """The one-sided Clopper-Pearson upper bound of a rate, which holds with probability at least 1 - delta.

    It is the rate at which `binomial_cdf` equals ``delta``, with a relative error of 1e-10, and 1 if every
    trial was an error.

    Raises:
        InputError: there are more errors than trials, or ``delta`` is not in (0, 1).

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
    """The exact two-sided confidence interval of a rate (Clopper and Pearson, Biometrika 26, 1934).

    It is exact for independent trials. Pairs that share people are not independent; for these use
    `spherecf.evaluation.bootstrap_subjects`.

    Args:
        count: number of errors, any shape.
        trials: number of trials, broadcast.
        level: confidence level.

    Returns:
        Lower and upper ends; 0 and 1 without trials.

    Raises:
        InputError: there are more errors than trials, or ``level`` is out of range.

    Example:
        >>> low, high = clopper_pearson(0, 10)
        >>> float(low), round(float(high), 4)
        (0.0, 0.3085)
    """
    from scipy.special import betaincinv

    k, n = _counts(count, trials)
    if not 0 < level < 1:
        raise InputError(f"level: expected 0 < level < 1, got {level}")
    half = (1 - level) / 2
    high = binomial_upper(k, n, half)
    # Not 1 - binomial_upper(n - k, n, half), which loses most digits if the rate is small.
    low = np.where(k > 0, betaincinv(np.where(k > 0, k, 1), n - k + 1, half), 0.0)
    return np.asarray(low), high


def wilson(count: Numbers, trials: Numbers, level: float = 0.95) -> tuple[Array, Array]:
    """Wilson's score interval of a rate (JASA 22, 1927), whose coverage is close to ``level`` on average.

    Args and returns are as in `clopper_pearson`.

    Raises:
        InputError: there are more errors than trials.

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
    k, n = np.broadcast_arrays(*(real_numbers(given, "binomial") for given in (count, trials)))
    if not ((k >= 0) & (k <= n)).all():
        raise InputError("binomial: expected counts within 0 .. trials")
    return k, n
