"""The elementwise half of the score matrix: cosines in, mutual likelihood scores out, in place.

One function, used two ways: fused by torch.compile into a single pass over memory, or eagerly on chunks
that stay in the cache (every temporary of a whole matrix would travel to memory and back, ten times slower).
"""

import logging
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from spherecf.scoring._normalizer import NormalizerForm, normalizer_form

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]

_EAGER_ELEMENTS_PER_THREAD = 65536


def elementwise_kernel(form: NormalizerForm) -> Kernel:
    """The pass itself, on tensors that broadcast; its temporaries are of their size."""
    m, half, scale, square = form.m, form.half, 0.5 / form.m, form.m * form.m
    highest, *others = reversed(form.coefficients)

    def kernel(cos: Tensor, kappa_a: Tensor, kappa_b: Tensor, offset_a: Tensor, offset_b: Tensor) -> None:
        x = cos.clamp(-1, 1)
        product = 2 * kappa_a * kappa_b
        p_square = (kappa_a - kappa_b).square() + product * (1 + x)
        p, w = p_square.sqrt(), (p_square + square).sqrt()
        t = m / w
        rest = torch.full_like(t, highest)
        for coefficient in others:
            rest = rest * t + coefficient
        at_p = half * ((m + w) * scale).log() + rest - square / (p + w)
        apart = product * (1 - x) / (kappa_a + kappa_b + p)
        cos.copy_((offset_a - at_p) + offset_b - apart)

    return kernel


@lru_cache(maxsize=32)
def eager_kernel(dim: int) -> Kernel:
    """Chunk by chunk, without a compiler."""
    kernel = elementwise_kernel(normalizer_form(dim))

    def chunked(cos: Tensor, kappa_a: Tensor, kappa_b: Tensor, offset_a: Tensor, offset_b: Tensor) -> None:
        elements = _EAGER_ELEMENTS_PER_THREAD * torch.get_num_threads()
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
    try:
        wide, tall = torch.ones(1, 96, device=device), torch.ones(64, 1, device=device)
        compiled(torch.zeros(64, 96, device=device), tall, wide, tall, wide)
    except Exception as error:  # whatever the tool chain raises: torch wraps it in classes of many modules
        reason = str(error).strip().splitlines()[:1]
        log.warning("torch.compile is not available here, scoring eagerly (slower, same results): %s", reason)
        return eager_kernel(dim)
    return compiled
