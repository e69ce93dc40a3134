"""Ten-fold accuracy, splits of pairs by person, and the people of template pairs."""

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
    """Cross-validated accuracy over folds."""

    mean: float
    std: float
    """Population standard deviation over folds, as is customary for these benchmarks."""
    accuracies: list[float]
    thresholds: list[float]
    """The threshold applied to each fold: a score of the other folds, or inf (accept nothing)."""
    folds: list[int]
    pairs: int
    one_sided: list[int] = field(default_factory=list)
    """Folds with only mated or only non-mated pairs, whose accuracy measures only one kind of error."""

    def log_line(self, name: str, step: int | str = 0) -> str:
        """The customary log line.

        >>> TenFold(0.99817, 0.00241, [], [], [], 6000).log_line("lfw", 12)
        '[lfw][12]Accuracy-Flip: 0.99817+-0.00241'
        """
        line = f"[{name}][{step}]Accuracy-Flip: {self.mean:.5f}+-{self.std:.5f}"
        return f"{line} ({self.warning})" if self.warning else line

    @property
    def warning(self) -> str:
        """A warning if the accuracy is misleading, else an empty string.

        >>> TenFold(0.9, 0.1, [], [], [0, 1], 4, one_sided=[0]).warning
        '1 of 2 folds with pairs of only one kind, whose accuracy measures only one kind of error'
        """
        if not self.one_sided:
            return ""
        return (
            f"{len(self.one_sided)} of {len(self.folds)} folds with pairs of only one kind, whose accuracy "
            "measures only one kind of error"
        )


def tenfold(scores: ArrayLike, mated: ArrayLike, folds: ArrayLike) -> TenFold:
    """Cross-validated verification accuracy over ten folds, or any number from two.

    For each fold the threshold is the observed score (or +inf) of the *other* folds with the highest accuracy
    on them; among equally accurate thresholds it is the largest, which has the fewest false matches. Since
    only observed scores are considered, the result is exact, needs no grid and is invariant under increasing
    transformations of the scores. Folds with only one kind of pair are counted like the others, and listed in
    ``one_sided``.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show the same person.
        folds: (n,) fold number of each pair.

    Raises:
        InputError: a score is NaN, the pairs are of one kind only, or there are fewer than two folds.

    Example:
        >>> result = tenfold([0.9, 0.2, 0.8, 0.1], [True, False, True, False], [0, 0, 1, 1])
        >>> result.mean, result.thresholds
        (0.75, [0.8, 0.9])
    """
    pairs = sort_pairs(scores, mated)
    names, fold = check_folds(folds, pairs)
    correct, total, threshold_index = fold_counts(pairs, fold, len(names), None)
    one_sided = np.setxor1d(fold[pairs.mated], fold[~pairs.mated])
    accuracy = correct[0] / total[0]
    thresholds = np.concatenate([[np.inf], pairs.scores[pairs.ends]])[threshold_index[0]]
    return TenFold(
        float(accuracy.mean()), float(accuracy.std()), accuracy.tolist(), thresholds.tolist(),
        names.tolist(), pairs.scores.size, names[one_sided].tolist(),
    )  # fmt: skip


def check_folds(folds: ArrayLike, pairs: SortedPairs) -> tuple[NDArray[Any], NDArray[Any]]:
    """(names of the folds, index of each pair's fold in the sorted order of the pairs)."""
    fold_names = np.asarray(folds)
    if fold_names.shape != pairs.scores.shape:
        raise InputError(f"folds: expected one per pair, shape {pairs.scores.shape}, got {fold_names.shape}")
    names, index = np.unique(fold_names, return_inverse=True)
    if len(names) < 2:
        raise InputError(f"folds: expected at least 2 different folds, got {len(names)}; check the pair list")
    return names, index[pairs.order]


def fold_counts(
    pairs: SortedPairs, fold: NDArray[Any], folds: int, weights: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """(correct, total, threshold index), each (draws, folds), with the threshold chosen on the other folds.

    Accepting one more pair changes the number of correct decisions by +1 (mated) or -1 (non-mated), so the
    accuracies at all thresholds follow from a cumulative sum. ``weights`` (draws, n) are in the original
    order of the pairs.

    The *first* maximum in descending order of thresholds is always a score of the other folds: at a score
    that only the left-out fold has, the accuracy on the others does not change, so it cannot be the first.
    """
    gain = np.where(pairs.mated, 1.0, -1.0)[None, :]
    weight = np.ones_like(gain) if weights is None else weights[..., pairs.order]
    gain = gain * weight  # (draws, n)
    total_gain = np.cumsum(gain, -1)[:, pairs.ends]  # (draws, thresholds)
    shape = (len(gain), folds)
    correct, total, threshold_index = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    for f in range(folds):
        in_fold = np.flatnonzero(fold == f)
        fold_gain = np.cumsum(gain[:, in_fold], -1)
        fold_gain = np.concatenate([np.zeros((len(gain), 1)), fold_gain], 1)
        n_accepted = np.searchsorted(in_fold, pairs.ends, side="right")  # in this fold, by threshold
        other_gain = total_gain - fold_gain[:, n_accepted]
        best = other_gain.argmax(-1)
        accept_none = np.take_along_axis(other_gain, best[:, None], 1)[:, 0] <= 0  # at least as accurate
        threshold_index[:, f] = np.where(accept_none, 0, best + 1)
        n_accepted_best = np.where(accept_none, 0, n_accepted[best])
        n_non_mated = (weight[:, in_fold] * ~pairs.mated[in_fold]).sum(-1)  # correct if nothing is accepted
        correct[:, f] = np.take_along_axis(fold_gain, n_accepted_best[:, None], 1)[:, 0] + n_non_mated
        total[:, f] = weight[:, in_fold].sum(-1)
    return correct, total, threshold_index


Array = NDArray[Any]

_MIN_GROUPS_PER_PART = 3  # with fewer groups of linked people per part, part sizes would be far off


def split_subjects(
    left: ArrayLike, right: ArrayLike, shares: Sequence[float | int], *, seed: int = 0
) -> tuple[NDArray[np.int64], str]:
    """Divide people into disjoint parts; a pair belongs to a part if both its people do.

    People who are linked by pairs, directly or through others, stay together if that leaves enough groups
    (the folds of most lists are such groups); then no pair is lost. Otherwise people are assigned one by one,
    and pairs of people from two parts belong to no part.

    Args:
        left: (n,) person of each pair's left image.
        right: (n,) person of each pair's right image.
        shares: (parts,) relative sizes of the parts.
        seed: seed of the random assignment.

    Returns:
        (part of each pair (n,), -1 for none; "groups" or "people", the unit that was assigned).

    Raises:
        InputError: the shapes differ, or there are fewer people than parts.

    Example:
        >>> part, unit = split_subjects(["a", "b", "b"], ["a", "b", "a"], [1, 1])
        >>> sorted(part.tolist()), unit  # a and b are in different parts, so their pair is lost
        ([-1, 0, 1], 'people')
    """
    a, b, people = subject_codes(left, right)
    sizes = np.asarray(shares, np.float64)
    if people < sizes.size:
        raise InputError(f"split: {people} people cannot make {sizes.size} disjoint parts")
    group = linked(a, b, people)
    use_groups = np.unique(group).size >= _MIN_GROUPS_PER_PART * sizes.size
    unit = group if use_groups else np.arange(people)
    n_images = np.bincount(unit[a], minlength=people) + np.bincount(unit[b], minlength=people)
    order = np.random.default_rng(seed).permutation(np.unique(unit))
    order = order[np.argsort(-n_images[order], kind="stable")]  # large units first
    part = np.empty(people, np.int64)
    filled = np.zeros(sizes.size)
    for u in order.tolist():
        emptiest = int(np.argmin(filled / sizes))
        part[u] = emptiest
        filled[emptiest] += n_images[u]
    part_left, part_right = part[unit[a]], part[unit[b]]
    return np.where(part_left == part_right, part_left, -1), "groups" if use_groups else "people"


def disjoint_pairs(
    left: ArrayLike, right: ArrayLike, mated: ArrayLike, *, seed: int = 0
) -> NDArray[np.int64]:
    """Choose pairs of which no two share a person, keeping the list's share of mated pairs.

    If people are independent, so are these pairs, as exact binomial tests require. A mated pair uses up one
    person, a non-mated pair two.

    Args:
        left: (n,) person of each pair's left image.
        right: (n,) person of each pair's right image.
        mated: (n,) true where both images show the same person.
        seed: seed of the random choice.

    Returns:
        Row indices of the chosen pairs, ascending.

    Raises:
        InputError: the shapes differ.

    Example:
        >>> left, right, mated = list("aabcd"), list("abbcc"), [1, 0, 1, 1, 0]
        >>> rows = disjoint_pairs(left, right, mated)
        >>> people = [{left[row], right[row]} for row in rows]
        >>> sum(map(len, people)) == len(set.union(*people))
        True
    """
    a, b, people = subject_codes(left, right)
    is_mated = check_mated(mated)
    kinds = [rows for rows in (np.flatnonzero(is_mated), np.flatnonzero(~is_mated)) if rows.size]
    rng = np.random.default_rng(seed)
    candidates = [iter(rng.permutation(rows).tolist()) for rows in kinds]
    chosen: list[list[int]] = [[] for _ in kinds]
    is_free = np.ones(people, bool)
    while kinds:
        kind = min(range(len(kinds)), key=lambda i: len(chosen[i]) / kinds[i].size)  # the one behind
        row = next((row for row in candidates[kind] if is_free[a[row]] and is_free[b[row]]), None)
        if row is None:  # pairs of the other kind alone would change the share of mated pairs
            break
        is_free[a[row]] = is_free[b[row]] = False
        chosen[kind].append(row)
    return np.sort(np.asarray([row for rows in chosen for row in rows], np.int64))


def subject_codes(left: ArrayLike, right: ArrayLike) -> tuple[Array, Array, int]:
    """(left, right) people as integers 0, 1, ..., and their number."""
    a, b = np.asarray(left), np.asarray(right)
    if a.ndim != 1 or a.shape != b.shape:
        raise InputError(f"subjects: expected two (n,) arrays, got {a.shape} and {b.shape}")
    names, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    return codes[: a.size], codes[a.size :], names.size


def linked(a: Array, b: Array, people: int) -> Array:
    """(people,) for each person the smallest number of all people linked with them, directly or not."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(a), np.bool_), (a, b)), shape=(people, people))
    component = connected_components(edges, directed=False)[1]  # (people,)
    smallest = np.unique(component, return_index=True)[1]
    return np.asarray(smallest[component])


def template_people(
    ids: Array, known: Mapping[int, int], left: Array, right: Array, mated: Array
) -> tuple[str, Array]:
    """Person of each template.

    If every template of a pair has a known subject, that subject is the person. Otherwise templates connected
    by mated pairs count as one person, and every other template as a person: "component" instead of
    "subject", since the templates of a person need not be connected.

    Args:
        ids: (t,) templates.
        known: template -> subject.
        left: (p,) position in ``ids`` of each pair's left template.
        right: (p,) position in ``ids`` of each pair's right template.
        mated: (p,) true where both templates show the same person.

    Returns:
        ("subject" or "component", (t,) persons).

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
    """Number of pairs whose label contradicts the people."""
    return int(((people[left] == people[right]) != mated).sum())
