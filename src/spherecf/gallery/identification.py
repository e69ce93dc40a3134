"""Turn the candidates of a search into an answer: identified, unknown or undecided."""

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
    """Thresholds of one comparison in a search.

    Attributes:
        score: name of the score in the calibration.
        fmr: false match rate at ``accept``.
        accept: match if the score is at least this.
        reject: non-match if the score is below this.
        min_kappa: minimum kappa of both sides for any decision.
        strict_enough: False if ``fmr`` exceeds the requested rate, because no stricter one is calibrated.
        extrapolated: 95 % interval of the rate where it is smaller than could be counted; else None.
        tested_on: whose pairs the rule was tested on; None where no rule is used.
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
    """The lowest threshold with a rate of at most ``fmr``, else the strictest one; None if there is none.

    Thresholds come from the decision rules if there are any, since those of the table need not hold for
    images of lower quality than the calibration's; else from the table. A lower rate never gets a lower
    threshold than a higher rate.

    Example:
        >>> from spherecf.calibration import DecisionRule
        >>> rules = tuple(
        ...     DecisionRule("mls", 64.0, "kappa", accept, 0.0, 30.0, "fmr", alpha, 0.05)
        ...     for alpha, accept in ((1e-2, 5.0), (1e-4, 20.0))
        ... )
        >>> known = Calibration("f" * 64, "d" * 64, decisions=rules)
        >>> limit_for(known, "mls", 1e-3).accept, limit_for(known, "mls", 1e-6).strict_enough
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
    *,
    evidence: bool = True,
) -> tuple[Limit, Limit] | None:
    """Limits for templates of one image and of several; None if there are no thresholds.

    Args:
        calibration: of the model.
        fmr: false match rate allowed for one comparison.
        threshold: of the user, instead of the calibrated one; the minimum kappa of the rules still holds.
        radius: r of the scores; a calibration for another radius is not used.
        evidence: take limits of evidence where there are any; else of scores alone.
    """
    single = pooled = None
    if calibration is not None and _same_radius(calibration, radius):
        left_out = () if evidence else _EVIDENCE
        single, pooled = (
            next((found for name in names if name not in left_out
                  and (found := limit_for(calibration, name, fmr))), None)
            for names in GALLERY_SCORES
        )  # fmt: skip
    if threshold is not None:
        minima = [-math.inf if limit is None else limit.min_kappa for limit in (single, pooled)]
        return (
            Limit(PAIR_SCORE, math.nan, threshold, threshold, minima[0], True),
            Limit(TEMPLATE_SCORE, math.nan, threshold, threshold, minima[1], True),
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
        cosine: between the directions.
        kappa: of the template.
        llr: natural-log likelihood ratio of the score; None if not calibrated.
        accept, reject: match from ``accept``, non-match below ``reject``; None if not calibrated.
        evidence: what is compared with them, if it is not the score: evidence that knows both kappas.
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
        """What is compared with the thresholds."""
        return self.score if self.evidence is None else self.evidence


def weigh(
    candidates: Sequence[Candidate], limits: Sequence[Limit], calibration: Calibration | None, kappa: float
) -> tuple[Candidate, ...]:
    """The candidates with evidence and likelihood ratio given both kappas, where their limits read evidence.

    Args:
        candidates: of one probe.
        limits: of each.
        calibration: that the limits are of.
        kappa: of the probe.
    """
    found = []
    for one, limit in zip(candidates, limits):
        if calibration is not None and limit.score in _EVIDENCE:
            kappas = one.kappa, kappa
            evidence = calibration.evidence(limit.score, one.score, one.cosine, kappas)
            llr = calibration.llr(limit.score, one.score, kappas=kappas)
            one = replace(one, evidence=float(evidence), llr=float(llr))
        found.append(one)
    return tuple(found)


@dataclass(frozen=True)
class Identification:
    """The answer for one probe.

    Attributes:
        answer: "identified", "unknown" (not in the gallery) or "undecided".
        identity: name of the person, if identified.
        reason: why, as a sentence.
        candidates: highest score first.
        max_fpir: guaranteed bound on the share of strangers that are identified as somebody in the gallery.
        gallery: number of identities in the gallery.
        fmr: false match rate allowed for one comparison, ``max_fpir / gallery``.
        fmr_used: rate of the threshold that was used; None if not calibrated or if a threshold was given.
        min_kappa: minimum kappa of a probe for any decision; None if there is none.
        exact: whether the search was exact.
        scored: number of templates that were scored; the others provably score lower (exact search), or were
            not considered (approximate search).
        tested_on: whose pairs the rule that was used was tested on; None where no rule was used.
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
        """JSON-able."""
        return asdict(self) | {"candidates": [asdict(candidate) for candidate in self.candidates]}


def decide(
    candidates: Sequence[Candidate], limits: Sequence[Limit] | None, kappa: float, max_fpir: float
) -> Decision:
    """The answer, the identity if identified, and the reason.

    Args:
        candidates: highest score first.
        limits: of each candidate; None without calibration.
        kappa: of the probe.
        max_fpir: bound to guarantee.
    """
    if not candidates:
        return "unknown", None, "the gallery is empty"
    if limits is None:
        return _undecided("the model is not calibrated, so there is no threshold; give one")
    required = min(limit.min_kappa for limit in limits)
    if kappa < required:
        return _undecided(f"the quality of the photo is too low: kappa {kappa:.1f}, required {required:.1f}")
    pairs = list(zip(candidates, limits))
    above = [
        (candidate, limit)
        for candidate, limit in pairs
        if min(candidate.kappa, kappa) >= limit.min_kappa and candidate.measure >= limit.accept
    ]
    if above:
        best = max(candidate.measure for candidate, _ in above)
        low_quality = [
            candidate
            for candidate, limit in pairs
            if candidate.kappa < limit.min_kappa and candidate.measure >= max(best, limit.accept)
        ]
        return _low_quality_rival(low_quality[0], above[0][0]) if low_quality else _above(above, max_fpir)
    near = next(((candidate, limit) for candidate, limit in pairs if candidate.measure >= limit.reject), None)
    if near is None:
        return "unknown", None, "nobody in the gallery is similar enough"
    nearest, limit = near
    if nearest.measure >= limit.accept:
        return _undecided(
            f"the score of {nearest.identity} reaches the threshold, but the enrolment is of low quality: "
            f"kappa {nearest.kappa:.1f}, required {limit.min_kappa:.1f}"
        )
    return _undecided(f"similar to {nearest.identity}, but not enough for an identification")


def _low_quality_rival(rival: Candidate, best: Candidate) -> Decision:
    return _undecided(
        f"similar to {best.identity}, but at least as similar to {rival.identity}, whose enrolment has too "
        f"low a quality: kappa {rival.kappa:.1f}"
    )


def _above(above: Sequence[tuple[Candidate, Limit]], max_fpir: float) -> Decision:
    """The decision if at least one candidate reaches its threshold."""
    ordered = sorted(above, key=lambda pair: (_evidence(pair[0]), pair[0].score), reverse=True)
    best, limit = ordered[0]
    if not limit.strict_enough:
        return _undecided(
            f"{best.identity} is above the strictest calibrated threshold (FMR {limit.fmr:g}), but a gallery "
            f"of this size needs a stricter one to guarantee FPIR {max_fpir:g}; allow a higher FPIR, or give "
            "a threshold"
        )
    if len(ordered) > 1:
        rival = ordered[1][0]
        difference = _evidence(best) - _evidence(rival)
        if not difference >= math.log((1 - max_fpir) / max_fpir):
            return _undecided(
                f"{best.identity} and {rival.identity} both reach the threshold, and neither is clearly more "
                "likely; check both, and whether one person is enrolled under two names"
            )
        times = math.exp(min(difference, 700))
        reason = f"{rival.identity} also reaches the threshold, but is {times:,.0f} times less likely"
    elif math.isnan(limit.fmr):
        reason = "the score is above the given threshold"
    else:
        reason = f"at most {100 * max_fpir:g} % of strangers score this high with anybody in the gallery"
        if limit.extrapolated is not None:
            low, high = limit.extrapolated
            reason += (
                f"; extrapolated: {low:.1e} to {high:.1e} of comparisons with strangers (95 %), beyond what "
                "was counted"
            )
    return "identified", best.identity, reason


def _undecided(reason: str) -> Decision:
    return "undecided", None, reason


def _evidence(candidate: Candidate) -> float:
    return -math.inf if candidate.llr is None else candidate.llr
