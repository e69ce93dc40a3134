"""Reading ahead for a backbone: images decoded once and shown in every view, by threads, in order."""

import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from spherecf._threads import in_order
from spherecf.data import ImageSource, View, sharpness
from spherecf.errors import FileFormatError

_MOST_READERS = 8  # enough to feed a fast GPU with small crops; more would only fight over the interpreter


@dataclass
class Batch:
    """Rows of consecutive images: image by image, and for each image view by view.

    Attributes:
        keys: of the images.
        images: (rows, height, width, 3) as shown; black where not valid.
        valid: (rows,) False for all views of an image that cannot be used.
        severity, sharpness: (rows,) of the images as shown.
        skipped: reason by key of every image that cannot be used.
    """

    keys: list[str]
    images: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    severity: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, keys: list[str], views: int, size: tuple[int, int]) -> "Batch":
        """All valid, all black."""
        rows = len(keys) * views
        severity, sharp = np.zeros((2, rows), np.float32)
        return cls(keys, np.zeros((rows, *size, 3), np.uint8), np.ones(rows, np.bool_), severity, sharp)

    def rows(self, place: int) -> slice:
        """The rows of one image."""
        views = len(self.valid) // len(self.keys)
        return slice(place * views, (place + 1) * views)

    def skip(self, place: int, reason: str) -> None:
        """Give one image up, in all its views."""
        self.skipped[self.keys[place]] = reason
        self.valid[self.rows(place)] = False


def read_batch(source: ImageSource, views: Sequence[View], size: tuple[int, int], indices: range) -> Batch:
    """Decode the images of ``indices`` once, show each in every view; one of another size is skipped."""
    batch = Batch.empty([source.keys[index] for index in indices], len(views), size)
    for place, index in enumerate(indices):
        try:
            image = source.image(index, size)
        except FileFormatError as error:
            batch.skip(place, f"{error.problem} {error.hint}".strip())
            continue
        for row, view in enumerate(views, batch.rows(place).start):
            shown = view(image, batch.keys[place])
            batch.images[row] = shown.image
            batch.severity[row], batch.sharpness[row] = shown.severity, sharpness(shown.image)
    return batch


def iter_batches(
    source: ImageSource, views: Sequence[View], size: tuple[int, int], images_per_batch: int, start: int = 0
) -> Generator[Batch, None, None]:
    """Batches in order from image ``start`` on, read ahead by threads, bounded memory."""
    end = len(source)
    chunks = (range(at, min(at + images_per_batch, end)) for at in range(start, end, images_per_batch))
    workers = min(_MOST_READERS, os.cpu_count() or 1)
    return in_order(partial(read_batch, source, views, size), chunks, workers, "read")
