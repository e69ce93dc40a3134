"""What the shipped rules do on other people, as pictures get worse, beside what a cosine threshold does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration import PAIR_SCORE, TEMPLATE_SCORE, Calibration, DecisionRule
from spherecf.evaluation import cllr
from spherecf.experiments._graded_faces import GradedFaces, ScoredPairs
from spherecf.experiments._grades import Condition, conditions
from spherecf.experiments._shipped_calibration import ALPHAS

Array = NDArray[Any]

Ends = tuple[float, float] | None


@dataclass(frozen=True)
class DecisionCount:
    """What one method said of all pairs under one condition.

    Attributes:
        pairs: "image" against image, or "template" against image.
        condition: which grades; "A/B": one picture each.
        method: "rule", "cosine" (its threshold on good pictures) or "cosine, all grades".
        alpha: promised rate of wrong matches.
        non_mated: pairs of two people.
        wrong_matches: of them.
        wrong_match_ends: 95 % interval of their rate, over people.
        mated: pairs of one person.
        matches: of them.
        wrong_non_matches: of them.
        wrong_non_match_ends: likewise.
        undecided_mated: share.
        undecided_non_mated: share.
    """

    pairs: str
    condition: str
    method: str
    alpha: float
    non_mated: int
    wrong_matches: int
    wrong_match_ends: Ends
    mated: int
    matches: int
    wrong_non_matches: int
    wrong_non_match_ends: Ends
    undecided_mated: float
    undecided_non_mated: float

    @property
    def false_match_rate(self) -> float:
        """Of all non-mated pairs."""
        return self.wrong_matches / self.non_mated

    @property
    def false_non_match_rate(self) -> float:
        """Of all mated pairs."""
        return self.wrong_non_matches / self.mated

    @property
    def kept(self) -> bool:
        """Whether no more wrong matches were found than promised."""
        return self.false_match_rate <= self.alpha


@dataclass(frozen=True)
class Cost:
    """Cllr of a likelihood ratio under one condition, in bits."""

    pairs: str
    condition: str
    score: str
    cllr: float


def check_decisions(
    faces: GradedFaces,
    calibration: Calibration,
    rivals: Sequence[DecisionRule],
    draws: int,
) -> tuple[list[DecisionCount], list[Cost]]:
    """All methods under all conditions on people who had no part in the calibration.

    Args:
        faces: of these people.
        calibration: to be checked.
        rivals: rules of the cosine, made in the same way.
        draws: of subjects.
    """
    counts: list[DecisionCount] = []
    costs: list[Cost] = []
    kinds: list[tuple[str, str, Callable[[Condition], ScoredPairs]]] = [
        ("image", PAIR_SCORE, faces.pairs), ("template", TEMPLATE_SCORE, faces.template_pairs)
    ]  # fmt: skip
    for kind, score, pairs in kinds:
        for condition in conditions(list(faces.grades)):
            own = pairs(condition)
            for alpha in ALPHAS:
                methods = _methods(calibration, rivals, score, alpha)
                counts += [
                    count_decisions(own, rule, kind, condition, method, draws) for method, rule in methods
                ]
            scores = [score, "cosine"] if kind == "image" else [score]
            for name in scores:
                llr = calibration.llr(name, own.scores["cosine" if name == "cosine" else "mls"])
                costs.append(Cost(kind, condition.name, name, cllr(llr, own.mated)))
    return counts, costs


def _methods(
    calibration: Calibration, rivals: Sequence[DecisionRule], score: str, alpha: float
) -> list[tuple[str, DecisionRule]]:
    found = [("rule", r) for r in calibration.decisions if (r.score, r.alpha) == (score, alpha)]
    entry = calibration.threshold("cosine", alpha)
    if entry.threshold is not None:
        found.append(("cosine", always(entry.threshold, alpha)))
    found += [("cosine, all grades", rule) for rule in rivals if rule.alpha == alpha]
    return found


def always(threshold: float, alpha: float) -> DecisionRule:
    """The usual rule: match from the cosine threshold on, else non-match."""
    return DecisionRule(
        "cosine", None, "kappa", threshold, threshold, -np.inf, "fmr", alpha, 0.5, "good pictures"
    )


def count_decisions(
    pairs: ScoredPairs, rule: DecisionRule, kind: str, condition: Condition, method: str, draws: int
) -> DecisionCount:
    """Count what a rule says."""
    values = pairs.scores["cosine" if rule.score == "cosine" else "mls"]
    sure = pairs.confidence >= rule.least_confidence
    accept, reject = float(rule.accept or 0.0), float(rule.reject or 0.0)
    upwards, downwards = np.where(sure, values, -np.inf), np.where(sure, -values, -np.inf)
    edge = np.nextafter(np.float32(-reject), np.float32(np.inf))  # score < reject
    at, below = np.array([accept]), np.array([float(edge)])
    matched = {mated: pairs.reach(upwards, mated, at, 0 if mated else draws) for mated in (False, True)}
    refused = {mated: pairs.reach(downwards, mated, below, draws if mated else 0) for mated in (False, True)}

    def undecided(mated: bool) -> float:
        decided = int(matched[mated].reached[0] + refused[mated].reached[0])
        return 1 - decided / matched[mated].pairs

    return DecisionCount(
        kind, condition.name, method, rule.alpha,
        matched[False].pairs, int(matched[False].reached[0]),
        matched[False].interval(0) if draws else None,
        matched[True].pairs, int(matched[True].reached[0]), int(refused[True].reached[0]),
        refused[True].interval(0) if draws else None,
        undecided(True), undecided(False),
    )  # fmt: skip
