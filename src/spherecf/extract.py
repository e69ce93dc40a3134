"""A resumable pass of a backbone over images, and `embed`, which writes (mu, log_kappa) of each image.

Every image is decoded once and embedded once per view; threads or processes decode and degrade images while
the backbone computes. A `Recorder` selects what is stored: head summaries for the training cache, (mu,
log_kappa) for the embeddings file.
"""

import os
import time
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherecf.common.arrays import HostCopy
from spherecf.common.files import locked
from spherecf.common.progress import Advance, begun_ahead, isolate_failures, progress
from spherecf.common.readers import Readers, reading_processes
from spherecf.common.rowstore import Column, RowStore, SealedRows
from spherecf.common.sealing import Key, current_key
from spherecf.common.version import environment
from spherecf.data import ImageSource, View, batch_bytes, sharpness
from spherecf.embeddings import Embeddings
from spherecf.errors import FileFormatError, InputError, ModelError, SpherecfError
from spherecf.models import BackboneOutput, ConfidenceModel, FrozenBackbone

__all__ = ["embed"]

_AHEAD = 1  # batches queued on a GPU while the CPU stores the results of the previous one
_MAX_READERS = 8  # enough for a fast GPU and small crops; more threads would contend for Python's lock


@dataclass
class Batch:
    """Rows of consecutive images: all views of the first image, then all views of the second, and so on.

    Attributes:
        keys: key of each image.
        images: (rows, height, width, 3) uint8, after the view is applied; black where not valid.
        valid: (rows,) False for all views of an unusable image.
        severity, sharpness: (rows,) of the images after the view is applied.
        skipped: reason by key of every unusable image.
    """

    keys: list[str]
    images: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    severity: NDArray[np.float32]
    sharpness: NDArray[np.float32]
    skipped: dict[str, str] = field(default_factory=dict)

    def rows(self, position: int) -> slice:
        """The rows of the image at this position in the batch."""
        views = len(self.valid) // len(self.keys)
        return slice(position * views, (position + 1) * views)

    def skip(self, position: int, reason: str) -> None:
        """Mark an image as unusable, in all its views."""
        self.skipped[self.keys[position]] = reason
        self.valid[self.rows(position)] = False


def read_batch(source: ImageSource, views: Sequence[View], size: tuple[int, int], indices: range) -> Batch:
    """Decode the images of ``indices`` and apply every view to each; unreadable images are skipped."""
    keys, rows = [source.keys[index] for index in indices], len(indices) * len(views)
    black, valid = np.zeros((rows, *size, 3), np.uint8), np.ones(rows, np.bool_)
    batch = Batch(keys, black, valid, *np.zeros((2, rows), np.float32))
    for position, index in enumerate(indices):
        try:
            image = source.image(index, size)
        except FileFormatError as error:
            batch.skip(position, f"{error.problem} {error.hint}".strip())
            continue
        for row, view in enumerate(views, batch.rows(position).start):
            viewed = view(image, batch.keys[position])
            batch.images[row] = viewed.image
            batch.severity[row], batch.sharpness[row] = viewed.severity, sharpness(viewed.image)
    return batch


def iter_batches(
    source: ImageSource,
    views: Sequence[View],
    size: tuple[int, int],
    images_per_batch: int,
    start: int = 0,
    device: torch.device | None = None,
) -> Generator[Batch, None, None]:
    """Yield batches in order, starting at image ``start``, read ahead in bounded memory.

    Threads read the images; for a GPU and many images, processes do (`reading_processes`).
    """
    end, rows = len(source), images_per_batch * len(views)
    chunks = (
        range(first, min(first + images_per_batch, end)) for first in range(start, end, images_per_batch)
    )
    readers = Readers[range, Batch](
        partial(read_batch, source, views, size),
        threads=min(_MAX_READERS, os.cpu_count() or 1),
        processes=reading_processes(0, (end - start) * len(views), device or torch.device("cpu")),
        max_result_bytes=batch_bytes(rows, size),
    )
    with closing(readers), closing(readers(chunks)) as batches:
        yield from batches


@runtime_checkable
class Recorder(Protocol):
    """Selects which values of a backbone's output a pass stores, per row.

    Attributes:
        columns: shape of one row, and dtype, of each array it returns.
        identity: JSON-serialisable facts that the columns depend on.
    """

    columns: dict[str, Column]
    identity: dict[str, Any]

    def __call__(self, output: BackboneOutput) -> dict[str, Tensor]:
        """The columns for these images, on the backbone's device and without waiting for it."""
        ...

    def check(self, columns: dict[str, NDArray[Any]]) -> None:
        """Check the columns once they have been copied to the CPU.

        Raises:
            ModelError: some images have no usable result; the images of the batch are then retried one by
                one.
        """
        ...


FACTS: dict[str, Column] = {"valid": ((), "bool"), "severity": ((), "float32"), "sharpness": ((), "float32")}
"""Columns that every pass stores in addition to the recorder's."""


def run_backbone(
    backbone: FrozenBackbone,
    source: ImageSource,
    views: Sequence[View],
    recorder: Recorder,
    folder: str | Path,
    *,
    batch_size: int = 32,
    description: str = "embedding",
) -> RowStore:
    """Run the backbone once over every view of every image and store the recorder's columns on disk.

    Rows are image-major: row ``i * len(views) + v`` is view v of image i. After an interruption, by Ctrl-C or
    kill -9, the same call resumes after the last batch on disk and keeps the first call's batch size, so that
    the result is bit-identical. A finished store is returned unchanged. Images that cannot be read, are not
    of the backbone's input size, or whose embedding is not finite have ``valid`` False in all views; their
    keys and reasons are in ``store.notes["skipped"]``.

    Args:
        backbone: frozen.
        source: the images.
        views: applied to each image.
        recorder: selects the columns to store.
        folder: holds the rows (`RowStore`); existing rows of other images, views, or of another backbone or
            recorder are replaced.
        batch_size: rows per backbone call, rounded down to whole images, with a minimum of one image.
        description: label of the progress bar.

    Raises:
        StorageError: not enough disk space, or another process writes these rows; raised before the first
            image is read.
        InputError: no images, no views, or no usable image.
    """
    with locked(folder, ROWS_HELD):
        return _run_backbone(backbone, source, views, recorder, folder, batch_size, description)


ROWS_HELD = "this folder of rows"


def _run_backbone(
    backbone: FrozenBackbone,
    source: ImageSource,
    views: Sequence[View],
    recorder: Recorder,
    folder: str | Path,
    batch_size: int,
    description: str = "embedding",
    key: Key | None = None,
) -> RowStore:
    """`run_backbone` for a caller that has locked the folder; ``key`` encrypts the rows (`SealedRows`)."""
    if not len(source) or not views:
        raise InputError(f"{source.name}: nothing to embed ({len(source)} images, {len(views)} views)")
    if batch_size < 1:
        raise InputError(f"batch_size: expected 1 or more, got {batch_size}")
    store = open_store(backbone, source, views, recorder, folder, key)
    if not store.complete:
        with progress(description, store.rows, store.done) as advance:
            fill_store(store, backbone, source, views, recorder, batch_size, advance)
    check_usable(store, source)
    return store


def check_usable(store: RowStore, source: ImageSource) -> None:
    """Reject a finished pass without any usable image, and delete its rows.

    Raises:
        InputError: no image was usable; the message gives the first reason.
    """
    # Delete the rows so that the next call tries again: the images may have been repaired.
    skipped = store.notes.get("skipped", {})
    if len(skipped) == len(source):
        store.remove()
        key, reason = next(iter(skipped.items()))
        raise InputError(
            f"{source.name}: none of its {len(source)} images could be used. The first, {key}: {reason}"
        )


def open_store(
    backbone: FrozenBackbone,
    source: ImageSource,
    views: Sequence[View],
    recorder: Recorder,
    folder: str | Path,
    key: Key | None = None,
) -> RowStore:
    """Open the rows of a pass, finished or not; rows of another pass in this folder are replaced."""
    # The identity includes everything that affects the stored values; batch size and folder do not.
    identity = {
        "source": source.fingerprint(),
        "views": [view.signature for view in views],
        "backbone": backbone_identity(backbone),
        **recorder.identity,
    }
    rows, columns = len(source) * len(views), {**FACTS, **recorder.columns}
    if key is not None:
        return SealedRows(folder, rows, columns, identity, key)
    return RowStore(folder, rows, columns, identity)


def fill_store(
    store: RowStore,
    backbone: FrozenBackbone,
    source: ImageSource,
    views: Sequence[View],
    recorder: Recorder,
    batch_size: int,
    advance: Advance,
) -> None:
    """Complete a store (a pass or a part of one) whose images are exactly those of ``source``."""
    # Keep the first call's batch size: with another size, matrix products may round differently.
    per_batch = store.notes.setdefault("images_per_batch", max(1, batch_size // len(views)))
    done, size = store.done // len(views), backbone.preprocessing.size
    skipped = store.notes.setdefault("skipped", {})
    seconds, start = store.notes.setdefault("seconds", 0.0), time.monotonic()
    with closing(iter_batches(source, views, size, per_batch, done, backbone.device)) as batches:
        try:
            begin, finish = partial(_start, backbone, recorder), partial(_record, backbone, recorder)
            ahead = 0 if backbone.device.type == "cpu" else _AHEAD
            for batch, columns in begun_ahead(batches, begin, finish, ahead):
                skipped.update(batch.skipped)
                store.notes["seconds"] = seconds + time.monotonic() - start
                store.append(
                    {
                        "valid": batch.valid,
                        "severity": batch.severity,
                        "sharpness": batch.sharpness,
                        **columns,
                    }
                )
                advance(len(batch.valid), f"{len(skipped)} skipped" if skipped else "")
        finally:
            if not store.complete:  # also after Ctrl-C
                store.commit()


class _PendingBatch(NamedTuple):
    """A batch in progress on the backbone's device.

    Attributes:
        batch: the images.
        rows: the valid rows, which were passed to the backbone.
        usable: whether the result of each of these rows is usable.
        columns: the recorder's columns; empty if the backbone failed to start.
    """

    batch: Batch
    rows: NDArray[np.int64]
    usable: HostCopy
    columns: dict[str, HostCopy]


def _start(backbone: FrozenBackbone, recorder: Recorder, batch: Batch) -> _PendingBatch:
    rows = np.flatnonzero(batch.valid)
    if len(rows):
        with suppress(SpherecfError):  # `_record` isolates the images that fail
            output, usable = backbone.run(batch.images[rows])
            columns = {name: HostCopy(column) for name, column in recorder(output).items()}
            return _PendingBatch(batch, rows, HostCopy(usable), columns)
    return _PendingBatch(batch, rows, HostCopy(torch.zeros(0)), {})


def _record(
    backbone: FrozenBackbone, recorder: Recorder, pending: _PendingBatch
) -> tuple[Batch, dict[str, NDArray[Any]]]:
    """The batch and its columns, zero where not valid; images that the backbone rejects are skipped."""
    batch, rows = pending.batch, len(pending.batch.valid)
    columns = {name: np.zeros((rows, *shape), dtype) for name, (shape, dtype) in recorder.columns.items()}
    image_of_row = np.repeat(np.arange(len(batch.keys)), rows // len(batch.keys))

    def write(usable: NDArray[np.int64], values: dict[str, NDArray[Any]]) -> None:
        recorder.check(values)
        for name, value in values.items():
            columns[name][usable] = value

    def embed_again(images: range) -> None:
        usable = np.flatnonzero(batch.valid & np.isin(image_of_row, images))
        if len(usable):
            values = recorder(backbone(batch.images[usable]))
            write(usable, {name: value.cpu().numpy() for name, value in values.items()})

    if pending.columns and bool(pending.usable.wait().all()):
        with suppress(ModelError):  # raised again below, for the images that cause it
            write(pending.rows, {name: column.wait().numpy() for name, column in pending.columns.items()})
            return batch, columns
    # Something failed: retry one image at a time to isolate the bad ones.
    for images, failure in isolate_failures(embed_again, range(len(batch.keys)), ModelError):
        if failure is not None:
            batch.skip(images.start, str(failure))
    return batch, columns


def backbone_identity(backbone: FrozenBackbone) -> dict[str, Any]:
    """The facts that determine a backbone's output."""
    return {
        "sha256": backbone.sha256,
        "engine": backbone.engine,
        "embedding": backbone.embedding_name,
        "features": backbone.feature_name,
        "preprocessing": backbone.preprocessing.to_dict(),
    }


class KeepDirection:
    """Recorder of directions without confidence: ``mu`` and ``norm``."""

    def __init__(self, dim: int) -> None:
        self.columns: dict[str, Column] = {"mu": ((dim,), "float32"), "norm": ((), "float32")}
        self.identity: dict[str, Any] = {"kept": "direction"}

    def __call__(self, output: BackboneOutput) -> dict[str, Tensor]:
        return {"mu": output.mu, "norm": output.norm}

    def check(self, columns: dict[str, NDArray[Any]]) -> None:
        pass


class _KeepConfidence:
    """Recorder of the columns of an embeddings file."""

    def __init__(self, model: ConfidenceModel) -> None:
        self._model = model
        self.columns: dict[str, Column] = {
            "mu": ((model.backbone.dim,), "float32"), "norm": ((), "float32"), "log_kappa": ((), "float32"),
        }  # fmt: skip
        if model.head.outputs > 1:
            self.columns["log_precision"] = ((model.head.outputs,), "float32")
        self.identity = {"head": model.fingerprint()}

    def __call__(self, output: BackboneOutput) -> dict[str, Tensor]:
        result = self._model.predict_from_features(output)
        return {name: getattr(result, name) for name in self.columns}

    def check(self, columns: dict[str, NDArray[Any]]) -> None:
        if not all(np.isfinite(columns[name]).all() for name in self.columns if name.startswith("log_")):
            raise ModelError(
                "the confidence head gives a log kappa that is not finite; check its training run"
            )


def to_embeddings(
    store: RowStore,
    source: ImageSource,
    view: int,
    views: Sequence[View],
    log_kappa: NDArray[Any],
    provenance: dict[str, Any],
    *,
    mirrored: int | None = None,
    log_precision: NDArray[Any] | None = None,
) -> Embeddings:
    """One view of a finished pass as `Embeddings`; skipped images are left out and listed in ``skipped``.

    Args:
        store: with the columns ``mu`` and ``norm`` in addition to `FACTS`.
        source: the images.
        view: index in ``views`` of the view to return.
        views: of the pass.
        log_kappa: (rows,) for all rows of the store.
        provenance: facts to add.
        mirrored: for test-time flip, the index of the mirrored counterpart of ``views[view]``. The raw
            embeddings ``norm * mu`` of both are added and then normalised; ``norm`` is half the length of the
            sum; log kappa and log precision are the means of the two.
        log_precision: (rows, dim) for all rows, if the head outputs one per coordinate.
    """
    rows = np.flatnonzero(store.arrays["valid"][view :: len(views)])

    def column(array: NDArray[Any], index: int) -> NDArray[Any]:
        values = array[index :: len(views)]
        return values if len(rows) == len(values) else values[rows]  # copy a mapped file only if needed

    columns = (store.arrays["mu"], store.arrays["norm"], log_kappa)
    mu, norm, kappa = (column(array, view) for array in columns)
    precision = None if log_precision is None else column(log_precision, view)
    if mirrored is not None:
        other_mu, other_norm, other_kappa = (column(array, mirrored) for array in columns)
        # The usual test-time flip adds raw embeddings, not directions.
        total = mu * norm[:, None] + other_mu * other_norm[:, None]
        length = np.linalg.norm(total, axis=1)
        mu, norm, kappa = total / length[:, None], length / 2, (kappa + other_kappa) / 2
        if precision is not None and log_precision is not None:
            precision = (precision + column(log_precision, mirrored)) / 2
    applied = views[view]
    return Embeddings(
        mu=mu,
        log_kappa=kappa,
        keys=[source.keys[row] for row in rows.tolist()],
        labels=source.labels[rows],
        identities=list(source.identities),
        extras={
            "norm": norm,
            **{name: column(store.arrays[name], view) for name in ("severity", "sharpness")},
        },
        skipped=list(store.notes["skipped"].items()),
        provenance={
            "source": source.name,
            "data": source.fingerprint(),
            "alignment": getattr(source, "alignment", "as-given"),
            "view": applied.signature,
            "degradation": applied.degradation.signature if applied.degradation else None,
            "flip": "none" if mirrored is None else "sum",
            "environment": environment(),
            **provenance,
        },
        log_precision=precision,
    )


def embed(
    model: ConfidenceModel,
    source: ImageSource,
    out: str | Path,
    *,
    view: View | None = None,
    flip: bool = False,
    batch_size: int = 32,
) -> Embeddings:
    """Embed every image of a source as (mu, log_kappa) and write the embeddings file.

    Args:
        model: from `spherecf.load` or training.
        source: aligned crops of the backbone's input size, or photos as `spherecf.faces.AlignedFaces`.
        out: the file to write. Until it is complete, its rows are in the folder ``OUT.partial`` next to it;
            the same call resumes from there.
        view: degradation or mirroring applied to each image; None for the clean image.
        flip: test-time flip: also embed each image mirrored, add the two raw embeddings and normalise; log
            kappa is the mean of the two.
        batch_size: rows per backbone call; with ``flip`` each image has two.

    Returns:
        The embeddings, memory-mapped from ``out`` unless the file is encrypted. Unusable images are listed in
        ``skipped``.

    Raises:
        StorageError: not enough disk space for the rows (raised before the first image) or for the file (the
            rows are kept), or another process writes this file.
        InputError: no images, no usable image, or ``out`` is a folder.
    """
    if Path(out).is_dir():
        raise InputError(f"{out}: expected a file to write, this is a folder")
    first = view or View()
    views = [first, View(first.degradation, not first.flip)] if flip else [first]
    with locked(f"{out}.partial", ROWS_HELD):
        store = _run_backbone(
            model.backbone, source, views, _KeepConfidence(model), f"{out}.partial", batch_size,
            key=current_key(),
        )  # fmt: skip
        _finish(model, store, source, views, out)
    return Embeddings.load(out)


def _finish(
    model: ConfidenceModel, store: RowStore, source: ImageSource, views: Sequence[View], out: str | Path
) -> None:
    """Write the file from the rows of one view, or of two views for test-time flip, and delete the rows."""
    provenance = {
        "model": model.fingerprint(),
        "backbone": model.backbone.sha256,
        "radius": model.radius,
        **({} if model.calibration is None else {"calibration": model.calibration.to_dict()}),
        "seconds": round(store.notes["seconds"], 1),
    }
    result = to_embeddings(
        store, source, 0, views, store.arrays["log_kappa"], provenance,
        mirrored=1 if len(views) > 1 else None, log_precision=store.arrays.get("log_precision"),
    )  # fmt: skip
    # Remove the rows only when the file is complete. `result` maps them, so it is deleted first.
    result.save(out)
    del result
    store.remove()
