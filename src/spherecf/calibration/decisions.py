"""Decision rules and thresholds with known error rates: match, non-match or undecided."""

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
    labelled,
)
from spherecf.common.parsing import checked
from spherecf.errors import InputError

MinConfidence = Annotated[
    float,
    BeforeValidator(lambda value: -math.inf if value is None else value),
    Field(
        validation_alias=AliasChoices("min_confidence", "least_confidence")
    ),  # models saved before it was renamed
]
"""A minimum; JSON has no infinity, so None stands for -inf, which admits every pair."""


def allowed_errors(rate: Numbers, trials: Numbers) -> NDArray[Any]:
    """How many errors among ``trials`` keep to a rate of errors: rate * trials, and a hair more.

    The hair, far less than an error, is for the rounding of the product: 0.07 of 100 are 7 errors, not 6.
    Every comparison of a count with a rate uses it, so that all agree on the border. Counts may be weights.

    Example:
        >>> float(np.floor(allowed_errors(0.29, 100))), 0.29 * 100 < 29
        (29.0, True)
    """
    product = np.asarray(rate, np.float64) * np.asarray(trials, np.float64)
    return np.asarray(product * (1 + 1e-12))


def unresolved_rate(what: str, rate: float, trials: int, of: str = "non-mated pairs") -> str:
    """Why no threshold can be told for a rate that asks for less than one error among all trials.

    Example:
        >>> unresolved_rate("FMR", 1e-3, 250)
        'FMR 0.001 needs at least 1000 non-mated pairs, there are 250'
    """
    return f"{what} {rate:g} needs at least {int(np.ceil(1 / rate))} {of}, there are {trials}"


def threshold_at_rate(
    mated: NDArray[Any], non_mated: NDArray[Any], rate: float, *, trials: int | None = None
) -> Any:
    """The smallest observed score that at most the share ``rate`` of the non-mated pairs reaches.

    Acceptance is score >= threshold and ties are accepted together, so the rate may stay below ``rate``.

    Args:
        mated: scores, ascending.
        non_mated: scores, ascending.
        rate: false matches over non-mated pairs, 0 < rate <= 1.
        trials: number of non-mated pairs where ``non_mated`` holds but the largest: at least one more than
            the `allowed_errors`.

    Returns:
        A score, of the type of the arrays; infinity where only accepting nothing keeps to the rate; None
        where the rate asks for less than one error (`unresolved_rate` says so).

    Example:
        >>> threshold_at_rate(np.array([0.8, 0.9]), np.array([0.1, 0.8]), 0.5)
        np.float64(0.8)
    """
    n = non_mated.size if trials is None else trials
    allowed = int(allowed_errors(rate, n))
    if allowed < 1:
        return None
    if allowed >= n:
        return min(side[0] for side in (mated, non_mated) if side.size)
    out = non_mated[-allowed - 1]  # the largest score that must not be accepted
    above = ((side, int(np.searchsorted(side, out, side="right"))) for side in (mated, non_mated))
    return min((side[at] for side, at in above if at < side.size), default=non_mated.dtype.type(np.inf))


class Decision(StrEnum):
    """What is said about a pair."""

    MATCH = "match"
    NON_MATCH = "non_match"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class ErrorCount:
    """Errors seen on the pairs that tested the rule, which chose nothing.

    Raises:
        InputError: more errors than trials, or a rate outside 0 .. 1.
    """

    error: str
    errors: int
    trials: int
    upper: float
    """The rate is below it with probability 1 - delta (one-sided Clopper-Pearson)."""

    def __post_init__(self) -> None:
        check_counts(self.error, errors=self.errors, trials=self.trials)
        check_shares(self.error, upper=self.upper)
        if self.errors > self.trials:
            raise InputError(f"{self.error}: {self.errors} errors in {self.trials} trials")


@dataclass(frozen=True)
class DecisionRule:
    """Match iff score >= ``accept``, non-match iff score < ``reject``, both only with enough confidence.

    The promise: for pairs exchangeable with those it was made from, the rate of ``error`` is at most
    ``alpha``; the making of the rule fails in this with probability at most ``delta``. See docs/decisions.md.

    Args:
        score: the score it reads: "cosine", "mls", ...
        radius: r of the mutual likelihood score; None where the score has none.
        confidence: the confidence of a pair that it reads, e.g. "kappa": the smaller kappa of the two.
        accept: None where no rule could keep the promise: everything stays undecided.
        reject: <= accept; scores between the two are undecided.
        min_confidence: pairs with less are undecided; -inf asks for none.
        error: what is bounded: "decision", "fmr", "both" or "false-match-share".
        alpha: bound on its rate.
        delta: probability that the bound fails.
        tested_on: "pairs", or "disjoint pairs", no two of which share a person.
        counts: what the test saw.
        fnmr: bound on the share of mated pairs that are called non-match, where that is promised too; error
            "fmr" then is a share of all non-mated pairs, the undecided among them.
        extrapolated: 95 % interval, over people, of the false match rate at ``accept``, where ``alpha`` is
            smaller than could be counted; None where it was counted.

    Raises:
        InputError: thresholds that are NaN or in the wrong order, rates outside 0 .. 1.

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
        """False where no rule kept the promise on the data at hand; then everything is undecided."""
        return self.accept is not None

    def decide(self, scores: Numbers, confidences: Numbers) -> NDArray[Any]:
        """A `Decision` for each pair, as strings, of the shape of the two broadcast together.

        A pair without a score, an image having no face, is no pair: say undecided without asking.

        Raises:
            InputError: NaN.
        """
        s, c = np.broadcast_arrays(finite(scores), finite(confidences, "confidences"))
        found = np.full(s.shape, Decision.UNDECIDED.value, dtype="<U9")
        if self.accept is not None and self.reject is not None:
            sure = c >= self.min_confidence
            found[sure & (s >= self.accept)] = Decision.MATCH.value
            found[sure & (s < self.reject)] = Decision.NON_MATCH.value
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a confidence that is not asked for is None."""
        facts = asdict(self) | {"counts": [asdict(count) for count in self.counts]}
        if self.extrapolated is None:
            del facts["extrapolated"]  # as it was before there were such rules
        return facts | {"min_confidence": _stated(self.min_confidence)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "DecisionRule":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "decision")


def _stated(value: float) -> float | None:
    return None if value == -math.inf else value


Ends = tuple[float, float]
Threshold = Annotated[float, BeforeValidator(lambda value: math.inf if value == "inf" else value)]
"""Of a score; JSON has no infinity, so "inf" stands for the one that accepts nothing."""


@dataclass(frozen=True)
class ThresholdEntry:
    """The smallest threshold seen whose FMR does not exceed ``target``; accept iff score >= threshold.

    Raises:
        InputError: rates outside 0 .. 1, more matches than pairs, or a threshold without its counts.
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
    """Clopper-Pearson interval at 95 %, as if pairs were independent."""
    tmr_exact: Ends | None
    fmr_subjects: Ends | None = None
    """Interval over subjects, from outside (`spherecf.evaluation.bootstrap_subjects`); None if not made."""
    tmr_subjects: Ends | None = None
    unresolved: str | None = None
    """Why there is no threshold: the target asks for less than one false match among the non-mated pairs."""

    def __post_init__(self) -> None:
        what = f"threshold for FMR {self.target:g}"
        if not 0 < self.target <= 1:
            raise InputError(f"{what}: expected a target within 0 .. 1")
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


@dataclass(frozen=True)
class ThresholdTable:
    """Thresholds of one score for several FMR targets, with the counts behind them.

    Args:
        score: which score they are for.
        radius: r of the mutual likelihood score; None where the score has none.
        entries: by descending target.

    Raises:
        InputError: targets that do not descend, or thresholds that fall with them.

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
                f"{self.score}: expected entries by descending target, their thresholds not descending"
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
        """Exact thresholds, ties together, as `spherecf.evaluation.tmr_at_fmr` counts them.

        Raises:
            InputError: a target outside 0 .. 1, none at all, NaN, or one kind of pair only.
        """
        same, other = (np.sort(side) for side in labelled(scores, mated))
        if not targets or not all(0 < target <= 1 for target in targets):
            raise InputError(f"FMR targets: expected at least one within 0 .. 1, got {list(targets)}")
        each = sorted(set(map(float, targets)), reverse=True)
        return cls(score, radius, tuple(_entry(target, same, other) for target in each))

    def at(self, target: float) -> ThresholdEntry:
        """The entry of an FMR target.

        Raises:
            InputError: no such target in the table.
        """
        for entry in self.entries:
            if np.isclose(entry.target, target, rtol=1e-9, atol=0):
                return entry
        known = ", ".join(f"{entry.target:g}" for entry in self.entries)
        raise InputError(f"{self.score}: no threshold for FMR {target:g}; the table has {known}")

    def with_subject_intervals(
        self, fmr: Mapping[float, Ends], tmr: Mapping[float, Ends]
    ) -> "ThresholdTable":
        """The same table with intervals over subjects, by target."""
        entries = (
            replace(entry, fmr_subjects=fmr.get(entry.target), tmr_subjects=tmr.get(entry.target))
            for entry in self.entries
        )
        return replace(self, entries=tuple(entries))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; an infinite threshold, which accepts nothing, is "inf"."""
        entries = [asdict(entry) for entry in self.entries]
        for entry in entries:
            entry["threshold"] = "inf" if entry["threshold"] == float("inf") else entry["threshold"]
        return {"score": self.score, "radius": self.radius, "entries": entries}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "ThresholdTable":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "thresholds")


def _entry(target: float, same: NDArray[Any], other: NDArray[Any]) -> ThresholdEntry:
    threshold = threshold_at_rate(same, other, target)
    if threshold is None:
        return ThresholdEntry(
            target, None, None, other.size, None, same.size, None, None, None, None,
            unresolved=unresolved_rate("FMR", target, other.size),
        )  # fmt: skip
    true = int(same.size - np.searchsorted(same, threshold))
    false = int(other.size - np.searchsorted(other, threshold))
    exact = [
        tuple(float(end) for end in clopper_pearson(hits, of))
        for hits, of in ((false, other.size), (true, same.size))
    ]
    return ThresholdEntry(
        target, float(threshold), false, other.size, true, same.size, false / other.size, true / same.size,
        (exact[0][0], exact[0][1]), (exact[1][0], exact[1][1]),
    )  # fmt: skip
