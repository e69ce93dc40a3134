"""Exact binomial tails and intervals for counted errors, on arrays, right in the far tails too.

scipy is imported by the functions that need it: a quarter of a second that opening a model does not pay.
"""

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration.checks import Numbers
from spherecf.errors import InputError

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
