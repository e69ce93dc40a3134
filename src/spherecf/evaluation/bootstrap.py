"""Confidence intervals by resampling subjects: pairs that share a person are not independent.

Vertex bootstrap: Snijders and Borgatti, "Non-parametric standard errors and tests for network statistics",
Connections 22(2), 1999; for face verification Fogliato, Patil and Perona, "Confidence intervals for error
rates in 1:1 matching tasks", IJCV 2024 (arXiv 2306.01198). Subjects are drawn with replacement; a pair of
two subjects counts as often as the product of their draws, a pair within one subject as often as that
subject was drawn.

`bootstrap_subjects` computes the weights of all pairs, in blocks of draws. For many millions of pairs,
`SubjectRates` and `bootstrap_tmr` compute the summed weights of many pairs under all draws at once, from sums
of rows of the (subjects, draws) counts or a quadratic form. All sums are integers and exact.

In `bootstrap_tmr` the threshold of each draw is among the largest non-mated scores. Only these are sorted, in
buckets, and each bucket is weighted under all draws at once. Pairs are weighted one by one only in the bucket
in which a draw reaches its target.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import allowed_errors, binomial_upper, check_pairs, clopper_pearson
from spherecf.errors import InputError
from spherecf.evaluation.folds import subject_codes
from spherecf.evaluation.rates import check_targets

Statistic = Callable[[NDArray[Any]], Mapping[str, NDArray[Any]]]

_BLOCK_WEIGHTS = 1 << 18  # weights in memory at once: 2 MB, so that a block stays in the processor's cache


@dataclass(frozen=True)
class Interval:
    """Percentile interval of a bootstrapped statistic."""

    low: float
    high: float
    below_zero: float
    """Fraction of draws below 0, for differences."""
    undefined: int = 0
    """Number of draws without a value, e.g. because no mated pair was drawn."""


def check_draws(draws: int, seed: int) -> None:
    """Raise `InputError` if the number of draws or the seed of a bootstrap is negative."""
    for name, value in (("draws", draws), ("seed", seed)):
        if value < 0:
            raise InputError(f"{name}: expected 0 or more, got {value}")


def bootstrap_subjects(
    statistic: Statistic, left: ArrayLike, right: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> dict[str, NDArray[Any]]:
    """Bootstrap a statistic of pairs by resampling their subjects (vertex bootstrap).

    Subjects are drawn with replacement. The weight of a pair is the product of the counts of its two
    subjects, or the count of its subject if both are the same.

    Source: T. Snijders and S. Borgatti, Connections 22(2), 1999; R. Fogliato, P. Patil and P. Perona, IJCV
    2024 (arXiv 2306.01198).

    Args:
        statistic: function from pair weights (block, n) to named values (block,); called for blocks of draws.
        left: (n,) subject of each pair's left image, of any dtype that can be sorted.
        right: (n,) subject of each pair's right image.
        draws: number of resamplings.
        seed: seed of NumPy's PCG64; the result does not depend on the size of the blocks.

    Returns:
        Values of the statistic by name, (draws,) float64 each.

    Raises:
        InputError: the shapes differ, there are fewer than two subjects, or ``draws`` is less than 1.

    Example:
        >>> values = bootstrap_subjects(lambda w: {"pairs": w.sum(1)}, ["a", "b"], ["b", "b"], draws=4)
        >>> values["pairs"].shape
        (4,)
    """
    a, b, people = subject_codes(left, right)
    if people < 2 or draws < 1:
        raise InputError(f"bootstrap: expected at least 2 subjects and 1 draw, got {people} and {draws}")
    check_draws(draws, seed)
    counts = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), draws)
    counts = counts.astype(np.float64)
    same_subject = a == b
    parts: dict[str, list[NDArray[Any]]] = {}
    block = max(1, _BLOCK_WEIGHTS // a.size)
    for start in range(0, draws, block):
        drawn = counts[start : start + block]
        weights = drawn[:, a]
        weights[:, ~same_subject] *= drawn[:, b[~same_subject]]
        with np.errstate(invalid="ignore", divide="ignore"):  # draws without a kind of pair give NaN
            for name, values in statistic(weights).items():
                parts.setdefault(name, []).append(np.asarray(values, np.float64))
    return {name: np.concatenate(blocks) for name, blocks in parts.items()}


def interval(values: NDArray[Any], level: float = 0.95) -> Interval:
    """Percentile interval of the defined draws; the others are counted in ``undefined``.

    Args:
        values: (draws,) values of a statistic; NaN or infinite if undefined.
        level: confidence level.

    Example:
        >>> round(interval(np.arange(-10, 91) / 1.0).low, 6)
        -7.5
    """
    defined = values[np.isfinite(values)]
    if not defined.size:
        return Interval(float("nan"), float("nan"), float("nan"), int(values.size))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), float((defined < 0).mean()), int(values.size - defined.size))


def interval_of(drawn: Mapping[str, NDArray[Any]], name: str) -> Interval | None:
    """Interval of a statistic by name; None if it was not drawn."""
    return interval(drawn[name]) if name in drawn else None


Array = NDArray[Any]

_EXACT = 1 << 24  # float32 represents all integers up to this
_BAGS = 256  # sums of rows computed at once, so that they stay in the processor's cache
_PAIRS = 1 << 16  # pairs looked up at once
_TABLE = 8  # pairs are counted in a table of subjects if it has at most this many cells per pair


class Draws:
    """Counts of the subjects under several draws.

    An extra column of ones is the second "subject" of pairs whose two images show the same subject.
    """

    def __init__(self, counts: Array) -> None:
        self.counts = np.append(counts, np.ones((len(counts), 1)), 1).astype(np.int32)
        """(draws, subjects + 1)."""
        self.rows = torch.from_numpy(np.ascontiguousarray(self.counts.T, np.float32))
        """(subjects + 1, draws)."""
        # NumPy has a radix sort, in linear time, for 16-bit integers.
        self.code_dtype = np.uint16 if counts.shape[1] < 1 << 16 else np.int32
        self.max_count = int(self.counts.max())
        self.max_pairs = max(1, _EXACT // self.max_count**2)
        """Number of pairs whose weights certainly add up exactly in float32."""

    def weigh(self, a: Array, b: Array) -> NDArray[np.float64]:
        """(draws,) summed weight of pairs of subjects a and b.

        For each left subject its count is multiplied by the sum of the counts of its right subjects.
        """
        total = np.zeros(len(self.counts))
        for start in range(0, a.size, self.max_pairs):
            left = a[start : start + self.max_pairs]
            order = np.argsort(left.astype(self.code_dtype), kind="stable")
            left, right = left[order], b[start : start + self.max_pairs][order]
            first = np.flatnonzero(np.append(True, left[1:] != left[:-1]))
            for bag in range(0, first.size, _BAGS):
                starts = first[bag : bag + _BAGS]
                end = first[bag + _BAGS] if bag + _BAGS < first.size else left.size
                right_sums = torch.nn.functional.embedding_bag(
                    torch.from_numpy(right[starts[0] : end]), self.rows,
                    torch.from_numpy((starts - starts[0]).astype(right.dtype)), mode="sum",
                )  # fmt: skip
                left_counts = self.rows.index_select(0, torch.from_numpy(left[starts]))
                total += right_sums.mul_(left_counts).sum(0).double().numpy()
        return total

    def weigh_all(self, people: "Subjects") -> NDArray[np.float64]:
        """(draws,) summed weight of all pairs: a quadratic form, or `weigh` if people have few pairs."""
        table = people.table
        if table is None:
            return np.asarray(np.sum([self.weigh(*people[block]) for block in people.blocks()], axis=0))
        is_exact = float(table.sum(1).max()) * self.max_count < _EXACT
        dtype = torch.float32 if is_exact else torch.float64
        right_sums = table.to(dtype) @ self.rows.to(dtype)
        total: NDArray[np.float64] = right_sums.double().mul_(self.rows[: len(table)]).sum(0).numpy()
        return total


class Subjects:
    """Subjects of both sides as integers 0, 1, ... in ascending order, as `bootstrap_subjects` draws them."""

    def __init__(self, left: ArrayLike, right: ArrayLike, pairs: int) -> None:
        self._sides: Sequence[Array] = (np.asarray(left), np.asarray(right))
        shapes = [side.shape for side in self._sides]
        if shapes != [(pairs,), (pairs,)]:
            raise InputError(f"subjects: expected two ({pairs},) arrays, got {shapes[0]} and {shapes[1]}")
        are_integers = pairs > 0 and all(side.dtype.kind in "iu" for side in self._sides)
        self._low = min(int(side.min()) for side in self._sides) if are_integers else 0
        span = max(int(side.max()) for side in self._sides) - self._low + 1 if are_integers else 0
        # Integers in a small range are numbered by a table, all other subjects by sorting.
        if not 0 < span <= 4 * pairs + _PAIRS:
            names, codes = np.unique(np.concatenate(self._sides), return_inverse=True)
            self._sides, self._low, span = (codes[:pairs], codes[pairs:]), 0, names.size
        occurs = np.zeros(span, np.bool_)
        self._pairs = pairs
        for side, block in product(self._sides, self.blocks()):
            occurs[self._table_index(side[block])] = True
        self._code = np.cumsum(occurs, dtype=np.int32) - 1
        self.count = int(occurs.sum())

    def draw(self, draws: int, rng: np.random.Generator) -> Draws:
        """Draw as many subjects as there are, with replacement, several times."""
        return Draws(rng.multinomial(self.count, np.full(self.count, 1 / self.count), draws))

    def blocks(self) -> Iterator[slice]:
        """All pairs, in blocks."""
        return (slice(start, start + _PAIRS) for start in range(0, self._pairs, _PAIRS))

    @cached_property
    def table(self) -> torch.Tensor | None:
        """(count, count + 1) number of pairs by left and right subject; None if it would be mostly empty."""
        width = self.count + 1
        if self.count * width > _TABLE * self._pairs:
            return None
        table = np.zeros(self.count * width, np.float32)
        for block in self.blocks():
            a, b = self[block]
            np.add.at(table, a.astype(np.int64) * width + b, np.float32(1))  # a Python int is 5 times slower
        return torch.from_numpy(table.reshape(-1, width))

    def __getitem__(self, pairs: slice | Array) -> tuple[Array, Array]:
        """(a, b) subjects of pairs; if both are the same, b is the extra column of ones of `Draws`."""
        a, b = (self._code[self._table_index(side[pairs])] for side in self._sides)
        return a, np.where(a == b, np.int32(self.count), b)

    def _table_index(self, subjects: Array) -> Array:
        index: Array = subjects.astype(np.int64) - self._low
        return index


@dataclass(frozen=True, eq=False)
class SubjectRates:
    """Share of the pairs that reach each threshold, with its uncertainty over people.

    Attributes:
        thresholds: (k,) ascending; a pair reaches a threshold if score >= threshold.
        reached: (k,) number of pairs that reach each threshold.
        pairs: number of all pairs.
        drawn: (draws, k) the share in each bootstrap draw of the subjects, without draws that have no pair.

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
        """Count the pairs that reach each threshold, with draws of the subjects as in `bootstrap_subjects`.

        Args:
            scores: (n,) scores of pairs of one kind, mated or non-mated; for pairs that a rule leaves
                undecided, -inf to count them as below all thresholds or inf to count them as above.
            left: (n,) subject of each pair's left image; integers are fastest.
            right: (n,) subject of each pair's right image.
            thresholds: (k,) ascending.
            draws: number of resamplings; 0 for none.
            seed: seed of NumPy's PCG64.

        Raises:
            InputError: a score is NaN, there are no pairs, the shapes differ, or the thresholds do not
                ascend.
        """
        s, t = np.asarray(scores), np.asarray(thresholds, np.float64)
        if s.ndim != 1 or not s.size or np.isnan(s).any():
            raise InputError(f"scores: expected (n,) numbers, n >= 1 and none NaN, got shape {s.shape}")
        if t.ndim != 1 or not t.size or not (np.diff(t) > 0).all():
            raise InputError("thresholds: expected (k,) ascending numbers, k >= 1")
        check_draws(draws, seed)
        people = Subjects(left, right, s.size)
        # Group pairs by the highest threshold they reach, so that each pair is weighted once per draw: the
        # pairs that reach a threshold are those of its group and of all higher groups.
        rows = np.flatnonzero(s >= t[0])
        level = np.searchsorted(t, s[rows], side="right") - 1  # the highest threshold that a pair reaches
        order = np.argsort(level, kind="stable")
        rows, ends = rows[order], np.cumsum(np.bincount(level, minlength=t.size))
        reached = rows.size - ends + np.diff(np.append(0, ends))
        if not draws:
            return cls(t, reached, s.size, np.empty((0, t.size)))
        drawn = people.draw(draws, np.random.default_rng(seed))
        group_weights = np.zeros((t.size, draws))
        for group in np.flatnonzero(np.diff(np.append(0, ends))).tolist():
            group_rows = rows[ends[group - 1] if group else 0 : ends[group]]
            group_weights[group] = drawn.weigh(*people[group_rows])
        total = drawn.weigh_all(people)
        is_defined = total > 0  # a draw may have no pair at all
        rates = np.cumsum(group_weights[::-1], axis=0)[::-1, is_defined] / total[is_defined]
        return cls(t, reached, s.size, np.ascontiguousarray(rates.T))

    @property
    def rates(self) -> NDArray[np.float64]:
        """(k,) share of the pairs that reach each threshold."""
        return np.asarray(self.reached / self.pairs)

    def interval(self, place: int, level: float = 0.95) -> tuple[float, float]:
        """Percentile interval of the share at ``thresholds[place]``; Clopper-Pearson if it is 0 or 1."""
        if self.reached[place] in (0, self.pairs):  # the same in all draws: they have no spread
            low, high = clopper_pearson(self.reached[place], self.pairs, level)
        else:
            low, high = np.quantile(self.drawn[:, place], [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def upper(self, delta: float, *, below: bool = False) -> NDArray[np.float64]:
        """(k,) upper confidence bounds of the shares.

        Each bound is the larger of two: the bootstrap over subjects, which accounts for pairs that share
        people, and Clopper-Pearson, which is above 0 even if no pair reaches the threshold.

        Args:
            delta: probability that a bound fails, approximately.
            below: bound the share of pairs that do *not* reach the threshold.
        """
        errors = self.pairs - self.reached if below else self.reached
        exact = binomial_upper(errors, np.full(errors.shape, self.pairs), delta)
        if not len(self.drawn):
            return np.asarray(exact)
        drawn = 1 - self.drawn if below else self.drawn
        return np.maximum(exact, np.quantile(drawn, 1 - delta, axis=0))


_COUNTS = 1 << 25  # counts in memory at once, 128 MiB; beyond that, draws are processed in blocks
_BUCKET = 256  # minimum number of pairs in a bucket
_FINE = 32  # a bucket has at most 1 / _FINE as many pairs as are above it, so few are weighted one by one
_SAMPLE = 1 << 18  # pairs used to estimate how far down to sort
_MORE = 1.25  # growth of the number of sorted pairs if some draws have not reached their target


def bootstrap_tmr(
    scores: ArrayLike,
    mated: ArrayLike,
    left_subject: ArrayLike,
    right_subject: ArrayLike,
    targets: Sequence[float],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """Bootstrap TMR at FMR <= target over subjects, for many millions of pairs.

    The draws and results are those of `bootstrap_subjects`.

    Args:
        scores: (n,) larger = more alike; ties are accepted together.
        mated: (n,) true where both images show the same person.
        left_subject: (n,) subject of each pair's left side; integers are fastest.
        right_subject: (n,) subject of each pair's right side.
        targets: FMR targets, 0 < target <= 1.
        draws: number of resamplings.
        seed: seed of NumPy's PCG64.

    Returns:
        "tmr@TARGET" -> (draws,) for every target that all pairs together can resolve; NaN for draws without
        mated pairs.

    Raises:
        InputError: a score is NaN, the shapes differ, the pairs are of one kind only, there are fewer than
            two subjects, or ``draws`` is less than 1.

    Example:
        >>> drawn = bootstrap_tmr([3, 2, 1, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0.5], draws=5)
        >>> drawn["tmr@0.5"].shape
        (5,)
    """
    s, m = check_pairs(scores, mated, keep_type=True)
    people = Subjects(left_subject, right_subject, s.size)
    n_subjects = people.count
    if n_subjects < 2 or draws < 1:
        raise InputError(f"bootstrap: expected at least 2 subjects and 1 draw, got {n_subjects} and {draws}")
    n_non_mated = s.size - int(m.sum())
    resolved = [target for target in check_targets(targets) if allowed_errors(target, n_non_mated) >= 1]
    tmr = {f"tmr@{target:g}": np.empty(draws) for target in resolved}
    if not resolved:
        return tmr
    pairs = _Pairs(s, m, people)
    n_sorted = int(int(allowed_errors(max(resolved), n_non_mated)) * 1.15)
    check_draws(draws, seed)
    rng = np.random.default_rng(seed)
    block = min(draws, max(1, _COUNTS // n_subjects))
    for start in range(0, draws, block):
        drawn = people.draw(min(block, draws - start), rng)
        rates = _tmr_of_draws(pairs, drawn, np.asarray(resolved), n_sorted)
        for values, column in zip(tmr.values(), rates):
            values[start : start + block] = column
    return tmr


@dataclass(frozen=True, eq=False)
class _SortedRun:
    """A run of pairs in descending order of score."""

    scores: Array
    a: Array
    """(n,) left subjects."""
    b: Array
    """(n,) right subjects."""

    @classmethod
    def of(cls, pairs: "_Pairs", rows: Array) -> "_SortedRun":
        order = rows[np.argsort(-pairs.scores[rows])]
        return cls(pairs.scores[order], *pairs.people[order])

    @cached_property
    def ends(self) -> Array:
        """End (exclusive) of each group of tied scores."""
        return np.append(np.flatnonzero(self.scores[1:] != self.scores[:-1]) + 1, self.scores.size)

    def buckets(self, n_above: int) -> Iterator["_SortedRun"]:
        """Split into buckets without splitting ties; ``n_above`` pairs have larger scores than this run."""
        start = 0
        while start < self.scores.size:
            stop = min(self.scores.size, start + max(_BUCKET, (n_above + start) // _FINE))
            stop = int(self.ends[np.searchsorted(self.ends, stop)])
            yield _SortedRun(self.scores[start:stop], self.a[start:stop], self.b[start:stop])
            start = stop

    def crossing(self, counts: Array, weight_above: float, limit: float) -> Any:
        """The largest score at which the summed weight of accepted pairs exceeds the limit."""
        total = weight_above + np.cumsum(counts[self.a] * counts[self.b], dtype=np.int64)
        last = self.ends - 1
        return self.scores[last[np.searchsorted(total[last], limit, "right")]]


class _Pairs:
    """All pairs; the non-mated ones are sorted only as far down as needed."""

    def __init__(self, scores: Array, mated: Array, people: Subjects) -> None:
        self.scores, self.is_non_mated, self.people = scores, ~mated, people
        self.mated = _SortedRun.of(self, np.flatnonzero(mated))
        self._tails: list[_Tail] = []

    def buckets(self, n_sorted: int) -> Iterator[_SortedRun]:
        """Buckets of non-mated pairs by descending score; about ``n_sorted`` are sorted first, then more."""
        number, n_above = 0, 0
        while number < len(self._tails) or not self._tails or self._tails[-1].low > -np.inf:
            if number == len(self._tails):
                low = self._score_at(int(n_sorted * _MORE**number))
                in_tail = self.is_non_mated & (self.scores >= low)
                if self._tails:
                    in_tail &= self.scores < self._tails[-1].low
                self._tails.append(_Tail(low, _SortedRun.of(self, np.flatnonzero(in_tail))))
            tail = self._tails[number].pairs
            yield from tail.buckets(n_above)
            number, n_above = number + 1, n_above + tail.scores.size

    def _score_at(self, count: int) -> Any:
        """A score that about ``count`` non-mated pairs reach, estimated from a sample."""
        step = max(1, self.scores.size // _SAMPLE)
        values = self.scores[::step][self.is_non_mated[::step]]
        index = values.size - count // step
        return np.partition(values, index)[index] if 0 < index < values.size else -np.inf


class _Tail(NamedTuple):
    low: Any
    """All non-mated pairs with at least this score are in this tail or an earlier one."""
    pairs: _SortedRun


def _tmr_of_draws(pairs: _Pairs, drawn: Draws, targets: Array, n_sorted: int) -> Array:
    """(targets, draws) TMR at FMR <= target."""
    # Cumulative weights of the mated pairs, by descending score in pieces: the weight above a threshold then
    # needs a sum over the pairs of one piece only.
    mated, cumulative = pairs.mated, [np.zeros(len(drawn.counts))]  # (draws,) each
    size = max(_BUCKET, mated.a.size // 256)
    for start in range(0, mated.a.size, size):
        piece = slice(start, start + size)
        cumulative.append(cumulative[-1] + drawn.weigh(mated.a[piece], mated.b[piece]))
    non_mated = drawn.weigh_all(pairs.people) - cumulative[-1]
    limits = allowed_errors(targets[:, None], non_mated)  # (targets, draws)
    # Go through the non-mated pairs from the largest score down, one bucket at a time for all draws. The
    # threshold of a draw is in the bucket in which its weight exceeds its limit, and only in this bucket are
    # pairs weighted one by one.
    thresholds = np.full(limits.shape, -np.inf, pairs.scores.dtype)
    above = np.zeros(len(drawn.counts))
    for bucket in pairs.buckets(n_sorted):
        after = above + drawn.weigh(bucket.a, bucket.b)
        for t, d in zip(*np.nonzero((above <= limits) & (limits < after))):
            thresholds[t, d] = bucket.crossing(drawn.counts[d], above[d], limits[t, d])
        above = after
        if ((limits < above) | (limits >= non_mated)).all():
            break
    # True matches: scores strictly above the largest score that must not be accepted.
    accepted = mated.a.size - np.searchsorted(mated.scores[::-1], thresholds, "right")
    true = np.empty(limits.shape)
    for (t, d), count in np.ndenumerate(accepted):
        rest = slice(count // size * size, count)
        counts = drawn.counts[d]
        true[t, d] = cumulative[count // size][d] + (counts[mated.a[rest]] * counts[mated.b[rest]]).sum()
    with np.errstate(invalid="ignore"):
        rates: Array = true / cumulative[-1]
    return rates
