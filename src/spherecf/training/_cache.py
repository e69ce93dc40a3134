"""The feature cache: what a head needs of every view of every training image, made once, on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf._rowstore import Column, RowStore
from spherecf.data import ImageSource, View
from spherecf.embeddings import Embeddings
from spherecf.errors import ModelError
from spherecf.extract import run_backbone, to_embeddings
from spherecf.models import BackboneOutput, ConfidenceHead, FrozenBackbone

_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """A finished pass. Rows go image by image, and for each image view by view; view 0 is the clean one.

    Attributes:
        store: the rows on disk.
        source: the images.
        views: how each image was shown.
    """

    store: RowStore
    source: ImageSource
    views: Sequence[View]

    def __len__(self) -> int:
        return self.store.rows

    @property
    def summary(self) -> NDArray[np.float16]:
        """(rows, *head.summary_shape), memory-mapped."""
        return self.store.arrays["summary"]

    @property
    def mu(self) -> NDArray[np.float32]:
        """(rows, dim) unit directions."""
        return self.store.arrays["mu"]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(rows,) False where the image could not be used."""
        return self.store.arrays["valid"]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(rows,) identity of each row, -1 unknown."""
        return np.repeat(self.source.labels, len(self.views))

    @property
    def skipped(self) -> dict[str, str]:
        """Key of every image that could not be used, and why."""
        return dict(self.store.notes["skipped"])

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        """The images these rows show."""
        return [self.source.keys[row // len(self.views)] for row in rows]

    @torch.no_grad()
    def log_kappa(self, head: ConfidenceHead) -> NDArray[np.float32]:
        """(rows,) what a head says of every row; 0 where the image could not be used."""
        found = np.zeros(len(self), np.float32)
        head.eval()
        rows = np.flatnonzero(self.valid)
        for part in np.array_split(rows, max(1, len(rows) // _CHUNK)):
            found[part] = head(torch.from_numpy(self.summary[part]).float()).numpy()
        return found

    def embeddings(self, view: int, log_kappa: NDArray[np.float32], provenance: dict[str, Any]) -> Embeddings:
        """One view of every image as `Embeddings`; unusable images are left out and listed."""
        return to_embeddings(self.store, self.source, view, self.views, log_kappa, provenance)


class _KeepSummary:
    """Recorder: the head's parameter-free summary in half precision, and the direction."""

    def __init__(self, head: ConfidenceHead, dim: int) -> None:
        self._head = head
        self.columns: dict[str, Column] = {
            "summary": (head.summary_shape, "float16"),
            "mu": ((dim,), "float32"),
            "norm": ((), "float32"),
        }
        self.identity = {"summary": [head.summary_kind, list(head.summary_shape)]}

    def __call__(self, output: BackboneOutput) -> dict[str, NDArray[Any]]:
        summary = self._head.summarize(output.features, output.embedding).half().numpy()
        if not np.isfinite(summary).all():
            raise ModelError(
                f"{self._head.kind} head: summaries reach beyond 65504, the largest half-precision number; "
                "this backbone's last map needs a normalisation"
            )
        return {"summary": summary, "mu": output.mu.numpy(), "norm": output.norm.numpy()}


def build_cache(
    backbone: FrozenBackbone,
    head: ConfidenceHead,
    source: ImageSource,
    views: Sequence[View],
    folder: str | Path,
    *,
    batch_size: int = 32,
) -> FeatureCache:
    """One resumable pass of the backbone over every view; a finished cache of the same content is reused.

    Args:
        backbone: frozen.
        head: only its parameter-free `summarize` is used: heads of one kind and size share a cache.
        source: aligned crops.
        views: the first one clean, as from `spherecf.data.training_views`.
        folder: where it lives; its size is reserved before the first image.
        batch_size: views per call of the backbone.

    Raises:
        StorageError: not enough disk space.
        InputError: no images.
    """
    recorder = _KeepSummary(head, backbone.dim)
    store = run_backbone(
        backbone, source, views, recorder, folder, batch_size=batch_size, description="features"
    )
    return FeatureCache(store, source, views)
