"""The quality of log-likelihood ratios: their cost, how much of it is bad calibration, and where.

Natural logarithms throughout; the cost is in bits, as everywhere.
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
    """Cost of log-likelihood ratios, in bits: 0 is perfect, 1 is knowing nothing, above 1 misleads.

    ``1/2 (mean_mated log2(1 + exp(-llr)) + mean_non_mated log2(1 + exp(llr)))``: Brümmer and du Preez,
    "Application-independent evaluation of speaker detection", Computer Speech & Language 20, 2006. An
    infinite ratio on the wrong side costs infinity.

    Args:
        llr: (n,) natural-log likelihood ratios.
        mated: (n,) true where both images show one person.

    Raises:
        InputError: NaN, shapes that differ, or only one kind of pair.

    Example:
        >>> round(cllr([1.0986123, -1.0986123], [1, 0]), 6)  # ratios 3 and 1/3, each on the right side
        0.415037
    """
    values, kind = check_pairs(llr, mated)
    own = np.logaddexp(0, -values[kind]).mean(), np.logaddexp(0, values[~kind]).mean()
    return float(sum(own) / 2 / np.log(2))


def min_cllr(scores: ArrayLike, mated: ArrayLike) -> float:
    """The smallest Cllr that any rising function of the scores reaches on these very pairs.

    Pool adjacent violators gives that function; what Cllr lies above it is calibration loss. It is chosen on
    the data it is measured on, so with few pairs it flatters.

    Raises:
        InputError: NaN, shapes that differ, or only one kind of pair.

    Example:
        >>> min_cllr([0.1, 0.9], [False, True]), min_cllr([0.9, 0.1], [False, True])
        (0.0, 1.0)
    """
    curve = sort_pairs(scores, mated).curve()
    hits, misses = np.diff(curve.true)[::-1], np.diff(curve.false)[::-1]  # by ascending score
    starts, rates = pool_adjacent_violators(hits, hits + misses)
    with np.errstate(divide="ignore"):
        llr = np.log(rates) - np.log1p(-rates) + np.log(curve.non_mated / curve.mated)
    own = np.add.reduceat(hits, starts), np.add.reduceat(misses, starts)
    cost = [
        (count[count > 0] @ np.logaddexp(0, sign * llr[count > 0])) / count.sum()
        for count, sign in zip(own, (-1, 1))
    ]
    return float(sum(cost) / 2 / np.log(2))


@dataclass(frozen=True)
class Bin:
    """Pairs whose stated chance of being mated lies within one range."""

    low: float
    high: float
    pairs: int
    mated: int
    stated: float | None
    """Mean stated chance; None without pairs."""
    found: float | None
    """Share that is mated."""
    interval: tuple[float, float]
    """Wilson's, at 95 %, of ``found``."""


@dataclass(frozen=True)
class Reliability:
    """What was stated against what was found."""

    prior: float
    """Chance before the score: the share of mated pairs in the data, so that counts stay counts."""
    bins: list[Bin]
    error: float
    """Mean gap between stated and found over bins, weighted by pairs (expected calibration error)."""


def reliability(llr: ArrayLike, mated: ArrayLike, edges: Sequence[float] = EDGES) -> Reliability:
    """Reliability diagram of the posterior chances ``sigmoid(llr + logit(prior))``.

    The bins are narrow at both ends, where nearly all pairs of a good recogniser are.

    Args:
        llr: (n,) natural-log likelihood ratios.
        mated: (n,) true where both images show one person.
        edges: of the bins, ascending from 0 to 1.

    Raises:
        InputError: NaN, only one kind of pair, or edges that do not ascend from 0 to 1.

    Example:
        >>> result = reliability([-1.0, -1.0, 1.0, 1.0], [0, 1, 1, 1], edges=[0.0, 0.5, 1.0])
        >>> [(b.pairs, b.mated) for b in result.bins], result.prior
        ([(0, 0), (4, 3)], 0.75)
    """
    values, kind = check_pairs(llr, mated)
    ends = np.asarray(edges, np.float64)
    if ends.size < 2 or ends[0] != 0 or ends[-1] != 1 or not (np.diff(ends) > 0).all():
        raise InputError(f"reliability: expected edges ascending from 0 to 1, got {list(edges)}")
    prior = float(kind.mean())
    chance = 0.5 * (1 + np.tanh((values + np.log(prior / (1 - prior))) / 2))
    place = np.minimum(np.searchsorted(ends, chance, side="right") - 1, ends.size - 2)
    count = np.bincount(place, minlength=ends.size - 1)
    hits = np.bincount(place, kind, minlength=ends.size - 1).astype(int)
    stated = np.bincount(place, chance, minlength=ends.size - 1)
    low, high = wilson(hits, count)
    columns = (ends[:-1], ends[1:], count, hits, stated, low, high)
    bins = [_bin(*row) for row in zip(*(column.tolist() for column in columns))]
    return Reliability(prior, bins, float(np.abs(stated - hits).sum() / kind.size))


def _bin(low: float, high: float, pairs: int, mated: int, stated: float, least: float, most: float) -> Bin:
    mean, found = (stated / pairs, mated / pairs) if pairs else (None, None)
    return Bin(low, high, pairs, mated, mean, found, (least, most))


def tippett(llr: ArrayLike, mated: ArrayLike, points: int = 200) -> dict[str, list[float]]:
    """Tippett plot: the share of mated and of non-mated pairs whose log LR is at least x.

    Returns:
        ``llr`` (at most ``points`` values, ascending), ``mated`` and ``non_mated`` shares.

    Raises:
        InputError: NaN, or only one kind of pair.

    Example:
        >>> tippett([-1.0, 1.0, 2.0], [0, 1, 1])
        {'llr': [-1.0, 1.0, 2.0], 'mated': [1.0, 1.0, 0.5], 'non_mated': [1.0, 0.0, 0.0]}
    """
    values, kind = check_pairs(llr, mated)
    seen = np.unique(values)
    at = seen if seen.size <= points else np.linspace(seen[0], seen[-1], points)
    shares: dict[str, list[float]] = {"llr": at.tolist()}
    for name, side in (("mated", values[kind]), ("non_mated", values[~kind])):
        above: NDArray[Any] = side.size - np.searchsorted(np.sort(side), at)
        shares[name] = (above / side.size).tolist()
    return shares
