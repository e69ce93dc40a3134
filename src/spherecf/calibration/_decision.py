"""A decision that may be withheld: match, non-match or undecided."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator

from spherecf._parsing import checked
from spherecf.calibration._labelled import Numbers, check_counts, check_radius, check_shares, finite
from spherecf.errors import InputError

Floor = Annotated[float, BeforeValidator(lambda value: -math.inf if value is None else value)]
"""A smallest confidence; JSON has no infinity, so None stands for -inf, which asks for none."""


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
        least_confidence: pairs with less are undecided; -inf asks for none.
        error: what is bounded: "decision", "fmr", "both" or "false-match-share".
        alpha: bound on its rate.
        delta: chance of having been unlucky.
        tested_on: "pairs", or "disjoint pairs", no two of which share a person.
        counts: what the test saw.
        fnmr: bound on the share of mated pairs that are called non-match, where that is promised too; error
            "fmr" then is a share of all non-mated pairs, the undecided among them.

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
    least_confidence: Floor
    error: str
    alpha: float
    delta: float
    tested_on: str = "pairs"
    counts: tuple[ErrorCount, ...] = ()
    fnmr: float | None = None

    def __post_init__(self) -> None:
        if (self.accept is None) != (self.reject is None) or math.isnan(self.least_confidence):
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
            sure = c >= self.least_confidence
            found[sure & (s >= self.accept)] = Decision.MATCH.value
            found[sure & (s < self.reject)] = Decision.NON_MATCH.value
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a confidence that is not asked for is None."""
        facts = asdict(self) | {"counts": [asdict(count) for count in self.counts]}
        return facts | {"least_confidence": _stated(self.least_confidence)}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "DecisionRule":
        """The inverse of `to_dict`."""
        return checked(cls, facts, "decision")


def _stated(value: float) -> float | None:
    return None if value == -math.inf else value
