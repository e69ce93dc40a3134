"""Collectives that gradients flow through."""

from typing import Any

import torch
from torch import Tensor

from spherecf.training._ranks import Ranks


def gather_rows(rows: Tensor, ranks: Ranks, *, replicated: bool) -> Tensor:
    """The rows of all ranks (n, ...), from each rank's (n_r, ...), with gradients back to each rank's own.

    Args:
        replicated: True where every rank goes on to compute the *same* loss of all rows: the gradient of its
            own rows is then whole. False where each rank computes a *part* of it (the classes it holds): the
            parts are summed over ranks.
    """
    if ranks.size == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows, ranks, replicated)  # type: ignore[no-untyped-call]
    return gathered


def sum_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """Sum over ranks; the gradient is the sum of all ranks' gradients."""
    if ranks.size == 1:
        return values
    total: Tensor = _Sum.apply(values, ranks)  # type: ignore[no-untyped-call]
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, replicated: bool) -> Tensor:
        counts = ranks.counts(len(rows))
        start = sum(counts[: ranks.rank])
        ctx.ranks, ctx.own, ctx.replicated = ranks, slice(start, start + len(rows)), replicated
        return ranks.gather(rows, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        if not ctx.replicated:
            grad = ctx.ranks.sum_(grad.contiguous().clone())
        return grad[ctx.own], None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum_(values.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum_(grads[0].contiguous().clone()), None
