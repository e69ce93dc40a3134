"""Images that look like somebody else than their label says.

Let c be the cosine of an image to the mean of its identity without that image, and o the highest cosine to
the mean of any other identity. A suspect has c below what strangers reach (one random stranger in 1000 has a
higher cosine: a false match rate), and o above what a search among all identities finds by chance (one search
in 100 goes so high: a false positive identification rate). Both thresholds are quantiles of this very data
set, taken over the images that nobody doubts: those with c > o, for which all other identities are strangers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from spherecf.audit._prototypes import Prototypes, blocks, class_means, own_cosines
from spherecf.common.progress import progress
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError

_COMPARISONS = 1 << 24  # strangers compared for the first threshold


class Suspect(NamedTuple):
    """An image, the identity it is filed under, and the one it looks like."""

    key: str
    identity: str
    own_cosine: float
    other: str
    other_cosine: float


@dataclass(frozen=True)
class Thresholds:
    """What strangers reach in this data set.

    Attributes:
        own: cosine that a share ``fmr`` of the strangers' comparisons exceed.
        other: cosine that the nearest of all strangers exceeds for a share ``fpir`` of the images.
        fmr, fpir: the rates.
        images: how many undoubted images they were taken from.
        comparisons: how many comparisons with strangers ``own`` was taken from.
    """

    own: float
    other: float
    fmr: float
    fpir: float
    images: int
    comparisons: int


@dataclass(frozen=True)
class Suspects:
    """The suspects, the most certain ones first, and how they were found.

    Attributes:
        suspects: by falling ``other_cosine - own_cosine``.
        thresholds: the rule's two numbers.
        judged: images whose identity has another image; nothing can be said of the rest.
    """

    suspects: list[Suspect]
    thresholds: Thresholds
    judged: int


def find_suspects(embeddings: Embeddings, *, fmr: float = 1e-3, fpir: float = 1e-2) -> Suspects:
    """The images whose label is probably wrong; the module's first lines give the rule.

    Args:
        embeddings: with labels.
        fmr: lower asks for less likeness to strangers, so finds fewer.
        fpir: share of rightly labelled images that may look so much like one of all the others.

    Raises:
        InputError: rates out of range, fewer than two identities, or no identity with two images.

    Example:
        >>> import numpy as np
        >>> mu = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
        >>> labels = np.repeat(np.arange(4), 5)
        >>> labels[7] = 3  # somebody filed one of b under d
        >>> e = Embeddings(
        ...     mu=mu,
        ...     log_kappa=np.zeros(20),
        ...     keys=list(map(str, range(20))),
        ...     labels=labels,
        ...     identities=list("abcd"),
        ... )
        >>> [(found.key, found.identity, found.other) for found in find_suspects(e).suspects]
        [('7', 'd', 'b')]
    """
    if not (0 < fmr < 1 and 0 < fpir < 1):
        raise InputError(f"fmr and fpir are shares between 0 and 1, got {fmr} and {fpir}")
    prototypes, own = class_means(embeddings)
    if len(prototypes.mu) < 2:
        raise InputError("suspects need at least two identities with images")
    mine = own_cosines(embeddings, prototypes, own)
    cosine, nearest = _nearest_other(embeddings, prototypes, own)
    thresholds = _thresholds(embeddings, prototypes, own, mine > cosine, cosine, fmr, fpir)
    rows = np.flatnonzero((mine < thresholds.own) & (cosine >= thresholds.other))
    rows = rows[np.argsort(mine[rows] - cosine[rows], kind="stable")]
    suspects = [
        Suspect(
            embeddings.keys[row],
            prototypes.names[own[row]],
            round(float(mine[row]), 4),
            prototypes.names[nearest[row]],
            round(float(cosine[row]), 4),
        )
        for row in rows.tolist()
    ]
    return Suspects(suspects, thresholds, int(np.isfinite(mine).sum()))


def _nearest_other(
    embeddings: Embeddings, prototypes: Prototypes, own: Int64[np.ndarray, " n"]
) -> tuple[Float32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Highest cosine to another identity's mean, and which one."""
    best, which = np.empty(len(own), np.float32), np.empty(len(own), np.int64)
    with progress("comparing with everybody", len(own)) as advance:
        for part in blocks(len(own), len(prototypes.mu)):
            cosines = _strangers(embeddings, prototypes, own, np.arange(part.start, part.stop))
            which[part] = cosines.argmax(1)
            best[part] = cosines.max(1)
            advance(len(cosines))
    return best, which


def _strangers(
    embeddings: Embeddings, prototypes: Prototypes, own: Int64[np.ndarray, " n"], rows: np.ndarray
) -> Float32[np.ndarray, "rows k"]:
    """Cosines to all means, minus infinity for the image's own."""
    cosines = embeddings.mu[rows] @ prototypes.mu.T
    known = np.flatnonzero(own[rows] >= 0)
    cosines[known, own[rows][known]] = -np.inf
    return np.asarray(cosines, np.float32)


def _thresholds(
    embeddings: Embeddings,
    prototypes: Prototypes,
    own: Int64[np.ndarray, " n"],
    undoubted: np.ndarray,
    cosine: Float32[np.ndarray, " n"],
    fmr: float,
    fpir: float,
) -> Thresholds:
    rows = np.flatnonzero(undoubted)
    if not len(rows):
        raise InputError(
            "no image is nearer to its own identity than to all others: either no identity has two images, "
            "or the labels have nothing to do with the faces"
        )
    wanted = max(1, _COMPARISONS // len(prototypes.mu))
    drawn = rows if len(rows) <= wanted else np.random.default_rng(0).choice(rows, wanted, replace=False)
    strangers = _strangers(embeddings, prototypes, own, np.sort(drawn))
    compared: Float64[np.ndarray, " m"] = strangers[np.isfinite(strangers)].astype(np.float64)
    return Thresholds(
        own=float(np.quantile(compared, 1 - fmr)),
        other=float(np.quantile(cosine[rows], 1 - fpir)),
        fmr=fmr,
        fpir=fpir,
        images=len(rows),
        comparisons=len(compared),
    )
