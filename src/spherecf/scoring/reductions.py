"""What is wanted of a matrix of scores, without the matrix: the best of each row, counts against thresholds.

On a GPU with a kernel for it (see `mutual_likelihood_matrix`) scores stay in the registers that made them.
Elsewhere blocks of rows are scored and let go.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from spherecf.common.arrays import Array, as_tensor, like
from spherecf.errors import InputError
from spherecf.scoring.matrix import Pairs, Product, row_blocks
from spherecf.scoring.pairs import score_at_cosine

_BLOCK_CELLS = 1 << 24  # of scores, 64 MiB, and of what is gathered for candidates
_MAXIMA = 1 << 27  # held at once, 512 MiB


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
    """The largest scores of every row of `mutual_likelihood_matrix`, in the memory of a block of it.

    A GPU notes the best of every 16 columns as they are scored: the ``count`` best of a row stand among the
    ``count`` best sixteens. What was found is scored anew in float64.

    Args:
        mu_a: (rows, dim) unit directions, float32 or float64: tensors or NumPy arrays, answered in kind.
        kappa_a: (rows,) concentrations, >= 0.
        mu_b: (columns, dim).
        kappa_b: (columns,).
        count: how many of each row, 1 or more; all of them where there are fewer columns.
        radius: r of the sphere.
        product: as for the matrix; it decides what is found, not how exact its score is.

    Returns:
        Scores in float64, best first, and their columns; of scores that the product's rounding cannot tell
        apart, any.

    Raises:
        InputError: as `mutual_likelihood_matrix`; a count below 1.

    Example:
        >>> import torch
        >>> mu, kappa = torch.eye(3), torch.full((3,), 50.0)
        >>> mutual_likelihood_top(mu, kappa, mu, kappa, count=1).columns.tolist()
        [[0], [1], [2]]
    """
    pairs = Pairs.of(mu_a, kappa_a, mu_b, kappa_b, radius, product)
    if not isinstance(count, int) or count < 1:
        raise InputError(f"count: expected 1 or more, got {count!r}")
    count = min(count, len(pairs.b))
    found = torch.empty(len(pairs.a), count, dtype=torch.int64, device=pairs.a.device)
    scores = torch.empty_like(found, dtype=torch.float64)
    for rows, columns in _candidates(pairs, count):
        exact = _exact(pairs, rows, columns.clamp(max=len(pairs.b) - 1))  # (h, n)
        scores[rows], best = exact.masked_fill_(columns >= len(pairs.b), -torch.inf).topk(count)
        found[rows] = columns.gather(1, best)
    return Top(*(like(part, mu_a, kappa_a, mu_b, kappa_b) for part in (scores, found)))


@torch.no_grad()
def mutual_likelihood_counts(
    mu_a: Float[Array, "rows d"],
    kappa_a: Float[Array, " rows"],
    mu_b: Float[Array, "columns d"],
    kappa_b: Float[Array, " columns"],
    thresholds: Float[Array, "*own t"],
    radius: float = 64.0,
    *,
    product: Product = "float32",
) -> Int64[Array, "rows t"]:
    """How many scores of every row of `mutual_likelihood_matrix` reach each threshold, without the matrix.

    Their sum over rows is the number of pairs accepted; with a mate's score as the threshold of its own row
    it is the rank of the mate. The time grows with the number of thresholds, slowly up to about 30.

    Args:
        mu_a: (rows, dim) unit directions, float32 or float64: tensors or NumPy arrays, answered in kind.
        kappa_a: (rows,) concentrations, >= 0.
        mu_b: (columns, dim).
        kappa_b: (columns,).
        thresholds: (t,) for all rows, or (rows, t): of each its own. Nothing reaches NaN.
        radius: r of the sphere.
        product: as for the matrix.

    Returns:
        (rows, t) counts. A score within rounding of the threshold may fall on either side.

    Raises:
        InputError: as `mutual_likelihood_matrix`; thresholds of another shape.

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
        found = kernels.counts(*inputs, limits).long()
    else:
        found = torch.zeros(rows, limits.shape[-1], dtype=torch.int64, device=limits.device)
        limits = limits.expand(rows, -1)  # (rows, t)
        for block, scores in _blocks(pairs):
            for at in range(limits.shape[1]):
                found[block, at] = (scores >= limits[block, at, None]).sum(1)
    return like(found, mu_a, kappa_a, mu_b, kappa_b, thresholds)


def _blocks(pairs: Pairs) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows and their scores, all columns."""
    fill = pairs.scorer(_BLOCK_CELLS) if len(pairs.a) and len(pairs.b) else None
    for rows in row_blocks(len(pairs.a), len(pairs.b), _BLOCK_CELLS):
        scores = pairs.a.new_empty(rows.stop - rows.start, len(pairs.b))
        if fill is not None:
            fill(rows, scores)
        yield rows, scores


def _candidates(pairs: Pairs, count: int) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows and (h, n) columns that hold the ``count`` best of each; some may lie beyond the end."""
    gpu = pairs.on_gpu() if len(pairs.a) and count else None
    if gpu is None or count * gpu[0].GROUP >= len(pairs.b):
        for rows, scores in _blocks(pairs):
            yield from _cut(rows, scores.topk(count).indices, pairs)
        return
    kernels, left, right, form = gpu
    within = torch.arange(kernels.GROUP, device=pairs.a.device)
    for rows in row_blocks(len(pairs.a), -(-len(pairs.b) // kernels.GROUP), _MAXIMA):
        groups = kernels.maxima(left.rows(rows), right, form).topk(count).indices  # (h, count)
        yield from _cut(rows, (groups[..., None] * kernels.GROUP + within).flatten(1), pairs)


def _cut(rows: slice, columns: Tensor, pairs: Pairs) -> Iterator[tuple[slice, Tensor]]:
    """So many of these rows as gathering their columns has memory for."""
    for some in row_blocks(len(columns), columns.shape[1], _BLOCK_CELLS // pairs.a.shape[1]):
        yield slice(rows.start + some.start, rows.start + some.stop), columns[some]


def _exact(pairs: Pairs, rows: slice, columns: Tensor) -> Tensor:
    """Scores of columns (h, n) of these rows, in float64."""
    cos = torch.bmm(pairs.b[columns].double(), pairs.a[rows, :, None].double())[..., 0].clamp(-1, 1)
    return score_at_cosine(
        cos, pairs.kappa_a[rows, None], pairs.kappa_b[columns], pairs.a.shape[1], pairs.radius
    )
