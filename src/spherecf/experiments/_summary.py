"""Many seeds into one table: means, the difference to the cosine, and its interval over subjects."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spherecf.evaluation import Interval, PairReport, interval

METRICS = ("accuracy", "tmr@0.01", "tmr@0.001")


@dataclass(frozen=True)
class Cell:
    """One score under one condition, over all seeds.

    Attributes:
        mean: over seeds; None where the pairs cannot resolve the target.
        spread: standard deviation over seeds (0 for one seed).
        gain: mean difference to the cosine.
        interval: of the gain, from bootstrap draws over subjects averaged over seeds.
    """

    pairs: str
    condition: str
    score: str
    metric: str
    mean: float | None
    spread: float
    gain: float
    interval: Interval | None


def summarize(reports: Sequence[PairReport], metrics: Sequence[str] = METRICS) -> list[Cell]:
    """Cells in the order of the reports: pair list, condition, score, metric."""
    groups: dict[tuple[str, str], list[PairReport]] = {}
    for report in reports:
        groups.setdefault((report.name, report.condition), []).append(report)
    cells = []
    for (name, condition), members in groups.items():
        for score in members[0].scores:
            for metric in metrics:
                cells.append(_cell(name, condition, score, metric, members))
    return cells


def _cell(name: str, condition: str, score: str, metric: str, members: Sequence[PairReport]) -> Cell:
    found = [report.scores[score].measure(metric) for report in members]
    values = np.array([measure.value for measure in found if measure is not None])
    if len(values) < len(members):
        return Cell(name, condition, score, metric, None, 0.0, 0.0, None)
    cosine = [report.scores["cosine"].measure(metric) for report in members]
    gain = values - np.array([measure.value for measure in cosine if measure is not None])
    between = None
    draws = [report.resampled for report in members]
    if score != "cosine" and all(f"{score}:{metric}" in drawn for drawn in draws):
        # Every report draws the same subjects for the same seed of the bootstrap, so draws can be averaged.
        differences = [drawn[f"{score}:{metric}"] - drawn[f"cosine:{metric}"] for drawn in draws]
        between = interval(np.mean(differences, 0))
    return Cell(
        name, condition, score, metric, float(values.mean()), float(values.std()), float(gain.mean()), between
    )
