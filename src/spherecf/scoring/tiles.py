"""Products of two sets of directions, a block of rows at a time, by several threads.

Borders of blocks depend on the shapes alone, and every block is one product: the same bits for any number of
threads.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.common.arrays import SCORE_TOLERANCE, AnyArray, are_unit, as_array, check_directions
from spherecf.common.progress import in_order
from spherecf.errors import InputError

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
