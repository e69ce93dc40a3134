"""The worst mistakes of a score: mated pairs that look least alike, non-mated ones that look most alike."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from spherecf.errors import InputError
from spherecf.evaluation._curve import check_pairs


@dataclass(frozen=True)
class Mistake:
    """A pair near the wrong end: who, which images, and how sure the recogniser was of each."""

    score: str
    """Name of the score."""
    mated: bool
    value: float
    left: str
    """Key of the left image, or name of the template."""
    right: str
    kappa: tuple[float, float]
    subjects: tuple[str, str]
    """Empty where people are unknown."""


def worst_mistakes(
    name: str,
    scores: ArrayLike,
    mated: ArrayLike,
    keys: tuple[Sequence[str], Sequence[str]],
    kappa: tuple[ArrayLike, ArrayLike],
    subjects: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    count: int = 8,
) -> list[Mistake]:
    """The ``count`` mated pairs with the lowest scores, then as many non-mated ones with the highest.

    Pairs are taken from the ends whether or not a threshold would get them wrong. Of equal scores the pair
    that is listed first comes first.

    Args:
        name: of the score.
        scores: (n,) larger = more alike.
        mated: (n,) true where both show one person.
        keys: n left and n right keys.
        kappa: (n,) of the left and of the right images.
        subjects: n left and n right people.
        count: of each kind, at most.

    Raises:
        InputError: NaN scores, one kind of pair only, or columns of different lengths.

    Example:
        >>> keys = ["a", "b", "c"], ["d", "e", "f"]
        >>> kappa = [9.0, 8.0, 7.0], [6.0, 5.0, 4.0]
        >>> found = worst_mistakes("cosine", [0.9, 0.2, 0.4], [1, 1, 0], keys, kappa, count=1)
        >>> [(one.left, one.mated, one.value, one.kappa) for one in found]
        [('b', True, 0.2, (8.0, 5.0)), ('c', False, 0.4, (7.0, 4.0))]
    """
    s, m = check_pairs(scores, mated)
    sure = [np.asarray(side, np.float64) for side in kappa]
    people = [np.asarray(side).astype(str) for side in subjects or ([""] * s.size, [""] * s.size)]
    sizes = [*map(len, keys), *map(len, sure), *map(len, people)]
    if any(size != s.size for size in sizes):
        raise InputError(
            f"mistakes: {s.size} scores, but keys, kappas and subjects of {sizes}; expected as many of each"
        )
    order = np.argsort(s, kind="stable")
    highest = np.argsort(-s, kind="stable")
    return [
        Mistake(
            name, bool(m[i]), float(s[i]), keys[0][i], keys[1][i],
            (float(sure[0][i]), float(sure[1][i])), (str(people[0][i]), str(people[1][i])),
        )
        for i in [*order[m[order]][:count].tolist(), *highest[~m[highest]][:count].tolist()]
    ]  # fmt: skip
