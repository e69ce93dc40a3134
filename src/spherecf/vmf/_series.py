"""Coefficients of the uniform (Debye) expansion of log I_mu, for one order and one precision.

For large order mu and any argument x, with s = sqrt(mu^2 + x^2) and t = mu / s (DLMF 10.41.3, in log form),

    log I_mu(x) = s + mu log(x / (mu + s)) - log(2 pi s) / 2 + F(t),    F(t) = sum_k D_k(t) / mu^k.

Relative to x = 0, with q = (s - mu) / 2 mu = (1 - t) / 2t, the logarithms combine into one and a smooth rest:

    mu log(1 + q) - log(t) / 2 = (mu + 1/2) log(1 + q) - log((1 + t) / 2) / 2.

The parameter of the series is 1 / s, so one expression serves from x = 0 to infinity: no regimes, no seams.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from math import ceil, cos, fsum, log, pi
from typing import NamedTuple

import torch

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
