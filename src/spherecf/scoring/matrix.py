"""Scores of all pairs of two sets: a matrix product per block, then one elementwise pass over it, in place.

The blocks depend only on the shapes, and every block is one product, so results are bitwise equal for any
number of threads. The formula of a pair is in `spherecf.scoring.kernels`, or in `spherecf.scoring.fused` on a
GPU.
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
    match_input_type,
    triton_runs_on,
)
from spherecf.common.progress import in_order
from spherecf.errors import InputError
from spherecf.scoring.kernels import compiled_kernel, eager_kernel, side_terms
from spherecf.scoring.pairs import check_on_gpu, concentrations, directions

Item = TypeVar("Item")
Result = TypeVar("Result")

_CELLS = 1 << 22  # scores per block, 16 MiB
_MIN_ROWS = 32  # per block: products of fewer rows are no faster


def cosine_tiles(
    a: AnyArray, b: AnyArray, *, threads: int | None = None
) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """The cosines of all pairs of two sets: blocks of rows of ``a @ b.T``, in order.

    Only a few blocks are in memory at a time.

    Args:
        a: (rows, dim) unit directions: a NumPy array, which may be mapped from a file, or a tensor.
        b: (columns, dim) unit directions.
        threads: number of blocks computed concurrently, by default torch's number of threads. It does not
            change the result.

    Yields:
        A slice of the rows, and their cosines (rows of the block, columns).

    Raises:
        InputError: shapes do not fit, or directions are not of unit length (as in `cosine_score`); ``a`` is
            checked block by block.

    Example:
        >>> import numpy as np
        >>> [(rows, tile.shape) for rows, tile in cosine_tiles(np.eye(3), np.eye(3)[:2])]
        [(slice(0, 3, None), (3, 2))]
    """
    return tiles(threads, a=a, b=b)


def tiles(threads: int | None, **sides: AnyArray) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """`cosine_tiles` of two arguments, by the names that messages use."""
    (a_name, a), (b_name, b) = ((name, as_array(side, name)) for name, side in sides.items())
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise InputError(f"expected (rows, dim) and (columns, dim), got {a.shape} and {b.shape}")
    b = np.asarray(b, np.float32)
    check_directions(b, b_name, SCORE_TOLERANCE)
    blocks = row_blocks(len(a), len(b), max(_CELLS, _MIN_ROWS * len(b)))
    return run_in_threads(partial(_tile, a_name, a, b), blocks, threads)


def _tile(
    name: str, a: NDArray[Any], b: NDArray[np.float32], rows: slice
) -> tuple[slice, NDArray[np.float32]]:
    block = np.asarray(a[rows], np.float32)
    if not are_unit(block, SCORE_TOLERANCE):
        check_directions(a, name, SCORE_TOLERANCE)  # all rows, for a message that counts them
    return rows, block @ b.T


def product_into(
    out: NDArray[np.float32], a: NDArray[np.float32], b: NDArray[np.float32], threads: int | None
) -> None:
    """``out[:] = a @ b.T``, by blocks of rows."""

    def fill(rows: slice) -> None:
        np.matmul(a[rows], b.T, out=out[rows])

    for _ in run_in_threads(fill, row_blocks(len(a), len(b), max(_CELLS, _MIN_ROWS * len(b))), threads):
        pass


def row_blocks(rows: int, columns: int, cells: int) -> list[slice]:
    """Slices of nearly equal numbers of rows, with about ``cells`` cells each."""
    count = min(rows, -(-rows * columns // cells)) if rows * columns else min(rows, 1)
    borders = [rows * i // count for i in range(count + 1)] if count else []
    return [slice(start, stop) for start, stop in pairwise(borders)]


def run_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None
) -> Iterator[Result]:
    """``function(item)`` of all items, in order, by ``threads`` threads (default: torch's number).

    For one thread, the caller's thread computes.
    """
    n_threads = torch.get_num_threads() if threads is None else threads
    if not isinstance(n_threads, int | np.integer) or n_threads < 1:
        raise InputError(f"threads: expected 1 or more, an integer, got {n_threads!r}")
    return map(function, items) if n_threads == 1 else _run_in_threads(function, items, n_threads)


def _run_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], n_threads: int
) -> Iterator[Result]:
    torch_threads = torch.get_num_threads()

    def run_one(item: Item) -> Result:
        torch.set_num_threads(1)  # in this thread: torch must not start threads of its own
        return function(item)

    try:
        yield from in_order(run_one, items, n_threads, "score")
    finally:
        torch.set_num_threads(torch_threads)  # for threads started later


_BLOCK_ELEMENTS = 1 << 26  # scores per matrix product
_WORTH_COMPILING = 1 << 28  # pairs: below that number, compiling takes longer than it saves

Product = Literal["float32", "tf32", "bfloat16"]


@torch.no_grad()
def cosine_matrix(
    mu_a: Float[Array, "rows d"],
    mu_b: Float[Array, "columns d"],
    out: Float[Array, "rows columns"] | None = None,
) -> Float[Array, "rows columns"]:
    """The cosines of all pairs of two sets.

    Args:
        mu_a: (rows, dim) unit directions, float32 or float64: tensors or NumPy arrays.
        mu_b: (columns, dim) unit directions of the same type.
        out: (rows, columns) of the same type, filled and returned; new memory if not given.

    Returns:
        (rows, columns) cosines: an array if both are arrays, else a tensor.

    Raises:
        InputError: directions are not of unit length (as in `cosine_score`), or dimensions or types differ.

    Example:
        >>> import torch
        >>> cosine_matrix(torch.eye(2), torch.tensor([[0.6, 0.8]])).tolist()
        [[0.6000000238418579], [0.800000011920929]]
    """
    a, b = directions(2, mu_a=mu_a, mu_b=mu_b)
    _check_types(a, b)
    scores = _output_tensor(a, b, out)
    torch.mm(a, b.T, out=scores)
    return match_input_type(scores, mu_a, mu_b) if out is None else out


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
    """The mutual likelihood scores of all pairs of two sets, with the formula of `mutual_likelihood_score`.

    It needs no memory beyond its result: the matrix product is written into ``out`` block by block and turned
    into scores in place. On NVIDIA GPUs (compute capability 8.0 or more, float32) one kernel computes both,
    from a copy of the directions. For matrices larger than memory, call it on blocks of rows or pass an
    ``out`` that is mapped to a file (``torch.from_file``); `mutual_likelihood_top` and
    `mutual_likelihood_counts` need no matrix. It has no gradients.

    Args:
        mu_a: (rows, dim) unit directions, float32 or float64: tensors or NumPy arrays.
        kappa_a: (rows,) concentrations, >= 0.
        mu_b: (columns, dim) unit directions of the same type.
        kappa_b: (columns,) concentrations, >= 0.
        radius: r of the sphere.
        out: (rows, columns) of the same type, filled and returned; new memory if not given.
        compiled: whether to fuse the elementwise pass with torch.compile (needs a C++ compiler; takes some
            seconds on first use and is several times faster afterwards). Default: for 2^28 pairs or more; on
            a GPU with its own kernel, that kernel is used instead.
        product: precision of the cosines. "float32": 2e-7. "tf32" rounds coordinates to 11 bits, which
            changes a cosine by 1.3e-5 (root mean square, dimension 512), and needs one multiplication on a
            GPU instead of three. "bfloat16" rounds to 8 bits (1e-4) in the same time as "tf32". Without a GPU
            kernel the rounding is the same, but nothing is gained.

    Returns:
        (rows, columns) scores, larger = more similar: an array if all arguments are arrays, else a tensor. In
        float32 the error is at most 2e-3 where the score is of moderate size, and a few units in the last
        place where it is large (below about -4000).

    Raises:
        InputError: concentrations are NaN, negative or infinite, directions are not of unit length (as in
            `cosine_score`), or shapes or types do not fit.

    Example:
        >>> import torch
        >>> mu = torch.nn.functional.normalize(torch.randn(3, 8, generator=torch.manual_seed(0)), dim=1)
        >>> kappa = torch.tensor([1.0, 10.0, 100.0])
        >>> scores = mutual_likelihood_matrix(mu, kappa, mu, kappa)
        >>> scores.shape, bool(torch.allclose(scores, scores.T, atol=1e-4))
        (torch.Size([3, 3]), True)
    """
    pairs = Pairs.of(mu_a, kappa_a, mu_b, kappa_b, radius, product)
    scores = _output_tensor(pairs.a, pairs.b, out)
    if scores.numel():
        pairs.scorer(scores.numel(), compiled)(slice(None), scores)
    return match_input_type(scores, mu_a, kappa_a, mu_b, kappa_b) if out is None else out


class Pairs(NamedTuple):
    """Both sides of a matrix of pairs, checked."""

    a: Tensor
    """(rows, dim) unit directions."""
    kappa_a: Tensor
    """(rows,)."""
    b: Tensor
    """(columns, dim) unit directions."""
    kappa_b: Tensor
    """(columns,)."""
    radius: float
    product: str
    """The precision of the cosines, see `mutual_likelihood_matrix`."""

    @classmethod
    def of(cls, mu_a: Any, kappa_a: Any, mu_b: Any, kappa_b: Any, radius: Any, product: str) -> "Pairs":
        """From the arguments of a public function; values on a GPU are checked with one synchronisation."""
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
        """A function ``fill(rows, out)`` that writes the scores of a slice of rows to ``out`` (h, columns).

        The terms that depend on one side only are computed here, once. Neither side may be empty.

        Args:
            cells: the number of scores of one call, at most.
            compiled: as in `mutual_likelihood_matrix`.
        """
        if compiled is None and (gpu := self.on_gpu()):
            kernels, left, right, form = gpu
            return lambda rows, out: kernels.matrix(out, left.rows(rows), right, form)
        a, b, dim = _rounded(self.a, self.product), _rounded(self.b, self.product), self.a.shape[1]
        kappa_a, offset_a = (terms[:, None] for terms in self._terms(self.kappa_a))  # (rows, 1)
        kappa_b, offset_b = (terms[None, :] for terms in self._terms(self.kappa_b))  # (1, columns)
        if compiled is None:
            compiled = cells >= _WORTH_COMPILING
        kernel = compiled_kernel(dim, a.device.type) if compiled else eager_kernel(dim)
        height = max(1, _BLOCK_ELEMENTS // len(b))

        def fill(rows: slice, out: Tensor) -> None:
            mu, kappa, offset = a[rows], kappa_a[rows], offset_a[rows]
            for start in range(0, len(mu), height):
                block = slice(start, start + height)
                torch.mm(mu[block], b.T, out=out[block])  # cosines, which the kernel replaces by scores
                kernel(out[block], kappa[block], kappa_b, offset[block], offset_b)

        return fill

    def on_gpu(self) -> tuple[Any, ...] | None:
        """`spherecf.scoring.fused` with its arguments, both sides and the form; None if it cannot run."""
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
    """Coordinates rounded to the bits of the product."""
    if product == "float32":
        return mu
    if product == "bfloat16":
        return mu.bfloat16().float()
    return (mu * 2.0**15).half().float() * 2.0**-15  # float16 has the bits of tf32, scaled into its range


def _output_tensor(a: Tensor, b: Tensor, out: Array | None) -> Tensor:
    """The tensor for the scores: ``out``, sharing its memory, or new memory."""
    shape = (a.shape[0], b.shape[0])
    if out is None:
        return torch.empty(shape, dtype=a.dtype, device=a.device)
    tensor = as_tensor(out, "out")
    if tuple(tensor.shape) != shape or tensor.dtype != a.dtype or tensor.device != a.device:
        raise InputError(
            f"out: expected {shape} of {a.dtype} on {a.device}, got {tuple(tensor.shape)} of {tensor.dtype} "
            f"on {tensor.device}"
        )
    if isinstance(out, np.ndarray) and (not out.flags.writeable or tensor.data_ptr() != out.ctypes.data):
        raise InputError("out: expected an array that torch can write to, neither read-only nor reversed")
    return tensor
