"""log C and its derivative on a GPU in one Triton kernel: what `spherecf.vmf.kernels` computes, step by step.

Eager operations would each travel to memory and back; here a value is read once and two are written. Imported
where there is a GPU or Triton's interpreter: needs `triton`.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from spherecf.vmf.kernels import LARGEST, Plan

_BLOCK = 512


def evaluate(x: Tensor, plan: Plan, scaled: bool, with_slope: bool) -> tuple[Tensor, Tensor]:
    """`spherecf.vmf.kernels.evaluate` of a plan."""
    x = x.contiguous()
    value, slope = torch.empty_like(x), torch.empty_like(x) if with_slope else x
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        _evaluate[(triton.cdiv(x.numel(), _BLOCK),)](
            x, value, slope, _numbers(plan, x.dtype, x.device), x.numel(),
            LARGEST=LARGEST[x.dtype], STEPS=plan.steps, LOG=len(plan.log_series), MEAN=len(plan.mean_series),
            SCALED=scaled, WITH_SLOPE=with_slope, BLOCK=_BLOCK,
        )  # fmt: skip
    return value, slope


@cache
def _numbers(plan: Plan, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Order, mu, 1 / mu and both series, highest power first."""
    numbers = [plan.order, plan.mu, 1 / plan.mu, *reversed(plan.log_series), *reversed(plan.mean_series)]
    return torch.tensor(numbers, dtype=dtype, device=device)


@triton.jit
def _divide(x, y):  # type: ignore[no-untyped-def]
    """Rounded as IEEE has it; float64 is anyhow."""
    return tl.div_rn(x, y) if x.dtype == tl.float32 else x / y


@triton.jit
def _root(x):  # type: ignore[no-untyped-def]
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def _horner(t, numbers, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    total = t * 0.0 + tl.load(numbers)
    for power in tl.static_range(1, COUNT):
        total = total * t + tl.load(numbers + power)
    return total


@triton.jit
def _evaluate(  # type: ignore[no-untyped-def]
    x, value, slope, numbers, count,
    LARGEST: tl.constexpr, STEPS: tl.constexpr, LOG: tl.constexpr, MEAN: tl.constexpr,
    SCALED: tl.constexpr, WITH_SLOPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    given = tl.load(x + at, mask=there, other=0.0)
    order, mu, inverse = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    log_series, mean_series = numbers + 3, numbers + 3 + LOG
    one = given * 0.0 + 1.0
    z = tl.minimum(given, one * LARGEST)
    u = _divide(z, mu)
    t = _divide(one, _root(u * u + 1.0))
    sine = u * t
    half = _divide(one, t + 1.0)
    r = sine * half
    growth = u * r  # (s - mu) / mu
    # log1p: what 1 + y lost is added to its logarithm.
    y = growth * 0.5
    above = y + 1.0
    rest = (order + 0.5) * (tl.log(above) + _divide(y - (above - 1.0), above))
    rest -= _horner(sine * r, log_series, LOG)
    slow = r
    if WITH_SLOPE or STEPS > 0:
        drop = _horner(t, mean_series, MEAN) * t
    else:
        drop = r
    if SCALED:
        slow = (half * t) * (1.0 + _divide(t, 1.0 + sine))
        rest += z * slow
        slow += sine * drop * inverse
    else:
        rest -= growth * mu + (given - z)
        slow = (drop * inverse - half) * sine
    if STEPS > 0:
        ratio = 1.0 - slow if SCALED else -slow
        share = half * t
        product = one
        for step in tl.static_range(STEPS):
            k = order + (STEPS - step)
            b = z * ratio + 2.0 * k
            product = product * b * _divide(share, k)
            ratio = _divide(z, b)
            if SCALED:
                slow = _divide(2.0 * k - z * slow, b)
        rest -= tl.log(product)
        if not SCALED:
            slow = -ratio
    negative = (given >= 0.0) == 0  # and NaN
    tl.store(value + at, tl.where(negative, float("nan"), rest), mask=there)
    if WITH_SLOPE:
        tl.store(slope + at, tl.where(negative, float("nan"), slow), mask=there)
