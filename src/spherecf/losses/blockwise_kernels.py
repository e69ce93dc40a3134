"""The elementwise operations of `blockwise` as Triton kernels, which read each product only once."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 64  # per program of `_slopes`: enough programs to occupy a GPU, and whole cache lines


@triton.jit
def _add(product, inverse_norms, column, others_term, width, scale, SIZE: tl.constexpr):
    """o_i = log(e^o_i + sum_{j != column_i} e^(scale cosine_ij)), o = others_term; one program per sample."""
    sample = tl.program_id(0)
    target = tl.load(column + sample)
    # Each lane has a running maximum and sum. The first maximum is finite, so that no difference is NaN.
    lane_max = tl.full((SIZE,), -1e30, tl.float32)
    lane_sum = tl.zeros((SIZE,), tl.float32)
    for start in range(0, width, SIZE):
        j = start + tl.arange(0, SIZE)
        mask = j < width
        inverse_norm = tl.load(inverse_norms + j, mask, other=0.0)
        cosine = tl.load(product + sample * width + j, mask, other=0.0) * inverse_norm
        logit = tl.where(mask & (j != target), scale * cosine, float("-inf"))
        new_max = tl.maximum(lane_max, logit)
        lane_sum = lane_sum * tl.exp(lane_max - new_max) + tl.exp(logit - new_max)
        lane_max = new_max
    previous = tl.load(others_term + sample)
    max_logit = tl.maximum(tl.max(lane_max, 0), previous)
    total = tl.sum(lane_sum * tl.exp(lane_max - max_logit), 0) + tl.exp(previous - max_logit)
    tl.store(others_term + sample, max_logit + tl.log(total))


@triton.jit
def _slopes(
    product, inverse_norms, column, others_term, target_grad, others_grad, slope, radial,
    samples, width, scale, SAMPLES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program per COLUMNS prototypes j, with v_j = 1 / norm of j:

    slope_ij = d loss / d cosine_ij v_j,    radial_j = sum_i slope_ij cosine_ij v_j.
    """
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    column_mask = j < width
    inverse_norm = tl.load(inverse_norms + j, column_mask, other=0.0)
    total = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, samples, SAMPLES):
        i = start + tl.arange(0, SAMPLES)
        sample_mask = i < samples
        mask = sample_mask[:, None] & column_mask[None, :]
        offsets = i[:, None] * width + j[None, :]
        cosine = tl.load(product + offsets, mask, other=0.0) * inverse_norm[None, :]
        log_sum = tl.load(others_term + i, sample_mask, other=0.0)
        weight = scale * tl.load(others_grad + i, sample_mask, other=0.0)
        others = tl.exp(scale * cosine - log_sum[:, None]) * weight[:, None]
        is_target = tl.load(column + i, sample_mask, other=-1)[:, None] == j[None, :]
        target = tl.load(target_grad + i, sample_mask, other=0.0)
        value = tl.where(is_target, target[:, None], others) * inverse_norm[None, :]
        tl.store(slope + offsets, value.to(slope.dtype.element_ty), mask)
        total += tl.sum(tl.where(mask, value * cosine, 0.0), 0)
    tl.store(radial + j, total * inverse_norm, column_mask)


def add(product: Tensor, inverse_norm: Tensor, column: Tensor, others_term: Tensor, scale: float) -> None:
    """Add a block's other classes to the running log-sum-exp ``others_term``, in place.

    Args:
        product: unit embeddings times raw rows (n, b), float32.
        inverse_norm: 1 / norm of each row (b,).
        column: row of each sample's true prototype in the block (n,), -1 for none.
        others_term: log-sum-exp of the scaled cosines of the previous blocks (n,).
        scale: s.
    """
    samples, width = product.shape
    with torch.cuda.device_of(product):
        _add[(samples,)](product, inverse_norm, column, others_term, width, float(scale), SIZE=2048)


def slopes(
    product: Tensor,
    inverse_norm: Tensor,
    column: Tensor,
    others_term: Tensor,
    grads: tuple[Tensor, Tensor],
    scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The gradient d loss / d product (n, b), and the radial part of that of the rows (b,).

    See `spherecf.losses.blockwise._ElementwiseOps.slopes`.

    Args:
        product, inverse_norm, column, scale: as in `add`.
        others_term: log-sum-exp of the scaled cosines of all blocks (n,).
        grads: d loss / d target cosine and d loss / d others_term, (n,) each.
        dtype: type of the first result.
    """
    samples, width = product.shape
    target_grad, others_grad = (grad.contiguous() for grad in grads)
    slope, radial = torch.empty_like(product, dtype=dtype), torch.empty_like(inverse_norm)
    with torch.cuda.device_of(product):
        _slopes[(triton.cdiv(width, _COLUMNS),)](
            product, inverse_norm, column, others_term, target_grad, others_grad, slope, radial,
            samples, width, float(scale), SAMPLES=32, COLUMNS=_COLUMNS,
        )  # fmt: skip
    return slope, radial
