"""From a score to a log-likelihood ratio, and from kappa to a percentile."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration.checks import Numbers, check_counts, check_radius, finite, labelled, llr_limits
from spherecf.common.parsing import checked
from spherecf.errors import InputError


def pool_adjacent_violators(positives: ArrayLike, totals: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Non-descending rates closest to ``positives / totals`` in weighted squares (and in log likelihood).

    Neighbours whose rates do not rise are pooled until all do: Ayer et al., Annals of Mathematical Statistics
    26, 1955. scipy tells the groups to pool; rates are made of their counts.

    Args:
        positives: (n,) of each group, in the order in which the rate should rise.
        totals: (n,) size of each group, positive.

    Returns:
        (starts, rates), both (blocks,): block b spans the groups from ``starts[b]`` up to the next start; the
        rates rise strictly.

    Raises:
        InputError: no groups, shapes that differ, or an empty group.

    Example:
        >>> starts, rates = pool_adjacent_violators([0, 1, 0, 1], [1, 1, 1, 1])
        >>> starts.tolist(), rates.tolist()
        ([0, 1, 3], [0.0, 0.5, 1.0])
    """
    from scipy.optimize import isotonic_regression  # a third of a second, for those who fit

    hits, mass = np.asarray(positives, np.float64), np.asarray(totals, np.float64)
    if hits.ndim != 1 or hits.shape != mass.shape or not hits.size or not (mass > 0).all():
        raise InputError(
            f"pool_adjacent_violators: expected two (n,) arrays, n >= 1, of non-empty groups; got "
            f"{hits.shape} and {mass.shape}"
        )
    starts = isotonic_regression(hits / mass, weights=mass).blocks[:-1]
    while True:
        rates = np.add.reduceat(hits, starts) / np.add.reduceat(mass, starts)
        rises = np.append(True, np.diff(rates) > 0)
        if rises.all():
            return starts, rates
        starts = starts[rises]  # scipy's running means are rounded: it may part what is equal in the counts


@dataclass(frozen=True)
class IsotonicCalibrator:
    """log LR as a rising function of the score that assumes nothing else; constant beyond the scores seen.

    Within a block of pooled scores it is constant, between blocks linear, so equal scores are equal and a
    larger score never loses.

    Args:
        score: which score it is for: "cosine", "mls", ...
        radius: r of the mutual likelihood score; None where the score has none.
        knots: scores, ascending: first and last one of each block.
        llr: natural-log likelihood ratio at the knots, ascending and finite.
        mated: pairs it was fitted on.
        non_mated: likewise.

    Raises:
        InputError: knots that do not ascend, or no pairs of one kind.

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
        rising = x.ndim == 1 and x.shape == y.shape and x.size and (np.diff(x) > 0).all()
        if not (rising and (np.diff(y) >= 0).all() and np.isfinite([*x, *y]).all()):
            raise InputError(f"{self.score}: expected ascending knots and finite log-likelihood ratios")
        check_radius(self.score, self.radius)
        check_counts(self.score, 1, mated=self.mated, non_mated=self.non_mated)

    @classmethod
    def fit(
        cls, scores: ArrayLike, mated: ArrayLike, *, score: str, radius: float | None = None
    ) -> "IsotonicCalibrator":
        """Pool adjacent violators (Zadrozny and Elkan, KDD 2002), tied scores together.

        One mated and one non-mated pair are added beyond either end (rule of succession, as in Brümmer's
        BOSARIS toolkit), so no ratio is infinite and each end claims what its pairs support: `llr_limits`.
        The ratio of a block is its share of the mated pairs over its share of the non-mated ones.

        Raises:
            InputError: NaN, or one kind of pair only.
        """
        same, other = labelled(scores, mated)
        values, place = np.unique(np.concatenate([same, other]), return_inverse=True)
        totals = np.bincount(place)
        hits = np.bincount(place[: same.size], minlength=values.size)
        starts, rates = pool_adjacent_violators(np.r_[1, hits, 1], np.r_[2, totals, 2])
        llr = np.log(rates / (1 - rates)) + np.log((other.size + 2) / (same.size + 2))
        first = np.maximum(starts - 1, 0)  # the added pairs stood before all scores, and behind
        last = np.minimum(np.append(starts[1:], values.size + 2) - 2, values.size - 1)
        real = first <= last  # not the added pairs alone
        ends = np.stack([values[first[real]], values[last[real]]], axis=1)
        knots, kept = np.unique(ends, return_index=True)
        llr = np.repeat(llr[real], 2)[kept]
        return cls(score, radius, tuple(knots.tolist()), tuple(llr.tolist()), same.size, other.size)

    def __call__(self, scores: Numbers) -> NDArray[Any]:
        """Natural-log likelihood ratio of each score, same shape.

        Raises:
            InputError: NaN.
        """
        return np.asarray(np.interp(finite(scores), self.knots, self.llr))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, **asdict(self), "knots": list(self.knots), "llr": list(self.llr)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "IsotonicCalibrator":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "isotonic")


Array = NDArray[Any]

_MOST_STEPS = 200


@dataclass(frozen=True)
class LogisticCalibrator:
    """log LR = slope * score + offset, natural logarithm, held within what the data support (`llr_limits`).

    Args:
        score: which score it is for: "cosine", "mls", ...
        radius: r of the mutual likelihood score; None where the score has none.
        slope: > 0.
        offset: added.
        mated: pairs it was fitted on.
        non_mated: likewise.
        separated: no score tells otherwise in the data, so the line had to be regularised: take its slope as
            a cautious guess, not as a measurement.

    Raises:
        InputError: a slope that is not positive, or no pairs of one kind.

    Example:
        >>> scores = [0.1, 0.2, 0.5, 0.4, 0.7, 0.9]
        >>> line = LogisticCalibrator.fit(scores, [0, 0, 0, 1, 1, 1], score="cosine")
        >>> line([0.1, 0.9]).round(2).tolist(), line.separated  # three pairs of each kind support no more
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
        """Prior-weighted logistic regression (Brümmer and du Preez, Computer Speech & Language 20, 2006).

        Minimises ``prior * mean_mated log(1 + exp(-(llr + t))) + (1 - prior) * mean_non_mated log(1 +
        exp(llr + t))`` with ``t = logit(prior)``, by damped Newton steps in float64. Nothing is regularised
        unless the kinds of pairs separate perfectly, where the slope would be infinite; then the targets 1
        and 0 become (m + 1) / (m + 2) and 1 / (n + 2) (Platt, 1999), and ``separated`` says so.

        Raises:
            InputError: NaN, one kind of pair only, all scores equal, or scores that fall with likeness.
        """
        s, m = np.asarray(scores, np.float64), np.asarray(mated)
        same, other = labelled(s, m)
        if not 0 < prior < 1:
            raise InputError(f"prior: expected 0 < prior < 1, got {prior}")
        centre, spread = float(s.mean()), float(s.std())
        if not spread > 0:
            raise InputError(f"{score}: all {s.size} scores are equal; they tell nothing to calibrate")
        separated = bool(same.min() >= other.max() or other.min() >= same.max())
        high, low = (1 - 1 / (same.size + 2), 1 / (other.size + 2)) if separated else (1.0, 0.0)
        x = (np.concatenate([same, other]) - centre) / spread
        target = np.repeat([high, low], [same.size, other.size])
        weight = np.repeat([prior / same.size, (1 - prior) / other.size], [same.size, other.size])
        slope, offset = _newton(x, target, weight)
        offset -= float(np.log(prior / (1 - prior)))
        return cls(
            score, radius, slope / spread, offset - slope * centre / spread, same.size, other.size, separated
        )

    def __call__(self, scores: Numbers) -> Array:
        """Natural-log likelihood ratio of each score, same shape.

        Raises:
            InputError: NaN.
        """
        llr = self.slope * finite(scores) + self.offset
        return np.asarray(np.clip(llr, *llr_limits(self.mated, self.non_mated)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "LogisticCalibrator":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "logistic")


def _newton(x: Array, target: Array, weight: Array) -> tuple[float, float]:
    """Slope and offset of the weighted logistic regression of ``target`` on x (both classes overlap)."""
    design = np.stack([x, np.ones_like(x)], axis=1)

    def loss(theta: Array) -> float:
        z = design @ theta
        return float(weight @ (np.logaddexp(0, z) - target * z))

    theta = np.zeros(2)
    for _ in range(_MOST_STEPS):
        z = design @ theta
        chance = 0.5 * (1 + np.tanh(z / 2))
        gradient = design.T @ (weight * (chance - target))
        hessian = design.T @ (design * (weight * chance * (1 - chance))[:, None])
        step = np.linalg.solve(hessian, gradient)
        now, length = loss(theta), 1.0
        if gradient @ step <= 1e-14 * now:  # what is left to gain is lost in rounding; one more step is free
            return float(theta[0] - step[0]), float(theta[1] - step[1])
        while loss(theta - length * step) > now:
            length /= 2
        theta = theta - length * step
    raise InputError(f"logistic calibration did not settle in {_MOST_STEPS} steps; look at the scores")


_KNOTS = 201  # one per half percent
_MAX_LOG = np.log(np.finfo(np.float64).max)  # kappa itself is a float64


@dataclass(frozen=True)
class KappaScale:
    """kappa to a percentile of a reference population, and to an integer 0 .. 100.

    ``percent[i]`` is the share, in percent, of reference images with a smaller log kappa than
    ``log_kappa[i]``, those that equal it counted half (the exact distribution function at that knot); between
    knots it is linear in log kappa. What kappa claims by itself needs no population: `spherecf.vmf`'s
    ``mean_resultant_length(kappa, dim)`` = A_d(kappa), the expected cosine to the person's prototype.

    Args:
        dim: dimension of the embeddings; the same kappa means another cosine in another dimension.
        population: what the reference images are, in words.
        images: how many they were.
        log_kappa: knots, ascending.
        percent: of each knot, ascending within 0 .. 100.

    Raises:
        InputError: knots that do not ascend or beyond what kappa can be, no images, a dimension below 2.

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
        """Scale of the images whose concentrations these are.

        Raises:
            InputError: no images, or a kappa that is not positive and finite.
        """
        values = np.asarray(kappa, np.float64).reshape(-1)
        if not values.size or not ((values > 0) & np.isfinite(values)).all():
            raise InputError(
                f"kappa: expected positive finite concentrations of at least one image, got {values.size} "
                "values, some of them not; leave failures out"
            )
        distinct, counts = np.unique(np.log(values), return_counts=True)
        percent = 100 * (np.cumsum(counts) - counts / 2) / values.size
        if distinct.size > _KNOTS:
            wanted = np.linspace(percent[0], percent[-1], _KNOTS)
            kept = np.unique(np.searchsorted(percent, wanted))
            distinct, percent = distinct[kept], percent[kept]
        return cls(int(dim), population, values.size, tuple(distinct.tolist()), tuple(percent.tolist()))

    def percentile(self, kappa: Numbers) -> NDArray[Any]:
        """Percent of the population that is less sure, 0 .. 100, same shape; NaN (a failure) stays NaN.

        Raises:
            InputError: a negative or infinite concentration.
        """
        values = np.asarray(kappa, np.float64)
        if (values < 0).any() or np.isinf(values).any():
            raise InputError("kappa: expected concentrations >= 0 and finite (NaN for a failure to assess)")
        with np.errstate(divide="ignore"):
            found = np.interp(np.log(values), self.log_kappa, self.percent, left=0.0, right=100.0)
        return np.asarray(found)

    def kappa_at(self, percent: Numbers) -> NDArray[Any]:
        """The concentration at a percentile, the inverse within the reference images; same shape."""
        return np.asarray(np.exp(np.interp(np.asarray(percent, np.float64), self.percent, self.log_kappa)))

    def iso(self, kappa: Numbers) -> NDArray[np.int64]:
        """Quality in the manner of ISO/IEC 29794-1: the percentile to the nearest integer, 0 .. 100.

        NaN, a failure to assess, is -1: no number of the scale, and not the worst quality.

        Raises:
            InputError: a negative or infinite concentration.
        """
        percentile = self.percentile(kappa)
        return np.where(np.isnan(percentile), -1, np.floor(np.nan_to_num(percentile) + 0.5)).astype(np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers."""
        return asdict(self) | {"log_kappa": list(self.log_kappa), "percent": list(self.percent)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "KappaScale":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "kappa")
