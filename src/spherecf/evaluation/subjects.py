"""People in lists of pairs and templates: parts without a common person, and pairs that share nobody."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import check_mated
from spherecf.errors import InputError

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
