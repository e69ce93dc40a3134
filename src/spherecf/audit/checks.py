"""Run all checks of a data set and report them."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from spherecf.audit.images import find_corrupt, find_duplicates, find_odd_sizes, scan_images
from spherecf.audit.labels import find_overlap, find_same_person, find_shared_names, find_suspects
from spherecf.data import ImageSource, View
from spherecf.embeddings import Embeddings
from spherecf.extract import KeepDirection, run_backbone, to_embeddings
from spherecf.models import FrozenBackbone


def embed_directions(
    backbone: FrozenBackbone, source: ImageSource, folder: str | Path | None = None, *, batch_size: int = 32
) -> Embeddings:
    """The direction of every image. Without a head there is no confidence: log kappa is 0.

    Args:
        folder: cache of the pass; an interrupted call continues from it. None keeps nothing.
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
        with tempfile.TemporaryDirectory() as temporary:
            embedded = embed_directions(backbone, source, temporary, batch_size=batch_size)
            return embedded.select(range(len(embedded)))  # a copy, since the files are deleted
    recorder, views = KeepDirection(backbone.dim), [View()]
    store = run_backbone(backbone, source, views, recorder, folder, batch_size=batch_size)
    log_kappa = np.zeros(store.rows, np.float32)
    return to_embeddings(store, source, 0, views, log_kappa, {"backbone": backbone.sha256, "head": None})


def check(
    source: ImageSource,
    against: ImageSource | None = None,
    backbone: FrozenBackbone | None = None,
    folder: str | Path | None = None,
    *,
    fmr: float = 1e-3,
    fpir: float = 1e-2,
    workers: int | None = None,
) -> dict[str, Any]:
    """Check a data set, alone or against another one; returns a JSON-able report.

    Args:
        source: data set to check, usually the training set.
        against: second data set, usually a test set, to find what it shares with ``source``.
        backbone: recogniser for the checks of labels and people; None checks only pixels and names.
        folder: cache of the passes; an interrupted call continues from it. None keeps nothing.
        fmr, fpir: see `find_suspects`.
        workers: decoding threads.

    Returns:
        ``source`` and ``against`` (name, size and fingerprint), ``corrupt``, ``odd_sizes``, ``duplicates``,
        ``duplicates_against``, ``shared_names`` and ``faces``: None without recogniser, else ``thresholds``,
        ``judged``, ``suspects``, ``same_person`` and ``overlap``.

    Raises:
        InputError: as `find_suspects`.
        StorageError: not enough disk space.

    Example:
        >>> from spherecf.data import orl_faces
        >>> report = check(orl_faces().subset(range(20)), orl_faces().subset(range(15, 30)))
        >>> len(report["duplicates"]), len(report["duplicates_against"]), report["shared_names"]
        (0, 5, ['s10'])
    """
    caches = {
        name: None if folder is None else Path(folder) / name
        for name in ("images", "against-images", "faces", "against-faces")
    }
    scan = scan_images(source, caches["images"], workers=workers)
    other = None if against is None else scan_images(against, caches["against-images"], workers=workers)
    report: dict[str, Any] = {
        "source": _facts(source),
        "against": None if against is None else _facts(against),
        "corrupt": [item._asdict() for item in find_corrupt(scan)],
        "odd_sizes": [item._asdict() for item in find_odd_sizes(scan)],
        "duplicates": [_group(group) for group in find_duplicates(scan)],
        "duplicates_against": [_group(group) for group in find_duplicates(scan, other)] if other else [],
        "shared_names": None if against is None else find_shared_names(source, against),
        "faces": None,
    }
    if backbone is not None:
        faces = embed_directions(backbone, source, caches["faces"])
        suspects = find_suspects(faces, fmr=fmr, fpir=fpir)
        threshold = suspects.thresholds.other
        overlap = []
        if against is not None:
            test = embed_directions(backbone, against, caches["against-faces"])
            overlap = find_overlap(faces, test, threshold)
        report["faces"] = {
            "backbone": {"name": backbone.name, "sha256": backbone.sha256},
            "unusable": len(faces.skipped),
            "thresholds": asdict(suspects.thresholds),
            "judged": suspects.judged,
            "suspects": [item._asdict() for item in suspects.suspects],
            "same_person": [pair._asdict() for pair in find_same_person(faces, threshold)],
            "overlap": [pair._asdict() for pair in overlap],
        }
    return report


def _facts(source: ImageSource) -> dict[str, Any]:
    return {
        "name": source.name,
        "images": len(source),
        "identities": len(np.unique(source.labels[source.labels >= 0])),
        "fingerprint": source.fingerprint(),
    }


def _group(group: Any) -> dict[str, Any]:
    return asdict(group) | {"across_identities": group.across_identities}
