"""Intervals by drawing subjects, not pairs: pairs that share a person are not independent.

Vertex bootstrap: Snijders and Borgatti, "Non-parametric standard errors and tests for network statistics",
Connections 22(2), 1999; for face verification Fogliato, Patil and Perona, "Confidence intervals for error
rates in 1:1 matching tasks", IJCV 2024 (arXiv 2306.01198). Subjects are drawn with replacement; a pair of
two subjects counts as often as the product of their draws, a pair within one subject as often as that
subject was drawn.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError

Statistic = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]

_BLOCK_WEIGHTS = 1 << 18  # weights held at once: 2 MB, so that all passes over a block stay in the cache


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a bootstrapped statistic."""

    low: float
    high: float
    below_zero: float
    """Fraction of draws below 0 (for differences)."""
    undefined: int = 0
    """Draws without a value, e.g. because no mated pair was drawn."""


def bootstrap_subjects(
    statistic: Statistic, left: ArrayLike, right: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Values of a statistic under ``draws`` resamplings of the subjects.

    Args:
        statistic: maps pair weights (block, n) to named values (block,); called on blocks of draws.
        left: (n,) subject (any hashable dtype) of each pair's left image.
        right: (n,) subject of the right image.
        draws: number of resamplings.
        seed: of NumPy's PCG64; the result does not depend on how the draws are blocked.

    Returns:
        name -> (draws,) float64.

    Raises:
        InputError: shapes differ, fewer than two subjects, or no draws.

    Example:
        >>> values = bootstrap_subjects(lambda w: {"pairs": w.sum(1)}, ["a", "b"], ["b", "b"], draws=4)
        >>> values["pairs"].shape
        (4,)
    """
    a, b = np.asarray(left), np.asarray(right)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"subjects: expected two (n,) arrays, got {a.shape} and {b.shape}")
    names, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    if len(names) < 2 or draws < 1:
        raise InputError(f"bootstrap: expected at least 2 subjects and 1 draw, got {len(names)} and {draws}")
    a, b = codes[: a.size], codes[a.size :]
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    counts = counts.astype(np.float64)
    same = a == b
    found: dict[str, list[NDArray[Any]]] = {}
    block = max(1, _BLOCK_WEIGHTS // a.size)
    for start in range(0, draws, block):
        drawn = counts[start : start + block]
        weights = drawn[:, a]
        weights[:, ~same] *= drawn[:, b[~same]]
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw may lack a kind of pair: NaN, counted
            for name, values in statistic(weights).items():
                found.setdefault(name, []).append(np.asarray(values, np.float64))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def interval(values: NDArray[Any], level: float = 0.95) -> Interval:
    """Percentile interval, undefined draws left out and counted.

    Example:
        >>> round(interval(np.arange(-10, 91) / 1.0).low, 6)
        -7.5
    """
    defined = values[np.isfinite(values)]
    if not defined.size:
        return Interval(float("nan"), float("nan"), float("nan"), int(values.size))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), float((defined < 0).mean()), int(values.size - defined.size))
