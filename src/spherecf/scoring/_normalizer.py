"""The log-normaliser as a few elementwise operations, for millions of pairs in one pass.

``c(k) = log C_d(k) + k`` is needed at ``p = |k_a mu_a + k_b mu_b|`` of every pair. In the manner of the
uniform expansion of I_nu (DLMF 10.41.3), with ``w = sqrt(m^2 + k^2)`` and ``t = m / w``,

    c(k) = -m^2 / (k + w) + (d - 1)/2 * log((m + w) / 2m) + R(t) + constant

where R is smooth on the whole of 0 < t <= 1, so one polynomial serves every k from 0 to infinity. It is
fitted once per dimension, in float64, to the exact function. The choice ``m = max(d/2, 2)`` makes degree 8
enough for 7e-6 at every dimension (2e-8 from d = 64 on): below what float32 holds.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial

from spherecf.vmf import log_normalizer_scaled

_DEGREE = 8
_NODES = 48


@dataclass(frozen=True)
class NormalizerForm:
    """c(k) = constant + half * log((m + w) / 2m) - m^2 / (k + w) + sum_i coefficients[i] * (m / w)^i."""

    dim: int
    m: float
    half: float  # (d - 1) / 2
    constant: float
    coefficients: tuple[float, ...]  # of R, lowest power first


@lru_cache(maxsize=32)
def normalizer_form(dim: int) -> NormalizerForm:
    """The form for one dimension (fitted on first use, a few milliseconds)."""
    m, half = max(dim / 2, 2.0), (dim - 1) / 2
    t = (np.cos((np.arange(_NODES) + 0.5) * np.pi / _NODES) + 1) / 2
    k = m * np.sqrt((1 - t) * (1 + t)) / t
    w = m / t
    exact = log_normalizer_scaled(torch.from_numpy(k), dim).numpy()
    rest = exact + m * m / (k + w) - half * np.log((m + w) / (2 * m))
    constant = float(rest.mean())
    fit = Chebyshev.fit(t, rest - constant, _DEGREE, domain=[0, 1]).convert(kind=Polynomial)
    return NormalizerForm(dim, m, half, constant, tuple(float(c) for c in fit.coef))
