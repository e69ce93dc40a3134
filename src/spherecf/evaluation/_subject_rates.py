"""The share of millions of pairs that reaches given thresholds, and the same under resampled subjects."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import binomial_upper
from spherecf.errors import InputError
from spherecf.evaluation._large_draws import Draws, Subjects

Array = NDArray[Any]

_PAIRS = 1 << 16
_TABLE = 8  # subjects squared per pair up to which pairs are counted by their two subjects


@dataclass(frozen=True, eq=False)
class SubjectRates:
    """How many pairs reach each threshold, and how uncertain their share is.

    Attributes:
        thresholds: (k,) ascending; a pair reaches one if its score is not below.
        reached: (k,) number of pairs.
        pairs: all of them.
        drawn: (draws, k) the share under each draw of the subjects; draws without any pair are left out.

    Example:
        >>> rates = SubjectRates.of([0.1, 0.5, 0.9], [0, 0, 1], [1, 2, 2], [0.5, 0.8], draws=200)
        >>> rates.reached.tolist(), rates.pairs, rates.interval(0)
        ([2, 1], 3, (0.0, 1.0))
    """

    thresholds: Array
    reached: NDArray[np.int64]
    pairs: int
    drawn: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        scores: ArrayLike,
        left: ArrayLike,
        right: ArrayLike,
        thresholds: ArrayLike,
        *,
        draws: int = 1000,
        seed: int = 0,
    ) -> "SubjectRates":
        """Count, and draw subjects as `bootstrap_subjects` does.

        Args:
            scores: (n,) of pairs of one kind, mated or not; infinite for pairs that a rule leaves out.
            left: (n,) subject of each pair's left image; whole numbers are fastest.
            right: (n,) of its right image.
            thresholds: (k,) ascending.
            draws: number of resamplings; 0 for none.
            seed: of NumPy's PCG64.

        Raises:
            InputError: NaN, no pairs, shapes that differ, or thresholds that do not ascend.
        """
        s, t = np.asarray(scores), np.asarray(thresholds, np.float64)
        if s.ndim != 1 or not s.size or np.isnan(s).any():
            raise InputError(f"scores: expected (n,) numbers, n >= 1 and none NaN, got shape {s.shape}")
        if t.ndim != 1 or not t.size or not (np.diff(t) > 0).all():
            raise InputError("thresholds: expected (k,) ascending numbers, k >= 1")
        people = Subjects(left, right, s.size)
        inside = np.flatnonzero(s >= t[0])
        level = np.searchsorted(t, s[inside], side="right") - 1  # the highest threshold it reaches
        order = np.argsort(level, kind="stable")
        inside, ends = inside[order], np.cumsum(np.bincount(level, minlength=t.size))
        reached = inside.size - ends + np.diff(np.append(0, ends))
        if not draws:
            return cls(t, reached, s.size, np.empty((0, t.size)))
        share = np.full(people.count, 1 / people.count)
        drawn = Draws(np.random.default_rng(seed).multinomial(people.count, share, draws))
        own = np.zeros((t.size, draws))
        for place in np.flatnonzero(np.diff(np.append(0, ends))).tolist():
            own[place] = drawn.weigh(*people[inside[ends[place - 1] if place else 0 : ends[place]]])
        total = _total(drawn, people, s.size)
        some = total > 0  # a draw may lack any pair; it says nothing
        rates = np.cumsum(own[::-1], axis=0)[::-1, some] / total[some]
        return cls(t, reached, s.size, np.ascontiguousarray(rates.T))

    @property
    def rates(self) -> NDArray[np.float64]:
        """(k,) shares."""
        return np.asarray(self.reached / self.pairs)

    def interval(self, place: int, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of the share at ``thresholds[place]``."""
        low, high = np.quantile(self.drawn[:, place], [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def upper(self, delta: float, *, below: bool = False) -> NDArray[np.float64]:
        """(k,) bounds that the shares exceed with a chance of about delta.

        The larger one of the bootstrap over subjects, which knows that pairs share people, and of Clopper and
        Pearson, which knows that no error seen is not no error.

        Args:
            delta: that chance.
            below: of the share that does *not* reach the threshold.
        """
        errors = self.pairs - self.reached if below else self.reached
        exact = binomial_upper(errors, np.full(errors.shape, self.pairs), delta)
        if not len(self.drawn):
            return np.asarray(exact)
        drawn = 1 - self.drawn if below else self.drawn
        return np.maximum(exact, np.quantile(drawn, 1 - delta, axis=0))


def _total(drawn: Draws, people: Subjects, pairs: int) -> NDArray[np.float64]:
    """Summed weight of all pairs, by draw."""
    blocks = [slice(start, start + _PAIRS) for start in range(0, pairs, _PAIRS)]
    width = people.count + 1
    if people.count * width > _TABLE * pairs:
        return np.asarray(np.sum([drawn.weigh(*people[block]) for block in blocks], axis=0))
    table = np.zeros(people.count * width, np.float32)
    for block in blocks:
        a, b = people[block]
        table += np.bincount(a.astype(np.int64) * width + b, minlength=table.size)
    return drawn.weigh_table(torch.from_numpy(table.reshape(-1, width)))
