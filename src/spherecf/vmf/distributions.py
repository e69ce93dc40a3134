"""The von Mises-Fisher distribution and the uniform distribution on the sphere as torch Distributions.

To sample it, angles to the mean direction are drawn by inverting their distribution function. Density of the
angle on [0, pi]: proportional to exp(kappa cos a) sin(a)^(d-2). Inversion rather than rejection: every draw
costs the same few vectorised operations, nothing is redrawn (so no loop that waits for the data), and the
draw is a smooth function of kappa whose derivative -dF/dkappa / density comes from the same quadrature.
"""

from collections.abc import Callable
from math import log, pi, prod
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, constraints, register_kl

from spherecf.common.arrays import (
    UNIT_TOLERANCE,
    AnyArray,
    as_tensor,
    check_directions,
    check_kappa,
    checked_radius,
)
from spherecf.errors import InputError
from spherecf.vmf.functions import (
    computable,
    inverse_mean_resultant_length,
    log_at_zero,
    log_normalizer_relative,
    log_normalizer_scaled,
    mean_resultant_complement,
    mean_resultant_length,
    order_of,
)

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
        validate_args: bool | None = True,
    ) -> None:
        order_of(dim)
        self.dim, self.radius = int(dim), checked_radius(radius)
        super().__init__(batch_shape, torch.Size([self.dim]), validate_args=False)
        self._validate_args = validate_args is not False

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


_Divergence = TypeVar("_Divergence", bound=Callable[..., Tensor])
_register: Callable[[type, type], Callable[[_Divergence], _Divergence]] = register_kl


class VonMisesFisher(Distribution):
    """p(z) = C_d(kappa) / r^d exp((kappa / r) mu^T z) for |z| = r (Li et al., CVPR 2021, section 3).

    The 1 / r^d is the paper's constant: log_prob and entropy follow it. (With respect to the surface measure
    of the sphere it would be 1 / r^(d-1); the two agree for r = 1.) Gradients and KL divergences do not
    depend on r.

    Args:
        mean_direction: mu, unit vectors, shape (*batch, dim), dim >= 2.
        concentration: kappa >= 0, finite, any shape that broadcasts with (*batch). 0 is the uniform
            distribution.
        radius: r > 0, one number.
        validate_args: check values, here and in `log_prob`. Only False switches it off; torch's global
            default (which importing torch's compiler changes) does not. Not done while compiling.

    NumPy arrays become tensors. float16 and bfloat16 parameters are taken as float32, integers are refused.

    Raises:
        InputError: mu is not of unit length (within 1e-3), kappa is negative, infinite or NaN, or shapes do
            not fit.

    Example:
        >>> face = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(10.0))
        >>> face.mean, face.log_prob(face.mode)
        (tensor([0.0000, 0.0000, 0.9000]), tensor(0.4647))
    """

    arg_constraints = {"mean_direction": constraints.real_vector, "concentration": constraints.nonnegative}  # noqa: RUF012
    has_rsample = True

    def __init__(
        self,
        mean_direction: Float[AnyArray, "*shape dim"],
        concentration: Float[AnyArray, "*batch"],
        radius: float | int = 1.0,
        validate_args: bool | None = True,
    ) -> None:
        mu, kappa = computable(mean_direction, "mean_direction"), computable(concentration, "concentration")
        if mu.ndim < 1 or mu.shape[-1] < 2:
            raise InputError(f"mean_direction: expected (*batch, dim) with dim >= 2, got {tuple(mu.shape)}.")
        batch_shape = _batch_shape(mu.shape[:-1], kappa.shape)
        if validate_args is not False and not torch.compiler.is_compiling():
            check_directions(mu, "mean_direction")
            check_kappa(kappa, "concentration")
        self.dim, self.radius = mu.shape[-1], checked_radius(radius)
        self.mean_direction, self.concentration = mu.expand(*batch_shape, self.dim), kappa.expand(batch_shape)
        super().__init__(batch_shape, mu.shape[-1:], validate_args=False)
        self._validate_args = validate_args is not False

    @property
    def support(self) -> Sphere:
        """The sphere of this radius."""
        return Sphere(self.radius)

    @property
    def mode(self) -> Tensor:
        """r mu."""
        return self.radius * self.mean_direction

    @property
    def mean(self) -> Tensor:
        """r A_d(kappa) mu: inside the sphere."""
        return self.mode * mean_resultant_length(self.concentration, self.dim).unsqueeze(-1)

    def log_prob(self, value: Float[AnyArray, "*value dim"]) -> Float[Tensor, "*out"]:
        """log C_d(kappa) + kappa mu^T z / r - d log r."""
        z = checked_value(self, as_tensor(value, "value"))
        cosine = (self.mean_direction * z).sum(-1) / self.radius
        return self._log_peak() - self.concentration * (1 - cosine)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """-E[log_prob] = -log C_d(kappa) - kappa A_d(kappa) + d log r."""
        return self.concentration * mean_resultant_complement(self.concentration, self.dim) - self._log_peak()

    def _log_peak(self) -> Tensor:
        return log_normalizer_scaled(self.concentration, self.dim) - self.dim * log(self.radius)

    def rsample(self, sample_shape: Any = torch.Size()) -> Float[Tensor, "*out dim"]:  # noqa: B008
        """Draws, differentiable (once) in mu and kappa, by inverting the distribution of the angle to mu."""
        shape = checked_shape(sample_shape, "sample_shape")
        angle = draw_angles(self.concentration, self.dim, shape).unsqueeze(-1)
        mu = self.mean_direction
        along, across = angle.cos().to(mu.dtype), angle.sin().to(mu.dtype)
        return self.radius * (along * mu + across * self._draw_tangent(shape))

    def _draw_tangent(self, sample_shape: torch.Size) -> Tensor:
        """Unit vectors orthogonal to mu, uniformly distributed."""
        mu = self.mean_direction
        normal = torch.randn(sample_shape + mu.shape, dtype=mu.dtype, device=mu.device)
        if self.dim == 2:  # two choices only: a sign that does not depend on mu keeps the draw smooth in mu
            sign = torch.where(normal[..., :1] < 0, -1.0, 1.0).to(mu.dtype)
            return sign * torch.stack((-mu[..., 1], mu[..., 0]), -1)
        return torch.nn.functional.normalize(normal - (normal * mu).sum(-1, keepdim=True) * mu, dim=-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "VonMisesFisher":
        """The same distribution with a larger batch shape."""
        shape = checked_shape(batch_shape, "batch_shape")
        try:
            mu, kappa = self.mean_direction.expand(*shape, self.dim), self.concentration.expand(shape)
        except RuntimeError as error:
            raise InputError(
                f"batch_shape: {tuple(self.batch_shape)} does not expand to {tuple(shape)}."
            ) from error
        expanded = type(self)(mu, kappa, self.radius, validate_args=False)
        expanded._validate_args = self._validate_args
        return expanded

    @classmethod
    def fit(
        cls,
        value: Float[AnyArray, "*batch n dim"],
        weights: Float[AnyArray, "*batch n"] | None = None,
        radius: float | int = 1.0,
    ) -> "VonMisesFisher":
        """Maximum likelihood from (weighted) draws: mu = direction of the mean, A_d(kappa) = its length / r.

        Args:
            value: vectors of length ``radius`` (within a relative 1e-3), shape (*batch, n, dim), n >= 1.
            weights: >= 0, not all 0, shape (*batch, n); all 1 by default.

        Where all draws coincide kappa would be infinite: it stays at what the largest number below 1 gives.
        Where they cancel exactly (kappa = 0) the direction is the first axis.

        Raises:
            InputError: shapes do not fit, vectors are of another length, or weights are negative, NaN,
                infinite or sum to 0.

        Example:
            >>> on_a_circle = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
            >>> VonMisesFisher.fit(on_a_circle).mean_direction
            tensor([1., 0.])
        """
        z, r = computable(value, "value"), checked_radius(radius)
        w = z.new_ones(z.shape[:-1]) if weights is None else as_tensor(weights, "weights", kinds="fi").to(z)
        if z.ndim < 2 or z.shape[-2] < 1 or w.shape != z.shape[:-1]:
            raise InputError(
                f"fit: expected value (*batch, n, dim) with n >= 1 and weights (*batch, n), got "
                f"{tuple(z.shape)} and {tuple(w.shape)}."
            )
        if not torch.compiler.is_compiling():
            check_directions(z, "value", radius=r)
        total = w.sum(-1, keepdim=True)
        if not bool(((w >= 0).all(-1, keepdim=True) & (total > 0) & (total < torch.inf)).all()):
            raise InputError("fit: weights must be >= 0, finite, not NaN, and not all 0.")
        z = z / r
        mean = (z * (w / total).unsqueeze(-1)).sum(-2)
        rho = mean.norm(dim=-1)
        first_axis = torch.eye(1, z.shape[-1], dtype=z.dtype, device=z.device)[0]
        mu = torch.where(
            rho.unsqueeze(-1) > 0, torch.nn.functional.normalize(mean, dim=-1, eps=0), first_axis
        )
        largest = 1 - torch.finfo(z.dtype).eps / 2
        return cls(mu, inverse_mean_resultant_length(rho.clamp(max=largest), z.shape[-1]), radius)


def _batch_shape(directions: torch.Size, kappa: torch.Size) -> torch.Size:
    """Shape of the distributions; a column (n, 1) of kappas for n directions is not taken for a table."""
    try:
        if directions and kappa == (*directions, 1):
            raise RuntimeError
        return broadcast_shapes(directions, kappa)
    except RuntimeError as error:
        raise InputError(
            f"concentration {tuple(kappa)} does not broadcast with mean_direction {(*directions, 'dim')}: "
            "expected one kappa per direction (squeeze a column)."
        ) from error


@_register(VonMisesFisher, VonMisesFisher)
def _kl_vmf_vmf(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    _check_same_sphere(p, q)
    complement = mean_resultant_complement(p.concentration, p.dim)
    apart = 0.5 * (p.mean_direction - q.mean_direction).square().sum(-1)  # 1 - cos, without cancellation
    peaks = [log_normalizer_relative(v.concentration, v.dim, scaled=True) for v in (p, q)]
    missed = complement + apart - complement * apart  # 1 - A_d(kappa_p) cos
    return peaks[0] - peaks[1] + q.concentration * missed - p.concentration * complement


@_register(VonMisesFisher, HypersphericalUniform)
def _kl_vmf_uniform(p: VonMisesFisher, q: HypersphericalUniform) -> Tensor:
    _check_same_sphere(p, q)
    kappa, dim = p.concentration, p.dim
    near = log_normalizer_relative(kappa, dim, False) + kappa * mean_resultant_length(kappa, dim)
    far = log_normalizer_relative(kappa, dim, True) - kappa * mean_resultant_complement(kappa, dim)
    return torch.where(kappa < dim, near, far)  # equal; each loses digits at the other's end


@_register(HypersphericalUniform, VonMisesFisher)
def _kl_uniform_vmf(p: HypersphericalUniform, q: VonMisesFisher) -> Tensor:
    _check_same_sphere(p, q)
    return -log_normalizer_relative(q.concentration, q.dim, scaled=False).expand(
        broadcast_shapes(p.batch_shape, q.batch_shape)
    )


@_register(HypersphericalUniform, HypersphericalUniform)
def _kl_uniform_uniform(p: HypersphericalUniform, q: HypersphericalUniform) -> Tensor:
    _check_same_sphere(p, q)
    return torch.zeros(broadcast_shapes(p.batch_shape, q.batch_shape))


def _check_same_sphere(
    p: VonMisesFisher | HypersphericalUniform, q: VonMisesFisher | HypersphericalUniform
) -> None:
    if (p.dim, p.radius) != (q.dim, q.radius):
        raise InputError(
            f"kl_divergence: expected two distributions on one sphere, got dim {p.dim}, radius {p.radius} "
            f"and dim {q.dim}, radius {q.radius}."
        )


_CELLS = 40  # half a standard deviation each
_HALF_WIDTH = 10.0  # standard deviations either side of the mode; the mass beyond is below 1e-13
_NEWTON_STEPS = 6
_BLOCK = 1 << 19  # density evaluations at once
# Gauss-Legendre nodes and weights on [0, 1].
_NODES = (0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.9305681557970262)
_WEIGHTS = (0.17392742256872692, 0.32607257743127307, 0.32607257743127307, 0.17392742256872692)


def draw_angles(kappa: Tensor, dim: int, sample_shape: torch.Size) -> Tensor:
    """Angles in float64, shape ``sample_shape + kappa.shape``; differentiable once in kappa."""
    count = prod(sample_shape)
    uniform = torch.rand(kappa.numel(), count, dtype=torch.float64, device=kappa.device)
    angles: Tensor = _invert_distribution(kappa.double().reshape(-1), uniform, dim)
    return angles.T.reshape(sample_shape + kappa.shape)


class _InverseDistribution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, uniform: Tensor, dim: int) -> Tensor:
        rows = max(1, _BLOCK // (len(_NODES) * max(_CELLS, uniform.shape[1])))
        parts = zip(torch.split(kappa, rows), torch.split(uniform, rows), strict=True)
        blocks = [_invert(k, u, dim) for k, u in parts]
        angles, slopes = (torch.cat(block) for block in zip(*blocks, strict=True))
        ctx.save_for_backward(slopes)
        return angles

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (grads[0] * slopes).sum(1), None, None


_invert_distribution: Callable[..., Tensor] = _InverseDistribution.apply


class _Density:
    """exp(kappa (cos a - cos mode)) (sin a / sin mode)^(d-2), one kappa per row."""

    def __init__(self, kappa: Tensor, dim: int) -> None:
        self.kappa, self.power = kappa, dim - 2
        root = self.power + (self.power**2 + 4 * kappa * kappa).sqrt()
        cosine = 2 * kappa / root.clamp(min=1e-300)
        self.sine = (2 * self.power / root.clamp(min=1e-300)).sqrt()
        self.mode = torch.atan2(self.sine, cosine)
        curvature = kappa * cosine + (root / 2 if self.power else 0)
        self.width = _HALF_WIDTH * curvature.rsqrt()

    def __call__(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """The density and cos a - cos mode, at angles of shape (rows, ...)."""
        kappa, mode, sine = (v.view(-1, *[1] * (angle.ndim - 1)) for v in (self.kappa, self.mode, self.sine))
        offset = -2 * torch.sin((angle + mode) / 2) * torch.sin((angle - mode) / 2)
        exponent = kappa * offset
        if self.power:
            exponent = exponent + self.power * torch.log(torch.sin(angle) / sine)
        return exponent.exp(), offset

    def integrate(self, start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """The density, and the density times the offset, integrated over [start, start + length]."""
        nodes, weights = start.new_tensor(_NODES), start.new_tensor(_WEIGHTS)
        density, offset = self(start.unsqueeze(-1) + length.unsqueeze(-1) * nodes)
        return length * (density @ weights), length * ((density * offset) @ weights)


def _invert(kappa: Tensor, uniform: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Angles (rows, count) where the distribution function is ``uniform``, and their slopes in kappa."""
    density = _Density(kappa, dim)
    low = (density.mode - density.width).clamp(min=0)
    high = (density.mode + density.width).clamp(max=pi)
    cell = ((high - low) / _CELLS).unsqueeze(1)
    starts = low.unsqueeze(1) + cell * torch.arange(_CELLS, dtype=low.dtype, device=low.device)
    mass, moment = density.integrate(starts, cell.expand_as(starts))
    below, moment_below = (torch.nn.functional.pad(v.cumsum(1), (1, 0)) for v in (mass, moment))
    total, mean = below[:, -1:], moment_below[:, -1:] / below[:, -1:]

    target = uniform * total
    index = torch.searchsorted(below.contiguous(), target, right=True).sub(1).clamp(0, _CELLS - 1)
    start, rest = starts.gather(1, index), target - below.gather(1, index)
    step = cell * (rest / mass.gather(1, index)).clamp(0, 1)
    for _ in range(_NEWTON_STEPS):
        miss = density.integrate(start, step)[0] - rest
        slope = density(start + step)[0].clamp(min=1e-300)
        step = torch.minimum((step - miss / slope).clamp(min=0), cell)
    part, part_moment = density.integrate(start, step)
    # d/dkappa of the distribution function, times `total`: the integral of (cos a - mean cosine) up to the
    # angle.
    change = (moment_below.gather(1, index) + part_moment) - mean * (below.gather(1, index) + part)
    angle = start + step
    return angle, -change / density(angle)[0].clamp(min=1e-300)
