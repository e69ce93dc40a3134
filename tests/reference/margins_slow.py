"""The margins, one number at a time from the angle, in 50-digit arithmetic: slow and obvious."""

from collections.abc import Callable, Sequence

import mpmath

_digits = mpmath.mp.clone()  # a context of its own, so that nothing else changes its digits
_digits.dps = 50
mpf, pi = _digits.mpf, _digits.pi
acos, cos, sin, floor = _digits.acos, _digits.cos, _digits.sin, _digits.floor
exp, log, log1p = _digits.exp, _digits.log, _digits.log1p


def arcface(cosine: float, margin: float = 0.5) -> mpmath.mpf:
    theta, margin = acos(mpf(cosine)), mpf(margin)
    return cos(theta + margin) if theta + margin < pi else cos(theta) - margin * sin(margin)


def cosface(cosine: float, margin: float = 0.35) -> mpmath.mpf:
    return mpf(cosine) - mpf(margin)


def combined(cosine: float, m1: float, m2: float, m3: float) -> mpmath.mpf:
    if m1 == 1:
        return arcface(cosine, m2) - mpf(m3)
    phi = mpf(m1) * acos(mpf(cosine)) + mpf(m2)
    k = floor(phi / pi)
    return (-1) ** int(k) * cos(phi) - 2 * k - mpf(m3)


def adaface(
    cosine: float, norm: float, mean: float, std: float, margin: float = 0.4, h: float = 0.333
) -> mpmath.mpf:
    norm = min(max(mpf(norm), mpf(0.001)), 100)
    z = min(max((norm - mpf(mean)) / (mpf(std) / mpf(h)), -1), 1)
    theta = min(max(acos(mpf(cosine)) - mpf(margin) * z, 0), pi)
    return cos(theta) - (mpf(margin) * z + mpf(margin))


def magface(
    cosine: float, norm: float, low: float = 0.45, high: float = 0.8, l_a: float = 10, u_a: float = 110
) -> mpmath.mpf:
    a = min(max(mpf(norm), l_a), u_a)
    return arcface(cosine, (mpf(high) - mpf(low)) / (mpf(u_a) - mpf(l_a)) * (a - mpf(l_a)) + mpf(low))


def magface_penalty(norm: float, l_a: float = 10, u_a: float = 110) -> mpmath.mpf:
    a = min(max(mpf(norm), l_a), u_a)
    return 1 / a + a / mpf(u_a) ** 2


def curricularface_other(cosine: float, target_cosine: float, t: float, margin: float = 0.5) -> mpmath.mpf:
    cosine = mpf(cosine)
    return cosine * (mpf(t) + cosine) if cosine > arcface(target_cosine, margin) else cosine


def sphereface2(
    cosine: float,
    genuine: bool,
    bias: float = 0.0,
    r: float = 40.0,
    m: float = 0.4,
    balance: float = 0.7,
    t: float = 3.0,
) -> mpmath.mpf:
    g = 2 * ((mpf(cosine) + 1) / 2) ** mpf(t) - 1
    if genuine:
        return mpf(balance) / r * log1p(exp(-(r * (g - mpf(m)) + mpf(bias))))
    return (1 - mpf(balance)) / r * log1p(exp(r * (g + mpf(m)) + mpf(bias)))


def slope(function: Callable[[float], mpmath.mpf], at: float) -> mpmath.mpf:
    """Derivative, by central difference of 20 digits."""
    step = mpf(10) ** -20
    return (function(mpf(at) + step) - function(mpf(at) - step)) / (2 * step)


def softmax_loss(logits: Sequence[mpmath.mpf], true: int) -> mpmath.mpf:
    return log(sum(exp(v) for v in logits)) - logits[true]


def gaussian_score(
    mu_a: Sequence[float], variance_a: Sequence[float], mu_b: Sequence[float], variance_b: Sequence[float]
) -> mpmath.mpf:
    """Log of the integral of the product of two diagonal Gaussians, without d/2 log 2 pi."""
    total = mpf(0)
    for a, v, b, w in zip(mu_a, variance_a, mu_b, variance_b):
        both = mpf(v) + mpf(w)
        total -= ((mpf(a) - mpf(b)) ** 2 / both + log(both)) / 2
    return total
