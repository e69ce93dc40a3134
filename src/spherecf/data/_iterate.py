"""Decoded images in order, from a pool of threads, with bounded memory and nothing lost silently."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt8

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


class _Loaded(NamedTuple):
    row: int
    encoded: bytes
    image: np.ndarray | None
    error: FileFormatError | None


def iter_images(
    source: ImageSource,
    indices: Iterable[int] | None = None,
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
        >>> len([batch for batch in iter_images(orl_faces(), range(100), batch=64)])  # doctest: +SKIP
        2
    """
    if on_error not in ("raise", "skip") or (on_error == "skip") != (skipped is not None):
        raise InputError(
            'on_error must be "raise", or "skip" together with a list that receives what is skipped'
        )
    if batch < 1 or (workers is not None and workers < 1):
        raise InputError(f"batch and workers must be at least 1, got {batch} and {workers}")
    rows = np.arange(len(source)) if indices is None else np.fromiter(indices, np.int64)
    chunks = (rows[start : start + batch].tolist() for start in range(0, len(rows), batch))
    return _batches(source, chunks, size, workers or os.cpu_count() or 1, skipped)


def _batches(
    source: ImageSource,
    chunks: Iterator[list[int]],
    size: tuple[int, int] | None,
    workers: int,
    skipped: list[Skipped] | None,
) -> Iterator[ImageBatch]:
    for loaded in _ordered(source, chunks, workers):
        good = []
        for item in loaded:
            error = item.error
            if item.image is not None:
                size = size or item.image.shape[:2]
                if item.image.shape[:2] == tuple(size):
                    good.append(item)
                    continue
                got, wanted = (f"{height}x{width}" for height, width in (item.image.shape[:2], size))
                error = ImageError(
                    source.where(item.row), f"expected a picture of {wanted}, got {got}.", "Align it first."
                )
            if error is None:
                continue
            if skipped is None:
                raise error
            skipped.append(Skipped(source.keys[item.row], str(error)))
        if good:
            images = np.stack([item.image for item in good if item.image is not None])
            yield ImageBatch(
                np.array([item.row for item in good], np.int64), images, [item.encoded for item in good]
            )


def _ordered(source: ImageSource, chunks: Iterator[list[int]], workers: int) -> Iterator[list[_Loaded]]:
    waiting: deque[Future[list[_Loaded]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for rows in chunks:
                waiting.append(pool.submit(_load, source, rows))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # the consumer stopped early: do not decode what nobody will see
            for future in waiting:
                future.cancel()


def _load(source: ImageSource, rows: list[int]) -> list[_Loaded]:
    loaded = []
    for row in rows:
        encoded = b""
        try:
            encoded = source.read(row)
            loaded.append(_Loaded(row, encoded, decode_image(encoded, source.where(row)), None))
        except FileFormatError as error:
            loaded.append(_Loaded(row, encoded, None, error))
    return loaded
