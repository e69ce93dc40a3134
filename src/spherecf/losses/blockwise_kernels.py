"""A block's elementwise work of `blockwise` in one Triton kernel each way: each product is read once."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 64  # of a program of `_slopes`: enough programs for a GPU, and whole lines of its cache


@triton.jit
def _add(product, inverse, column, rivals, width, scale, SIZE: tl.constexpr):
    """rivals_i = log(e^rivals_i + sum_{j != column_i} e^(scale cosine_ij)); one program per sample i."""
    sample = tl.program_id(0)
    own = tl.load(column + sample)
    # A maximum and a sum in each lane. The first maximum is finite, so that no difference of two is a NaN.
    largest = tl.full((SIZE,), -1e30, tl.float32)
    total = tl.zeros((SIZE,), tl.float32)
    for start in range(0, width, SIZE):
        j = start + tl.arange(0, SIZE)
        inside = j < width
        over_length = tl.load(inverse + j, inside, other=0.0)
        cosine = tl.load(product + sample * width + j, inside, other=0.0) * over_length
        logit = tl.where(inside & (j != own), scale * cosine, float("-inf"))
        larger = tl.maximum(largest, logit)
        total = total * tl.exp(largest - larger) + tl.exp(logit - larger)
        largest = larger
    before = tl.load(rivals + sample)
    top = tl.maximum(tl.max(largest, 0), before)
    whole = tl.sum(total * tl.exp(largest - top), 0) + tl.exp(before - top)
    tl.store(rivals + sample, top + tl.log(whole))


@triton.jit
def _slopes(
    product, inverse, column, rivals, own_grad, rivals_grad, slope, along,
    samples, width, scale, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """slope_ij = d loss / d cosine_ij inverse_j, along_j = sum_i slope_ij cosine_ij inverse_j; COLUMNS j."""
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = j < width
    over_length = tl.load(inverse + j, inside, other=0.0)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, samples, SAMPLES):
        i = start + tl.arange(0, SAMPLES)
        there = i < samples
        both = there[:, None] & inside[None, :]
        at = i[:, None] * width + j[None, :]
        cosine = tl.load(product + at, both, other=0.0) * over_length[None, :]
        log_sum = tl.load(rivals + i, there, other=0.0)
        weight = scale * tl.load(rivals_grad + i, there, other=0.0)
        others = tl.exp(scale * cosine - log_sum[:, None]) * weight[:, None]
        is_own = tl.load(column + i, there, other=-1)[:, None] == j[None, :]
        own = tl.load(own_grad + i, there, other=0.0)
        value = tl.where(is_own, own[:, None], others) * over_length[None, :]
        tl.store(slope + at, value.to(slope.dtype.element_ty), both)
        total += tl.sum(tl.where(both, value * cosine, 0.0), 0)
    tl.store(along + j, total * over_length, inside)


def add(product: Tensor, inverse: Tensor, column: Tensor, rivals: Tensor, scale: float) -> None:
    """Add a block to ``rivals`` (n,), in place.

    Args:
        product: of unit embeddings and raw rows (n, b), float32.
        inverse: 1 / length of each row (b,).
        column: each sample's own (n,), -1 for none.
        rivals: log-sum-exp of the scaled cosines so far (n,).
        scale: s.
    """
    samples, width = product.shape
    with torch.cuda.device_of(product):
        _add[(samples,)](product, inverse, column, rivals, width, float(scale), SIZE=2048)


def slopes(
    product: Tensor,
    inverse: Tensor,
    column: Tensor,
    rivals: Tensor,
    grads: tuple[Tensor, Tensor],
    scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """d loss / d product (n, b), and for each row its sum along the cosines, over the length (b,).

    Args:
        product, inverse, column, rivals, scale: as of `add`, ``rivals`` over all blocks.
        grads: d loss / d own cosine and d loss / d rivals, (n,) each.
        dtype: of the first result.
    """
    samples, width = product.shape
    own_grad, rivals_grad = (grad.contiguous() for grad in grads)
    slope, along = torch.empty_like(product, dtype=dtype), torch.empty_like(inverse)
    with torch.cuda.device_of(product):
        _slopes[(triton.cdiv(width, _COLUMNS),)](
            product, inverse, column, rivals, own_grad, rivals_grad, slope, along,
            samples, width, float(scale), SAMPLES=32, COLUMNS=_COLUMNS,
        )  # fmt: skip
    return slope, along
