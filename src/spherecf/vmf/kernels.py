"""Elementwise evaluation of log I, its ratio and the ratio's derivative, by the uniform (Debye) expansion.

For large order mu and any argument x, with s = sqrt(mu^2 + x^2) and t = mu / s (DLMF 10.41.3, in log form),

    log I_mu(x) = s + mu log(x / (mu + s)) - log(2 pi s) / 2 + F(t),    F(t) = sum_k D_k(t) / mu^k.

The functions here return log g with g(x) = C(x) / C(0) = (x/2)^mu / (Gamma(mu + 1) I_mu(x)), so log g(0) = 0.
With q = (s - mu) / 2 mu = (1 - t) / 2t, its logarithms combine into one and a smooth function of t:

    mu log(1 + q) - log(t) / 2 = (mu + 1/2) log(1 + q) - log((1 + t) / 2) / 2,
    log g_mu(x) = (mu + 1/2) log(1 + q) - (s - mu) - (log((1 + t) / 2) / 2 + F(t) - F(1)).

The k-th term of F is of order 1 / s^k, so one expression holds from x = 0 to infinity, without a switch
between regimes.

Notation: R_k = I_{k+1} / I_k. Its complement 1 - R_k is computed as well, to keep accuracy where x is large.
A small order is reached from mu = order + steps by the backward recurrence (DLMF 10.29.1; stable in this
direction), with b = 2k + x R_k,

    R_{k-1} = x / b,   1 - R_{k-1} = (2k - x (1 - R_k)) / b,   R_{k-1}' = (2k - x^2 R_k') / b^2,
    g_{k-1} = g_k 2k / b.

No large terms cancel: values are relative to those at x = 0, and with u = x / mu = tan phi and t = cos phi,

    r = x / (s + mu) = tan(phi / 2) = sin phi / (1 + t),   s - mu = mu u r,   1 - t = r sin phi,
    1 - r = t / (1 + t) (1 + t / (1 + sin phi)).
"""

from collections.abc import Callable
from enum import Enum
from fractions import Fraction
from functools import cache, partial
from itertools import takewhile
from math import ceil, cos, fsum, log, pi
from typing import NamedTuple

import torch
from torch import Tensor

from spherecf.common.arrays import triton_runs_on

_Polynomial = dict[int, Fraction]  # power of t -> coefficient

# Per type: the smallest order that is expanded (smaller ones are shifted up and brought back by recurrence),
# and the tolerance below which terms are left out. At that order the terms still decrease where they reach
# the tolerance.
_LIMITS = {torch.float32: (10, 3e-8), torch.float64: (24, 6e-17)}
_MAX_TERMS = 16
_CHEBYSHEV_NODES = 40
_NOISE = 6e-17  # rounding error of the Chebyshev weights, which are sums of floats


class Plan(NamedTuple):
    """The constants that evaluate one order. Polynomials are tuples of coefficients, lowest power first."""

    order: float
    steps: int  # recurrence steps from mu down to order
    mu: float  # order + steps, the order of the expansion
    log_series: tuple[float, ...]  # F(t) - F(1) + log((1 + t) / 2) / 2, in powers of 1 - t
    mean_series: tuple[float, ...]  # Q = 1/2 + t F', in powers of t
    slope_series: tuple[float, ...]  # (1 - t^2) (2 Q + t Q') - Q, in powers of t


def make_plan(order: float, dtype: torch.dtype) -> Plan:
    """The plan for an order and type: cached, and a constant under torch.compile."""
    return _make_plan(order, dtype)


# The effect of torch.compiler.assume_constant_result, without importing the compiler, which takes 1.4 s.
make_plan._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _make_plan(order: float, dtype: torch.dtype) -> Plan:
    min_order, tolerance = _LIMITS[dtype]
    steps = max(0, ceil(min_order - order))
    mu = Fraction(order) + steps
    terms = [_scale(d, mu**-k) for k, d in enumerate(_debye_terms(_MAX_TERMS), 1)]
    # |log C| grows with the order, so its tolerance may, too.
    log_tolerance = tolerance * float(mu) / min_order
    series = _add(*_leading_terms(terms, log_tolerance))
    log_series = _economise(lambda y: _value(series, 1 - y) + log(1 - y / 2) / 2, log_tolerance)
    log_series[0] = Fraction(0)  # subtracts F(1): exactly 0 at x = 0
    # t F' enters R with the factor t / mu.
    mean = _add({0: Fraction(1, 2)}, *_leading_terms([_times_slope(d) for d in terms], tolerance * float(mu)))
    inner = _add(_scale(mean, Fraction(2)), _times_slope(mean))  # 2 Q + t Q'
    slope = _add(_scale(mean, Fraction(-1)), _multiply({0: Fraction(1), 2: Fraction(-1)}, inner))
    mean, slope = (_economise(partial(_value, series), tolerance * float(mu)) for series in (mean, slope))
    return Plan(order, steps, float(mu), _floats(log_series), _floats(mean), _floats(slope))


@cache
def _debye_terms(count: int) -> list[_Polynomial]:
    """The polynomials D_1 .. D_count of the expansion, the logarithmic form of DLMF 10.41.9.

    With a = t^2 (1 - t^2) / 2 the differential equation of I_mu becomes the recurrence

        D_1' = (1 - 5 t^2) / 8,    D_{k+1}' = a' D_k' + a (D_k'' + sum_{i+j=k} D_i' D_j').
    """
    half = Fraction(1, 2)
    a = {2: half, 4: -half}
    slopes: list[_Polynomial] = [{0: Fraction(1, 8), 2: Fraction(-5, 8)}]
    for k in range(1, count):
        products = (_multiply(slopes[i], slopes[k - 2 - i]) for i in range(k - 1))
        inner = _add(_differentiate(slopes[-1]), *products)
        slopes.append(_add(_multiply(_differentiate(a), slopes[-1]), _multiply(a, inner)))
    return [{power + 1: c / (power + 1) for power, c in slope.items()} for slope in slopes]


def _leading_terms(terms: list[_Polynomial], tolerance: float) -> list[_Polynomial]:
    """The terms before the first whose maximum absolute value on [0, 1] is below the tolerance."""
    grid = [i / 32 for i in range(33)]
    return list(takewhile(lambda term: max(abs(_value(term, t)) for t in grid) >= tolerance, terms))


def _economise(function: Callable[[float], float], tolerance: float) -> _Polynomial:
    """The function's Chebyshev series on [0, 1], without trailing weights below the tolerance, in powers."""
    n = _CHEBYSHEV_NODES
    # Indices k (2 i + 1) are reduced modulo 4 n, so that no large angle is rounded.
    cosine = [cos(pi * i / (2 * n)) for i in range(4 * n)]
    values = [function((1 + cosine[2 * i + 1]) / 2) for i in range(n)]
    weights = [
        fsum(v * cosine[k * (2 * i + 1) % (4 * n)] for i, v in enumerate(values)) * 2 / n for k in range(n)
    ]
    weights[0] /= 2
    while len(weights) > 1 and abs(weights[-1]) < max(tolerance, _NOISE):
        weights.pop()
    total: _Polynomial = {}
    # Chebyshev polynomials T_k(2 t - 1) by T_{k+1} = 2 (2 t - 1) T_k - T_{k-1}.
    current, following = {0: Fraction(1)}, {0: Fraction(-1), 1: Fraction(2)}
    double = {0: Fraction(-2), 1: Fraction(4)}
    for weight in weights:
        total = _add(total, _scale(current, Fraction(weight)))
        current, following = following, _add(_multiply(double, following), _scale(current, Fraction(-1)))
    return total


def _value(polynomial: _Polynomial, t: float) -> float:
    """P(t), summed in exact arithmetic because the large terms of high powers cancel."""
    exact, total = Fraction(t), Fraction(0)
    for power in range(max(polynomial, default=0), -1, -1):
        total = total * exact + polynomial.get(power, 0)
    return float(total)


def _add(*polynomials: _Polynomial) -> _Polynomial:
    total: _Polynomial = {}
    for polynomial in polynomials:
        for power, c in polynomial.items():
            total[power] = total.get(power, Fraction(0)) + c
    return total


def _multiply(left: _Polynomial, right: _Polynomial) -> _Polynomial:
    return _add(*({i + j: c * e for j, e in right.items()} for i, c in left.items()))


def _scale(polynomial: _Polynomial, factor: Fraction) -> _Polynomial:
    return {power: c * factor for power, c in polynomial.items()}


def _differentiate(polynomial: _Polynomial) -> _Polynomial:
    return {power - 1: power * c for power, c in polynomial.items() if power}


def _times_slope(polynomial: _Polynomial) -> _Polynomial:
    """t P'(t)."""
    return {power: power * c for power, c in polynomial.items()}


def _floats(polynomial: _Polynomial) -> tuple[float, ...]:
    """All coefficients as floats, lowest power first."""
    return tuple(float(polynomial.get(power, 0)) for power in range(max(polynomial) + 1))


_CHUNK = 32768  # elements per pass in eager mode on the CPU, so that the intermediates stay in the cache
# Larger arguments are clamped, because u^2 would overflow; R is 1 to rounding there, and log g + x and 1 - R
# are continued by their asymptotes.
MAX_ARGUMENT = {torch.float32: 1e18, torch.float64: 1e150}


class Form(Enum):
    """The function and derivative that a kernel returns; g(x) = C(x) / C(0), R = I_{order+1} / I_order."""

    PLAIN = "log g and -R"
    SCALED = "log g + x and 1 - R"


def evaluate(x: Tensor, order: float, form: Form, with_slope: bool = True) -> tuple[Tensor, Tensor]:
    """log(C(x) / C(0)) and its derivative in one pass, plain or scaled, for x in float32 or float64.

    C(x) = x^order / ((2 pi)^(order + 1) I_order(x)). Negative x and NaN give NaN. Both results have the shape
    of x; the second is meaningful only if ``with_slope``.
    """
    plan = make_plan(order, x.dtype)
    if form is Form.SCALED and plan.steps and x.dtype == torch.float32:
        value, slope = evaluate(x.double(), order, form, with_slope)  # for the reason given in ratio_slope
        return value.float(), slope.float()
    if not torch.compiler.is_compiling() and type(x) is Tensor and x.numel() and triton_runs_on(x.device):
        from spherecf.vmf import fused

        return fused.evaluate(x, plan, form is Form.SCALED, with_slope)
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return _evaluate(*_domain(x), plan, form, with_slope)
    x = x.contiguous()
    value, slope = torch.empty_like(x), torch.empty_like(x)
    for x_chunk, value_chunk, slope_chunk in zip(
        *(torch.split(v.view(-1), _CHUNK) for v in (x, value, slope)), strict=True
    ):
        results = _evaluate(*_domain(x_chunk), plan, form, with_slope)
        value_chunk.copy_(results[0])
        slope_chunk.copy_(results[1])
    return value, slope


def _domain(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """x clamped to `MAX_ARGUMENT`, with NaN for negative values, and the excess that the clamp removed.

    The excess is None if nothing changed.
    """
    limit = MAX_ARGUMENT[x.dtype]
    if not torch.compiler.is_compiling() and x.device.type == "cpu" and x.numel():
        low, high = x.aminmax()
        if low >= 0 and high <= limit:  # the usual case, and much cheaper than the passes below
            return x, None
    x = torch.where(x >= 0, x, torch.nan)
    z = x.clamp(max=limit)
    return z, x - z


def _evaluate(
    z: Tensor, excess: Tensor | None, plan: Plan, form: Form, with_slope: bool
) -> tuple[Tensor, Tensor]:
    """`evaluate` for arguments that `_domain` has clamped, by the formulas at the top of this file."""
    scaled = form is Form.SCALED
    u = z * (1 / plan.mu)  # tan phi
    t = (u * u).add_(1).rsqrt_()  # cos phi
    sine = u * t
    half = (t + 1).reciprocal_()  # 1 / (1 + t), 1/2 at x = 0
    r = sine * half
    x = None if excess is None else z + excess
    # (s - mu) / mu = 2 q. In the scaled form only the logarithm needs it, so it need not be clamped.
    growth = x * (1 / plan.mu) * r if scaled and x is not None else u * r
    log_value = torch.log1p(growth * 0.5).mul_(plan.order + 0.5).sub_(_fast_horner(sine * r, plan.log_series))

    slope = r
    # With this correction, the ratio R is sine (half - correction / mu).
    correction = _fast_horner(t, plan.mean_series).mul_(t) if with_slope or plan.steps else r
    if scaled:
        slope = (half * t) * (1 + t / (1 + sine))  # 1 - r, and x - (s - mu) = x (1 - r)
        log_value.addcmul_(z, slope)
        slope = slope.addcmul(sine, correction, value=1 / plan.mu)
    else:
        log_value.sub_(growth, alpha=plan.mu)
        if excess is not None:
            log_value.sub_(excess)
        slope = torch.sub(correction * (1 / plan.mu), half).mul_(sine)
    if plan.steps:
        ratio, complement = 1 - slope if scaled else -slope, slope
        # g_{k-1} = g_k 2k / b. The logarithm above has order + 1/2 in place of mu + 1/2: each step supplies
        # one of the missing factors 1 + q, through share = 1 / (2 (1 + q)), which keeps the product in range.
        share = half * t
        product = torch.ones_like(z)
        for k in _descending_orders(plan):
            b = z * ratio + 2 * k
            product = product * b * (share / k)
            ratio = z / b
            if scaled:
                complement = (2 * k - z * complement) / b
        log_value.sub_(product.log())
        slope = complement if scaled else ratio.neg()
    if scaled and x is not None:
        slope = torch.where(x > z, slope * (z / x), slope)  # 1 - R falls like 1 / x
    return log_value, slope


def ratio_slope(x: Tensor, order: float) -> Tensor:
    """The derivative R' of R = I_{order+1} / I_order, as operations that autograd can differentiate."""
    if x.dtype == torch.float32 and make_plan(order, x.dtype).steps:
        # Each step of the recurrence amplifies rounding a little; ten steps are too many for float32.
        return ratio_slope(x.double(), order).float()
    plan = make_plan(order, x.dtype)
    z = torch.where(x >= 0, x, torch.nan).clamp(max=MAX_ARGUMENT[x.dtype])
    s = (z * z + plan.mu**2).sqrt()
    t = plan.mu / s
    total = s + plan.mu
    slope: Tensor = (plan.mu / (1 + t) + horner(t, plan.slope_series)) / s / s
    if plan.steps:
        ratio = z / total - (z / s) / s * horner(t, plan.mean_series)
        for k in _descending_orders(plan):
            b = 2 * k + z * ratio
            ratio, slope = z / b, (2 * k - (z * slope) * z) / b / b
    return slope


def _descending_orders(plan: Plan) -> list[float]:
    """The order k from which each step of the recurrence goes to k - 1: mu first, order + 1 last."""
    return [plan.order + step for step in range(plan.steps, 0, -1)]


def horner(t: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """The value of a polynomial at t, in a new tensor; coefficients lowest power first."""
    total = torch.full_like(t, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * t + c
    return total


def _fast_horner(t: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """`horner` without gradients: on the CPU, one pass over memory per coefficient, and no other tensor."""
    if torch.compiler.is_compiling() or type(t) is not Tensor or t.device.type != "cpu":
        return horner(t, coefficients)
    constants = _constants(coefficients, t.dtype)
    total = constants[-1].expand_as(t).clone()
    for constant in reversed(constants[:-1]):
        torch.addcmul(constant, total, t, out=total)
    return total


@cache
def _constants(coefficients: tuple[float, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(c, dtype=dtype, device="cpu") for c in coefficients)
