"""Scores of millions of pairs of templates in any order, picked from matrix products of whole sets.

The product of two sets takes less time than the dot products of a fortieth of its pairs, row by row, because
memory is not read once per pair. Only if the pairs are sparser than that, their rows are gathered. The method
and all block boundaries depend only on the templates and pairs, so results are bitwise equal for any number
of threads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.common.arrays import as_array, check_kappa, checked_radius
from spherecf.errors import InputError
from spherecf.scoring.kernels import elementwise_kernel, normalizer_form, side_terms
from spherecf.scoring.matrix import product_into, row_blocks, run_in_threads
from spherecf.scoring.pairs import gaussian_score, score_at_cosine
from spherecf.scoring.templates import Templates

Array = NDArray[Any]

_STRIP_CELLS = 24_000_000  # cells of the product in memory at a time, 92 MiB
_SPARSE = 40  # cells of the product per pair beyond which gathering is faster
_PAIRS = 1 << 14  # per block: its temporaries stay in the cache, and torch does not start threads for it
_SHARP = 4000.0  # k_a k_b / (k_a + k_b) beyond which rounding of a float32 cosine near 1 shows in the score
_SHARP_PAIRS = 1 << 10  # per block of pairs recomputed in float64
_GATHERED = 1 << 7  # rows of each side gathered at a time


def score_template_pairs(
    left: Templates,
    right: Templates,
    left_at: ArrayLike,
    right_at: ArrayLike,
    score: str = "mls",
    radius: float = 64.0,
    *,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """Scores of pairs of templates that are given by their positions.

    Args:
        left: templates of the left side.
        right: templates of the right side; may be the same object.
        left_at: (pairs,) positions in ``left``, in any order; `Templates.positions` finds them by id.
        right_at: (pairs,) positions in ``right``.
        score: "mls" (mutual likelihood, equation 13 of Li et al., CVPR 2021), "cosine", or "gaussian"
            (`gaussian_score`, for templates with ``log_precision``; slower, as it is computed row by row).
        radius: r of the sphere, for "mls".
        threads: number of blocks computed concurrently, by default torch's number of threads. It does not
            change the result.

    Returns:
        (pairs,) scores in float32, larger = more similar. "mls" is within 2e-3 of `mutual_likelihood_score`
        where the score is of moderate size, and within a few units in the last place where it is large.

    Raises:
        InputError: the score is unknown, positions are out of range, the sides' dimensions differ, or a score
            is NaN.

    Example:
        >>> import numpy as np
        >>> from spherecf.scoring import pool_templates
        >>> t = pool_templates(np.eye(2, dtype=np.float32), np.array([5.0, 9.0]), [3, 4])
        >>> score_template_pairs(t, t, [0, 0], [0, 1], "cosine").tolist()
        [1.0, 0.0]
    """
    r = checked_radius(radius)
    if score not in ("mls", "cosine", "gaussian"):
        raise InputError(f"score: expected 'mls', 'cosine' or 'gaussian', got {score!r}")
    if left.dim != right.dim:
        raise InputError(
            f"left has dimension {left.dim}, right {right.dim}; both must come from the same recogniser"
        )
    a, b = _positions("left_at", left_at, left), _positions("right_at", right_at, right)
    if a.shape != b.shape:
        raise InputError(f"left_at and right_at: expected the same length, got {a.size} and {b.size}")
    out = np.empty(a.size, np.float32)
    if not out.size:
        return out
    if score == "gaussian":
        _gaussian(out, left, right, a, b, threads)
    else:
        _cosines(out, left.mu, right.mu, a, b, threads)
    if score == "mls":
        _mutual_likelihood(out, left, right, a, b, r, threads)
    bad = np.flatnonzero(np.isnan(out))
    if bad.size:
        pair = bad[0]
        raise InputError(
            f"{bad.size} of {out.size} scores are NaN, first of pair {pair}: templates {left.ids[a[pair]]} "
            f"and {right.ids[b[pair]]}; their directions or precisions are NaN or infinite"
        )
    return out


def _positions(name: str, values: ArrayLike, side: Templates) -> Array:
    """``values`` as positions of templates, checked."""
    positions = as_array(values, name)
    if positions.ndim != 1 or (positions.size and positions.dtype.kind not in "iu"):
        raise InputError(
            f"{name}: expected a one-dimensional array of integers, got {positions.shape} of "
            f"{positions.dtype}"
        )
    if positions.size and not 0 <= positions.min() <= positions.max() < len(side):
        raise InputError(f"{name}: expected 0 .. {len(side) - 1}, got {positions.min()} .. {positions.max()}")
    return positions


@dataclass(frozen=True, eq=False)
class _Product:
    """The smallest product that contains all pairs: used rows by used columns, or a triangle of one set."""

    rows: Array
    """Positions of the used templates on the left, ascending."""
    columns: Array
    """Positions of the used templates on the right, ascending."""
    triangle: bool
    """Whether rows and columns are the same, and row i is needed only from column i on."""

    @classmethod
    def of(cls, left_mu: Array, right_mu: Array, a: Array, b: Array) -> "_Product":
        rows, columns = _used_positions(a, len(left_mu)), _used_positions(b, len(right_mu))
        if left_mu is right_mu:
            both = np.union1d(rows, columns)
            if both.size * (both.size + 1) // 2 < rows.size * columns.size:
                return cls(both, both, True)
        return cls(rows, columns, False)

    @property
    def cells(self) -> int:
        """Number of cosines."""
        height, width = self.rows.size, self.columns.size
        return height * (height + 1) // 2 if self.triangle else height * width

    def strips(self) -> list[slice]:
        """Slices of rows with about `_STRIP_CELLS` cells each."""
        if not self.triangle:
            return row_blocks(self.rows.size, self.columns.size, _STRIP_CELLS)
        strips, start, count = [], 0, self.rows.size
        while start < count:
            stop = min(count, start + max(1, _STRIP_CELLS // (count - start)))
            strips.append(slice(start, stop))
            start = stop
        return strips


def _used_positions(positions: Array, count: int) -> Array:
    """The distinct positions, ascending."""
    is_used = np.zeros(count, np.bool_)
    is_used[positions] = True
    return np.flatnonzero(is_used)


def _select_rows(mu: Array, positions: Array) -> Array:
    """The rows at distinct ascending positions; without a copy if these are all rows."""
    return mu if positions.size == len(mu) else mu[positions]


def _inverse_positions(positions: Array, count: int) -> Array:
    """The index within ``positions`` of each of ``count`` templates, 0 for the others."""
    index = np.zeros(count, np.int64)
    index[positions] = np.arange(positions.size)
    return index


def _cosines(out: Array, left_mu: Array, right_mu: Array, a: Array, b: Array, threads: int | None) -> None:
    """Write the cosines of the pairs (a, b) to ``out`` (pairs,)."""
    product = _Product.of(left_mu, right_mu, a, b)
    if product.cells > _SPARSE * a.size:
        _gather_cosines(out, left_mu, right_mu, a, b, threads)
        return
    rows = _select_rows(left_mu, product.rows)
    columns = rows if product.triangle else _select_rows(right_mu, product.columns)
    row_of = _inverse_positions(product.rows, len(left_mu))
    column_of = _inverse_positions(product.columns, len(right_mu))
    strips = product.strips()
    strip_of_row = np.repeat(np.arange(len(strips), dtype=np.uint16), [s.stop - s.start for s in strips])
    strip_of_pair = np.empty(a.size, np.uint16)

    def assign(start: int) -> None:
        pairs = slice(start, start + _PAIRS)
        strip = strip_of_row[row_of[a[pairs]]]
        if product.triangle:  # the pair is in the row of whichever template comes first
            strip = np.minimum(strip, strip_of_row[row_of[b[pairs]]])
        strip_of_pair[pairs] = strip

    def pick(strip: int, cells: Array, width: int, start: int) -> None:
        pairs = slice(start, start + _PAIRS)
        in_strip = np.flatnonzero(strip_of_pair[pairs] == strip)
        i, j = row_of[a[pairs][in_strip]], column_of[b[pairs][in_strip]]
        if product.triangle:
            i, j = np.minimum(i, j), np.maximum(i, j)
        i -= strips[strip].start
        i *= width
        i += j
        out[pairs][in_strip] = cells[i - (len(columns) - width)]  # the strip begins at that column

    _run_blocks(assign, out.size, threads)
    first_columns = [strip.start if product.triangle else 0 for strip in strips]
    shapes = [(strip.stop - strip.start, len(columns) - first) for strip, first in zip(strips, first_columns)]
    memory = np.empty(max(height * width for height, width in shapes), np.float32)
    for strip, (height, width) in enumerate(shapes):
        cells = memory[: height * width].reshape(height, width)
        product_into(cells, rows[strips[strip]], columns[first_columns[strip] :], threads)
        _run_blocks(partial(pick, strip, cells.reshape(-1), width), out.size, threads)


def _gather_cosines(
    out: Array, left_mu: Array, right_mu: Array, a: Array, b: Array, threads: int | None
) -> None:
    """The same by dot products of gathered rows."""

    def dot(start: int) -> None:
        for first in range(start, min(start + _PAIRS, out.size), _GATHERED):
            block = slice(first, min(first + _GATHERED, start + _PAIRS))
            np.vecdot(left_mu[a[block]], right_mu[b[block]], out=out[block])

    _run_blocks(dot, out.size, threads)


def _mutual_likelihood(
    cos: Array, left: Templates, right: Templates, a: Array, b: Array, radius: float, threads: int | None
) -> None:
    """Turn cosines into scores, in place."""
    kernel = elementwise_kernel(normalizer_form(left.dim))
    terms = []
    for name, side in (("left", left), ("right", right)):
        kappa = torch.from_numpy(side.kappa)
        check_kappa(kappa, f"{name}: kappa")
        terms.append([term.numpy() for term in side_terms(kappa, left.dim, radius, torch.float32)])
    (kappa_a, offset_a), (kappa_b, offset_b) = terms

    def score(start: int) -> Array:
        """Score a block, and return the indices of its pairs that need a float64 cosine."""
        block = slice(start, start + _PAIRS)
        i, j = a[block], b[block]
        similar = np.flatnonzero(cos[block] > 0.5)  # before the kernel overwrites the cosines
        k, m = kappa_a[i[similar]], kappa_b[j[similar]]
        kernel(*map(torch.from_numpy, (cos[block], kappa_a[i], kappa_b[j], offset_a[i], offset_b[j])))
        sharp: Array = start + similar[k * m > _SHARP * (k + m)]
        return sharp

    # The few pairs with very high kappas and a high cosine are recomputed from a float64 cosine.
    sharp = np.concatenate(list(run_in_threads(score, range(0, cos.size, _PAIRS), threads)))
    for start in range(0, sharp.size, _SHARP_PAIRS):
        pairs = sharp[start : start + _SHARP_PAIRS]
        i, j = a[pairs], b[pairs]
        exact = np.vecdot(left.mu[i].astype(np.float64), right.mu[j].astype(np.float64)).clip(-1, 1)
        x, k, m = map(torch.from_numpy, (exact, left.kappa[i], right.kappa[j]))
        cos[pairs] = score_at_cosine(x, k, m, left.dim, radius).numpy()


def _gaussian(out: Array, left: Templates, right: Templates, a: Array, b: Array, threads: int | None) -> None:
    """Write the Gaussian scores of the pairs (a, b) to ``out`` (pairs,)."""
    p, q = left.log_precision, right.log_precision
    if p is None or q is None:
        raise InputError(
            "score 'gaussian': these are templates without log_precision; pool them with log_precision=..."
        )

    def score(start: int) -> None:
        for first in range(start, min(start + _PAIRS, out.size), _GATHERED):
            block = slice(first, min(first + _GATHERED, start + _PAIRS))
            i, j = a[block], b[block]
            out[block] = gaussian_score(*map(torch.from_numpy, (left.mu[i], p[i], right.mu[j], q[j]))).numpy()

    _run_blocks(score, out.size, threads)


def _run_blocks(function: Callable[[int], None], pairs: int, threads: int | None) -> None:
    """Call the function with the start of every block of pairs."""
    for _ in run_in_threads(function, range(0, pairs, _PAIRS), threads):
        pass
