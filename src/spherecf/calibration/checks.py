"""Checks of calibration data, and how far that data can carry a likelihood ratio."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError

Numbers = ArrayLike | float | int
"""A number or an array of any shape."""

_MAX_COUNT = 2**53  # up to here float64 counts exactly


def check_mated(mated: ArrayLike) -> NDArray[np.bool_]:
    """Flags "both show one person" as booleans, from booleans or from 0 and 1.

    Raises:
        InputError: other values, such as the subjects themselves or -1.

    Example:
        >>> check_mated([1, 0]).tolist()
        [True, False]
    """
    flags = np.asarray(mated)
    if flags.dtype != np.bool_ and not np.isin(flags, (0, 1)).all():
        got = flags.reshape(-1)[:3].tolist()
        raise InputError(f"mated: expected booleans or 0 and 1, got values like {got}")
    return flags.astype(bool, copy=False)


def check_pairs(
    scores: ArrayLike, mated: ArrayLike, *, keep_type: bool = False
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(scores (n,), flags (n,)) of pairs of both kinds, ready to be counted; no copy where none is needed.

    Args:
        scores: (n,) infinite ones are fine, NaN is not.
        mated: (n,) true where both show one person.
        keep_type: leave float32 scores as they are, where there are too many to widen; else float64.

    Raises:
        InputError: NaN scores, shapes that differ, flags that are none, or only one kind of pair.

    Example:
        >>> check_pairs([0.9, 0.1], [1, 0])
        (array([0.9, 0.1]), array([ True, False]))
    """
    s = np.asarray(scores)
    if not (keep_type and s.dtype == np.float32):
        s = s.astype(np.float64, copy=False)
    if s.ndim != 1 or s.shape != np.shape(mated):
        raise InputError(f"scores and mated: expected two (n,) arrays, got {s.shape} and {np.shape(mated)}")
    m = check_mated(mated)
    bad = np.flatnonzero(np.isnan(s))
    if bad.size:
        raise InputError(
            f"scores: {bad.size} of {s.size} are NaN, first pair {bad[0]}; leave out or repair them"
        )
    if m.all() or not m.any():
        raise InputError(
            f"mated: {int(m.sum())} mated and {int((~m).sum())} non-mated pairs; "
            "error rates need both kinds, check the pair list"
        )
    return s, m


def labelled(scores: ArrayLike, mated: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """(scores of mated pairs, scores of non-mated pairs) as float64, all of them finite."""
    s, m = check_pairs(scores, mated)
    bad = np.flatnonzero(np.isinf(s))
    if bad.size:
        raise InputError(f"scores: {bad.size} of {s.size} are infinite, first pair {bad[0]}")
    return s[m], s[~m]


def finite(scores: Numbers, what: str = "scores") -> NDArray[Any]:
    """Values of any shape as float64, none of them NaN."""
    s = np.asarray(scores, np.float64)
    if np.isnan(s).any():
        raise InputError(f"{what}: {int(np.isnan(s).sum())} of {s.size} are NaN; a failure has no {what}")
    return s


def check_counts(what: str, smallest: int = 0, /, **counts: int | None) -> None:
    """Refuse a number of things, where one is given, that is below ``smallest`` or beyond counting.

    Raises:
        InputError: it is named.
    """
    for name, count in counts.items():
        if count is not None and not smallest <= count <= _MAX_COUNT:
            raise InputError(f"{what}: expected {name} >= {smallest} and at most 2^53, got {count:.6g}")


def check_shares(what: str, **shares: float | None) -> None:
    """Refuse a share, where one is given, that lies outside 0 .. 1.

    Raises:
        InputError: it is named.
    """
    for name, share in shares.items():
        if share is not None and not 0 <= share <= 1:
            raise InputError(f"{what}: expected {name} within 0 .. 1, got {share:g}")


def check_radius(what: str, radius: float | None) -> None:
    """Refuse what is the radius of no sphere; None stands for a score without one.

    Raises:
        InputError: it is not positive and finite.
    """
    if radius is not None and not 0 < radius < math.inf:
        raise InputError(f"{what}: expected a positive radius, got {radius:g}")


def llr_limits(mated: int, non_mated: int) -> tuple[float, float]:
    """Smallest and largest log-likelihood ratio that so many pairs can support.

    Rule of succession: one pair of each kind, not yet seen, may lie beyond every score seen. So the ratio of
    the two tails is at most ``(m + 1) / (m + 2) * (n + 2)`` for m mated and n non-mated pairs, and at least
    the mirror image. Claims beyond the data are the commonest fault of likelihood ratios: Vergeer et al.,
    Science & Justice 56, 2016.

    Raises:
        InputError: no pair of one kind.

    Example:
        >>> [round(end, 3) for end in llr_limits(100, 1000)]
        [-4.624, 6.9]
    """
    if mated < 1 or non_mated < 1:
        raise InputError(f"llr_limits: expected pairs of both kinds, got {mated} and {non_mated}")
    up = math.log((mated + 1) / (mated + 2) * (non_mated + 2))
    down = math.log((non_mated + 1) / (non_mated + 2) * (mated + 2))
    return -down, up
