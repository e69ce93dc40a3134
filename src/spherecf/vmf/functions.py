"""Special functions of the von Mises-Fisher distribution, and an inverse, with gradients in closed form.

All take tensors of any shape, elementwise, and NumPy arrays, which they answer with arrays; ``dim`` and
``order`` are plain numbers. float32 and float64 keep their type; float16 and bfloat16 are computed in float32
and *return* float32 (log C_d in bfloat16 would be useless), and their gradient comes back in the input's
type. Integers are refused. NaN and negative arguments give NaN. Everything is finite for every finite
argument >= 0, gradients included, except log I itself, which is -inf at 0 for order > 0, as it must be.
"""

from collections.abc import Callable
from math import inf, isfinite, lgamma, log, pi
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.common.arrays import AnyArray, Array, as_tensor, like
from spherecf.errors import InputError
from spherecf.vmf.kernels import Form, evaluate, ratio_slope

_NUMBERS = (int, float, np.integer)


def log_bessel_i(
    order: float | int, x: Float[Array, "*batch"], scaled: bool = False
) -> Float[Array, "*batch"]:
    """log I_order(x), the modified Bessel function of the first kind; ``scaled``: log(exp(-x) I_order(x)).

    Uniform expansion for large orders (DLMF 10.41.3), smaller ones by backward recurrence (DLMF 10.29.1).

    Args:
        order: real number >= 0.
        x: >= 0, any shape. At 0 the value is 0 for order 0 and -inf for larger orders.

    Raises:
        InputError: the order is negative or not finite, or x is no tensor or array of floats.

    Example:
        >>> log_bessel_i(0.5, torch.tensor([1.0], dtype=torch.float64))  # log(sqrt(2 / pi) sinh 1)
        tensor([-0.0644], dtype=torch.float64)
    """
    if not (isfinite(order) and order >= 0):
        raise InputError(
            f"log_bessel_i: expected a finite order >= 0, got {order}. Pass dim / 2 - 1 for log C_d."
        )
    order, z = float(order), computable(x, "x")
    rest = -_log_relative(z, order, Form.SCALED if scaled else Form.PLAIN)
    return like(rest if order == 0 else rest + (order * torch.log(0.5 * z) - lgamma(order + 1)), x)


def log_normalizer(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """log C_d(kappa), C_d(k) = k^(d/2-1) / ((2 pi)^(d/2) I_{d/2-1}(k)); derivative -A_d(kappa).

    The density of the von Mises-Fisher distribution on the unit sphere is C_d(kappa) exp(kappa mu^T z) (Li et
    al., CVPR 2021, section 3). C_d(0) is one over the surface area of the sphere. With a gradient asked for,
    value and A_d are computed together in one pass.

    Args:
        kappa: concentration >= 0, any shape.
        dim: dimension d >= 2 of the space around the sphere.

    Raises:
        InputError: ``dim`` is not an integer >= 2, or kappa is no tensor or array of floats.

    Example:
        >>> log_normalizer(torch.tensor([0.0, 100.0]), dim=3)  # -log 4 pi at 0
        tensor([ -2.5310, -97.2327])
    """
    order, k = order_of(dim), computable(kappa, "kappa")
    return like(_log_relative(k, order, Form.PLAIN) + log_at_zero(order), kappa)


def log_normalizer_scaled(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """c(kappa) = log C_d(kappa) + kappa, the slowly varying part of log C_d; derivative 1 - A_d(kappa).

    Computed as such, without the cancellation of the sum: its absolute error is a few roundings of c itself,
        which is
    what the mutual likelihood score (Li et al., CVPR 2021, eq. 13) needs in float32. Grows like (d-1)/2 log
    kappa, up to kappa 1e18 (float32) or 1e150 (float64), beyond which it stays constant.

    Example:
        >>> log_normalizer_scaled(torch.tensor([1e8]), dim=3)  # log(kappa / 2 pi) for d = 3
        tensor([16.5828])
    """
    order, k = order_of(dim), computable(kappa, "kappa")
    return like(_log_relative(k, order, Form.SCALED) + log_at_zero(order), kappa)


def mean_resultant_length(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa) in [0, 1]: the expected cosine to the mean direction.

    Example:
        >>> mean_resultant_length(torch.tensor([0.0, 10.0]), dim=3)  # coth k - 1/k for d = 3
        tensor([0.0000, 0.9000])
    """
    return like(-_slope(computable(kappa, "kappa"), order_of(dim), Form.PLAIN, None), kappa)


def mean_resultant_complement(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """1 - A_d(kappa), accurate also where A_d rounds to 1: about (d-1) / (2 kappa) for large kappa.

    Example:
        >>> mean_resultant_complement(torch.tensor([1e8]), dim=3)
        tensor([1.0000e-08])
    """
    return like(_slope(computable(kappa, "kappa"), order_of(dim), Form.SCALED, None), kappa)


def mean_resultant_length_derivative(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """A_d'(kappa) = 1 - A_d^2 - (d-1)/kappa A_d, the variance of the cosine to the mean direction.

    That expression cancels at both ends; here the slope of the expansion itself is summed.

    Example:
        >>> mean_resultant_length_derivative(
        ...     torch.tensor([0.0, 1e6]), dim=3
        ... )  # 1/d at 0, (d-1)/(2 k^2) far out
        tensor([3.3333e-01, 1.0000e-12])
    """
    return like(ratio_slope(computable(kappa, "kappa"), order_of(dim)), kappa)


def product_concentration(
    kappa_a: Float[Tensor, "*#batch"],
    kappa_b: Float[Tensor, "*#batch"],
    near: Float[Tensor, "*#batch"],
    far: Float[Tensor, "*#batch"],
    smallest: float = 1e-24,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Concentration p = |k_a mu_a + k_b mu_b| of the product of two densities, p^2, and k_a + k_b - p.

    Natural parameters add, so vMF(mu_a, k_a) times vMF(mu_b, k_b) is a vMF of concentration p but for a
    factor, the mutual likelihood (Li et al., CVPR 2021, eq. 13); its logarithm is

        log C_d(k_a) + log C_d(k_b) - log C_d(p) = c(k_a) + c(k_b) - c(p) - (k_a + k_b - p)

    with c(k) = log C_d(k) + k (`log_normalizer_scaled`). Nothing cancels in

        p^2 = (k_a - k_b)^2 + 2 k_a k_b (1 + cos),    k_a + k_b - p = 2 k_a k_b (1 - cos) / (k_a + k_b + p)

    so float32 is enough. Every form of that score, its loss and its bounds is made of these three.

    Args:
        kappa_a, kappa_b: concentrations, broadcast.
        near: 1 + cos, cos between the two directions.
        far: 1 - cos; both are asked for, since at cos near 1 or -1 the caller may know one of them better.
        smallest: p^2 is held above it, which changes no value: the derivative of a root needs p > 0, and so
            does k_a = k_b = 0. With 0 the caller sees to that, and saves a pass over memory.

    Example:
        >>> one = torch.tensor([3.0]), torch.tensor([4.0]), torch.tensor([1.0]), torch.tensor([1.0])
        >>> [float(value) for value in product_concentration(*one)]  # at right angles
        [5.0, 25.0, 2.0]
    """
    product = 2 * kappa_a * kappa_b
    square = (kappa_a - kappa_b).square() + product * near
    p = (square.clamp_min(smallest) if smallest else square).sqrt()
    return p, square, product * far / (kappa_a + kappa_b + p)


def log_normalizer_relative(
    kappa: Float[Tensor, "*batch"], dim: int, scaled: bool
) -> Float[Tensor, "*batch"]:
    """log C_d(kappa) - log C_d(0) (plus kappa if ``scaled``), with small values accurate near kappa = 0."""
    form = Form.SCALED if scaled else Form.PLAIN
    return _log_relative(computable(kappa, "kappa"), order_of(dim), form)


class _LogRelative(torch.autograd.Function):
    """log g or log g + x. The derivative comes out of the same pass and is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: float, form: Form) -> Tensor:
        value, slope = evaluate(x, order, form, with_slope=ctx.needs_input_grad[0])
        ctx.save_for_backward(x, slope)
        ctx.order, ctx.form = order, form
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, slope = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            slope = _slope(x, ctx.order, ctx.form, slope)
        return grads[0] * slope, None, None


class _Slope(torch.autograd.Function):
    """-R or 1 - R (already ``known``, or computed here); both have derivative -R'."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: float, form: Form, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.order = order
        return evaluate(x, order, form)[1] if known is None else known.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return -grads[0] * ratio_slope(x, ctx.order), None, None, None


_log_relative: Callable[..., Tensor] = _LogRelative.apply
_slope: Callable[..., Tensor] = _Slope.apply


def log_at_zero(order: float) -> float:
    """log C_d(0) = -log of the surface area of the unit sphere."""
    return lgamma(order + 1) - (order + 1) * log(pi) - log(2)


def order_of(dim: Any) -> float:
    number = isinstance(dim, _NUMBERS) and not isinstance(dim, bool)
    if not (number and 2 <= dim < inf and int(dim) == dim):
        raise InputError(f"expected dim, the number of coordinates, as an integer >= 2; got {dim!r}.")
    return int(dim) / 2 - 1


def computable(x: AnyArray, name: str) -> Tensor:
    """A tensor of float32 or float64."""
    tensor = as_tensor(x, name)
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


_NEWTON_STEPS = 5


def inverse_mean_resultant_length(rho: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """kappa with A_d(kappa) = rho, for rho in [0, 1]; derivative 1 / A_d'(kappa).

    Amos' bounds x / (a + sqrt(x^2 + b^2)) of A_d (1974), inverted with a = (d-1)/2 and b = (d+1)/2, are right
    at both ends; a fixed number of Newton steps on 1 - A_d, which stays accurate near 1, makes it exact to
    rounding.

    Args:
        rho: any shape. 1 gives inf, values outside [0, 1] and NaN give NaN.
        dim: dimension d >= 2.

    Example:
        >>> inverse_mean_resultant_length(torch.tensor([0.0, 0.5, 0.9]), dim=512)
        tensor([   0.0000,  341.0670, 2421.0229])
    """
    order, r = order_of(dim), computable(rho, "rho")
    return like(_inverse(r.double(), order).to(r.dtype), rho)  # ill-conditioned near 1, never in a hot loop


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rho: Tensor, order: float) -> Tensor:
        rest = 1 - rho  # exact for rho >= 1/2
        kappa = _first_guess(rho, rest, order)
        for _ in range(_NEWTON_STEPS):
            plain = evaluate(kappa, order, Form.PLAIN)[1]
            scaled = evaluate(kappa, order, Form.SCALED)[1]
            # A - rho from whichever side is the smaller number.
            miss = torch.where(rho < 0.5, -plain - rho, rest - scaled)
            kappa = (kappa - miss / ratio_slope(kappa, order)).clamp(min=0)
        kappa = torch.where(rho == 1, torch.inf, kappa)
        kappa = torch.where((rho >= 0) & (rho <= 1), kappa, torch.nan)
        ctx.save_for_backward(kappa)
        ctx.order = order
        return kappa

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (kappa,) = ctx.saved_tensors
        return grads[0] / ratio_slope(kappa, ctx.order), None


_inverse: Callable[..., Tensor] = _Inverse.apply


def _first_guess(rho: Tensor, rest: Tensor, order: float) -> Tensor:
    a, b = order + 0.5, order + 1.5
    gap = rest * (1 + rho)  # 1 - rho^2
    return rho * (a + (a * a + gap * (b * b - a * a)).sqrt()) / gap.clamp(min=torch.finfo(rho.dtype).tiny)
