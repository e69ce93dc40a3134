"""Decoded images in order, from a pool of threads, with bounded memory and nothing lost silently."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from spherecf.common.progress import in_order
from spherecf.data._image import decode_image
from spherecf.data._source import ImageSource
from spherecf.errors import FileFormatError, InputError

OnError = Literal["raise", "skip"]


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    key: str
    reason: str


class ImageBatch(NamedTuple):
    """Images of one size: what came of the rows that were asked for.

    Attributes:
        rows: (b,) rows of the source, in the order asked, without the broken ones.
        images: (b, height, width, 3) RGB.
        encoded: (b,) as stored, or empty where nobody asked for it.
        skipped: the broken ones.
    """

    rows: Int64[np.ndarray, " b"]
    images: UInt8[np.ndarray, "b h w 3"]
    encoded: list[bytes]
    skipped: list[Skipped]


def iter_images(
    source: ImageSource,
    indices: Iterable[int] | Int64[np.ndarray, " n"] | None = None,
    *,
    batch: int = 64,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
    on_error: OnError = "raise",
    skipped: list[Skipped] | None = None,
    encoded: bool = False,
) -> Iterator[ImageBatch]:
    """Decode ``source[indices]`` in that order; at most ``workers + 2`` batches are in memory.

    Args:
        indices: rows to decode, in the order wanted; all by default.
        batch: images per batch. Skipped images make a batch shorter (`ImageBatch.rows` says which came);
            where all of a batch are skipped, there is none.
        size: (height, width) that every image must have; by default that of the first good one.
        workers: decoding threads, by default one per processor.
        on_error: ``"raise"`` stops at the first bad image; ``"skip"`` appends it to ``skipped`` and goes on.
        skipped: the list that receives what was left out; required with ``"skip"``.
        encoded: give the bytes as stored as well.

    Raises:
        ImageError: with ``on_error="raise"``, the first image that is damaged or of another size.
        InputError: a parameter out of range.

    Example:
        >>> from spherecf.data import orl_faces
        >>> [batch.images.shape for batch in iter_images(orl_faces(), range(100))]
        [(64, 112, 92, 3), (36, 112, 92, 3)]
    """
    if on_error not in ("raise", "skip") or (on_error == "skip") != (skipped is not None):
        raise InputError(
            'on_error must be "raise", or "skip" together with a list that receives what is skipped'
        )
    if batch < 1:
        raise InputError(f"batch must be at least 1, got {batch}")
    _threads(workers)
    return _iter_images(source, _rows(source, indices), batch, size, workers, on_error, skipped, encoded)


def _iter_images(
    source: ImageSource,
    rows: Int64[np.ndarray, " n"],
    batch: int,
    size: tuple[int, int] | None,
    workers: int | None,
    on_error: OnError,
    skipped: list[Skipped] | None,
    encoded: bool,
) -> Iterator[ImageBatch]:
    size = size or _first_size(source, rows, on_error)
    parts = (rows[start : start + batch] for start in range(0, len(rows), batch))
    batches = load_batches(source, parts, size=size, workers=workers, on_error=on_error, encoded=encoded)
    with closing(batches):  # stops the threads also when this raises or the consumer leaves early
        for loaded in batches:
            if skipped is not None:
                skipped.extend(loaded.skipped)
            if len(loaded.rows):
                yield loaded


def load_batches(
    source: ImageSource,
    batches: Iterable[Int64[np.ndarray, "_"] | Sequence[int]],
    *,
    size: tuple[int, int],
    workers: int | None = None,
    on_error: OnError = "skip",
    encoded: bool = False,
) -> Generator[ImageBatch, None, None]:
    """Decode the given batches of rows, of any lengths: one `ImageBatch` for each, in order, read ahead.

    A batch keeps its place also when some or all of it is broken; `ImageBatch.skipped` says what is missing.
    At most ``workers + 1`` batches wait. Close the generator (`contextlib.closing`) to stop early.

    Args:
        batches: rows of each batch; taken one by one, so that they may never end.
        size: (height, width) that every image must have.
        workers: decoding threads, by default one per processor.
        on_error: ``"raise"`` stops at the first bad image.
        encoded: give the bytes as stored as well.

    Raises:
        ImageError: with ``on_error="raise"``, the first image that is damaged or of another size.
        InputError: a row that the source does not have, or fewer than one worker.

    Example:
        >>> from spherecf.data import orl_faces
        >>> loaded = load_batches(orl_faces(), [[5, 0, 3], [], [7]], size=(112, 92))
        >>> [batch.rows.tolist() for batch in loaded]
        [[5, 0, 3], [], [7]]
    """
    return in_order(partial(_load, source, size, on_error, encoded), batches, _threads(workers), "decode")


def _load(
    source: ImageSource,
    size: tuple[int, int],
    on_error: OnError,
    encoded: bool,
    wanted: Int64[np.ndarray, "_"] | Sequence[int],
) -> ImageBatch:
    # Each picture is copied to its place while it is in the processor's cache; stacking them at the end, by
    # the consumer, costs a tenth of the decoding.
    rows, skipped, stored = _rows(source, wanted), list[Skipped](), list[bytes]()
    images, good = np.empty((len(rows), *size, 3), np.uint8), np.ones(len(rows), bool)
    for place, row in enumerate(rows.tolist()):
        try:
            if encoded:
                data = source.read(row)
                images[place] = decode_image(data, source.where(row), size)
                stored.append(data)
            else:
                images[place] = source.image(row, size)
        except FileFormatError as error:
            if on_error == "raise":
                raise
            skipped.append(Skipped(source.keys[row], str(error)))
            good[place] = False
    if skipped:
        rows, images = rows[good], images[good]
    return ImageBatch(rows, images, stored, skipped)


def _rows(
    source: ImageSource, indices: Iterable[int] | Int64[np.ndarray, " n"] | None
) -> Int64[np.ndarray, " n"]:
    if indices is None:
        return np.arange(len(source))
    rows = (
        indices.astype(np.int64, copy=False)
        if isinstance(indices, np.ndarray)
        else np.fromiter(indices, np.int64)
    )
    if len(rows) and not 0 <= rows.min() <= rows.max() < len(source):
        raise InputError(
            f"{source.name}: rows must lie in 0..{len(source) - 1}, got {rows.min()}..{rows.max()}"
        )
    return rows


def _first_size(source: ImageSource, rows: Int64[np.ndarray, " n"], on_error: OnError) -> tuple[int, int]:
    for row in rows.tolist():
        try:
            height, width = source.image(row).shape[:2]
            return height, width
        except FileFormatError:
            if on_error == "raise":
                raise
    return 1, 1  # no good image: any size will do, and each is reported when its turn comes


def _threads(workers: int | None) -> int:
    if workers is not None and workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    return workers or os.cpu_count() or 1
