"""Scores of all pairs of two sets: products by blocks, then one elementwise pass over each, in place.

Borders of blocks depend on the shapes alone, and every block is one product: the same bits for any number of
threads.

``c(k) = log C_d(k) + k`` is needed at ``p = |k_a mu_a + k_b mu_b|`` of every pair. In the manner of the
uniform expansion of I_nu (DLMF 10.41.3), with ``w = sqrt(m^2 + k^2)`` and ``t = m / w``,

    c(k) = -m^2 / (k + w) + (d - 1)/2 * log((m + w) / 2m) + R(t) + constant

where R is smooth on the whole of 0 < t <= 1, so one polynomial serves every k from 0 to infinity. It is
fitted once per dimension, in float64, to the exact function. The choice ``m = max(d/2, 2)`` makes degree 8
enough for 7e-6 at every dimension (2e-8 from d = 64 on): below what float32 holds.

One function, used two ways: fused by torch.compile into a single pass over memory, or eagerly on chunks
that stay in the cache (every temporary of a whole matrix would travel to memory and back, ten times slower).
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import Chebyshev, Polynomial
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
)
from spherecf.common.progress import in_order
from spherecf.errors import InputError
from spherecf.scoring.pairs import concentrations, directions
from spherecf.vmf import log_normalizer_scaled, product_concentration

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


_DEGREE = 8
_NODES = 48  # where the polynomial is fitted: far more than its degree, so the fit is as good as the best one


@dataclass(frozen=True)
class NormalizerForm:
    """c(k) = constant + half * log((m + w) / 2m) - m^2 / (k + w) + sum_i coefficients[i] * (m / w)^i."""

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


log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]

_EAGER_ELEMENTS_PER_THREAD = 65536


def elementwise_kernel(form: NormalizerForm) -> Kernel:
    """The pass itself, on tensors that broadcast; its temporaries are of their size.

    `score_at_cosine` in another form: the same `product_concentration`, c(p) by the polynomial.
    """
    m, half, scale, square = form.m, form.half, 0.5 / form.m, form.m * form.m
    highest, *others = reversed(form.coefficients)

    def kernel(cos: Tensor, kappa_a: Tensor, kappa_b: Tensor, offset_a: Tensor, offset_b: Tensor) -> None:
        # All is (rows, columns), made of kappas and offsets (rows, 1) and (1, columns).
        x = cos.clamp(-1, 1)
        p, p_square, apart = product_concentration(kappa_a, kappa_b, 1 + x, 1 - x, smallest=0.0)
        w = (p_square + square).sqrt()
        t = m / w
        rest = torch.full_like(t, highest)
        for coefficient in others:  # Horner's scheme
            rest = rest * t + coefficient
        at_p = half * ((m + w) * scale).log() + rest - square / (p + w)  # c(p) without the constant
        cos.copy_((offset_a - at_p) + offset_b - apart)  # in this order the sums stay small, for float32

    return kernel


@lru_cache(maxsize=32)
def eager_kernel(dim: int) -> Kernel:
    """Chunk by chunk, without a compiler."""
    kernel = elementwise_kernel(normalizer_form(dim))

    def chunked(cos: Tensor, kappa_a: Tensor, kappa_b: Tensor, offset_a: Tensor, offset_b: Tensor) -> None:
        # The kernel makes about ten temporaries; of a chunk they fit into the cache of each thread.
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
    try:  # compilation happens at the first call, so here is where it fails
        wide, tall = torch.ones(1, 96, device=device), torch.ones(64, 1, device=device)
        compiled(torch.zeros(64, 96, device=device), tall, wide, tall, wide)
    except Exception as error:  # whatever the tool chain raises: torch wraps it in classes of many modules
        reason = str(error).strip().splitlines()[:1]
        log.warning("torch.compile is not available here, scoring eagerly (slower, same results): %s", reason)
        return eager_kernel(dim)
    return compiled


_BLOCK_ELEMENTS = 1 << 26
_WORTH_COMPILING = 1 << 28  # below this many pairs, compiling costs more seconds than it saves
_SMALLEST_KAPPA = 1e-12  # stands in for 0, where p and k_a + k_b would give 0 / 0; same score in float32


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
) -> Float[Array, "rows columns"]:
    """Mutual likelihood scores of all pairs (equation 13), the formula of `mutual_likelihood_score`.

    Needs the memory of its result and no more: the product is written into ``out`` block by block and turned
    into scores where it stands. For matrices larger than memory call it on blocks of rows, or pass an ``out``
    that is mapped to a file (``torch.from_file``). No gradients.

    Args:
        mu_a: (rows, dim) unit directions, float32 or float64: tensors or NumPy arrays, answered in kind.
        kappa_a: (rows,) concentrations, >= 0.
        mu_b: (columns, dim).
        kappa_b: (columns,).
        radius: r of the sphere.
        out: (rows, columns) of the same type, filled and returned; made if not given.
        compiled: fuse the elementwise pass with torch.compile (needs a C++ compiler; some seconds on first
            use, then several times faster). Default: only for a quarter of a billion pairs or more.

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
    r = checked_radius(radius)
    a, b = directions(2, mu_a=mu_a, mu_b=mu_b)
    k_a, k_b = (
        concentrations(kappa, mu, name, exact=True)
        for kappa, mu, name in ((kappa_a, a, "kappa_a"), (kappa_b, b, "kappa_b"))
    )
    target = _target(a, b, out)
    if target.numel():
        _fill(target, a, k_a, b, k_b, r, compiled)
    return like(target, mu_a, kappa_a, mu_b, kappa_b) if out is None else out


def _fill(
    out: Tensor, a: Tensor, k_a: Tensor, b: Tensor, k_b: Tensor, radius: float, compiled: bool | None
) -> None:
    dim = a.shape[1]
    # (rows, 1) of the left side, (1, columns) of the right one.
    tall, tall_offset = (column[:, None] for column in side_terms(k_a, dim, radius, out.dtype))
    wide, wide_offset = (column[None, :] for column in side_terms(k_b, dim, radius, out.dtype))
    if compiled is None:
        compiled = out.numel() >= _WORTH_COMPILING
    kernel = compiled_kernel(dim, out.device.type) if compiled else eager_kernel(dim)
    height = max(1, _BLOCK_ELEMENTS // out.shape[1])
    for start in range(0, out.shape[0], height):
        rows = slice(start, start + height)
        torch.mm(a[rows], b.T, out=out[rows])  # cosines; scores take their place
        kernel(out[rows], tall[rows], wide, tall_offset[rows], wide_offset)


def side_terms(kappa: Tensor, dim: int, radius: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(kappa, c(kappa) less half of every constant), (n,) each: what an image brings to all of its scores.

    Constants are the polynomial's and d log r: thousands at d = 512, which would cost float32 its digits.
    """
    exact = kappa.double().clamp_min(_SMALLEST_KAPPA)
    shift = (normalizer_form(dim).constant + dim * math.log(radius)) / 2
    return exact.to(dtype), (log_normalizer_scaled(exact, dim) - shift).to(dtype)


def _target(a: Tensor, b: Tensor, out: Array | None) -> Tensor:
    """Where the scores go: ``out``, or new memory."""
    shape = (a.shape[0], b.shape[0])
    if a.dtype != b.dtype or a.dtype not in (torch.float32, torch.float64):
        raise InputError(f"mu_a and mu_b must both be float32 or float64, got {a.dtype} and {b.dtype}")
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
