"""log C and its derivative in one Triton kernel on a GPU, by the same steps as `spherecf.vmf.kernels`.

Every eager operation reads from and writes to memory; the kernel reads each argument once and writes its
value and derivative. Imported only where there is a GPU or Triton's interpreter, as it needs `triton`.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from spherecf.vmf.kernels import MAX_ARGUMENT, Plan

_BLOCK = 512


def evaluate(x: Tensor, plan: Plan, scaled: bool, with_slope: bool) -> tuple[Tensor, Tensor]:
    """`spherecf.vmf.kernels.evaluate` for a plan; without ``with_slope`` the second tensor is a view of x."""
    x = x.contiguous()
    value, slope = torch.empty_like(x), torch.empty_like(x) if with_slope else x.view_as(x)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _evaluate[(triton.cdiv(x.numel(), _BLOCK),)](
            x, value, slope, _constants(plan, x.dtype, x.device), x.numel(),
            MAX=MAX_ARGUMENT[x.dtype], STEPS=plan.steps, LOG=len(plan.log_series), MEAN=len(plan.mean_series),
            SCALED=scaled, WITH_SLOPE=with_slope, BLOCK=_BLOCK,
        )  # fmt: skip
    return value, slope


@cache
def _constants(plan: Plan, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The plan as one tensor: order, mu, 1 / mu, log_series, mean_series; series highest power first."""
    constants = [plan.order, plan.mu, 1 / plan.mu, *reversed(plan.log_series), *reversed(plan.mean_series)]
    return torch.tensor(constants, dtype=dtype, device=device)


@triton.jit
def _divide(x, y):  # type: ignore[no-untyped-def]
    """x / y, correctly rounded: Triton's plain division is only in float64."""
    return tl.div_rn(x, y) if x.dtype == tl.float32 else x / y


@triton.jit
def _root(x):  # type: ignore[no-untyped-def]
    """The square root, correctly rounded."""
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def _horner(t, coefficients, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """A polynomial in t; ``coefficients`` points to COUNT numbers, highest power first."""
    total = t * 0.0 + tl.load(coefficients)
    for i in tl.static_range(1, COUNT):
        total = total * t + tl.load(coefficients + i)
    return total


@triton.jit
def _evaluate(  # type: ignore[no-untyped-def]
    x, value, slope, constants, count,
    MAX: tl.constexpr, STEPS: tl.constexpr, LOG: tl.constexpr, MEAN: tl.constexpr,
    SCALED: tl.constexpr, WITH_SLOPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Value and derivative of BLOCK elements; names as in `spherecf.vmf.kernels._evaluate`."""
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    argument = tl.load(x + offsets, mask=mask, other=0.0)
    order, mu, inverse_mu = tl.load(constants), tl.load(constants + 1), tl.load(constants + 2)
    log_series, mean_series = constants + 3, constants + 3 + LOG
    one = tl.full(argument.shape, 1.0, argument.dtype)
    z = tl.minimum(argument, one * MAX)
    u = _divide(z, mu)
    t = _divide(one, _root(u * u + 1.0))
    sine = u * t
    half = _divide(one, t + 1.0)
    r = sine * half
    growth = _divide(argument, mu) * r if SCALED else u * r  # (s - mu) / mu
    # log1p(q): the rounding error of 1 + q is added back to the logarithm to first order.
    q = growth * 0.5
    one_plus_q = q + 1.0
    log_value = (order + 0.5) * (tl.log(one_plus_q) + _divide(q - (one_plus_q - 1.0), one_plus_q))
    log_value -= _horner(sine * r, log_series, LOG)
    derivative = r
    if WITH_SLOPE or STEPS > 0:
        correction = _horner(t, mean_series, MEAN) * t
    else:
        correction = r
    if SCALED:
        derivative = (half * t) * (1.0 + _divide(t, 1.0 + sine))
        log_value += z * derivative
        derivative += sine * correction * inverse_mu
    else:
        log_value -= growth * mu + (argument - z)
        derivative = (correction * inverse_mu - half) * sine
    if STEPS > 0:
        ratio = 1.0 - derivative if SCALED else -derivative
        share = half * t
        product = one
        for step in tl.static_range(STEPS):
            k = order + (STEPS - step)
            b = z * ratio + 2.0 * k
            product = product * b * _divide(share, k)
            ratio = _divide(z, b)
            if SCALED:
                derivative = _divide(2.0 * k - z * derivative, b)
        log_value -= tl.log(product)
        if not SCALED:
            derivative = -ratio
    if SCALED:
        derivative = tl.where(argument > z, derivative * _divide(z, argument), derivative)
    outside = (argument >= 0.0) == 0  # negative or NaN
    tl.store(value + offsets, tl.where(outside, float("nan"), log_value), mask=mask)
    if WITH_SLOPE:
        tl.store(slope + offsets, tl.where(outside, float("nan"), derivative), mask=mask)
