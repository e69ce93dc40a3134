"""What may go into a gallery."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.common.arrays import as_array, check_directions, check_kappa
from spherecf.errors import InputError
from spherecf.gallery._rows import Images

_LONGEST = 512  # characters of a source or medium


def check_images(
    mu: ArrayLike,
    kappa: ArrayLike,
    dim: int,
    media: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
) -> Images:
    """As arrays, with directions of length 1; media and sources that are not given are empty.

    Raises:
        InputError: no image, shapes that do not fit, NaN, not unit length, negative kappa.
    """
    directions, lengths = as_array(mu, "mu", np.float32), as_array(kappa, "kappa", np.float32)
    if directions.ndim != 2 or directions.shape[1] != dim or not len(directions):
        raise InputError(f"mu: expected (n, {dim}) directions, n >= 1, got {directions.shape}")
    n = len(directions)
    media, sources = ([""] * n if column is None else column for column in (media, sources))
    if lengths.shape != (n,) or len(media) != n or len(sources) != n:
        raise InputError(
            f"expected a kappa, medium and source for each of {n} directions, got {lengths.shape}, "
            f"{len(media)} and {len(sources)}"
        )
    check_directions(directions, "mu", keys=sources if any(sources) else ())
    check_kappa(lengths, "kappa")
    norm = np.linalg.norm(directions.astype(np.float64), axis=1)
    unit = (directions / norm[:, None]).astype(np.float32)
    return Images(
        unit, lengths, *(tuple(str(one)[:_LONGEST] for one in column) for column in (media, sources))
    )


def check_probe(mu: ArrayLike, kappa: float, dim: int) -> tuple[NDArray[np.float32], float]:
    """One direction and concentration.

    Raises:
        InputError: as in `check_images`.
    """
    direction = as_array(mu, "mu", np.float32)
    if direction.shape != (dim,):
        raise InputError(f"mu: expected one direction ({dim},), got {direction.shape}")
    images = check_images(direction[None], [kappa], dim)
    return images.mu[0], float(images.kappa[0])
