"""Decision rules whose error rates are below a bound with high probability.

`choose_decision` follows "learn then test" (Angelopoulos, Bates, Candès, Jordan and Lei, arXiv 2110.01052):
candidate rules are ordered on one part of the data and tested in this order on another part, each at level
delta, until one fails (fixed-sequence testing, which needs no correction for the number of candidates). The
order is that of Pareto testing (Laufer-Goldshtein et al., ICLR 2023, arXiv 2210.07913): it begins with the
safest rule and continues with rules that decide more pairs.

`bounded_rule` also tests in a fixed sequence, beginning with the strictest threshold. This order is known
before the data are seen, so no data are needed to find it and all pairs can be used for testing.
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
    """Pairs with their scores, confidences and labels, to make and check decision rules.

    Args:
        scores: (n,) larger = more alike.
        confidences: (n,) confidences of the pairs, larger = more confident, e.g. the smaller kappa of the two
            images; see `pair_quality`.
        mated: (n,) true where both images show the same person.
        score: name of the score. This and the following fields are recorded in rules made from these pairs.
        radius: r of the score "mls".
        confidence: name of the confidence.
        kind: description of the pairs.

    Raises:
        InputError: a value is NaN, the shapes differ, or the pairs are of one kind only.
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
        """Select pairs by index or mask."""
        index = np.asarray(rows)
        return replace(
            self, scores=self.scores[index], confidences=self.confidences[index], mated=self.mated[index]
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
    """Find the rule that decides the most pairs among those whose error rate is at most ``alpha``.

    With probability at least 1 - delta over the testing pairs, the error rate of the rule on further pairs
    exchangeable with them is at most alpha. The guarantee is exact if the testing pairs are independent of
    each other (`disjoint_pairs`) and of the tuning pairs (`split_subjects`). If no candidate passes its test,
    the result is a rule that leaves all pairs undecided.

    The bounded error rate is chosen by ``error``:

    - ``"both"``: the share of false matches among decided non-mated pairs, and the share of false non-matches
      among decided mated pairs. The bound holds for any mix of mated and non-mated pairs.
    - ``"decision"``: the share of wrong decisions. It holds only for the mix in the data.
    - ``"fmr"``: the share of false matches among decided non-mated pairs. It holds for any mix.
    - ``"false-match-share"``: the share of non-mated pairs among the matches. It holds only for the mix
      in the data.

    Args:
        tuning: pairs that determine the candidates and their order.
        testing: pairs on which the candidates are tested; they should share no person with ``tuning``. The
            rule records their score and confidence.
        alpha: bound on the error rate.
        delta: probability that the bound fails.
        error: the bounded error rate, see above.
        abstain: how pairs may be left undecided: by "score" (between two thresholds), by "confidence" (below
            a floor), or by "both".
        tails: tail shares for candidate thresholds, at which that share of the mated tuning pairs is below,
            or that share of the non-mated ones is above; fractions of alpha are added.
        floors: shares of the tuning pairs whose confidence is below a candidate floor.

    Raises:
        InputError: alpha or delta is outside 0 .. 1, or a name is unknown.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> mated = np.arange(4000) % 2 == 0
        >>> confidence = rng.uniform(0.1, 3, 4000)
        >>> scores = rng.normal(size=4000) + 2 * confidence * mated
        >>> pairs = ScoredPairs(scores, confidence, mated)
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
    two_thresholds = abstain != "confidence" and error in ("both", "decision")
    floor, reject, accept = grid.candidates(two_thresholds)
    counts = grid.count(tuning, floor, reject, accept)
    path = _path(*_p_and_gain(counts, tuning, error, alpha))
    floor, reject, accept = floor[path], reject[path], accept[path]
    test_counts = grid.count(testing, floor, reject, accept)
    p = _p_and_gain(test_counts, testing, error, alpha)[0]
    n_passed = int(np.argmax(np.append(p > delta, True)))
    undecided = DecisionRule(
        testing.score, testing.radius, testing.confidence, None, None, -np.inf, error, alpha, delta,
        testing.kind,
    )  # fmt: skip
    if not n_passed:
        return undecided
    last = n_passed - 1
    return replace(
        undecided,
        accept=float(grid.thresholds[accept[last]]),
        reject=float(grid.thresholds[reject[last]]),
        min_confidence=float(grid.floors[floor[last]]),
        counts=tuple(
            ErrorCount(name, int(e[last]), int(n[last]), float(binomial_upper(e[last], n[last], delta)))
            for name, e, n in errors_of(test_counts, error)
        ),
    )


@dataclass(frozen=True, eq=False)
class Counts:
    """(candidates,) numbers of decided pairs by decision and truth."""

    true_match: Array
    false_match: Array
    false_non_match: Array
    true_non_match: Array


@dataclass(frozen=True, eq=False)
class _Grid:
    """Candidate rules: all combinations of thresholds on the score and floors on the confidence."""

    thresholds: Array
    """(t,) ascending."""
    floors: Array
    """(f,) ascending; the first is -inf."""

    @classmethod
    def of(cls, pairs: ScoredPairs, tails: Sequence[float], floors: Sequence[float]) -> "_Grid":
        mated, non_mated = pairs.scores[pairs.mated], pairs.scores[~pairs.mated]
        shares = np.asarray(tails, np.float64)
        thresholds = np.concatenate(
            [np.quantile(mated, shares), np.quantile(non_mated, 1 - shares), [pairs.scores.max()]]
        )
        confidences: Array = np.quantile(pairs.confidences, np.asarray(floors, np.float64))
        return cls(np.unique(thresholds), np.unique(np.append(-np.inf, confidences)))

    def candidates(self, two_thresholds: bool) -> tuple[Array, Array, Array]:
        """(floor, reject, accept) of all candidates, as indices into the grid."""
        t = self.thresholds.size
        low, high = np.triu_indices(t) if two_thresholds else (np.arange(t), np.arange(t))
        floor = np.repeat(np.arange(self.floors.size), low.size)
        return floor, np.tile(low, self.floors.size), np.tile(high, self.floors.size)

    def count(self, pairs: ScoredPairs, floor: Array, reject: Array, accept: Array) -> Counts:
        """Count the decisions of all candidates, from a two-dimensional histogram and its cumulative sums."""
        f, t = self.floors.size, self.thresholds.size + 1
        # Index of the highest floor that a pair reaches, and number of thresholds that it reaches.
        level = np.searchsorted(self.floors, pairs.confidences, side="right") - 1
        n_reached = np.searchsorted(self.thresholds, pairs.scores, side="right")
        tables = []
        for kind in (pairs.mated, ~pairs.mated):
            cells = np.bincount(level[kind] * t + n_reached[kind], minlength=f * t).reshape(f, t)
            above_floor = cells[::-1].cumsum(0)[::-1]
            below = np.concatenate([np.zeros((f, 1), int), above_floor.cumsum(1)], axis=1)
            # (f, t) pairs above floor i whose score reaches threshold j, and pairs whose score does not.
            tables.append((below[:, -1:] - below[:, 1:], below[:, 1:]))
        (mated_above, mated_below), (non_mated_above, non_mated_below) = tables
        return Counts(
            mated_above[floor, accept],
            non_mated_above[floor, accept],
            mated_below[floor, reject],
            non_mated_below[floor, reject],
        )


def errors_of(c: Counts, error: str) -> list[tuple[str, Array, Array]]:
    """(name, errors, trials) of every bounded error rate."""
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
    """(candidates,) p-value of the hypothesis that an error rate exceeds alpha, and share of pairs gained.

    The gain is the share of pairs decided or, if only matches are bounded, the share of mated pairs matched.
    """
    p = np.zeros(c.true_match.shape)
    for _, errors, trials in errors_of(c, error):
        exceeds = errors > alpha * trials  # the p-value need not be computed
        p_error = np.ones_like(p)
        p_error[~exceeds] = binomial_cdf(errors[~exceeds], trials[~exceeds], alpha)
        p = np.maximum(p, np.where(trials > 0, p_error, 1.0))
    if error in ("fmr", "false-match-share"):
        return p, c.true_match / pairs.mated.sum()
    return p, (c.true_match + c.false_match + c.true_non_match + c.false_non_match) / pairs.mated.size


def _path(p: Array, gain: Array) -> Array:
    """Candidates in order of increasing p-value, without those that gain no more than an earlier one."""
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
    """Make a rule with bounded FMR and FNMR under several conditions, leaving scores in between undecided.

    Scores from ``accept`` on are matches, scores below ``reject`` non-matches. ``accept`` is the smallest
    threshold such that, for it and all larger ones, false matches are at most a share ``alpha`` of *all*
    non-mated pairs under every condition. ``reject`` is the largest threshold such that, for it and all
    smaller ones, at most a share ``fnmr`` of all mated pairs is below it under every condition. Each bound is
    tested by `SubjectRates.upper` at level delta. A floor on the confidence only withholds decisions, so both
    bounds still hold with a floor.

    Args:
        non_mated: counts of non-mated pairs, one per condition, on the same thresholds.
        mated: counts of mated pairs, one per condition, on the same thresholds (not those of ``non_mated``).
        alpha: bound on the false match rate.
        fnmr: bound on the share of mated pairs that are called non-match.
        delta: probability that a bound fails.
        score: name of the score, recorded in the rule.
        radius: r of the score, recorded in the rule.
        confidence: name of the confidence, recorded in the rule.

    Returns:
        The rule; it leaves all pairs undecided if no threshold passes.

    Raises:
        InputError: there are no conditions, or their thresholds differ.

    Example:
        >>> rng, people = np.random.default_rng(0), np.arange(4000) % 100
        >>> thresholds = np.arange(0, 5, 0.1)
        >>> non_mated = SubjectRates.of(rng.normal(0, 1, 4000), people, (people + 1) % 100, thresholds)
        >>> mated = SubjectRates.of(rng.normal(4, 1, 4000), people, people, thresholds)
        >>> rule = bounded_rule([non_mated], [mated], alpha=0.01, fnmr=0.01)
        >>> bool(2.3 < rule.accept < 2.8), bool(1.3 < rule.reject < 1.7), rule.counts[0].upper <= 0.01
        (True, True, True)
    """
    for name, rates in (("non_mated", non_mated), ("mated", mated)):
        if not rates or any(not np.array_equal(rates[0].thresholds, r.thresholds) for r in rates):
            raise InputError(f"bounded_rule: {name}: expected conditions with the same thresholds")
    max_fmr = np.array([rates.upper(delta) for rates in non_mated])  # (conditions, thresholds)
    max_fnmr = np.array([rates.upper(delta, below=True) for rates in mated])
    # Test from the strictest threshold on: from the top for accept, from the bottom for reject.
    accept_index = non_mated[0].thresholds.size - count_leading_true(max_fmr.max(0)[::-1] <= alpha)
    reject_index = count_leading_true(max_fnmr.max(0) <= fnmr) - 1
    rule = DecisionRule(score, radius, confidence, None, None, -np.inf, "fmr", alpha, delta, fnmr=fnmr)
    if accept_index == non_mated[0].thresholds.size or reject_index < 0:
        return rule
    accept = float(non_mated[0].thresholds[accept_index])
    worst_fmr = int(max_fmr[:, accept_index].argmax())
    worst_fnmr = int(max_fnmr[:, reject_index].argmax())
    false, missed = non_mated[worst_fmr], mated[worst_fnmr]
    return replace(
        rule, accept=accept, reject=min(accept, float(mated[0].thresholds[reject_index])),
        tested_on="all pairs of the worst condition",
        counts=(
            ErrorCount("false matches of non-mated pairs", int(false.reached[accept_index]), false.pairs,
                       float(max_fmr[worst_fmr, accept_index])),
            ErrorCount("false non-matches of mated pairs", missed.pairs - int(missed.reached[reject_index]),
                       missed.pairs, float(max_fnmr[worst_fnmr, reject_index])),
        ),
    )  # fmt: skip


def count_leading_true(values: NDArray[Any]) -> int:
    """Number of true values before the first false one."""
    return int(np.argmin(np.append(values, False)))
