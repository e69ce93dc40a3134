"""Elementwise evaluation of log I, its ratio and the ratio's slope: one expression for all arguments.

Notation: R_k = I_{k+1} / I_k at order k, and its complement 1 - R_k, which is what keeps accuracy for large
x. A small order is reached from mu = order + steps by the backward recurrence (DLMF 10.29.1; stable in this
direction)

    R_{k-1} = x / b,   1 - R_{k-1} = (2k - x (1 - R_k)) / b,   R_{k-1}' = (2k - x^2 R_k') / b^2,   b = 2k + x
    R_k.

Nothing large cancels: s - mu is written as x^2 / (s + mu), and values are relative to those at x = 0.
"""

from enum import Enum

import torch
from torch import Tensor

from spherecf.vmf._series import Plan, make_plan

_CHUNK = 16384  # elements per pass in eager mode on the CPU: the intermediates then stay in the cache
_LARGEST = {
    torch.float32: 1e18,
    torch.float64: 1e150,
}  # beyond it s would overflow; everything is flat by then


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
    s = (z * z + plan.mu**2).sqrt()
    inverse = s.reciprocal()
    t = inverse * plan.mu
    total = s + plan.mu
    r = z / total
    shrink = z * r  # s - mu
    rest = horner(t, plan.log_series).add_(t.log(), alpha=0.5).neg_()
    if plan.order:
        rest.add_(torch.log1p(shrink * (0.5 / plan.mu)), alpha=plan.order)

    ratio = complement = drop = r
    if with_slope or plan.steps:
        drop = horner(t, plan.mean_series).mul_(z).mul_(inverse).mul_(inverse)
        ratio = r - drop
    if scaled:
        complement = (plan.mu / total) * (1 + plan.mu / (s + z))
        rest.addcmul_(z, complement)
        complement = complement + drop
    else:
        rest.sub_(shrink)
        if excess is not None:
            rest.sub_(excess)
    if plan.steps:
        share = plan.mu / total
        product = torch.ones_like(z)
        for k in _downwards(plan):
            b = z * ratio + 2 * k
            product = product * b * (share / k)
            ratio = z / b
            if scaled:
                complement = (2 * k - z * complement) / b
        rest.sub_(product.log())
    return rest, complement if scaled else ratio.neg()


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
    """A polynomial's value; coefficients lowest power first."""
    *rest, highest = coefficients
    if not rest:
        return torch.full_like(t, highest)
    total = t * highest
    for c in reversed(rest[1:]):
        total = (total + c) * t
    return total + rest[0]
