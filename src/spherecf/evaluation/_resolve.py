"""From a pair list's keys to rows of the embeddings, failures to acquire set apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.common.names import match_keys
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class ResolvedPairs:
    """The pairs that can be compared."""

    left: Array
    """(pairs,) row of the left image in its file."""
    right: Array
    mated: Array
    folds: Array
    subjects: tuple[Array, Array]
    """Who is drawn by the bootstrap: people, or images where people are unknown."""
    unit: str
    """"subject" or "image"."""
    kept: Array
    """(listed,) false where an image could not be embedded."""
    failures: list[tuple[str, str]]
    failed_pairs: int


def resolve_pairs(
    left: Embeddings,
    right: Embeddings,
    left_keys: Sequence[str],
    right_keys: Sequence[str],
    mated: ArrayLike,
    folds: ArrayLike,
    subjects: tuple[ArrayLike, ArrayLike] | None,
) -> ResolvedPairs:
    """Find the rows; a pair with a skipped image is a failure to acquire, an unknown key an `InputError`."""
    kind, fold = _columns(len(left_keys), len(right_keys), mated, folds)
    rows_left, reasons_left = _find(left, left_keys)
    rows_right, reasons_right = _find(right, right_keys)
    kept = (rows_left >= 0) & (rows_right >= 0)
    rows_left, rows_right = rows_left[kept], rows_right[kept]
    failures, failed = reasons_left | reasons_right, int((~kept).sum())
    kind, fold = kind[kept], fold[kept]
    if failed and (kind.all() or not kind.any()):
        raise InputError(
            f"pairs: {failed} of {kept.size} have an image that could not be embedded; the rest are "
            f"{int(kind.sum())} mated and {int((~kind).sum())} non-mated pairs; error rates need both kinds. "
            f"First reason: {min(failures)[1]}"
        )
    unit, people = _people(left, right, rows_left, rows_right, subjects, kept)
    return ResolvedPairs(
        rows_left, rows_right, kind, fold, people, unit, kept, sorted(failures), failed
    )  # fmt: skip


def _find(side: Embeddings, listed: Sequence[str]) -> tuple[Array, set[tuple[str, str]]]:
    """Row of every listed image, -1 where it could not be embedded; key and reason of those."""
    matched = match_keys(listed, [*side.keys, *(key for key, _ in side.skipped)], "pairs")
    missing = [key for key in listed if key not in matched]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(listed)} keys are not in these embeddings of {len(side)} images: "
            f"{', '.join(map(repr, missing[:5]))}. Keys here look like "
            f"{', '.join(map(repr, side.keys[:2])) or '(none)'}; embed the missing images or use the "
            "matching list."
        )
    rows = np.fromiter((matched[key] for key in listed), np.int64, len(listed))
    failed = np.unique(rows[rows >= len(side)]) - len(side)
    return np.where(rows < len(side), rows, -1), {side.skipped[row] for row in failed.tolist()}


def _columns(left: int, right: int, mated: ArrayLike, folds: ArrayLike) -> tuple[Array, Array]:
    kind, fold = np.asarray(mated), np.asarray(folds)
    if not left == right == kind.size == fold.size:
        raise InputError(
            f"pairs: {left} left keys, {right} right keys, {kind.size} mated flags and {fold.size} folds; "
            "expected equally many"
        )
    if kind.dtype != np.bool_ and not np.isin(kind, (0, 1)).all():
        got = kind.reshape(-1)[:3].tolist()
        raise InputError(f"mated: expected booleans or 0 and 1, got values like {got}")
    return kind.astype(bool).reshape(-1), fold.reshape(-1)


def _people(
    left: Embeddings,
    right: Embeddings,
    rows_left: Array,
    rows_right: Array,
    subjects: tuple[ArrayLike, ArrayLike] | None,
    kept: Array,
) -> tuple[str, tuple[Array, Array]]:
    """Who is drawn: the people of the pair list, else those of the embeddings, else the images."""
    if subjects is not None:
        named = np.asarray(subjects[0]), np.asarray(subjects[1])
        if not named[0].shape == named[1].shape == kept.shape:
            raise InputError(
                f"subjects: expected two ({kept.size},), got {named[0].shape} and {named[1].shape}"
            )
        return "subject", (named[0][kept], named[1][kept])
    people = _labelled(left, rows_left), _labelled(right, rows_right)
    if people[0] is not None and people[1] is not None:
        return "subject", (people[0], people[1])
    return "image", (np.asarray(left.keys)[rows_left], np.asarray(right.keys)[rows_right])


def _labelled(embeddings: Embeddings, rows: Array) -> Array | None:
    """Names of the rows' people; None as soon as one is unknown (no labels, or label -1)."""
    names = embeddings.subjects()
    if names is None or embeddings.labels is None or (embeddings.labels[rows] < 0).any():
        return None
    found: Array = names[rows]
    return found
