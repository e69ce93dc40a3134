"""Find images that are probably mislabelled, and people who occur under two names or in two data sets.

Let c be the cosine of an image to the mean of its identity without that image, and o the highest cosine to
the mean of any other identity. A suspect has c below a threshold that 1 in 1000 comparisons with a random
stranger exceeds (a false match rate), and o above a threshold that the best match of 1 in 100 searches among
strangers exceeds (a false positive identification rate). Both thresholds are quantiles of this data set,
taken over the images with undisputed labels: those with c > o, for which all other identities are strangers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64, Int64

from spherecf.common.progress import progress
from spherecf.data import ImageSource
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError

_ROWS = 65536  # rows per summation step
_CELLS = 1 << 25  # cosines in memory at once: 128 MiB


@dataclass(frozen=True)
class Prototypes:
    """The class mean of every identity that has images.

    Attributes:
        mu: (k, dim) unit class means.
        labels: (k,) index into the embeddings' identities.
        counts: (k,) number of images per identity.
        names: of the identities.
        totals: (k, dim) sums of the directions.
    """

    mu: Float32[np.ndarray, "k dim"]
    labels: Int64[np.ndarray, " k"]
    counts: Int64[np.ndarray, " k"]
    names: list[str]
    totals: Float64[np.ndarray, "k dim"]


def class_means(embeddings: Embeddings) -> tuple[Prototypes, Int64[np.ndarray, " n"]]:
    """The prototypes, and for every image the index of its own prototype (-1: none).

    Raises:
        InputError: no image has an identity.
    """
    labels = embeddings.labels
    if labels is None or not (labels >= 0).any():
        raise InputError("these embeddings have no identities; labels cannot be checked without them")
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
    """Cosine of every image to its identity's mean without that image; NaN if there is no other image.

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
    """Split rows 0 .. count into slices whose matrix with ``width`` columns fits the memory bound."""
    step = max(1, _CELLS // max(width, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


_COMPARISONS = 1 << 24  # comparisons with strangers for the first threshold


class Suspect(NamedTuple):
    """An image, the identity of its label, and the identity it resembles."""

    key: str
    identity: str
    own_cosine: float
    other: str
    other_cosine: float


@dataclass(frozen=True)
class Thresholds:
    """Thresholds from comparisons with strangers in this data set.

    Attributes:
        own: cosine that a share ``fmr`` of the comparisons with strangers exceeds.
        other: cosine that the nearest stranger exceeds for a share ``fpir`` of the images.
        fmr, fpir: the rates.
        images: number of images with undisputed labels that the thresholds are taken from.
        comparisons: number of comparisons with strangers that ``own`` is taken from.
    """

    own: float
    other: float
    fmr: float
    fpir: float
    images: int
    comparisons: int


@dataclass(frozen=True)
class Suspects:
    """The suspects, most certain first, and how they were found.

    Attributes:
        suspects: by decreasing ``other_cosine - own_cosine``.
        thresholds: the two thresholds.
        judged: number of images whose identity has another image; the others cannot be checked.
    """

    suspects: list[Suspect]
    thresholds: Thresholds
    judged: int


def find_suspects(embeddings: Embeddings, *, fmr: float = 1e-3, fpir: float = 1e-2) -> Suspects:
    """The images whose label is probably wrong; see the module's docstring for the rule.

    Args:
        embeddings: with labels.
        fmr: false match rate of the threshold for the own identity.
        fpir: false positive identification rate of the threshold for other identities.

    Raises:
        InputError: rates out of range, fewer than two identities, or no identity with two images.

    Example:
        >>> import numpy as np
        >>> mu = np.repeat(np.eye(4, dtype=np.float32), 5, axis=0)
        >>> labels = np.repeat(np.arange(4), 5)
        >>> labels[7] = 3  # one image of b is labelled d
        >>> e = Embeddings(
        ...     mu=mu,
        ...     log_kappa=np.zeros(20),
        ...     keys=list(map(str, range(20))),
        ...     labels=labels,
        ...     identities=list("abcd"),
        ... )
        >>> [(suspect.key, suspect.identity, suspect.other) for suspect in find_suspects(e).suspects]
        [('7', 'd', 'b')]
    """
    if not (0 < fmr < 1 and 0 < fpir < 1):
        raise InputError(f"expected 0 < fmr < 1 and 0 < fpir < 1, got {fmr} and {fpir}")
    prototypes, own = class_means(embeddings)
    if len(prototypes.mu) < 2:
        raise InputError("expected at least two identities with images")
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
    """Highest cosine to another identity's mean, and the index of that identity."""
    best, which = np.empty(len(own), np.float32), np.empty(len(own), np.int64)
    with progress("comparing identities", len(own)) as advance:
        for part in blocks(len(own), len(prototypes.mu)):
            cosines = _strangers(embeddings, prototypes, own, np.arange(part.start, part.stop))
            which[part] = cosines.argmax(1)
            best[part] = cosines.max(1)
            advance(len(cosines))
    return best, which


def _strangers(
    embeddings: Embeddings, prototypes: Prototypes, own: Int64[np.ndarray, " n"], rows: np.ndarray
) -> Float32[np.ndarray, "rows k"]:
    """Cosines to all means, minus infinity for the own one."""
    cosines = embeddings.mu[rows] @ prototypes.mu.T
    known = np.flatnonzero(own[rows] >= 0)
    cosines[known, own[rows][known]] = -np.inf
    return np.asarray(cosines, np.float32)


def _thresholds(
    embeddings: Embeddings,
    prototypes: Prototypes,
    own: Int64[np.ndarray, " n"],
    undisputed: np.ndarray,
    cosine: Float32[np.ndarray, " n"],
    fmr: float,
    fpir: float,
) -> Thresholds:
    rows = np.flatnonzero(undisputed)
    if not len(rows):
        raise InputError(
            "no image is closer to its own identity than to all others: either no identity has two images, "
            "or the labels do not match the faces"
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


class IdentityPair(NamedTuple):
    """Two identities that look alike, with the cosine of their class means."""

    left: str
    right: str
    cosine: float


def find_same_person(embeddings: Embeddings, threshold: float) -> list[IdentityPair]:
    """Pairs of identities whose class means have at least this cosine, highest first.

    Args:
        threshold: e.g. ``find_suspects(embeddings).thresholds.other``.

    Example:
        >>> import numpy as np
        >>> mu = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
        >>> e = Embeddings(
        ...     mu=mu,
        ...     log_kappa=np.zeros(3),
        ...     keys=list("123"),
        ...     labels=np.arange(3),
        ...     identities=["Ann", "Joe", "Joseph"],
        ... )
        >>> find_same_person(e, 0.9)
        [IdentityPair(left='Joe', right='Joseph', cosine=1.0)]
    """
    prototypes, _ = class_means(embeddings)
    pairs = []
    with progress("comparing identities", len(prototypes.mu)) as advance:
        for part in blocks(len(prototypes.mu), len(prototypes.mu)):
            cosines = prototypes.mu[part] @ prototypes.mu[part.start :].T
            rows, columns = np.nonzero(np.triu(cosines >= threshold, 1))
            pairs += [
                IdentityPair(prototypes.names[part.start + row], prototypes.names[part.start + column],
                             round(float(cosines[row, column]), 4))
                for row, column in zip(rows.tolist(), columns.tolist())
            ]  # fmt: skip
            advance(len(cosines))
    return sorted(pairs, key=lambda pair: -pair.cosine)


def find_overlap(train: Embeddings, test: Embeddings, threshold: float) -> list[IdentityPair]:
    """Identities of ``test`` whose nearest identity of ``train`` has at least this cosine of class means.

    Class means are compared in blocks, so the matrix (85,742 by 5,749 for MS1MV2 and LFW) is never in memory.

    Args:
        threshold: e.g. ``find_suspects(train).thresholds.other``, which 1 in 100 searches of the training set
            reaches by chance.

    Returns:
        ``left`` in train, ``right`` in test, highest cosine first.

    Raises:
        InputError: the embeddings differ in dimension, or have no identities.

    Example:
        >>> import numpy as np
        >>> one, two = (
        ...     Embeddings(
        ...         mu=np.eye(3, dtype=np.float32)[rows],
        ...         log_kappa=np.zeros(2),
        ...         keys=["1", "2"],
        ...         labels=np.arange(2),
        ...         identities=names,
        ...     )
        ...     for rows, names in (([0, 1], ["Ann", "Bo"]), ([1, 2], ["B.", "C."]))
        ... )
        >>> find_overlap(one, two, 0.5)
        [IdentityPair(left='Bo', right='B.', cosine=1.0)]
    """
    if train.dim != test.dim:
        raise InputError(
            f"expected embeddings of the same recogniser, got {train.dim} and {test.dim} dimensions"
        )
    left, right = class_means(train)[0], class_means(test)[0]
    pairs = []
    with progress("comparing data sets", len(right.mu)) as advance:
        for part in blocks(len(right.mu), len(left.mu)):
            cosines = right.mu[part] @ left.mu.T
            nearest = cosines.argmax(1)
            for index, row in enumerate(nearest.tolist()):
                if cosines[index, row] >= threshold:
                    names = left.names[row], right.names[part.start + index]
                    pairs.append(IdentityPair(*names, round(float(cosines[index, row]), 4)))
            advance(len(cosines))
    return sorted(pairs, key=lambda pair: -pair.cosine)


def find_shared_names(train: ImageSource, test: ImageSource) -> list[str] | None:
    """Names of ``test`` that are also in ``train``, ignoring case and ``_``; only of identities with images.

    Returns:
        The names, or None if those of one set are only numbers.

    Example:
        >>> from spherecf.data import orl_faces
        >>> find_shared_names(orl_faces().subset(range(20)), orl_faces().subset(range(10, 30)))
        ['s10']
    """
    one, two = (_names(source) for source in (train, test))
    if any(all(name.isdecimal() for name in names) for names in (one, two)):
        return None
    return sorted(two[name] for name in one.keys() & two.keys())


def _names(source: ImageSource) -> dict[str, str]:
    present = [source.identities[label] for label in np.unique(source.labels[source.labels >= 0]).tolist()]
    return {name.casefold().replace("_", " ").strip(): name for name in present}
