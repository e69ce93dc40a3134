"""Mutual likelihood scores straight from equation 13 in 50-digit arithmetic: slow and obvious."""

import mpmath


def log_normalizer(kappa: float | mpmath.mpf, dim: int) -> mpmath.mpf:
    """log C_d(kappa), from the definition."""
    order, kappa = mpmath.mpf(dim) / 2 - 1, mpmath.mpf(kappa)
    if kappa == 0:  # the reciprocal of the sphere's surface
        return mpmath.loggamma(order + 1) - mpmath.log(2) - (order + 1) * mpmath.log(mpmath.pi)
    bessel = mpmath.besseli(order, kappa, maxterms=10**6)
    return order * mpmath.log(kappa) - (order + 1) * mpmath.log(2 * mpmath.pi) - mpmath.log(bessel)


def mutual_likelihood(
    cos: float, kappa_a: float, kappa_b: float, dim: int, radius: float = 64.0
) -> mpmath.mpf:
    """s = log C(k_a) + log C(k_b) - log C(|k_a mu_a + k_b mu_b|) - d log r, from a cosine."""
    with mpmath.workdps(50):
        a, b, x = mpmath.mpf(kappa_a), mpmath.mpf(kappa_b), min(max(mpmath.mpf(cos), -1), 1)
        p = mpmath.sqrt(a * a + b * b + 2 * a * b * x)
        both = log_normalizer(a, dim) + log_normalizer(b, dim)
        return both - log_normalizer(p, dim) - dim * mpmath.log(radius)
