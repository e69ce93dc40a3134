"""The mutual likelihood of a pair as one elementwise pass over its cosine, for float32 and for millions.

log C_d is needed at ``p = |k_a mu_a + k_b mu_b|`` of every pair. In the manner of the uniform expansion of
I_nu (DLMF 10.41.3), with ``w = sqrt(m^2 + k^2)`` and ``t = m / w``,

    log C_d(k) = -w + (d - 1)/2 * log((m + w) / 2m) + R(t) + constant

where R is smooth on the whole of 0 < t <= 1, so one polynomial serves every k from 0 to infinity. It is
fitted once per dimension, in float64, to the exact function. The choice ``m = max(d/2, 2)`` makes degree 8
enough for 7e-6 at every dimension (2e-8 from d = 64 on): below what float32 holds. Of the pair w alone is
needed, no p, and with the sides' c(k) = log C_d(k) + k what is large is the difference of k_a + k_b and w:

    w^2 = (k_a - k_b)^2 + 2 k_a k_b (1 + cos) + m^2
    k_a + k_b - w = (2 k_a k_b (1 - cos) - m^2) / (k_a + k_b + w)

On a GPU one kernel makes a tile's product and its scores (`spherecf.scoring.fused`). Elsewhere the formula is
one function, used two ways: fused by torch.compile into a single pass over memory, or eagerly on chunks that
stay in the cache (every temporary of a whole matrix would travel to memory and back, ten times slower).
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
_NODES = 48  # where the polynomial is fitted: far more than its degree, so the fit is as good as the best one


@dataclass(frozen=True)
class NormalizerForm:
    """log C_d(k) = constant + half * log((m + w) / 2m) - w + sum_i coefficients[i] * (m / w)^i."""

    dim: int
    m: float
    half: float  # (d - 1) / 2
    constant: float
    coefficients: tuple[float, ...]  # of R, lowest power first


@lru_cache(maxsize=32)
def normalizer_form(dim: int) -> NormalizerForm:
    """The form for one dimension (fitted on first use, a few milliseconds)."""
    m, half = max(dim / 2, 2.0), (dim - 1) / 2
    t = (np.cos((np.arange(_NODES) + 0.5) * np.pi / _NODES) + 1) / 2  # (nodes,) Chebyshev's, within 0 .. 1
    k = m * np.sqrt((1 - t) * (1 + t)) / t  # the kappa of each t = m / sqrt(m^2 + k^2)
    w = m / t
    exact = log_normalizer_scaled(torch.from_numpy(k), dim).numpy()
    rest = exact + m * m / (k + w) - half * np.log((m + w) / (2 * m))
    constant = float(rest.mean())  # kept apart: the polynomial, in float32, then holds small numbers
    fit = Chebyshev.fit(t, rest - constant, _DEGREE, domain=[0, 1]).convert(kind=Polynomial)
    return NormalizerForm(dim, m, half, constant, tuple(float(c) for c in fit.coef))


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]

_EAGER_ELEMENTS_PER_THREAD = 65536
_EAGER_ELEMENTS_ON_GPU = 1 << 24  # enough work for a launch, at 64 MiB a temporary


def elementwise_kernel(form: NormalizerForm) -> Kernel:
    """The pass itself, on tensors that broadcast; its temporaries are of their size.

    `score_at_cosine` in another form: that of the module's docstring.
    """
    m, half, scale, square = form.m, form.half, 0.5 / form.m, form.m * form.m
    highest, *others = reversed(form.coefficients)

    def kernel(cos: Tensor, kappa_a: Tensor, kappa_b: Tensor, offset_a: Tensor, offset_b: Tensor) -> None:
        # All is (rows, columns), made of kappas and offsets (rows, 1) and (1, columns).
        x, product = cos.clamp(-1, 1), 2 * kappa_a * kappa_b
        w = (x + 1).mul_(product).add_((kappa_a - kappa_b).square_().add_(square)).sqrt_()
        t = m / w
        rest = t * highest
        for coefficient in others[:-1]:  # Horner's scheme
            rest.add_(coefficient).mul_(t)
        rest.add_(others[-1]).add_((w + m).mul_(scale).log_(), alpha=half)  # log C_d(p) + w, no constant
        apart = (1 - x).mul_(product).sub_(square).div_(w.add_(kappa_a + kappa_b))  # k_a + k_b - w
        # In this order the sums stay small, for float32.
        cos.copy_((offset_a - rest).add_(offset_b).sub_(apart))

    return kernel


@lru_cache(maxsize=32)
def eager_kernel(dim: int) -> Kernel:
    """Chunk by chunk, without a compiler."""
    kernel = elementwise_kernel(normalizer_form(dim))

    def chunked(cos: Tensor, kappa_a: Tensor, kappa_b: Tensor, offset_a: Tensor, offset_b: Tensor) -> None:
        # The kernel makes about ten temporaries; of a chunk they fit into the cache of each thread.
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
    """Fused by torch.compile; where that is impossible (no C++ compiler) the eager one, and a message."""
    compiled = torch.compile(elementwise_kernel(normalizer_form(dim)), dynamic=True)
    try:  # compilation happens at the first call, so here is where it fails
        wide, tall = torch.ones(1, 96, device=device), torch.ones(64, 1, device=device)
        compiled(torch.zeros(64, 96, device=device), tall, wide, tall, wide)
    except Exception as error:  # whatever the tool chain raises: torch wraps it in classes of many modules
        reason = str(error).strip().splitlines()[:1]
        log.warning("torch.compile is not available here, scoring eagerly (slower, same results): %s", reason)
        return eager_kernel(dim)
    return compiled


def side_terms(kappa: Tensor, dim: int, radius: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(kappa, c(kappa) less half of every constant), (n,) each: what an image brings to all of its scores.

    Constants are the polynomial's and d log r: thousands at d = 512, which would cost float32 its digits.
    """
    exact = kappa.double()
    shift = (normalizer_form(dim).constant + dim * math.log(radius)) / 2
    return exact.to(dtype), (log_normalizer_scaled(exact, dim) - shift).to(dtype)
