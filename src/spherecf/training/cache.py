"""The feature cache: what a head needs of every view of every training image, made once, on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spherecf.common.progress import progress
from spherecf.common.rowstore import Column, RowStore
from spherecf.data import ImageSource, View
from spherecf.embeddings import Embeddings
from spherecf.errors import ModelError
from spherecf.extract import (
    FACTS,
    Recorder,
    check_usable,
    fill_store,
    open_store,
    run_backbone,
    to_embeddings,
)
from spherecf.models import BackboneOutput, ConfidenceHead, FrozenBackbone
from spherecf.training.distributed import Ranks

_CHUNKS = 256  # pieces a rank takes in turn: what one did stays done when another number of ranks goes on


def run_together(
    ranks: Ranks,
    backbone: FrozenBackbone,
    source: ImageSource,
    views: Sequence[View],
    recorder: Recorder,
    folder: Path,
    *,
    batch_size: int = 32,
    description: str = "features",
) -> RowStore:
    """`spherecf.extract.run_backbone` by several ranks, which write their rows into the same files.

    Resumable like it, also with another number of ranks.

    Raises:
        StorageError: not enough disk space.
        RankError: another rank failed.
        InputError: no images, or none that could be used.
    """
    if ranks.size == 1 and not any(folder.glob("rows-*-*.json")):
        return run_backbone(
            backbone, source, views, recorder, folder, batch_size=batch_size, description=description
        )
    ranks.lead(lambda: open_store(backbone, source, views, recorder, folder), description)
    whole = open_store(backbone, source, views, recorder, folder)
    if not whole.complete:
        fill = partial(_fill, ranks, whole, backbone, source, views, recorder, batch_size, description)
        ranks.together(fill, description)
        parts = [whole.part(start, stop) for start, stop in _pieces(whole.rows, len(views))]
        ranks.lead(lambda: whole.join(parts), description)
        whole = open_store(backbone, source, views, recorder, folder)
    ranks.lead(lambda: check_usable(whole, source), description)
    return whole


def _fill(
    ranks: Ranks,
    whole: RowStore,
    backbone: FrozenBackbone,
    source: ImageSource,
    views: Sequence[View],
    recorder: Recorder,
    batch_size: int,
    description: str,
) -> None:
    mine = _pieces(whole.rows, len(views))[ranks.rank :: ranks.size]
    views_each = len(views)
    parts = [(whole.part(a, b), range(a // views_each, b // views_each)) for a, b in mine]
    done = sum(part.done for part, _ in parts)
    with progress(description, sum(part.rows for part, _ in parts), done) as advance:
        for part, images in parts:
            if not part.complete:
                chunk = source.subset(images)
                fill_store(part, backbone, chunk, views, recorder, batch_size, advance)


def _pieces(rows: int, views: int) -> list[tuple[int, int]]:
    """Ranges of rows of whole images, the same for any number of ranks."""
    images = rows // views
    step = max(1, -(-images // _CHUNKS)) * views
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


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
    def summary_shape(self) -> tuple[int, ...]:
        """Of one row."""
        return tuple(self.store.arrays["summary"].shape[1:])

    def summaries(self, rows: NDArray[np.int64]) -> Float[Tensor, "n ..."]:
        """What the head needs of these rows (n, *head.summary_shape), float32."""
        stored = torch.from_numpy(self.store.arrays["summary"][rows])
        # NumPy has no bfloat16: the numbers are kept as integers of the same bits.
        return (stored.view(torch.bfloat16) if stored.dtype == torch.int16 else stored).float()

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

    def log_kappa(self, head: ConfidenceHead) -> NDArray[np.float32]:
        """(rows,) one number per row, as `ConfidenceHead.to_log_kappa` makes it of the outputs."""
        said: NDArray[np.float32] = head.to_log_kappa(torch.from_numpy(self.outputs(head))).numpy()
        return said

    @torch.no_grad()
    def outputs(self, head: ConfidenceHead) -> NDArray[np.float32]:
        """What a head says of every row, (rows,) or (rows, outputs); 0 where the image could not be used."""
        shape = (len(self),) if head.outputs == 1 else (len(self), head.outputs)
        found = np.zeros(shape, np.float32)
        head.eval()
        rows = np.flatnonzero(self.valid)
        for part in np.array_split(rows, max(1, len(rows) // _CHUNK)):
            found[part] = head(self.summaries(part)).numpy()
        return found

    def embeddings(self, view: int, log_kappa: NDArray[np.float32], provenance: dict[str, Any]) -> Embeddings:
        """One view of every image as `Embeddings`; unusable images are left out and listed."""
        return to_embeddings(self.store, self.source, view, self.views, log_kappa, provenance)


class _KeepSummary:
    """Recorder: the head's parameter-free summary in a smaller type, and the direction."""

    def __init__(self, head: ConfidenceHead, dim: int, dtype: str) -> None:
        self._head, self._dtype = head, getattr(torch, dtype)
        self.columns = cache_columns(head, dim, dtype)
        self.identity = {"summary": [head.summary_kind, list(head.summary_shape)]}

    def __call__(self, output: BackboneOutput) -> dict[str, NDArray[Any]]:
        summary = self._head.pool_features(output.features, output.embedding).to(self._dtype).cpu()
        if not bool(torch.isfinite(summary).all()):
            raise ModelError(
                f"{self._head.kind} head: summaries reach beyond {torch.finfo(self._dtype).max:g}, the "
                f"largest {str(self._dtype).removeprefix('torch.')}; set features.dtype to bfloat16"
            )
        stored = summary.view(torch.int16) if self._dtype == torch.bfloat16 else summary
        return {"summary": stored.numpy(), "mu": output.mu.cpu().numpy(), "norm": output.norm.cpu().numpy()}


def cache_columns(head: ConfidenceHead, dim: int, dtype: str = "float16") -> dict[str, Column]:
    """What a cache keeps of each row."""
    stored = "int16" if dtype == "bfloat16" else dtype
    return {"summary": (head.summary_shape, stored), "mu": ((dim,), "float32"), "norm": ((), "float32")}


def cache_bytes(head: ConfidenceHead, dim: int, rows: int, dtype: str = "float16") -> int:
    """Size on disk of a cache of so many rows: of a linear head's maps most of all."""
    return RowStore.bytes_needed(rows, {**FACTS, **cache_columns(head, dim, dtype)})


def build_cache(
    backbone: FrozenBackbone,
    head: ConfidenceHead,
    source: ImageSource,
    views: Sequence[View],
    folder: str | Path,
    *,
    batch_size: int = 32,
    dtype: str = "float16",
    ranks: Ranks | None = None,
) -> FeatureCache:
    """One resumable pass of the backbone over every view; a finished cache of the same content is reused.

    Args:
        backbone: frozen.
        head: only its parameter-free `pool_features` is used: heads of one kind and size share a cache.
        source: aligned crops.
        views: the first one clean, as from `spherecf.data.training_views`.
        folder: where it lives; its size is reserved before the first image.
        batch_size: views per call of the backbone.
        dtype: of the summaries on disk: "float16", "bfloat16" or "float32".
        ranks: who share the work; all must see ``folder``.

    Raises:
        StorageError: not enough disk space.
        InputError: no images.
    """
    recorder = _KeepSummary(head, backbone.dim, dtype)
    store = run_together(
        ranks or Ranks(), backbone, source, views, recorder, Path(folder),
        batch_size=batch_size, description="features",
    )  # fmt: skip
    return FeatureCache(store, source, views)
