"""Ten-fold verification accuracy: the threshold from nine folds, exactly, the accuracy from the tenth."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError
from spherecf.evaluation.rates import SortedPairs, sort_pairs


@dataclass(frozen=True)
class TenFold:
    """Accuracy over folds."""

    mean: float
    std: float
    """Population standard deviation over folds, as the field prints it."""
    accuracies: list[float]
    thresholds: list[float]
    """The threshold used for each fold, a score of the other folds (inf: accept nothing)."""
    folds: list[int]
    pairs: int
    one_sided: list[int] = field(default_factory=list)
    """Folds of mated pairs alone or non-mated pairs alone: their accuracy is one kind of error only."""

    def log_line(self, name: str, step: int | str = 0) -> str:
        """The line people grep for.

        >>> TenFold(0.99817, 0.00241, [], [], [], 6000).log_line("lfw", 12)
        '[lfw][12]Accuracy-Flip: 0.99817+-0.00241'
        """
        line = f"[{name}][{step}]Accuracy-Flip: {self.mean:.5f}+-{self.std:.5f}"
        return f"{line} ({self.warning})" if self.warning else line

    @property
    def warning(self) -> str:
        """What to know before the accuracy is believed; empty if there is nothing.

        >>> TenFold(0.9, 0.1, [], [], [0, 1], 4, one_sided=[0]).warning
        '1 of 2 folds: mated pairs alone or non-mated pairs alone, where accuracy is one kind of error only'
        """
        if not self.one_sided:
            return ""
        return (
            f"{len(self.one_sided)} of {len(self.folds)} folds: mated pairs alone or non-mated pairs alone, "
            "where accuracy is one kind of error only"
        )


def tenfold(scores: ArrayLike, mated: ArrayLike, folds: ArrayLike) -> TenFold:
    """Cross-validated accuracy; the name keeps the usual number, any number of folds from two will do.

    For each fold the threshold is the observed score (or +inf) of the *other* folds with the highest
    accuracy on them; of several equally good ones the largest, i.e. the one with fewest false matches.
    Choosing among observed scores makes the result exact, free of a grid, and the same under any increasing
    transform of the scores.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show one person.
        folds: (n,) fold number of each pair.

    Folds of one kind of pairs are counted like the others, and listed in ``one_sided``.

    Raises:
        InputError: NaN scores, only one kind of pair, or fewer than two folds.

    Example:
        >>> result = tenfold([0.9, 0.2, 0.8, 0.1], [True, False, True, False], [0, 0, 1, 1])
        >>> result.mean, result.thresholds
        (0.75, [0.8, 0.9])
    """
    pairs = sort_pairs(scores, mated)
    names, fold = check_folds(folds, pairs)
    correct, total, at = fold_counts(pairs, fold, len(names), None)
    one_sided = np.setxor1d(fold[pairs.mated], fold[~pairs.mated])
    accuracy = correct[0] / total[0]
    thresholds = np.concatenate([[np.inf], pairs.scores[pairs.ends]])[at[0]]
    return TenFold(
        float(accuracy.mean()), float(accuracy.std()), accuracy.tolist(), thresholds.tolist(),
        names.tolist(), pairs.scores.size, names[one_sided].tolist(),
    )  # fmt: skip


def check_folds(folds: ArrayLike, pairs: SortedPairs) -> tuple[NDArray[Any], NDArray[Any]]:
    """(names of the folds, index of each pair's fold in the sorted order of the pairs)."""
    given = np.asarray(folds)
    if given.shape != pairs.scores.shape:
        raise InputError(f"folds: expected one per pair, shape {pairs.scores.shape}, got {given.shape}")
    names, index = np.unique(given, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"folds: expected at least 2 different folds, got {len(names)}; check the pair list")
    return names, index[pairs.order]


def fold_counts(
    pairs: SortedPairs, fold: NDArray[Any], folds: int, weights: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(correct, total, threshold index), each (draws, folds): threshold chosen without the fold.

    Accepting one more pair changes the number of correct decisions by +1 (mated) or -1 (non-mated), so
    accuracy at every threshold is a cumulative sum. ``weights`` (draws, n) are in the original order of the
    pairs.

    The *first* maximum in descending order of threshold is always a score of the other folds: at a score that
    only the left-out fold has, the others' accuracy does not change, so it cannot be the first.
    """
    gain = np.where(pairs.mated, 1.0, -1.0)[None, :]
    weight = np.ones_like(gain) if weights is None else weights[..., pairs.order]
    gain = gain * weight
    everything = np.cumsum(gain, -1)[:, pairs.ends]
    shape = (len(gain), folds)
    correct, total, chosen = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    for f in range(folds):
        here = np.flatnonzero(fold == f)
        own = np.cumsum(gain[:, here], -1)
        own = np.concatenate([np.zeros((len(gain), 1)), own], 1)
        accepted = np.searchsorted(here, pairs.ends, side="right")  # of this fold, at each threshold
        others = everything - own[:, accepted]
        best = others.argmax(-1)
        none = np.take_along_axis(others, best[:, None], 1)[:, 0] <= 0  # accepting nothing is as good
        chosen[:, f] = np.where(none, 0, best + 1)
        taken = np.where(none, 0, accepted[best])
        rejected_right = (weight[:, here] * ~pairs.mated[here]).sum(-1)
        correct[:, f] = np.take_along_axis(own, taken[:, None], 1)[:, 0] + rejected_right
        total[:, f] = weight[:, here].sum(-1)
    return correct, total, chosen
