"""A resumable pass of a backbone over images, and `embed`, which writes (mu, log_kappa) of each.

Every image is decoded once and embedded once per view; threads or processes decode and degrade while the
backbone computes. A `Recorder` decides what is stored: head summaries for the training cache, (mu, log_kappa)
for the embeddings file.
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
from spherecf.common.files import held
from spherecf.common.progress import Advance, begun_ahead, isolate_failures, progress
from spherecf.common.readers import Readers, reading_processes
from spherecf.common.rowstore import Column, RowStore, SealedRows
from spherecf.common.sealing import Key, current_key
from spherecf.common.version import environment
from spherecf.data import ImageSource, View, batch_bytes, sharpness
from spherecf.embeddings import Embeddings
from spherecf.errors import FileFormatError, InputError, ModelError, SpherecfError
from spherecf.models import BackboneOutput, ConfidenceModel, FrozenBackbone

_AHEAD = 1  # batches that a GPU has begun while the processor takes what is done
_MAX_READERS = 8  # feed a fast GPU with small crops; more threads would compete for the interpreter


@dataclass
class Batch:
    """Rows of consecutive images: image by image, and for each image view by view.

    Attributes:
        keys: of the images.
        images: (rows, height, width, 3) after the view; black where not valid.
        valid: (rows,) False for all views of an image that cannot be used.
        severity, sharpness: (rows,) of the images after the view.
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

    def rows(self, position: int) -> slice:
        """The rows of one image."""
        views = len(self.valid) // len(self.keys)
        return slice(position * views, (position + 1) * views)

    def skip(self, position: int, reason: str) -> None:
        """Mark an image as unusable, in all its views."""
        self.skipped[self.keys[position]] = reason
        self.valid[self.rows(position)] = False


def read_batch(source: ImageSource, views: Sequence[View], size: tuple[int, int], indices: range) -> Batch:
    """Decode the images of ``indices`` and apply every view to each; unreadable ones are skipped."""
    batch = Batch.empty([source.keys[index] for index in indices], len(views), size)
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
    """Batches in order from image ``start`` on, read ahead in bounded memory.

    Threads read; for a ``device`` other than the CPU, and many images, processes (`reading_processes`).
    """
    end, rows = len(source), images_per_batch * len(views)
    chunks = (
        range(first, min(first + images_per_batch, end)) for first in range(start, end, images_per_batch)
    )
    readers = Readers[range, Batch](
        partial(read_batch, source, views, size),
        threads=min(_MAX_READERS, os.cpu_count() or 1),
        processes=reading_processes(0, (end - start) * len(views), device or torch.device("cpu")),
        largest=batch_bytes(rows, size),
    )
    with closing(readers), closing(readers(chunks)) as batches:
        yield from batches


@runtime_checkable
class Recorder(Protocol):
    """Selects what a pass stores of a backbone's output, per row.

    Attributes:
        columns: shape of one row and dtype of each array it returns.
        identity: JSON-able facts that its columns depend on.
    """

    columns: dict[str, Column]
    identity: dict[str, Any]

    def __call__(self, output: BackboneOutput) -> dict[str, Tensor]:
        """The columns for these images, on the backbone's device, which should not be waited for."""
        ...

    def check(self, columns: dict[str, NDArray[Any]]) -> None:
        """Called with the columns once they have arrived on the processor.

        Raises:
            ModelError: some images have no usable result; they are then retried one by one.
        """
        ...


FACTS: dict[str, Column] = {"valid": ((), "bool"), "severity": ((), "float32"), "sharpness": ((), "float32")}
"""Columns of every pass beside the recorder's."""


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
    """Run the backbone once over every view of every image and store the columns of ``recorder``, on disk.

    Rows are image-major: row ``i * len(views) + v`` is view v of image i. After an interruption, by Ctrl-C or
    kill -9, the same call resumes after the last batch on disk, in batches of the first call's size, so that
    the result is the same to the bit; a finished store is returned as it is. Images that cannot be read, have
    another size than the backbone's input, or get an embedding that is not finite, have ``valid`` False in
    all views; their keys and reasons are in ``store.notes["skipped"]``.

    Args:
        folder: of the rows (`RowStore`); rows of other images, views, backbone or recorder are
            replaced.
        batch_size: rows per backbone call, rounded down to whole images, at least one image.

    Raises:
        StorageError: not enough disk space, or another process fills these rows; raised before the first
            image.
        InputError: no images, no views, or no image that could be used.
    """
    with held(folder, ROWS_HELD):
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
    """`run_backbone` by whoever holds the folder; with a key its rows are encrypted (`SealedRows`)."""
    if not len(source) or not views:
        raise InputError(f"{source.name}: nothing to embed ({len(source)} images, {len(views)} views)")
    if batch_size < 1:
        raise InputError(f"batch_size: expected at least 1, got {batch_size}")
    store = open_store(backbone, source, views, recorder, folder, key)
    if not store.complete:
        with progress(description, store.rows, store.done) as advance:
            fill_store(store, backbone, source, views, recorder, batch_size, advance)
    check_usable(store, source)
    return store


def check_usable(store: RowStore, source: ImageSource) -> None:
    """Refuse a finished pass that could use no image at all; its rows are deleted.

    Raises:
        InputError: with the first reason.
    """
    # Deleted, so that the next call tries again: the images may have been repaired.
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
    """The rows of a pass, finished or not; rows of another pass in this folder are replaced."""
    # Whatever changes a number in the rows is part of the identity; batch size and folder are not.
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
    """Complete a store, a pass or a part of one, whose images are exactly those of ``source``."""
    # Batches of the first call's size: a matrix product may round differently in batches of another size.
    per_batch = store.notes.setdefault("images_per_batch", max(1, batch_size // len(views)))
    done, size = store.done // len(views), backbone.preprocessing.size
    skipped = store.notes.setdefault("skipped", {})
    seconds, start = store.notes.setdefault("seconds", 0.0), time.monotonic()
    with closing(iter_batches(source, views, size, per_batch, done, backbone.device)) as batches:
        try:
            begin, finish = partial(_begin, backbone, recorder), partial(_record, backbone, recorder)
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


class _Begun(NamedTuple):
    """A batch that the backbone is working on: its valid rows, whether each will be usable, and the columns.

    Without columns it could not even begin.
    """

    batch: Batch
    rows: NDArray[np.int64]
    usable: HostCopy
    columns: dict[str, HostCopy]


def _begin(backbone: FrozenBackbone, recorder: Recorder, batch: Batch) -> _Begun:
    rows = np.flatnonzero(batch.valid)
    if len(rows):
        with suppress(SpherecfError):  # `_record` finds out which images are to blame
            output, usable = backbone.run(batch.images[rows])
            columns = {name: HostCopy(column) for name, column in recorder(output).items()}
            return _Begun(batch, rows, HostCopy(usable), columns)
    return _Begun(batch, rows, HostCopy(torch.zeros(0)), {})


def _record(
    backbone: FrozenBackbone, recorder: Recorder, begun: _Begun
) -> tuple[Batch, dict[str, NDArray[Any]]]:
    """The batch and its columns, zeros where not valid; images the backbone cannot take are skipped."""
    batch, rows = begun.batch, len(begun.batch.valid)
    columns = {name: np.zeros((rows, *shape), dtype) for name, (shape, dtype) in recorder.columns.items()}
    image_of_row = np.repeat(np.arange(len(batch.keys)), rows // len(batch.keys))

    def keep(usable: NDArray[np.int64], found: dict[str, NDArray[Any]]) -> None:
        recorder.check(found)
        for name, column in found.items():
            columns[name][usable] = column

    def record(images: range) -> None:
        usable = np.flatnonzero(batch.valid & np.isin(image_of_row, images))
        if len(usable):
            found = recorder(backbone(batch.images[usable]))
            keep(usable, {name: column.cpu().numpy() for name, column in found.items()})

    if begun.columns and bool(begun.usable.wait().all()):
        with suppress(ModelError):  # raised again below, by the images that are to blame
            keep(begun.rows, {name: column.wait().numpy() for name, column in begun.columns.items()})
            return batch, columns
    for which, failure in isolate_failures(record, range(len(batch.keys)), ModelError):
        if failure is not None:
            batch.skip(which.start, str(failure))
    return batch, columns


def backbone_identity(backbone: FrozenBackbone) -> dict[str, Any]:
    """The facts that a backbone's output depends on."""
    return {
        "sha256": backbone.sha256,
        "engine": backbone.engine,
        "embedding": backbone.embedding_name,
        "features": backbone.feature_name,
        "preprocessing": backbone.preprocessing.to_dict(),
    }


class KeepDirection:
    """Recorder of directions without a confidence: mu and norm."""

    def __init__(self, dim: int) -> None:
        self.columns: dict[str, Column] = {"mu": ((dim,), "float32"), "norm": ((), "float32")}
        self.identity: dict[str, Any] = {"kept": "direction"}

    def __call__(self, output: BackboneOutput) -> dict[str, Tensor]:
        return {"mu": output.mu, "norm": output.norm}

    def check(self, columns: dict[str, NDArray[Any]]) -> None:
        pass


class _KeepConfidence:
    """Recorder of an embeddings file."""

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
                "the confidence head gives a log kappa that is not finite; was its training sound?"
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
    """One view of a finished pass as `Embeddings`; images that were skipped are left out and listed.

    Args:
        store: with the columns ``mu`` and ``norm`` beside `FACTS`.
        log_kappa: (rows,) of all rows of the store.
        provenance: facts to add.
        mirrored: the view that shows ``views[view]`` mirrored, for test-time flip: the raw embeddings
            ``norm * mu`` of both are added and then normalised, ``norm`` is half the length of the sum, and
            log kappa and log precision the means of both.
        log_precision: (rows, dim) of all rows, of a head that gives one per coordinate.
    """
    rows = np.flatnonzero(store.arrays["valid"][view :: len(views)])

    def column(array: NDArray[Any], which: int) -> NDArray[Any]:
        part = array[which :: len(views)]
        return part if len(rows) == len(part) else part[rows]  # no copy of a mapped file unless needed

    columns = (store.arrays["mu"], store.arrays["norm"], log_kappa)
    mu, norm, kappa = (column(array, view) for array in columns)
    precision = None if log_precision is None else column(log_precision, view)
    if mirrored is not None:
        other_mu, other_norm, other_kappa = (column(array, mirrored) for array in columns)
        # Raw embeddings are added, not directions: the usual test-time flip.
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
        out: the file to write. Until it is complete, rows are in the folder ``OUT.partial`` beside it, from
            which the same call resumes.
        view: degradation or mirroring applied to each image; None is the clean image.
        flip: test-time flip: embed each image mirrored as well, add the two raw embeddings, then normalise;
            log kappa is the mean of the two.
        batch_size: images per backbone call.

    Returns:
        The embeddings, memory-mapped from ``out`` unless it is encrypted. Images that could not be used are
        in ``skipped``.

    Raises:
        StorageError: not enough disk space for the rows, raised before the first image, or for the file; the
            rows remain. Or another process writes this file.
        InputError: no images, or none that could be used; ``out`` is a folder.
    """
    if Path(out).is_dir():
        raise InputError(f"{out}: expected a file to write, this is a folder")
    first = view or View()
    views = [first, View(first.degradation, not first.flip)] if flip else [first]
    with held(f"{out}.partial", ROWS_HELD):
        store = _run_backbone(
            model.backbone, source, views, _KeepConfidence(model), f"{out}.partial", batch_size,
            key=current_key(),
        )  # fmt: skip
        _finish(model, store, source, views, out)
    return Embeddings.load(out)


def _finish(
    model: ConfidenceModel, store: RowStore, source: ImageSource, views: Sequence[View], out: str | Path
) -> None:
    """Write the file from the rows of one view, or of two for test-time flip, and delete the rows."""
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
    # The rows are removed only now that the file is complete; `result` maps them, and must go first.
    result.save(out)
    del result
    store.remove()
