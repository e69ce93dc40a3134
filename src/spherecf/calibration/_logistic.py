"""Score to log-likelihood ratio by a straight line."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf._parsing import checked
from spherecf.calibration._labelled import Numbers, check_counts, check_radius, finite, labelled, llr_limits
from spherecf.errors import InputError

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
