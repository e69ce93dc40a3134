"""Reductions of a matrix of scores without storing it: the best scores of each row, and counts at thresholds.

On a GPU with a kernel for them (see `mutual_likelihood_matrix`) the scores stay in registers. Elsewhere
blocks of rows are scored, reduced and discarded.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spherecf.common.arrays import Array, as_tensor, match_input_type
from spherecf.errors import InputError
from spherecf.scoring.matrix import Pairs, Product, row_blocks
from spherecf.scoring.pairs import score_at_cosine

_BLOCK_CELLS = 1 << 24  # numbers per block of scores, 64 MiB, and per block of gathered candidates
_MAXIMA = 1 << 27  # maxima of groups per block, 512 MiB


class Top(NamedTuple):
    """The best columns of every row, best first."""

    scores: Any
    """(rows, count) float64."""
    columns: Any
    """(rows, count) int64."""


@torch.no_grad()
def mutual_likelihood_top(
    mu_a: Float[Array, "rows d"],
    kappa_a: Float[Array, " rows"],
    mu_b: Float[Array, "columns d"],
    kappa_b: Float[Array, " columns"],
    count: int,
    radius: float = 64.0,
    *,
    product: Product = "float32",
) -> Top:
    """The largest scores of every row of `mutual_likelihood_matrix`, in the memory of one block of it.

    A GPU keeps the maximum of every 16 columns as they are scored: the ``count`` best scores of a row are in
    the ``count`` groups of columns with the largest maxima. The scores of the result are recomputed in
    float64.

    Args:
        mu_a: (rows, dim) unit directions, float32 or float64: tensors or NumPy arrays.
        kappa_a: (rows,) concentrations, >= 0.
        mu_b: (columns, dim) unit directions of the same type.
        kappa_b: (columns,) concentrations, >= 0.
        count: number of scores per row, >= 1; all columns if there are fewer.
        radius: r of the sphere.
        product: as in `mutual_likelihood_matrix`. It affects which columns are found, not the accuracy of
            their scores.

    Returns:
        The scores in float64, largest first, and their columns: arrays if all arguments are arrays, else
        tensors. Which of several columns is returned is arbitrary if the product's rounding does not separate
        them.

    Raises:
        InputError: as in `mutual_likelihood_matrix`, or the count is below 1.

    Example:
        >>> import torch
        >>> mu, kappa = torch.eye(3), torch.full((3,), 50.0)
        >>> mutual_likelihood_top(mu, kappa, mu, kappa, count=1).columns.tolist()
        [[0], [1], [2]]
    """
    pairs = Pairs.of(mu_a, kappa_a, mu_b, kappa_b, radius, product)
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise InputError(f"count: expected an integer >= 1, got {count!r}")
    count = min(int(count), len(pairs.b))
    top_columns = torch.empty(len(pairs.a), count, dtype=torch.int64, device=pairs.a.device)
    scores = torch.empty_like(top_columns, dtype=torch.float64)
    for rows, columns in _candidates(pairs, count):
        exact = _exact_scores(pairs, rows, columns.clamp(max=len(pairs.b) - 1))  # (h, n)
        scores[rows], best = exact.masked_fill_(columns >= len(pairs.b), -torch.inf).topk(count)
        top_columns[rows] = columns.gather(1, best)
    return Top(*(match_input_type(result, mu_a, kappa_a, mu_b, kappa_b) for result in (scores, top_columns)))


@torch.no_grad()
def mutual_likelihood_counts(
    mu_a: Float[Array, "rows d"],
    kappa_a: Float[Array, " rows"],
    mu_b: Float[Array, "columns d"],
    kappa_b: Float[Array, " columns"],
    thresholds: Float[Array, "*batch t"],
    radius: float = 64.0,
    *,
    product: Product = "float32",
) -> Int64[Array, "rows t"]:
    """The number of scores in every row of `mutual_likelihood_matrix` that reach each threshold.

    Summed over the rows, it is the number of accepted pairs. With the score of a row's mate as that row's
    threshold, it is the rank of the mate. The time grows with the number of thresholds, slowly up to about
    30.

    Args:
        mu_a: (rows, dim) unit directions, float32 or float64: tensors or NumPy arrays.
        kappa_a: (rows,) concentrations, >= 0.
        mu_b: (columns, dim) unit directions of the same type.
        kappa_b: (columns,) concentrations, >= 0.
        thresholds: (t,) for all rows, or (rows, t) for each row separately. No score reaches NaN.
        radius: r of the sphere.
        product: as in `mutual_likelihood_matrix`.

    Returns:
        (rows, t) counts: an array if all arguments are arrays, else a tensor. A score within rounding of a
        threshold may be counted or not.

    Raises:
        InputError: as in `mutual_likelihood_matrix`, or thresholds of another shape.

    Example:
        >>> import torch
        >>> mu, kappa = torch.eye(3), torch.full((3,), 50.0)
        >>> mutual_likelihood_counts(mu, kappa, mu, kappa, torch.tensor([-50.0, 0.0]), radius=1.0).tolist()
        [[3, 1], [3, 1], [3, 1]]
    """
    pairs = Pairs.of(mu_a, kappa_a, mu_b, kappa_b, radius, product)
    limits = as_tensor(thresholds, "thresholds").to(pairs.a)
    rows = len(pairs.a)
    if limits.ndim not in (1, 2) or limits.shape[:-1] not in ((), (rows,)):
        raise InputError(f"thresholds: expected (t,) or ({rows}, t), got {tuple(limits.shape)}")
    if rows and len(pairs.b) and limits.numel() and (gpu := pairs.on_gpu()):
        kernels, *inputs = gpu
        counts = kernels.counts(*inputs, limits).long()
    else:
        counts = torch.zeros(rows, limits.shape[-1], dtype=torch.int64, device=limits.device)
        limits = limits.expand(rows, -1)  # (rows, t)
        for block, scores in _blocks(pairs):
            for i in range(limits.shape[1]):
                counts[block, i] = (scores >= limits[block, i, None]).sum(1)
    return match_input_type(counts, mu_a, kappa_a, mu_b, kappa_b, thresholds)


def _blocks(pairs: Pairs) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows, and their scores with all columns."""
    fill = pairs.scorer(_BLOCK_CELLS) if len(pairs.a) and len(pairs.b) else None
    for rows in row_blocks(len(pairs.a), len(pairs.b), _BLOCK_CELLS):
        scores = pairs.a.new_empty(rows.stop - rows.start, len(pairs.b))
        if fill is not None:
            fill(rows, scores)
        yield rows, scores


def _candidates(pairs: Pairs, count: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows, and columns (h, n) that contain the ``count`` best of each row.

    Some of the columns may be beyond the last one.
    """
    gpu = pairs.on_gpu() if len(pairs.a) and count else None
    if gpu is None or count * gpu[0].GROUP >= len(pairs.b):
        for rows, scores in _blocks(pairs):
            yield from _split_rows(rows, scores.topk(count).indices, pairs)
        return
    kernels, left, right, form = gpu
    in_group = torch.arange(kernels.GROUP, device=pairs.a.device)
    for rows in row_blocks(len(pairs.a), -(-len(pairs.b) // kernels.GROUP), _MAXIMA):
        groups = kernels.maxima(left.rows(rows), right, form).topk(count).indices  # (h, count)
        yield from _split_rows(rows, (groups[..., None] * kernels.GROUP + in_group).flatten(1), pairs)


def _split_rows(rows: slice, columns: Tensor, pairs: Pairs) -> Iterator[tuple[slice, Tensor]]:
    """The rows in blocks whose candidate directions, gathered by column, fit into memory."""
    for block in row_blocks(len(columns), columns.shape[1], _BLOCK_CELLS // pairs.a.shape[1]):
        yield slice(rows.start + block.start, rows.start + block.stop), columns[block]


def _exact_scores(pairs: Pairs, rows: slice, columns: Tensor) -> Tensor:
    """Scores of these rows with the columns (h, n) of each, in float64."""
    cos = torch.bmm(pairs.b[columns].double(), pairs.a[rows, :, None].double())[..., 0].clamp(-1, 1)
    return score_at_cosine(
        cos, pairs.kappa_a[rows, None], pairs.kappa_b[columns], pairs.a.shape[1], pairs.radius
    )
