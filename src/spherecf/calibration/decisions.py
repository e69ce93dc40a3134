"""Decision rules (match, non-match or undecided) and thresholds, with their error rates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import AliasChoices, BeforeValidator, Field

from spherecf.calibration.checks import (
    Numbers,
    check_counts,
    check_radius,
    check_shares,
    clopper_pearson,
    finite,
    real_numbers,
    split_scores,
)
from spherecf.common.parsing import checked
from spherecf.errors import InputError

MinConfidence = Annotated[
    float,
    BeforeValidator(lambda value: -math.inf if value is None else value),
    Field(validation_alias=AliasChoices("min_confidence", "least_confidence")),  # the name in older models
]
"""A minimum confidence; as JSON has no infinity, None stands for -inf, which admits every pair."""


def allowed_errors(rate: Numbers, trials: Numbers) -> NDArray[Any]:
    """The number of errors among ``trials`` that a rate allows: rate * trials, with a tolerance for rounding.

    The tolerance is a relative 1e-12: a rate of 0.29 allows 29 errors in 100 trials, although the product
    rounds to less. Every comparison of a count with a rate uses this function, so that all agree. Trials may
    be weights.

    Example:
        >>> float(np.floor(allowed_errors(0.29, 100))), 0.29 * 100 < 29
        (29.0, True)
    """
    product = np.asarray(rate, np.float64) * np.asarray(trials, np.float64)
    return np.asarray(product * (1 + 1e-12))


def unresolved_rate(what: str, rate: float, trials: int, of: str = "non-mated pairs") -> str:
    """The message for a rate that allows less than one error among all trials, so that it has no threshold.

    Example:
        >>> unresolved_rate("FMR", 1e-3, 250)
        'FMR 0.001 needs at least 1000 non-mated pairs, there are 250'
    """
    return f"{what} {rate:g} needs at least {int(np.ceil(1 / rate))} {of}, there are {trials}"


def threshold_at_rate(
    mated: ArrayLike, non_mated: ArrayLike, rate: float, *, trials: int | None = None
) -> Any:
    """The smallest observed score for which the false match rate does not exceed ``rate``.

    A pair is accepted if score >= threshold. Tied scores are accepted together, so the false match rate may
    be lower than ``rate``.

    Args:
        mated: scores of mated pairs, ascending.
        non_mated: scores of non-mated pairs, ascending.
        rate: false matches over non-mated pairs, 0 < rate <= 1.
        trials: number of non-mated pairs, if ``non_mated`` has only the largest scores. They must be at least
            one more than the `allowed_errors`.

    Returns:
        A score, in float32 or float64 as the arrays; infinity if the rate is exceeded unless nothing is
        accepted; None if the rate allows less than one error (see `unresolved_rate`).

    Raises:
        InputError: scores are no numbers, not ascending or NaN, or the rate is out of range.

    Example:
        >>> threshold_at_rate(np.array([0.8, 0.9]), np.array([0.1, 0.8]), 0.5)
        np.float64(0.8)
    """
    sides = real_numbers(mated, "mated"), real_numbers(non_mated, "non_mated")
    for name, scores in zip(("mated", "non_mated"), sides):
        if scores.ndim != 1 or not (scores[1:] >= scores[:-1]).all():
            raise InputError(f"{name}: expected scores (n,) in ascending order and not NaN; use np.sort")
    if not 0 < rate <= 1:
        raise InputError(f"rate: expected 0 < rate <= 1, got {rate}")
    n = sides[1].size if trials is None else trials
    allowed = int(allowed_errors(rate, n))
    if allowed < 1:
        return None
    if allowed >= n:
        return min(side[0] for side in sides if side.size)
    rejected = sides[1][-allowed - 1]  # the largest score that must not be accepted
    above = ((side, int(np.searchsorted(side, rejected, side="right"))) for side in sides)
    return min((side[i] for side, i in above if i < side.size), default=sides[1].dtype.type(np.inf))


class Decision(StrEnum):
    """The decision about a pair."""

    MATCH = "match"
    NON_MATCH = "non_match"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class ErrorCount:
    """Errors counted on the pairs that tested a rule; these were not used to choose it.

    Raises:
        InputError: there are more errors than trials, or a rate is outside 0 .. 1.
    """

    error: str
    errors: int
    trials: int
    upper: float
    """Upper bound of the rate that holds with probability 1 - delta (one-sided Clopper-Pearson)."""

    def __post_init__(self) -> None:
        check_counts(self.error, errors=self.errors, trials=self.trials)
        check_shares(self.error, upper=self.upper)
        if self.errors > self.trials:
            raise InputError(f"{self.error}: {self.errors} errors in {self.trials} trials")


@dataclass(frozen=True)
class DecisionRule:
    """A decision rule: match if score >= ``accept``, non-match if score < ``reject``, else undecided.

    Pairs with too little confidence are undecided as well. For pairs exchangeable with those from which the
    rule was constructed, the rate of ``error`` is at most ``alpha``; the probability that the construction
    gives a rule for which this fails is at most ``delta``. See docs/decisions.md.

    Args:
        score: name of the score: "cosine", "mls", ...
        radius: r of the mutual likelihood score; None for other scores.
        confidence: name of the confidence of a pair, e.g. "kappa", the smaller kappa of the two.
        accept: None if no rule could guarantee the bound; every pair is then undecided.
        reject: <= accept; scores between the two are undecided.
        min_confidence: pairs with less confidence are undecided; -inf admits every pair.
        error: the bounded error: "decision", "fmr", "both" or "false-match-share".
        alpha: bound on its rate.
        delta: probability that the bound fails.
        tested_on: "pairs", or "disjoint pairs", no two of which share a person.
        counts: errors counted in the test.
        fnmr: bound on the share of mated pairs decided as non-match, if the rule guarantees one. The rate of
            "fmr" is then relative to all non-mated pairs, including undecided ones.
        extrapolated: 95 % interval, over people, of the false match rate at ``accept`` if ``alpha`` is too
            small to be counted; None if it was counted.

    Raises:
        InputError: thresholds are NaN or in the wrong order, or rates are outside 0 .. 1.

    Example:
        >>> rule = DecisionRule("cosine", None, "kappa", 0.4, 0.2, 30.0, "both", 0.01, 0.05)
        >>> rule.decide([0.5, 0.3, 0.1, 0.5], [40.0, 40.0, 40.0, 20.0]).tolist()
        ['match', 'undecided', 'non_match', 'undecided']
    """

    score: str
    radius: float | None
    confidence: str
    accept: float | None
    reject: float | None
    min_confidence: MinConfidence
    error: str
    alpha: float
    delta: float
    tested_on: str = "pairs"
    counts: tuple[ErrorCount, ...] = ()
    fnmr: float | None = None
    extrapolated: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.extrapolated is not None and not 0 <= self.extrapolated[0] <= self.extrapolated[1] <= 1:
            raise InputError(f"DecisionRule: expected an interval within 0 .. 1, got {self.extrapolated}")
        if (self.accept is None) != (self.reject is None) or math.isnan(self.min_confidence):
            raise InputError("DecisionRule: expected both thresholds or none, and no NaN")
        if self.accept is not None and self.reject is not None and not self.reject <= self.accept:
            raise InputError(f"DecisionRule: expected reject <= accept, got {self.reject} and {self.accept}")
        check_radius(self.score, self.radius)
        check_shares("DecisionRule", alpha=self.alpha, delta=self.delta, fnmr=self.fnmr)

    @property
    def decides(self) -> bool:
        """False if no rule could guarantee the bound on the available data; every pair is then undecided."""
        return self.accept is not None

    def decide(self, scores: Numbers, confidences: Numbers) -> NDArray[Any]:
        """The `Decision` for each pair, as an array of strings in the broadcast shape of the arguments.

        Pairs without a score, for example because an image has no face, must be left out; treat them as
        undecided.

        Raises:
            InputError: a score or confidence is NaN.
        """
        s, c = np.broadcast_arrays(finite(scores), finite(confidences, "confidences"))
        decisions = np.full(s.shape, Decision.UNDECIDED.value, dtype="<U9")
        if self.accept is not None and self.reject is not None:
            is_confident = c >= self.min_confidence
            decisions[is_confident & (s >= self.accept)] = Decision.MATCH.value
            decisions[is_confident & (s < self.reject)] = Decision.NON_MATCH.value
        return decisions

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; None if no minimum confidence is required."""
        facts = asdict(self) | {"counts": [asdict(count) for count in self.counts]}
        if self.extrapolated is None:
            del facts["extrapolated"]  # its rate was counted
        return facts | {"min_confidence": None if self.min_confidence == -math.inf else self.min_confidence}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "DecisionRule":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "decision")


Ends = tuple[float, float]
"""Lower and upper end of an interval."""
Threshold = Annotated[float, BeforeValidator(lambda value: math.inf if value == "inf" else value)]
"""A threshold of a score; as JSON has no infinity, "inf" stands for the one that accepts nothing."""


@dataclass(frozen=True)
class ThresholdEntry:
    """The smallest observed score whose FMR as a threshold does not exceed ``target``, with its counts.

    A pair is accepted if and only if score >= threshold.

    Raises:
        InputError: rates are outside 0 .. 1, there are more matches than pairs, or counts are missing.
    """

    target: float
    threshold: Threshold | None
    false_matches: int | None
    non_mated: int
    true_matches: int | None
    mated: int
    fmr: float | None
    tmr: float | None
    fmr_exact: Ends | None
    """95 % Clopper-Pearson interval, which takes pairs as independent."""
    tmr_exact: Ends | None
    fmr_subjects: Ends | None = None
    """Interval over subjects (`spherecf.evaluation.bootstrap_subjects`); None if it was not computed."""
    tmr_subjects: Ends | None = None
    unresolved: str | None = None
    """Why there is no threshold: the target allows less than one false match among the non-mated pairs."""

    def __post_init__(self) -> None:
        what = f"threshold for FMR {self.target:g}"
        if not 0 < self.target <= 1:
            raise InputError(f"{what}: expected 0 < target <= 1")
        if self.threshold is not None and not self.threshold > -math.inf:
            raise InputError(f"{what}: expected a number, got {self.threshold}")
        check_counts(what, 1, mated=self.mated, non_mated=self.non_mated)
        check_counts(what, false_matches=self.false_matches, true_matches=self.true_matches)
        if (self.false_matches or 0) > self.non_mated or (self.true_matches or 0) > self.mated:
            raise InputError(f"{what}: more matches than pairs")
        check_shares(what, fmr=self.fmr, tmr=self.tmr)
        for ends in (self.fmr_exact, self.tmr_exact, self.fmr_subjects, self.tmr_subjects):
            if ends is not None and not 0 <= ends[0] <= ends[1] <= 1:
                raise InputError(f"{what}: expected an interval within 0 .. 1, got {ends}")
        measured = (self.false_matches, self.true_matches, self.fmr, self.tmr, self.fmr_exact, self.tmr_exact)
        if any((value is None) != (self.threshold is None) for value in measured):
            raise InputError(f"{what}: expected a threshold with all its counts and rates, or none of them")

    @classmethod
    def counted(
        cls, target: float, threshold: float, mated: NDArray[Any], non_mated: NDArray[Any]
    ) -> "ThresholdEntry":
        """Count the pairs that a threshold accepts, from ascending scores of mated and of non-mated pairs."""
        true_matches, false_matches = (
            int(side.size - np.searchsorted(side, threshold)) for side in (mated, non_mated)
        )
        fmr_low, fmr_high = map(float, clopper_pearson(false_matches, non_mated.size))
        tmr_low, tmr_high = map(float, clopper_pearson(true_matches, mated.size))
        return cls(
            target, float(threshold), false_matches, non_mated.size, true_matches, mated.size,
            false_matches / non_mated.size, true_matches / mated.size,
            (fmr_low, fmr_high), (tmr_low, tmr_high),
        )  # fmt: skip


@dataclass(frozen=True)
class ThresholdTable:
    """The thresholds of one score for several FMR targets, with their counts.

    Args:
        score: name of the score.
        radius: r of the mutual likelihood score; None for other scores.
        entries: by descending target.

    Raises:
        InputError: targets do not descend, or thresholds decrease from one to the next.

    Example:
        >>> table = ThresholdTable.fit([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0], [0.5, 0.1], score="cosine")
        >>> table.at(0.5).threshold, table.at(0.5).false_matches, table.at(0.1).unresolved
        (0.8, 1, 'FMR 0.1 needs at least 10 non-mated pairs, there are 2')
    """

    score: str
    radius: float | None
    entries: tuple[ThresholdEntry, ...]

    def __post_init__(self) -> None:
        check_radius(self.score, self.radius)
        targets = [entry.target for entry in self.entries]
        thresholds = [entry.threshold for entry in self.entries if entry.threshold is not None]
        if any(a <= b for a, b in pairwise(targets)) or any(a > b for a, b in pairwise(thresholds)):
            raise InputError(
                f"{self.score}: expected entries by descending target, with thresholds that do not decrease"
            )

    @classmethod
    def fit(
        cls,
        scores: ArrayLike,
        mated: ArrayLike,
        targets: Sequence[float],
        *,
        score: str,
        radius: float | None = None,
    ) -> "ThresholdTable":
        """The exact thresholds, with ties accepted together, as counted by `spherecf.evaluation.tmr_at_fmr`.

        Args:
            scores: (n,) scores, larger = more similar.
            mated: (n,) true for mated pairs.
            targets: FMR targets, 0 < target <= 1.
            score: name of the score.
            radius: r of the mutual likelihood score; None for other scores.

        Raises:
            InputError: there are no targets or one is out of range, scores are NaN or infinite, or mated or
                non-mated pairs are missing.
        """
        mated_scores, non_mated_scores = (np.sort(side) for side in split_scores(scores, mated))
        targets = list(targets)
        if not targets or not all(0 < target <= 1 for target in targets):
            raise InputError(f"FMR targets: expected at least one within 0 .. 1, got {targets}")
        descending = sorted(set(map(float, targets)), reverse=True)
        entries = tuple(_make_entry(target, mated_scores, non_mated_scores) for target in descending)
        return cls(score, radius, entries)

    def at(self, target: float) -> ThresholdEntry:
        """The entry of an FMR target.

        Raises:
            InputError: the table has no such target.
        """
        for entry in self.entries:
            if np.isclose(entry.target, target, rtol=1e-9, atol=0):
                return entry
        available = ", ".join(f"{entry.target:g}" for entry in self.entries)
        raise InputError(f"{self.score}: no threshold for FMR {target:g}; the table has {available}")

    def with_subject_intervals(
        self, fmr: Mapping[float, Ends], tmr: Mapping[float, Ends]
    ) -> "ThresholdTable":
        """The same table with intervals over subjects, by target, where these have a width.

        If no pair or every pair is accepted, so it is in every bootstrap sample, and the interval of the
        bootstrap says nothing about other people.
        """

        def ends(intervals: Mapping[float, Ends], entry: ThresholdEntry) -> Ends | None:
            low, high = intervals.get(entry.target, (0.0, 0.0))
            return (low, high) if low < high else None

        entries = (
            replace(entry, fmr_subjects=ends(fmr, entry), tmr_subjects=ends(tmr, entry))
            for entry in self.entries
        )
        return replace(self, entries=tuple(entries))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values; an infinite threshold, which accepts nothing, is "inf"."""
        entries = [asdict(entry) for entry in self.entries]
        for entry in entries:
            entry["threshold"] = "inf" if entry["threshold"] == float("inf") else entry["threshold"]
        return {"score": self.score, "radius": self.radius, "entries": entries}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "ThresholdTable":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "thresholds")


def _make_entry(target: float, mated: NDArray[Any], non_mated: NDArray[Any]) -> ThresholdEntry:
    """The entry of one target, from ascending scores of mated and non-mated pairs."""
    threshold = threshold_at_rate(mated, non_mated, target)
    if threshold is not None:
        return ThresholdEntry.counted(target, threshold, mated, non_mated)
    return ThresholdEntry(
        target, None, None, non_mated.size, None, mated.size, None, None, None, None,
        unresolved=unresolved_rate("FMR", target, non_mated.size),
    )  # fmt: skip
