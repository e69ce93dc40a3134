"""Every measure of every score, its interval, and the differences to cosine, all from the same draws."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.evaluation._bootstrap import Interval, bootstrap_subjects, interval
from spherecf.evaluation._curve import SortedPairs
from spherecf.evaluation._nearest import nearest_of_curve
from spherecf.evaluation._rates import (
    allowed_false,
    auc_rates,
    det_curve,
    eer_rates,
    spread,
    tmr_of_curve,
    tmr_rates,
)
from spherecf.evaluation._resolve import ResolvedPairs
from spherecf.evaluation._result import Measure, ScoreResult
from spherecf.evaluation._signature import signature
from spherecf.evaluation._tenfold import check_folds, fold_counts, tenfold

Array = NDArray[Any]


def resample(
    sorted_pairs: Mapping[str, SortedPairs],
    pairs: ResolvedPairs,
    targets: Sequence[float],
    draws: int,
    seed: int,
) -> dict[str, Array]:
    """Bootstrap of all measures at once: "score:metric" -> (draws,). All scores see the same draws."""
    non_mated = int((~pairs.mated).sum())

    def statistic(weights: Array) -> dict[str, Array]:
        found = {}
        for score, sp in sorted_pairs.items():
            curve = sp.curve(weights)
            names, fold = check_folds(pairs.folds, sp)
            correct, total, _ = fold_counts(sp, fold, len(names), weights)
            drawn = total > 0  # a fold of which no pair was drawn does not count
            accuracy = np.where(drawn, correct / np.where(drawn, total, 1), 0).sum(-1) / drawn.sum(-1)
            found[f"{score}:accuracy"] = accuracy
            found[f"{score}:eer"], found[f"{score}:auc"] = eer_rates(curve), auc_rates(curve)
            for target in targets:
                if allowed_false(target, non_mated) >= 1:
                    found[f"{score}:tmr@{target:g}"] = tmr_rates(curve, target)
        return found

    return bootstrap_subjects(statistic, *pairs.subjects, draws=draws, seed=seed)


def measure(
    score: str,
    name: str,
    step: int | str,
    sp: SortedPairs,
    pairs: ResolvedPairs,
    targets: Sequence[float],
    resampled: Mapping[str, Array],
    facts: Mapping[str, object],
    nearest: bool,
) -> ScoreResult:
    """Everything about one score; ``facts`` go into its signature."""
    curve = sp.curve()
    accuracy = tenfold(sp.scores, sp.mated, pairs.folds[sp.order])
    tmr = tmr_of_curve(curve, targets)
    fmr, fnmr, _ = det_curve(sp.scores, sp.mated)
    thin = spread(fmr, fnmr)

    def around(metric: str) -> Interval | None:
        found = resampled.get(f"{score}:{metric}")
        return None if found is None else interval(found)

    between = {f"{entry.target:g}": around(f"tmr@{entry.target:g}") for entry in tmr if entry.tmr is not None}
    return ScoreResult(
        score=score,
        signature=signature(f"{name}/tenfold", **facts),
        log_line=accuracy.log_line(name if score == "cosine" else f"{name}:{score}", step),
        tenfold=accuracy,
        accuracy=Measure(accuracy.mean, around("accuracy")),
        tmr=tmr,
        tmr_intervals={target: found for target, found in between.items() if found is not None},
        eer=Measure(float(eer_rates(curve)), around("eer")),
        auc=Measure(float(auc_rates(curve)), around("auc")),
        det={"fmr": fmr[thin].tolist(), "fnmr": fnmr[thin].tolist()},
        nearest=nearest_of_curve(curve, targets) if nearest else [],
    )


def differences_to_cosine(
    results: Mapping[str, ScoreResult], resampled: Mapping[str, Array]
) -> dict[str, Measure]:
    """Each score minus cosine, the interval from draws that both saw."""
    found: dict[str, Measure] = {}
    base = results.get("cosine")
    if base is None:
        return found
    metrics = ["accuracy", *(f"tmr@{entry.target:g}" for entry in base.tmr), "eer", "auc"]
    for score, result in results.items():
        for metric in metrics if score != "cosine" else []:
            one, other = result.measure(metric), base.measure(metric)
            if one is None or other is None:
                continue
            draws = resampled.get(f"{score}:{metric}")
            between = None if draws is None else interval(draws - resampled[f"cosine:{metric}"])
            found[f"{score}-cosine:{metric}"] = Measure(one.value - other.value, between)
    return found
