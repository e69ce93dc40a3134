"""The uniform distribution on a sphere: what a von Mises-Fisher distribution with concentration 0 is."""

from collections.abc import Callable
from math import log
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, constraints

from spherecf._arrays import AnyArray, as_tensor
from spherecf._directions import UNIT_TOLERANCE, check_directions, checked_radius
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
        return (length / self.radius - 1).abs() <= UNIT_TOLERANCE


class HypersphericalUniform(Distribution):
    """Uniform on the sphere of a radius in ``dim`` dimensions, in the density convention of `VonMisesFisher`.

    Args:
        dim: d >= 2.
        radius: r > 0.
        batch_shape: how many of it.
        validate_args: as for `VonMisesFisher`.

    Raises:
        InputError: a dimension or radius out of range, or values of another dimension or length.

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
        validate_args: bool = True,
    ) -> None:
        order_of(dim)
        self.dim, self.radius = int(dim), checked_radius(radius)
        super().__init__(batch_shape, torch.Size([self.dim]), validate_args=False)
        self._validate_args = validate_args

    @property
    def support(self) -> Sphere:
        """The sphere."""
        return Sphere(self.radius)

    @property
    def mean(self) -> Tensor:
        """The centre."""
        return torch.zeros(self.batch_shape + self.event_shape)

    def log_prob(self, value: Float[AnyArray, "*batch dim"]) -> Float[Tensor, "*shape"]:
        """log C_d(0) - d log r, everywhere."""
        z = checked_value(self, as_tensor(value, "value"))
        shape = broadcast_shapes(z.shape[:-1], self.batch_shape)
        return torch.full(shape, -self._entropy, dtype=z.dtype, device=z.device)

    def entropy(self) -> Float[Tensor, "*shape"]:
        """Minus the expected log_prob."""
        return torch.full(self.batch_shape, self._entropy)

    @property
    def _entropy(self) -> float:
        return self.dim * log(self.radius) - log_at_zero(self.dim / 2 - 1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Float[Tensor, "*shape dim"]:  # noqa: B008
        """Normalised Gaussian vectors."""
        normal = torch.randn(
            checked_shape(sample_shape, "sample_shape") + self.batch_shape + self.event_shape
        )
        return self.radius * torch.nn.functional.normalize(normal, dim=-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HypersphericalUniform":
        """The same distribution with another batch shape."""
        shape = checked_shape(batch_shape, "batch_shape")
        return type(self)(self.dim, self.radius, shape, self._validate_args)


def checked_value(distribution: Any, value: Tensor) -> Tensor:
    """A value whose density is asked for: of the distribution's dimension, and on its sphere.

    Its length is looked at where the distribution validates, and not while torch.compile traces.
    """
    try:
        if value.shape[-1:] != distribution.event_shape:  # 1 would broadcast
            raise RuntimeError
        broadcast_shapes(value.shape[:-1], distribution.batch_shape)
    except RuntimeError as error:
        raise InputError(
            f"value: expected shape (..., {distribution.dim}) that broadcasts with the batch shape "
            f"{tuple(distribution.batch_shape)}, got {tuple(value.shape)}."
        ) from error
    if distribution._validate_args and not torch.compiler.is_compiling():
        check_directions(value, "value", radius=distribution.radius)
    return value


def checked_shape(shape: Any, name: str) -> torch.Size:
    """A shape as torch takes it: some integers >= 0."""
    try:
        size = torch.Size(shape)
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{name}: expected a tuple of integers, e.g. (100,), got {shape!r}.") from error
    if any(length < 0 for length in size):
        raise InputError(f"{name}: expected integers >= 0, got {shape!r}.")
    return size
