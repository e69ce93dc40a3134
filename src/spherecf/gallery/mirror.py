"""The templates of a gallery in memory, ordered by kappa so that a search can rule out whole bins.

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
from dataclasses import dataclass
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
        >>> bound = Bound(50.0, ends, 8, 64.0)
        >>> bound.score(np.array([0.9])) < bound.score(np.array([1.0]))
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


class Bound:
    """Bounds for one probe against bins of templates.

    Args:
        kappa: of the probe, >= 0.
        bins: of the gallery.
        dim: d.
        radius: r of the score.
    """

    def __init__(self, kappa: float, bins: BinEnds, dim: int, radius: float) -> None:
        self.kappa, self.bins, self.dim = kappa, bins, dim
        self._tensor = torch.tensor(kappa, dtype=torch.float64)
        self.probe_term = _scaled(np.array([kappa]), dim)[0] - dim * math.log(radius)

    def score(self, cosine: Array) -> Array:
        """(b,) upper bound on the scores of templates in each bin whose cosine is at most ``cosine`` (b,)."""
        b = self.bins
        p_low, distance_low = self._product(b.low, cosine)
        p_high, distance_high = self._product(b.high, cosine)
        p_max = np.maximum(p_low, p_high)
        p_min, _ = self._product(np.clip(-self.kappa * cosine, b.low, b.high), cosine)
        a_max, a_min = np.split(_length(np.concatenate([p_max, p_min]), self.dim), 2)
        first = self._slope(b.low, p_low, cosine, -1.0)
        last = self._slope(b.high, p_high, cosine, 1.0)
        min_slope = np.where(first >= 0, a_min, a_max) * first - b.length_high
        max_slope = np.where(last >= 0, a_max, a_min) * last - b.length_low
        low = self._score(b.scaled_low, p_low, distance_low)
        high = self._score(b.scaled_high, p_high, distance_high)
        width = b.high - b.low
        spread = np.where(max_slope > min_slope, max_slope - min_slope, 1.0)
        cross = np.clip((high - low - min_slope * width) / spread, 0.0, width)
        peak = np.where((max_slope > 0) & (min_slope < 0), low + max_slope * cross, np.maximum(low, high))
        return np.maximum(peak, np.maximum(low, high)) + self._slack(b.high)

    def reached(self, kappa: Array, cosine: Array) -> Array:
        """(n,) upper bound on the scores of templates with these kappas (n,) and cosines (n,)."""
        return self._score(_scaled(kappa, self.dim), *self._product(kappa, cosine)) + self._slack(kappa)

    def _slack(self, kappa: Array) -> Array:
        return _ABSOLUTE + _RELATIVE * (self.kappa + kappa)

    def _product(self, kappa: Array, cosine: Array) -> tuple[Array, Array]:
        """(p, k + k' - p), each (n,), with templates of these kappas (n,) at these cosines (n,)."""
        c = torch.from_numpy(cosine)
        p, _, apart = product_concentration(
            torch.from_numpy(kappa), self._tensor, 1 + c, 1 - c, smallest=_SMALLEST_P**2
        )
        return p.numpy(), apart.numpy()

    def _slope(self, kappa: Array, p: Array, cosine: Array, at_zero: float) -> Array:
        slope = np.clip((kappa + self.kappa * cosine) / p, -1.0, 1.0)
        return np.where(p > 2 * _SMALLEST_P, slope, at_zero)

    def _score(self, scaled: Array, p: Array, distance: Array) -> Array:
        """(n,) equation 13, as in `spherecf.scoring.pairs`; ``scaled`` is c(k) of the templates."""
        score: Array = self.probe_term + scaled - _scaled(p, self.dim) - distance
        return score


def _scaled(kappa: Array, dim: int) -> Array:
    """log C_d(kappa) + kappa."""
    value: Array = log_normalizer_scaled(torch.from_numpy(kappa), dim).numpy()
    return value


def _length(kappa: Array, dim: int) -> Array:
    """A_d(kappa)."""
    value: Array = mean_resultant_length(torch.from_numpy(kappa), dim).numpy()
    return value


_BIN_ROWS = 4096  # templates per bin of kappa
_TAIL = 4096  # new templates appended in order of arrival before all are sorted again

_COLUMNS = {"key": "U32", "kappa": "f4", "images": "i4", "media": "i4", "alive": "?"}


@dataclass(frozen=True, eq=False)
class KappaBins:
    """Bins of consecutive rows of the mirror."""

    starts: NDArray[np.int64]
    """(b,) first row of each bin; it ends where the next begins."""
    ends: BinEnds
    """Range of kappa in each bin."""


class Mirror:
    """Keys, names, directions and concentrations; new rows are appended, and sorted from time to time.

    Example:
        >>> mirror = Mirror(3)
        >>> mirror.extend(["a", "b"], ["Ann", "Bob"], np.eye(3, dtype=np.float32)[:2], [7, 3], [1, 1], [1, 1])
        >>> len(mirror), mirror.names[mirror.find("b")], mirror.kappa.tolist()
        (2, 'Bob', [7.0, 3.0])
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._mu = np.empty((0, dim), np.float32)
        self._columns = {name: np.empty(0, kind) for name, kind in _COLUMNS.items()}
        self.names: list[str] = []
        self._row_of: dict[str, int] = {}
        self._ordered, self._used = 0, 0
        self._bins: KappaBins | None = None
        self.changes = 0

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def mu(self) -> NDArray[np.float32]:
        """(rows, dim) directions; zeros for removed templates."""
        return self._mu[: self._used]

    @property
    def kappa(self) -> NDArray[np.float32]:
        """(rows,) concentrations."""
        return self._column("kappa")

    @property
    def alive(self) -> NDArray[np.bool_]:
        """(rows,) False for removed templates."""
        return self._column("alive")

    @property
    def images(self) -> NDArray[np.int32]:
        """(rows,) number of images per template."""
        return self._column("images")

    @property
    def media(self) -> NDArray[np.int32]:
        """(rows,) number of media per template."""
        return self._column("media")

    @property
    def keys(self) -> NDArray[Any]:
        """(rows,) keys, as strings."""
        return self._column("key")

    def find(self, key: str) -> int | None:
        """Row of a key."""
        return self._row_of.get(key)

    def extend(
        self, keys: Sequence[str], names: Sequence[str], mu: NDArray[np.float32], kappa: Any, images: Any,
        media: Any,
    ) -> None:  # fmt: skip
        """Append templates whose keys are new."""
        first, self._used = self._used, self._used + len(keys)
        self._grow()
        self._mu[first : self._used] = mu
        for name, values in zip(_COLUMNS, (keys, kappa, images, media, True)):
            self._columns[name][first : self._used] = values
        self.names.extend(names)
        self._row_of.update(zip(keys, range(first, self._used)))
        self._bins = None
        self.changes += 1

    def put(
        self, key: str, name: str, mu: NDArray[np.float32], kappa: float, images: int, media: int
    ) -> None:
        """Append a template; it replaces the one with the same key."""
        self.drop(key)
        self.extend([key], [name], mu[None], [kappa], [images], [media])

    def drop(self, key: str) -> bool:
        """Remove a template and clear its direction; False if there is none."""
        row = self._row_of.pop(key, None)
        if row is None:
            return False
        self._mu[row] = 0
        self.names[row] = ""
        self._columns["alive"][row] = False
        self.changes += 1
        return True

    def bins(self) -> KappaBins:
        """The bins; sorts the rows by kappa first if many are new."""
        if self._bins is None:
            if self._used - self._ordered > max(_TAIL, self._ordered // 16) or not self._ordered:
                self._order()
            ordered = np.arange(0, self._ordered, _BIN_ROWS)
            starts = np.append(ordered, np.arange(self._ordered, self._used, _BIN_ROWS))
            kappa = self.kappa.astype(np.float64)
            low, high = np.minimum.reduceat(kappa, starts), np.maximum.reduceat(kappa, starts)
            self._bins = KappaBins(starts, BinEnds.of(low, high, self.dim))
        return self._bins

    def _order(self) -> None:
        alive = np.flatnonzero(self.alive)
        order = alive[np.argsort(self.kappa[alive], kind="stable")]
        self._mu = self._mu[order]
        self._columns = {name: column[order] for name, column in self._columns.items()}
        self.names = [self.names[row] for row in order]
        self._row_of = {key: row for row, key in enumerate(self._columns["key"].tolist())}
        self._ordered = self._used = len(order)

    def _grow(self) -> None:
        if self._used > len(self._mu):
            capacity = max(self._used, len(self._mu) * 5 // 4, 64)
            self._mu = _longer(self._mu, capacity)
            self._columns = {name: _longer(column, capacity) for name, column in self._columns.items()}

    def _column(self, name: str) -> NDArray[Any]:
        return self._columns[name][: self._used]


def _longer(column: NDArray[Any], capacity: int) -> NDArray[Any]:
    longer = np.empty((capacity, *column.shape[1:]), column.dtype)
    longer[: len(column)] = column
    return longer
