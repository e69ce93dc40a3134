"""Elementwise evaluation of log I, its ratio and the ratio's slope, by the uniform (Debye) expansion.

For large order mu and any argument x, with s = sqrt(mu^2 + x^2) and t = mu / s (DLMF 10.41.3, in log form),

    log I_mu(x) = s + mu log(x / (mu + s)) - log(2 pi s) / 2 + F(t),    F(t) = sum_k D_k(t) / mu^k.

Relative to x = 0, with q = (s - mu) / 2 mu = (1 - t) / 2t, the logarithms combine into one and a smooth rest:

    mu log(1 + q) - log(t) / 2 = (mu + 1/2) log(1 + q) - log((1 + t) / 2) / 2.

The parameter of the series is 1 / s, so one expression serves from x = 0 to infinity: no regimes, no seams.

Notation: R_k = I_{k+1} / I_k at order k, and its complement 1 - R_k, which is what keeps accuracy for large
x. A small order is reached from mu = order + steps by the backward recurrence (DLMF 10.29.1; stable in this
direction), with b = 2k + x R_k,

    R_{k-1} = x / b,   1 - R_{k-1} = (2k - x (1 - R_k)) / b,   R_{k-1}' = (2k - x^2 R_k') / b^2.

Nothing large cancels: values are relative to those at x = 0, and with u = x / mu = tan phi, so t = cos phi,

    r = x / (s + mu) = tan(phi / 2) = sin phi / (1 + t),   s - mu = mu u r,   1 - t = r sin phi,
    1 - r = t / (1 + t) (1 + t / (1 + sin phi)).
"""

from collections.abc import Callable
from enum import Enum
from fractions import Fraction
from functools import cache, partial
from math import ceil, cos, fsum, log, pi
from typing import NamedTuple

import torch
from torch import Tensor

from spherecf.common.arrays import triton_runs_on

_Polynomial = dict[int, Fraction]  # power of t -> coefficient

# Orders below the first number are shifted up to it and brought back by recurrence; terms that cannot exceed
# the second number are left out. Chosen so that the terms are still falling where the tolerance is met.
_LIMITS = {torch.float32: (10, 3e-8), torch.float64: (24, 6e-17)}
_MOST_TERMS = 16
_CHEBYSHEV_NODES = 40
_NOISE = 6e-17  # of the Chebyshev weights, which are sums of floats


class Plan(NamedTuple):
    """What the kernels need for one order. Polynomials: coefficients as floats, lowest power first."""

    order: float
    steps: int  # recurrence steps from mu down to order
    mu: float  # order + steps: where the expansion is evaluated
    log_series: tuple[float, ...]  # F(t) - F(1) + log((1 + t) / 2) / 2, in powers of 1 - t
    mean_series: tuple[float, ...]  # Q = 1/2 + t F', in powers of t
    slope_series: tuple[float, ...]  # (1 - t^2) (2 Q + t Q') - Q, in powers of t


def make_plan(order: float, dtype: torch.dtype) -> Plan:
    """The plan of an order: made once, and a constant under torch.compile."""
    return _make_plan(order, dtype)


# All that torch.compiler.assume_constant_result does but importing the compiler, 1.4 s for every program.
make_plan._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _make_plan(order: float, dtype: torch.dtype) -> Plan:
    smallest, tolerance = _LIMITS[dtype]
    steps = max(0, ceil(smallest - order))
    mu = Fraction(order) + steps
    terms = [_scale(d, mu**-k) for k, d in enumerate(_debye_terms(_MOST_TERMS), 1)]
    # Larger orders come with larger values of log C.
    log_tolerance = tolerance * float(mu) / smallest
    series = _add(*_leading(terms, log_tolerance))
    log_series = _economise(lambda y: _value(series, 1 - y) + log(1 - y / 2) / 2, log_tolerance)
    log_series[0] = Fraction(0)  # F(1), and the rounding of the rest
    # t F' enters the mean with weight t / mu.
    mean = _add({0: Fraction(1, 2)}, *_leading([_times_slope(d) for d in terms], tolerance * float(mu)))
    doubled = _add(_scale(mean, Fraction(2)), _times_slope(mean))
    slope = _add(_scale(mean, Fraction(-1)), _multiply({0: Fraction(1), 2: Fraction(-1)}, doubled))
    mean, slope = (_economise(partial(_value, series), tolerance * float(mu)) for series in (mean, slope))
    return Plan(order, steps, float(mu), _floats(log_series), _floats(mean), _floats(slope))


@cache
def _debye_terms(count: int) -> list[_Polynomial]:
    """D_1 .. D_count. With a = t^2 (1 - t^2) / 2 the differential equation of I_mu becomes

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


def _leading(terms: list[_Polynomial], tolerance: float) -> list[_Polynomial]:
    """The terms before the first whose size on [0, 1] is below the tolerance."""
    grid = [i / 32 for i in range(33)]
    for count, term in enumerate(terms):
        if max(abs(_value(term, t)) for t in grid) < tolerance:
            return terms[:count]
    return terms


def _economise(function: Callable[[float], float], tolerance: float) -> _Polynomial:
    """The shortest Chebyshev series on [0, 1] that is within the tolerance, as a polynomial."""
    n = _CHEBYSHEV_NODES
    cosine = [
        cos(pi * i / (2 * n)) for i in range(4 * n)
    ]  # the angles k (2 i + 1), reduced before they round
    values = [function((1 + cosine[2 * i + 1]) / 2) for i in range(n)]
    weights = [
        fsum(v * cosine[k * (2 * i + 1) % (4 * n)] for i, v in enumerate(values)) * 2 / n for k in range(n)
    ]
    weights[0] /= 2
    while len(weights) > 1 and abs(weights[-1]) < max(tolerance, _NOISE):
        weights.pop()
    total: _Polynomial = {}
    this, following = {0: Fraction(1)}, {0: Fraction(-1), 1: Fraction(2)}
    double = {0: Fraction(-2), 1: Fraction(4)}
    for weight in weights:
        total = _add(total, _scale(this, Fraction(weight)))
        this, following = following, _add(_multiply(double, following), _scale(this, Fraction(-1)))
    return total


def _value(polynomial: _Polynomial, t: float) -> float:
    """Summed exactly, because the terms of high powers are large and cancel."""
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
    return tuple(float(polynomial.get(power, 0)) for power in range(max(polynomial) + 1))


_CHUNK = 32768  # elements per pass in eager mode on the CPU: the intermediates then stay in the cache
LARGEST = {torch.float32: 1e18, torch.float64: 1e150}  # beyond it u^2 would overflow; all is flat by then


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
    if not torch.compiler.is_compiling() and type(x) is Tensor and x.numel() and triton_runs_on(x.device):
        from spherecf.vmf import fused

        return fused.evaluate(x, plan, form is Form.SCALED, with_slope)
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
    largest = LARGEST[x.dtype]
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
