"""Evidence of a pair given the kappas of both sides: a likelihood ratio and the rarity of its cosine."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration.checks import (
    Numbers,
    check_counts,
    check_radius,
    check_shares,
    finite,
    llr_limits,
    split_scores,
)
from spherecf.common.parsing import checked
from spherecf.errors import InputError

Array = NDArray[Any]
Sides = tuple[Numbers, Numbers]
"""Values for the left and for the right side of pairs."""

_TAIL = 0.05  # share of the non-mated pairs on which the tail is fitted
_MIN_TAIL_PAIRS = 100  # in the tail, all conditions together
_SMOOTHING = 0.004  # width, in cosines, over which the kink of the quantile loss is smoothed
_SHAPE_BOUNDS = (-0.4, 0.4)  # of the tail, well beyond the shapes that cosines have
_IMPOSSIBLE = 1e10  # loss of a tail that ends before the largest cosine
_OPTIONS = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-9}


@dataclass(frozen=True)
class ConditionalCalibrator:
    """Likelihood ratio, rarity and evidence of a pair, given its scores and the concentrations of both sides.

    With x the mutual likelihood score minus ``neutral``, c the cosine, and a, b, u, v polynomials in both log
    concentrations (a and u of second order, b and v without the square of their sum)::

        llr      = a + softplus(b) x
        rarity   = -log P(a non-mated pair with the same concentrations has a cosine >= c)
                 = -log(tail) + log(1 + shape (c - u) / exp(v)) / shape      for c >= u
        evidence = min(rarity, 2.5 llr) if llr > 0, else llr

    The rarity is a peaks-over-threshold model: a share ``tail`` of the non-mated pairs exceeds the threshold
    u at any concentrations, and the excesses have a generalised Pareto distribution (Pickands, Annals of
    Statistics 3, 1975; with covariates: Davison and Smith, JRSS B 52, 1990). A single threshold on the rarity
    therefore gives nearly the same false match rate at any image quality, which a threshold on the score or
    the ratio does not. All three values increase with the cosine. The rarity is limited to 2.5 llr, because
    images with the same degradation are more similar than their concentrations account for.

    Args:
        score: name of the evidence: "evidence", "evidence-template", ...
        radius: r of the mutual likelihood score.
        neutral: mutual likelihood score of two sides with kappa = 0, which carry no information.
        roles: whether left and right are of different kinds, a template and an image. If not, they can be
            swapped.
        left: smallest and largest log concentration of the fit on the left; others are clipped to this range.
        right: the same on the right.
        offset: coefficients of a.
        slope: coefficients of b.
        start: coefficients of u.
        spread: coefficients of v.
        shape: shape of the tail: it is bounded for shape < 0, and heavier than exponential for shape > 0.
        tail: share of the non-mated pairs that exceed u.
        mated: number of mated pairs of the fit.
        non_mated: number of non-mated pairs of the fit.

    Raises:
        InputError: the number of coefficients does not fit ``roles``, ranges do not ascend, parameters are
            not finite, or mated or non-mated pairs are missing.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> log_kappa, mated = rng.uniform(3, 5, (2, 20000)), np.arange(20000) % 4 == 0
        >>> cosine = 0.1 * rng.normal(size=20000) + mated * 0.1 * log_kappa.sum(0) / 2
        >>> mls = cosine * np.exp(log_kappa.mean(0)) / 10
        >>> calibrator = ConditionalCalibrator.fit(
        ...     mls, cosine, np.exp(log_kappa), mated, score="evidence", radius=64.0, neutral=0.0
        ... )
        >>> calibrator.llr(5.0, (100.0, 100.0)) > calibrator.llr(3.0, (100.0, 100.0)) > 0
        np.True_
        >>> calibrator.rarity([0.164, 0.233], (50.0, 50.0)).round(0).tolist()  # a share of 1 in 20, 1 in 100
        [3.0, 5.0]
    """

    kind: ClassVar[str] = "conditional"

    score: str
    radius: float | None
    neutral: float
    roles: bool
    left: tuple[float, float]
    right: tuple[float, float]
    offset: tuple[float, ...]
    slope: tuple[float, ...]
    start: tuple[float, ...]
    spread: tuple[float, ...]
    shape: float
    tail: float
    mated: int
    non_mated: int

    def __post_init__(self) -> None:
        check_radius(self.score, self.radius)
        check_counts(self.score, 1, mated=self.mated, non_mated=self.non_mated)
        check_shares(self.score, tail=self.tail)
        for name, terms in zip(("offset", "slope", "start", "spread"), 2 * _term_counts(self.roles)):
            coefficients = getattr(self, name)
            if len(coefficients) != terms or not np.isfinite(coefficients).all():
                raise InputError(f"{self.score}: expected {terms} finite coefficients of the {name}")
        for low, high in (self.left, self.right):
            if not -np.inf < low <= high < np.inf:
                raise InputError(f"{self.score}: expected ascending log concentrations, got {low} to {high}")
        if not (np.isfinite(self.neutral) and abs(self.shape) < 1 and 0 < self.tail < 1):
            raise InputError(
                f"{self.score}: expected a finite neutral score, |shape| < 1 and a tail within (0, 1)"
            )

    @classmethod
    def fit(
        cls,
        scores: ArrayLike,
        cosines: ArrayLike,
        kappas: Any,
        mated: ArrayLike,
        *,
        score: str,
        radius: float | None,
        neutral: float,
        roles: bool = False,
        conditions: ArrayLike | None = None,
    ) -> "ConditionalCalibrator":
        """Fit the ratio by logistic regression, u by quantile regression and the tail by maximum likelihood.

        All conditions have the same total weight, half of it for their mated pairs. Targets are regularised
        as if one more pair of each kind were on the wrong side, so that no ratio is infinite (Platt, 1999).

        Args:
            scores: (n,) mutual likelihood scores.
            cosines: (n,) cosines.
            kappas: (2, n) concentrations of the left and right sides; 0 is treated as the smallest value
                above 0.
            mated: (n,) true for mated pairs.
            score: name of the evidence.
            radius: r of the scores.
            neutral: mutual likelihood score of two sides with kappa = 0.
            roles: whether left and right are of different kinds.
            conditions: (n,) integer id of each pair's condition, such as clean or degraded; None for a single
                one.

        Raises:
            InputError: values are NaN, shapes differ, mated or non-mated pairs are missing (or no condition
                has both), cosines are outside -1 .. 1, concentrations are negative or infinite, scores are
                all equal or not larger for mated pairs, or there are too few non-mated pairs for a tail (the
                message says how many are needed).
        """
        x, c, m = (np.asarray(values) for values in (scores, cosines, mated))
        mated_scores, non_mated_scores = split_scores(x, m)
        x, c, m = x.astype(np.float64), _cosines(c), m.astype(bool)
        if c.shape != x.shape or np.shape(kappas) != (2, x.size):
            raise InputError(
                f"{score}: expected cosines ({x.size},) and kappas (2, {x.size}), got {c.shape} and "
                f"{np.shape(kappas)}"
            )
        if not np.ptp(x) > 0:
            raise InputError(f"{score}: all {x.size} scores are equal; there is nothing to calibrate")
        if not mated_scores.mean() > non_mated_scores.mean():
            raise InputError(
                f"{score}: mated pairs do not score higher than non-mated ones; are they swapped, or the "
                "scores distances?"
            )
        required = int(np.ceil(_MIN_TAIL_PAIRS / _TAIL))
        if non_mated_scores.size < required:
            raise InputError(
                f"{score}: the tail is fitted on the largest {_TAIL:.0%} of the non-mated pairs and needs "
                f"{_MIN_TAIL_PAIRS} pairs, so {required} non-mated pairs; there are {non_mated_scores.size}"
            )
        log_kappa = _log_kappas(kappas)  # (2, n)
        ranges = [_finite_range(side) for side in log_kappa] if roles else [_finite_range(log_kappa)] * 2
        basis = _basis(np.clip(log_kappa[0], *ranges[0]), np.clip(log_kappa[1], *ranges[1]), roles)
        condition = np.zeros(x.size, np.int64) if conditions is None else np.asarray(conditions)
        if condition.shape != x.shape:
            raise InputError(f"{score}: expected conditions ({x.size},), got {condition.shape}")
        weight = _condition_weights(condition, m)
        if not weight.any():
            raise InputError(f"{score}: no condition has both mated and non-mated pairs")
        short = _term_counts(roles)[1]
        with np.errstate(all="ignore"):  # steps of the fits may overflow; `_minimise` checks their ends
            offset, slope = _fit_ratio(basis, short, x - neutral, m, weight)
            tail_weight = weight[~m] / weight[~m].sum()
            start, spread, shape = _fit_tail(basis[~m], short, c[~m], tail_weight)
        return cls(
            score, radius, float(neutral), roles, ranges[0], ranges[1], _as_tuple(offset), _as_tuple(slope),
            _as_tuple(start), _as_tuple(spread), float(shape), _TAIL,
            mated_scores.size, non_mated_scores.size,
        )  # fmt: skip

    def llr(self, scores: Numbers, kappas: Sides) -> Array:
        """The natural-log likelihood ratio of pairs, clipped to `llr_limits`.

        Args:
            scores: mutual likelihood scores, any shape.
            kappas: concentrations of the left and right sides, broadcast with the scores.

        Raises:
            InputError: values are NaN, or a concentration is negative or infinite.
        """
        return np.asarray(np.clip(self._ratio(scores, kappas), *llr_limits(self.mated, self.non_mated)))

    def rarity(self, cosines: Numbers, kappas: Sides) -> Array:
        """-log of the share of non-mated pairs with these kappas whose cosine is at least as high; >= 0.

        It is extrapolated beyond the pairs of the fit. Below the threshold u, where no rule uses it, it
        decreases smoothly to 0.

        Args:
            cosines: cosines, any shape.
            kappas: concentrations of the left and right sides, broadcast with the cosines.

        Raises:
            InputError: as in `llr`.
        """
        basis, at_threshold = self._basis(kappas), -np.log(self.tail)
        scale = np.exp(_polynomial(basis, self.spread))
        excess = (finite(cosines, "cosines") - _polynomial(basis, self.start)) / scale
        below = at_threshold * np.exp(np.minimum(excess, 0) / at_threshold)
        above = at_threshold + _pareto_log_survival(np.maximum(excess, 0), self.shape)
        return np.asarray(np.where(excess > 0, above, below))

    def evidence(self, scores: Numbers, cosines: Numbers, kappas: Sides) -> Array:
        """The value to which decision rules apply: min(rarity, 2.5 llr) if llr > 0, else llr.

        Args:
            scores: mutual likelihood scores, any shape.
            cosines: cosines of the same pairs.
            kappas: concentrations of their left and right sides.

        Raises:
            InputError: as in `llr`, or cosines are outside -1 .. 1.
        """
        ratio = self._ratio(scores, kappas)
        limited_rarity = np.minimum(self.rarity(_cosines(cosines), kappas), _RARITY_LIMIT * ratio)
        return np.asarray(np.where(ratio > 0, limited_rarity, ratio))

    def _ratio(self, scores: Numbers, kappas: Sides) -> Array:
        """The log-likelihood ratio without clipping."""
        basis = self._basis(kappas)
        x = finite(scores) - self.neutral
        return np.asarray(_polynomial(basis, self.offset) + _softplus(_polynomial(basis, self.slope)) * x)

    def _basis(self, kappas: Sides) -> Array:
        left, right = _log_kappas(kappas[0]), _log_kappas(kappas[1])
        return _basis(np.clip(left, *self.left), np.clip(right, *self.right), self.roles)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values."""
        facts = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {"kind": self.kind, **facts}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "ConditionalCalibrator":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "conditional")


_RARITY_LIMIT = 2.5  # maximum of rarity / llr, from measurements in docs/LOG.md
_CENTRE = 5.0  # subtracted from log concentrations, so that all coefficients have the same order of magnitude


def _cosines(values: Any) -> Array:
    """Cosines, checked; beyond 1 only by rounding."""
    cosines = finite(values, "cosines")
    if (outside := np.abs(cosines) > 1.01).any():
        raise InputError(f"cosines: expected -1 .. 1, got {cosines[outside].flat[0]:.4g}")
    return cosines


def _log_kappas(kappas: Any) -> Array:
    """log kappa, checked; -inf for 0."""
    values = finite(kappas, "concentrations")
    if (values < 0).any() or np.isinf(values).any():
        raise InputError("concentrations: expected numbers >= 0 and finite")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(values))


def _finite_range(log_kappa: Array) -> tuple[float, float]:
    """The smallest and the largest finite value."""
    finite_values = log_kappa[np.isfinite(log_kappa)]
    if not finite_values.size:
        raise InputError("concentrations: expected some above 0")
    return float(finite_values.min()), float(finite_values.max())


def _term_counts(roles: bool) -> tuple[int, int]:
    """The number of terms of the longer polynomials (a, u) and of the shorter ones (b, v)."""
    return (6, 4) if roles else (4, 3)


def _basis(left: Array, right: Array, roles: bool) -> Array:
    """The terms of the polynomials, (..., 6); without roles those symmetric in the sides, (..., 4)."""
    total, difference = left + right - 2 * _CENTRE, left - right
    short = [np.ones_like(total), total, difference * difference, *([difference] if roles else [])]
    return np.stack([*short, total * total, *([difference * total] if roles else [])], axis=-1)


def _polynomial(basis: Array, coefficients: ArrayLike) -> Array:
    """The polynomial with these coefficients of the first terms of the basis, (...)."""
    theta = np.asarray(coefficients)
    return np.asarray(basis[..., : len(theta)] @ theta)


def _condition_weights(conditions: Array, mated: NDArray[np.bool_]) -> Array:
    """The weight of each pair (n,): 1 in total for every condition, half of it for its mated pairs.

    Conditions without mated or without non-mated pairs have weight 0.
    """
    _, condition = np.unique(conditions, return_inverse=True)
    group = 2 * condition + mated
    counts = np.bincount(group, minlength=2 * condition.max() + 2)
    has_both = (counts[::2] > 0) & (counts[1::2] > 0)
    return np.asarray(np.where(has_both[condition], 0.5 / counts[group], 0.0))


def _softplus(values: Array) -> Array:
    return np.logaddexp(0.0, values)


def _sigmoid(values: Array) -> Array:
    return 0.5 * (1 + np.tanh(values / 2))


def _pareto_log_survival(excess: Array, shape: float) -> Array:
    """-log P(X > excess) of a generalised Pareto distribution with unit scale, log(1 + shape excess) / shape.

    For shape = 0 it is the excess itself. For shape < 0 the distribution is bounded; near its end the
    function continues as a straight line, so that it stays finite and increasing.
    """
    if abs(shape) < 1e-9:
        return excess
    factor = 1 + shape * excess
    line = np.where(factor < _END, excess + (1 - _END) / shape, 0.0)
    return np.asarray(np.log(np.maximum(factor, _END)) / shape + line)


_END = 0.05  # value of 1 + shape * excess, 0 at the end of a bounded tail, at which the line begins


def _as_tuple(values: Array) -> tuple[float, ...]:
    return tuple(values.tolist())


def _fit_ratio(
    basis: Array, short: int, x: Array, mated: NDArray[np.bool_], weight: Array
) -> tuple[Array, Array]:
    """The coefficients of offset and slope that minimise Cllr.

    Args:
        basis: (n, terms).
        short: number of coefficients of the slope.
        x: (n,) mutual likelihood scores minus the neutral score.
        mated: (n,) true for mated pairs.
        weight: (n,) weights of the pairs.
    """
    terms = basis.shape[1]
    scale = max(float(np.std(x)), np.finfo(float).tiny)
    n_mated = int(mated.sum())
    target = np.where(mated, 1 - 1 / (n_mated + 2), 1 / (mated.size - n_mated + 2))
    total = weight.sum()

    def loss(theta: Array) -> tuple[float, Array]:
        """The loss and its gradient."""
        b = _polynomial(basis, theta[terms:])
        llr = _polynomial(basis, theta[:terms]) + _softplus(b) * x
        residual = weight * (_sigmoid(llr) - target) / total
        value = weight @ (np.logaddexp(0, llr) - target * llr) / total
        slope_gradient = basis[:, :short].T @ (residual * x * _sigmoid(b))
        return float(value), np.concatenate([basis.T @ residual, slope_gradient])

    initial = np.zeros(terms + short)
    initial[terms] = np.log(np.expm1(1 / scale)) if scale > 2e-3 else 1 / scale  # softplus(b) = 1 / scale
    theta = _minimise(loss, initial, "likelihood ratio")
    return theta[:terms], theta[terms:]


def _fit_tail(basis: Array, short: int, cosine: Array, weight: Array) -> tuple[Array, Array, float]:
    """The coefficients of the threshold u and of the log scale v, and the shape of the tail.

    Args:
        basis: (n, terms), of the non-mated pairs.
        short: number of coefficients of the log scale.
        cosine: (n,) their cosines.
        weight: (n,) their weights, with sum 1.
    """

    def quantile_loss(theta: Array) -> tuple[float, Array]:
        """The smoothed pinball loss of the quantile 1 - _TAIL, and its gradient."""
        residual = (cosine - basis @ theta) / _SMOOTHING
        value = weight @ ((1 - _TAIL) * residual + _softplus(-residual)) * _SMOOTHING
        return float(value), basis.T @ (weight * (_sigmoid(-residual) - (1 - _TAIL)))

    root = np.sqrt(weight)
    initial = np.linalg.lstsq(basis * root[:, None], cosine * root, rcond=None)[0]
    initial[0] += 1.6 * np.sqrt(weight @ (cosine - basis @ initial) ** 2)  # about the 95 % quantile
    start = _minimise(quantile_loss, initial, "threshold of the tail")
    excess = cosine - basis @ start
    in_tail = excess > 0
    basis, excess, weight = basis[in_tail, :short], excess[in_tail], weight[in_tail] / weight[in_tail].sum()

    def tail_loss(theta: Array) -> tuple[float, Array]:
        """The mean negative log-likelihood of the generalised Pareto distribution, and its gradient."""
        scaled, shape = excess / np.exp(basis @ theta[:short]), theta[short]
        shape = shape if abs(shape) > 1e-6 else 1e-6
        factor = 1 + shape * scaled
        if not (factor > 1e-6).all():
            return _IMPOSSIBLE, np.zeros_like(theta)
        log_factor, slope = np.log(factor), (1 + shape) * scaled / factor
        value = weight @ (basis @ theta[:short] + (1 + 1 / shape) * log_factor)
        shape_gradient = (1 + 1 / shape) * scaled / factor - log_factor / shape**2
        return float(value), np.append(basis.T @ (weight * (1 - slope)), weight @ shape_gradient)

    initial = np.zeros(short + 1)
    initial[0], initial[-1] = np.log(weight @ excess), _SHAPE_BOUNDS[1] / 8  # > 0: a tail without an end
    bounds = [(None, None)] * short + [_SHAPE_BOUNDS]
    theta = _minimise(tail_loss, initial, "tail", bounds)
    return start, theta[:short], float(theta[short])


def _minimise(loss: Any, initial: Array, what: str, bounds: Any = None) -> Array:
    """The minimum of a function that returns its value and gradient."""
    from scipy.optimize import minimize  # imported only to fit: it takes a third of a second

    result = minimize(loss, initial, jac=True, method="L-BFGS-B", bounds=bounds, options=_OPTIONS)
    if not np.isfinite(result.x).all() or not result.fun < loss(initial)[0]:
        raise InputError(f"conditional calibration: the fit of the {what} did not converge; check the scores")
    return np.asarray(result.x)
