"""Quality of log-likelihood ratios: cost (Cllr), minimum cost, reliability and Tippett plots.

Log-likelihood ratios use natural logarithms; the cost is in bits, as is customary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import check_pairs, pool_adjacent_violators, wilson
from spherecf.errors import InputError
from spherecf.evaluation.rates import sort_pairs

EDGES = (0.0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 1.0)


def cllr(llr: ArrayLike, mated: ArrayLike) -> float:
    """Cost of log-likelihood ratios (Cllr) in bits.

    0 is perfect, 1 is uninformative (all ratios 1), above 1 is misleading. The cost is
    ``1/2 (mean_mated log2(1 + exp(-llr)) + mean_non_mated log2(1 + exp(llr)))``. An infinite ratio on the
    wrong side has infinite cost.

    Source: N. Brümmer and J. du Preez, "Application-independent evaluation of speaker detection", Computer
    Speech & Language 20, 2006.

    Args:
        llr: (n,) natural-log likelihood ratios.
        mated: (n,) true where both images show the same person.

    Raises:
        InputError: a value is NaN, the shapes differ, or the pairs are of one kind only.

    Example:
        >>> round(cllr([1.0986123, -1.0986123], [1, 0]), 6)  # ratios 3 and 1/3, both on the correct side
        0.415037
    """
    values, is_mated = check_pairs(llr, mated)
    nats = np.logaddexp(0, -values[is_mated]).mean(), np.logaddexp(0, values[~is_mated]).mean()
    return float(sum(nats) / 2 / np.log(2))


def min_cllr(scores: ArrayLike, mated: ArrayLike) -> float:
    """Minimum Cllr over all rising functions of the scores, on these pairs.

    The optimal function is found by pool adjacent violators. Cllr minus its minimum is the calibration loss.
    The function is optimised on the pairs on which it is measured, so the minimum is optimistic if there are
    few pairs.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show the same person.

    Raises:
        InputError: a value is NaN, the shapes differ, or the pairs are of one kind only.

    Example:
        >>> min_cllr([0.1, 0.9], [False, True]), min_cllr([0.9, 0.1], [False, True])
        (0.0, 1.0)
    """
    curve = sort_pairs(scores, mated).curve()
    mated_counts, non_mated_counts = np.diff(curve.true)[::-1], np.diff(curve.false)[::-1]  # scores ascend
    starts, rates = pool_adjacent_violators(mated_counts, mated_counts + non_mated_counts)
    with np.errstate(divide="ignore"):
        llr = np.log(rates) - np.log1p(-rates) + np.log(curve.non_mated / curve.mated)
    pooled_counts = np.add.reduceat(mated_counts, starts), np.add.reduceat(non_mated_counts, starts)
    nats = [
        (count[count > 0] @ np.logaddexp(0, sign * llr[count > 0])) / count.sum()
        for count, sign in zip(pooled_counts, (-1, 1))
    ]
    return float(sum(nats) / 2 / np.log(2))


@dataclass(frozen=True)
class Bin:
    """Pairs whose predicted probability of being mated is within one range."""

    low: float
    high: float
    pairs: int
    mated: int
    stated: float | None
    """Mean predicted probability; None without pairs."""
    found: float | None
    """Observed share of mated pairs; None without pairs."""
    interval: tuple[float, float]
    """95 % Wilson interval of ``found``."""


@dataclass(frozen=True)
class Reliability:
    """Reliability diagram: predicted probabilities against observed shares of mated pairs."""

    prior: float
    """Prior probability of a mated pair: the share of mated pairs in the data."""
    bins: list[Bin]
    error: float
    """Mean absolute difference of predicted and observed, weighted by pairs (expected calibration error)."""


def reliability(llr: ArrayLike, mated: ArrayLike, edges: Sequence[float] = EDGES) -> Reliability:
    """Reliability diagram of the posterior probabilities ``sigmoid(llr + logit(prior))``.

    The prior is the share of mated pairs. The default bins are narrow at both ends, where nearly all pairs of
    a good recogniser are.

    Args:
        llr: (n,) natural-log likelihood ratios.
        mated: (n,) true where both images show the same person.
        edges: bin edges, ascending from 0 to 1.

    Raises:
        InputError: a value is NaN, the pairs are of one kind only, or the edges do not ascend from 0 to 1.

    Example:
        >>> result = reliability([-1.0, -1.0, 1.0, 1.0], [0, 1, 1, 1], edges=[0.0, 0.5, 1.0])
        >>> [(b.pairs, b.mated) for b in result.bins], result.prior
        ([(0, 0), (4, 3)], 0.75)
    """
    values, is_mated = check_pairs(llr, mated)
    bin_edges = np.asarray(edges, np.float64)
    if bin_edges.size < 2 or bin_edges[0] != 0 or bin_edges[-1] != 1 or not (np.diff(bin_edges) > 0).all():
        raise InputError(f"reliability: expected edges ascending from 0 to 1, got {list(edges)}")
    n_bins = bin_edges.size - 1
    prior = float(is_mated.mean())
    probability = 0.5 * (1 + np.tanh((values + np.log(prior / (1 - prior))) / 2))
    index = np.minimum(np.searchsorted(bin_edges, probability, side="right") - 1, n_bins - 1)
    count = np.bincount(index, minlength=n_bins)
    n_mated = np.bincount(index, is_mated, minlength=n_bins).astype(int)
    probability_sum = np.bincount(index, probability, minlength=n_bins)
    low, high = wilson(n_mated, count)
    columns = (bin_edges[:-1], bin_edges[1:], count, n_mated, probability_sum, low, high)
    bins = [_bin(*row) for row in zip(*(column.tolist() for column in columns))]
    return Reliability(prior, bins, float(np.abs(probability_sum - n_mated).sum() / is_mated.size))


def _bin(
    low: float, high: float, pairs: int, mated: int, probability_sum: float, lower: float, upper: float
) -> Bin:
    predicted, observed = (probability_sum / pairs, mated / pairs) if pairs else (None, None)
    return Bin(low, high, pairs, mated, predicted, observed, (lower, upper))


def tippett(llr: ArrayLike, mated: ArrayLike, points: int = 200) -> dict[str, list[float]]:
    """Tippett plot: shares of mated and of non-mated pairs whose log-likelihood ratio is at least x.

    Args:
        llr: (n,) natural-log likelihood ratios.
        mated: (n,) true where both images show the same person.
        points: maximum number of points.

    Returns:
        ``llr``, the values x, ascending; and the shares ``mated`` and ``non_mated``.

    Raises:
        InputError: a value is NaN, or the pairs are of one kind only.

    Example:
        >>> tippett([-1.0, 1.0, 2.0], [0, 1, 1])
        {'llr': [-1.0, 1.0, 2.0], 'mated': [1.0, 1.0, 0.5], 'non_mated': [1.0, 0.0, 0.0]}
    """
    values, is_mated = check_pairs(llr, mated)
    distinct = np.unique(values)
    x = distinct if distinct.size <= points else np.linspace(distinct[0], distinct[-1], points)
    shares: dict[str, list[float]] = {"llr": x.tolist()}
    for name, column in (("mated", values[is_mated]), ("non_mated", values[~is_mated])):
        counts: NDArray[Any] = column.size - np.searchsorted(np.sort(column), x)
        shares[name] = (counts / column.size).tolist()
    return shares
