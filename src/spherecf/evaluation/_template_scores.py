"""Scores of templates by name: of listed pairs, and of everything against everything, block by block."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.errors import InputError
from spherecf.scoring import (
    Templates,
    cosine_tiles,
    gaussian_score,
    mutual_likelihood_matrix,
    score_template_pairs,
)

Array = NDArray[Any]

_TILE_CELLS = 1 << 22
_GAUSSIAN_NUMBERS = 1 << 22  # held at once: pairs times dimensions


def score_pairs(
    left: Templates,
    right: Templates,
    left_at: Array,
    right_at: Array,
    score: str,
    radius: float,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """(pairs,) scores by "cosine", "mls" or "pfe" of templates at these positions, larger = more alike."""
    name = "gaussian" if score == "pfe" else score
    return score_template_pairs(left, right, left_at, right_at, name, radius, threads=threads)


def score_tiles(
    left: Templates, right: Templates, score: str, radius: float, threads: int | None = None
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Row blocks of all scores of ``left`` against ``right``; a tile holds until the next is asked for."""
    if score == "cosine":
        yield from cosine_tiles(left.mu, right.mu, threads=threads)
        return
    cells = _TILE_CELLS if score == "mls" else _GAUSSIAN_NUMBERS // left.dim
    height = max(1, cells // max(1, len(right)))
    p, q = left.log_precision, right.log_precision
    if score == "pfe" and (p is None or q is None):
        raise InputError("score pfe: these templates have no log_precision; pool them with mode precision")
    mu, kappa = torch.from_numpy(right.mu), torch.from_numpy(right.kappa)
    for start in range(0, len(left), height):
        rows = slice(start, min(start + height, len(left)))
        own = torch.from_numpy(left.mu[rows])
        if p is None or q is None or score == "mls":
            k = torch.from_numpy(left.kappa[rows])
            yield rows, mutual_likelihood_matrix(own, k, mu, kappa, radius, compiled=False).numpy()
        else:
            tau, tau_right = torch.from_numpy(p[rows]), torch.from_numpy(q)
            yield rows, gaussian_score(own[:, None], tau[:, None], mu[None], tau_right[None]).numpy()
