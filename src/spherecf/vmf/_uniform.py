"""The uniform distribution on a sphere: what a von Mises-Fisher distribution with concentration 0 is."""

from collections.abc import Callable
from math import log
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, constraints

from spherecf.errors import InputError
from spherecf.vmf._functions import log_at_zero, order_of

broadcast_shapes: Callable[..., torch.Size] = torch.broadcast_shapes  # untyped in torch


class Sphere(constraints.Constraint):
    """Vectors of length ``radius``, within a relative 1e-3."""

    event_dim = 1

    def __init__(self, radius: float | int) -> None:
        self.radius = radius
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Which vectors lie on the sphere."""
        length: Tensor = value.norm(dim=-1)
        return (length / self.radius - 1).abs() <= 1e-3


class HypersphericalUniform(Distribution):
    """Uniform on the sphere of a radius in ``dim`` dimensions, in the density convention of `VonMisesFisher`.

    Example:
        >>> HypersphericalUniform(3).entropy()  # log of the area, 4 pi
        tensor(2.5310)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 (torch's own convention)
    has_rsample = True

    def __init__(
        self,
        dim: int,
        radius: float | int = 1.0,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008 (immutable)
        validate_args: bool | None = None,
    ) -> None:
        order_of(dim)
        self.dim, self.radius = dim, checked_radius(radius)
        super().__init__(batch_shape, torch.Size([dim]), validate_args)

    @property
    def support(self) -> Sphere:
        """The sphere."""
        return Sphere(self.radius)

    @property
    def mean(self) -> Tensor:
        """The centre."""
        return torch.zeros(self.batch_shape + self.event_shape)

    def log_prob(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*shape"]:
        """log C_d(0) - d log r, everywhere."""
        if self._validate_args:
            self._validate_sample(value)
        shape = broadcast_shapes(value.shape[:-1], self.batch_shape)
        return torch.full(shape, -self._entropy, dtype=value.dtype, device=value.device)

    def entropy(self) -> Float[Tensor, "*shape"]:
        """Minus the expected log_prob."""
        return torch.full(self.batch_shape, self._entropy)

    @property
    def _entropy(self) -> float:
        return self.dim * log(self.radius) - log_at_zero(self.dim / 2 - 1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Float[Tensor, "*shape dim"]:  # noqa: B008
        """Normalised Gaussian vectors."""
        normal = torch.randn(self._extended_shape(sample_shape))
        return self.radius * torch.nn.functional.normalize(normal, dim=-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HypersphericalUniform":
        """The same distribution with another batch shape."""
        return type(self)(self.dim, self.radius, torch.Size(batch_shape), self._validate_args)


def checked_radius(radius: float | int) -> float:
    """The radius as a float, or InputError."""
    if not 0 < radius < float("inf"):
        raise InputError(f"expected a finite radius > 0, got {radius}.")
    return float(radius)
