"""Scores of all pairs of two sets: products by blocks, then one elementwise pass over each, in place.

Borders of blocks depend on the shapes alone, and every block is one product: the same bits for any number of
threads.

The formula of a pair is `spherecf.scoring.kernels`, on a GPU `spherecf.scoring.fused`.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spherecf.common.arrays import (
    SCORE_TOLERANCE,
    AnyArray,
    Array,
    are_unit,
    as_array,
    as_tensor,
    check_directions,
    checked_radius,
    like,
    triton_runs_on,
)
from spherecf.common.progress import in_order
from spherecf.errors import InputError
from spherecf.scoring.kernels import compiled_kernel, eager_kernel, side_terms
from spherecf.scoring.pairs import check_on_gpu, concentrations, directions

Item = TypeVar("Item")
Result = TypeVar("Result")

_CELLS = 1 << 22  # of a block: 16 MiB
_LEAST = 32  # rows of a block: with fewer, a product is no quicker


def cosine_tiles(
    a: AnyArray, b: AnyArray, *, threads: int | None = None
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Row blocks of ``a @ b.T``, in order: all pairs of two sets, in the memory of a few blocks.

    Args:
        a: (rows, dim) unit directions: a NumPy array, which may be mapped from a file, or a tensor.
        b: (columns, dim).
        threads: blocks worked on at once, by default as many as torch has threads; the same bits for any.

    Yields:
        (rows, (rows, columns) cosines).

    Raises:
        InputError: shapes that do not fit, or directions that are not of unit length (as in `cosine_score`);
            those of ``a`` are looked at with their block.

    Example:
        >>> import numpy as np
        >>> [(rows, tile.shape) for rows, tile in cosine_tiles(np.eye(3), np.eye(3)[:2])]
        [(slice(0, 3, None), (3, 2))]
    """
    return tiles(threads, a=a, b=b)


def tiles(threads: int | None, **sides: AnyArray) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """`cosine_tiles` of two sides by the names that messages call them."""
    (name, rows), (other, columns) = ((name, as_array(side, name)) for name, side in sides.items())
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
        raise InputError(f"expected (rows, dim) and (columns, dim), got {rows.shape} and {columns.shape}")
    columns = np.asarray(columns, np.float32)
    check_directions(columns, other, SCORE_TOLERANCE)
    blocks = row_blocks(len(rows), len(columns), max(_CELLS, _LEAST * len(columns)))
    return spread(partial(_tile, name, rows, columns), blocks, threads)


def _tile(
    name: str, a: NDArray[Any], b: NDArray[np.float32], rows: slice
) -> tuple[slice, NDArray[np.float32]]:
    block = np.asarray(a[rows], np.float32)
    if not are_unit(block, SCORE_TOLERANCE):
        check_directions(a, name, SCORE_TOLERANCE)  # all of them, to count them
    return rows, block @ b.T


def product_into(
    out: NDArray[np.float32], a: NDArray[np.float32], b: NDArray[np.float32], threads: int | None
) -> None:
    """``out[:] = a @ b.T``."""

    def fill(rows: slice) -> None:
        np.matmul(a[rows], b.T, out=out[rows])

    for _ in spread(fill, row_blocks(len(a), len(b), max(_CELLS, _LEAST * len(b))), threads):
        pass


def row_blocks(rows: int, columns: int, cells: int) -> list[slice]:
    """Slices of nearly equal height, of about ``cells`` cells each."""
    count = min(rows, -(-rows * columns // cells)) if rows * columns else min(rows, 1)
    borders = [rows * i // count for i in range(count + 1)] if count else []
    return [slice(start, stop) for start, stop in pairwise(borders)]


def spread(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None
) -> Iterator[Result]:
    """Results in order, by ``threads`` threads (default: as many as torch has), by none for one."""
    workers = torch.get_num_threads() if threads is None else threads
    if workers < 1:
        raise InputError(f"threads: expected 1 or more, got {workers}")
    return map(function, items) if workers == 1 else _spread(function, items, workers)


def _spread(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    before = torch.get_num_threads()

    def alone(item: Item) -> Result:
        torch.set_num_threads(1)  # of this thread: our threads are all there should be
        return function(item)

    try:
        yield from in_order(alone, items, workers, "score")
    finally:
        torch.set_num_threads(before)  # for threads that begin from now on


_BLOCK_ELEMENTS = 1 << 26
_WORTH_COMPILING = 1 << 28  # below this many pairs, compiling costs more seconds than it saves

Product = Literal["float32", "tf32", "bfloat16"]


@torch.no_grad()
def cosine_matrix(
    mu_a: Float[Array, "rows d"],
    mu_b: Float[Array, "columns d"],
    out: Float[Array, "rows columns"] | None = None,
) -> Float[Array, "rows columns"]:
    """Cosines of all pairs; ``out``, where given, is filled and returned.

    Tensors or NumPy arrays, answered in kind.

    Raises:
        InputError: directions that are not of unit length (as in `cosine_score`), different dimensions or
            types.

    Example:
        >>> import torch
        >>> cosine_matrix(torch.eye(2), torch.tensor([[0.6, 0.8]])).tolist()
        [[0.6000000238418579], [0.800000011920929]]
    """
    a, b = directions(2, mu_a=mu_a, mu_b=mu_b)
    _check_types(a, b)
    target = _target(a, b, out)
    torch.mm(a, b.T, out=target)
    return like(target, mu_a, mu_b) if out is None else out


@torch.no_grad()
def mutual_likelihood_matrix(
    mu_a: Float[Array, "rows d"],
    kappa_a: Float[Array, " rows"],
    mu_b: Float[Array, "columns d"],
    kappa_b: Float[Array, " columns"],
    radius: float = 64.0,
    *,
    out: Float[Array, "rows columns"] | None = None,
    compiled: bool | None = None,
    product: Product = "float32",
) -> Float[Array, "rows columns"]:
    """Mutual likelihood scores of all pairs (equation 13), the formula of `mutual_likelihood_score`.

    Needs the memory of its result and no more: the product is written into ``out`` block by block and turned
    into scores where it stands; on NVIDIA GPUs (compute capability 8.0 or more, float32) one kernel makes
    both, from a copy of the directions. For matrices larger than memory call it on blocks of rows, or pass an
    ``out`` that is mapped to a file (``torch.from_file``); `mutual_likelihood_top` and
    `mutual_likelihood_counts` need no matrix. No gradients.

    Args:
        mu_a: (rows, dim) unit directions, float32 or float64: tensors or NumPy arrays, answered in kind.
        kappa_a: (rows,) concentrations, >= 0.
        mu_b: (columns, dim).
        kappa_b: (columns,).
        radius: r of the sphere.
        out: (rows, columns) of the same type, filled and returned; made if not given.
        compiled: fuse the elementwise pass with torch.compile (needs a C++ compiler; some seconds on first
            use, then several times faster), or do not. Default: only for a quarter of a billion pairs or
            more; on a GPU with a kernel of its own, that kernel.
        product: how exact the cosines are. "float32": to 2e-7. "tf32" rounds coordinates to 11 bits, which
            moves a cosine by 1.3e-5 (root mean square, dimension 512), and a GPU multiplies once instead of
            three times; "bfloat16" rounds to 8 bits, 1e-4, in the same time. Without a kernel of its own the
            same rounding, and no gain.

    Returns:
        (rows, columns) scores, larger = more alike. In float32 the error is at most 2e-3 where the score is
        of moderate size, and a few units in the last place where it is large (below about -4000).

    Raises:
        InputError: NaN, negative or infinite concentrations, directions that are not of unit length (as in
            `cosine_score`), shapes or types that do not fit.

    Example:
        >>> import torch
        >>> mu = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.manual_seed(0)), dim=1)
        >>> kappa = torch.tensor([1.0, 10.0, 100.0])
        >>> scores = mutual_likelihood_matrix(mu, kappa, mu, kappa)
        >>> scores.shape, bool(torch.allclose(scores, scores.T, atol=1e-4))
        (torch.Size([3, 3]), True)
    """
    pairs = Pairs.of(mu_a, kappa_a, mu_b, kappa_b, radius, product)
    target = _target(pairs.a, pairs.b, out)
    if target.numel():
        pairs.scorer(target.numel(), compiled)(slice(None), target)
    return like(target, mu_a, kappa_a, mu_b, kappa_b) if out is None else out


class Pairs(NamedTuple):
    """Both sides of all pairs, checked."""

    a: Tensor
    """(rows, dim)."""
    kappa_a: Tensor
    b: Tensor
    kappa_b: Tensor
    radius: float
    product: str

    @classmethod
    def of(cls, mu_a: Any, kappa_a: Any, mu_b: Any, kappa_b: Any, radius: Any, product: str) -> "Pairs":
        """From arguments; where they are on a GPU, their values are looked at once."""
        r = checked_radius(radius)
        a, b = directions(2, mu_a=mu_a, mu_b=mu_b, on_gpu=False)
        k_a, k_b = (
            concentrations(kappa, mu, name, exact=True, on_gpu=False)
            for kappa, mu, name in ((kappa_a, a, "kappa_a"), (kappa_b, b, "kappa_b"))
        )
        check_on_gpu({"mu_a": a, "mu_b": b}, {"kappa_a": k_a, "kappa_b": k_b})
        if product not in get_args(Product):
            raise InputError(f"product: expected one of {', '.join(get_args(Product))}, got {product!r}")
        _check_types(a, b)
        if product != "float32" and a.dtype == torch.float64:
            raise InputError(f"product {product}: expected directions of float32, got float64")
        return cls(a, k_a, b, k_b, r, product)

    def scorer(self, cells: int, compiled: bool | None = None) -> Callable[[slice, Tensor], None]:
        """What fills (rows, columns), of up to ``cells``, neither side 0, with the scores of some rows.

        What each side brings to all of its scores is computed here, once.
        """
        if compiled is None and (gpu := self.on_gpu()):
            kernels, left, right, form = gpu
            return lambda rows, out: kernels.matrix(out, left.rows(rows), right, form)
        a, b, dim = _rounded(self.a, self.product), _rounded(self.b, self.product), self.a.shape[1]
        tall, tall_offset = (column[:, None] for column in self._terms(self.kappa_a))  # (rows, 1)
        wide, wide_offset = (column[None, :] for column in self._terms(self.kappa_b))  # (1, columns)
        if compiled is None:
            compiled = cells >= _WORTH_COMPILING
        kernel = compiled_kernel(dim, a.device.type) if compiled else eager_kernel(dim)
        height = max(1, _BLOCK_ELEMENTS // len(b))

        def fill(rows: slice, out: Tensor) -> None:
            own, kappa, offset = a[rows], tall[rows], tall_offset[rows]
            for start in range(0, len(own), height):
                block = slice(start, start + height)
                torch.mm(own[block], b.T, out=out[block])  # cosines; scores take their place
                kernel(out[block], kappa[block], wide, offset[block], wide_offset)

        return fill

    def on_gpu(self) -> tuple[Any, ...] | None:
        """`spherecf.scoring.fused`, both sides and the form as it takes them; None where it does not run."""
        if self.a.dtype != torch.float32 or not triton_runs_on(self.a.device, (8, 0)):
            return None
        from spherecf.scoring import fused

        left, right = (
            fused.side(_rounded(mu, self.product), self._terms(kappa), 2 if self.product == "float32" else 1)
            for mu, kappa in ((self.a, self.kappa_a), (self.b, self.kappa_b))
        )
        return fused, left, right, fused.form_on(self.a.shape[1], self.a.device)

    def _terms(self, kappa: Tensor) -> tuple[Tensor, Tensor]:
        return side_terms(kappa, self.a.shape[1], self.radius, self.a.dtype)


def _check_types(a: Tensor, b: Tensor) -> None:
    if a.dtype != b.dtype or a.dtype not in (torch.float32, torch.float64):
        raise InputError(f"mu_a and mu_b must both be float32 or float64, got {a.dtype} and {b.dtype}")


def _rounded(mu: Tensor, product: str) -> Tensor:
    """Coordinates with as many bits as the product has."""
    if product == "float32":
        return mu
    if product == "bfloat16":
        return mu.bfloat16().float()
    return (mu * 2.0**15).half().float() * 2.0**-15  # the bits of tf32, by scaling in range of float16


def _target(a: Tensor, b: Tensor, out: Array | None) -> Tensor:
    """Where the scores go: ``out``, or new memory."""
    shape = (a.shape[0], b.shape[0])
    if out is None:
        return torch.empty(shape, dtype=a.dtype, device=a.device)
    target = as_tensor(out, "out")
    if tuple(target.shape) != shape or target.dtype != a.dtype or target.device != a.device:
        raise InputError(
            f"out: expected {shape} of {a.dtype} on {a.device}, got {tuple(target.shape)} of {target.dtype} "
            f"on {target.device}"
        )
    if isinstance(out, np.ndarray) and (not out.flags.writeable or target.data_ptr() != out.ctypes.data):
        raise InputError("out: expected an array that torch can write to, not read-only, nor reversed")
    return target
