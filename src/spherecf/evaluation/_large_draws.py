"""Subjects drawn with replacement, and the weights of pairs under many draws at once.

A pair weighs the product of its two subjects' counts. The weight of many pairs under all draws is a sum of
rows of the (subjects, draws) counts, or a quadratic form. All weights are whole numbers, and exact.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.errors import InputError

Array = NDArray[Any]

_EXACT = 1 << 24  # float32 holds all whole numbers up to this
_BAGS = 256  # sums of rows held at once, so that they stay in the cache
_PAIRS = 1 << 16  # looked up at once


class Draws:
    """Counts of the subjects under several draws; one subject more, drawn once each, stands for nobody."""

    def __init__(self, counts: Array) -> None:
        self.counts = np.append(counts, np.ones((len(counts), 1)), 1).astype(np.int32)
        """(draws, subjects + 1)."""
        self.rows = torch.from_numpy(np.ascontiguousarray(self.counts.T, np.float32))
        self.code = np.uint16 if counts.shape[1] < 1 << 16 else np.int32  # NumPy sorts the first in one pass
        self.largest = int(self.counts.max())
        self.piece = max(1, _EXACT // self.largest**2)
        """Pairs whose weights surely add up exactly in float32."""

    def weigh(self, a: Array, b: Array) -> NDArray[np.float64]:
        """(draws,) summed weight of pairs: for each left subject, its count times the counts it meets."""
        total = np.zeros(len(self.counts))
        for start in range(0, a.size, self.piece):
            left = a[start : start + self.piece]
            order = np.argsort(left.astype(self.code), kind="stable")
            left, right = left[order], b[start : start + self.piece][order]
            first = np.flatnonzero(np.append(True, left[1:] != left[:-1]))
            for bags in range(0, first.size, _BAGS):
                starts = first[bags : bags + _BAGS]
                end = first[bags + _BAGS] if bags + _BAGS < first.size else left.size
                met = torch.nn.functional.embedding_bag(
                    torch.from_numpy(right[starts[0] : end]), self.rows,
                    torch.from_numpy((starts - starts[0]).astype(right.dtype)), mode="sum",
                )  # fmt: skip
                own = self.rows.index_select(0, torch.from_numpy(left[starts]))
                total += met.mul_(own).sum(0).double().numpy()
        return total

    def weigh_table(self, table: torch.Tensor) -> NDArray[np.float64]:
        """`weigh` for pairs given as counts by (left, right)."""
        exact = float(table.sum(1).max()) * self.largest < _EXACT
        kind = torch.float32 if exact else torch.float64
        met = table.to(kind) @ self.rows.to(kind)
        total: NDArray[np.float64] = met.double().mul_(self.rows[: len(table)]).sum(0).numpy()
        return total


class Subjects:
    """Subjects of each side as 0, 1, ... in ascending order, as `bootstrap_subjects` draws them."""

    def __init__(self, left: ArrayLike, right: ArrayLike, pairs: int) -> None:
        self._sides: Sequence[Array] = (np.asarray(left), np.asarray(right))
        shapes = [side.shape for side in self._sides]
        if shapes != [(pairs,), (pairs,)]:
            raise InputError(f"subjects: expected two ({pairs},) arrays, got {shapes[0]} and {shapes[1]}")
        whole = pairs > 0 and all(side.dtype.kind in "iu" for side in self._sides)
        self._low = min(int(side.min()) for side in self._sides) if whole else 0
        span = max(int(side.max()) for side in self._sides) - self._low + 1 if whole else 0
        if not 0 < span <= 4 * pairs + _PAIRS:
            names, codes = np.unique(np.concatenate(self._sides), return_inverse=True)
            self._sides, self._low, span = (codes[:pairs], codes[pairs:]), 0, names.size
        seen = np.zeros(span, np.bool_)
        for side, start in product(self._sides, range(0, pairs, _PAIRS)):
            seen[self._place(side[start : start + _PAIRS])] = True
        self._code = np.cumsum(seen, dtype=np.int32) - 1
        self.count = int(seen.sum())

    def __getitem__(self, pairs: slice | Array) -> tuple[Array, Array]:
        """(a, b): where both are one subject, b is nobody: the pair weighs as much as that subject once."""
        a, b = (self._code[self._place(side[pairs])] for side in self._sides)
        return a, np.where(a == b, np.int32(self.count), b)

    def _place(self, subjects: Array) -> Array:
        found: Array = subjects.astype(np.int64) - self._low
        return found
