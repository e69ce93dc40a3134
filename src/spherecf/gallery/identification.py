"""Decide on the candidates of a search: identified, unknown or undecided."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from spherecf.calibration import (
    GALLERY_SCORES,
    PAIR_EVIDENCE,
    PAIR_SCORE,
    TEMPLATE_EVIDENCE,
    TEMPLATE_SCORE,
    Calibration,
    DecisionRule,
)


@dataclass(frozen=True)
class Limit:
    """Thresholds of a comparison in a search.

    Attributes:
        score: name of the score in the calibration.
        fmr: false match rate at ``accept``.
        accept: match threshold: a match if the score is at least this value.
        reject: non-match threshold: a non-match if the score is below this value.
        min_kappa: minimum kappa of probe and template for a decision.
        strict_enough: False if ``fmr`` exceeds the requested rate, because no stricter rate is calibrated.
        extrapolated: 95 % interval of a rate that was too small to be counted and was extrapolated; otherwise
            None.
        tested_on: data on which the rule was tested; None if no rule is used.
    """

    score: str
    fmr: float
    accept: float
    reject: float
    min_kappa: float
    strict_enough: bool
    extrapolated: tuple[float, float] | None = None
    tested_on: str | None = None


def limit_for(calibration: Calibration, score: str, fmr: float) -> Limit | None:
    """Find the lowest threshold with a false match rate of at most ``fmr``.

    If no threshold is that strict, the strictest one is returned; None if the calibration has no thresholds.
    Thresholds come from the decision rules, or from the threshold table if there are no rules. (The table
    need not hold for images of lower quality than those of the calibration.) If there are rules, but the data
    supported none of them, there are no thresholds. A lower rate never gets a lower threshold than a higher
    rate.

    Example:
        >>> from spherecf.calibration import DecisionRule
        >>> rules = tuple(
        ...     DecisionRule("mls", 64.0, "kappa", accept, 0.0, 30.0, "fmr", alpha, 0.05)
        ...     for alpha, accept in ((1e-2, 5.0), (1e-4, 20.0))
        ... )
        >>> calibration = Calibration("f" * 64, "d" * 64, decisions=rules)
        >>> limit_for(calibration, "mls", 1e-3).accept, limit_for(calibration, "mls", 1e-6).strict_enough
        (20.0, False)
    """
    fitted = [r for r in calibration.decisions if (r.score, r.error) == (score, "fmr")]
    rules = [r for r in fitted if r.decides]
    table = calibration.thresholds.get(score)
    entries = () if fitted or table is None else table.entries
    steps: list[tuple[float, float, DecisionRule | None]] = [  # (rate, threshold, rule)
        *((rule.alpha, float(rule.accept or 0.0), rule) for rule in rules),
        *((entry.target, entry.threshold, None) for entry in entries if entry.threshold is not None),
    ]
    if not steps:
        return None
    steps.sort(key=lambda step: -step[0])
    index = next((i for i, step in enumerate(steps) if step[0] <= fmr * (1 + 1e-9)), None)
    chosen = len(steps) - 1 if index is None else index
    target, _, rule = steps[chosen]
    accept = max(step[1] for step in steps[: chosen + 1])
    reject = accept if rule is None or rule.reject is None else min(rule.reject, accept)
    min_kappa = -math.inf if rule is None else rule.min_confidence
    extrapolated, tested_on = (None, None) if rule is None else (rule.extrapolated, rule.tested_on)
    return Limit(score, target, accept, reject, min_kappa, index is not None, extrapolated, tested_on)


def limits_for(
    calibration: Calibration | None,
    fmr: float,
    threshold: float | None,
    radius: float,
) -> tuple[Limit, Limit] | None:
    """Limits for templates of one image and for templates of several; None if there are no thresholds.

    Args:
        calibration: calibration of the model.
        fmr: false match rate allowed for a single comparison.
        threshold: threshold from the user, which overrides the calibrated one. The minimum kappa of the rules
            still applies.
        radius: radius r of the scores; a calibration for another radius is not used.
    """
    single = pooled = None
    if calibration is not None and _same_radius(calibration, radius):
        calibrated = {rule.score for rule in calibration.decisions if rule.error == "fmr"}
        calibrated |= calibration.thresholds.keys()
        single, pooled = (
            next((limit_for(calibration, name, fmr) for name in names if name in calibrated), None)
            for names in GALLERY_SCORES
        )
    if threshold is not None:
        min_kappas = [-math.inf if limit is None else limit.min_kappa for limit in (single, pooled)]
        return (
            Limit(PAIR_SCORE, math.nan, threshold, threshold, min_kappas[0], True),
            Limit(TEMPLATE_SCORE, math.nan, threshold, threshold, min_kappas[1], True),
        )
    return None if single is None or pooled is None else (single, pooled)


_EVIDENCE = (PAIR_EVIDENCE, TEMPLATE_EVIDENCE)


def _same_radius(calibration: Calibration, radius: float) -> bool:
    radii = [rule.radius for rule in calibration.decisions if rule.score in GALLERY_SCORES[1]]
    radii += [table.radius for name, table in calibration.thresholds.items() if name in GALLERY_SCORES[1]]
    return all(other is None or bool(np.isclose(other, radius)) for other in radii)


Answer = Literal["identified", "unknown", "undecided"]
Decision = tuple[Answer, str | None, str]


@dataclass(frozen=True)
class Candidate:
    """A person with a high score.

    Attributes:
        identity: name of the person.
        template: key of the template.
        score: mutual likelihood score.
        cosine: cosine of the directions of probe and template.
        kappa: concentration of the template.
        llr: natural-log likelihood ratio of the score; None if not calibrated.
        accept: match threshold; None if not calibrated.
        reject: non-match threshold; None if not calibrated.
        evidence: calibrated evidence, which accounts for both kappas, if it is compared with the thresholds;
            None if the score is.
    """

    identity: str
    template: str
    score: float
    cosine: float
    kappa: float
    llr: float | None = None
    accept: float | None = None
    reject: float | None = None
    evidence: float | None = None

    @property
    def measure(self) -> float:
        """The value that is compared with the thresholds: evidence, or score."""
        return self.score if self.evidence is None else self.evidence


def weigh(
    candidates: Sequence[Candidate], limits: Sequence[Limit], calibration: Calibration | None, kappa: float
) -> tuple[Candidate, ...]:
    """Add evidence and likelihood ratio given both kappas to candidates whose limits are on evidence.

    Args:
        candidates: candidates of a probe.
        limits: limit of each candidate.
        calibration: calibration from which the limits were taken.
        kappa: concentration of the probe.
    """
    weighed = []
    for candidate, limit in zip(candidates, limits):
        if calibration is not None and limit.score in _EVIDENCE:
            kappas = candidate.kappa, kappa
            evidence = calibration.evidence(limit.score, candidate.score, candidate.cosine, kappas)
            llr = calibration.llr(limit.score, candidate.score, kappas=kappas)
            candidate = replace(candidate, evidence=float(evidence), llr=float(llr))
        weighed.append(candidate)
    return tuple(weighed)


@dataclass(frozen=True)
class Identification:
    """Result of identifying a probe.

    Attributes:
        answer: "identified", "unknown" (not in the gallery) or "undecided".
        identity: name of the person, if identified; otherwise None.
        reason: reason for the answer, as a sentence.
        candidates: candidates, highest score first.
        max_fpir: guaranteed bound on the fraction of people outside the gallery who are identified as a
            member.
        gallery: number of identities in the gallery.
        fmr: false match rate allowed for a single comparison, ``max_fpir / gallery``.
        fmr_used: false match rate of the threshold that was used; None if not calibrated, or if the threshold
            was given by the user.
        min_kappa: minimum kappa of a probe for a decision; None if there is no minimum.
        exact: whether the search was exact.
        scored: number of templates that were scored. In an exact search, the others provably have no higher
            scores; in an approximate search, they were not considered.
        tested_on: data on which the rule was tested; None if no rule was used.
    """

    answer: Answer
    identity: str | None
    reason: str
    candidates: tuple[Candidate, ...]
    max_fpir: float
    gallery: int
    fmr: float | None = None
    fmr_used: float | None = None
    min_kappa: float | None = None
    exact: bool = True
    scored: int = 0
    tested_on: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dictionary."""
        return asdict(self) | {"candidates": [asdict(candidate) for candidate in self.candidates]}


def matches(
    candidates: Sequence[Candidate], limits: Sequence[Limit], kappa: float
) -> list[tuple[Candidate, Limit]]:
    """The candidates that reach their match threshold, if both kappas suffice for a decision."""
    return [
        (candidate, limit)
        for candidate, limit in zip(candidates, limits)
        if min(candidate.kappa, kappa) >= limit.min_kappa and candidate.measure >= limit.accept
    ]


def decide(
    candidates: Sequence[Candidate], limits: Sequence[Limit] | None, kappa: float, max_fpir: float
) -> Decision:
    """Decide on the candidates of a probe; returns the answer, the identity if identified, and the reason.

    Args:
        candidates: candidates, highest score first.
        limits: limit of each candidate; None without a calibration.
        kappa: concentration of the probe.
        max_fpir: bound on the false positive identification rate to guarantee.
    """
    if not candidates:
        return "unknown", None, "the gallery is empty"
    if limits is None:
        return _undecided(
            "the model is not calibrated, or its calibration guarantees no false match rate; set a threshold"
        )
    required = min(limit.min_kappa for limit in limits)
    if kappa < required:
        return _undecided(f"the quality of the photo is too low: kappa {kappa:.1f}, required {required:.1f}")
    pairs = list(zip(candidates, limits))
    if above := matches(candidates, limits, kappa):
        best = max(candidate.measure for candidate, _ in above)
        low_quality = [
            candidate
            for candidate, limit in pairs
            if candidate.kappa < limit.min_kappa and candidate.measure >= max(best, limit.accept)
        ]
        return _low_quality_rival(low_quality[0], above[0][0]) if low_quality else _above(above, max_fpir)
    undecided = ((candidate, limit) for candidate, limit in pairs if candidate.measure >= limit.reject)
    if (first := next(undecided, None)) is None:
        return "unknown", None, "no one in the gallery is similar enough"
    closest, limit = first
    if closest.measure >= limit.accept:
        return _undecided(
            f"the score of {closest.identity} reaches the threshold, but the quality of the enrolment is too "
            f"low: kappa {closest.kappa:.1f}, required {limit.min_kappa:.1f}"
        )
    return _undecided(f"similar to {closest.identity}, but not similar enough for an identification")


def _low_quality_rival(rival: Candidate, best: Candidate) -> Decision:
    return _undecided(
        f"similar to {best.identity}, but at least as similar to {rival.identity}, whose enrolment is of too "
        f"low quality: kappa {rival.kappa:.1f}"
    )


def _above(above: Sequence[tuple[Candidate, Limit]], max_fpir: float) -> Decision:
    """The decision if at least one candidate reaches its threshold."""
    ordered = sorted(above, key=lambda pair: (_evidence(pair[0]), pair[0].score), reverse=True)
    best, limit = ordered[0]
    if not limit.strict_enough:
        return _undecided(
            f"{best.identity} reaches the strictest calibrated threshold (FMR {limit.fmr:g}), but a gallery "
            f"of this size needs a stricter threshold to guarantee FPIR {max_fpir:g}; allow a higher FPIR or "
            "set a threshold"
        )
    if len(ordered) > 1:
        rival = ordered[1][0]
        difference = _evidence(best) - _evidence(rival)
        if not difference >= math.log((1 - max_fpir) / max_fpir):
            return _undecided(
                f"{best.identity} and {rival.identity} both reach the threshold, and neither is clearly more "
                "likely; check both, and whether one person is enrolled under two names"
            )
        ratio = math.exp(min(difference, 700))
        reason = f"{rival.identity} also reaches the threshold, but is {ratio:,.0f} times less likely"
    elif math.isnan(limit.fmr):
        reason = "the score reaches the given threshold"
    else:
        reason = f"at most {100 * max_fpir:g} % of people outside the gallery score this high with any member"
        if limit.extrapolated is not None:
            low, high = limit.extrapolated
            reason += f"; extrapolated false match rate: {low:.1e} to {high:.1e} (95 % interval)"
    return "identified", best.identity, reason


def _undecided(reason: str) -> Decision:
    return "undecided", None, reason


def _evidence(candidate: Candidate) -> float:
    return -math.inf if candidate.llr is None else candidate.llr
