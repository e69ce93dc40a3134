"""Decoded images in order, from a pool of threads, with bounded memory and nothing lost silently."""

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

from spherecf._threads import in_order
from spherecf.data._image import ImageError, decode_image
from spherecf.data._source import ImageSource
from spherecf.errors import FileFormatError, InputError


class Skipped(NamedTuple):
    """An image that was left out, and why."""

    key: str
    reason: str


class ImageBatch(NamedTuple):
    """``rows`` (b,) in the source, ``images`` (b, h, w, 3) RGB of one size, ``encoded`` (b,) as stored."""

    rows: Int64[np.ndarray, " b"]
    images: UInt8[np.ndarray, "b h w 3"]
    encoded: list[bytes]


class Loaded(NamedTuple):
    """One image of a batch: ``image`` is None and ``error`` set where it could not be read or decoded."""

    row: int
    encoded: bytes
    image: np.ndarray | None
    error: FileFormatError | None


def iter_images(
    source: ImageSource,
    indices: Iterable[int] | Int64[np.ndarray, " n"] | None = None,
    *,
    batch: int = 64,
    size: tuple[int, int] | None = None,
    workers: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    skipped: list[Skipped] | None = None,
) -> Iterator[ImageBatch]:
    """Decode ``source[indices]`` in that order; at most ``workers + 2`` batches are in memory.

    Args:
        indices: rows to decode, in the order wanted; all by default.
        batch: images per batch. Skipped images make a batch shorter (`ImageBatch.rows` says which came).
        size: (height, width) that every image must have; by default that of the first good one.
        workers: decoding threads, by default one per processor.
        on_error: ``"raise"`` stops at the first bad image; ``"skip"`` appends it to ``skipped`` and goes on.
        skipped: the list that receives what was left out; required with ``"skip"``.

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
    rows = np.arange(len(source)) if indices is None else np.fromiter(indices, np.int64)
    return _stacked(source, iter_loaded(source, rows, batch, workers), size, skipped)


def _stacked(
    source: ImageSource,
    chunks: Generator[list[Loaded], None, None],
    size: tuple[int, int] | None,
    skipped: list[Skipped] | None,
) -> Iterator[ImageBatch]:
    with closing(chunks):  # stops the threads also when this raises or the consumer leaves early
        for loaded in chunks:
            good = []
            for item in loaded:
                error = item.error
                if item.image is not None:
                    size = size or item.image.shape[:2]
                    error = _other_size(source, item, size)
                if error is None:
                    good.append(item)
                elif skipped is None:
                    raise error
                else:
                    skipped.append(Skipped(source.keys[item.row], str(error)))
            if good:
                rows = np.array([item.row for item in good], np.int64)
                images = np.stack([item.image for item in good if item.image is not None])
                yield ImageBatch(rows, images, [item.encoded for item in good])


def _other_size(source: ImageSource, item: Loaded, size: tuple[int, int]) -> ImageError | None:
    if item.image is None or item.image.shape[:2] == tuple(size):
        return None
    got, wanted = (f"{height}x{width}" for height, width in (item.image.shape[:2], size))
    problem = f"expected a picture of {wanted} (height x width), got {got}."
    return ImageError(source.where(item.row), problem, "Align it first.")


def iter_loaded(
    source: ImageSource, rows: Int64[np.ndarray, " n"], batch: int = 64, workers: int | None = None
) -> Generator[list[Loaded], None, None]:
    """The images at ``rows`` in order, good and bad, of any size, ``batch`` at a time.

    Raises:
        InputError: ``batch`` or ``workers`` is below 1.
    """
    if batch < 1 or (workers is not None and workers < 1):
        raise InputError(f"batch and workers must be at least 1, got {batch} and {workers}")
    chunks = (rows[start : start + batch].tolist() for start in range(0, len(rows), batch))
    return in_order(partial(_load, source), chunks, workers or os.cpu_count() or 1, "decode")


def _load(source: ImageSource, rows: list[int]) -> list[Loaded]:
    loaded = []
    for row in rows:
        encoded = b""
        try:
            encoded = source.read(row)
            loaded.append(Loaded(row, encoded, decode_image(encoded, source.where(row)), None))
        except FileFormatError as error:
            loaded.append(Loaded(row, encoded, None, error))
    return loaded
