"""Scores of all pairs on a GPU: a tile's product, its scores and what is asked of them, in one Triton kernel.

The cosines never leave the registers. Tensor cores know no float32, so a coordinate, times 2^15, is taken
apart into two numbers of float16, its first 11 bits and its next. Three products of parts (that of both
remainders is below 2^-24 of the whole) sum to the float32 product, in less time than float32 itself takes:
Ootomo and Yokota, "Recovering single precision accuracy from Tensor Cores while surpassing the FP32
theoretical peak performance", 2022. The first part alone has the 11 bits of tf32, and twice its rate. Scaled
so, no coordinate overflows, and what underflows is below 2^-40.

Imported where there is a GPU or Triton's interpreter: needs `triton`.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spherecf.scoring.kernels import normalizer_form

_HEIGHT = _WIDTH = 128  # of a tile
_STEP = 64  # of float16 of a row, whatever part: with those of a column 32 KiB, thrice in shared memory
GROUP = 16
"""Neighbouring columns whose largest score `maxima` gives."""

_SCALE = 2.0**15
_UNSCALE = tl.constexpr(_SCALE**-2)
_STRIP = tl.constexpr(8)  # tiles that go down a strip before the next column: they share what is in the cache


class Side(NamedTuple):
    """What one set brings to the kernels."""

    parts: Tensor
    """(n, parts, depth) of float16; depth is dim and zeros."""
    terms: Tensor
    """(2, n) float32: kappa, and c(kappa) without constants."""

    def rows(self, some: slice) -> "Side":
        """Some of the set."""
        return Side(self.parts[some], self.terms[:, some].contiguous())


def side(mu: Tensor, terms: tuple[Tensor, Tensor], parts: int) -> Side:
    """One or two parts of (n, dim) float32 directions, and their terms (n,) of `side_terms`."""
    count, dim = mu.shape
    step = _STEP // parts
    taken = torch.zeros(count, parts, -(-dim // step) * step, dtype=torch.float16, device=mu.device)
    rest = mu * _SCALE  # (n, dim)
    for part in range(parts):
        taken[:, part, :dim] = rest
        rest = rest - taken[:, part, :dim]
    return Side(taken, torch.stack(terms))


@cache
def form_on(dim: int, device: torch.device) -> Tensor:
    """`NormalizerForm` as the kernels read it: m, (d - 1) / 2 and the polynomial, highest power first."""
    exact = normalizer_form(dim)
    return torch.tensor(
        [exact.m, exact.half, *reversed(exact.coefficients)], dtype=torch.float32, device=device
    )


def matrix(out: Tensor, left: Side, right: Side, form: Tensor) -> None:
    """Fill (rows, columns) with scores."""
    _launch(_matrix, left, right, form, out, *out.stride())


def maxima(left: Side, right: Side, form: Tensor) -> Tensor:
    """(rows, groups) largest score of a row among each `GROUP` columns."""
    out = form.new_empty(len(left.parts), -(-len(right.parts) // GROUP))
    _launch(_maxima, left, right, form, out, out.shape[1], GROUP)
    return out


def counts(left: Side, right: Side, form: Tensor, thresholds: Tensor) -> Tensor:
    """(rows, t) int32, how many scores of a row reach each threshold, (t,) or (rows, t)."""
    number = thresholds.shape[-1]
    out = torch.zeros(len(left.parts), number, dtype=torch.int32, device=form.device)
    _launch(_counts, left, right, form, out, thresholds.contiguous(), thresholds.ndim - 1, number)
    return out


def _launch(kernel: Any, left: Side, right: Side, form: Tensor, out: Tensor, *more: Any) -> None:
    rows, parts, depth = left.parts.shape
    columns = len(right.parts)
    grid = (triton.cdiv(rows, _HEIGHT) * triton.cdiv(columns, _WIDTH),)
    with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
        kernel[grid](
            left.parts, right.parts, left.terms, right.terms, form, rows, columns, out, *more,
            DEPTH=depth, PARTS=parts, STEP=_STEP // parts, DEGREE=len(form) - 3,
            HEIGHT=_HEIGHT, WIDTH=_WIDTH, num_warps=8, num_stages=3, enable_fp_fusion=True,
        )  # fmt: skip


@triton.jit
def _place(rows, columns, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """The rows (HEIGHT,) and columns (WIDTH,) of this program, some of them beyond the ends."""
    number = tl.program_id(0)
    down, across = tl.cdiv(rows, HEIGHT), tl.cdiv(columns, WIDTH)
    strip = number // (_STRIP * across)
    height = tl.minimum(down - strip * _STRIP, _STRIP)
    within = number - strip * _STRIP * across
    i = (strip * _STRIP + within % height).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    j = (within // height).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    return i, j


@triton.jit
def _cosines(left, right, i, j, DEPTH: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr):  # type: ignore[no-untyped-def]
    """(HEIGHT, WIDTH) products of rows i and j."""
    k = tl.arange(0, STEP)
    a = left + i[:, None] * (PARTS * DEPTH) + k[None, :]  # (HEIGHT, STEP)
    b = right + j[None, :] * (PARTS * DEPTH) + k[:, None]  # (STEP, WIDTH)
    total = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for start in range(0, DEPTH, STEP):
        x, y = tl.load(a + start), tl.load(b + start)
        if PARTS == 1:
            total = tl.dot(x, y, total)
        else:
            # Tensor cores round every sum towards zero: only short ones are theirs.
            part = tl.dot(tl.load(a + DEPTH + start), y)
            part = tl.dot(x, tl.load(b + DEPTH + start), part)
            part = tl.dot(x, y, part)
            total += part
    return tl.minimum(tl.maximum(total * _UNSCALE, -1.0), 1.0)


@triton.jit
def _tile(  # type: ignore[no-untyped-def]
    left, right, left_terms, right_terms, form, rows, columns,
    DEPTH: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, DEGREE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Rows and columns of this program, and their (HEIGHT, WIDTH) scores by `spherecf.scoring.kernels`."""
    row, column = _place(rows, columns, HEIGHT, WIDTH)
    # Beyond the ends those from the start again: cheaper than masks.
    i, j = row % rows, column % columns
    x = _cosines(left, right, i, j, DEPTH, PARTS, STEP)
    kappa_a, offset_a = tl.load(left_terms + i)[:, None], tl.load(left_terms + rows + i)[:, None]
    kappa_b, offset_b = tl.load(right_terms + j)[None, :], tl.load(right_terms + columns + j)[None, :]
    m, half = tl.load(form), tl.load(form + 1)
    product, gap = 2.0 * kappa_a * kappa_b, kappa_a - kappa_b
    square = product * (1.0 + x) + (gap * gap + m * m)
    root = tl.rsqrt(square)  # quicker than a root and a division
    w, t = square * root, m * root
    rest = t * 0.0 + tl.load(form + 2)
    for power in tl.static_range(DEGREE):  # Horner's scheme
        rest = rest * t + tl.load(form + 3 + power)
    rest += half * tl.log((m + w) * (0.5 / m))
    apart = (product * (1.0 - x) - m * m) / (w + (kappa_a + kappa_b))
    return row, column, (offset_a - rest) + offset_b - apart


@triton.jit(do_not_specialize=["rows", "columns"])
def _matrix(  # type: ignore[no-untyped-def]
    left, right, left_terms, right_terms, form, rows, columns, out, row_stride, column_stride,
    DEPTH: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, DEGREE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    i, j, score = _tile(
        left, right, left_terms, right_terms, form, rows, columns, DEPTH, PARTS, STEP, DEGREE, HEIGHT, WIDTH
    )
    to = out + i[:, None] * row_stride + j[None, :] * column_stride
    tl.store(to, score, mask=(i < rows)[:, None] & (j < columns)[None, :])


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
    best = tl.max(tl.reshape(score, (HEIGHT, WIDTH // GROUP, GROUP)), axis=2)
    group = tl.min(j, axis=0) // GROUP + tl.arange(0, WIDTH // GROUP)
    tl.store(
        out + i[:, None] * groups + group[None, :], best, mask=(i < rows)[:, None] & (group < groups)[None, :]
    )


@triton.jit(do_not_specialize=["rows", "columns", "own", "number"])
def _counts(  # type: ignore[no-untyped-def]
    left, right, left_terms, right_terms, form, rows, columns, out, thresholds, own, number,
    DEPTH: tl.constexpr, PARTS: tl.constexpr, STEP: tl.constexpr, DEGREE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """``own`` is 1 where every row has thresholds of its own, else 0."""
    i, j, score = _tile(
        left, right, left_terms, right_terms, form, rows, columns, DEPTH, PARTS, STEP, DEGREE, HEIGHT, WIDTH
    )
    there = (i < rows)[:, None] & (j < columns)[None, :]
    for at in range(number):
        limit = tl.load(thresholds + (i % rows) * (own * number) + at)
        found = tl.sum(((score >= limit[:, None]) & there).to(tl.int32), axis=1)
        tl.atomic_add(out + i * number + at, found, mask=(i < rows) & (found > 0))
