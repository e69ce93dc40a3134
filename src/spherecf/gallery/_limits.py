"""From the promise for a whole gallery to a threshold for one comparison."""

import math
from dataclasses import dataclass

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
