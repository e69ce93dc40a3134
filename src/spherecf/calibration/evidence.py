"""Evidence that knows how sure both sides of a pair are: likelihood ratio and rarity among strangers."""

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
    labelled,
    llr_limits,
)
from spherecf.common.parsing import checked
from spherecf.errors import InputError

Array = NDArray[Any]
Sides = tuple[Numbers, Numbers]
"""Of the left and of the right side of pairs."""

_TAIL = 0.05  # share of the non-mated pairs that the tail is fitted on
_LEAST = 100  # pairs in it, under all conditions together
_SMOOTH = 0.004  # width, in cosines, within which the loss of the quantile is rounded off
_SHAPES = (-0.4, 0.4)  # of the tail, far beyond what cosines show
_IMPOSSIBLE = 1e10  # cost of a tail that ends before the largest cosine
_STEPS = {"maxiter": 500, "ftol": 1e-12, "gtol": 1e-9}


@dataclass(frozen=True)
class ConditionalCalibrator:
    """Likelihood ratio and rarity of a pair, given its scores and the concentrations of both sides.

    With ``x`` the mutual likelihood score above ``neutral``, c the cosine, and a, b, u, v polynomials in both
    log concentrations, a and u of second order, b and v
    without the square of their sum::

        llr      = a + softplus(b) x
        rarity   = -log P(two other people, seen as surely, have a cosine of at least c)
                 = -log(tail) + log(1 + shape (c - u) / exp(v)) / shape      from c = u on
        evidence = min(rarity, 2.5 llr) where llr > 0, else llr

    The rarity is that of peaks over the threshold u, which the share ``tail`` of the non-mated pairs exceeds
    whatever the concentrations, by a generalised Pareto distribution (Pickands, Annals of Statistics 3,
    1975; regression on covariates: Davison and Smith, JRSS B 52, 1990). So one threshold of it lets as many
    strangers pass among good pictures as among bad ones, which no threshold of the score or of the ratio
    does. All three rise with the cosine. Rare is not enough where the ratio is small: pictures of one damage
    resemble each other more than their concentrations tell.

    Args:
        score: which evidence it is: "evidence", "evidence-template", ...
        radius: r of the mutual likelihood score.
        neutral: mutual likelihood score of two sides that say nothing.
        roles: left and right are of different kinds, a template and an image; else they may be swapped.
        left: smallest and largest log concentration that it was fitted on; others count as the nearest.
        right: likewise.
        offset: coefficients of a.
        slope: of b.
        start: of u.
        spread: of v.
        shape: of the tail: below 0 it ends, above 0 it is heavier than exponential.
        tail: share of the non-mated pairs that exceed u.
        mated: pairs it was fitted on.
        non_mated: likewise.

    Raises:
        InputError: coefficients that do not fit the kind, ranges that do not ascend, no pairs of one kind.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> log_kappa, mated = rng.uniform(3, 5, (2, 20000)), np.arange(20000) % 4 == 0
        >>> cosine = 0.1 * rng.normal(size=20000) + mated * 0.1 * log_kappa.sum(0) / 2
        >>> mls = cosine * np.exp(log_kappa.mean(0)) / 10
        >>> known = ConditionalCalibrator.fit(
        ...     mls, cosine, np.exp(log_kappa), mated, score="evidence", radius=64.0, neutral=0.0
        ... )
        >>> known.llr(5.0, (100.0, 100.0)) > known.llr(3.0, (100.0, 100.0)) > 0
        np.True_
        >>> known.rarity([0.164, 0.233], (50.0, 50.0)).round(0).tolist()  # a share of 1 in 20, 1 in 100
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
        for name, terms in zip(("offset", "slope", "start", "spread"), 2 * _terms(self.roles)):
            found = getattr(self, name)
            if len(found) != terms or not np.isfinite(found).all():
                raise InputError(f"{self.score}: expected {terms} finite coefficients of the {name}")
        for low, high in (self.left, self.right):
            if not -np.inf < low <= high < np.inf:
                raise InputError(f"{self.score}: expected ascending log concentrations, got {low} to {high}")
        if not (np.isfinite(self.neutral) and abs(self.shape) < 1 and 0 < self.tail < 1):
            raise InputError(f"{self.score}: expected a finite neutral score, and a tail with |shape| < 1")

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
        """Ratio by logistic regression, threshold by quantile regression, tail by maximum likelihood.

        Under each condition mated and non-mated pairs weigh as if there were one of each. One more pair of
        either kind stands on the wrong side, so that no ratio is infinite (Platt, 1999).

        Args:
            scores: (n,) mutual likelihood scores.
            cosines: (n,).
            kappas: (2, n) concentrations of the left and right sides; 0 counts as the smallest above 0.
            mated: (n,) true where both show one person.
            score: name.
            radius: r of the scores.
            neutral: score of two sides that say nothing.
            roles: whether left and right are of different kinds.
            conditions: (n,) numbers of the conditions, which count alike; None for one.

        Raises:
            InputError: NaN, shapes that differ, one kind of pair only, concentrations that are negative or
                infinite, scores that are all equal or fall with likeness, or too few non-mated pairs for a
                tail (the message says how many it takes).
        """
        x, c, m = (np.asarray(part) for part in (scores, cosines, mated))
        same, other = labelled(x, m)
        x, c, m = x.astype(np.float64), finite(c, "cosines"), m.astype(bool)
        if c.shape != x.shape or np.shape(kappas) != (2, x.size):
            raise InputError(
                f"{score}: expected cosines ({x.size},) and kappas (2, {x.size}), got {c.shape} and "
                f"{np.shape(kappas)}"
            )
        if not np.ptp(x) > 0:
            raise InputError(f"{score}: all {x.size} scores are equal; they tell nothing to calibrate")
        if not same.mean() > other.mean():
            raise InputError(
                f"{score}: mated pairs do not score higher than non-mated ones; are they swapped, or the "
                "scores distances?"
            )
        needed = int(np.ceil(_LEAST / _TAIL))
        if other.size < needed:
            raise InputError(
                f"{score}: a tail takes at least {_LEAST} of the largest {_TAIL:.0%} of the non-mated "
                f"pairs, so {needed} of them; there are {other.size}"
            )
        log_kappa = _log(kappas)
        ranges = [_range(side) for side in log_kappa] if roles else [_range(log_kappa)] * 2
        basis = _basis(np.clip(log_kappa[0], *ranges[0]), np.clip(log_kappa[1], *ranges[1]), roles)
        where = np.zeros(x.size, np.int64) if conditions is None else np.asarray(conditions)
        weight = _weights(where, m)
        short = _terms(roles)[1]
        offset, slope = _ratio(basis, short, x - neutral, m, weight)
        w = weight[~m] / weight[~m].sum()
        start, spread, shape = _peaks(basis[~m], short, c[~m], w)
        return cls(
            score, radius, float(neutral), roles, ranges[0], ranges[1], _plain(offset), _plain(slope),
            _plain(start), _plain(spread), float(shape), _TAIL, same.size, other.size,
        )  # fmt: skip

    def llr(self, scores: Numbers, kappas: Sides) -> Array:
        """Natural-log likelihood ratio of mutual likelihood scores, held within `llr_limits`.

        Args:
            scores: of any shape.
            kappas: of the left and right sides, each of a shape that broadcasts with it.

        Raises:
            InputError: NaN, or a concentration that is negative or infinite.
        """
        return np.asarray(np.clip(self._ratio(scores, kappas), *llr_limits(self.mated, self.non_mated)))

    def rarity(self, cosines: Numbers, kappas: Sides) -> Array:
        """-log of the share of non-mated pairs, seen as surely, whose cosine is at least as high; >= 0.

        Beyond the pairs it was fitted on it is extrapolated. Below the threshold u, where no rule reads it,
        it falls to 0 smoothly.

        Raises:
            InputError: as `llr`.
        """
        basis, least = self._basis(kappas), -np.log(self.tail)
        above = (finite(cosines, "cosines") - _of(basis, self.start)) / np.exp(_of(basis, self.spread))
        below = least * np.exp(np.minimum(above, 0) / least)
        return np.asarray(np.where(above > 0, least + _stretched(np.maximum(above, 0), self.shape), below))

    def evidence(self, scores: Numbers, cosines: Numbers, kappas: Sides) -> Array:
        """What decision rules read: the rarity where the pair speaks for one person, else the ratio.

        Raises:
            InputError: as `llr`.
        """
        ratio = self._ratio(scores, kappas)
        rare = np.minimum(self.rarity(cosines, kappas), _GUARD * ratio)
        return np.asarray(np.where(ratio > 0, rare, ratio))

    def _ratio(self, scores: Numbers, kappas: Sides) -> Array:
        basis = self._basis(kappas)
        excess = finite(scores) - self.neutral
        return np.asarray(_of(basis, self.offset) + _softplus(_of(basis, self.slope)) * excess)

    def _basis(self, kappas: Sides) -> Array:
        left, right = _log(kappas[0]), _log(kappas[1])
        return _basis(np.clip(left, *self.left), np.clip(right, *self.right), self.roles)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        facts = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return {"kind": self.kind, **facts}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "ConditionalCalibrator":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "conditional")


_GUARD = 2.5  # a rarity counts up to so many times the llr; measured, see docs/LOG.md
_CENTRE = 5.0  # of a log concentration, so that the coefficients are of one size


def _log(kappas: Any) -> Array:
    values = finite(kappas, "concentrations")
    if (values < 0).any() or np.isinf(values).any():
        raise InputError("concentrations: expected numbers >= 0 and finite")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(values))


def _range(log_kappa: Array) -> tuple[float, float]:
    known = log_kappa[np.isfinite(log_kappa)]
    if not known.size:
        raise InputError("concentrations: expected some above 0")
    return float(known.min()), float(known.max())


def _terms(roles: bool) -> tuple[int, int]:
    """How many terms the longer and the shorter polynomials have."""
    return (6, 4) if roles else (4, 3)


def _basis(left: Array, right: Array, roles: bool) -> Array:
    """(..., 4) terms that do not change if the sides are swapped; (..., 6) with roles."""
    total, apart = left + right - 2 * _CENTRE, left - right
    short = [np.ones_like(total), total, apart * apart, *([apart] if roles else [])]
    return np.stack([*short, total * total, *([apart * total] if roles else [])], axis=-1)


def _of(basis: Array, coefficients: ArrayLike) -> Array:
    """(...) value of a polynomial that has the first terms of the basis."""
    theta = np.asarray(coefficients)
    return np.asarray(basis[..., : len(theta)] @ theta)


def _weights(conditions: Array, mated: NDArray[np.bool_]) -> Array:
    """(n,) each condition that has both kinds of pairs weighs 1, half of it its mated pairs."""
    _, place = np.unique(conditions, return_inverse=True)
    group = 2 * place + mated
    counts = np.bincount(group, minlength=2 * place.max() + 2)
    both = (counts[::2] > 0) & (counts[1::2] > 0)
    return np.asarray(np.where(both[place], 0.5 / counts[group], 0.0))


def _softplus(values: Array) -> Array:
    return np.logaddexp(0.0, values)


def _sigmoid(values: Array) -> Array:
    return 0.5 * (1 + np.tanh(values / 2))


def _stretched(above: Array, shape: float) -> Array:
    """-log of the survival of a generalised Pareto distribution of unit scale; short where shape is 0.

    With a shape below 0 the distribution ends; from there on a line goes on, so that all rises.
    """
    if abs(shape) < 1e-9:
        return above
    inside = np.maximum(1 + shape * above, _END)
    return np.asarray(
        np.log(inside) / shape + np.where(1 + shape * above < _END, above + (1 - _END) / shape, 0.0)
    )


_END = 0.05  # share of the way to the end of a bounded tail at which the line begins


def _plain(values: Array) -> tuple[float, ...]:
    return tuple(values.tolist())


def _ratio(
    basis: Array, short: int, excess: Array, mated: NDArray[np.bool_], weight: Array
) -> tuple[Array, Array]:
    """Coefficients of offset and slope that minimise Cllr."""
    terms = basis.shape[1]
    scale = max(float(np.std(excess)), np.finfo(float).tiny)
    same = int(mated.sum())
    target = np.where(mated, 1 - 1 / (same + 2), 1 / (mated.size - same + 2))
    total = weight.sum()

    def cost(theta: Array) -> tuple[float, Array]:
        steep = _of(basis, theta[terms:])
        llr = _of(basis, theta[:terms]) + _softplus(steep) * excess
        wrong = weight * (_sigmoid(llr) - target) / total
        loss = weight @ (np.logaddexp(0, llr) - target * llr) / total
        by_slope = basis[:, :short].T @ (wrong * excess * _sigmoid(steep))
        return float(loss), np.concatenate([basis.T @ wrong, by_slope])

    first = np.zeros(terms + short)
    first[terms] = np.log(np.expm1(1 / scale)) if scale > 2e-3 else 1 / scale
    theta = _minimum(cost, first, "likelihood ratio")
    return theta[:terms], theta[terms:]


def _peaks(basis: Array, short: int, cosine: Array, weight: Array) -> tuple[Array, Array, float]:
    """(threshold, log scale, shape) of the largest cosines of non-mated pairs."""

    def pinball(theta: Array) -> tuple[float, Array]:
        off = (cosine - basis @ theta) / _SMOOTH
        loss = weight @ ((1 - _TAIL) * off + _softplus(-off)) * _SMOOTH
        return float(loss), basis.T @ (weight * (_sigmoid(-off) - (1 - _TAIL)))

    root = np.sqrt(weight)
    first = np.linalg.lstsq(basis * root[:, None], cosine * root, rcond=None)[0]
    first[0] += 1.6 * np.sqrt(weight @ (cosine - basis @ first) ** 2)
    start = _minimum(pinball, first, "threshold of the tail")
    above = cosine - basis @ start
    rows = above > 0
    basis, above, weight = basis[rows, :short], above[rows], weight[rows] / weight[rows].sum()

    def surprise(theta: Array) -> tuple[float, Array]:
        scaled, shape = above / np.exp(basis @ theta[:short]), theta[short]
        shape = shape if abs(shape) > 1e-6 else 1e-6
        inside = 1 + shape * scaled
        if not (inside > 1e-6).all():
            return _IMPOSSIBLE, np.zeros_like(theta)
        log, slope = np.log(inside), (1 + shape) * scaled / inside
        loss = weight @ (basis @ theta[:short] + (1 + 1 / shape) * log)
        by_shape = (1 + 1 / shape) * scaled / inside - log / shape**2
        return float(loss), np.append(basis.T @ (weight * (1 - slope)), weight @ by_shape)

    first = np.zeros(short + 1)
    first[0], first[-1] = np.log(weight @ above), _SHAPES[1] / 8  # above 0, where all is possible
    bounds = [(None, None)] * short + [_SHAPES]
    theta = _minimum(surprise, first, "tail", bounds)
    return start, theta[:short], float(theta[short])


def _minimum(cost: Any, first: Array, what: str, bounds: Any = None) -> Array:
    from scipy.optimize import minimize  # a third of a second, for those who fit

    found = minimize(cost, first, jac=True, method="L-BFGS-B", bounds=bounds, options=_STEPS)
    if not np.isfinite(found.x).all() or not found.fun < cost(first)[0]:
        raise InputError(f"conditional calibration: the {what} did not settle; look at the scores")
    return np.asarray(found.x)
