"""The detector's own score as a confidence: what a face detector says of the crops that are embedded."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.common.progress import progress
from spherecf.common.rowstore import RowStore
from spherecf.data import ImageSource, View
from spherecf.extract import iter_batches
from spherecf.faces import FaceDetector

_SIZE = 160  # pixels; the crop stands in the middle, its border repeated: detectors want some surroundings
_LEAST = 0.05  # detections below are none


def detector_scores(
    source: ImageSource, views: Sequence[View], folder: str | Path, size: tuple[int, int], batch: int = 16
) -> NDArray[np.float32]:
    """(images, views) detector scores of the images as shown; 0 where no face is found.

    One resumable pass, kept in ``folder``.
    """
    detector = FaceDetector(min_score=_LEAST)
    identity = {
        "source": source.fingerprint(),
        "views": [view.signature for view in views],
        "detector": detector.sha256,
        "frame": [_SIZE, _LEAST],
    }
    store = RowStore(folder, len(source) * len(views), {"score": ((), "float32")}, identity)
    if not store.complete:
        start = store.done // len(views)
        with (
            progress("detecting", store.rows, store.done) as advance,
            closing(iter_batches(source, views, size, batch, start)) as batches,
        ):
            for read in batches:
                found = [_score(detector, image) if ok else 0.0 for image, ok in zip(read.images, read.valid)]
                store.append({"score": np.array(found, np.float32)})
                advance(len(found))
        store.commit()
    return store.arrays["score"].reshape(len(source), len(views))


def _score(detector: FaceDetector, image: NDArray[np.uint8]) -> float:
    border = (_SIZE - image.shape[0]) // 2, (_SIZE - image.shape[1]) // 2
    framed = cv2.copyMakeBorder(image, border[0], border[0], border[1], border[1], cv2.BORDER_REPLICATE)
    faces = detector(np.asarray(framed, np.uint8))
    return faces[0].score if faces else 0.0
