"""What may go into a gallery."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError
from spherecf.gallery._rows import Images

_LONGEST = 512  # characters of a source or medium
_LENGTH = 1e-3  # by which a direction may miss length 1 before it is taken for something else


def check_images(
    mu: ArrayLike, kappa: ArrayLike, media: Sequence[str], sources: Sequence[str], dim: int
) -> Images:
    """As arrays, with directions of length 1.

    Raises:
        InputError: no image, shapes that do not fit, NaN, not unit length, negative kappa.
    """
    directions, lengths = np.asarray(mu, np.float32), np.asarray(kappa, np.float32)
    if directions.ndim != 2 or directions.shape[1] != dim or not len(directions):
        raise InputError(f"mu: expected (n, {dim}) directions, n >= 1, got {directions.shape}")
    if (
        lengths.shape != (len(directions),)
        or len(media) != len(directions)
        or len(sources) != len(directions)
    ):
        raise InputError(
            f"expected a kappa, medium and source for each of {len(directions)} directions, got "
            f"{lengths.shape}, {len(media)} and {len(sources)}"
        )
    norm = np.linalg.norm(directions.astype(np.float64), axis=1)
    bad = np.flatnonzero(~(np.abs(norm - 1) <= _LENGTH))
    if bad.size:
        raise InputError(
            f"mu: {bad.size} of {len(directions)} directions are NaN or not of length 1, first {bad[0]} "
            f"(length {norm[bad[0]]:.4g})"
        )
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths >= 0)))
    if bad.size:
        raise InputError(
            f"kappa: {bad.size} of {len(lengths)} are NaN, negative or infinite, first {lengths[bad[0]]}"
        )
    unit = (directions / norm[:, None]).astype(np.float32)
    return Images(
        unit, lengths, *(tuple(str(one)[:_LONGEST] for one in column) for column in (media, sources))
    )


def check_probe(mu: ArrayLike, kappa: float, dim: int) -> tuple[NDArray[np.float32], float]:
    """One direction and concentration.

    Raises:
        InputError: as in `check_images`.
    """
    images = check_images(np.asarray(mu, np.float32)[None], [kappa], [""], [""], dim)
    return images.mu[0], float(images.kappa[0])
