"""Ten-fold accuracy as one would explain it: loop over folds, try every score, count. Slow and obvious."""

import math
from collections.abc import Sequence


def tenfold(
    scores: Sequence[float], mated: Sequence[bool], folds: Sequence[int]
) -> tuple[list[float], list[float]]:
    """(accuracy, threshold) of each fold, folds ascending."""
    accuracies, thresholds = [], []
    for fold in sorted(set(folds)):
        train = [(s, m) for s, m, f in zip(scores, mated, folds) if f != fold]
        test = [(s, m) for s, m, f in zip(scores, mated, folds) if f == fold]
        best, chosen = -1, math.inf
        for threshold in [math.inf, *sorted({s for s, _ in train}, reverse=True)]:
            right = sum((s >= threshold) == m for s, m in train)
            if right > best:
                best, chosen = right, threshold
        accuracies.append(sum((s >= chosen) == m for s, m in test) / len(test))
        thresholds.append(chosen)
    return accuracies, thresholds
