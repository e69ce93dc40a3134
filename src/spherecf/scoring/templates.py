"""Templates: several images of a person, from one or more media, pooled into one distribution.

All sums run in the order of template, medium and row, whatever the block size, the number of threads and the
order of the entries, so that equal input gives bitwise equal results.
"""

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.common.arrays import (
    SCORE_TOLERANCE,
    AnyArray,
    are_unit,
    as_array,
    check_directions,
    check_kappa,
    row_numbers,
)
from spherecf.errors import InputError
from spherecf.scoring.pooling import check_sums

Array = NDArray[Any]

_LOOKUPS = 1 << 15  # ids looked up at a time


@dataclass(frozen=True, eq=False)
class Templates:
    """One von Mises-Fisher distribution per template, as returned by `pool_templates`.

    Raises:
        InputError: lengths do not fit, directions are not of unit length (as in `cosine_score`), kappas are
            NaN, negative or infinite, or precisions are NaN or infinite.

    Example:
        >>> import numpy as np
        >>> from spherecf.scoring import pool_templates
        >>> t = pool_templates(np.eye(3, dtype=np.float32), np.ones(3), [8, 8, 5])
        >>> t.ids.tolist(), t.images.tolist(), t.positions([8, 5, 8]).tolist(), len(t.select([0]))
        ([5, 8], [1, 2], [1, 0, 1], 1)
    """

    ids: NDArray[np.int64]
    """(t,) ascending, unique."""
    mu: NDArray[np.float32]
    """(t, dim) unit directions."""
    kappa: NDArray[np.float32]
    """(t,) concentration >= 0: norm of the sum over media of the mean kappa_i mu_i of each medium."""
    images: NDArray[np.int64]
    """(t,) number of images."""
    media: NDArray[np.int64]
    """(t,) number of media."""
    log_precision: NDArray[np.float32] | None = None
    """(t, dim) or (t, 1), for Gaussian embeddings only."""

    def __post_init__(self) -> None:
        for name, dtype in (("ids", None), ("mu", np.float32), ("kappa", np.float32)):
            object.__setattr__(self, name, as_array(getattr(self, name), name, dtype))
        count = len(self)
        if self.mu.ndim != 2 or self.mu.shape[0] != count:
            raise InputError(f"templates: expected mu ({count}, dim) like ids, got {self.mu.shape}")
        for name in ("ids", "kappa", "images", "media"):
            if np.shape(getattr(self, name)) != (count,):
                raise InputError(
                    f"templates: expected {name} ({count},), got {np.shape(getattr(self, name))}"
                )
        check_kappa(self.kappa, "templates: kappa")
        check_directions(self.mu, "templates: mu", SCORE_TOLERANCE, keys=self.ids)
        self._check_precision()

    def _check_precision(self) -> None:
        if self.log_precision is None:
            return
        if self.log_precision.shape not in (self.mu.shape, (len(self), 1)):
            raise InputError(
                f"templates: expected log_precision {self.mu.shape} or ({len(self)}, 1), got "
                f"{self.log_precision.shape}"
            )
        bad = np.flatnonzero(~np.isfinite(self.log_precision).all(1))
        if bad.size:
            raise InputError(
                f"templates: {bad.size} of {len(self)} have precisions that are NaN or infinite, first "
                f"template {self.ids[bad[0]]}"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Dimension d of the directions."""
        return int(self.mu.shape[1])

    def positions(self, ids: ArrayLike) -> NDArray[np.int64]:
        """The positions of templates by id, in the order and shape of ``ids``.

        Raises:
            InputError: there is no template for some ids; the message counts them and names the first.
        """
        requested = np.asarray(ids)
        if requested.dtype.kind not in "iu" and requested.size:
            raise InputError(f"template ids: expected integers, got {requested.dtype}")
        positions = np.empty(requested.shape, np.int64)
        unknown: list[Array] = []
        find = _make_finder(self.ids, requested.size)
        flat, out = requested.reshape(-1), positions.reshape(-1)
        for start in range(0, flat.size, _LOOKUPS):
            block = slice(start, start + _LOOKUPS)
            out[block], is_known = find(flat[block].astype(np.int64, copy=False))
            if not is_known.all():
                unknown.append(flat[block][~is_known])
        if unknown:
            entries = np.concatenate(unknown)
            missing = np.unique(entries)
            raise InputError(
                f"{missing.size} templates have no image ({entries.size} of {requested.size} entries name "
                f"them), first {', '.join(map(str, missing[:5]))}{', ...' if missing.size > 5 else ''}; "
                "remove them from the protocol's list or embed their images"
            )
        return positions

    def select(self, positions: ArrayLike) -> "Templates":
        """A copy of the templates at these positions, in ascending order and without duplicates.

        Args:
            positions: 0 <= position < n, or a mask of n booleans.

        Raises:
            InputError: a position is out of range.
        """
        rows = np.unique(row_numbers(positions, len(self), "positions"))
        precision = None if self.log_precision is None else self.log_precision[rows]
        return Templates(
            self.ids[rows], self.mu[rows], self.kappa[rows], self.images[rows], self.media[rows], precision
        )


def _make_finder(ids: Array, lookups: int) -> Callable[[Array], tuple[Array, Array]]:
    """A function from ids to (positions, whether known), for ascending ``ids``.

    It uses a table if the ids are dense, otherwise binary search.
    """
    low, high = (int(ids[0]), int(ids[-1])) if ids.size else (0, 0)
    if not ids.size or high - low > 4 * (ids.size + lookups):

        def search(requested: Array) -> tuple[Array, Array]:
            positions = np.searchsorted(ids, requested)
            is_known = positions < ids.size
            is_known[is_known] = ids[positions[is_known]] == requested[is_known]
            return positions, is_known

        return search
    # One read per id instead of a binary search: 15 million pairs name 30 million templates.
    table = np.full(high - low + 3, -1, np.int32)  # with an entry at each end for ids out of range
    table[ids - low + 1] = np.arange(ids.size)

    def look_up(requested: Array) -> tuple[Array, Array]:
        positions = table.take(requested - (low - 1), mode="clip")
        return positions, positions >= 0

    return look_up


_BLOCK = 1 << 14  # images read before the pages of a mapped file are released


def pool_templates(
    mu: AnyArray,
    kappa: ArrayLike | torch.Tensor,
    templates: ArrayLike | torch.Tensor,
    media: ArrayLike | torch.Tensor | None = None,
    *,
    rows: ArrayLike | torch.Tensor | None = None,
    weights: ArrayLike | torch.Tensor | None = None,
    log_precision: AnyArray | None = None,
    out: NDArray[np.float32] | None = None,
    checked: bool = False,
) -> Templates:
    """Pool images into templates: the mean within each medium, then the sum over the media.

    The direction of the sum of ``kappa_i mu_i`` is the template's mu (equation 14 of Li et al., CVPR 2021),
    its norm the template's kappa.

    Args:
        mu: (n, dim) unit directions: a NumPy array or a tensor, like the other arguments. They have unit
            length whatever the weights are. An array may be mapped from a file; it is read in blocks and
            never copied as a whole.
        kappa: (n,) concentrations, >= 0.
        templates: (m,) integer id of each entry's template.
        media: (m,) integer id of each entry's medium; the same id in two templates means two media. Default:
            every image is a separate medium.
        rows: (m,) row of ``mu`` of each entry; an image may be in several templates. Default: 0 .. n - 1.
        weights: (m,) pooling weights of the direction, >= 0, such as ones for the mean, norms or detector
            scores. Default: kappa. The concentration is always |sum kappa_i mu_i|.
        log_precision: (n, dim) or (n, 1) for Gaussian embeddings (Shi & Jain, ICCV 2019): the direction is
            then that of the precision-weighted mean in each dimension, and precisions add up like kappas.
        out: (templates, dim) float32 array to which the directions are written, e.g. mapped to a file.
        checked: skip the check of unit length, which takes as long as pooling, for directions that have been
            checked already, such as those of `Embeddings`.

    Returns:
        The templates, ascending by id.

    Raises:
        InputError: shapes or types do not fit, rows are out of range, directions of entries are not of unit
            length (as in `cosine_score`), weights are NaN, negative or infinite, or a template's directions
            cancel or have no weight.

    Example:
        >>> import numpy as np
        >>> mu = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
        >>> t = pool_templates(mu, np.array([3.0, 4.0, 4.0]), [7, 7, 7], media=[0, 1, 1])
        >>> t.mu.round(3).tolist(), t.kappa.tolist(), t.images.tolist(), t.media.tolist()
        ([[0.6..., 0.8...]], [5.0], [3], [2])
    """
    mu = as_array(mu, "mu")
    log_precision = None if log_precision is None else as_array(log_precision, "log_precision")
    _check_shapes(mu, weights, log_precision)
    entries = _entries(len(mu), kappa, templates, media, rows, weights)
    if not checked:
        _check_directions(mu, entries.rows)
    count, dim = len(entries.ids), mu.shape[1]
    if out is not None and (out.shape != (count, dim) or out.dtype != np.float32):
        raise InputError(f"out: expected {(count, dim)} of float32, got {out.shape} of {out.dtype}")
    direction = np.empty((count, dim), np.float32) if out is None else out
    length, pooled_kappa = np.empty((2, count), np.float32)
    precision = None if log_precision is None else np.empty((count, log_precision.shape[1]), np.float32)
    images = _shared_tensor(mu)
    for group, block in entries.blocks():  # slices of templates and of their entries
        row, starts, share = entries.rows[block], entries.starts[group] - block.start, entries.share[block]
        # Sums of `natural_parameter` as weighted sums of rows, without an array (m, dim) of the summands.
        if log_precision is None or precision is None:
            direction[group] = _sum_rows(images, row, starts, share * entries.weights[block])
        else:
            entry_precision = np.exp(np.asarray(log_precision[row], np.float32))  # (entries, dim or 1)
            precision[group] = _sum_rows(entry_precision, None, starts, share)
            direction[group] = _sum_rows(entry_precision * mu[row], None, starts, share) / precision[group]
        length[group] = np.linalg.norm(direction[group], axis=1)
        if weights is None and precision is None:
            pooled_kappa[group] = length[group]
        else:
            eta = _sum_rows(images, row, starts, share * entries.kappa[block])
            pooled_kappa[group] = np.linalg.norm(eta, axis=1)
        for mapped in (mu, log_precision, out):
            _release_pages(mapped)
    _check_lengths(entries, length, 1.0 if precision is not None else entries.total_weight())
    for start in range(0, count, _BLOCK):
        direction[start : start + _BLOCK] /= length[start : start + _BLOCK, None]
        _release_pages(out)
    if precision is not None:
        np.log(precision, out=precision)
    return Templates(entries.ids, direction, pooled_kappa, np.diff(entries.starts), entries.media, precision)


@dataclass(frozen=True, eq=False)
class _Entries:
    """The entries in the order of template, medium and row."""

    ids: Array
    """(t,) ids of the templates, ascending."""
    media: Array
    """(t,) number of media of each template."""
    starts: Array
    """(t + 1,) first entry of each template, and the number of entries."""
    rows: Array
    """(m,) row of each entry's image."""
    share: Array
    """(m,) 1 over the number of images of the entry's medium."""
    kappa: Array
    """(m,)."""
    weights: Array
    """(m,)."""

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Slices of whole templates and of their entries, with about `_BLOCK` entries each."""
        boundaries = np.searchsorted(self.starts[:-1], np.arange(0, self.rows.size, _BLOCK))
        for low, high in pairwise(np.unique(np.append(boundaries, self.ids.size)).tolist()):
            yield slice(low, high), slice(int(self.starts[low]), int(self.starts[high]))

    def total_weight(self) -> Array:
        """The sum over media of the mean weight of each medium, (t,)."""
        total: Array = np.add.reduceat(self.share * self.weights, self.starts[:-1])
        return total


def _shared_tensor(array: Array) -> Array | torch.Tensor:
    """A tensor that shares the array's memory or, if torch cannot, the array, to be converted by blocks."""
    if array.dtype != np.float32 or not array.dtype.isnative or not array.flags.c_contiguous:
        return array
    try:
        return torch.utils.dlpack.from_dlpack(array)
    except (BufferError, RuntimeError):  # a read-only file, and a NumPy or torch that cannot share that
        return array


def _sum_rows(images: Array | torch.Tensor, rows: Array | None, starts: Array, weights: Array) -> Array:
    """Weighted sums of groups of rows, (groups, dim); ``starts`` is the first entry of each group.

    Every sum runs in the order of the entries; the groups are divided among torch's threads.
    """
    if not isinstance(images, torch.Tensor):
        images = torch.from_numpy(np.asarray(images if rows is None else images[rows], np.float32))
        rows = None
    index = torch.arange(len(weights)) if rows is None else torch.from_numpy(rows)
    sums: Array = torch.nn.functional.embedding_bag(
        index, images, torch.from_numpy(starts), per_sample_weights=torch.from_numpy(weights), mode="sum"
    ).numpy()
    return sums


def _release_pages(array: Array | None) -> None:
    """Release the pages of a mapped file, which may be larger than memory; written data is kept."""
    base: Any = array
    mode = ""
    while isinstance(base, np.ndarray):
        base, mode = base.base, getattr(base, "mode", mode)
    if isinstance(base, mmap.mmap) and mode in ("r", "r+", "w+") and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _check_directions(mu: Array, rows: Array) -> None:
    """Check the directions of the given rows, block by block."""
    used = np.unique(rows)
    all_used = used.size == len(mu)
    for start in range(0, used.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        if not are_unit(mu[block] if all_used else mu[used[block]], SCORE_TOLERANCE):
            check_directions(mu, "mu", SCORE_TOLERANCE, rows=used)  # all rows, for a message that counts them
        _release_pages(mu)


def _check_shapes(mu: Array, weights: Any, log_precision: Array | None) -> None:
    if mu.ndim != 2 or mu.dtype.kind != "f":
        raise InputError(f"mu: expected (n, dim) of floats, got {mu.shape} of {mu.dtype}")
    if log_precision is not None and log_precision.shape not in (mu.shape, (len(mu), 1)):
        raise InputError(
            f"log_precision: expected {mu.shape} or ({len(mu)}, 1) like mu, got {log_precision.shape}"
        )
    if log_precision is not None and weights is not None:
        raise InputError("pool_templates: precisions act as weights; leave out one of the two arguments")


def _entries(images: int, kappa: Any, templates: Any, media: Any, rows: Any, weights: Any) -> _Entries:
    """The entries in their order, from the arguments of `pool_templates`, checked."""
    template = _integers("templates", templates)
    row = np.arange(images) if rows is None else _integers("rows", rows)
    medium = row if media is None else _integers("media", media)
    k = _non_negative("kappa", kappa)
    w = k if weights is None else _non_negative("weights", weights)
    if k.shape != (images,):
        raise InputError(f"kappa: expected ({images},) like mu, got {k.shape}")
    if row.size and not 0 <= row.min() <= row.max() < images:
        raise InputError(f"rows: expected 0 .. {images - 1}, got {row.min()} .. {row.max()}")
    sizes = {"templates": template.size, "rows": row.size, "media": medium.size}
    sizes |= {} if weights is None else {"weights": w.size}
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise InputError(f"entries: expected the same number of each, got {counts}")
    order = np.lexsort((row, medium, template))  # (m,): sums do not depend on the order of the arguments
    template, medium, row = template[order], medium[order], row[order]
    k, w = k[row], k[row] if weights is None else w[order]
    starts_template, starts_medium = np.ones((2, template.size), bool)  # whether an entry is the first of its
    np.not_equal(template[1:], template[:-1], out=starts_template[1:])
    np.logical_or(starts_template[1:], medium[1:] != medium[:-1], out=starts_medium[1:])
    starts, medium_starts = (
        np.append(np.flatnonzero(is_first), template.size) for is_first in (starts_template, starts_medium)
    )
    images_per_medium = np.diff(medium_starts)
    share = np.repeat((1 / images_per_medium).astype(np.float32), images_per_medium)
    media_per_template = np.diff(np.searchsorted(medium_starts, starts))
    return _Entries(template[starts_template], media_per_template, starts, row, share, k, w)


def _integers(name: str, values: Any) -> NDArray[np.int64]:
    array = as_array(values, name)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InputError(
            f"{name}: expected a one-dimensional array of integers, got {array.shape} of {array.dtype}"
        )
    return as_array(array, name, np.int64)


def _non_negative(name: str, values: Any) -> NDArray[np.float32]:
    array = as_array(values, name, np.float32)
    check_kappa(array, name)
    return array


def _check_lengths(entries: _Entries, length: Array, weight: Array | float) -> None:
    """Refuse templates whose sum is not finite or has no direction."""
    infinite = np.flatnonzero(~np.isfinite(length))
    if infinite.size:
        raise InputError(
            f"{infinite.size} of {length.size} templates have no finite sum, first template "
            f"{entries.ids[infinite[0]]}: the weights or precisions are out of the range of float32"
        )
    check_sums("templates", entries.ids, length, np.broadcast_to(weight, length.shape))
