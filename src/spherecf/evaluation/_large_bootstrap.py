"""TMR at FMR under resamplings of the subjects, exact for every draw, of millions of pairs.

A draw gives every pair a weight, the product of its two subjects' counts. Its threshold lies among the
largest non-mated scores, so only those are sorted, into buckets, and each bucket is weighed under all draws
at once. Inside the one bucket in which a draw crosses its target, pairs are weighed one by one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError
from spherecf.evaluation._large import check_many
from spherecf.evaluation._large_draws import Draws, Subjects
from spherecf.evaluation._rates import allowed_false

Array = NDArray[Any]

_COUNTS = 1 << 25  # counts held at once, 128 MiB: more subjects or draws are taken in blocks of draws
_BUCKET = 256  # pairs at least in a bucket
_FINE = 32  # a bucket has at most this fraction of the pairs above it, so that few are weighed one by one
_DENSE = 8  # subjects squared per pair up to which all pairs are weighed as one quadratic form
_PAIRS = 1 << 16
_SAMPLE = 1 << 18  # pairs that tell how far down to sort
_MORE = 1.25  # times as many pairs are sorted, where some draws have not crossed their target


def bootstrap_tmr(
    scores: ArrayLike,
    mated: ArrayLike,
    left_subject: ArrayLike,
    right_subject: ArrayLike,
    targets: Sequence[float],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """TMR at FMR <= target of every draw; draws and numbers are those of `bootstrap_subjects`.

    Args:
        scores: (n,) larger = more alike; ties are accepted together.
        mated: (n,) true where both show one person.
        left_subject: (n,) subject of each pair's left side; whole numbers are fastest.
        right_subject: (n,) of its right side.
        targets: FMR targets.
        draws: number of resamplings.
        seed: of NumPy's PCG64.

    Returns:
        "tmr@TARGET" -> (draws,) for every target that all pairs resolve; NaN where no mated pair was drawn.

    Raises:
        InputError: NaN scores, shapes that differ, one kind of pair, fewer than two subjects, or no draws.

    Example:
        >>> drawn = bootstrap_tmr([3, 2, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0.5], draws=5)
        >>> drawn["tmr@0.5"].shape
        (5,)
    """
    s, m = check_many(scores, mated)
    people = Subjects(left_subject, right_subject, s.size)
    subjects = people.count
    if subjects < 2 or draws < 1:
        raise InputError(f"bootstrap: expected at least 2 subjects and 1 draw, got {subjects} and {draws}")
    non_mated = s.size - int(m.sum())
    resolved = [target for target in targets if allowed_false(target, non_mated) >= 1]
    found = {f"tmr@{target:g}": np.empty(draws) for target in resolved}
    if not resolved:
        return found
    pairs = _Pairs(s, m, people)
    start = int(max(allowed_false(target, non_mated) for target in resolved) * 1.15)
    rng, share = np.random.default_rng(seed), np.full(subjects, 1 / subjects)
    block = min(draws, max(1, _COUNTS // subjects))
    for at in range(0, draws, block):
        drawn = Draws(rng.multinomial(subjects, share, min(block, draws - at)))
        rates = _rates(pairs, drawn, np.asarray(resolved), start)
        for values, column in zip(found.values(), rates):
            values[at : at + block] = column
    return found


@dataclass(frozen=True, eq=False)
class _Ordered:
    """Some pairs by descending score."""

    scores: Array
    a: Array
    b: Array

    @classmethod
    def of(cls, pairs: "_Pairs", at: Array) -> "_Ordered":
        order = at[np.argsort(-pairs.scores[at])]
        return cls(pairs.scores[order], *pairs.people[order])

    @cached_property
    def ends(self) -> Array:
        """Where the next score begins, for every score."""
        return np.append(np.flatnonzero(self.scores[1:] != self.scores[:-1]) + 1, self.scores.size)

    def buckets(self, before: int) -> Iterator["_Ordered"]:
        """Pieces that end where a score ends; ``before`` pairs are above."""
        start = 0
        while start < self.scores.size:
            stop = min(self.scores.size, start + max(_BUCKET, (before + start) // _FINE))
            stop = int(self.ends[np.searchsorted(self.ends, stop)])
            yield _Ordered(self.scores[start:stop], self.a[start:stop], self.b[start:stop])
            start = stop

    def crossing(self, counts: Array, above: float, limit: float) -> Any:
        """The score whose acceptance takes the summed weight beyond the limit."""
        total = above + np.cumsum(counts[self.a] * counts[self.b], dtype=np.int64)
        last = self.ends - 1
        return self.scores[last[np.searchsorted(total[last], limit, "right")]]


class _Pairs:
    """All pairs, sorted as far as asked for."""

    def __init__(self, scores: Array, mated: Array, people: Subjects) -> None:
        self.scores, self.others, self.people = scores, ~mated, people
        self.mated = _Ordered.of(self, np.flatnonzero(mated))
        self._tails: list[_Tail] = []
        self._table: torch.Tensor | None = None

    def weigh(self, drawn: Draws) -> NDArray[np.float64]:
        """Of all pairs, mated or not."""
        blocks = [slice(start, start + _PAIRS) for start in range(0, self.scores.size, _PAIRS)]
        width = self.people.count + 1
        if self.people.count * width > _DENSE * self.scores.size:
            return np.asarray(np.sum([drawn.weigh(*self.people[block]) for block in blocks], axis=0))
        if self._table is None:
            table = np.zeros(width * (width - 1), np.float32)
            for block in blocks:
                a, b = self.people[block]
                np.add.at(table, a.astype(np.int64) * width + b, np.float32(1))  # a plain 1 is 5 times slower
            self._table = torch.from_numpy(table.reshape(-1, width))
        return drawn.weigh_table(self._table)

    def buckets(self, first: int) -> Iterator[_Ordered]:
        """Of the non-mated pairs from the largest score down; about ``first`` are sorted, then more."""
        number, before = 0, 0
        while number < len(self._tails) or not self._tails or self._tails[-1].low > -np.inf:
            if number == len(self._tails):
                low = self._low(int(first * _MORE**number))
                here = self.others & (self.scores >= low)
                if self._tails:
                    here &= self.scores < self._tails[-1].low
                self._tails.append(_Tail(low, _Ordered.of(self, np.flatnonzero(here))))
            tail = self._tails[number].pairs
            yield from tail.buckets(before)
            number, before = number + 1, before + tail.scores.size

    def _low(self, count: int) -> Any:
        """A score that about so many non-mated pairs reach, judged by a sample of them."""
        every = max(1, self.scores.size // _SAMPLE)
        values = self.scores[::every][self.others[::every]]
        at = values.size - count // every
        return np.partition(values, at)[at] if 0 < at < values.size else -np.inf


class _Tail(NamedTuple):
    low: Any
    """All non-mated pairs with at least this score are in this tail or in one before."""
    pairs: _Ordered


def _rates(pairs: _Pairs, drawn: Draws, targets: Array, first: int) -> Array:
    """(targets, draws) TMR."""
    mated, cumulative = pairs.mated, [np.zeros(len(drawn.counts))]
    size = max(_BUCKET, mated.a.size // 256)
    for start in range(0, mated.a.size, size):
        piece = slice(start, start + size)
        cumulative.append(cumulative[-1] + drawn.weigh(mated.a[piece], mated.b[piece]))
    non_mated = pairs.weigh(drawn) - cumulative[-1]
    limits = targets[:, None] * non_mated * (1 + 1e-12)
    thresholds = np.full(limits.shape, -np.inf, pairs.scores.dtype)
    above = np.zeros(len(drawn.counts))
    for bucket in pairs.buckets(first):
        after = above + drawn.weigh(bucket.a, bucket.b)
        for t, d in zip(*np.nonzero((above <= limits) & (limits < after))):
            thresholds[t, d] = bucket.crossing(drawn.counts[d], above[d], limits[t, d])
        above = after
        if ((limits < above) | (limits >= non_mated)).all():
            break
    accepted = mated.a.size - np.searchsorted(mated.scores[::-1], thresholds, "right")
    true = np.empty(limits.shape)
    for (t, d), count in np.ndenumerate(accepted):
        rest = slice(count // size * size, count)
        counts = drawn.counts[d]
        true[t, d] = cumulative[count // size][d] + (counts[mated.a[rest]] * counts[mated.b[rest]]).sum()
    with np.errstate(invalid="ignore"):
        rates: Array = true / cumulative[-1]
    return rates
