"""Rates beyond what was counted: peaks over a threshold, and a generalised Pareto distribution for them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import DecisionRule, ErrorCount
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import Draws, Subjects, total_weight

Array = NDArray[Any]

LEAST_EXCEEDANCES = 100
"""Exceedances that a tail takes."""
_STEPS = 400  # values of shape / scale that are tried
_STEEPEST = 2.0  # largest shape / scale, in units of 1 / mean


@dataclass(frozen=True, eq=False)
class TailFit:
    """Tail of the scores of non-mated pairs: the share that reaches a threshold far out.

    ``P(score >= t) = share (1 + shape (t - start) / scale)^(-1 / shape)``.

    The limit of most tails from a high threshold on: Pickands, Annals of Statistics 3, 1975. What it says
    beyond the largest score is extrapolated: it holds as far as the tail goes on as it began.

    Attributes:
        start: threshold from which on it holds.
        fitted: share, scale and shape; shape < 0 ends somewhere, 0 is exponential.
        drawn: (draws, 3) the same under each draw of the people.
        exceedances: pairs it was fitted on.
        pairs: all of them.
        gap: largest distance of the exceedances' distribution from the fitted one (Kolmogorov-Smirnov).
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
            InputError: a threshold below ``start``.
        """
        return float(self._rates(np.array([self.fitted]), threshold)[0])

    def interval(self, threshold: float, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of `rate` over people.

        Raises:
            InputError: a threshold below ``start``, or a fit without draws.
        """
        if not len(self.drawn):
            raise InputError("tail: no interval without draws of people")
        ends = np.quantile(self._rates(self.drawn, threshold), [(1 - level) / 2, (1 + level) / 2])
        return float(ends[0]), float(ends[1])

    def threshold(self, rate: float) -> float:
        """The threshold that a share of ``rate`` of the non-mated pairs reaches.

        Raises:
            InputError: a rate above that of ``start``: count it.
        """
        share, scale, shape = self.fitted
        if not 0 < rate <= share:
            raise InputError(f"tail: expected a rate within 0 .. {share:.3g}, where it begins, got {rate:g}")
        steps = np.log(share / rate)
        return float(self.start + scale * (steps if abs(shape) < 1e-9 else np.expm1(shape * steps) / shape))

    def _rates(self, fits: Array, threshold: float) -> NDArray[np.float64]:
        if not threshold >= self.start:
            raise InputError(
                f"tail: it begins at {self.start:.4g}, the threshold is {threshold:.4g}: count it"
            )
        share, scale, shape = fits.T
        return np.asarray(share * _survival((threshold - self.start) / scale, shape))


def _survival(above: Array, shape: Array) -> Array:
    """(n,) share of a generalised Pareto distribution of unit scale that is above."""
    near = np.abs(shape) < 1e-9
    safe = np.where(near, 1.0, shape)
    inside = np.maximum(1 + safe * above, 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.where(near, np.exp(-above), np.exp(-np.log(inside) / safe)))


def fit_tail(
    scores: ArrayLike,
    left: ArrayLike,
    right: ArrayLike,
    *,
    share: float = 1e-3,
    least: float = -np.inf,
    draws: int = 1000,
    seed: int = 0,
) -> TailFit:
    """Fit the largest scores of non-mated pairs by maximum likelihood, and again under draws of the people.

    Args:
        scores: (n,) of pairs of two people.
        left: (n,) subject of each pair's left image.
        right: (n,) of its right image.
        share: of the pairs that is fitted; the tail begins at that quantile.
        least: it begins at this threshold or above, if that leaves 100 exceedances. Evidence below 0 is a
            likelihood ratio and above it a rarity, so a tail across 0 has the shape of neither.
        draws: resamplings of the people, as `bootstrap_subjects`; 0 for none.
        seed: of them.

    Raises:
        InputError: NaN, shapes that differ, or too few exceedances; the message says how many pairs it takes.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> who = rng.integers(0, 300, (2, 100_000))
        >>> tail = fit_tail(rng.exponential(size=100_000), *who, share=0.01, draws=100)
        >>> 11 < tail.threshold(1e-6) < 17  # in truth 13.8
        True
    """
    s = np.asarray(scores, np.float64)
    if s.ndim != 1 or not s.size or np.isnan(s).any() or not 0 < share < 1:
        raise InputError(f"tail: expected (n,) scores, none NaN, and a share within 0 .. 1, got {s.shape}")
    wanted = int(share * s.size)
    if wanted < LEAST_EXCEEDANCES:
        raise InputError(
            f"tail: {wanted} of {s.size} pairs are its largest {share:g}; it takes {LEAST_EXCEEDANCES} "
            f"exceedances, so {int(np.ceil(LEAST_EXCEEDANCES / share))} pairs, or a larger share"
        )
    enough = s.size - LEAST_EXCEEDANCES - 1
    ordered = np.partition(s, (s.size - wanted - 1, enough))
    start = float(max(ordered[s.size - wanted - 1], min(least, ordered[enough])))
    rows = np.flatnonzero(s > start)
    above = s[rows] - start
    if rows.size < LEAST_EXCEEDANCES or not np.isfinite(above).all():
        raise InputError(
            f"tail: {rows.size} scores are above {start:g}, where the tail begins; it takes "
            f"{LEAST_EXCEEDANCES}, all of them finite"
        )
    scale, shape = (float(part[0]) for part in _likeliest(above, np.ones((1, above.size))))
    ascending = np.sort(above)
    steps = np.arange(above.size + 1) / above.size
    found = 1 - _survival(ascending / scale, np.full(above.size, shape))
    gap = float(max(np.abs(found - steps[1:]).max(), np.abs(found - steps[:-1]).max()))
    drawn = np.empty((0, 3))
    if draws:
        people = Subjects(left, right, s.size)
        odds = np.full(people.count, 1 / people.count)
        counts = Draws(np.random.default_rng(seed).multinomial(people.count, odds, draws))
        a, b = people[rows]
        weights = np.empty((draws, rows.size), np.float32)
        np.multiply(counts.counts[:, a], counts.counts[:, b], out=weights, casting="unsafe")
        total, own = total_weight(counts, people, s.size), weights.sum(1, dtype=np.float64)
        some = (own > 0) & (total > 0)
        drawn = np.stack([own[some] / total[some], *_likeliest(above, weights[some])], axis=1)
    return TailFit(start, (rows.size / s.size, scale, shape), drawn, rows.size, s.size, gap)


def _likeliest(above: Array, weights: Array) -> tuple[Array, Array]:
    """(scale, shape), each (draws,), by the likelihood profiled over ratio = shape / scale.

    For a given ratio the best shape is the mean of log(1 + ratio above): Grimshaw, Technometrics 35, 1993. So
    all draws share the logarithms. Between the ratios tried the best one is that of a parabola.
    """
    mean = float(above.mean())
    least = -0.95 / float(above.max())
    ratio = np.unique(np.concatenate([
        np.linspace(least, 0, _STEPS // 4, endpoint=False), np.geomspace(1e-3, _STEEPEST, _STEPS) / mean,
        -np.geomspace(1e-3, -least * mean, _STEPS // 2) / mean,
    ]))  # fmt: skip
    total = weights.sum(1, keepdims=True, dtype=np.float64)
    shape = np.stack([weights @ np.log1p(r * above).astype(weights.dtype) for r in ratio], axis=1) / total
    profile = np.log(shape / ratio) + shape  # (draws, ratios), to be minimised
    best = np.clip(profile.argmin(1), 1, ratio.size - 2)
    x = np.stack([ratio[best + step] for step in (-1, 0, 1)])
    y = np.stack([np.take_along_axis(profile, (best + step)[:, None], 1)[:, 0] for step in (-1, 0, 1)])
    first, second = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    bent = second - first
    turn = (x[0] + x[1]) / 2 - first * (x[2] - x[0]) / 2 / np.where(bent > 0, bent, np.inf)
    at = np.clip(turn, x[0], x[2])
    at = np.where(at == 0, 1e-9 / mean, at)
    own = np.array([w @ np.log1p(r * above) for w, r in zip(weights, at)]) / total[:, 0]
    return own / at, own


def extrapolated_rule(
    counted: DecisionRule, tails: Sequence[TailFit], alpha: float, *, level: float = 0.95, step: float = 0.05
) -> DecisionRule:
    """A rule for a rate that is smaller than could be counted, from one that was counted.

    ``accept`` is the smallest threshold at which the upper end of every tail's interval keeps ``alpha``.
    ``reject`` and the floor are those of the counted rule.

    Args:
        counted: the strictest rule that was counted.
        tails: of the same score, one per condition.
        alpha: bound on the false match rate, below that of ``counted``.
        level: of the intervals.
        step: between the thresholds tried.

    Raises:
        InputError: a rate that was counted, no tails, tails without draws, or a tail that does not fall to
            the rate within 10,000 steps.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> who = rng.integers(0, 300, (2, 100_000))
        >>> tail = fit_tail(rng.exponential(size=100_000), *who, share=0.01, draws=100)
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
        ends = [tail.interval(float(accept), level) for tail in tails]
        worst = int(np.argmax([high for _, high in ends]))
        if ends[worst][1] <= alpha:
            tail = tails[worst]
            seen = ErrorCount("false matches of non-mated pairs, extrapolated", 0, tail.pairs, ends[worst][1])
            return replace(
                counted, accept=float(accept), alpha=alpha, delta=(1 - level) / 2, extrapolated=ends[worst],
                tested_on="the tail of all pairs of the worst condition", counts=(seen, *counted.counts[1:]),
            )  # fmt: skip
    raise InputError(f"extrapolated_rule: the tail is too heavy to tell a threshold for {alpha:g}")
