"""False match rates too small to be counted, extrapolated by a generalised Pareto distribution.

The distribution is fitted to the largest scores (the peaks-over-threshold method).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import DecisionRule, ErrorCount
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import Subjects, check_draws

Array = NDArray[Any]

MIN_EXCEEDANCES = 100
"""Minimum number of exceedances to fit a tail."""
_STEPS = 400  # number of values of shape / scale to try
_MAX_RATIO = 2.0  # maximum of shape / scale, in units of 1 / mean


@dataclass(frozen=True, eq=False)
class TailFit:
    """Tail of the score distribution of non-mated pairs.

    The share of pairs whose score reaches a threshold t >= start is
    ``P(score >= t) = share (1 + shape (t - start) / scale)^(-1 / shape)``.

    The generalised Pareto distribution is the limit of most tails above a high threshold. Beyond the largest
    score the rates are extrapolated: they hold if the tail continues as it begins.

    Source: J. Pickands, "Statistical inference using extreme order statistics", Annals of Statistics 3, 1975.

    Attributes:
        start: threshold at which the tail begins.
        fitted: share, scale and shape. With shape < 0 the tail is bounded, with shape 0 exponential.
        drawn: (draws, 3) the same for each draw of the people.
        exceedances: number of pairs above ``start``, on which the tail was fitted.
        pairs: number of all pairs.
        gap: Kolmogorov-Smirnov distance of the exceedances from the fitted distribution.
    """

    start: float
    fitted: tuple[float, float, float]
    drawn: NDArray[np.float64]
    exceedances: int
    pairs: int
    gap: float

    def rate(self, threshold: float) -> float:
        """Share of non-mated pairs that reach a threshold.

        Raises:
            InputError: the threshold is below ``start``.
        """
        return float(self._rates(np.array([self.fitted]), threshold)[0])

    def interval(self, threshold: float, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of `rate` over people.

        Raises:
            InputError: the threshold is below ``start``, or the tail was fitted without draws.
        """
        if not len(self.drawn):
            raise InputError("tail: no interval without draws of people")
        ends = np.quantile(self._rates(self.drawn, threshold), [(1 - level) / 2, (1 + level) / 2])
        return float(ends[0]), float(ends[1])

    def threshold(self, rate: float) -> float:
        """The threshold that a share ``rate`` of the non-mated pairs reaches.

        Raises:
            InputError: the rate is above that of ``start``, where pairs can be counted instead.
        """
        share, scale, shape = self.fitted
        if not 0 < rate <= share:
            raise InputError(
                f"tail: expected a rate within 0 .. {share:.3g}, the share of pairs in the tail, got {rate:g}"
            )
        log_ratio = np.log(share / rate)
        above = log_ratio if abs(shape) < 1e-9 else np.expm1(shape * log_ratio) / shape
        return float(self.start + scale * above)

    def _rates(self, fits: Array, threshold: float) -> NDArray[np.float64]:
        if not threshold >= self.start:
            raise InputError(
                f"tail: the threshold {threshold:.4g} is below the start of the tail, {self.start:.4g}; "
                "count the pairs instead"
            )
        share, scale, shape = fits.T
        return np.asarray(share * _survival((threshold - self.start) / scale, shape))


def _survival(above: Array, shape: Array) -> Array:
    """(n,) survival function of the generalised Pareto distribution of unit scale."""
    is_zero = np.abs(shape) < 1e-9  # the exponential distribution
    safe_shape = np.where(is_zero, 1.0, shape)
    base = np.maximum(1 + safe_shape * above, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(is_zero, np.exp(-above), np.exp(-np.log(base) / safe_shape)))


def fit_tail(
    scores: ArrayLike,
    left: ArrayLike,
    right: ArrayLike,
    *,
    share: float = 1e-3,
    min_start: float = -np.inf,
    draws: int = 1000,
    seed: int = 0,
) -> TailFit:
    """Fit the tail of the scores of non-mated pairs by maximum likelihood, with draws of the people.

    Args:
        scores: (n,) scores of non-mated pairs.
        left: (n,) subject of each pair's left image.
        right: (n,) subject of each pair's right image.
        share: share of the pairs to fit; the tail begins at the corresponding quantile.
        min_start: minimum of the threshold at which the tail begins, if 100 exceedances remain. For evidence
            use 0: below 0 it is a likelihood ratio and above 0 a rarity, so a tail across 0 has the shape of
            neither.
        draws: resamplings of the people, as in `bootstrap_subjects`; 0 for none.
        seed: seed of the draws.

    Raises:
        InputError: a score is NaN, the shapes differ, or there are too few exceedances; the message has the
            number of pairs needed.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> left, right = rng.integers(0, 300, (2, 100_000))
        >>> tail = fit_tail(rng.exponential(size=100_000), left, right, share=0.01, draws=100)
        >>> 11 < tail.threshold(1e-6) < 17  # true value: 13.8
        True
    """
    s = np.asarray(scores, np.float64)
    if s.ndim != 1 or not s.size or np.isnan(s).any() or not 0 < share < 1:
        raise InputError(f"tail: expected (n,) scores, none NaN, and a share within 0 .. 1, got {s.shape}")
    check_draws(draws, seed)
    n_fitted = int(share * s.size)
    if n_fitted < MIN_EXCEEDANCES:
        raise InputError(
            f"tail: a share of {share:g} is {n_fitted} of {s.size} pairs; at least {MIN_EXCEEDANCES} are "
            f"needed, so use {int(np.ceil(MIN_EXCEEDANCES / share))} pairs or a larger share"
        )
    # `start` must leave the minimum number of exceedances above it.
    max_start_index = s.size - MIN_EXCEEDANCES - 1
    ordered = np.partition(s, (s.size - n_fitted - 1, max_start_index))
    start = float(max(ordered[s.size - n_fitted - 1], min(min_start, ordered[max_start_index])))
    rows = np.flatnonzero(s > start)
    above = s[rows] - start
    if rows.size < MIN_EXCEEDANCES or not np.isfinite(above).all():
        raise InputError(
            f"tail: {rows.size} scores are above {start:g}, where the tail begins; at least "
            f"{MIN_EXCEEDANCES} are needed, all of them finite"
        )
    scale, shape = (float(part[0]) for part in _maximum_likelihood(above, np.ones((1, above.size))))
    ascending = np.sort(above)
    steps = np.arange(above.size + 1) / above.size
    fitted_cdf = 1 - _survival(ascending / scale, np.full(above.size, shape))
    gap = float(max(np.abs(fitted_cdf - steps[1:]).max(), np.abs(fitted_cdf - steps[:-1]).max()))
    drawn = np.empty((0, 3))
    if draws:
        people = Subjects(left, right, s.size)
        counts = people.draw(draws, np.random.default_rng(seed))
        a, b = people[rows]
        weights = np.empty((draws, rows.size), np.float32)
        np.multiply(counts.counts[:, a], counts.counts[:, b], out=weights, casting="unsafe")
        total, tail_weight = counts.weigh_all(people), weights.sum(1, dtype=np.float64)
        is_defined = (tail_weight > 0) & (total > 0)
        drawn_share = tail_weight[is_defined] / total[is_defined]
        drawn = np.stack([drawn_share, *_maximum_likelihood(above, weights[is_defined])], axis=1)
    return TailFit(start, (rows.size / s.size, scale, shape), drawn, rows.size, s.size, gap)


def _maximum_likelihood(above: Array, weights: Array) -> tuple[Array, Array]:
    """(scale, shape), each (draws,), from the likelihood profiled over ratio = shape / scale.

    For a given ratio the best shape is the weighted mean of log(1 + ratio above) (Grimshaw, Technometrics 35,
    1993), so all draws share the logarithms. The optimum is refined by a parabola through three ratios.
    """
    mean = float(above.mean())
    min_ratio = -0.95 / float(above.max())
    ratio = np.unique(np.concatenate([
        np.linspace(min_ratio, 0, _STEPS // 4, endpoint=False),
        np.geomspace(1e-3, _MAX_RATIO, _STEPS) / mean,
        -np.geomspace(1e-3, -min_ratio * mean, _STEPS // 2) / mean,
    ]))  # fmt: skip
    total = weights.sum(1, keepdims=True, dtype=np.float64)
    shape = np.stack([weights @ np.log1p(r * above).astype(weights.dtype) for r in ratio], axis=1) / total
    profile = np.log(shape / ratio) + shape  # (draws, ratios), to be minimised
    best = np.clip(profile.argmin(1), 1, ratio.size - 2)
    x = np.stack([ratio[best + step] for step in (-1, 0, 1)])
    y = np.stack([np.take_along_axis(profile, (best + step)[:, None], 1)[:, 0] for step in (-1, 0, 1)])
    left_slope, right_slope = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    bend = right_slope - left_slope
    vertex = (x[0] + x[1]) / 2 - left_slope * (x[2] - x[0]) / 2 / np.where(bend > 0, bend, np.inf)
    optimum = np.clip(vertex, x[0], x[2])
    optimum = np.where(optimum == 0, 1e-9 / mean, optimum)
    best_shape = np.array([w @ np.log1p(r * above) for w, r in zip(weights, optimum)]) / total[:, 0]
    return best_shape / optimum, best_shape


def extrapolated_rule(
    counted: DecisionRule, tails: Sequence[TailFit], alpha: float, *, level: float = 0.95, step: float = 0.05
) -> DecisionRule:
    """Make a decision rule for a false match rate that is too small to be counted.

    ``accept`` is the smallest threshold, in steps of ``step``, at which the upper end of the interval of
    every tail is at most ``alpha``. ``reject`` and ``min_confidence`` are those of the counted rule.

    Args:
        counted: the rule with the smallest false match rate that could be counted.
        tails: tails of the same score, one per condition.
        alpha: bound on the false match rate, smaller than that of ``counted``.
        level: confidence level of the intervals.
        step: distance of the thresholds to try.

    Raises:
        InputError: ``alpha`` is not smaller than that of the counted rule, there are no tails, a tail has no
            draws, or a tail does not fall to the rate within 10,000 steps.

    Example:
        >>> from spherecf.calibration import DecisionRule
        >>> rng = np.random.default_rng(0)
        >>> left, right = rng.integers(0, 300, (2, 100_000))
        >>> tail = fit_tail(rng.exponential(size=100_000), left, right, share=0.01, draws=100)
        >>> counted = DecisionRule("evidence", None, "kappa", 7.0, 2.0, 0.0, "fmr", 1e-3, 0.05)
        >>> rule = extrapolated_rule(counted, [tail], 1e-6)
        >>> rule.accept > 13.8, rule.extrapolated[1] <= 1e-6
        (True, True)
    """
    if not tails or counted.accept is None or not 0 < alpha < counted.alpha:
        raise InputError(
            f"extrapolated_rule: expected tails, and a rate below the counted {counted.alpha:g}; got "
            f"{alpha:g}"
        )
    first = max([counted.accept, *(tail.start for tail in tails)])
    for accept in first + step * np.arange(10_000):
        intervals = [tail.interval(float(accept), level) for tail in tails]
        worst = int(np.argmax([high for _, high in intervals]))
        upper = intervals[worst][1]
        if upper <= alpha:
            name = "false matches of non-mated pairs, extrapolated"
            return replace(
                counted, accept=float(accept), alpha=alpha, delta=(1 - level) / 2,
                extrapolated=intervals[worst], tested_on="the tail of all pairs of the worst condition",
                counts=(ErrorCount(name, 0, tails[worst].pairs, upper), *counted.counts[1:]),
            )  # fmt: skip
    raise InputError(f"extrapolated_rule: the tail is too heavy to find a threshold for {alpha:g}")
