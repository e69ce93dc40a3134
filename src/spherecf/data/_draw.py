"""Pairs drawn from labelled images, for people who have photos and no pair list."""

import numpy as np
from jaxtyping import Int64

from spherecf.data._pairs import PairList
from spherecf.data._source import ImageSource
from spherecf.errors import InputError


def draw_pairs(source: ImageSource, most: int = 3000, folds: int = 10, seed: int = 0) -> PairList:
    """Up to ``most`` mated and as many non-mated pairs of different images, without repetition.

    Folds are by person, that of the left image: all mated pairs of a person are in one fold. Images without
    identity are left out.

    Args:
        source: images with identities.
        most: of each kind; fewer where there are fewer.
        folds: at most, and not more than there are people with two images.
        seed: the same seed and source give the same pairs.

    Raises:
        InputError: fewer than two people with two or more images.

    Example:
        >>> from spherecf.data import orl_faces
        >>> pairs = draw_pairs(orl_faces(), most=100)
        >>> len(pairs), int(pairs.mated.sum()), pairs.folds
        (200, 100, 10)
    """
    rng = np.random.default_rng(seed)
    labels = source.labels
    counts = np.bincount(labels[labels >= 0], minlength=1)
    several = np.flatnonzero(counts > 1)
    if len(several) < 2 or most < 1:
        raise InputError(
            f"{source.name}: pairs need at least two people with two or more images, got {len(several)}"
        )
    mated = _some(_mated(labels, several), most, rng)
    other = _non_mated(labels, len(mated), rng)
    left, right = np.concatenate([mated, other]).T
    fold_of = np.zeros(len(counts), np.int64)
    # People with one image take part in non-mated pairs only; every fold has mated ones.
    order = np.concatenate([rng.permutation(several), np.flatnonzero(counts == 1)])
    fold_of[order] = np.arange(len(order)) % min(folds, len(np.unique(labels[mated[:, 0]])))
    fold = np.unique(fold_of[labels[left]], return_inverse=True)[1].astype(np.int64)
    keys, names = source.keys, source.identities
    return PairList(
        source.name,
        [keys[row] for row in left],
        [keys[row] for row in right],
        np.arange(len(left)) < len(mated),
        fold,
        [names[labels[row]] for row in left],
        [names[labels[row]] for row in right],
    )


def _mated(labels: Int64[np.ndarray, " n"], people: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, "pairs 2"]:
    found = []
    for person in people:
        rows = np.flatnonzero(labels == person)
        found.append(rows[np.stack(np.triu_indices(len(rows), 1), 1)])
    return np.concatenate(found)


def _some(pairs: Int64[np.ndarray, "n 2"], most: int, rng: np.random.Generator) -> Int64[np.ndarray, "m 2"]:
    return pairs if len(pairs) <= most else pairs[rng.choice(len(pairs), most, replace=False)]


def _non_mated(
    labels: Int64[np.ndarray, " n"], count: int, rng: np.random.Generator
) -> Int64[np.ndarray, "pairs 2"]:
    rows = np.flatnonzero(labels >= 0)
    found: set[tuple[int, int]] = set()
    drawn = 0
    while len(found) < count and drawn < 100 * count:  # few people: there may not be so many
        drawn += 1
        a, b = rng.choice(rows, 2, replace=False).tolist()
        if labels[a] != labels[b] and (b, a) not in found:
            found.add((a, b))
    return np.array(sorted(found), np.int64)
