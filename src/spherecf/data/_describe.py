"""What is in a data set: counts, sizes, broken images."""

import os
from collections import Counter
from contextlib import closing
from typing import Any

import numpy as np

from spherecf.common.progress import in_order, progress
from spherecf.data._iterate import Skipped
from spherecf.data._pairbin import PairBin
from spherecf.data._source import ImageSource
from spherecf.errors import FileFormatError

_SAMPLE = 64
_CHUNK = 64  # images decoded by a thread at once
_EDGES = (1, 2, 3, 5, 10, 20, 50, 100)


def describe(source: ImageSource, decode: bool = False, workers: int | None = None) -> dict[str, Any]:
    """Facts about a source, ready for JSON.

    Args:
        source: any source.
        decode: decode every image; otherwise 64 evenly spaced ones stand for all.
        workers: decoding threads.

    Returns:
        ``kind``, ``name``, ``images``, ``identities`` (those with images), ``without_identity``,
        ``images_per_identity`` (least, median, mean, most, and a ``histogram`` of identities by number of
        images), ``bytes``, ``decoded`` (how many were), ``picture_sizes`` (height x width of those),
        ``broken`` (key and reason of those), ``missing`` (keys of images that are not there), ``ignored``
        (files that are no images), ``notes`` (how it was read), ``fingerprint``, ``pairs`` of a pair file.

    Example:
        >>> from spherecf.data import orl_faces
        >>> facts = describe(orl_faces())
        >>> facts["images"], facts["identities"], facts["picture_sizes"]
        (400, 40, {'112x92': 64})
    """
    count, stored = len(source), source.sizes()
    chosen = np.unique(np.linspace(0, count - 1, count if decode else min(count, _SAMPLE)).astype(int))
    sizes, broken = _decode(source, chosen, workers)
    known = source.labels[source.labels >= 0]
    facts: dict[str, Any] = {
        "kind": type(source).__name__,
        "name": source.name,
        "images": count,
        "identities": len(np.unique(known)),
        "without_identity": count - len(known),
        "images_per_identity": _per_identity(np.bincount(known)) if len(known) else None,
        "bytes": int(stored.clip(0).sum()),
        "decoded": len(chosen),
        "picture_sizes": {f"{height}x{width}": number for (height, width), number in sizes.most_common()},
        "broken": [item._asdict() for item in broken],
        "missing": [source.keys[row] for row in np.flatnonzero(stored < 0).tolist()],
        "ignored": source.ignored,
        "notes": source.notes,
        "fingerprint": source.fingerprint(),
    }
    if isinstance(source, PairBin):
        pairs = source.pairs
        facts["pairs"] = {"pairs": len(pairs), "mated": int(pairs.mated.sum()), "folds": pairs.folds}
    return facts


def _decode(
    source: ImageSource, rows: np.ndarray, workers: int | None
) -> tuple[Counter[tuple[int, ...]], list[Skipped]]:
    sizes: Counter[tuple[int, ...]] = Counter()
    broken: list[Skipped] = []

    def look(chunk: list[int]) -> list[tuple[int, ...] | Skipped]:
        found: list[tuple[int, ...] | Skipped] = []
        for row in chunk:
            try:
                found.append(source.image(row).shape[:2])
            except FileFormatError as error:
                found.append(Skipped(source.keys[row], str(error)))
        return found

    chunks = (rows[start : start + _CHUNK].tolist() for start in range(0, len(rows), _CHUNK))
    results = in_order(look, chunks, workers or os.cpu_count() or 1, "decode")
    with progress("decoding", len(rows)) as advance, closing(results):
        for found in results:
            broken += [item for item in found if isinstance(item, Skipped)]
            sizes.update(item for item in found if not isinstance(item, Skipped))
            advance(len(found), f"{len(broken)} broken" if broken else None)
    return sizes, broken


def _per_identity(counts: np.ndarray) -> dict[str, Any]:
    counts = counts[counts > 0]
    histogram = {}
    for low, high in zip(_EDGES, (*_EDGES[1:], np.inf)):
        name = f"{low}+" if high == np.inf else str(low) if high == low + 1 else f"{low}-{int(high) - 1}"
        histogram[name] = int(((counts >= low) & (counts < high)).sum())
    return {
        "least": int(counts.min()),
        "median": float(np.median(counts)),
        "mean": round(float(counts.mean()), 3),
        "most": int(counts.max()),
        "histogram": histogram,
    }
