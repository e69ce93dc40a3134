"""Directions without a confidence: one resumable pass of a recogniser."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf._rowstore import Column
from spherecf.data import ImageSource, View
from spherecf.embeddings import Embeddings
from spherecf.extract import run_backbone, to_embeddings
from spherecf.models import BackboneOutput, FrozenBackbone


class _KeepDirection:
    """Recorder of mu and norm."""

    def __init__(self, dim: int) -> None:
        self.columns: dict[str, Column] = {"mu": ((dim,), "float32"), "norm": ((), "float32")}
        self.identity: dict[str, Any] = {"kept": "direction"}

    def __call__(self, output: BackboneOutput) -> dict[str, NDArray[Any]]:
        return {"mu": output.mu.cpu().numpy(), "norm": output.norm.cpu().numpy()}


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
    recorder, views = _KeepDirection(backbone.dim), [View()]
    store = run_backbone(backbone, source, views, recorder, folder, batch_size=batch_size)
    log_kappa = np.zeros(store.rows, np.float32)
    return to_embeddings(store, source, 0, views, log_kappa, {"backbone": backbone.sha256, "head": None})
