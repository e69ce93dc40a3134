"""The feature cache: a head's input for every view of every training image, computed once, on disk."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from spherecf.common.files import locked
from spherecf.common.progress import progress
from spherecf.common.rowstore import Column, RowStore
from spherecf.data import ImageSource, View
from spherecf.embeddings import Embeddings
from spherecf.errors import ModelError
from spherecf.extract import (
    FACTS,
    ROWS_HELD,
    Recorder,
    check_usable,
    fill_store,
    open_store,
    run_backbone,
    to_embeddings,
)
from spherecf.models import BackboneOutput, ConfidenceHead, FrozenBackbone, float32_arithmetic
from spherecf.training.distributed import Ranks

_PIECES = 256  # parts of a pass, assigned to ranks in turn; finished ones are kept if the ranks change


def run_backbone_on_all(
    ranks: Ranks,
    backbone: FrozenBackbone,
    source: ImageSource,
    views: Sequence[View],
    recorder: Recorder,
    folder: Path,
    *,
    batch_size: int | None = None,
    description: str = "features",
) -> RowStore:
    """Run `spherecf.extract.run_backbone` on several ranks, which write their rows into the same files.

    It can be resumed with any number of ranks.

    Raises:
        StorageError: not enough disk space, or another process writes these rows.
        RankError: another rank failed.
        InputError: no images, or no usable image.
    """
    if batch_size is None:
        batch_size = BATCH if backbone.device.type == "cpu" else GPU_BATCH
    # A pass that several ranks have started is in pieces; a single process then resumes it in pieces, too.
    if ranks.size == 1 and not any(folder.glob("rows-*-*.json")):
        return run_backbone(
            backbone, source, views, recorder, folder, batch_size=batch_size, description=description
        )
    open_rows = partial(open_store, backbone, source, views, recorder, folder)
    with ExitStack() as stack:
        ranks.run_on_main(lambda: stack.enter_context(locked(folder, ROWS_HELD)), description)
        # Rank 0 reserves the disk space first: ranks creating the same files concurrently would corrupt them.
        ranks.run_on_main(open_rows, description)
        store, n_views = open_rows(), len(views)
        pieces = _pieces(store.rows, n_views)

        def fill() -> None:
            local = pieces[ranks.rank :: ranks.size]
            parts = [(store.part(a, b), range(a // n_views, b // n_views)) for a, b in local]
            done = sum(part.done for part, _ in parts)
            with progress(description, sum(part.rows for part, _ in parts), done) as advance:
                for part, images in parts:
                    if not part.complete:
                        subset = source.subset(images)
                        fill_store(part, backbone, subset, views, recorder, batch_size, advance)

        if not store.complete:
            ranks.run_on_all(fill, description)
            ranks.run_on_main(lambda: store.join([store.part(*piece) for piece in pieces]), description)
            store = open_rows()
        ranks.run_on_main(lambda: check_usable(store, source), description)
        return store


def _pieces(rows: int, views: int) -> list[tuple[int, int]]:
    """Ranges of rows, each of whole images; the same for any number of ranks."""
    images = rows // views
    step = max(1, -(-images // _PIECES)) * views
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


BATCH, GPU_BATCH = 32, 256  # views per call of the backbone; larger batches are no faster
_CHUNK = 4096


@dataclass(frozen=True, eq=False)
class FeatureCache:
    """A finished pass. Row ``i * len(views) + v`` is view v of image i; view 0 is the clean one.

    Attributes:
        store: the rows on disk.
        source: the images.
        views: of each image.
    """

    store: RowStore
    source: ImageSource
    views: Sequence[View]

    def __len__(self) -> int:
        return self.store.rows

    @property
    def summary_shape(self) -> tuple[int, ...]:
        """Shape of the summary in one row."""
        return tuple(self.store.arrays["summary"].shape[1:])

    def summaries(self, rows: NDArray[np.int64]) -> Float[Tensor, "n ..."]:
        """The head's input for these rows, (n, *head.summary_shape) float32."""
        stored = torch.from_numpy(self.store.arrays["summary"][rows])
        # NumPy lacks bfloat16, which is stored as int16 with the same bits.
        return (stored.view(torch.bfloat16) if stored.dtype == torch.int16 else stored).float()

    @property
    def mu(self) -> NDArray[np.float32]:
        """(rows, dim) unit directions."""
        return self.store.arrays["mu"]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(rows,) False if the image is unusable."""
        return self.store.arrays["valid"]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(rows,) identity of each row, -1 if unknown."""
        return np.repeat(self.source.labels, len(self.views))

    @property
    def skipped(self) -> dict[str, str]:
        """Reason by key of every unusable image."""
        return dict(self.store.notes["skipped"])

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        """Keys of the images of these rows."""
        return [self.source.keys[row // len(self.views)] for row in rows]

    def log_kappa(self, head: ConfidenceHead) -> NDArray[np.float32]:
        """Log kappa (rows,) of a head, computed by `ConfidenceHead.to_log_kappa`."""
        log_kappa: NDArray[np.float32] = head.to_log_kappa(torch.from_numpy(self.outputs(head))).numpy()
        return log_kappa

    def outputs(self, head: ConfidenceHead) -> NDArray[np.float32]:
        """Output of a head for every row, (rows,) or (rows, outputs); 0 if the image is unusable."""
        shape = (len(self),) if head.outputs == 1 else (len(self), head.outputs)
        outputs, device = np.zeros(shape, np.float32), next(head.parameters()).device
        head.eval()
        rows = np.flatnonzero(self.valid)
        # In chunks: the float32 summaries of a linear head may exceed the memory.
        with torch.no_grad(), float32_arithmetic("float32", device):
            for part in np.array_split(rows, max(1, len(rows) // _CHUNK)):
                outputs[part] = head(self.summaries(part).to(device)).cpu().numpy()
        return outputs

    def embeddings(self, view: int, log_kappa: NDArray[np.float32], provenance: dict[str, Any]) -> Embeddings:
        """One view of every image as `Embeddings`; unusable images are left out and listed."""
        return to_embeddings(self.store, self.source, view, self.views, log_kappa, provenance)


class _KeepSummary:
    """Recorder of the head's summary in a compact dtype, and of the direction."""

    def __init__(self, head: ConfidenceHead, dim: int, dtype: str) -> None:
        self._head, self._dtype = head, getattr(torch, dtype)
        self.columns = cache_columns(head, dim, dtype)
        self.identity = {"summary": [head.summary_kind, list(head.summary_shape)]}

    def __call__(self, output: BackboneOutput) -> dict[str, Tensor]:
        summary = self._head.pool_features(output.features, output.embedding).to(self._dtype)
        stored = summary.view(torch.int16) if self._dtype == torch.bfloat16 else summary
        return {"summary": stored, "mu": output.mu, "norm": output.norm}

    def check(self, columns: dict[str, NDArray[Any]]) -> None:
        # float16 overflows at 65504; bfloat16 has the range of float32, but 8 significant bits instead of 11.
        if not bool(torch.isfinite(torch.from_numpy(columns["summary"]).view(self._dtype)).all()):
            raise ModelError(
                f"{self._head.kind} head: summaries exceed {torch.finfo(self._dtype).max:g}, the largest "
                f"{str(self._dtype).removeprefix('torch.')}; set features.dtype to bfloat16"
            )


def cache_columns(head: ConfidenceHead, dim: int, dtype: str = "float16") -> dict[str, Column]:
    """Columns of a cache."""
    stored = "int16" if dtype == "bfloat16" else dtype
    return {"summary": (head.summary_shape, stored), "mu": ((dim,), "float32"), "norm": ((), "float32")}


def cache_bytes(head: ConfidenceHead, dim: int, rows: int, dtype: str = "float16") -> int:
    """Size on disk of a cache with this number of rows; the feature maps of a linear head need the most."""
    return RowStore.bytes_needed(rows, {**FACTS, **cache_columns(head, dim, dtype)})


def build_cache(
    backbone: FrozenBackbone,
    head: ConfidenceHead,
    source: ImageSource,
    views: Sequence[View],
    folder: str | Path,
    *,
    batch_size: int | None = None,
    dtype: str = "float16",
    ranks: Ranks | None = None,
) -> FeatureCache:
    """Run the backbone once over every view, resumably; a finished cache with the same content is reused.

    Args:
        backbone: frozen.
        head: only its `pool_features`, which has no parameters, is used: heads of one kind and size share a
            cache.
        source: aligned crops.
        views: the first one must be clean, as from `spherecf.data.training_views`.
        folder: of the cache; its disk space is reserved before the first image.
        batch_size: views per call of the backbone; None for 32 on the CPU, 256 on a GPU.
        dtype: of the summaries on disk: "float16", "bfloat16" or "float32".
        ranks: that share the work; all must see ``folder``.

    Raises:
        StorageError: not enough disk space.
        InputError: no images.
    """
    recorder = _KeepSummary(head, backbone.dim, dtype)
    store = run_backbone_on_all(
        ranks or Ranks(), backbone, source, views, recorder, Path(folder),
        batch_size=batch_size, description="features",
    )  # fmt: skip
    return FeatureCache(store, source, views)
