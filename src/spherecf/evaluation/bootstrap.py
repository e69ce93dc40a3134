"""Confidence intervals by resampling subjects: pairs that share a person are not independent.

Vertex bootstrap: Snijders and Borgatti, "Non-parametric standard errors and tests for network statistics",
Connections 22(2), 1999; for face verification Fogliato, Patil and Perona, "Confidence intervals for error
rates in 1:1 matching tasks", IJCV 2024 (arXiv 2306.01198). Subjects are drawn with replacement; a pair of
two subjects counts as often as the product of their draws, a pair within one subject as often as that
subject was drawn.

A pair weighs the product of its two subjects' counts. The weight of many pairs under all draws is a sum of
rows of the (subjects, draws) counts, or a quadratic form. All weights are whole numbers, and exact.

A draw gives every pair a weight, the product of its two subjects' counts. Its threshold lies among the
largest non-mated scores, so only those are sorted, into buckets, and each bucket is weighed under all draws
at once. Inside the one bucket in which a draw crosses its target, pairs are weighed one by one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import allowed_errors, binomial_upper, check_pairs
from spherecf.errors import InputError
from spherecf.evaluation.rates import check_targets

Statistic = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]

_BLOCK_WEIGHTS = 1 << 18  # weights held at once: 2 MB, so that all passes over a block stay in the cache


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a bootstrapped statistic."""

    low: float
    high: float
    below_zero: float
    """Fraction of draws below 0 (for differences)."""
    undefined: int = 0
    """Draws without a value, e.g. because no mated pair was drawn."""


def bootstrap_subjects(
    statistic: Statistic, left: ArrayLike, right: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Values of a statistic under ``draws`` resamplings of the subjects.

    Args:
        statistic: maps pair weights (block, n) to named values (block,); called on blocks of draws.
        left: (n,) subject (any hashable dtype) of each pair's left image.
        right: (n,) subject of the right image.
        draws: number of resamplings.
        seed: of NumPy's PCG64; the result does not depend on how the draws are blocked.

    Returns:
        name -> (draws,) float64.

    Raises:
        InputError: shapes differ, fewer than two subjects, or no draws.

    Example:
        >>> values = bootstrap_subjects(lambda w: {"pairs": w.sum(1)}, ["a", "b"], ["b", "b"], draws=4)
        >>> values["pairs"].shape
        (4,)
    """
    a, b = np.asarray(left), np.asarray(right)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"subjects: expected two (n,) arrays, got {a.shape} and {b.shape}")
    names, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    if len(names) < 2 or draws < 1:
        raise InputError(f"bootstrap: expected at least 2 subjects and 1 draw, got {len(names)} and {draws}")
    a, b = codes[: a.size], codes[a.size :]
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    counts = counts.astype(np.float64)
    same = a == b
    found: dict[str, list[NDArray[Any]]] = {}
    block = max(1, _BLOCK_WEIGHTS // a.size)
    for start in range(0, draws, block):
        drawn = counts[start : start + block]
        weights = drawn[:, a]
        weights[:, ~same] *= drawn[:, b[~same]]
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw may lack a kind of pair: NaN, counted
            for name, values in statistic(weights).items():
                found.setdefault(name, []).append(np.asarray(values, np.float64))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def interval(values: NDArray[Any], level: float = 0.95) -> Interval:
    """Percentile interval, undefined draws left out and counted.

    Example:
        >>> round(interval(np.arange(-10, 91) / 1.0).low, 6)
        -7.5
    """
    defined = values[np.isfinite(values)]
    if not defined.size:
        return Interval(float("nan"), float("nan"), float("nan"), int(values.size))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), float((defined < 0).mean()), int(values.size - defined.size))


Array = NDArray[Any]

_EXACT = 1 << 24  # float32 holds all whole numbers up to this
_BAGS = 256  # sums of rows held at once, so that they stay in the cache
_PAIRS = 1 << 16  # looked up at once


class Draws:
    """Counts of the subjects under several draws; one subject more, drawn once each, stands for nobody."""

    def __init__(self, counts: Array) -> None:
        self.counts = np.append(counts, np.ones((len(counts), 1)), 1).astype(np.int32)
        """(draws, subjects + 1)."""
        self.rows = torch.from_numpy(np.ascontiguousarray(self.counts.T, np.float32))
        self.code = np.uint16 if counts.shape[1] < 1 << 16 else np.int32  # NumPy sorts the first in one pass
        self.largest = int(self.counts.max())
        self.piece = max(1, _EXACT // self.largest**2)
        """Pairs whose weights surely add up exactly in float32."""

    def weigh(self, a: Array, b: Array) -> NDArray[np.float64]:
        """(draws,) summed weight of pairs: for each left subject, its count times the counts it meets."""
        total = np.zeros(len(self.counts))
        for start in range(0, a.size, self.piece):
            left = a[start : start + self.piece]
            order = np.argsort(left.astype(self.code), kind="stable")
            left, right = left[order], b[start : start + self.piece][order]
            first = np.flatnonzero(np.append(True, left[1:] != left[:-1]))
            for bags in range(0, first.size, _BAGS):
                starts = first[bags : bags + _BAGS]
                end = first[bags + _BAGS] if bags + _BAGS < first.size else left.size
                met = torch.nn.functional.embedding_bag(
                    torch.from_numpy(right[starts[0] : end]), self.rows,
                    torch.from_numpy((starts - starts[0]).astype(right.dtype)), mode="sum",
                )  # fmt: skip
                own = self.rows.index_select(0, torch.from_numpy(left[starts]))
                total += met.mul_(own).sum(0).double().numpy()
        return total

    def weigh_table(self, table: torch.Tensor) -> NDArray[np.float64]:
        """`weigh` for pairs given as counts by (left, right)."""
        exact = float(table.sum(1).max()) * self.largest < _EXACT
        kind = torch.float32 if exact else torch.float64
        met = table.to(kind) @ self.rows.to(kind)
        total: NDArray[np.float64] = met.double().mul_(self.rows[: len(table)]).sum(0).numpy()
        return total


class Subjects:
    """Subjects of each side as 0, 1, ... in ascending order, as `bootstrap_subjects` draws them."""

    def __init__(self, left: ArrayLike, right: ArrayLike, pairs: int) -> None:
        self._sides: Sequence[Array] = (np.asarray(left), np.asarray(right))
        shapes = [side.shape for side in self._sides]
        if shapes != [(pairs,), (pairs,)]:
            raise InputError(f"subjects: expected two ({pairs},) arrays, got {shapes[0]} and {shapes[1]}")
        whole = pairs > 0 and all(side.dtype.kind in "iu" for side in self._sides)
        self._low = min(int(side.min()) for side in self._sides) if whole else 0
        span = max(int(side.max()) for side in self._sides) - self._low + 1 if whole else 0
        # Names, and numbers far apart, are numbered by sorting; numbers close together by a table.
        if not 0 < span <= 4 * pairs + _PAIRS:
            names, codes = np.unique(np.concatenate(self._sides), return_inverse=True)
            self._sides, self._low, span = (codes[:pairs], codes[pairs:]), 0, names.size
        seen = np.zeros(span, np.bool_)
        for side, start in product(self._sides, range(0, pairs, _PAIRS)):
            seen[self._place(side[start : start + _PAIRS])] = True
        self._code = np.cumsum(seen, dtype=np.int32) - 1
        self.count = int(seen.sum())

    def __getitem__(self, pairs: slice | Array) -> tuple[Array, Array]:
        """(a, b): where both are one subject, b is nobody: the pair weighs as much as that subject once."""
        a, b = (self._code[self._place(side[pairs])] for side in self._sides)
        return a, np.where(a == b, np.int32(self.count), b)

    def _place(self, subjects: Array) -> Array:
        found: Array = subjects.astype(np.int64) - self._low
        return found


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
        # Pairs in groups by the highest threshold they reach: every draw weighs each pair once, and the sum
        # over the groups above a threshold is what reaches it.
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
        total = total_weight(drawn, people, s.size)
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


def total_weight(drawn: Draws, people: Subjects, pairs: int) -> NDArray[np.float64]:
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


_COUNTS = 1 << 25  # counts held at once, 128 MiB: more subjects or draws are taken in blocks of draws
_BUCKET = 256  # pairs at least in a bucket
_FINE = 32  # a bucket has at most this fraction of the pairs above it, so that few are weighed one by one
_DENSE = 8  # subjects squared per pair up to which all pairs are weighed as one quadratic form
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
    s, m = check_pairs(scores, mated, keep_type=True)
    people = Subjects(left_subject, right_subject, s.size)
    subjects = people.count
    if subjects < 2 or draws < 1:
        raise InputError(f"bootstrap: expected at least 2 subjects and 1 draw, got {subjects} and {draws}")
    non_mated = s.size - int(m.sum())
    resolved = [target for target in check_targets(targets) if allowed_errors(target, non_mated) >= 1]
    found = {f"tmr@{target:g}": np.empty(draws) for target in resolved}
    if not resolved:
        return found
    pairs = _Pairs(s, m, people)
    start = int(int(allowed_errors(max(resolved), non_mated)) * 1.15)
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
    # Mated pairs by descending score: their summed weight after every piece, so that the weight above any
    # threshold needs only the pairs of one piece.
    mated, cumulative = pairs.mated, [np.zeros(len(drawn.counts))]  # each (draws,)
    size = max(_BUCKET, mated.a.size // 256)
    for start in range(0, mated.a.size, size):
        piece = slice(start, start + size)
        cumulative.append(cumulative[-1] + drawn.weigh(mated.a[piece], mated.b[piece]))
    non_mated = pairs.weigh(drawn) - cumulative[-1]
    limits = allowed_errors(targets[:, None], non_mated)  # (targets, draws)
    # Non-mated pairs from the top, a bucket at a time for all draws: a draw's threshold is in the bucket in
    # which its weight passes its limit, and only there are pairs weighed one by one.
    thresholds = np.full(limits.shape, -np.inf, pairs.scores.dtype)
    above = np.zeros(len(drawn.counts))
    for bucket in pairs.buckets(first):
        after = above + drawn.weigh(bucket.a, bucket.b)
        for t, d in zip(*np.nonzero((above <= limits) & (limits < after))):
            thresholds[t, d] = bucket.crossing(drawn.counts[d], above[d], limits[t, d])
        above = after
        if ((limits < above) | (limits >= non_mated)).all():
            break
    # True matches: the scores strictly above the one that must not be accepted.
    accepted = mated.a.size - np.searchsorted(mated.scores[::-1], thresholds, "right")
    true = np.empty(limits.shape)
    for (t, d), count in np.ndenumerate(accepted):
        rest = slice(count // size * size, count)
        counts = drawn.counts[d]
        true[t, d] = cumulative[count // size][d] + (counts[mated.a[rest]] * counts[mated.b[rest]]).sum()
    with np.errstate(invalid="ignore"):
        rates: Array = true / cumulative[-1]
    return rates
