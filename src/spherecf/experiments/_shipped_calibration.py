"""The calibration of the shipped head: from graded faces of some people to everything a model carries."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration import (
    PAIR_SCORE,
    TEMPLATE_SCORE,
    Calibration,
    DecisionRule,
    KappaScale,
    LogisticCalibrator,
    ThresholdTable,
)
from spherecf.errors import InputError
from spherecf.evaluation import SubjectRates, bounded_rule
from spherecf.experiments._graded_faces import GradedFaces, ScoredPairs
from spherecf.experiments._grades import CALIBRATED, Condition, conditions

Array = NDArray[Any]

TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
ALPHAS = (1e-2, 1e-3, 1e-4, 1e-5)
FNMR, DELTA = 0.01, 0.001
_FREE = 0.01  # share of the true matches that the floor on kappa may cost
_ABOVE, _BELOW, _NAT = 60.0, 60.0, 0.05  # grid of thresholds around the neutral score, in nats
_COSINES = np.round(np.arange(-0.3, 1.0, 0.0025), 4)
_OTHERS = 200_000  # non-mated pairs per condition that likelihood ratios are fitted on


@dataclass(frozen=True, eq=False)
class Gathered:
    """What the rules of one score are made from, one entry per condition."""

    score: str
    non_mated: list[SubjectRates]
    mated: list[SubjectRates]
    matches: list[tuple[Array, Array]]
    """(scores, confidences) of all mated pairs."""
    sample: list[tuple[Array, NDArray[np.bool_]]]
    """(scores, mated) of all mated and some non-mated pairs."""
    tables: list[ThresholdTable]

    def rules(self, radius: float | None) -> list[DecisionRule]:
        """One per alpha, as far as the pairs support them."""
        made = (
            bounded_rule(
                self.non_mated, self.mated, alpha=alpha, fnmr=FNMR, delta=DELTA, score=self.score,
                radius=radius,
            )
            for alpha in ALPHAS
        )  # fmt: skip
        return [rule for rule in made if rule.decides]

    def floor(self, accept: float) -> float:
        """The largest confidence that costs at most one in a hundred of all true matches."""
        sure = np.concatenate([c[s >= accept] for s, c in self.matches])
        return float(np.quantile(sure, _FREE)) if sure.size else -np.inf

    def likelihood(self, radius: float | None) -> LogisticCalibrator:
        """Over all conditions."""
        scores, mated = (np.concatenate(part) for part in zip(*self.sample))
        return LogisticCalibrator.fit(scores, mated, score=self.score, radius=radius)


def gather(
    score: str,
    pairs: Callable[[Condition], ScoredPairs],
    neutral: float | None,
    draws: int,
    seed: int = 0,
) -> Gathered:
    """All conditions one after the other, so that only one of them is in memory.

    Args:
        score: name of the score for the rules.
        pairs: of a condition.
        neutral: score that speaks neither for nor against, of mutual likelihood scores; None for cosines.
        draws: of subjects.
        seed: of the draws.
    """
    found = Gathered(score, [], [], [], [], [])
    high, low = _COSINES, _COSINES
    if neutral is not None:
        high = np.round(neutral + np.arange(0, _ABOVE, _NAT), 2)
        low = np.round(neutral + np.arange(-_BELOW, _ABOVE / 2, _NAT), 2)
    column = "cosine" if neutral is None else "mls"
    rng = np.random.default_rng(seed)
    for condition in conditions(list(CALIBRATED)):
        own = pairs(condition)
        values = own.scores[column]
        found.non_mated.append(own.reach(values, False, high, draws, seed))
        found.mated.append(own.reach(values, True, low, draws, seed))
        found.matches.append((values[own.mated], own.confidence[own.mated]))
        others = np.flatnonzero(~own.mated)
        some = np.append(np.flatnonzero(own.mated), rng.permutation(others)[:_OTHERS])
        found.sample.append((values[some].astype(np.float64), own.mated[some]))
        found.tables.append(_table(own, column, score, draws, seed))
    return found


def _table(pairs: ScoredPairs, column: str, score: str, draws: int, seed: int) -> ThresholdTable:
    """Thresholds under one condition, with intervals over people."""
    table = ThresholdTable.fit(pairs.scores[column], pairs.mated, TARGETS, score=score)
    known = {e.target: e.threshold for e in table.entries if e.threshold is not None}
    known = {target: threshold for target, threshold in known.items() if np.isfinite(threshold)}
    if not draws or not known:
        return table
    grid = np.unique(list(known.values()))
    ends = []
    for mated in (False, True):
        rates = pairs.reach(pairs.scores[column], mated, grid, draws, seed)
        ends.append({t: rates.interval(int(np.searchsorted(grid, at))) for t, at in known.items()})
    return table.with_subject_intervals(*ends)


def calibrate(
    faces: GradedFaces, *, model: str, data: str, population: str, draws: int, record: Mapping[str, Any]
) -> tuple[Calibration, list[DecisionRule]]:
    """Scale, likelihood ratios, thresholds and rules.

    Thresholds of "mls" and "cosine" are for pictures as they are; those of templates, and all rules, for
    every grade: the strictest counts.

    Args:
        faces: of the people to calibrate on.
        model: fingerprint of the model.
        data: hash of the images.
        population: what the faces are, in words.
        draws: of subjects.
        record: facts to add.

    Returns:
        (calibration, rules of the cosine made in the same way, which are for comparison).

    Raises:
        InputError: too few people or pairs for any rule.
    """
    neutral, radius = faces.neutral(), faces.radius
    single = gather(PAIR_SCORE, faces.pairs, neutral, draws)
    cosine = gather("cosine", faces.pairs, None, draws)
    template = gather(TEMPLATE_SCORE, faces.template_pairs, neutral, draws)
    rules = single.rules(radius)
    if not rules:
        raise InputError(
            f"{len(np.unique(faces.person))} people with {len(faces.person)} images support no rule with a "
            f"false match rate of {ALPHAS[0]:g}; bring more people"
        )
    floor = single.floor(float(rules[0].accept or 0.0))
    rules = [replace(rule, least_confidence=floor) for rule in (*rules, *template.rules(radius))]
    shown = [faces.of(grade)[1] for grade in CALIBRATED]
    calibration = Calibration(
        model,
        data,
        KappaScale.fit(np.concatenate(shown), dim=faces.mu.shape[2], population=population),
        {
            PAIR_SCORE: single.likelihood(radius),
            "cosine": cosine.likelihood(None),
            TEMPLATE_SCORE: template.likelihood(radius),
        },
        {
            PAIR_SCORE: replace(single.tables[0], radius=radius),
            "cosine": cosine.tables[0],
            TEMPLATE_SCORE: replace(strictest(template.tables), radius=radius),
        },
        tuple(rules),
        {**record, "neutral": neutral, "grades": list(CALIBRATED)},
    )
    return calibration, cosine.rules(None)


def strictest(tables: Sequence[ThresholdTable]) -> ThresholdTable:
    """By target the entry with the largest threshold; unresolved where any is."""
    entries = []
    for together in zip(*(table.entries for table in tables)):
        unresolved = [entry for entry in together if entry.threshold is None]
        entries.append(
            unresolved[0] if unresolved else max(together, key=lambda entry: float(entry.threshold or 0))
        )
    return replace(tables[0], entries=tuple(entries))


def halves(person: NDArray[np.int64], seed: int = 0) -> Iterator[NDArray[np.bool_]]:
    """The images of one half of the people, and of the other."""
    people = np.random.default_rng(seed).permutation(np.unique(person))
    for part in (people[: len(people) // 2], people[len(people) // 2 :]):
        yield np.isin(person, part)
