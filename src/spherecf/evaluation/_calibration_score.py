"""One score of the calibration protocol: likelihood ratios, thresholds and decisions, each on new people."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration import (
    Calibration,
    Calibrator,
    Decision,
    DecisionRule,
    ErrorCount,
    IsotonicCalibrator,
    LogisticCalibrator,
    ThresholdTable,
    binomial_upper,
    clopper_pearson,
)
from spherecf.evaluation._bootstrap import Interval, bootstrap_subjects, interval
from spherecf.evaluation._calibration_result import (
    Cost,
    CoverageCurve,
    RuleCheck,
    ScoreCalibration,
    ThresholdCheck,
)
from spherecf.evaluation._llr import cllr, min_cllr, reliability, tippett
from spherecf.evaluation._selective import ERRORS, Abstain, Counts, JudgedPairs, choose_decision, errors_of
from spherecf.evaluation._split_subjects import disjoint_pairs

Array = NDArray[Any]
Ends = tuple[float, float]

ALPHAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
ABSTAIN: tuple[Abstain, ...] = ("both", "score", "confidence")


@dataclass(frozen=True, eq=False)
class Parts:
    """Pairs of one score, and which part of the people each belongs to."""

    scores: Array
    sure: Array
    mated: Array
    subjects: tuple[Array, Array]
    part: Array
    """(n,) 0 tuning, 1 testing, 2 measuring, -1 none."""
    fit: Array
    """(n,) true for the first two."""
    confidence: str
    disjoint: bool
    seed: int
    draws: int

    def judged(self, part: int) -> JudgedPairs:
        """The pairs of a part; those that test, disjoint if asked for."""
        rows = np.flatnonzero(self.part == part)
        if part == 1 and self.disjoint:
            a, b = (side[rows] for side in self.subjects)
            rows = rows[disjoint_pairs(a, b, self.mated[rows], seed=self.seed)]
        return JudgedPairs(self.scores[rows], self.sure[rows], self.mated[rows])

    def bootstrap(self, rows: Array, values: Array, numbers: int) -> list[tuple[Interval, Interval]]:
        """Intervals of the means of ``values`` (numbers, rows): over mated, and over non-mated pairs."""
        mated = self.mated[rows]

        def statistic(weights: Array) -> dict[str, Array]:
            found: dict[str, Array] = {}
            for name, kind in (("mated", mated), ("non_mated", ~mated)):
                own = weights * kind
                means = own @ values.T / own.sum(1, keepdims=True)
                found |= {f"{name}:{i}": means[:, i] for i in range(numbers)}
            return found

        a, b = (side[rows] for side in self.subjects)
        drawn = bootstrap_subjects(statistic, a, b, draws=self.draws, seed=self.seed)
        return [(interval(drawn[f"mated:{i}"]), interval(drawn[f"non_mated:{i}"])) for i in range(numbers)]


def calibrate_score(
    score: str, line: str, parts: Parts, calibration: Calibration, alpha: float, delta: float
) -> tuple[ScoreCalibration, Calibration]:
    """Measure what was fitted on the people who measure; add intervals and rules to the calibration."""
    fitted, radius = calibration.likelihood[score], calibration.likelihood[score].radius
    fit, new = np.flatnonzero(parts.fit), np.flatnonzero(parts.part == 2)
    kinds = IsotonicCalibrator if isinstance(fitted, LogisticCalibrator) else LogisticCalibrator
    other = kinds.fit(parts.scores[fit], parts.mated[fit], score=score, radius=radius)
    best = min_cllr(parts.scores[new], parts.mated[new])
    table = _with_intervals(calibration.thresholds[score], parts, fit)
    tuning, testing, measuring = (parts.judged(part) for part in range(3))
    rules = [
        choose_decision(
            tuning, testing, alpha=alpha, delta=delta, error=error, score=score, radius=radius,
            confidence=parts.confidence, tested_on="disjoint pairs" if parts.disjoint else "pairs",
        )
        for error in ERRORS
    ]  # fmt: skip
    found = ScoreCalibration(
        score,
        line,
        best,
        [_cost(one, best, parts, new) for one in (fitted, other)],
        tippett(fitted(parts.scores[new]), parts.mated[new]),
        _check_thresholds(table, parts, new),
        [check_rule(rule, measuring) for rule in rules],
        [_curve(abstain, tuning, testing, measuring, delta) for abstain in ABSTAIN],
    )
    kept = replace(
        calibration,
        thresholds={**calibration.thresholds, score: table},
        decisions=(*calibration.decisions, *rules),
    )
    return found, kept


def check_rule(rule: DecisionRule, pairs: JudgedPairs) -> RuleCheck:
    """What a rule does on pairs that had no part in making it.

    Example:
        >>> rule = DecisionRule("cosine", None, "kappa", 0.4, 0.2, 30.0, "fmr", 0.01, 0.05)
        >>> pairs = JudgedPairs(np.array([0.5, 0.3, 0.1]), np.full(3, 40.0), np.array([True, True, False]))
        >>> found = check_rule(rule, pairs)
        >>> found.coverage_mated, [(e.errors, e.trials) for e in found.errors]
        (0.5, [(0, 1)])
    """
    said, same = rule.decide(pairs.scores, pairs.confidences), pairs.mated
    match, other = said == Decision.MATCH, said == Decision.NON_MATCH
    counts = Counts(
        *(np.asarray([rows.sum()]) for rows in (match & same, match & ~same, other & same, other & ~same))
    )
    decided = match | other
    return RuleCheck(
        rule,
        float(decided.mean()),
        float(decided[same].mean()),
        float(decided[~same].mean()),
        [
            ErrorCount(name, int(e[0]), int(n[0]), float(binomial_upper(e, n, rule.delta)[0]))
            for name, e, n in errors_of(counts, rule.error)
        ],
    )


def _cost(calibrator: Calibrator, best: float, parts: Parts, rows: Array) -> Cost:
    llr, mated = calibrator(parts.scores[rows]), parts.mated[rows]
    value = cllr(llr, mated)
    around = None
    if parts.draws:
        bits = np.logaddexp(0, np.where(mated, -llr, llr)) / np.log(2)

        def statistic(weights: Array) -> dict[str, Array]:
            sides = [(weights * kind) @ bits / (weights * kind).sum(1) for kind in (mated, ~mated)]
            return {"cllr": (sides[0] + sides[1]) / 2}

        a, b = (side[rows] for side in parts.subjects)
        drawn = bootstrap_subjects(statistic, a, b, draws=parts.draws, seed=parts.seed)
        around = interval(drawn["cllr"])
    separated = isinstance(calibrator, LogisticCalibrator) and calibrator.separated
    return Cost(calibrator.kind, value, around, value - best, reliability(llr, mated), separated)


def _with_intervals(table: ThresholdTable, parts: Parts, rows: Array) -> ThresholdTable:
    known = [entry for entry in table.entries if entry.threshold is not None]
    if not parts.draws or not known:
        return table
    accepted = np.stack([parts.scores[rows] >= entry.threshold for entry in known]).astype(float)
    around = parts.bootstrap(rows, accepted, len(known))
    fmr = {entry.target: (other.low, other.high) for entry, (_, other) in zip(known, around)}
    tmr = {entry.target: (same.low, same.high) for entry, (same, _) in zip(known, around)}
    return table.with_subject_intervals(fmr, tmr)


def _check_thresholds(table: ThresholdTable, parts: Parts, rows: Array) -> list[ThresholdCheck]:
    scores, mated = parts.scores[rows], parts.mated[rows]
    same, other = int(mated.sum()), int((~mated).sum())
    entries = []
    for entry in table.entries:
        if entry.threshold is None:
            entries.append(entry)
            continue
        accepted = scores >= entry.threshold
        true, false = int((accepted & mated).sum()), int((accepted & ~mated).sum())
        exact = [[float(end) for end in clopper_pearson(k, n)] for k, n in ((false, other), (true, same))]
        entries.append(
            replace(
                entry, false_matches=false, non_mated=other, true_matches=true, mated=same,
                fmr=false / other, tmr=true / same, fmr_exact=(exact[0][0], exact[0][1]),
                tmr_exact=(exact[1][0], exact[1][1]), fmr_subjects=None, tmr_subjects=None,
            )
        )  # fmt: skip
    counted = _with_intervals(ThresholdTable(table.score, table.radius, tuple(entries)), parts, rows)
    return [
        ThresholdCheck(fitted, checked if fitted.threshold is not None else None)
        for fitted, checked in zip(table.entries, counted.entries)
    ]


def _curve(
    abstain: Abstain, tuning: JudgedPairs, testing: JudgedPairs, measuring: JudgedPairs, delta: float
) -> CoverageCurve:
    rules = [choose_decision(tuning, testing, alpha=alpha, delta=delta, abstain=abstain) for alpha in ALPHAS]
    return CoverageCurve(abstain, list(ALPHAS), [check_rule(rule, measuring).coverage for rule in rules])
