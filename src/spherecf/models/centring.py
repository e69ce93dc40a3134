"""Centring: subtract from each direction a share of the mean direction of all faces."""

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from spherecf.errors import InputError

_MAX_LENGTH = 0.999  # of the mean direction; at 1 all faces have the same direction
_BLOCK = 1 << 16  # rows read at once from a mapped file


class Centring(nn.Module):
    """Subtract a mean direction from unit directions and normalise again: mu' = (mu - m) / |mu - m|.

    The directions of faces are not spread evenly over the sphere: their mean is not 0, and what a recogniser
    cannot see in a face it replaces by this mean. So two poor images of different people are more similar
    than their concentrations account for, and the false match rate at a threshold depends on image quality.
    Centring reduces this. Subtracting the whole mean of one data set makes others less comparable, so a share
    of it is subtracted (docs/LOG.md has the measurements). Kappa does not change.

    Args:
        mean: (dim,) m, the share of the mean direction that is subtracted.

    Raises:
        InputError: not a vector of finite numbers with a length of at most 0.999.

    Example:
        >>> mu = torch.nn.functional.normalize(torch.randn(1000, 8) + torch.eye(8)[0], dim=1)
        >>> centring = Centring.fit(mu, np.arange(1000) // 10, share=1.0)
        >>> bool(mu.mean(0).norm() > 0.2), bool(centring(mu).mean(0).norm() < 0.1)
        (True, True)
    """

    mean: Tensor

    def __init__(self, mean: ArrayLike | Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(np.asarray(mean), dtype=torch.float32))
        length = float(self.mean.norm())
        if self.mean.ndim != 1 or not length <= _MAX_LENGTH:
            raise InputError(
                f"centring: expected a mean direction (dim,) of length at most {_MAX_LENGTH}, got shape "
                f"{tuple(self.mean.shape)} and length {length:.4g}"
            )

    @classmethod
    def fit(cls, mu: ArrayLike | Tensor, identities: ArrayLike, share: float) -> "Centring":
        """Compute ``share`` times the mean direction, in which every identity has the same weight.

        Args:
            mu: (n, dim) unit directions; an array may be mapped from a file, it is read in blocks.
            identities: (n,) integer labels; rows with a negative one are not used.
            share: within (0, 1].

        Raises:
            InputError: shapes differ, ``share`` is out of range, or no row is used.
        """
        directions, labels = np.asanyarray(mu), np.asarray(identities)
        if directions.ndim != 2 or labels.shape != directions.shape[:1]:
            raise InputError(
                f"centring: expected mu (n, dim) and identities (n,), got {directions.shape} and "
                f"{labels.shape}"
            )
        if not 0 < share <= 1:
            raise InputError(f"centring: expected a share within (0, 1], got {share}")
        rows = np.flatnonzero(labels >= 0)
        if not rows.size:
            raise InputError("centring: expected images with an identity")
        _, person, images = np.unique(labels[rows], return_inverse=True, return_counts=True)
        weight = share / (images[person] * images.size)  # (rows,), sum share
        mean = np.zeros(directions.shape[1])
        for start in range(0, rows.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            mean += weight[block] @ np.asarray(directions[rows[block]], np.float64)  # (dim,)
        return cls(mean)

    def forward(self, mu: Float[Tensor, "n dim"]) -> Float[Tensor, "n dim"]:
        """Centred unit directions (n, dim)."""
        difference = mu - self.mean.to(mu.dtype)
        centred: Tensor = difference / torch.linalg.vector_norm(difference, dim=1, keepdim=True)
        return centred
