"""Check the images of a data set for corrupt files, unusual sizes and duplicates, and run all checks."""

import os
import tempfile
from collections import Counter
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt64

from spherecf.audit.labels import find_overlap, find_same_person, find_shared_names, find_suspects
from spherecf.common.progress import in_order, progress
from spherecf.common.rowstore import Column, RowStore
from spherecf.data import ImageSource, View, decode_image
from spherecf.embeddings import Embeddings
from spherecf.errors import FileFormatError
from spherecf.extract import KeepDirection, run_backbone, to_embeddings
from spherecf.models import FrozenBackbone

_CHUNK = 64  # images per task of a decoding thread
_COLUMNS: dict[str, Column] = {"size": ((2,), "int64"), "file": ((2,), "uint64"), "pixels": ((2,), "uint64")}


@dataclass(frozen=True)
class ImageScan:
    """Result of one pass over all images.

    Attributes:
        source: the scanned images.
        size: (n, 2) height and width; 0 for images that cannot be decoded.
        file, pixels: (n, 2) 128-bit hashes of the stored bytes and of the decoded pixels.
        reasons: key -> reason, for images that cannot be decoded.
    """

    source: ImageSource
    size: Int64[np.ndarray, "n 2"]
    file: UInt64[np.ndarray, "n 2"]
    pixels: UInt64[np.ndarray, "n 2"]
    reasons: dict[str, str]


@dataclass(frozen=True)
class DuplicateGroup:
    """Images with equal pixels.

    Attributes:
        keys: keys of the images in the first set.
        against: keys of the images in the second set, if there is one.
        identities: distinct identities of these images in both sets; "" is unknown.
        same: ``"bytes"`` if the files are equal, ``"pixels"`` if only the decoded pixels are.
    """

    keys: list[str]
    against: list[str]
    identities: list[str]
    same: str

    @property
    def across_identities(self) -> bool:
        """Whether the images have several identities, of which at least one is wrong."""
        return len(self.identities) > 1


def scan_images(
    source: ImageSource, folder: str | Path | None = None, *, workers: int | None = None
) -> ImageScan:
    """Decode every image once and record its size and hashes (BLAKE2b, 128 bits).

    Args:
        source: the images.
        folder: cache folder; an interrupted scan continues from it, and a finished scan of the same data is
            reused. None: no cache.
        workers: decoding threads; default: one per processor.

    Raises:
        StorageError: there is not enough disk space; 48 bytes per image are needed.

    Example:
        >>> from spherecf.data import orl_faces
        >>> scan_images(orl_faces().subset(range(3))).size.tolist()
        [[112, 92], [112, 92], [112, 92]]
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            scan = scan_images(source, temporary, workers=workers)
            return ImageScan(source, scan.size.copy(), scan.file.copy(), scan.pixels.copy(), scan.reasons)
    store = RowStore(folder, len(source), _COLUMNS, {"scan": 1, "source": source.fingerprint()})
    reasons: dict[str, str] = store.notes.setdefault("reasons", {})
    starts = range(store.done, len(source), _CHUNK)
    chunks = (range(start, min(start + _CHUNK, len(source))) for start in starts)
    results = in_order(partial(_scan_chunk, source), chunks, workers or os.cpu_count() or 1, "scan")
    with progress("scanning images", len(source), store.done) as advance, closing(results):
        try:
            for columns, corrupt in results:
                reasons.update(corrupt)
                store.append(columns)
                advance(len(columns["size"]), f"{len(reasons)} corrupt" if reasons else None)
        finally:
            store.commit()
    return ImageScan(source, reasons=reasons, **{name: np.asarray(store.arrays[name]) for name in _COLUMNS})


def _scan_chunk(source: ImageSource, rows: range) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    columns = {name: np.zeros((len(rows), *shape), dtype) for name, (shape, dtype) in _COLUMNS.items()}
    reasons: dict[str, str] = {}
    for index, row in enumerate(rows):
        try:
            data = source.read(row)
            image = decode_image(data)
        except FileFormatError as error:
            reasons[source.keys[row]] = f"{error.problem} {error.hint}".strip()
            continue
        columns["size"][index] = image.shape[:2]
        columns["file"][index] = _hash(data)
        columns["pixels"][index] = _hash(np.ascontiguousarray(image).data)
    return columns, reasons


def _hash(data: Any) -> np.ndarray:
    return np.frombuffer(blake2b(data, digest_size=16).digest(), "<u8")


def find_odd_sizes(scan: ImageScan) -> list[tuple[str, str]]:
    """(key, size as "height x width") of the images whose size differs from the most common one.

    Example:
        >>> from spherecf.data import orl_faces
        >>> find_odd_sizes(scan_images(orl_faces().subset(range(3))))
        []
    """
    decodable = np.flatnonzero(scan.size[:, 0])
    counts = Counter(map(tuple, scan.size[decodable].tolist()))
    if len(counts) < 2:
        return []
    common_size = counts.most_common(1)[0][0]
    rows = decodable[(scan.size[decodable] != common_size).any(1)].tolist()
    return [(scan.source.keys[row], f"{scan.size[row, 0]}x{scan.size[row, 1]}") for row in rows]


def find_duplicates(scan: ImageScan, against: ImageScan | None = None) -> list[DuplicateGroup]:
    """Find groups of images with equal pixels.

    Args:
        scan: scan of a data set.
        against: scan of a second data set; if given, only groups with images of both sets are returned.

    Example:
        >>> from spherecf.data import orl_faces
        >>> few, more = (scan_images(orl_faces().subset(range(count))) for count in (2, 5))
        >>> len(find_duplicates(more)), [group.keys for group in find_duplicates(few, more)]
        (0, [['s1/1.pgm'], ['s1/10.pgm']])
    """
    scans = [scan] if against is None else [scan, against]
    pixels, file = (np.concatenate([getattr(each, name) for each in scans]) for name in ("pixels", "file"))
    decodable = np.flatnonzero(np.concatenate([each.size[:, 0] for each in scans]))
    order = decodable[np.lexsort((decodable, pixels[decodable, 1], pixels[decodable, 0]))]
    starts = np.flatnonzero(np.r_[True, (pixels[order[1:]] != pixels[order[:-1]]).any(1)])
    groups = []
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)]):
        if end - start < 2:
            continue
        rows = order[start:end]
        first, second = rows[rows < len(scan.source)], rows[rows >= len(scan.source)] - len(scan.source)
        if against is None or (len(first) and len(second)):
            same = "bytes" if (file[rows] == file[rows[0]]).all() else "pixels"
            second_source = against.source if against else None
            groups.append(_duplicate_group(scan.source, first, second_source, second, same))
    return groups


def _duplicate_group(
    source: ImageSource, rows: np.ndarray, against: ImageSource | None, against_rows: np.ndarray, same: str
) -> DuplicateGroup:
    names = [_identity(source, row) for row in rows.tolist()]
    keys = [source.keys[row] for row in rows.tolist()]
    against_keys = [] if against is None else [against.keys[row] for row in against_rows.tolist()]
    names += [] if against is None else [_identity(against, row) for row in against_rows.tolist()]
    return DuplicateGroup(keys, against_keys, list(dict.fromkeys(names)), same)


def _identity(source: ImageSource, row: int) -> str:
    label = int(source.labels[row])
    return source.identities[label] if label >= 0 else ""


def embed_directions(
    backbone: FrozenBackbone, source: ImageSource, folder: str | Path | None = None, *, batch_size: int = 32
) -> Embeddings:
    """Embed all images with a recogniser alone; without a confidence head, log kappa is 0.

    Args:
        backbone: the recogniser.
        source: the images.
        folder: cache folder; an interrupted call continues from it. None: no cache.
        batch_size: images per call of the recogniser.

    Raises:
        StorageError: there is not enough disk space.
        InputError: no image could be used.

    Example:
        >>> from spherecf.data import SyntheticImages
        >>> embed_directions(FrozenBackbone.default(), SyntheticImages(2, 2)).mu.shape
        (2, 128)
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            embedded = embed_directions(backbone, source, temporary, batch_size=batch_size)
            return embedded.select(range(len(embedded)))  # copies, because the files will be deleted
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
    """Run all checks on a data set, alone or against another one.

    Args:
        source: data set to check, usually the training set.
        against: second data set, usually a test set, to find images and people that both sets share.
        backbone: recogniser for the checks of labels and people; None: only images and names are checked.
        folder: cache folder; an interrupted call continues from it. None: no cache.
        fmr: see `find_suspects`.
        fpir: see `find_suspects`.
        workers: decoding threads; default: one per processor.

    Returns:
        A JSON-serialisable report: ``source`` and ``against`` (name, size and fingerprint), ``corrupt``,
        ``odd_sizes``, ``duplicates``, ``duplicates_against``, ``shared_names`` and ``faces``, which is None
        without a recogniser, else has ``backbone``, ``unusable``, ``thresholds``, ``judged``, ``suspects``,
        ``same_person`` and ``overlap``.

    Raises:
        InputError: as `find_suspects`.
        StorageError: there is not enough disk space.

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
        "corrupt": [{"key": key, "reason": reason} for key, reason in scan.reasons.items()],
        "odd_sizes": [{"key": key, "size": size} for key, size in find_odd_sizes(scan)],
        "duplicates": [_as_dict(group) for group in find_duplicates(scan)],
        "duplicates_against": [_as_dict(group) for group in find_duplicates(scan, other)] if other else [],
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


def _as_dict(group: Any) -> dict[str, Any]:
    return asdict(group) | {"across_identities": group.across_identities}
