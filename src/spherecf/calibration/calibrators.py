"""Calibrators: from a score to a log-likelihood ratio, and from kappa to a percentile."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration.checks import (
    Numbers,
    check_counts,
    check_radius,
    finite,
    llr_limits,
    real_numbers,
    split_scores,
)
from spherecf.common.parsing import checked
from spherecf.errors import InputError


def pool_adjacent_violators(positives: ArrayLike, totals: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Isotonic regression of rates: the non-decreasing rates closest to ``positives / totals``.

    "Closest" means the smallest weighted sum of squares, and also the largest likelihood. Neighbouring groups
    whose rates do not increase are pooled until all rates increase (Ayer et al., Annals of Mathematical
    Statistics 26, 1955). scipy finds the groups to pool; the rates are computed from their counts.

    Args:
        positives: (n,) number of positives of each group, in the order in which the rates should increase.
        totals: (n,) size of each group, > 0.

    Returns:
        (starts, rates), both (blocks,). Block b consists of the groups from ``starts[b]`` up to the next
        start. The rates increase strictly.

    Raises:
        InputError: there are no groups, shapes differ, or a group is empty.

    Example:
        >>> starts, rates = pool_adjacent_violators([0, 1, 0, 1], [1, 1, 1, 1])
        >>> starts.tolist(), rates.tolist()
        ([0, 1, 3], [0.0, 0.5, 1.0])
    """
    from scipy.optimize import isotonic_regression  # imported only to fit: it takes a third of a second

    positive, total = np.asarray(positives, np.float64), np.asarray(totals, np.float64)
    if positive.ndim != 1 or positive.shape != total.shape or not positive.size or not (total > 0).all():
        raise InputError(
            f"pool_adjacent_violators: expected two (n,) arrays, n >= 1, of non-empty groups; got "
            f"{positive.shape} and {total.shape}"
        )
    starts = isotonic_regression(positive / total, weights=total).blocks[:-1]
    while True:
        rates = np.add.reduceat(positive, starts) / np.add.reduceat(total, starts)
        increases = np.append(True, np.diff(rates) > 0)
        if increases.all():
            return starts, rates
        starts = starts[increases]  # scipy's means are rounded, so it may separate blocks of equal rates


@dataclass(frozen=True)
class IsotonicCalibrator:
    """The log-likelihood ratio as a non-decreasing function of the score, without other assumptions.

    The function is constant within a block of pooled scores and beyond the scores of the fit, and linear
    between blocks.

    Args:
        score: name of the score: "cosine", "mls", ...
        radius: r of the mutual likelihood score; None for other scores.
        knots: first and last score of each block, ascending.
        llr: natural-log likelihood ratios at the knots, non-decreasing and finite.
        mated: number of mated pairs of the fit.
        non_mated: number of non-mated pairs of the fit.

    Raises:
        InputError: knots do not ascend, ratios decrease or are not finite, or mated or non-mated pairs are
            missing.

    Example:
        >>> steps = IsotonicCalibrator.fit([0.1, 0.2, 0.5, 0.4, 0.7], [0, 0, 0, 1, 1], score="cosine")
        >>> steps([0.0, 0.45, 9.0]).round(3).tolist()
        [-0.875, 0.223, 0.916]
    """

    kind: ClassVar[str] = "isotonic"

    score: str
    radius: float | None
    knots: tuple[float, ...]
    llr: tuple[float, ...]
    mated: int
    non_mated: int

    def __post_init__(self) -> None:
        x, y = np.asarray(self.knots), np.asarray(self.llr)
        ascending = x.ndim == 1 and x.shape == y.shape and x.size and (np.diff(x) > 0).all()
        if not (ascending and (np.diff(y) >= 0).all() and np.isfinite([*x, *y]).all()):
            raise InputError(f"{self.score}: expected ascending knots and finite log-likelihood ratios")
        check_radius(self.score, self.radius)
        check_counts(self.score, 1, mated=self.mated, non_mated=self.non_mated)

    @classmethod
    def fit(
        cls, scores: ArrayLike, mated: ArrayLike, *, score: str, radius: float | None = None
    ) -> "IsotonicCalibrator":
        """Fit by pooling adjacent violators (Zadrozny and Elkan, KDD 2002); tied scores form one group.

        One mated and one non-mated pair are added beyond each end (the rule of succession, as in Brümmer's
        BOSARIS toolkit). No ratio is then infinite, and the ends are at what the number of pairs supports:
        `llr_limits`. The ratio of a block is its share of the mated pairs over its share of the non-mated
        pairs.

        Args:
            scores: (n,) scores, larger = more similar.
            mated: (n,) true for mated pairs.
            score: name of the score.
            radius: r of the mutual likelihood score; None for other scores.

        Raises:
            InputError: scores are NaN or infinite, or mated or non-mated pairs are missing.
        """
        mated_scores, non_mated_scores = split_scores(scores, mated)
        n_mated, n_non_mated = mated_scores.size, non_mated_scores.size
        values, group = np.unique(np.concatenate([mated_scores, non_mated_scores]), return_inverse=True)
        totals = np.bincount(group)
        positives = np.bincount(group[:n_mated], minlength=values.size)
        starts, rates = pool_adjacent_violators(np.r_[1, positives, 1], np.r_[2, totals, 2])
        llr = np.log(rates / (1 - rates)) + np.log((n_non_mated + 2) / (n_mated + 2))
        first = np.maximum(starts - 1, 0)  # the added pairs are group 0 and the last group
        last = np.minimum(np.append(starts[1:], values.size + 2) - 2, values.size - 1)
        has_scores = first <= last  # False for a block of added pairs only
        ends = np.stack([values[first[has_scores]], values[last[has_scores]]], axis=1)
        knots, index = np.unique(ends, return_index=True)
        llr = np.repeat(llr[has_scores], 2)[index]
        return cls(score, radius, tuple(knots.tolist()), tuple(llr.tolist()), n_mated, n_non_mated)

    def __call__(self, scores: Numbers) -> NDArray[Any]:
        """The natural-log likelihood ratio of each score, in the same shape.

        Raises:
            InputError: a score is NaN.
        """
        return np.asarray(np.interp(finite(scores), self.knots, self.llr))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"kind": self.kind, **asdict(self), "knots": list(self.knots), "llr": list(self.llr)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "IsotonicCalibrator":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "isotonic")


Array = NDArray[Any]

_MAX_STEPS = 200


@dataclass(frozen=True)
class LogisticCalibrator:
    """The log-likelihood ratio as a line, llr = slope * score + offset, clipped to `llr_limits`.

    Args:
        score: name of the score: "cosine", "mls", ...
        radius: r of the mutual likelihood score; None for other scores.
        slope: > 0, in nats per unit of the score.
        offset: in nats.
        mated: number of mated pairs of the fit.
        non_mated: number of non-mated pairs of the fit.
        separated: whether the scores of mated and non-mated pairs did not overlap, so that the fit had to be
            regularised. The slope is then a cautious guess, not a measurement.

    Raises:
        InputError: the slope is not positive, or mated or non-mated pairs are missing.

    Example:
        >>> scores = [0.1, 0.2, 0.5, 0.4, 0.7, 0.9]
        >>> line = LogisticCalibrator.fit(scores, [0, 0, 0, 1, 1, 1], score="cosine")
        >>> line([0.1, 0.9]).round(2).tolist(), line.separated  # clipped: three pairs of each kind are few
        ([-1.39, 1.39], False)
    """

    kind: ClassVar[str] = "logistic"

    score: str
    radius: float | None
    slope: float
    offset: float
    mated: int
    non_mated: int
    separated: bool = False

    def __post_init__(self) -> None:
        check_radius(self.score, self.radius)
        check_counts(self.score, 1, mated=self.mated, non_mated=self.non_mated)
        if not (0 < self.slope < np.inf and np.isfinite(self.offset)):
            raise InputError(
                f"{self.score}: expected a likelihood ratio that rises with the score, got slope "
                f"{self.slope:g}; are mated and non-mated pairs swapped, or the scores distances?"
            )

    @classmethod
    def fit(
        cls,
        scores: ArrayLike,
        mated: ArrayLike,
        *,
        score: str,
        radius: float | None = None,
        prior: float = 0.5,
    ) -> "LogisticCalibrator":
        """Fit by prior-weighted logistic regression.

        It minimises, by damped Newton steps in float64, with t = logit(prior) (Brümmer and du Preez, Computer
        Speech & Language 20, 2006),

            prior * mean over mated pairs of log(1 + exp(-(llr + t)))
            + (1 - prior) * mean over non-mated pairs of log(1 + exp(llr + t)).

        There is no regularisation unless the scores of mated and non-mated pairs do not overlap and the slope
        would be infinite. The targets 1 and 0 are then replaced by (m + 1) / (m + 2) and 1 / (n + 2) for m
        mated and n non-mated pairs (Platt, 1999), and ``separated`` is true.

        Args:
            scores: (n,) scores, larger = more similar.
            mated: (n,) true for mated pairs.
            score: name of the score.
            radius: r of the mutual likelihood score; None for other scores.
            prior: weight of the mated pairs, 0 < prior < 1.

        Raises:
            InputError: scores are NaN or infinite, all equal or larger for non-mated pairs, or mated or
                non-mated pairs are missing.
        """
        s = real_numbers(scores, "scores").astype(np.float64, copy=False)
        mated_scores, non_mated_scores = split_scores(s, mated)
        counts = n_mated, n_non_mated = mated_scores.size, non_mated_scores.size
        if not 0 < prior < 1:
            raise InputError(f"prior: expected 0 < prior < 1, got {prior}")
        centre, deviation = float(s.mean()), float(s.std())
        if s.min() == s.max() or not deviation > 0:  # the deviation of equal numbers may be a rounding error
            raise InputError(f"{score}: all {s.size} scores are equal; there is nothing to calibrate")
        separated = bool(
            mated_scores.min() >= non_mated_scores.max() or non_mated_scores.min() >= mated_scores.max()
        )
        high, low = (1 - 1 / (n_mated + 2), 1 / (n_non_mated + 2)) if separated else (1.0, 0.0)
        x = (np.concatenate([mated_scores, non_mated_scores]) - centre) / deviation
        target = np.repeat([high, low], counts)
        weight = np.repeat([prior / n_mated, (1 - prior) / n_non_mated], counts)
        slope, offset = _fit_logistic(x, target, weight)
        offset -= float(np.log(prior / (1 - prior)))
        return cls(
            score, radius, slope / deviation, offset - slope * centre / deviation, *counts, separated
        )  # fmt: skip

    def __call__(self, scores: Numbers) -> Array:
        """The natural-log likelihood ratio of each score, in the same shape.

        Raises:
            InputError: a score is NaN.
        """
        llr = self.slope * finite(scores) + self.offset
        return np.asarray(np.clip(llr, *llr_limits(self.mated, self.non_mated)))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "LogisticCalibrator":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "logistic")


def _fit_logistic(x: Array, target: Array, weight: Array) -> tuple[float, float]:
    """Slope and offset of the weighted logistic regression of ``target`` on x, by damped Newton steps.

    The solution is finite if the classes overlap or the targets are within (0, 1).
    """
    design = np.stack([x, np.ones_like(x)], axis=1)  # (n, 2)

    def loss(theta: Array) -> float:
        z = design @ theta
        return float(weight @ (np.logaddexp(0, z) - target * z))

    theta = np.zeros(2)
    for _ in range(_MAX_STEPS):
        z = design @ theta
        probability = 0.5 * (1 + np.tanh(z / 2))
        gradient = design.T @ (weight * (probability - target))
        hessian = design.T @ (design * (weight * probability * (1 - probability))[:, None])
        try:
            step = np.linalg.solve(hessian, gradient)
        except np.linalg.LinAlgError:  # beside an outlier, the other scores are equal to rounding
            break
        current_loss, step_size = loss(theta), 1.0
        if gradient @ step <= 1e-14 * current_loss:  # the remaining gain is below rounding: take it and stop
            return float(theta[0] - step[0]), float(theta[1] - step[1])
        while loss(theta - step_size * step) > current_loss:
            step_size /= 2
        theta = theta - step_size * step
    raise InputError("logistic calibration did not converge; check the scores, e.g. for outliers")


_KNOTS = 201  # one per half percent
_MAX_LOG = np.log(np.finfo(np.float64).max)  # limit of |log kappa|, as kappa is a float64


@dataclass(frozen=True)
class KappaScale:
    """Maps kappa to a percentile of a reference population, and to an integer 0 .. 100.

    ``percent[i]`` is the percentage of reference images with a log kappa below ``log_kappa[i]``, plus half of
    those with exactly that value (the empirical distribution function at the knot). Between the knots it is
    linear in log kappa. The meaning of kappa itself does not depend on a population:
    ``mean_resultant_length(kappa, dim)`` of `spherecf.vmf` is A_d(kappa), the expected cosine to the person's
    prototype.

    Args:
        dim: dimension of the embeddings; the same kappa means a different cosine in another dimension.
        population: description of the reference images.
        images: number of reference images.
        log_kappa: knots, ascending.
        percent: percentile of each knot, non-decreasing, within 0 .. 100.

    Raises:
        InputError: knots do not ascend or are out of the range of log kappa, there are no images, or the
            dimension is below 2.

    Example:
        >>> scale = KappaScale.fit([10.0, 20.0, 40.0, 80.0], dim=128, population="four faces")
        >>> scale.percentile([5.0, 10.0, 28.2843, 80.0, 99.0]).round(1).tolist()
        [0.0, 12.5, 50.0, 87.5, 100.0]
        >>> scale.iso([28.2843, float("nan")]).tolist()
        [50, -1]
    """

    dim: int
    population: str
    images: int
    log_kappa: tuple[float, ...]
    percent: tuple[float, ...]

    def __post_init__(self) -> None:
        x, y = np.asarray(self.log_kappa), np.asarray(self.percent)
        ascending = x.ndim == 1 and x.shape == y.shape and x.size and (np.diff(x) > 0).all()
        if not (ascending and (np.diff(y) >= 0).all() and y[0] >= 0 and y[-1] <= 100):
            raise InputError("KappaScale: expected ascending knots and percents within 0 .. 100")
        if not (x[0] > -_MAX_LOG and x[-1] < _MAX_LOG):
            raise InputError(f"KappaScale: expected finite log kappa, got {x[0]:g} to {x[-1]:g}")
        check_counts("KappaScale", 2, dim=self.dim)
        check_counts("KappaScale", 1, images=self.images)

    @classmethod
    def fit(cls, kappa: ArrayLike, *, dim: int, population: str) -> "KappaScale":
        """The scale of a reference population.

        Args:
            kappa: concentrations of its images, any shape.
            dim: dimension of the embeddings.
            population: description of the images.

        Raises:
            InputError: there are no images, or a kappa is not positive and finite.
        """
        values = real_numbers(kappa, "kappa").astype(np.float64).reshape(-1)
        bad = ~((values > 0) & np.isfinite(values))
        if not values.size or bad.any():
            raise InputError(
                "kappa: expected positive finite concentrations of at least one image; of "
                f"{values.size} values {int(bad.sum())} are not. Leave out images that could not be assessed"
            )
        distinct, counts = np.unique(np.log(values), return_counts=True)
        percent = 100 * (np.cumsum(counts) - counts / 2) / values.size
        if distinct.size > _KNOTS:
            knots = np.linspace(percent[0], percent[-1], _KNOTS)
            index = np.unique(np.searchsorted(percent, knots))
            distinct, percent = distinct[index], percent[index]
        return cls(int(dim), population, values.size, tuple(distinct.tolist()), tuple(percent.tolist()))

    def percentile(self, kappa: Numbers) -> NDArray[Any]:
        """The percentage of the population with a lower kappa, 0 .. 100, in the same shape.

        NaN, a failure to assess, stays NaN.

        Raises:
            InputError: a concentration is negative or infinite.
        """
        values = real_numbers(kappa, "kappa").astype(np.float64, copy=False)
        if (values < 0).any() or np.isinf(values).any():
            raise InputError("kappa: expected concentrations >= 0 and finite (NaN for a failure to assess)")
        with np.errstate(divide="ignore"):
            percentile = np.interp(np.log(values), self.log_kappa, self.percent, left=0.0, right=100.0)
        return np.asarray(percentile)

    def kappa_at(self, percent: Numbers) -> NDArray[Any]:
        """The concentration at a percentile, clipped to the range of the reference images; same shape."""
        return np.asarray(np.exp(np.interp(real_numbers(percent, "percent"), self.percent, self.log_kappa)))

    def iso(self, kappa: Numbers) -> NDArray[np.int64]:
        """A quality score in the style of ISO/IEC 29794-1: the percentile rounded to an integer, 0 .. 100.

        NaN, a failure to assess, gives -1, which is not part of the scale and does not mean the lowest
        quality.

        Raises:
            InputError: a concentration is negative or infinite.
        """
        percentile = self.percentile(kappa)
        return np.where(np.isnan(percentile), -1, np.floor(np.nan_to_num(percentile) + 0.5)).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"log_kappa": list(self.log_kappa), "percent": list(self.percent)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "KappaScale":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "kappa")
