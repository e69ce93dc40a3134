"""Directions without a confidence: one resumable pass of a recogniser."""

import tempfile
from pathlib import Path

import numpy as np

from spherecf.data import ImageSource, View
from spherecf.embeddings import Embeddings
from spherecf.extract import KeepDirection, run_backbone, to_embeddings
from spherecf.models import FrozenBackbone


def embed_directions(
    backbone: FrozenBackbone, source: ImageSource, folder: str | Path | None = None, *, batch_size: int = 32
) -> Embeddings:
    """The direction of every image. There is no head, so nothing is said of confidence: log kappa is 0.

    Args:
        folder: where the pass is kept; interrupted, the same call goes on there. None keeps nothing.
        batch_size: images per call of the recogniser.

    Raises:
        StorageError: not enough disk space.
        InputError: no image could be used.

    Example:
        >>> from spherecf.data import SyntheticImages
        >>> embed_directions(FrozenBackbone.default(), SyntheticImages(2, 2)).mu.shape
        (2, 128)
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as place:
            found = embed_directions(backbone, source, place, batch_size=batch_size)
            return found.select(range(len(found)))  # a copy, as the files go
    recorder, views = KeepDirection(backbone.dim), [View()]
    store = run_backbone(backbone, source, views, recorder, folder, batch_size=batch_size)
    log_kappa = np.zeros(store.rows, np.float32)
    return to_embeddings(store, source, 0, views, log_kappa, {"backbone": backbone.sha256, "head": None})
