"""Centring: subtract from each direction the mean direction of all faces with the same concentration."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor, nn

from spherecf.errors import InputError

_EXTREMES = 0.001  # share of the images at either end of the range of log kappa that do not extend it
_MAX_LENGTH = 0.999  # of the mean direction; at 1 all faces have the same direction
_BLOCK = 1 << 16  # rows read at once from a mapped file


class Centring(nn.Module):
    """Subtract the mean direction of faces, a linear function of their log kappa, and normalise again.

    ::

        mu' = (mu - m) / |mu - m|      m = offset + slope * min(max(log kappa, low), high)

    The directions of different people are not spread evenly over the sphere: their mean m is not 0, and what
    a recogniser cannot see in a face it replaces by this mean. So two poor images of different people are
    more similar than their concentrations account for, and the false match rate at a threshold depends on
    image quality. Centring removes this; docs/LOG.md has the measurements. It does not change kappa.

    Args:
        offset: (dim,) m at log kappa = 0.
        slope: (dim,) change of m per unit of log kappa.
        limits: (low, high), the range of log kappa of the fit.

    Raises:
        InputError: shapes differ, values are not finite, the limits do not ascend, or m is longer than 0.999
            within the limits.

    Example:
        >>> mu = torch.nn.functional.normalize(torch.randn(1000, 8) + torch.eye(8)[0], dim=1)
        >>> centring = Centring.fit(mu, torch.linspace(3, 6, 1000), np.arange(1000) // 10)
        >>> bool(mu.mean(0).norm() > 0.2), bool(centring(mu, torch.linspace(3, 6, 1000)).mean(0).norm() < 0.1)
        (True, True)
    """

    offset: Tensor
    slope: Tensor
    limits: Tensor

    def __init__(
        self, offset: ArrayLike | Tensor, slope: ArrayLike | Tensor, limits: tuple[float, float] | Tensor
    ) -> None:
        super().__init__()
        for name, values in (("offset", offset), ("slope", slope), ("limits", limits)):
            self.register_buffer(name, torch.as_tensor(np.asarray(values), dtype=torch.float32))
        if self.offset.ndim != 1 or self.slope.shape != self.offset.shape or self.limits.shape != (2,):
            raise InputError(
                "centring: expected offset (dim,), slope (dim,) and limits (2,), got "
                f"{tuple(self.offset.shape)}, {tuple(self.slope.shape)} and {tuple(self.limits.shape)}"
            )
        # m is linear within the limits, so it is longest at one of them.
        longest = float(self._mean(self.limits).norm(dim=1).max())
        if not (bool(self.limits.isfinite().all()) and self.limits[0] <= self.limits[1]):
            raise InputError(f"centring: expected ascending limits of log kappa, got {self.limits.tolist()}")
        if not longest <= _MAX_LENGTH:
            raise InputError(
                f"centring: expected a mean direction of length at most {_MAX_LENGTH}, got {longest:.4g}: "
                "the recogniser gives all faces almost the same direction"
            )

    @classmethod
    def fit(cls, mu: ArrayLike | Tensor, log_kappa: ArrayLike | Tensor, identities: ArrayLike) -> "Centring":
        """Fit the mean by least squares, in which every identity has the same total weight.

        Args:
            mu: (n, dim) unit directions; an array may be mapped from a file, it is read in blocks.
            log_kappa: (n,) finite.
            identities: (n,) integer labels; rows with a negative one are not used.

        Raises:
            InputError: shapes differ, no row is used, a log kappa is not finite, or as in the constructor.
        """
        directions, t, labels = np.asanyarray(mu), np.asarray(log_kappa, np.float64), np.asarray(identities)
        if directions.ndim != 2 or not (t.shape == labels.shape == directions.shape[:1]):
            raise InputError(
                "centring: expected mu (n, dim), log_kappa (n,) and identities (n,), got "
                f"{directions.shape}, {t.shape} and {labels.shape}"
            )
        rows = np.flatnonzero(labels >= 0)
        if not rows.size or not np.isfinite(t[rows]).all():
            raise InputError("centring: expected images with an identity and a finite log kappa")
        low, high = np.quantile(t[rows], (_EXTREMES, 1 - _EXTREMES)).tolist()
        _, person, images = np.unique(labels[rows], return_inverse=True, return_counts=True)
        weight = 1 / (images[person] * images.size)  # sum 1
        t = np.clip(t[rows], low, high)
        centred = t - weight @ t
        mean, product = np.zeros((2, directions.shape[1]))
        for start in range(0, rows.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            part = np.asarray(directions[rows[block]], np.float64)  # (block, dim)
            mean += weight[block] @ part
            product += (weight[block] * centred[block]) @ part
        slope = product / (weight @ centred**2) if low < high else np.zeros_like(product)
        return cls(mean - slope * (weight @ t), slope, (low, high))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], dim: int) -> "Centring":
        """The inverse of ``state_dict``.

        Raises:
            InputError: tensors are missing, or do not fit embeddings of this dimension.
        """
        if set(tensors) != {"offset", "slope", "limits"}:
            raise InputError(f"centring: expected offset, slope and limits, got {', '.join(sorted(tensors))}")
        centring = cls(**tensors)
        if len(centring.offset) != dim:
            raise InputError(f"centring: expected dimension {dim}, got {len(centring.offset)}")
        return centring

    def forward(self, mu: Float[Tensor, "n dim"], log_kappa: Float[Tensor, "n"]) -> Float[Tensor, "n dim"]:
        """Centred unit directions (n, dim), from unit directions and their log kappas."""
        difference = mu - self._mean(log_kappa).to(mu.dtype)
        centred: Tensor = difference / torch.linalg.vector_norm(difference, dim=1, keepdim=True)
        return centred

    def _mean(self, log_kappa: Tensor) -> Tensor:
        """m, (n, dim)."""
        clipped = torch.minimum(torch.maximum(log_kappa, self.limits[0]), self.limits[1])
        return self.offset + clipped[:, None] * self.slope
