"""Scores of all pairs on a GPU: a tile's product, its scores and their reduction in one Triton kernel.

The cosines never leave the registers. Tensor cores have no float32, so each coordinate, times 2^15, is split
into two float16 parts, its first 11 bits and the next 11. Three products of parts sum to the float32 product
(the product of both second parts is below 2^-24 of the whole), in less time than float32 itself takes: Ootomo
and Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32 theoretical peak
performance", 2022. The first parts alone have the 11 bits of tf32, at twice its rate. With this scaling no
coordinate overflows, and values that underflow are below 2^-40.

Imported only where there is a GPU or Triton's interpreter, as it needs `triton`.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spherecf.scoring.kernels import normalizer_form

_HEIGHT = _WIDTH = 128  # of a tile
_STEP = 64  # float16 per row and step, all parts together: 32 KiB per tile, three times in shared memory
GROUP = 16
"""Number of neighbouring columns of which `maxima` returns the largest score."""

_SCALE = 2.0**15
_UNSCALE = tl.constexpr(_SCALE**-2)
_STRIP = tl.constexpr(8)  # rows of tiles per strip; programs go down a strip first, to share the cache


class Side(NamedTuple):
    """One side of the pairs, as the kernels read it."""

    parts: Tensor
    """(n, parts, depth) float16; depth is dim, padded with zeros to a multiple of the step."""
    terms: Tensor
    """(2, n) float32: kappa, and the offset c(kappa) of `spherecf.scoring.kernels.side_terms`."""

    def rows(self, rows: slice) -> "Side":
        """A slice of the side."""
        return Side(self.parts[rows], self.terms[:, rows].contiguous())


def side(mu: Tensor, terms: tuple[Tensor, Tensor], parts: int) -> Side:
    """Directions (n, dim) in float32, split into one or two parts, and their `side_terms` (n,)."""
    count, dim = mu.shape
    step = _STEP // parts
    split = torch.zeros(count, parts, -(-dim // step) * step, dtype=torch.float16, device=mu.device)
    remainder = mu * _SCALE  # (n, dim)
    for part in range(parts):
        split[:, part, :dim] = remainder
        remainder = remainder - split[:, part, :dim]
    return Side(split, torch.stack(terms))


@cache
def form_on(dim: int, device: torch.device) -> Tensor:
    """`NormalizerForm` as the kernels read it: m, (d - 1) / 2 and the polynomial, highest power first."""
    form = normalizer_form(dim)
    return torch.tensor([form.m, form.half, *reversed(form.coefficients)], dtype=torch.float32, device=device)


def matrix(out: Tensor, left: Side, right: Side, form: Tensor) -> None:
    """Write all scores to ``out`` (rows, columns)."""
    _launch(_matrix, left, right, form, out, *out.stride())


def maxima(left: Side, right: Side, form: Tensor) -> Tensor:
    """The largest score of every row in each group of `GROUP` columns, (rows, groups)."""
    out = form.new_empty(len(left.parts), -(-len(right.parts) // GROUP))
    _launch(_maxima, left, right, form, out, out.shape[1], GROUP)
    return out


def counts(left: Side, right: Side, form: Tensor, thresholds: Tensor) -> Tensor:
    """The number of scores of every row that reach each threshold, (t,) or (rows, t): (rows, t) int32."""
    n_thresholds = thresholds.shape[-1]
    out = torch.zeros(len(left.parts), n_thresholds, dtype=torch.int32, device=form.device)
    _launch(_counts, left, right, form, out, thresholds.contiguous(), thresholds.ndim - 1, n_thresholds)
    return out


def _launch(kernel: Any, left: Side, right: Side, form: Tensor, out: Tensor, *extra: Any) -> None:
    """Run a kernel with one program per tile; ``extra`` are its arguments after ``out``."""
    rows, parts, depth = left.parts.shape
    columns = len(right.parts)
    grid = (triton.cdiv(rows, _HEIGHT) * triton.cdiv(columns, _WIDTH),)
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        kernel[grid](
            left.parts, right.parts, left.terms, right.terms, form, rows, columns, out, *extra,
            DEPTH=depth, PARTS=parts, STEP=_STEP // parts, DEGREE=len(form) - 3,
            HEIGHT=_HEIGHT, WIDTH=_WIDTH, num_warps=8, num_stages=3, enable_fp_fusion=True,
        )  # fmt: skip


@triton.jit
def _tile_indices(rows, columns, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The rows (HEIGHT,) and columns (WIDTH,) of this program's tile, which may go beyond the ends."""
    program = tl.program_id(0)
    tile_rows, tile_columns = tl.cdiv(rows, HEIGHT), tl.cdiv(columns, WIDTH)
    strip = program // (_STRIP * tile_columns)
    strip_height = tl.minimum(tile_rows - strip * _STRIP, _STRIP)
    in_strip = program - strip * _STRIP * tile_columns
    i = (strip * _STRIP + in_strip % strip_height).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    j = (in_strip // strip_height).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    return i, j


@triton.jit
def _cosines(left, right, i, j, DEPTH: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """The cosines (HEIGHT, WIDTH) of rows i of the left and rows j of the right side."""
    k = tl.arange(0, STEP)
    a = left + i[:, None] * (PARTS * DEPTH) + k[None, :]  # (HEIGHT, STEP)
    b = right + j[None, :] * (PARTS * DEPTH) + k[:, None]  # (STEP, WIDTH)
    total = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for start in range(0, DEPTH, STEP):
        x, y = tl.load(a + start), tl.load(b + start)
        if PARTS == 1:
            total = tl.dot(x, y, total)
        else:
            # Tensor cores round every sum towards zero: they sum one step only, the total is summed outside.
            step = tl.dot(tl.load(a + DEPTH + start), y)
            step = tl.dot(x, tl.load(b + DEPTH + start), step)
            step = tl.dot(x, y, step)
            total += step
    return tl.minimum(tl.maximum(total * _UNSCALE, -1.0), 1.0)


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    left, right, left_terms, right_terms, form, rows, columns,
    DEPTH: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, DEGREE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """This program's rows and columns, and their scores (HEIGHT, WIDTH) as in `spherecf.scoring.kernels`."""
    row, column = _tile_indices(rows, columns, HEIGHT, WIDTH)
    # Indices beyond the ends wrap around to the start, which is cheaper than masks.
    i, j = row % rows, column % columns
    x = _cosines(left, right, i, j, DEPTH, PARTS, STEP)
    kappa_a, offset_a = tl.load(left_terms + i)[:, None], tl.load(left_terms + rows + i)[:, None]
    kappa_b, offset_b = tl.load(right_terms + j)[None, :], tl.load(right_terms + columns + j)[None, :]
    m, half = tl.load(form), tl.load(form + 1)
    product, gap = 2.0 * kappa_a * kappa_b, kappa_a - kappa_b
    square = product * (1.0 + x) + (gap * gap + m * m)  # w^2
    inverse = tl.rsqrt(square)  # faster than a root and a division
    w, t = square * inverse, m * inverse
    log_c = t * 0.0 + tl.load(form + 2)
    for i_coefficient in tl.static_range(DEGREE):  # Horner's scheme
        log_c = log_c * t + tl.load(form + 3 + i_coefficient)
    log_c += half * tl.log((m + w) * (0.5 / m))  # log C_d(p) + w - constant
    excess = (product * (1.0 - x) - m * m) / (w + (kappa_a + kappa_b))  # k_a + k_b - w
    return row, column, (offset_a - log_c) + offset_b - excess


@triton.jit(do_not_specialize=["rows", "columns"])
def _matrix(  # type: ignore[no-untyped-def]
    left, right, left_terms, right_terms, form, rows, columns, out, row_stride, column_stride,
    DEPTH: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, DEGREE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    i, j, score = _tile(
        left, right, left_terms, right_terms, form, rows, columns, DEPTH, PARTS, STEP, DEGREE, HEIGHT, WIDTH
    )
    pointers = out + i[:, None] * row_stride + j[None, :] * column_stride
    tl.store(pointers, score, mask=(i < rows)[:, None] & (j < columns)[None, :])


@triton.jit(do_not_specialize=["rows", "columns", "groups"])
def _maxima(  # type: ignore[no-untyped-def]
    left, right, left_terms, right_terms, form, rows, columns, out, groups, GROUP: tl.constexpr,
    DEPTH: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, DEGREE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    i, j, score = _tile(
        left, right, left_terms, right_terms, form, rows, columns, DEPTH, PARTS, STEP, DEGREE, HEIGHT, WIDTH
    )
    score = tl.where((j < columns)[None, :], score, float("-inf"))
    group_max = tl.max(tl.reshape(score, (HEIGHT, WIDTH // GROUP, GROUP)), axis=2)
    group = tl.min(j, axis=0) // GROUP + tl.arange(0, WIDTH // GROUP)
    mask = (i < rows)[:, None] & (group < groups)[None, :]
    tl.store(out + i[:, None] * groups + group[None, :], group_max, mask=mask)


@triton.jit(do_not_specialize=["rows", "columns", "per_row", "n_thresholds"])
def _counts(  # type: ignore[no-untyped-def]
    left, right, left_terms, right_terms, form, rows, columns, out, thresholds, per_row, n_thresholds,
    DEPTH: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, DEGREE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``per_row`` is 1 if thresholds are (rows, t), 0 if they are (t,)."""
    i, j, score = _tile(
        left, right, left_terms, right_terms, form, rows, columns, DEPTH, PARTS, STEP, DEGREE, HEIGHT, WIDTH
    )
    mask = (i < rows)[:, None] & (j < columns)[None, :]
    for column in range(n_thresholds):
        threshold = tl.load(thresholds + (i % rows) * (per_row * n_thresholds) + column)
        count = tl.sum(((score >= threshold[:, None]) & mask).to(tl.int32), axis=1)
        tl.atomic_add(out + i * n_thresholds + column, count, mask=(i < rows) & (count > 0))
