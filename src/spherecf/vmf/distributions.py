"""The von Mises-Fisher distribution and the uniform distribution on the sphere as torch Distributions.

A sample is drawn as an angle a to the mean direction and a uniform direction orthogonal to it. The density of
the angle on [0, pi] is proportional to exp(kappa cos a) sin(a)^(d-2); the angle is drawn by inverting its
distribution function F. Unlike rejection sampling, inversion takes the same few vectorised operations for
every sample, without a loop whose length depends on the data, and the sample is a smooth function of kappa:
its derivative, -(dF/dkappa) over the density, comes from the same quadrature as F.
"""

from collections.abc import Callable
from math import log, pi, prod
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, constraints, register_kl

from spherecf.common.arrays import (
    SCORE_TOLERANCE,
    UNIT_TOLERANCE,
    AnyArray,
    as_tensor,
    as_tensors,
    check_directions,
    check_kappa,
    checked_radius,
    values_known,
    widen,
)
from spherecf.errors import InputError
from spherecf.vmf.functions import (
    bessel_order,
    inverse_mean_resultant_length,
    log_normalizer_at_zero,
    log_normalizer_relative,
    log_normalizer_scaled,
    mean_resultant_complement,
    mean_resultant_length,
    mean_resultant_length_derivative,
)

broadcast_shapes: Callable[..., torch.Size] = torch.broadcast_shapes  # untyped in torch


class Sphere(constraints.Constraint):
    """The sphere of a radius: vectors whose length deviates from it by at most a relative 1e-3."""

    event_dim = 1

    def __init__(self, radius: float | int) -> None:
        self.radius = radius
        super().__init__()

    def __repr__(self) -> str:
        return f"Sphere(radius={self.radius:g})"

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector is on the sphere: (..., dim) -> (...)."""
        length: Tensor = value.norm(dim=-1)
        return (length / self.radius - 1).abs() <= UNIT_TOLERANCE


class HypersphericalUniform(Distribution):
    """The uniform distribution on the sphere: p(z) = C_d(0) / r^d for |z| = r, `VonMisesFisher` at kappa = 0.

    C_d(0) is one over the surface area of the unit sphere.

    Args:
        dim: d >= 2.
        radius: r > 0.
        batch_shape: shape of a batch of identical distributions.
        validate_args: as in `VonMisesFisher`.

    Raises:
        InputError: the dimension, radius or batch shape is out of range, or a value has another dimension or
            length.

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
        batch_shape: Any = torch.Size(),  # noqa: B008 (immutable)
        validate_args: bool | None = True,
    ) -> None:
        bessel_order(dim)
        self.dim, self.radius = int(dim), checked_radius(radius)
        shape = checked_shape(batch_shape, "batch_shape")
        super().__init__(shape, torch.Size([self.dim]), validate_args=False)
        self._validate_args = validate_args is not False

    @property
    def support(self) -> Sphere:
        """The sphere of this radius."""
        return Sphere(self.radius)

    @property
    def mean(self) -> Tensor:
        """The zero vector."""
        return torch.zeros(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """r^2 / d for each coordinate."""
        return torch.full(self.batch_shape + self.event_shape, self.radius**2 / self.dim)

    def log_prob(self, value: Float[AnyArray, "*batch dim"]) -> Float[Tensor, "*shape"]:
        """The constant log C_d(0) - d log r."""
        z = checked_value(self, as_tensor(value, "value"))
        shape = broadcast_shapes(z.shape[:-1], self.batch_shape)
        # As in `VonMisesFisher`, half precision gives float32: it has too few digits for a log density.
        dtype = torch.promote_types(z.dtype, torch.float32)
        return torch.full(shape, -self._entropy, dtype=dtype, device=z.device)

    def entropy(self) -> Float[Tensor, "*shape"]:
        """-E[log_prob] = -log C_d(0) + d log r."""
        return torch.full(self.batch_shape, self._entropy)

    @property
    def _entropy(self) -> float:
        return self.dim * log(self.radius) - log_normalizer_at_zero(self.dim / 2 - 1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Float[Tensor, "*shape dim"]:  # noqa: B008
        """Uniform samples: Gaussian vectors scaled to length r, shape (*sample_shape, *batch_shape, dim)."""
        normal = torch.randn(
            checked_shape(sample_shape, "sample_shape") + self.batch_shape + self.event_shape
        )
        return self.radius * torch.nn.functional.normalize(normal, dim=-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "HypersphericalUniform":
        """The same distribution with another batch shape."""
        shape = checked_shape(batch_shape, "batch_shape")
        return type(self)(self.dim, self.radius, shape, self._validate_args)

    def __repr__(self) -> str:
        shape = f", batch_shape={tuple(self.batch_shape)}" if self.batch_shape else ""
        return f"HypersphericalUniform(dim={self.dim}, radius={self.radius:g}{shape})"


def checked_value(distribution: Any, value: Tensor) -> Tensor:
    """``value`` unchanged, if it has the distribution's dimension and is on its sphere.

    Lengths are checked only if the distribution validates its arguments.

    Raises:
        InputError: the shape does not fit, or a vector is not on the sphere.
    """
    try:
        if value.shape[-1:] != distribution.event_shape:  # a single coordinate would broadcast
            raise RuntimeError
        broadcast_shapes(value.shape[:-1], distribution.batch_shape)
    except RuntimeError as error:
        raise InputError(
            f"value: expected shape (..., {distribution.dim}) that broadcasts with the batch shape "
            f"{tuple(distribution.batch_shape)}, got {tuple(value.shape)}."
        ) from error
    if distribution._validate_args:
        check_directions(value, "value", radius=distribution.radius)
    return value


def checked_shape(shape: Any, name: str) -> torch.Size:
    """``shape`` as a torch.Size.

    Raises:
        InputError: not a sequence of integers >= 0.
    """
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
    """The von Mises-Fisher distribution on the sphere of radius r (Li et al., CVPR 2021, section 3):

        p(z) = C_d(kappa) / r^d exp((kappa / r) mu^T z),    |z| = r.

    1 / r^d is the paper's constant, and `log_prob` and `entropy` include it. (A density with respect to the
    surface measure of the sphere has 1 / r^(d-1); the two agree for r = 1.) Gradients and KL divergences do
    not depend on r.

    Args:
        mean_direction: mu, unit vectors, shape (*batch, dim), dim >= 2.
        concentration: kappa >= 0, finite, any shape that broadcasts with (*batch). 0 gives the uniform
            distribution.
        radius: r > 0, one number.
        validate_args: check values, here and in `log_prob`. Only False switches the checks off; torch's
            global default, which importing torch's compiler changes, has no effect. Values are not checked
            while torch.compile traces, under `torch.func.vmap`, and on the meta device.

    NumPy arrays become tensors. float16 and bfloat16 parameters are converted to float32, and such directions
    to unit length again. Integers are refused.

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
        mu, kappa = map(widen, as_tensors(mean_direction=mean_direction, concentration=concentration))
        if mu.ndim < 1 or mu.shape[-1] < 2:
            raise InputError(f"mean_direction: expected (*batch, dim) with dim >= 2, got {tuple(mu.shape)}.")
        batch_shape = _batch_shape(mu.shape[:-1], kappa.shape)
        rounded = _is_half(mean_direction)
        if validate_args is not False:
            check_directions(mu, "mean_direction", SCORE_TOLERANCE if rounded else UNIT_TOLERANCE)
            check_kappa(kappa, "concentration")
        if rounded:  # bfloat16 rounds a length by up to 0.4 %
            mu = torch.nn.functional.normalize(mu, dim=-1)
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
        """r mu, shape (*batch, dim)."""
        return self.radius * self.mean_direction

    @property
    def mean(self) -> Tensor:
        """r A_d(kappa) mu, a point inside the sphere, shape (*batch, dim)."""
        return self.mode * mean_resultant_length(self.concentration, self.dim).unsqueeze(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, the diagonal of the covariance, shape (*batch, dim):

        r^2 (A_d'(kappa) mu mu^T + A_d(kappa) / kappa (I - mu mu^T))
        """
        along = mean_resultant_length_derivative(self.concentration, self.dim)
        complement = mean_resultant_complement(self.concentration, self.dim)
        # A_d / kappa, by A_d' = 1 - A_d^2 - (d-1)/kappa A_d, which holds at kappa = 0 too
        across = (complement * (2 - complement) - along) / (self.dim - 1)
        square = self.mean_direction.square()
        return self.radius**2 * (along.unsqueeze(-1) * square + across.unsqueeze(-1) * (1 - square))

    def log_prob(self, value: Float[AnyArray, "*value dim"]) -> Float[Tensor, "*out"]:
        """log C_d(kappa) + kappa mu^T z / r - d log r; ``value`` broadcasts with the batch."""
        z = checked_value(self, as_tensor(value, "value"))
        mu, z = self.mean_direction, z / self.radius
        deficit = 1 - (mu * z).sum(-1)  # (*out)
        # The same without the rounding of the cosine and of unit lengths, which kappa would amplify; the
        # derivatives are those of the cosine.
        exact = 0.5 * ((mu - z).square().sum(-1) + _missing_square(mu) + _missing_square(z))
        deficit = deficit + (exact - deficit).detach()
        return self._log_peak() - self.concentration * deficit

    def entropy(self) -> Float[Tensor, "*batch"]:
        """-E[log_prob] = -log C_d(kappa) - kappa A_d(kappa) + d log r."""
        return self.concentration * mean_resultant_complement(self.concentration, self.dim) - self._log_peak()

    def _log_peak(self) -> Tensor:
        """The log density at the mode, log C_d(kappa) + kappa - d log r."""
        return log_normalizer_scaled(self.concentration, self.dim) - self.dim * log(self.radius)

    def rsample(self, sample_shape: Any = torch.Size()) -> Float[Tensor, "*out dim"]:  # noqa: B008
        """Samples of shape (*sample_shape, *batch, dim), differentiable once in mu and in kappa.

        The angle to mu is drawn by inverting its distribution function.
        """
        shape = checked_shape(sample_shape, "sample_shape")
        angle = draw_angles(self.concentration, self.dim, shape).unsqueeze(-1)  # (*sample_shape, *batch, 1)
        mu = self.mean_direction
        cosine, sine = angle.cos().to(mu.dtype), angle.sin().to(mu.dtype)
        return self.radius * (cosine * mu + sine * self._draw_tangent(shape))

    def _draw_tangent(self, sample_shape: torch.Size) -> Tensor:
        """Uniformly distributed unit vectors orthogonal to mu, shape (*sample_shape, *batch, dim)."""
        mu = self.mean_direction
        normal = torch.randn(sample_shape + mu.shape, dtype=mu.dtype, device=mu.device)
        if self.dim == 2:  # only two directions: a sign independent of mu keeps the sample smooth in mu
            sign = torch.where(normal[..., :1] < 0, -1.0, 1.0).to(mu.dtype)
            return sign * torch.stack((-mu[..., 1], mu[..., 0]), -1)
        return torch.nn.functional.normalize(normal - (normal * mu).sum(-1, keepdim=True) * mu, dim=-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "VonMisesFisher":
        """The same distributions, broadcast to a larger batch shape."""
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
        """The maximum likelihood estimate from (weighted) samples.

        mu is the direction of the samples' mean m, and kappa solves A_d(kappa) = |m| / r. If all samples
        coincide, the likelihood has no maximum; kappa is capped where 1 - A_d(kappa) is 1.4e-14 (float32) or
        1.1e-16 (float64), which directions of that type resolve. Sums are in float64.
        If the mean is exactly zero, kappa is 0 and mu the first axis.

        Args:
            value: vectors of length ``radius`` (within a relative 1e-3), shape (*batch, n, dim), n >= 1; only
                their directions count.
            weights: >= 0, not all 0, shape (*batch, n); all 1 by default.

        Raises:
            InputError: shapes do not fit, vectors have another length, or weights are negative, NaN,
                infinite or sum to 0.

        Example:
            >>> on_a_circle = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8]])
            >>> VonMisesFisher.fit(on_a_circle).mean_direction
            tensor([1., 0.])
        """
        z, r = widen(value, "value"), checked_radius(radius)
        w = z.new_ones(z.shape[:-1]) if weights is None else as_tensor(weights, "weights", kinds="fi").to(z)
        if z.ndim < 2 or z.shape[-2] < 1 or w.shape != z.shape[:-1]:
            raise InputError(
                f"fit: expected value (*batch, n, dim) with n >= 1 and weights (*batch, n), got "
                f"{tuple(z.shape)} and {tuple(w.shape)}."
            )
        check_directions(z, "value", SCORE_TOLERANCE if _is_half(value) else UNIT_TOLERANCE, radius=r)
        total = w.sum(-1, keepdim=True)
        valid = (w >= 0).all(-1, keepdim=True) & (total > 0) & (total < torch.inf)
        if values_known(valid) and not bool(valid.all()):
            raise InputError("fit: weights must be >= 0, finite, not NaN, and not all 0.")
        # In float64: an error of a length or of a sum would count as one of 1 - A_d, however small that is.
        wide = torch.nn.functional.normalize(z.double(), dim=-1)
        mean = (wide * (w.double() / total.double()).unsqueeze(-1)).sum(-2)  # (*batch, dim)
        rho = mean.norm(dim=-1)  # (*batch)
        first_axis = torch.eye(1, z.shape[-1], dtype=wide.dtype, device=z.device)[0]
        # The quotient is not computed for a zero mean: its derivative would be NaN.
        mu = torch.nn.functional.normalize(
            torch.where(rho.unsqueeze(-1) > 0, mean, first_axis), dim=-1, eps=0
        )
        below_one = 1 - max(torch.finfo(z.dtype).eps ** 2, torch.finfo(wide.dtype).eps / 2)
        kappa = inverse_mean_resultant_length(rho.clamp(max=below_one), z.shape[-1])
        return cls(mu.to(z.dtype), kappa.to(z.dtype), radius)


def _missing_square(vectors: Tensor) -> Tensor:
    """1 - |v|^2 of each vector, and 0 where that is within the rounding of a unit vector."""
    missing = 1 - vectors.square().sum(-1)
    return torch.where(missing.abs() <= 8 * torch.finfo(vectors.dtype).eps, 0, missing)


def _is_half(values: AnyArray) -> bool:
    return values.dtype in (torch.float16, torch.bfloat16, np.float16)


def _batch_shape(directions: torch.Size, kappa: torch.Size) -> torch.Size:
    """The common batch shape; (n, 1) kappas for n directions are refused, not broadcast to (n, n)."""
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
    """log C(k_p) - log C(k_q) + A(k_p) (k_p - k_q cos), by way of c(k) = log C(k) + k, 1 - A and 1 - cos."""
    shape = _check_same_sphere(p, q)
    complement = mean_resultant_complement(p.concentration, p.dim)  # 1 - A_d(kappa_p)
    one_minus_cosine = 0.5 * (p.mean_direction - q.mean_direction).square().sum(-1)  # without cancellation
    peaks = [log_normalizer_relative(v.concentration, v.dim, scaled=True) for v in (p, q)]
    # 1 - A_d(kappa_p) cos, which is 1 minus the expected cosine of a sample of p to the mode of q
    expected_deficit = complement + one_minus_cosine - complement * one_minus_cosine
    divergence = peaks[0] - peaks[1] + q.concentration * expected_deficit - p.concentration * complement
    return divergence.expand(shape)


@_register(VonMisesFisher, HypersphericalUniform)
def _kl_vmf_uniform(p: VonMisesFisher, q: HypersphericalUniform) -> Tensor:
    """log C(k) - log C(0) + k A(k)."""
    shape = _check_same_sphere(p, q)
    kappa, dim = p.concentration, p.dim
    # Two equal expressions: the first loses digits where kappa is large, the second where it is small.
    plain = log_normalizer_relative(kappa, dim, False) + kappa * mean_resultant_length(kappa, dim)
    scaled = log_normalizer_relative(kappa, dim, True) - kappa * mean_resultant_complement(kappa, dim)
    return torch.where(kappa < dim, plain, scaled).expand(shape)


@_register(HypersphericalUniform, VonMisesFisher)
def _kl_uniform_vmf(p: HypersphericalUniform, q: VonMisesFisher) -> Tensor:
    """log C(0) - log C(k): the expected cosine of a uniform sample is 0."""
    shape = _check_same_sphere(p, q)
    return -log_normalizer_relative(q.concentration, q.dim, scaled=False).expand(shape)


@_register(HypersphericalUniform, HypersphericalUniform)
def _kl_uniform_uniform(p: HypersphericalUniform, q: HypersphericalUniform) -> Tensor:
    return torch.zeros(_check_same_sphere(p, q))


def _check_same_sphere(
    p: VonMisesFisher | HypersphericalUniform, q: VonMisesFisher | HypersphericalUniform
) -> torch.Size:
    """The common batch shape of two distributions, which must be on the same sphere."""
    if (p.dim, p.radius) != (q.dim, q.radius):
        raise InputError(
            f"kl_divergence: expected two distributions on the same sphere, got dim {p.dim}, "
            f"radius {p.radius} and dim {q.dim}, radius {q.radius}."
        )
    try:
        return broadcast_shapes(p.batch_shape, q.batch_shape)
    except RuntimeError as error:
        raise InputError(
            f"kl_divergence: the batch shapes {tuple(p.batch_shape)} and {tuple(q.batch_shape)} do not "
            "broadcast."
        ) from error


_CELLS = 40  # of the quadrature, half a standard deviation each
_HALF_WIDTH = 10.0  # standard deviations either side of the mode; the mass beyond is below 1e-13
_NEWTON_STEPS = 6
_BLOCK = 1 << 19  # density evaluations per pass, which bounds the memory
# Nodes and weights of the four-point Gauss-Legendre rule on [0, 1].
_NODES = (0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.9305681557970262)
_WEIGHTS = (0.17392742256872692, 0.32607257743127307, 0.32607257743127307, 0.17392742256872692)


def draw_angles(kappa: Tensor, dim: int, sample_shape: torch.Size) -> Tensor:
    """Random angles to the mean direction, float64 of shape (*sample_shape, *kappa.shape)."""
    count = prod(sample_shape)
    uniform = torch.rand(kappa.numel(), count, dtype=torch.float64, device=kappa.device)
    # Beyond 1e150, where squares overflow, the angle is 0 to rounding.
    angles, _ = _draw(kappa.double().clamp(max=1e150).reshape(-1), uniform, dim)
    return angles.T.reshape(sample_shape + kappa.shape)


class _InverseDistribution(torch.autograd.Function):
    """F^{-1}(uniform; kappa) for kappa (n,) and uniform (n, count), block by block."""

    @staticmethod
    def forward(kappa: Tensor, uniform: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        angles, slopes = torch.empty_like(uniform), torch.empty_like(uniform)
        columns = max(1, min(uniform.shape[1], _BLOCK // len(_NODES)))
        rows = max(1, _BLOCK // (len(_NODES) * max(_CELLS, columns)))
        for first in range(0, len(kappa), rows):
            for start in range(0, uniform.shape[1], columns):
                block = slice(first, first + rows), slice(start, start + columns)
                angles[block], slopes[block] = _invert(kappa[block[0]], uniform[block], dim)
        return angles, slopes

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (grads[0] * slopes).sum(1), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        size, dim = info.batch_size, inputs[2]
        batched = [
            v.expand(size, *v.shape) if axis is None else v.movedim(axis, 0)
            for v, axis in zip(inputs[:2], in_dims)
        ]
        results = _draw(*(v.flatten(0, 1) for v in batched), dim)
        return tuple(v.reshape(size, -1, *v.shape[1:]) for v in results), (0, 0)


_draw: Callable[..., tuple[Tensor, Tensor]] = _InverseDistribution.apply


class _Density:
    """Density of the angle, scaled to 1 at its mode: exp(kappa (cos a - cos mode)) (sin a / sin mode)^(d-2).

    There is one kappa per row. The log density has slope zero where kappa sin^2 a = (d-2) cos a, which gives
    the mode; ``width`` is `_HALF_WIDTH` standard deviations of the Gaussian with the curvature at the mode.
    """

    def __init__(self, kappa: Tensor, dim: int) -> None:
        self.kappa, self.power = kappa, dim - 2
        root = self.power + (self.power**2 + 4 * kappa * kappa).sqrt()  # (rows,)
        cosine = 2 * kappa / root.clamp(min=1e-300)  # cos mode
        self.sine = (2 * self.power / root.clamp(min=1e-300)).sqrt()  # sin mode
        self.mode = torch.atan2(self.sine, cosine)
        # Minus the second derivative of the log density at the mode.
        curvature = kappa * cosine + (root / 2 if self.power else 0)
        self.width = _HALF_WIDTH * curvature.rsqrt()

    def __call__(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """The density and the offset cos a - cos mode, at angles of shape (rows, ...)."""
        kappa, mode, sine = (v.view(-1, *[1] * (angle.ndim - 1)) for v in (self.kappa, self.mode, self.sine))
        offset = -2 * torch.sin((angle + mode) / 2) * torch.sin((angle - mode) / 2)  # without cancellation
        exponent = kappa * offset
        if self.power:
            exponent = exponent + self.power * torch.log(torch.sin(angle) / sine)
        return exponent.exp(), offset

    def integrate(self, start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Integrals over [start, start + length] of the density, and of the density times the offset."""
        nodes, weights = start.new_tensor(_NODES), start.new_tensor(_WEIGHTS)
        density, offset = self(start.unsqueeze(-1) + length.unsqueeze(-1) * nodes)
        return length * (density @ weights), length * ((density * offset) @ weights)


def _invert(kappa: Tensor, uniform: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The angles where the distribution function equals ``uniform``, and their derivatives in kappa.

    ``kappa`` is (rows,), ``uniform`` and both results are (rows, count).
    """
    density = _Density(kappa, dim)
    low = (density.mode - density.width).clamp(min=0)  # (rows,)
    high = (density.mode + density.width).clamp(max=pi)
    width = ((high - low) / _CELLS).unsqueeze(1)  # of a cell, (rows, 1)
    starts = low.unsqueeze(1) + width * torch.arange(_CELLS, dtype=low.dtype, device=low.device)
    mass, moment = density.integrate(starts, width.expand_as(starts))  # (rows, cells)
    # (rows, cells + 1): integrals from the left end to each boundary between cells
    mass_below, moment_below = (torch.nn.functional.pad(v.cumsum(1), (1, 0)) for v in (mass, moment))
    total, mean = mass_below[:, -1:], moment_below[:, -1:] / mass_below[:, -1:]

    target = uniform * total  # (rows, count)
    cell = torch.searchsorted(mass_below.contiguous(), target, right=True).sub(1).clamp(0, _CELLS - 1)
    start, target_in_cell = starts.gather(1, cell), target - mass_below.gather(1, cell)
    step = width * (target_in_cell / mass.gather(1, cell)).clamp(0, 1)
    for _ in range(_NEWTON_STEPS):
        residual = density.integrate(start, step)[0] - target_in_cell
        slope = density(start + step)[0].clamp(min=1e-300)
        step = torch.minimum((step - residual / slope).clamp(min=0), width)
    mass_in_cell, moment_in_cell = density.integrate(start, step)
    # total dF/dkappa: the density times (cos a - mean cosine), integrated up to the angle
    slope_in_kappa = (moment_below.gather(1, cell) + moment_in_cell) - mean * (
        mass_below.gather(1, cell) + mass_in_cell
    )
    angle = start + step
    return angle, -slope_in_kappa / density(angle)[0].clamp(min=1e-300)
