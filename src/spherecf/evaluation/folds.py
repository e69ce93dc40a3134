"""People in lists of pairs and templates: parts without a common person, and ten-fold accuracy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import check_mated
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


Array = NDArray[Any]

_PER_PART = 3  # groups of linked people wanted per part, so that parts come out near their sizes


def split_subjects(
    left: ArrayLike, right: ArrayLike, shares: Sequence[float | int], *, seed: int = 0
) -> tuple[NDArray[np.int64], str]:
    """Put people into parts; a pair belongs to a part if both its people do.

    People whom pairs link, directly or over others, stay together where that leaves enough groups (the folds
    of most lists are such groups); no pair is lost then. Otherwise each person is drawn alone, and pairs
    across parts belong nowhere.

    Args:
        left: (n,) person of each pair's left image.
        right: (n,) of the right image.
        shares: (parts,) sizes wanted, of any sum.
        seed: of the draw.

    Returns:
        (part (n,), -1 for pairs across parts; "groups" or "people", what was drawn).

    Raises:
        InputError: shapes that differ, or fewer people than parts.

    Example:
        >>> part, drawn = split_subjects(["a", "b", "b"], ["a", "b", "a"], [1, 1])
        >>> sorted(part.tolist()), drawn  # with a and b apart, the pair of both is lost
        ([-1, 0, 1], 'people')
    """
    a, b, people = _codes(left, right)
    wanted = np.asarray(shares, np.float64)
    if people < wanted.size:
        raise InputError(f"split: {people} people cannot make {wanted.size} parts with nobody in common")
    group = linked(a, b, people)
    grouped = np.unique(group).size >= _PER_PART * wanted.size
    unit = group if grouped else np.arange(people)
    load = np.bincount(unit[a], minlength=people) + np.bincount(unit[b], minlength=people)
    units = np.unique(unit)
    order = np.random.default_rng(seed).permutation(units)
    order = order[np.argsort(-load[order], kind="stable")]  # the largest first, each to where most is missing
    part = np.empty(people, np.int64)
    filled = np.zeros(wanted.size)
    for one in order.tolist():
        emptiest = int(np.argmin(filled / wanted))
        part[one] = emptiest
        filled[emptiest] += load[one]
    mine, other = part[unit[a]], part[unit[b]]
    return np.where(mine == other, mine, -1), "groups" if grouped else "people"


def disjoint_pairs(
    left: ArrayLike, right: ArrayLike, mated: ArrayLike, *, seed: int = 0
) -> NDArray[np.int64]:
    """Rows of pairs of which no two share a person, in random order, with the list's share of mated pairs.

    Where people are drawn independently, so are these pairs: what exact binomial tests ask for. A mated pair
    takes one person, a non-mated one two.

    Raises:
        InputError: shapes that differ.

    Example:
        >>> left, right, mated = list("aabcd"), list("abbcc"), [1, 0, 1, 1, 0]
        >>> rows = disjoint_pairs(left, right, mated)
        >>> people = [{left[row], right[row]} for row in rows]
        >>> sum(map(len, people)) == len(set.union(*people))
        True
    """
    a, b, people = _codes(left, right)
    kind = check_mated(mated)
    sides = [side for side in (np.flatnonzero(kind), np.flatnonzero(~kind)) if side.size]
    rng = np.random.default_rng(seed)
    waiting = [iter(rng.permutation(side).tolist()) for side in sides]
    taken: list[list[int]] = [[] for _ in sides]
    free = np.ones(people, bool)
    while sides:
        behind = min(range(len(sides)), key=lambda i: len(taken[i]) / sides[i].size)
        row = next((row for row in waiting[behind] if free[a[row]] and free[b[row]]), None)
        if row is None:  # one more of the other kind alone would change the share
            break
        free[a[row]] = free[b[row]] = False
        taken[behind].append(row)
    return np.sort(np.asarray([row for side in taken for row in side], np.int64))


def _codes(left: ArrayLike, right: ArrayLike) -> tuple[Array, Array, int]:
    a, b = np.asarray(left), np.asarray(right)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"subjects: expected two (n,) arrays, got {a.shape} and {b.shape}")
    names, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    return codes[: a.size], codes[a.size :], names.size


def linked(a: Array, b: Array, people: int) -> Array:
    """For each of 0 .. people - 1 the smallest number among all that pairs link it with, over others too."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(a), np.bool_), (a, b)), shape=(people, people))
    component = connected_components(edges, directed=False)[1]  # (people,)
    smallest = np.unique(component, return_index=True)[1]
    return np.asarray(smallest[component])


def template_people(
    ids: Array, known: Mapping[int, int], left: Array, right: Array, mated: Array
) -> tuple[str, Array]:
    """(unit, person of each template).

    The lists of subjects where they name every template of a pair. Else the templates that mated pairs
    connect are one person, and the others one each: "component" instead of "subject", since a person's
    templates need not be connected.

    Args:
        ids: (t,) templates.
        known: template to subject.
        left: (p,) position among ``ids`` of each pair's left template.
        right: (p,) of the right one.
        mated: (p,) true where both show one person.

    Example:
        >>> ids, mated = np.array([5, 6, 7]), np.array([True, False])
        >>> template_people(ids, {}, np.array([0, 1]), np.array([2, 2]), mated)
        ('component', array([0, 1, 0]))
    """
    compared = np.zeros(ids.size, bool)
    compared[left] = compared[right] = True
    if all(template in known for template in ids[compared].tolist()):
        return "subject", np.array([known.get(template, -1) for template in ids.tolist()], np.int64)
    return "component", linked(left[mated], right[mated], ids.size)


def contradictions(people: Array, left: Array, right: Array, mated: Array) -> int:
    """Pairs whose label says otherwise than the people do."""
    return int(((people[left] == people[right]) != mated).sum())
