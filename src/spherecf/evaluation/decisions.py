"""Decision rules whose errors stay below a bound with high probability, under every condition tested.

Learn then test (Angelopoulos, Bates, Candès, Jordan and Lei, arXiv 2110.01052): candidate rules are put in
order on one part of the data and tested in that order on another, each at level delta, until the first one
fails (fixed-sequence testing: no correction for their number). The order is that of Pareto testing
(Laufer-Goldshtein et al., ICLR 2023, arXiv 2210.07913): from the safest rule on, only those that decide more.

`bounded_rule` tests in sequence as well: its order is from the strictest threshold on, which is known
before any data are seen, so nothing is spent on finding it and all pairs can test.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import DecisionRule, ErrorCount, binomial_cdf, binomial_upper, check_pairs
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import SubjectRates

Array = NDArray[Any]
ErrorKind = Literal["both", "decision", "fmr", "false-match-share"]
Abstain = Literal["both", "score", "confidence"]

ERRORS: tuple[ErrorKind, ...] = ("both", "decision", "fmr", "false-match-share")
TAILS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
PARTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FLOORS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, eq=False)
class ScoredPairs:
    """Pairs with what a rule reads and what is true.

    Args:
        scores: (n,) larger = more alike.
        confidences: (n,) of the pairs, larger = surer, e.g. the smaller kappa of the two; see `pair_quality`.
        mated: (n,) true where both images show one person.
        score: name of the score, for rules made on these pairs, as are the next three.
        radius: r of the score "mls".
        confidence: name of the confidence.
        kind: what the pairs are.

    Raises:
        InputError: NaN, shapes that differ, or only one kind of pair.
    """

    scores: Array
    confidences: Array
    mated: Array
    score: str = "mls"
    radius: float | None = None
    confidence: str = "kappa"
    kind: str = "pairs"

    def __post_init__(self) -> None:
        s, m = check_pairs(self.scores, self.mated)
        c = np.asarray(self.confidences, np.float64)
        if c.shape != s.shape or np.isnan(c).any():
            raise InputError(f"confidences: expected {s.shape} numbers without NaN, got shape {c.shape}")
        for name, column in (("scores", s), ("confidences", c), ("mated", m)):
            object.__setattr__(self, name, column)

    def select(self, rows: ArrayLike) -> "ScoredPairs":
        """These pairs only."""
        at = np.asarray(rows)
        return replace(
            self, scores=self.scores[at], confidences=self.confidences[at], mated=self.mated[at]
        )  # fmt: skip


def choose_decision(
    tuning: ScoredPairs,
    testing: ScoredPairs,
    *,
    alpha: float,
    delta: float = 0.05,
    error: ErrorKind = "both",
    abstain: Abstain = "both",
    tails: Sequence[float] = TAILS,
    floors: Sequence[float] = FLOORS,
) -> DecisionRule:
    """The rule that decides most, among those shown to err at most ``alpha``; or one that decides nothing.

    With probability at least 1 - delta over the testing pairs, the rate of ``error`` of the rule on further
    pairs exchangeable with them is at most alpha; exactly so if the testing pairs are independent of each
    other (`disjoint_pairs`) and of the tuning pairs (`split_subjects`).

    What ``error`` bounds:

    - ``"both"``: the share of false matches among the non-mated pairs decided, and the share of false
      non-matches among the mated pairs decided. Holds for any mix of mated and non-mated pairs.
    - ``"decision"``: the share of wrong decisions. Holds for the mix in the data only.
    - ``"fmr"``: the share of false matches among the non-mated pairs decided. Any mix.
    - ``"false-match-share"``: the share of non-mated pairs among the matches. The mix in the data only.

    Args:
        tuning: chooses the candidates and their order.
        testing: tests them, and names the rule's score; nobody of ``tuning`` should be in it.
        alpha: bound on the error.
        delta: chance that the promise is not kept.
        error: see above.
        abstain: by "score" (a band between two thresholds), by "confidence" (a floor), or by both.
        tails: candidates for thresholds: the scores that so large a share of the mated tuning pairs falls
            below, and of the non-mated ones reaches; parts of alpha are added.
        floors: candidates for the confidence: shares of the tuning pairs that fall below.

    Raises:
        InputError: alpha or delta outside 0 .. 1, or an unknown name.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> mated = np.arange(4000) % 2 == 0
        >>> sure = rng.uniform(0.1, 3, 4000)
        >>> pairs = ScoredPairs(rng.normal(size=4000) + 2 * sure * mated, sure, mated)
        >>> rows = np.arange(4000)
        >>> rule = choose_decision(pairs.select(rows < 2000), pairs.select(rows >= 2000), alpha=0.02)
        >>> rule.decides, bool(rule.reject < rule.accept), max(c.upper for c in rule.counts) <= 0.02
        (True, True, True)
    """
    if not (0 < alpha < 1 and 0 < delta < 1):
        raise InputError(f"expected alpha and delta within 0 .. 1, got {alpha} and {delta}")
    if error not in ERRORS or abstain not in ("both", "score", "confidence"):
        raise InputError(f"unknown error {error!r} or abstain {abstain!r}; errors are {', '.join(ERRORS)}")
    grid = _Grid.of(tuning, [*tails, *(alpha * part for part in PARTS)], floors if abstain != "score" else ())
    banded = abstain != "confidence" and error in ("both", "decision")
    floor, reject, accept = grid.candidates(banded)
    counts = grid.count(tuning, floor, reject, accept)
    path = _path(*_p_and_gain(counts, tuning, error, alpha))
    floor, reject, accept = floor[path], reject[path], accept[path]
    seen = grid.count(testing, floor, reject, accept)
    p = _p_and_gain(seen, testing, error, alpha)[0]
    passed = int(np.argmax(np.append(p > delta, True)))
    nothing = DecisionRule(
        testing.score, testing.radius, testing.confidence, None, None, -np.inf, error, alpha, delta,
        testing.kind,
    )  # fmt: skip
    if not passed:
        return nothing
    last = passed - 1
    return replace(
        nothing,
        accept=float(grid.thresholds[accept[last]]),
        reject=float(grid.thresholds[reject[last]]),
        min_confidence=float(grid.floors[floor[last]]),
        counts=tuple(
            ErrorCount(name, int(e[last]), int(n[last]), float(binomial_upper(e[last], n[last], delta)))
            for name, e, n in errors_of(seen, error)
        ),
    )


@dataclass(frozen=True, eq=False)
class Counts:
    """Of each candidate: mated and non-mated pairs matched, and not matched; the rest is undecided."""

    true_match: Array
    false_match: Array
    false_non_match: Array
    true_non_match: Array


@dataclass(frozen=True, eq=False)
class _Grid:
    thresholds: Array
    floors: Array

    @classmethod
    def of(cls, pairs: ScoredPairs, tails: Sequence[float], floors: Sequence[float]) -> "_Grid":
        same, other = pairs.scores[pairs.mated], pairs.scores[~pairs.mated]
        shares = np.asarray(tails, np.float64)
        ends = np.concatenate(
            [np.quantile(same, shares), np.quantile(other, 1 - shares), [pairs.scores.max()]]
        )
        least: Array = np.quantile(pairs.confidences, np.asarray(floors, np.float64))
        return cls(np.unique(ends), np.unique(np.append(-np.inf, least)))

    def candidates(self, banded: bool) -> tuple[Array, Array, Array]:
        """(floor, reject, accept) of every candidate, as places in the grid."""
        t = self.thresholds.size
        low, high = np.triu_indices(t) if banded else (np.arange(t), np.arange(t))
        floor = np.repeat(np.arange(self.floors.size), low.size)
        return floor, np.tile(low, self.floors.size), np.tile(high, self.floors.size)

    def count(self, pairs: ScoredPairs, floor: Array, reject: Array, accept: Array) -> Counts:
        """By one histogram and its running sums, however many candidates there are."""
        f, t = self.floors.size, self.thresholds.size + 1
        level = np.searchsorted(self.floors, pairs.confidences, side="right") - 1  # highest floor it passes
        above = np.searchsorted(self.thresholds, pairs.scores, side="right")  # thresholds it reaches
        tables = []
        for kind in (pairs.mated, ~pairs.mated):
            cells = np.bincount(level[kind] * t + above[kind], minlength=f * t).reshape(f, t)
            sure = cells[::-1].cumsum(0)[::-1]
            below = np.concatenate([np.zeros((f, 1), int), sure.cumsum(1)], axis=1)
            tables.append((below[:, -1:] - below[:, 1:], below[:, 1:]))  # reaches threshold i; does not
        (same_up, same_down), (other_up, other_down) = tables
        return Counts(
            same_up[floor, accept],
            other_up[floor, accept],
            same_down[floor, reject],
            other_down[floor, reject],
        )


def errors_of(c: Counts, error: str) -> list[tuple[str, Array, Array]]:
    """(name, errors, trials) of what has to stay below alpha."""
    non_mated, mated = c.false_match + c.true_non_match, c.true_match + c.false_non_match
    fmr = ("false matches of non-mated pairs decided", c.false_match, non_mated)
    if error == "fmr":
        return [fmr]
    if error == "both":
        return [fmr, ("false non-matches of mated pairs decided", c.false_non_match, mated)]
    if error == "decision":
        return [("wrong decisions", c.false_match + c.false_non_match, mated + non_mated)]
    return [("non-mated among matches", c.false_match, c.false_match + c.true_match)]


def _p_and_gain(c: Counts, pairs: ScoredPairs, error: str, alpha: float) -> tuple[Array, Array]:
    """p-value of "some error exceeds alpha" per candidate, and what it is good for: the more, the better."""
    p = np.zeros(c.true_match.shape)
    for _, errors, trials in errors_of(c, error):
        hopeless = errors > alpha * trials
        own = np.ones_like(p)
        own[~hopeless] = binomial_cdf(errors[~hopeless], trials[~hopeless], alpha)
        p = np.maximum(p, np.where(trials > 0, own, 1.0))
    if error in ("fmr", "false-match-share"):
        return p, c.true_match / pairs.mated.sum()
    return p, (c.true_match + c.false_match + c.true_non_match + c.false_non_match) / pairs.mated.size


def _path(p: Array, gain: Array) -> Array:
    """From the smallest p-value on, the candidates that gain more than all before them."""
    order = np.lexsort((-gain, p))
    order = order[p[order] < 1]
    best = np.maximum.accumulate(np.append(-1.0, gain[order]))
    return np.asarray(order[gain[order] > best[:-1]])


def bounded_rule(
    non_mated: Sequence[SubjectRates],
    mated: Sequence[SubjectRates],
    *,
    alpha: float,
    fnmr: float,
    delta: float = 0.05,
    score: str = "mls",
    radius: float | None = None,
    confidence: str = "kappa",
) -> DecisionRule:
    """Match above, non-match below, undecided between: the most decisive rule that the tests support.

    ``accept`` is the smallest threshold for which it and all larger ones keep false matches, as a share of
    *all* non-mated pairs, below ``alpha`` under every condition; ``reject`` the largest one for which it and
    all smaller ones keep the mated pairs below it at a share of at most ``fnmr``. Each is tested by
    `SubjectRates.upper` at level delta. A floor on the confidence only withholds decisions, so both promises
    hold with it.

    Args:
        non_mated: of non-mated pairs, one per condition, on the same thresholds.
        mated: of mated pairs, likewise, on thresholds of their own.
        alpha: bound on the false match rate.
        fnmr: bound on the share of mated pairs that are called non-match.
        delta: chance that a promise is not kept.
        score: name of the score, for the rule.
        radius: of the score, for the rule.
        confidence: name of the confidence, for the rule.

    Returns:
        The rule; one that decides nothing where no threshold passes.

    Raises:
        InputError: no conditions, or other thresholds in one than in another.

    Example:
        >>> rng, people = np.random.default_rng(0), np.arange(4000) % 100
        >>> other = SubjectRates.of(rng.normal(0, 1, 4000), people, (people + 1) % 100, np.arange(0, 5, 0.1))
        >>> same = SubjectRates.of(rng.normal(4, 1, 4000), people, people, np.arange(0, 5, 0.1))
        >>> rule = bounded_rule([other], [same], alpha=0.01, fnmr=0.01)
        >>> bool(2.3 < rule.accept < 2.8), bool(1.3 < rule.reject < 1.7), rule.counts[0].upper <= 0.01
        (True, True, True)
    """
    for name, side in (("non_mated", non_mated), ("mated", mated)):
        if not side or any(not np.array_equal(side[0].thresholds, one.thresholds) for one in side):
            raise InputError(f"bounded_rule: {name}: expected conditions with the same thresholds")
    false_matches = np.array([one.upper(delta) for one in non_mated])
    misses = np.array([one.upper(delta, below=True) for one in mated])
    accepted = non_mated[0].thresholds.size - _passed(false_matches.max(0)[::-1] <= alpha)
    rejected = _passed(misses.max(0) <= fnmr) - 1
    rule = DecisionRule(score, radius, confidence, None, None, -np.inf, "fmr", alpha, delta, fnmr=fnmr)
    if accepted == non_mated[0].thresholds.size or rejected < 0:
        return rule
    accept = float(non_mated[0].thresholds[accepted])
    worst, missed = int(false_matches[:, accepted].argmax()), int(misses[:, rejected].argmax())
    others, own = non_mated[worst], mated[missed]
    return replace(
        rule, accept=accept, reject=min(accept, float(mated[0].thresholds[rejected])),
        tested_on="all pairs of the worst condition",
        counts=(
            ErrorCount("false matches of non-mated pairs", int(others.reached[accepted]), others.pairs,
                       float(false_matches[worst, accepted])),
            ErrorCount("false non-matches of mated pairs", own.pairs - int(own.reached[rejected]), own.pairs,
                       float(misses[missed, rejected])),
        ),
    )  # fmt: skip


def _passed(passes: NDArray[Any]) -> int:
    """How many pass before the first that fails."""
    return int(np.argmin(np.append(passes, False)))
