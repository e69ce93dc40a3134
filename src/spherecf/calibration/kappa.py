"""What a concentration means among the faces of a stated population."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration.checks import Numbers, check_counts
from spherecf.common.parsing import checked
from spherecf.errors import InputError

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
