"""Exact binomial tails and intervals for counted errors, on arrays, right in the far tails too."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration.checks import Numbers
from spherecf.errors import InputError

Array = NDArray[Any]

_lgamma = np.frompyfunc(math.lgamma, 1, 1)
_TINY = 1e-300
_MOST_TERMS = 100_000  # the fraction needs about the square root of the number of trials
_MOST_STEPS = 100
_LONGEST = 2.0  # step, on the scale of log odds


def binomial_cdf(count: Numbers, trials: Numbers, rate: Numbers) -> Array:
    """P(X <= count) for X binomial: ``trials`` draws, each an error with probability ``rate``.

    Equals the regularised incomplete beta function I_{1 - rate}(trials - count, count + 1) (DLMF 8.17.5),
    evaluated by its continued fraction (DLMF 8.17.22) with the powers in log space. The arguments are
    broadcast. This is the p-value of "the error rate exceeds ``rate``" when ``count`` errors were seen.

    Raises:
        InputError: a negative number of trials, or a rate outside 0 .. 1.

    Example:
        >>> binomial_cdf([0, 1, 2], 2, 0.5).round(6).tolist()
        [0.25, 0.75, 1.0]
    """
    k, n, p = np.broadcast_arrays(*(np.asarray(part, np.float64) for part in (count, trials, rate)))
    if not (n >= 0).all() or not ((p >= 0) & (p <= 1)).all():
        raise InputError("binomial: expected trials >= 0 and rates within 0 .. 1")
    found = np.where(k >= n, 1.0, 0.0)
    open_ = (k >= 0) & (k < n)
    found[open_] = _beta_ratio(1 - p[open_], p[open_], n[open_] - k[open_], k[open_] + 1)
    return found


def binomial_upper(count: Numbers, trials: Numbers, delta: float) -> Array:
    """One-sided Clopper-Pearson bound: the rate is below it with probability at least 1 - delta.

    Raises:
        InputError: more errors than trials, or ``delta`` outside 0 .. 1.

    Example:
        >>> bool(np.isclose(binomial_upper(0, 298, 0.05), 1 - 0.05 ** (1 / 298)))  # no error in 298
        True
    """
    k, n = _counts(count, trials)
    if not 0 < delta < 1:
        raise InputError(f"delta: expected 0 < delta < 1, got {delta}")
    found = np.ones(k.shape)
    open_ = k < n
    if open_.any():
        found[open_] = _where_tail_is(delta, k[open_], n[open_])
    return found


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
    k, n = _counts(count, trials)
    half = (1 - level) / 2
    return np.asarray(1 - binomial_upper(n - k, n, half)), binomial_upper(k, n, half)


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


def _where_tail_is(delta: float, k: Array, n: Array) -> Array:
    """The rate at which P(X <= k) = delta: Newton on log P over the log odds, where it is concave."""
    z = NormalDist().inv_cdf(1 - delta)
    start = (k + 0.5 + z * z / 2 + z * np.sqrt(k * (1 - k / n) + z * z / 4)) / (
        n + 1 + z * z
    )  # Wilson's, about
    x = np.log(start) - np.log1p(-start)
    choices = _log_choices(n - 1, k)
    for _ in range(_MOST_STEPS):
        log_p, log_q = -np.logaddexp(0, -x), -np.logaddexp(0, x)
        tail = _beta_ratio(np.exp(log_q), np.exp(log_p), n - k, k + 1)
        slope = n * np.exp(choices + (k + 1) * log_p + (n - k) * log_q) / tail
        step = np.clip((np.log(tail) - np.log(delta)) / slope, -_LONGEST, _LONGEST)
        x = x + step
        if (np.abs(step) < 1e-13 * np.maximum(1, np.abs(x))).all():
            break
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def _log_choices(n: Array, k: Array) -> Array:
    """log of n over k."""
    return np.asarray(_lgamma(n + 1) - _lgamma(k + 1) - _lgamma(n - k + 1), np.float64)


def _counts(count: Numbers, trials: Numbers) -> tuple[Array, Array]:
    k, n = np.broadcast_arrays(np.asarray(count, np.float64), np.asarray(trials, np.float64))
    if not ((k >= 0) & (k <= n)).all():
        raise InputError("binomial: expected counts within 0 .. trials")
    return k, n


def _beta_ratio(x: Array, rest: Array, a: Array, b: Array) -> Array:
    """I_x(a, b); ``rest`` is 1 - x, given because x near 1 has lost its digits."""
    swap = x > (a + 1) / (a + b + 2)  # where the fraction of the complement converges
    x, rest = np.where(swap, rest, x), np.where(swap, x, rest)
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    with np.errstate(divide="ignore"):
        powers = a * np.log(x) + b * np.log(rest)
    choices = np.asarray(_lgamma(a + b) - _lgamma(a) - _lgamma(b), np.float64)
    part = np.exp(powers + choices) / (a * _fraction(x, a, b))
    return np.asarray(np.where(swap, 1 - part, part))


def _fraction(x: Array, a: Array, b: Array) -> Array:
    """The continued fraction 1 + d_1 / (1 + d_2 / (1 + ...)) by the modified Lentz method."""
    value = np.ones_like(x)
    c, d = np.ones_like(x), np.zeros_like(x)
    for step in range(1, _MOST_TERMS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + step - 1) * (a + step))
        else:
            term = m * (b - m) * x / ((a + step - 1) * (a + step))
        d = 1 + term * d
        d = 1 / np.where(np.abs(d) < _TINY, _TINY, d)
        c = 1 + term / c
        c = np.where(np.abs(c) < _TINY, _TINY, c)
        value = value * c * d
        if (np.abs(c * d - 1) < 1e-15).all():
            return value
    raise InputError("binomial: the tail did not converge; the numbers are beyond what is supported")
