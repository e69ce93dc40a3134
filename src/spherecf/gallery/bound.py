"""Upper bounds on the mutual likelihood scores of many templates at once.

For a fixed kappa k' of the probe and a fixed cosine c, the mutual likelihood score as a function of the
template's kappa k is, up to a constant,

    s(k) = log C(k') + log C(k) - log C(p),        p(k) = |k' x + k y| = sqrt((k - k')^2 + 2 k k' (1 + c)).

Since -d log C(k) / dk = A(k), its slope is s'(k) = A(p) p'(k) - A(k) with p'(k) = (k + k' c) / p. For the
kappas k in a bin [lo, hi]:

- A is increasing, so A(k) is between A(lo) and A(hi).
- p is the length of an affine function of k, and hence convex. Its maximum is at an end of the bin. Its
  minimum is at k = -k' c if this is in the bin, and at an end otherwise. p' increases from p'(lo) to p'(hi).
- So A(p) p' is between A(p_min or p_max) p'(lo) and A(p_max or p_min) p'(hi), where the first alternative of
  each pair applies if that p' is not negative. At p = 0, where p' jumps, -1 and 1 are used.

This gives bounds l <= s' <= u on the slope, so s is below the two lines s(lo) + u (k - lo) and
s(hi) - l (hi - k). The bound is the highest point below both lines: s(lo) if u <= 0, s(hi) if l >= 0,
otherwise their intersection. It exceeds the curve by at most (hi - lo) (u - l), which shrinks with the square
of the width of the bin.

For fixed kappas, s is increasing in c (p is increasing in c, and -log C is increasing in p). So if the bound
at c is below the score to beat, it rules out every template of the bin whose cosine is at most c.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.vmf import log_normalizer_scaled, mean_resultant_length, product_concentration

Array = NDArray[np.float64]

_RELATIVE = 1e-12  # relative to the kappas: allowance for float64 rounding of the scores
_ABSOLUTE = 1e-7  # absolute allowance
_MIN_P = 1e-12  # replaces p = 0


@dataclass(frozen=True, eq=False)
class BinEnds:
    """Smallest and largest kappa of each bin, with the functions of them that the bound needs; each (b,).

    Example:
        >>> ends = BinEnds.of(np.array([10.0]), np.array([12.0]), 8)
        >>> bound = Bound(np.array([50.0]), 8, 64.0)
        >>> bound.of_bins(ends, np.array([0.9])) < bound.of_bins(ends, np.array([1.0]))
        array([ True])
    """

    low: Array
    """Smallest kappa."""
    high: Array
    """Largest kappa."""
    scaled_low: Array
    """log C_d(kappa) + kappa at the smallest kappa."""
    scaled_high: Array
    """log C_d(kappa) + kappa at the largest kappa."""
    length_low: Array
    """A_d(kappa) at the smallest kappa."""
    length_high: Array
    """A_d(kappa) at the largest kappa."""

    @classmethod
    def of(cls, low: Array, high: Array, dim: int) -> "BinEnds":
        """Compute all columns from the smallest and largest kappas."""
        return cls(low, high, _scaled(low, dim), _scaled(high, dim), _length(low, dim), _length(high, dim))

    @classmethod
    def joined(cls, parts: "Sequence[BinEnds]") -> "BinEnds":
        """Concatenate the bins of several parts."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def at(self, bins: NDArray[np.int64]) -> "BinEnds":
        """Select bins; an index may occur more than once."""
        return BinEnds(*(getattr(self, column.name)[bins] for column in fields(self)))


class Bound:
    """Upper bounds on the scores of probes against bins of templates. All arrays are broadcast.

    Args:
        kappa: concentrations of the probes, >= 0.
        dim: dimension d of the directions.
        radius: radius r of the score.
    """

    def __init__(self, kappa: Array, dim: int, radius: float) -> None:
        self.kappa, self.dim = kappa, dim
        self._probe_term = _scaled(kappa, dim) - dim * math.log(radius)

    def at(self, probes: Any) -> "Bound":
        """Select probes; an index may occur more than once."""
        bound = object.__new__(Bound)
        bound.kappa, bound.dim = self.kappa[probes], self.dim
        bound._probe_term = self._probe_term[probes]
        return bound

    def of_bins(self, ends: BinEnds, cosine: Array) -> Array:
        """Upper bound on the scores of the templates in each bin whose cosine is at most ``cosine``."""
        p_low, distance_low = self._product(ends.low, cosine)
        p_high, distance_high = self._product(ends.high, cosine)
        p_max = np.maximum(p_low, p_high)
        p_min, _ = self._product(np.clip(-self.kappa * cosine, ends.low, ends.high), cosine)
        a_max, a_min = _length(np.stack([p_max, p_min]), self.dim)
        p_slope_low = self._slope(ends.low, p_low, cosine, -1.0)
        p_slope_high = self._slope(ends.high, p_high, cosine, 1.0)
        min_slope = np.where(p_slope_low >= 0, a_min, a_max) * p_slope_low - ends.length_high
        max_slope = np.where(p_slope_high >= 0, a_max, a_min) * p_slope_high - ends.length_low
        score_low = self._score(ends.scaled_low, p_low, distance_low)
        score_high = self._score(ends.scaled_high, p_high, distance_high)
        width = ends.high - ends.low
        slope_range = np.where(max_slope > min_slope, max_slope - min_slope, 1.0)
        crossing = np.clip((score_high - score_low - min_slope * width) / slope_range, 0.0, width)
        max_end = np.maximum(score_low, score_high)
        peak = np.where((max_slope > 0) & (min_slope < 0), score_low + max_slope * crossing, max_end)
        return np.maximum(peak, max_end) + self._slack(ends.high)

    def of_rows(self, kappa: Array, cosine: Array) -> Array:
        """Upper bound on the scores of templates with these kappas and cosines."""
        return self._score(_scaled(kappa, self.dim), *self._product(kappa, cosine)) + self._slack(kappa)

    def cosines(self, ends: BinEnds, cosine: Array, beat: Array) -> Array:
        """For each bin, a cosine up to which no template reaches the score ``beat``; -2 if none was found.

        Args:
            ends: ends of bins in which a template may reach the score.
            cosine: highest cosine in each bin.
            beat: score to beat.
        """
        step = np.full(cosine.shape, _STEP)
        bound_at_cosine, result = self.of_bins(ends, cosine), np.full(cosine.shape, -2.0)
        for _ in range(2):  # the second step uses the slope measured by the first step
            lower = np.clip(cosine - step, -1.0, 1.0)
            bound_at_lower = self.of_bins(ends, lower)
            result = np.where((bound_at_lower < beat) & (result < -1), lower, result)
            with np.errstate(divide="ignore", invalid="ignore"):
                step = 1.2 * step * (bound_at_cosine - beat) / (bound_at_cosine - bound_at_lower) + _STEP
        return result

    def _slack(self, kappa: Array) -> Array:
        return _ABSOLUTE + _RELATIVE * (self.kappa + kappa)

    def _product(self, kappa: Array, cosine: Array) -> tuple[Array, Array]:
        """(p, k + k' - p) for templates with these kappas and cosines."""
        c = torch.from_numpy(cosine)
        p, _, distance = product_concentration(
            torch.from_numpy(kappa), torch.from_numpy(self.kappa), 1 + c, 1 - c, min_square=_MIN_P**2
        )
        return p.numpy(), distance.numpy()

    def _slope(self, kappa: Array, p: Array, cosine: Array, at_zero: float) -> Array:
        slope = np.clip((kappa + self.kappa * cosine) / p, -1.0, 1.0)
        return np.where(p > 2 * _MIN_P, slope, at_zero)

    def _score(self, scaled: Array, p: Array, distance: Array) -> Array:
        """Mutual likelihood score (paper equation 13), as in `spherecf.scoring.pairs`.

        Args:
            scaled: log C_d(k) + k of the templates.
            p: length of k' x + k y.
            distance: k + k' - p.
        """
        score: Array = self._probe_term + scaled - _scaled(p, self.dim) - distance
        return score


_STEP = 0.02  # first step of the search for a cosine


def _scaled(kappa: Array, dim: int) -> Array:
    """log C_d(kappa) + kappa."""
    value: Array = log_normalizer_scaled(torch.from_numpy(kappa), dim).numpy()
    return value


def _length(kappa: Array, dim: int) -> Array:
    """A_d(kappa)."""
    value: Array = mean_resultant_length(torch.from_numpy(kappa), dim).numpy()
    return value
