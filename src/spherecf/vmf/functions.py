"""Special functions of the von Mises-Fisher distribution, with gradients in closed form.

All functions are elementwise and take tensors or NumPy arrays of any shape, returning tensors for tensors and
arrays for arrays; ``dim`` and ``order`` are plain numbers. float32 and float64 keep their type. float16 and
bfloat16 are computed in float32 and *return* float32, because log C_d would have too few digits in half
precision; their gradients have the input's type. Integers are refused. NaN and negative arguments give NaN.
Values and gradients are finite for every finite argument >= 0, except log I_order at 0 for order > 0 (-inf).
torch.compile and the transforms of torch.func (vmap, grad, jacfwd, ...) work on all of them.
"""

from math import inf, lgamma, log, nan, pi
from operator import index
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.common.arrays import Array, match_input_type, widen
from spherecf.errors import InputError
from spherecf.vmf.kernels import Form, evaluate, ratio_slope

_DIM_TYPES = (int, float, np.integer)
_MAX_SIZE = 2**53  # of a dim or an order: beyond it floats do not hold every integer


def log_bessel_i(
    order: float | int, x: Float[Array, "*batch"], scaled: bool = False
) -> Float[Array, "*batch"]:
    """log I_order(x), the logarithm of the modified Bessel function of the first kind.

    Large orders use the uniform expansion (DLMF 10.41.3), smaller ones a backward recurrence from there (DLMF
    10.29.1).

    Args:
        order: real number >= 0.
        x: >= 0, any shape. At 0 the value is 0 for order 0 and -inf for larger orders.
        scaled: return log(exp(-x) I_order(x)), which stays accurate for large x.

    Raises:
        InputError: the order is not one number from 0 to 2^53, or x is not a tensor or array of floats.

    Example:
        >>> log_bessel_i(0.5, torch.tensor([1.0], dtype=torch.float64))  # log(sqrt(2 / pi) sinh 1)
        tensor([-0.0644], dtype=torch.float64)
    """
    order, z = _checked_order(order), widen(x, "x")
    # The logarithm of I_order(x) over its leading term (x / 2)^order / Gamma(order + 1) at 0.
    result = -_log_relative(z, order, Form.SCALED if scaled else Form.PLAIN)
    if order:
        result = result + (order * torch.log(0.5 * z) - lgamma(order + 1))
        if scaled:
            result = torch.where(z == inf, -inf, result)  # not the difference of two infinite terms
    return match_input_type(result, x)


def _checked_order(order: Any) -> float:
    try:
        value = nan if isinstance(order, str) else float(order)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        value = nan
    if not 0 <= value <= _MAX_SIZE:
        raise InputError(
            f"log_bessel_i: expected a finite order >= 0, at most 2^53, got {order!r}. Pass dim / 2 - 1 for "
            "log C_d."
        )
    return value


def log_normalizer(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """The log normaliser log C_d(kappa) of the density C_d(kappa) exp(kappa mu^T z) on the unit sphere.

        C_d(k) = k^(d/2-1) / ((2 pi)^(d/2) I_{d/2-1}(k)),    d/dk log C_d(k) = -A_d(k)

    (Li et al., CVPR 2021, section 3). C_d(0) is one over the surface area of the sphere. If kappa requires a
    gradient, value and A_d are computed together in one pass.

    Args:
        kappa: concentration >= 0, any shape.
        dim: dimension d >= 2 of the space in which the sphere is embedded.

    Raises:
        InputError: ``dim`` is not an integer >= 2, or kappa is not a tensor or array of floats.

    Example:
        >>> log_normalizer(torch.tensor([0.0, 100.0]), dim=3)  # -log 4 pi at 0
        tensor([ -2.5310, -97.2327])
    """
    order, k = bessel_order(dim), widen(kappa, "kappa")
    return match_input_type(_log_relative(k, order, Form.PLAIN) + log_normalizer_at_zero(order), kappa)


def log_normalizer_scaled(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """c(kappa) = log C_d(kappa) + kappa, the slowly varying part of log C_d; derivative 1 - A_d(kappa).

    It is computed directly, without the cancellation of the sum, so its absolute error is a few roundings of
    c itself. The mutual likelihood score (Li et al., CVPR 2021, eq. 13) needs this accuracy in float32. For
    large kappa, c grows like (d-1)/2 log kappa.

    Args:
        kappa, dim: as in `log_normalizer`, with the same errors.

    Example:
        >>> log_normalizer_scaled(torch.tensor([1e8]), dim=3)  # log(kappa / 2 pi) for d = 3
        tensor([16.5828])
    """
    order, k = bessel_order(dim), widen(kappa, "kappa")
    return match_input_type(_log_relative(k, order, Form.SCALED) + log_normalizer_at_zero(order), kappa)


def mean_resultant_length(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa), the expected cosine of a sample to the mean direction.

    The values are in [0, 1]. Derivative: `mean_resultant_length_derivative`.

    Args:
        kappa, dim: as in `log_normalizer`, with the same errors.

    Example:
        >>> mean_resultant_length(torch.tensor([0.0, 10.0]), dim=3)  # coth k - 1/k for d = 3
        tensor([0.0000, 0.9000])
    """
    return match_input_type(-_slope(widen(kappa, "kappa"), bessel_order(dim), Form.PLAIN, None), kappa)


def mean_resultant_complement(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """1 - A_d(kappa), accurate even where A_d rounds to 1; about (d-1) / (2 kappa) for large kappa.

    Args:
        kappa, dim: as in `log_normalizer`, with the same errors.

    Example:
        >>> mean_resultant_complement(torch.tensor([1e8]), dim=3)
        tensor([1.0000e-08])
    """
    return match_input_type(_slope(widen(kappa, "kappa"), bessel_order(dim), Form.SCALED, None), kappa)


def mean_resultant_length_derivative(kappa: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """A_d'(kappa) = 1 - A_d^2 - (d-1)/kappa A_d, the variance of a sample's cosine to the mean direction.

    That expression cancels for small and for large kappa; the derivative of the expansion is summed instead.

    Args:
        kappa, dim: as in `log_normalizer`, with the same errors.

    Example:
        >>> kappa = torch.tensor([0.0, 1e6])
        >>> mean_resultant_length_derivative(kappa, dim=3)  # 1/d at 0, (d-1)/(2 k^2) for large k
        tensor([3.3333e-01, 1.0000e-12])
    """
    return match_input_type(ratio_slope(widen(kappa, "kappa"), bessel_order(dim)), kappa)


def product_concentration(
    kappa_a: Float[Tensor, "*#batch"],
    kappa_b: Float[Tensor, "*#batch"],
    one_plus_cosine: Float[Tensor, "*#batch"],
    one_minus_cosine: Float[Tensor, "*#batch"],
    min_square: float = 1e-24,
) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Concentration p = |k_a mu_a + k_b mu_b| of the product of two densities, p^2, and k_a + k_b - p.

    Natural parameters add: the product of vMF(mu_a, k_a) and vMF(mu_b, k_b) is a vMF density of concentration
    p times a factor, the mutual likelihood (Li et al., CVPR 2021, eq. 13). Its logarithm is, for r = 1,

        log C_d(k_a) + log C_d(k_b) - log C_d(p) = c(k_a) + c(k_b) - c(p) - (k_a + k_b - p)

    with c(k) = log C_d(k) + k (`log_normalizer_scaled`). Nothing cancels in

        p^2 = (k_a - k_b)^2 + 2 k_a k_b (1 + cos),    k_a + k_b - p = 2 k_a k_b (1 - cos) / (k_a + k_b + p)

    so float32 is enough. The score, its loss and its bounds are all computed from these three values.

    Args:
        kappa_a, kappa_b: concentrations >= 0, broadcast.
        one_plus_cosine: 1 + cos, where cos is the cosine between the two directions.
        one_minus_cosine: 1 - cos. Both are arguments because the caller may have either to more digits than
            the cosine itself gives.
        min_square: p^2 is clamped to this minimum under the root, because the derivative of the root and, for
            k_a = k_b = 0, the quotient need p > 0. The default changes no value. A caller that guarantees
            p > 0 passes 0 and saves a pass over memory.

    Example:
        >>> three, four, one = torch.tensor(3.0), torch.tensor(4.0), torch.tensor(1.0)
        >>> [float(v) for v in product_concentration(three, four, one, one)]  # at right angles
        [5.0, 25.0, 2.0]
    """
    product = 2 * kappa_a * kappa_b
    square = (kappa_a - kappa_b).square() + product * one_plus_cosine
    p = (square.clamp_min(min_square) if min_square else square).sqrt()
    return p, square, product * one_minus_cosine / (kappa_a + kappa_b + p)


def log_normalizer_relative(
    kappa: Float[Tensor, "*batch"], dim: int, scaled: bool
) -> Float[Tensor, "*batch"]:
    """log C_d(kappa) - log C_d(0), plus kappa if ``scaled``; near kappa = 0 the relative error is small."""
    form = Form.SCALED if scaled else Form.PLAIN
    return _log_relative(widen(kappa, "kappa"), bessel_order(dim), form)


# The transforms of torch.func need `setup_context`, and `vmap`, which for an elementwise function is the
# function itself. torch.compile cannot trace `jvp`, so the classes with it are used only outside.


class _LogRelative(torch.autograd.Function):
    """log g(x) or log g(x) + x, with g(x) = C(x) / C(0); see `Form`. The second result is for internal use.

    If ``with_slope``, it is the derivative, computed in the same pass and saved for the backward pass.
    """

    @staticmethod
    def forward(x: Tensor, order: float, form: Form, with_slope: bool) -> tuple[Tensor, Tensor]:
        return evaluate(x, order, form, with_slope)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, ctx.order, ctx.form, ctx.with_slope = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, slope = ctx.saved_tensors
        if not ctx.with_slope or (torch.is_grad_enabled() and not torch.compiler.is_compiling()):
            slope = _slope(x, ctx.order, ctx.form, slope if ctx.with_slope else None)
        return grads[0] * slope, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        return _apply(_LogRelative, _LogRelativeForwardMode)(*inputs), (in_dims[0], in_dims[0])


class _LogRelativeForwardMode(_LogRelative):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _LogRelative.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return tangents[0] * _slope(x, ctx.order, ctx.form, None), None


class _Slope(torch.autograd.Function):
    """The derivative of `_LogRelative`, -R or 1 - R with R = I_{order+1} / I_order; both have derivative -R'.

    ``precomputed`` is the value from an earlier pass, if there was one.
    """

    @staticmethod
    def forward(x: Tensor, order: float, form: Form, precomputed: Tensor | None) -> Tensor:
        return evaluate(x, order, form)[1] if precomputed is None else precomputed.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.order = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return -grads[0] * ratio_slope(x, ctx.order), None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, Any]:
        x, order, form, precomputed = inputs
        if in_dims[0] != in_dims[3]:
            precomputed = None
        return _slope(x, order, form, precomputed), in_dims[0]


class _SlopeForwardMode(_Slope):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Slope.setup_context(ctx, inputs, output)
        ctx.save_for_forward(inputs[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (x,) = ctx.saved_tensors
        tangent: Tensor = -tangents[0] * ratio_slope(x, ctx.order)
        return tangent


def _apply(plain: type, with_forward_mode: type) -> Any:
    """The function that computes one of these classes: torch.compile cannot trace those with a `jvp`."""
    cls: Any = plain if torch.compiler.is_compiling() else with_forward_mode
    return cls.apply


def _log_relative(x: Tensor, order: float, form: Form) -> Tensor:
    # While compiling always: the compiler removes what is not used.
    with_slope = torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled())
    value: Tensor = _apply(_LogRelative, _LogRelativeForwardMode)(x, order, form, with_slope)[0]
    return value


def _slope(x: Tensor, order: float, form: Form, precomputed: Tensor | None) -> Tensor:
    slope: Tensor = _apply(_Slope, _SlopeForwardMode)(x, order, form, precomputed)
    return slope


def log_normalizer_at_zero(order: float) -> float:
    """log C_d(0) for d = 2 order + 2: minus the log of the unit sphere's area, 2 pi^(d/2) / Gamma(d/2)."""
    return lgamma(order + 1) - (order + 1) * log(pi) - log(2)


def bessel_order(dim: Any) -> float:
    """The order d/2 - 1 of the Bessel function in C_d.

    Raises:
        InputError: ``dim`` is not an integer >= 2; a float such as 512.0 counts as one.
    """
    is_number = isinstance(dim, _DIM_TYPES) and not isinstance(dim, bool)
    if not (is_number and 2 <= dim <= _MAX_SIZE and int(dim) == dim):
        raise InputError(f"expected dim, the number of coordinates, as an integer >= 2; got {dim!r}.")
    return index(int(dim)) / 2 - 1  # torch.compile takes an index as a constant, a new one for each dim


_NEWTON_STEPS = 5


def inverse_mean_resultant_length(rho: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """The kappa with A_d(kappa) = rho, for rho in [0, 1]; derivative 1 / A_d'(kappa).

    The start value inverts the lower bound A_d(kappa) >= kappa / (a + sqrt(kappa^2 + b^2)), a = (d-1)/2 and
    b = (d+1)/2 (D. E. Amos, Math. Comp. 28, 1974), which is exact in the limits kappa -> 0 and infinity. A
    fixed number of Newton steps reaches rounding error; for rho >= 1/2 they solve for 1 - A_d, which is
    accurate near A_d = 1.

    Args:
        rho: any shape. 1 gives inf; values outside [0, 1] and NaN give NaN.
        dim: dimension d >= 2.

    Raises:
        InputError: as in `log_normalizer`.

    Example:
        >>> inverse_mean_resultant_length(torch.tensor([0.0, 0.5, 0.9]), dim=512)
        tensor([   0.0000,  341.0670, 2421.0229])
    """
    order, r = bessel_order(dim), widen(rho, "rho")
    # In float64, as the inverse is ill-conditioned near 1 and never part of a hot loop.
    return match_input_type(_inverse(r.double(), order).to(r.dtype), rho)


class _Inverse(torch.autograd.Function):
    """A_d^{-1}(rho) by Newton's method, rho in float64."""

    @staticmethod
    def forward(rho: Tensor, order: float) -> Tensor:
        complement = 1 - rho  # exact for rho >= 1/2
        kappa = _first_guess(rho, complement, order)
        for _ in range(_NEWTON_STEPS):
            minus_ratio = evaluate(kappa, order, Form.PLAIN)[1]  # -A_d
            one_minus_ratio = evaluate(kappa, order, Form.SCALED)[1]  # 1 - A_d
            # A_d - rho, as a difference of whichever of A_d and 1 - A_d is smaller.
            residual = torch.where(rho < 0.5, -minus_ratio - rho, complement - one_minus_ratio)
            kappa = (kappa - residual / ratio_slope(kappa, order)).clamp(min=0)
        kappa = torch.where(rho == 1, torch.inf, kappa)
        return torch.where((rho >= 0) & (rho <= 1), kappa, torch.nan)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(output)
        ctx.order = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (kappa,) = ctx.saved_tensors
        return grads[0] / ratio_slope(kappa, ctx.order), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, Any]:
        return _inverse(*inputs), in_dims[0]


class _InverseForwardMode(_Inverse):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Inverse.setup_context(ctx, inputs, output)
        ctx.save_for_forward(output)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (kappa,) = ctx.saved_tensors
        tangent: Tensor = tangents[0] / ratio_slope(kappa, ctx.order)
        return tangent


def _inverse(rho: Tensor, order: float) -> Tensor:
    kappa: Tensor = _apply(_Inverse, _InverseForwardMode)(rho, order)
    return kappa


def _first_guess(rho: Tensor, complement: Tensor, order: float) -> Tensor:
    """The positive root kappa of rho (a + sqrt(kappa^2 + b^2)) = kappa."""
    a, b = order + 0.5, order + 1.5
    gap = complement * (1 + rho)  # 1 - rho^2
    return rho * (a + (a * a + gap * (b * b - a * a)).sqrt()) / gap.clamp(min=torch.finfo(rho.dtype).tiny)
