"""Scores of millions of pairs of templates, in any order, picked from products of whole sets.

A product of two sets costs less than the dot products of a fortieth of its pairs, row by row: memory is read
once and not once per pair. Only where pairs are sparser than that, rows are gathered. Which of the two, and
all borders, depend on the templates and pairs alone: the same bits for any number of threads.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.common.arrays import check_kappa, checked_radius
from spherecf.errors import InputError
from spherecf.scoring.kernels import elementwise_kernel, normalizer_form, side_terms
from spherecf.scoring.matrix import product_into, row_blocks, spread
from spherecf.scoring.pairs import gaussian_score, score_at_cosine
from spherecf.scoring.templates import Templates

Array = NDArray[Any]

_STRIP_CELLS = 24_000_000  # of a product held at once: 92 MiB
_SPARSE = 40  # cells per pair beyond which gathering is quicker
_PAIRS = 1 << 14  # scored at once: all temporaries stay in the cache, and no thread of torch's is woken
_SHARP = 4000.0  # k_a k_b / (k_a + k_b) beyond which the float32 of a cosine near 1 would show in the score
_SHARP_PAIRS = 1 << 10
_GATHERED = 1 << 7  # rows of each side gathered at once


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
    """Score pairs of templates, given by their positions.

    Args:
        left: templates of the left side.
        right: templates of the right side; may be the same.
        left_at: (pairs,) position in ``left``, see `Templates.positions`; any order.
        right_at: (pairs,) position in ``right``.
        score: "mls" (mutual likelihood, equation 13 of Li et al., CVPR 2021), "cosine", or "gaussian"
            (`gaussian_score`, for templates with ``log_precision``; row by row, so slower).
        radius: r of the sphere, for "mls".
        threads: parts worked on at once, by default as many as torch has threads; the same bits for any.

    Returns:
        (pairs,) float32, larger = more alike. "mls" is within 2e-3 of `mutual_likelihood_score` where the
        score is of moderate size, and a few units in the last place where it is large.

    Raises:
        InputError: an unknown score, positions out of range, sides of different dimension, NaN.

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
        raise InputError(f"left has dimension {left.dim}, right {right.dim}; both must be of one recogniser")
    a, b = _positions("left_at", left_at, left), _positions("right_at", right_at, right)
    if a.shape != b.shape:
        raise InputError(f"left_at and right_at: expected equally many, got {a.size} and {b.size}")
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
        at = bad[0]
        raise InputError(
            f"{bad.size} of {out.size} scores are NaN, first of pair {at}: templates {left.ids[a[at]]} and "
            f"{right.ids[b[at]]}; their directions or precisions are NaN or infinite"
        )
    return out


def _positions(name: str, values: ArrayLike, side: Templates) -> Array:
    at = np.asarray(values)
    if at.ndim != 1 or (at.size and at.dtype.kind not in "iu"):
        raise InputError(f"{name}: expected a row of integers, got {at.shape} of {at.dtype}")
    if at.size and not 0 <= at.min() <= at.max() < len(side):
        raise InputError(f"{name}: expected 0 .. {len(side) - 1}, got {at.min()} .. {at.max()}")
    return at


@dataclass(frozen=True, eq=False)
class _Product:
    """The smallest product that holds all pairs: used rows by used columns, or a triangle of one set."""

    rows: Array
    """Positions that are used."""
    columns: Array
    triangle: bool
    """Rows and columns are the same; row i is needed from column i on."""

    @classmethod
    def of(cls, left_mu: Array, right_mu: Array, a: Array, b: Array) -> "_Product":
        rows, columns = _used(a, len(left_mu)), _used(b, len(right_mu))
        if left_mu is right_mu:
            either = np.union1d(rows, columns)
            if either.size * (either.size + 1) // 2 < rows.size * columns.size:
                return cls(either, either, True)
        return cls(rows, columns, False)

    @property
    def cells(self) -> int:
        height, width = self.rows.size, self.columns.size
        return height * (height + 1) // 2 if self.triangle else height * width

    def strips(self) -> list[slice]:
        """Of rows, each of as many cells as are held at once."""
        if not self.triangle:
            return row_blocks(self.rows.size, self.columns.size, _STRIP_CELLS)
        strips, start, count = [], 0, self.rows.size
        while start < count:
            stop = min(count, start + max(1, _STRIP_CELLS // (count - start)))
            strips.append(slice(start, stop))
            start = stop
        return strips


def _used(at: Array, count: int) -> Array:
    seen = np.zeros(count, np.bool_)
    seen[at] = True
    return np.flatnonzero(seen)


def _taken(mu: Array, positions: Array) -> Array:
    """Rows at ascending positions; where that is all of them, no copy."""
    return mu if positions.size == len(mu) else mu[positions]


def _places(positions: Array, count: int) -> Array:
    place = np.zeros(count, np.int64)
    place[positions] = np.arange(positions.size)
    return place


def _cosines(out: Array, left_mu: Array, right_mu: Array, a: Array, b: Array, threads: int | None) -> None:
    product = _Product.of(left_mu, right_mu, a, b)
    if product.cells > _SPARSE * a.size:
        _gather(out, left_mu, right_mu, a, b, threads)
        return
    rows = _taken(left_mu, product.rows)
    columns = rows if product.triangle else _taken(right_mu, product.columns)
    row_of, column_of = _places(product.rows, len(left_mu)), _places(product.columns, len(right_mu))
    strips = product.strips()
    strip_of = np.repeat(np.arange(len(strips), dtype=np.uint16), [s.stop - s.start for s in strips])
    owner = np.empty(a.size, np.uint16)  # strip of each pair

    def assign(start: int) -> None:
        pairs = slice(start, start + _PAIRS)
        found = strip_of[row_of[a[pairs]]]
        owner[pairs] = np.minimum(found, strip_of[row_of[b[pairs]]]) if product.triangle else found

    def pick(number: int, cells: Array, width: int, start: int) -> None:
        pairs = slice(start, start + _PAIRS)
        here = np.flatnonzero(owner[pairs] == number)
        i, j = row_of[a[pairs][here]], column_of[b[pairs][here]]
        if product.triangle:
            i, j = np.minimum(i, j), np.maximum(i, j)
        i -= strips[number].start
        i *= width
        i += j
        out[pairs][here] = cells[i - (len(columns) - width)]

    _run(assign, out.size, threads)
    firsts = [strip.start if product.triangle else 0 for strip in strips]
    shapes = [(strip.stop - strip.start, len(columns) - first) for strip, first in zip(strips, firsts)]
    memory = np.empty(max(height * width for height, width in shapes), np.float32)
    for number, (height, width) in enumerate(shapes):
        cells = memory[: height * width].reshape(height, width)
        product_into(cells, rows[strips[number]], columns[firsts[number] :], threads)
        _run(partial(pick, number, cells.reshape(-1), width), out.size, threads)


def _gather(out: Array, left_mu: Array, right_mu: Array, a: Array, b: Array, threads: int | None) -> None:
    def dot(start: int) -> None:
        for at in range(start, min(start + _PAIRS, out.size), _GATHERED):
            block = slice(at, min(at + _GATHERED, start + _PAIRS))
            np.vecdot(left_mu[a[block]], right_mu[b[block]], out=out[block])

    _run(dot, out.size, threads)


def _mutual_likelihood(
    cos: Array, left: Templates, right: Templates, a: Array, b: Array, radius: float, threads: int | None
) -> None:
    """Cosines to scores, in place."""
    kernel = elementwise_kernel(normalizer_form(left.dim))
    sides = []
    for name, side in (("left", left), ("right", right)):
        kappa = torch.from_numpy(side.kappa)
        check_kappa(kappa, f"{name}: kappa")
        sides.append([terms.numpy() for terms in side_terms(kappa, left.dim, radius, torch.float32)])
    (kappa_a, offset_a), (kappa_b, offset_b) = sides

    def turn(start: int) -> Array:
        block = slice(start, start + _PAIRS)
        i, j = a[block], b[block]
        near = np.flatnonzero(cos[block] > 0.5)  # looked at before the kernel overwrites the cosines
        k, m = kappa_a[i[near]], kappa_b[j[near]]
        kernel(*map(torch.from_numpy, (cos[block], kappa_a[i], kappa_b[j], offset_a[i], offset_b[j])))
        sharp: Array = start + near[k * m > _SHARP * (k + m)]
        return sharp

    # Few pairs, very sure and very alike: theirs are computed anew, from a cosine in float64.
    every = np.concatenate(list(spread(turn, range(0, cos.size, _PAIRS), threads)))
    for start in range(0, every.size, _SHARP_PAIRS):
        at = every[start : start + _SHARP_PAIRS]
        i, j = a[at], b[at]
        exact = np.vecdot(left.mu[i].astype(np.float64), right.mu[j].astype(np.float64)).clip(-1, 1)
        x, k, m = map(torch.from_numpy, (exact, left.kappa[i], right.kappa[j]))
        cos[at] = score_at_cosine(x, k, m, left.dim, radius).numpy()


def _gaussian(out: Array, left: Templates, right: Templates, a: Array, b: Array, threads: int | None) -> None:
    p, q = left.log_precision, right.log_precision
    if p is None or q is None:
        raise InputError(
            "score 'gaussian': templates without log_precision; pool them with log_precision=..."
        )

    def score(start: int) -> None:
        for at in range(start, min(start + _PAIRS, out.size), _GATHERED):
            block = slice(at, min(at + _GATHERED, start + _PAIRS))
            i, j = a[block], b[block]
            out[block] = gaussian_score(*map(torch.from_numpy, (left.mu[i], p[i], right.mu[j], q[j]))).numpy()

    _run(score, out.size, threads)


def _run(part: Callable[[int], None], pairs: int, threads: int | None) -> None:
    for _ in spread(part, range(0, pairs, _PAIRS), threads):
        pass
