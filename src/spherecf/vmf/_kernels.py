"""Elementwise evaluation of log I, its ratio and the ratio's slope: one expression for all arguments.

Notation: R_k = I_{k+1} / I_k at order k, and its complement 1 - R_k, which is what keeps accuracy for large
x. A small order is reached from mu = order + steps by the backward recurrence (DLMF 10.29.1; stable in this
direction), with b = 2k + x R_k,

    R_{k-1} = x / b,   1 - R_{k-1} = (2k - x (1 - R_k)) / b,   R_{k-1}' = (2k - x^2 R_k') / b^2.

Nothing large cancels: values are relative to those at x = 0, and with u = x / mu = tan phi, so t = cos phi,

    r = x / (s + mu) = tan(phi / 2) = sin phi / (1 + t),   s - mu = mu u r,   1 - t = r sin phi,
    1 - r = t / (1 + t) (1 + t / (1 + sin phi)).
"""

from enum import Enum
from functools import cache

import torch
from torch import Tensor

from spherecf.vmf._series import Plan, make_plan

_CHUNK = 32768  # elements per pass in eager mode on the CPU: the intermediates then stay in the cache
_LARGEST = {torch.float32: 1e18, torch.float64: 1e150}  # beyond it u^2 would overflow; all is flat by then


class Form(Enum):
    """Which function and derivative a kernel returns; g(x) = C(x) / C(0)."""

    PLAIN = "log g and -R"
    SCALED = "log g + x and 1 - R"


def evaluate(x: Tensor, order: float, form: Form, with_slope: bool = True) -> tuple[Tensor, Tensor]:
    """log(C(x) / C(0)) and its derivative, plain or scaled, in one pass, for x of float32 or float64.

    C(x) = x^order / ((2 pi)^(order + 1) I_order(x)). Negative x and NaN give NaN. The second tensor is filled
    only if ``with_slope``.
    """
    plan = make_plan(order, x.dtype)
    if form is Form.SCALED and plan.steps and x.dtype == torch.float32:
        value, slope = evaluate(x.double(), order, form, with_slope)  # as in ratio_slope
        return value.float(), slope.float()
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return _evaluate(*_domain(x), plan, form, with_slope)
    x = x.contiguous()
    value, slope = torch.empty_like(x), torch.empty_like(x)
    for source, to_value, to_slope in zip(
        *(torch.split(v.view(-1), _CHUNK) for v in (x, value, slope)), strict=True
    ):
        z, excess = _domain(source)
        piece = _evaluate(z, excess, plan, form, with_slope)
        to_value.copy_(piece[0])
        to_slope.copy_(piece[1])
    return value, slope


def _domain(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """x with NaN for negative values, clamped to where nothing overflows, and what the clamp took away."""
    largest = _LARGEST[x.dtype]
    if not torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel():
        low, high = x.aminmax()
        if low >= 0 and high <= largest:  # as good as always, and much cheaper than what follows
            return x, None
    x = torch.where(x >= 0, x, torch.nan)
    z = x.clamp(max=largest)
    return z, x - z


def _evaluate(
    z: Tensor, excess: Tensor | None, plan: Plan, form: Form, with_slope: bool
) -> tuple[Tensor, Tensor]:
    scaled = form is Form.SCALED
    u = z * (1 / plan.mu)
    t = (u * u).add_(1).rsqrt_()
    sine = u * t
    half = (t + 1).reciprocal_()
    r = sine * half
    growth = u * r  # (s - mu) / mu
    rest = torch.log1p(growth * 0.5).mul_(plan.order + 0.5).sub_(horner(sine * r, plan.log_series))

    slope = r
    drop = horner(t, plan.mean_series).mul_(t) if with_slope or plan.steps else r  # mu (half - R / sine)
    if scaled:
        slope = (half * t) * (1 + t / (1 + sine))
        rest.addcmul_(z, slope)
        slope = slope.addcmul(sine, drop, value=1 / plan.mu)
    else:
        rest.sub_(growth, alpha=plan.mu)
        if excess is not None:
            rest.sub_(excess)
        slope = torch.sub(drop * (1 / plan.mu), half).mul_(sine)
    if plan.steps:
        ratio, complement = 1 - slope if scaled else -slope, slope
        share = half * t
        product = torch.ones_like(z)
        for k in _downwards(plan):
            b = z * ratio + 2 * k
            product = product * b * (share / k)
            ratio = z / b
            if scaled:
                complement = (2 * k - z * complement) / b
        rest.sub_(product.log())
        slope = complement if scaled else ratio.neg()
    return rest, slope


def ratio_slope(x: Tensor, order: float) -> Tensor:
    """R' of the ratio R = I_{order+1} / I_order: smooth tensor operations, differentiable at will."""
    if x.dtype == torch.float32 and make_plan(order, x.dtype).steps:
        # Each step of this recurrence amplifies rounding a little: too much for float32 where there are ten.
        return ratio_slope(x.double(), order).float()
    plan = make_plan(order, x.dtype)
    z, _ = _domain(x)
    s = (z * z + plan.mu**2).sqrt()
    t = plan.mu / s
    total = s + plan.mu
    slope: Tensor = (plan.mu / (1 + t) + horner(t, plan.slope_series)) / s / s
    if plan.steps:
        ratio = z / total - (z / s) / s * horner(t, plan.mean_series)
        for k in _downwards(plan):
            b = 2 * k + z * ratio
            ratio, slope = z / b, (2 * k - (z * slope) * z) / b / b
    return slope


def _downwards(plan: Plan) -> list[float]:
    """The orders from which each step of the recurrence starts, mu first."""
    return [plan.order + step for step in range(plan.steps, 0, -1)]


def horner(t: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """A polynomial's value in a new tensor; coefficients lowest power first."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or t.device.type != "cpu":
        total = torch.full_like(t, coefficients[-1])
        for c in reversed(coefficients[:-1]):
            total = total * t + c
        return total
    constants = _constants(coefficients, t.dtype)
    total = constants[-1].expand_as(t).clone()
    for constant in reversed(constants[:-1]):
        torch.addcmul(constant, total, t, out=total)  # one pass over memory and no new tensor
    return total


@cache
def _constants(coefficients: tuple[float, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(c, dtype=dtype) for c in coefficients)
