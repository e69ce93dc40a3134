"""Upper bounds on the mutual likelihood scores of many templates at once.

With the probe's kappa k' and the cosine c held fixed, the mutual likelihood score as a function of the
template's kappa k is, up to a constant,

    s(k) = log C(k') + log C(k) - log C(p),        p(k) = |k' x + k y| = sqrt((k - k')^2 + 2 k k' (1 + c)).

As -d log C(k) / dk = A(k), its slope is s'(k) = A(p) p'(k) - A(k) with p'(k) = (k + k' c) / p. In a bin
[lo, hi] of kappas

- A is increasing, so A(k) lies between A(lo) and A(hi);
- p is the length of an affine function of k, hence convex: its largest value is at an end, its smallest at
  k = -k' c if that lies within, else at an end; and p' is increasing, from p'(lo) to p'(hi);
- so A(p) p' lies between A(p_min or p_max) p'(lo) and A(p_max or p_min) p'(hi), the former of each pair
  where that p' is not negative. At p = 0, where p' jumps, -1 and 1 are taken.

This gives l <= s' <= u, and s lies below both lines s(lo) + u (k - lo) and s(hi) - l (hi - k); the highest
point below both is the bound: s(lo) if u <= 0, s(hi) if l >= 0, else where they cross. The lines leave the
curve by at most (hi - lo) (u - l), which shrinks with the square of the bin's width.

s is increasing in c for fixed kappas (p is increasing in c, -log C in p). So a bound at c that is below the
score to beat rules out every template of the bin whose cosine is at most c.
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

_RELATIVE = 1e-12  # of the kappas, for the rounding of float64 in scores
_ABSOLUTE = 1e-7
_SMALLEST_P = 1e-12  # stands in for p = 0


@dataclass(frozen=True, eq=False)
class BinEnds:
    """Smallest and largest kappa of each bin, and functions of them that the bound needs; each (b,).

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
    """log C_d + kappa at the smallest."""
    scaled_high: Array
    """At the largest."""
    length_low: Array
    """A_d at the smallest."""
    length_high: Array
    """At the largest."""

    @classmethod
    def of(cls, low: Array, high: Array, dim: int) -> "BinEnds":
        """From the ends."""
        return cls(low, high, _scaled(low, dim), _scaled(high, dim), _length(low, dim), _length(high, dim))

    @classmethod
    def joined(cls, several: "Sequence[BinEnds]") -> "BinEnds":
        """One after the other."""
        return cls(*(np.concatenate([getattr(one, f.name) for one in several]) for f in fields(cls)))

    def at(self, bins: NDArray[np.int64]) -> "BinEnds":
        """Those of some bins, which may come more than once."""
        return BinEnds(*(getattr(self, one.name)[bins] for one in fields(self)))


class Bound:
    """Bounds for probes against bins of templates; all arrays are broadcast.

    Args:
        kappa: of the probes, >= 0.
        dim: d.
        radius: r of the score.
    """

    def __init__(self, kappa: Array, dim: int, radius: float) -> None:
        self.kappa, self.dim = kappa, dim
        self._probe_term = _scaled(kappa, dim) - dim * math.log(radius)

    def at(self, probes: Any) -> "Bound":
        """The bounds for some of the probes, which may come more than once."""
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
        first = self._slope(ends.low, p_low, cosine, -1.0)
        last = self._slope(ends.high, p_high, cosine, 1.0)
        min_slope = np.where(first >= 0, a_min, a_max) * first - ends.length_high
        max_slope = np.where(last >= 0, a_max, a_min) * last - ends.length_low
        low = self._score(ends.scaled_low, p_low, distance_low)
        high = self._score(ends.scaled_high, p_high, distance_high)
        width = ends.high - ends.low
        spread = np.where(max_slope > min_slope, max_slope - min_slope, 1.0)
        cross = np.clip((high - low - min_slope * width) / spread, 0.0, width)
        peak = np.where((max_slope > 0) & (min_slope < 0), low + max_slope * cross, np.maximum(low, high))
        return np.maximum(peak, np.maximum(low, high)) + self._slack(ends.high)

    def of_rows(self, kappa: Array, cosine: Array) -> Array:
        """Upper bound on the scores of templates with these kappas and cosines."""
        return self._score(_scaled(kappa, self.dim), *self._product(kappa, cosine)) + self._slack(kappa)

    def cosines(self, ends: BinEnds, cosine: Array, beat: Array) -> Array:
        """Cosines up to which no template of a bin reaches the score ``beat``; -2 where none was found.

        Args:
            ends: of bins that have some template that may reach it.
            cosine: their highest cosines.
            beat: the score.
        """
        step = np.full(cosine.shape, _STEP)
        above, found = self.of_bins(ends, cosine), np.full(cosine.shape, -2.0)
        for _ in range(2):  # the second step is along the slope that the first one met
            lower = np.clip(cosine - step, -1.0, 1.0)
            below = self.of_bins(ends, lower)
            found = np.where((below < beat) & (found < -1), lower, found)
            with np.errstate(divide="ignore", invalid="ignore"):
                step = 1.2 * step * (above - beat) / (above - below) + _STEP
        return found

    def _slack(self, kappa: Array) -> Array:
        return _ABSOLUTE + _RELATIVE * (self.kappa + kappa)

    def _product(self, kappa: Array, cosine: Array) -> tuple[Array, Array]:
        """(p, k + k' - p) with templates of these kappas at these cosines."""
        c = torch.from_numpy(cosine)
        p, _, apart = product_concentration(
            torch.from_numpy(kappa), torch.from_numpy(self.kappa), 1 + c, 1 - c, smallest=_SMALLEST_P**2
        )
        return p.numpy(), apart.numpy()

    def _slope(self, kappa: Array, p: Array, cosine: Array, at_zero: float) -> Array:
        slope = np.clip((kappa + self.kappa * cosine) / p, -1.0, 1.0)
        return np.where(p > 2 * _SMALLEST_P, slope, at_zero)

    def _score(self, scaled: Array, p: Array, distance: Array) -> Array:
        """Equation 13, as in `spherecf.scoring.pairs`; ``scaled`` is c(k) of the templates."""
        score: Array = self._probe_term + scaled - _scaled(p, self.dim) - distance
        return score


_STEP = 0.02  # of a cosine


def _scaled(kappa: Array, dim: int) -> Array:
    """log C_d(kappa) + kappa."""
    value: Array = log_normalizer_scaled(torch.from_numpy(kappa), dim).numpy()
    return value


def _length(kappa: Array, dim: int) -> Array:
    """A_d(kappa)."""
    value: Array = mean_resultant_length(torch.from_numpy(kappa), dim).numpy()
    return value
