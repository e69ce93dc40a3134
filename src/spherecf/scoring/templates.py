"""Templates: many images of one person, of several media, as one distribution each.

The sums run in one order, that of template, medium and row, whatever the size of the blocks, the number of
threads and the order of the entries; so equal input gives equal bits.
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
)
from spherecf.errors import InputError
from spherecf.scoring.pooling import check_sums

Array = NDArray[Any]

_LOOKUPS = 1 << 15  # ids looked up at once


@dataclass(frozen=True, eq=False)
class Templates:
    """One von Mises-Fisher distribution per template, made by `pool_templates`.

    Raises:
        InputError: columns of other lengths, directions that are not of unit length (as in `cosine_score`),
            kappas that are NaN, negative or infinite, precisions that are NaN or infinite.

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
    """(t,) concentration, length of the sum over media of the mean kappa_i mu_i; >= 0."""
    images: NDArray[np.int64]
    """(t,) how many images."""
    media: NDArray[np.int64]
    """(t,) how many media."""
    log_precision: NDArray[np.float32] | None = None
    """(t, dim) or (t, 1), of Gaussian embeddings only."""

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
        """Position of each template id, in the order asked.

        Raises:
            InputError: ids without a template, counted, the first ones named.
        """
        asked = np.asarray(ids)
        if asked.dtype.kind not in "iu" and asked.size:
            raise InputError(f"template ids: expected integers, got {asked.dtype}")
        places = np.empty(asked.shape, np.int64)
        unknown: list[Array] = []
        find = _finder(self.ids, asked.size)
        flat, out = asked.reshape(-1), places.reshape(-1)
        for start in range(0, flat.size, _LOOKUPS):
            block = slice(start, start + _LOOKUPS)
            out[block], known = find(flat[block].astype(np.int64, copy=False))
            if not known.all():
                unknown.append(flat[block][~known])
        if unknown:
            entries = np.concatenate(unknown)
            names = np.unique(entries)
            raise InputError(
                f"{names.size} templates have no image ({entries.size} of {asked.size} entries name them), "
                f"first {', '.join(map(str, names[:5]))}{', ...' if names.size > 5 else ''}; "
                "remove them from the protocol's list or embed their images"
            )
        return places

    def select(self, positions: ArrayLike) -> "Templates":
        """The templates at these positions, ascending, each once (a copy)."""
        at = np.unique(np.asarray(positions, np.int64))
        precision = None if self.log_precision is None else self.log_precision[at]
        return Templates(
            self.ids[at], self.mu[at], self.kappa[at], self.images[at], self.media[at], precision
        )


def _finder(ids: Array, lookups: int) -> Callable[[Array], tuple[Array, Array]]:
    """Maps ids to (positions, known): by a table where ids lie close together, else by bisection."""
    low, high = (int(ids[0]), int(ids[-1])) if ids.size else (0, 0)
    if not ids.size or high - low > 4 * (ids.size + lookups):

        def search(asked: Array) -> tuple[Array, Array]:
            place = np.searchsorted(ids, asked)
            known = place < ids.size
            known[known] = ids[place[known]] == asked[known]
            return place, known

        return search
    # One read per id instead of a bisection: 15 million pairs name 30 million templates.
    table = np.full(high - low + 3, -1, np.int32)  # one more at each end, for what lies beyond
    table[ids - low + 1] = np.arange(ids.size)

    def look(asked: Array) -> tuple[Array, Array]:
        place = table.take(asked - (low - 1), mode="clip")
        return place, place >= 0

    return look


_BLOCK = 1 << 14  # images read before the pages of a mapped file are let go


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
    """Pool images into templates: mean inside a medium, sum over media, direction and length of the sum.

    Args:
        mu: (n, dim) unit directions, like all columns a NumPy array or a tensor; may be mapped from a file,
            is read in blocks and never copied whole. Of unit length whatever they are weighted by.
        kappa: (n,) concentrations, >= 0.
        templates: (m,) integer id of the template of each entry.
        media: (m,) integer medium of each entry; the same number in two templates means two media. Default:
            every image is a medium of its own.
        rows: (m,) row of ``mu`` that an entry stands for; an image may be in several templates. Default:
            entry i is row i.
        weights: (m,) pooling weights of the direction, >= 0: ones for the mean, norms, detector scores.
            Default: kappa (equation 14 of Li et al., CVPR 2021). The concentration is |sum kappa_i mu_i| in
            any case.
        log_precision: (n, dim) or (n, 1) of Gaussian embeddings (Shi and Jain, ICCV 2019): the direction is
            then the mean weighted by precision in each dimension, and precisions add up like kappas.
        out: (templates, dim) float32 array that takes the directions, e.g. mapped to a file.
        checked: leave out the look at the lengths, which takes as long as pooling: for directions out of
            `Embeddings`, where they were looked at.

    Returns:
        The templates, ascending by id.

    Raises:
        InputError: shapes or types that do not fit, rows out of range, directions that are not of unit length
            (as in `cosine_score`; only those of entries count), NaN, negative or infinite weights, or
            templates whose directions cancel or have no weight.

    Example:
        >>> import numpy as np
        >>> mu = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
        >>> one = pool_templates(mu, np.array([3.0, 4.0, 4.0]), [7, 7, 7], media=[0, 1, 1])
        >>> one.mu.round(3).tolist(), one.kappa.tolist(), one.images.tolist(), one.media.tolist()
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
    length, pooled = np.empty((2, count), np.float32)
    precision = None if log_precision is None else np.empty((count, log_precision.shape[1]), np.float32)
    images = _tensor(mu)
    for here, block in entries.blocks():
        row, starts, share = entries.rows[block], entries.starts[here] - block.start, entries.share[block]
        # `natural_parameter`s summed without a table of them: weighted rows, straight into (templates, dim).
        if log_precision is None or precision is None:
            direction[here] = _bags(images, row, starts, share * entries.weights[block])
        else:
            each = np.exp(np.asarray(log_precision[row], np.float32))  # (entries, dim or 1)
            precision[here] = _bags(each, None, starts, share)
            direction[here] = _bags(each * mu[row], None, starts, share) / precision[here]
        length[here] = np.linalg.norm(direction[here], axis=1)
        if weights is None and precision is None:
            pooled[here] = length[here]
        else:
            pooled[here] = np.linalg.norm(_bags(images, row, starts, share * entries.kappa[block]), axis=1)
        for mapped in (mu, log_precision, out):
            _let_go(mapped)
    _check_lengths(entries, length, 1.0 if precision is not None else entries.total_weight())
    for start in range(0, count, _BLOCK):
        direction[start : start + _BLOCK] /= length[start : start + _BLOCK, None]
        _let_go(out)
    if precision is not None:
        np.log(precision, out=precision)
    return Templates(entries.ids, direction, pooled, np.diff(entries.starts), entries.media, precision)


@dataclass(frozen=True, eq=False)
class _Entries:
    """Images in the order of their templates, media and rows."""

    ids: Array
    """(t,) templates, ascending."""
    media: Array
    """(t,) how many media each has."""
    starts: Array
    """(t + 1,) first entry of each template, and the end."""
    rows: Array
    """(m,), like all that follow."""
    share: Array
    """1 over the number of images of the medium."""
    kappa: Array
    weights: Array

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """(templates, entries): whole templates, of about ``_BLOCK`` entries together."""
        cuts = np.searchsorted(self.starts[:-1], np.arange(0, self.rows.size, _BLOCK))
        for low, high in pairwise(np.unique(np.append(cuts, self.ids.size)).tolist()):
            yield slice(low, high), slice(int(self.starts[low]), int(self.starts[high]))

    def total_weight(self) -> Array:
        """(t,) sum over media of the mean weight."""
        total: Array = np.add.reduceat(self.share * self.weights, self.starts[:-1])
        return total


def _tensor(array: Array) -> Array | torch.Tensor:
    """The array itself as a tensor, without a copy, where torch can share it; else blocks are converted."""
    if array.dtype != np.float32 or not array.dtype.isnative or not array.flags.c_contiguous:
        return array
    try:
        return torch.utils.dlpack.from_dlpack(array)
    except (BufferError, RuntimeError):  # a read-only file, and a NumPy or torch that cannot share that
        return array


def _bags(images: Array | torch.Tensor, rows: Array | None, starts: Array, weights: Array) -> Array:
    """Weighted sums of consecutive rows, each bag in order, bags divided among torch's threads."""
    if not isinstance(images, torch.Tensor):
        images = torch.from_numpy(np.asarray(images if rows is None else images[rows], np.float32))
        rows = None
    index = torch.arange(len(weights)) if rows is None else torch.from_numpy(rows)
    found: Array = torch.nn.functional.embedding_bag(
        index, images, torch.from_numpy(starts), per_sample_weights=torch.from_numpy(weights), mode="sum"
    ).numpy()
    return found


def _let_go(array: Array | None) -> None:
    """Unmap the pages of a mapped file, of which there may be more than memory; what was written stays."""
    base: Any = array
    mode = ""
    while isinstance(base, np.ndarray):
        base, mode = base.base, getattr(base, "mode", mode)
    if isinstance(base, mmap.mmap) and mode in ("r", "r+", "w+") and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)


def _check_directions(mu: Array, rows: Array) -> None:
    used = np.unique(rows)
    every = used.size == len(mu)
    for start in range(0, used.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        if not are_unit(mu[block] if every else mu[used[block]], SCORE_TOLERANCE):
            check_directions(mu, "mu", SCORE_TOLERANCE, rows=used)  # all of them, to count them
        _let_go(mu)


def _check_shapes(mu: Array, weights: Any, log_precision: Array | None) -> None:
    if mu.ndim != 2 or mu.dtype.kind != "f":
        raise InputError(f"mu: expected (n, dim) of floats, got {mu.shape} of {mu.dtype}")
    if log_precision is not None and log_precision.shape not in (mu.shape, (len(mu), 1)):
        raise InputError(
            f"log_precision: expected {mu.shape} or ({len(mu)}, 1) like mu, got {log_precision.shape}"
        )
    if log_precision is not None and weights is not None:
        raise InputError("pool_templates: precisions are weights themselves; leave out one of the two")


def _entries(images: int, kappa: Any, templates: Any, media: Any, rows: Any, weights: Any) -> _Entries:
    owner = _integers("templates", templates)
    row = np.arange(images) if rows is None else _integers("rows", rows)
    medium = row if media is None else _integers("media", media)
    k = _non_negative("kappa", kappa)
    w = k if weights is None else _non_negative("weights", weights)
    if k.shape != (images,):
        raise InputError(f"kappa: expected ({images},) like mu, got {k.shape}")
    if row.size and not 0 <= row.min() <= row.max() < images:
        raise InputError(f"rows: expected 0 .. {images - 1}, got {row.min()} .. {row.max()}")
    sizes = {"templates": owner.size, "rows": row.size, "media": medium.size}
    sizes |= {} if weights is None else {"weights": w.size}
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise InputError(f"entries: expected equally many, got {counts}")
    order = np.lexsort((row, medium, owner))  # (m,); the order of all sums, whatever that of the entries
    owner, medium, row = owner[order], medium[order], row[order]
    k, w = k[row], k[row] if weights is None else w[order]
    new_owner, new_medium = np.ones((2, owner.size), bool)
    np.not_equal(owner[1:], owner[:-1], out=new_owner[1:])
    np.logical_or(new_owner[1:], medium[1:] != medium[:-1], out=new_medium[1:])
    starts, media_at = (np.append(np.flatnonzero(new), owner.size) for new in (new_owner, new_medium))
    sizes_of_media = np.diff(media_at)
    share = np.repeat((1 / sizes_of_media).astype(np.float32), sizes_of_media)
    media_of = np.diff(np.searchsorted(media_at, starts))
    return _Entries(owner[new_owner], media_of, starts, row, share, k, w)


def _integers(name: str, values: Any) -> NDArray[np.int64]:
    found = as_array(values, name)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise InputError(f"{name}: expected a row of integers, got {found.shape} of {found.dtype}")
    return found.astype(np.int64)


def _non_negative(name: str, values: Any) -> NDArray[np.float32]:
    found = as_array(values, name, np.float32)
    check_kappa(found, name)
    return found


def _check_lengths(entries: _Entries, length: Array, weight: Array | float) -> None:
    """Name templates without a direction."""
    broken = np.flatnonzero(~np.isfinite(length))
    if broken.size:
        raise InputError(
            f"{broken.size} of {length.size} templates have no sum, first template "
            f"{entries.ids[broken[0]]}: the weights or precisions are beyond float32"
        )
    check_sums("templates", entries.ids, length, np.broadcast_to(weight, length.shape))
