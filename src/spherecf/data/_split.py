"""Split a set by person, so that nobody is in both parts."""

import numpy as np
from jaxtyping import Int64

from spherecf.data._source import ImageSource
from spherecf.errors import InputError


def split_identities(
    source: ImageSource | Int64[np.ndarray, " n"], fraction: float, seed: int
) -> tuple[Int64[np.ndarray, " train"], Int64[np.ndarray, " held_out"]]:
    """(rows to train on, rows held out), where about ``fraction`` of the identities is held out entirely.

    At least one identity lands on each side. Rows without identity (label -1) are in neither: they could show
    anybody.

    Args:
        source: a source, or its labels.
        fraction: of the identities to hold out, 0 <= fraction < 1; 0 holds out nobody.
        seed: the same seed and identities give the same split.

    Raises:
        InputError: ``fraction`` is out of range, or fewer than two identities are there to split.

    Example:
        >>> train, held_out = split_identities(np.array([0, 0, 1, 1, 2, -1]), 0.3, seed=1)
        >>> len(train) + len(held_out)
        5
    """
    labels = source.labels if isinstance(source, ImageSource) else np.asarray(source)
    known = np.unique(labels[labels >= 0])
    if not 0 <= fraction < 1:
        raise InputError(f"fraction must be at least 0 and below 1, got {fraction}")
    if fraction > 0 and len(known) < 2:
        raise InputError(f"expected at least 2 identities to split, got {len(known)}")
    count = min(max(round(fraction * len(known)), 1), len(known) - 1) if fraction > 0 else 0
    chosen = np.random.default_rng(seed).permutation(known)[:count]
    held_out = np.isin(labels, chosen)
    return np.flatnonzero((labels >= 0) & ~held_out), np.flatnonzero(held_out)
