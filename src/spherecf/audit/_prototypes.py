"""Class means and the nearest of them, block by block, so that millions of images pass in little memory."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError

_ROWS = 65536  # rows summed at once
_CELLS = 1 << 25  # cosines held at once: 128 MiB


@dataclass(frozen=True)
class Prototypes:
    """One direction per identity that has images.

    Attributes:
        mu: (k, dim) unit class means.
        labels: (k,) index into the embeddings' identities.
        counts: (k,) images each is the mean of.
        names: what each is called.
        totals: (k, dim) sums of the directions.
    """

    mu: Float32[np.ndarray, "k dim"]
    labels: Int64[np.ndarray, " k"]
    counts: Int64[np.ndarray, " k"]
    names: list[str]
    totals: Float64[np.ndarray, "k dim"]


def class_means(embeddings: Embeddings) -> tuple[Prototypes, Int64[np.ndarray, " n"]]:
    """The prototypes, and for every image which one is its own (-1: none).

    Raises:
        InputError: no image has an identity.
    """
    labels = embeddings.labels
    if labels is None or not (labels >= 0).any():
        raise InputError("these embeddings carry no identities, so there is nothing to compare an image with")
    known, counts = np.unique(labels[labels >= 0], return_counts=True)
    own = np.where(labels >= 0, np.searchsorted(known, labels), -1)
    totals = np.zeros((len(known), embeddings.dim))
    for start in range(0, len(own), _ROWS):
        part = own[start : start + _ROWS]
        order = np.argsort(part, kind="stable")[(part < 0).sum() :]
        if len(order):
            present, begins = np.unique(part[order], return_index=True)
            rows = embeddings.mu[start : start + _ROWS][order].astype(np.float64)
            totals[present] += np.add.reduceat(rows, begins)
    length = np.linalg.norm(totals, axis=1, keepdims=True)
    mu = np.divide(totals, length, out=np.zeros_like(totals), where=length > 0).astype(np.float32)
    names = [
        embeddings.identities[label] if embeddings.identities else str(label) for label in known.tolist()
    ]
    return Prototypes(mu, known, counts, names, totals), own


def own_cosines(
    embeddings: Embeddings, prototypes: Prototypes, own: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Cosine of every image to its identity's mean without that image; NaN where there is no other image.

    With s the sum over the identity: cos(mu, s - mu) = (s.mu - 1) / sqrt(|s|^2 - 2 s.mu + 1).
    """
    cosines = np.full(len(own), np.nan)
    squares = (prototypes.totals**2).sum(1)
    several = np.flatnonzero((own >= 0) & (prototypes.counts[own] > 1))
    for start in range(0, len(several), _ROWS):
        rows = several[start : start + _ROWS]
        mine = own[rows]
        dot = np.einsum("nd,nd->n", prototypes.totals[mine], embeddings.mu[rows])
        rest = squares[mine] - 2 * dot + 1
        cosines[rows] = np.divide(dot - 1, np.sqrt(rest), out=np.full(len(rows), np.nan), where=rest > 1e-12)
    return cosines.clip(-1, 1)


def blocks(count: int, width: int) -> Iterator[slice]:
    """Rows 0 .. count in parts whose matrix with ``width`` columns stays within the bound."""
    step = max(1, _CELLS // max(width, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
