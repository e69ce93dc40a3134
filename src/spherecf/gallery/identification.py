"""Identified, unknown or undecided: what a search means, with the reason and the limits behind it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from spherecf.calibration import PAIR_SCORE, TEMPLATE_SCORE, Calibration, DecisionRule


@dataclass(frozen=True)
class Limit:
    """When one comparison of a search counts as a match.

    Attributes:
        score: name of the score in the calibration.
        fmr: the false match rate that ``accept`` stands for.
        accept: match from here on.
        reject: no match below.
        least: kappa that both must have for either to be said.
        enough: False where ``fmr`` is larger than what was asked for: nothing stricter is calibrated.
    """

    score: str
    fmr: float
    accept: float
    reject: float
    least: float
    enough: bool


def limit_for(calibration: Calibration, score: str, fmr: float) -> Limit | None:
    """The least strict limit that keeps ``fmr``; the strictest there is where none does; None without any.

    Thresholds come from the decision rules alone where there are some, since those of the table need not hold
    for pictures that are worse than its own; else from the table. A rarer error never gets a lower threshold
    than a more frequent one.

    Example:
        >>> from spherecf.calibration import DecisionRule
        >>> rules = tuple(
        ...     DecisionRule("mls", 64.0, "kappa", accept, 0.0, 30.0, "fmr", alpha, 0.05)
        ...     for alpha, accept in ((1e-2, 5.0), (1e-4, 20.0))
        ... )
        >>> known = Calibration("f" * 64, "d" * 64, decisions=rules)
        >>> limit_for(known, "mls", 1e-3).accept, limit_for(known, "mls", 1e-6).enough
        (20.0, False)
    """
    rules = [r for r in calibration.decisions if r.score == score and r.error == "fmr" and r.decides]
    table = calibration.thresholds.get(score)
    entries = () if rules or table is None else table.entries
    steps: list[tuple[float, float, DecisionRule | None]] = [
        *((rule.alpha, float(rule.accept or 0.0), rule) for rule in rules),
        *((one.target, one.threshold, None) for one in entries if one.threshold is not None),
    ]
    if not steps:
        return None
    steps.sort(key=lambda step: -step[0])
    place = next((i for i, step in enumerate(steps) if step[0] <= fmr * (1 + 1e-9)), None)
    chosen = len(steps) - 1 if place is None else place
    target, _, rule = steps[chosen]
    accept = max(step[1] for step in steps[: chosen + 1])
    reject = accept if rule is None or rule.reject is None else min(rule.reject, accept)
    least = -math.inf if rule is None else rule.least_confidence
    return Limit(score, target, accept, reject, least, place is not None)


def limits_for(
    calibration: Calibration | None, fmr: float, threshold: float | None, radius: float
) -> tuple[Limit, Limit] | None:
    """Limits against templates of one image and of several; None if nothing is known.

    Args:
        calibration: of the model.
        fmr: what one comparison may cost.
        threshold: given by the user instead; the least kappa of the rules still holds.
        radius: r of the scores; a calibration for another says nothing.
    """
    one = several = None
    if calibration is not None and _fits(calibration, radius):
        one = limit_for(calibration, PAIR_SCORE, fmr)
        several = limit_for(calibration, TEMPLATE_SCORE, fmr) or one
    if threshold is not None:
        least = (one.least if one else -math.inf, several.least if several else -math.inf)
        return (
            Limit(PAIR_SCORE, math.nan, threshold, threshold, least[0], True),
            Limit(TEMPLATE_SCORE, math.nan, threshold, threshold, least[1], True),
        )
    return None if one is None or several is None else (one, several)


def _fits(calibration: Calibration, radius: float) -> bool:
    known = (PAIR_SCORE, TEMPLATE_SCORE)
    made = [rule.radius for rule in calibration.decisions if rule.score in known]
    made += [table.radius for name, table in calibration.thresholds.items() if name in known]
    return all(one is None or bool(np.isclose(one, radius)) for one in made)


Answer = Literal["identified", "unknown", "undecided"]
Decided = tuple[Answer, str | None, str]


@dataclass(frozen=True)
class Candidate:
    """Somebody who scored high.

    Attributes:
        identity: the name.
        template: key of the template.
        score: mutual likelihood score.
        cosine: of the directions.
        kappa: of the template.
        llr: natural-log likelihood ratio of the score; None if not calibrated.
        accept, reject: match from the one on, no match below the other; None if not calibrated.
    """

    identity: str
    template: str
    score: float
    cosine: float
    kappa: float
    llr: float | None = None
    accept: float | None = None
    reject: float | None = None


@dataclass(frozen=True)
class Identification:
    """What is said about one probe.

    Attributes:
        answer: "identified", "unknown" (nobody of the gallery) or "undecided".
        identity: who it is, if identified.
        why: the grounds, as a sentence.
        candidates: highest score first.
        max_fpir: what was promised: at most this share of strangers is taken for somebody of the gallery.
        gallery: number of identities searched.
        fmr: what one comparison may cost, ``max_fpir`` over ``gallery``.
        fmr_used: the rate of the threshold that was used; None without calibration or with one given.
        least_kappa: below it a photo is too poor; None if nothing is asked.
        exact: whether every template was searched.
        scored: how many were scored; the rest was shown, or in an approximate search taken, to score lower.
    """

    answer: Answer
    identity: str | None
    why: str
    candidates: tuple[Candidate, ...]
    max_fpir: float
    gallery: int
    fmr: float | None = None
    fmr_used: float | None = None
    least_kappa: float | None = None
    exact: bool = True
    scored: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"candidates": [asdict(one) for one in self.candidates]}


def decide(
    candidates: Sequence[Candidate], limits: Sequence[Limit] | None, kappa: float, max_fpir: float
) -> Decided:
    """The answer, who it is if identified, and why.

    Args:
        candidates: highest score first.
        limits: of each candidate; None without calibration.
        kappa: of the probe.
        max_fpir: the promise.
    """
    if not candidates:
        return "unknown", None, "nobody is enrolled"
    if limits is None:
        return _undecided("the model is not calibrated, so no score means a match; give a threshold")
    needed = min(limit.least for limit in limits)
    if kappa < needed:
        return _undecided(f"the photo is too poor: kappa {kappa:.1f}, at least {needed:.1f} is needed")
    pairs = list(zip(candidates, limits))
    above = [
        (one, limit)
        for one, limit in pairs
        if min(one.kappa, kappa) >= limit.least and one.score >= limit.accept
    ]
    if above:
        best = max(one.score for one, _ in above)
        poor = [
            one for one, limit in pairs if one.kappa < limit.least and one.score >= max(best, limit.accept)
        ]
        return _too_poor(poor[0], above[0][0]) if poor else _above(above, max_fpir)
    near = next(((one, limit) for one, limit in pairs if one.score >= limit.reject), None)
    if near is None:
        return "unknown", None, "nobody in the gallery is alike enough to be this person"
    who, limit = near
    if who.score >= limit.accept:
        return _undecided(
            f"the enrolment of {who.identity} is too poor to say that it is them: kappa {who.kappa:.1f}, at "
            f"least {limit.least:.1f} is needed"
        )
    return _undecided(f"like {who.identity}, but not enough to rule out a stranger")


def _too_poor(poor: Candidate, best: Candidate) -> Decided:
    return _undecided(
        f"like {best.identity}, but no less like {poor.identity}, whose enrolment is too poor to decide by: "
        f"kappa {poor.kappa:.1f}"
    )


def _above(above: Sequence[tuple[Candidate, Limit]], max_fpir: float) -> Decided:
    """At least one reaches its threshold."""
    ordered = sorted(above, key=lambda pair: (_evidence(pair[0]), pair[0].score), reverse=True)
    best, limit = ordered[0]
    if not limit.enough:
        return _undecided(
            f"{best.identity} is above the strictest threshold there is, which stands for FMR {limit.fmr:g}; "
            f"a gallery of this size needs a smaller one to keep FPIR {max_fpir:g}. Allow more errors, or "
            "give a threshold"
        )
    if len(ordered) > 1:
        rival = ordered[1][0]
        apart = _evidence(best) - _evidence(rival)
        if not apart >= math.log((1 - max_fpir) / max_fpir):
            return _undecided(
                f"{best.identity} and {rival.identity} both reach the threshold, and the calibration cannot "
                "tell which is likelier; look at both, and whether one person is enrolled under two names"
            )
        times = math.exp(min(apart, 700))
        why = f"{rival.identity} reaches the threshold too, but is {times:,.0f} times less likely"
    elif math.isnan(limit.fmr):
        why = "above the given threshold"
    else:
        why = f"of strangers at most {100 * max_fpir:g} % score as high with anybody of the gallery"
    return "identified", best.identity, why


def _undecided(why: str) -> Decided:
    return "undecided", None, why


def _evidence(candidate: Candidate) -> float:
    return -math.inf if candidate.llr is None else candidate.llr
