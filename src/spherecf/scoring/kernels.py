"""The mutual likelihood score of millions of pairs as one elementwise pass over cosines, accurate in float32.

Every pair needs log C_d at ``p = |k_a mu_a + k_b mu_b|``. As in the uniform expansion of I_nu (DLMF 10.41.3),
with ``w = sqrt(m^2 + k^2)`` and ``t = m / w``,

    log C_d(k) = -w + (d - 1)/2 * log((m + w) / 2m) + R(t) + constant

where R is smooth on 0 < t <= 1, so that one polynomial approximates it for every k from 0 to infinity. The
polynomial is fitted once per dimension, in float64, to the exact function. With ``m = max(d/2, 2)``, degree 8
gives an error of 7e-6 in every dimension (2e-8 from d = 64 on), below the resolution of float32. For a pair
only w at k = p is needed, not p itself. With the terms c(k) = log C_d(k) + k of the two sides, the large
terms of the score combine into the difference of k_a + k_b and w:

    w^2 = (k_a - k_b)^2 + 2 k_a k_b (1 + cos) + m^2
    k_a + k_b - w = (2 k_a k_b (1 - cos) - m^2) / (k_a + k_b + w)

On a GPU one kernel computes a tile's product and its scores (`spherecf.scoring.fused`). Elsewhere the formula
is one function, either fused by torch.compile into a single pass over memory, or run eagerly on chunks that
stay in the cache (temporaries of a whole matrix would go through memory, which is ten times slower).
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from spherecf.vmf import log_normalizer_scaled

log = logging.getLogger(__name__)

_DEGREE = 8
_NODES = 48  # of the fit: far more than the degree, so the fit is close to the best polynomial


@dataclass(frozen=True)
class NormalizerForm:
    """The coefficients of the approximation, with w = sqrt(m^2 + k^2),

    log C_d(k) = constant + half * log((m + w) / 2m) - w + sum_i coefficients[i] * (m / w)^i.
    """

    dim: int
    m: float
    half: float  # (d - 1) / 2
    constant: float
    coefficients: tuple[float, ...]  # of R, lowest power first


@lru_cache(maxsize=32)
def normalizer_form(dim: int) -> NormalizerForm:
    """The form for one dimension, fitted on first use in a few milliseconds."""
    m, half = max(dim / 2, 2.0), (dim - 1) / 2
    t = (np.cos((np.arange(_NODES) + 0.5) * np.pi / _NODES) + 1) / 2  # (nodes,) Chebyshev nodes in (0, 1)
    k = m * np.sqrt((1 - t) * (1 + t)) / t  # the kappa of each t = m / sqrt(m^2 + k^2)
    w = m / t
    exact = log_normalizer_scaled(torch.from_numpy(k), dim).numpy()
    # R(t) + constant; m^2 / (k + w) is w - k without cancellation
    smooth = exact + m * m / (k + w) - half * np.log((m + w) / (2 * m))
    constant = float(smooth.mean())  # separate, so that the polynomial has small values for float32
    fit = Chebyshev.fit(t, smooth - constant, _DEGREE, domain=[0, 1]).convert(kind=Polynomial)
    return NormalizerForm(dim, m, half, constant, tuple(float(c) for c in fit.coef))


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]
"""``kernel(cos, kappa_a, kappa_b, offset_a, offset_b)`` replaces cosines by scores, in place."""

_EAGER_ELEMENTS_PER_THREAD = 65536
_EAGER_ELEMENTS_ON_GPU = 1 << 24  # enough work per launch; 64 MiB per temporary


def elementwise_kernel(form: NormalizerForm) -> Kernel:
    """The formula at the top of this file, on tensors that broadcast; temporaries have the size of ``cos``.

    It is equivalent to `spherecf.scoring.pairs.score_at_cosine`. The offsets are c(k) as in `side_terms`.
    """
    m, half, scale, m_squared = form.m, form.half, 0.5 / form.m, form.m * form.m
    leading, *lower = reversed(form.coefficients)

    def kernel(cos: Tensor, kappa_a: Tensor, kappa_b: Tensor, offset_a: Tensor, offset_b: Tensor) -> None:
        # All temporaries are (rows, columns), from kappas and offsets (rows, 1) and (1, columns).
        x, product = cos.clamp(-1, 1), 2 * kappa_a * kappa_b
        w = (x + 1).mul_(product).add_((kappa_a - kappa_b).square_().add_(m_squared)).sqrt_()
        t = m / w
        log_c = t * leading
        for coefficient in lower[:-1]:  # Horner's scheme
            log_c.add_(coefficient).mul_(t)
        log_c.add_(lower[-1]).add_((w + m).mul_(scale).log_(), alpha=half)  # log C_d(p) + w - constant
        excess = (1 - x).mul_(product).sub_(m_squared).div_(w.add_(kappa_a + kappa_b))  # k_a + k_b - w
        # In this order the partial sums stay small, which float32 needs.
        cos.copy_((offset_a - log_c).add_(offset_b).sub_(excess))

    return kernel


@lru_cache(maxsize=32)
def eager_kernel(dim: int) -> Kernel:
    """The kernel run chunk by chunk, without a compiler."""
    kernel = elementwise_kernel(normalizer_form(dim))

    def chunked(cos: Tensor, kappa_a: Tensor, kappa_b: Tensor, offset_a: Tensor, offset_b: Tensor) -> None:
        # The kernel has about ten temporaries; those of a chunk fit into each thread's cache.
        on_cpu = cos.device.type == "cpu"
        elements = _EAGER_ELEMENTS_PER_THREAD * torch.get_num_threads() if on_cpu else _EAGER_ELEMENTS_ON_GPU
        width = min(cos.shape[1], elements)
        height = max(1, elements // max(width, 1))
        for i in range(0, cos.shape[0], height):
            rows = slice(i, i + height)
            for j in range(0, cos.shape[1], max(width, 1)):
                columns = slice(j, j + width)
                kernel(
                    cos[rows, columns],
                    kappa_a[rows],
                    kappa_b[:, columns],
                    offset_a[rows],
                    offset_b[:, columns],
                )

    return chunked


@lru_cache(maxsize=32)
def compiled_kernel(dim: int, device: str) -> Kernel:
    """The kernel fused by torch.compile, or the eager one with a warning if compilation fails."""
    compiled = torch.compile(elementwise_kernel(normalizer_form(dim)), dynamic=True)
    try:  # compilation happens at the first call, for example without a C++ compiler it fails here
        row, column = torch.ones(1, 96, device=device), torch.ones(64, 1, device=device)
        compiled(torch.zeros(64, 96, device=device), column, row, column, row)
    except Exception as error:  # torch wraps the tool chain's errors in classes of many modules
        reason = str(error).strip().splitlines()[:1]
        log.warning("torch.compile is not available here, scoring eagerly (slower, same results): %s", reason)
        return eager_kernel(dim)
    return compiled


def side_terms(kappa: Tensor, dim: int, radius: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The terms of a score that depend on one side: kappa, and c(kappa) minus half the constants, (n,) each.

    The constants are that of the polynomial and d log r. They are thousands at d = 512, so they are
    subtracted in float64 to save the digits of float32.
    """
    exact = kappa.double()
    shift = (normalizer_form(dim).constant + dim * math.log(radius)) / 2
    return exact.to(dtype), (log_normalizer_scaled(exact, dim) - shift).to(dtype)
