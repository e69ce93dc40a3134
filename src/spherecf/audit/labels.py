"""Find images that are probably mislabelled, and people who occur under two names or in two data sets.

Let c be the cosine of an image to the mean of its identity without that image, and o the highest cosine to
the mean of any other identity. An image is suspect if c is below a threshold that 1 in 1000 non-mated
comparisons exceeds (a false match rate), and o is above a threshold that the best match in 1 in 100 non-mated
searches exceeds (a false positive identification rate). Both thresholds are quantiles over the images of this
data set whose labels are undisputed: those with c > o, for which comparisons with all other identities count
as non-mated.
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
        names: names of the identities.
        totals: (k, dim) sums of the directions of each identity's images.
    """

    mu: Float32[np.ndarray, "k dim"]
    labels: Int64[np.ndarray, " k"]
    counts: Int64[np.ndarray, " k"]
    names: list[str]
    totals: Float64[np.ndarray, "k dim"]


def class_means(embeddings: Embeddings) -> tuple[Prototypes, Int64[np.ndarray, " n"]]:
    """The prototypes, and for every image the index of its identity's prototype (-1: none).

    Raises:
        InputError: no image has an identity.
    """
    labels = embeddings.labels
    if labels is None or not (labels >= 0).any():
        raise InputError("these embeddings have no identities; labels cannot be checked without them")
    class_labels, counts = np.unique(labels[labels >= 0], return_counts=True)
    own = np.where(labels >= 0, np.searchsorted(class_labels, labels), -1)
    totals = np.zeros((len(class_labels), embeddings.dim))
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
        embeddings.identities[label] if embeddings.identities else str(label)
        for label in class_labels.tolist()
    ]
    return Prototypes(mu, class_labels, counts, names, totals), own


def own_cosines(
    embeddings: Embeddings, prototypes: Prototypes, own: Int64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Cosine of every image to its identity's mean without that image; NaN if there is no other image.

    With s the sum of the directions of the identity: cos(mu, s - mu) = (s.mu - 1) / sqrt(|s|^2 - 2 s.mu + 1).
    """
    cosines = np.full(len(own), np.nan)
    squared_norms = (prototypes.totals**2).sum(1)
    with_others = np.flatnonzero((own >= 0) & (prototypes.counts[own] > 1))
    for start in range(0, len(with_others), _ROWS):
        rows = with_others[start : start + _ROWS]
        identity = own[rows]
        dot = np.einsum("nd,nd->n", prototypes.totals[identity], embeddings.mu[rows])
        rest = squared_norms[identity] - 2 * dot + 1  # |s - mu|^2
        cosines[rows] = np.divide(dot - 1, np.sqrt(rest), out=np.full(len(rows), np.nan), where=rest > 1e-12)
    return cosines.clip(-1, 1)


def blocks(count: int, width: int) -> Iterator[slice]:
    """Split rows 0 .. count - 1 into slices whose matrix with ``width`` columns fits the memory limit."""
    step = max(1, _CELLS // max(width, 1))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


_COMPARISONS = 1 << 24  # non-mated comparisons for the first threshold


class Suspect(NamedTuple):
    """An image, the identity of its label, and the identity it resembles."""

    key: str
    identity: str
    own_cosine: float
    other: str
    other_cosine: float


@dataclass(frozen=True)
class Thresholds:
    """Thresholds from non-mated comparisons in this data set.

    Attributes:
        own: cosine that a share ``fmr`` of the non-mated comparisons exceeds.
        other: cosine that the nearest other identity exceeds for a share ``fpir`` of the images.
        fmr, fpir: the two rates.
        images: number of images with undisputed labels, from which the thresholds are computed.
        comparisons: number of non-mated comparisons from which ``own`` is computed.
    """

    own: float
    other: float
    fmr: float
    fpir: float
    images: int
    comparisons: int


@dataclass(frozen=True)
class Suspects:
    """Images with a suspect label, most certain first, and the thresholds used.

    Attributes:
        suspects: by decreasing ``other_cosine - own_cosine``.
        thresholds: the two thresholds.
        judged: number of images that could be checked: those whose identity has another image.
    """

    suspects: list[Suspect]
    thresholds: Thresholds
    judged: int


def find_suspects(embeddings: Embeddings, *, fmr: float = 1e-3, fpir: float = 1e-2) -> Suspects:
    """Find images whose label is probably wrong.

    An image is suspect if it is dissimilar to the other images of its identity and similar to another
    identity. Let c be its cosine to the mean of its identity without the image, and o the highest cosine to
    the mean of another identity. Then c is below a threshold with false match rate ``fmr``, and o is above a
    threshold with false positive identification rate ``fpir``. Both thresholds are quantiles of non-mated
    comparisons in this data set.

    Args:
        embeddings: embeddings with labels.
        fmr: false match rate of the threshold for the labelled identity.
        fpir: false positive identification rate of the threshold for other identities.

    Raises:
        InputError: a rate is out of range, there are fewer than two identities, or none has two images.

    Example:
        >>> from spherecf.embeddings import Embeddings
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
    own_cosine = own_cosines(embeddings, prototypes, own)
    other_cosine, nearest = _nearest_other(embeddings, prototypes, own)
    undisputed = own_cosine > other_cosine
    thresholds = _thresholds(embeddings, prototypes, own, undisputed, other_cosine, fmr, fpir)
    rows = np.flatnonzero((own_cosine < thresholds.own) & (other_cosine >= thresholds.other))
    rows = rows[np.argsort(own_cosine[rows] - other_cosine[rows], kind="stable")]
    suspects = [
        Suspect(
            embeddings.keys[row],
            prototypes.names[own[row]],
            round(float(own_cosine[row]), 4),
            prototypes.names[nearest[row]],
            round(float(other_cosine[row]), 4),
        )
        for row in rows.tolist()
    ]
    return Suspects(suspects, thresholds, int(np.isfinite(own_cosine).sum()))


def _nearest_other(
    embeddings: Embeddings, prototypes: Prototypes, own: Int64[np.ndarray, " n"]
) -> tuple[Float32[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Highest cosine to the mean of another identity, and the index of that identity."""
    cosine, nearest = np.empty(len(own), np.float32), np.empty(len(own), np.int64)
    with progress("comparing identities", len(own)) as advance:
        for part in blocks(len(own), len(prototypes.mu)):
            cosines = _non_mated_cosines(embeddings, prototypes, own, np.arange(part.start, part.stop))
            nearest[part] = cosines.argmax(1)
            cosine[part] = cosines.max(1)
            advance(len(cosines))
    return cosine, nearest


def _non_mated_cosines(
    embeddings: Embeddings, prototypes: Prototypes, own: Int64[np.ndarray, " n"], rows: np.ndarray
) -> Float32[np.ndarray, "rows k"]:
    """Cosines to the means of all identities; -inf for the image's own identity."""
    cosines = embeddings.mu[rows] @ prototypes.mu.T
    labelled = np.flatnonzero(own[rows] >= 0)
    cosines[labelled, own[rows][labelled]] = -np.inf
    return np.asarray(cosines, np.float32)


def _thresholds(
    embeddings: Embeddings,
    prototypes: Prototypes,
    own: Int64[np.ndarray, " n"],
    undisputed: np.ndarray,
    other_cosine: Float32[np.ndarray, " n"],
    fmr: float,
    fpir: float,
) -> Thresholds:
    rows = np.flatnonzero(undisputed)
    if not len(rows):
        raise InputError(
            "no image is closer to its own identity than to all others: either no identity has two images, "
            "or the labels do not match the faces"
        )
    max_rows = max(1, _COMPARISONS // len(prototypes.mu))
    sample = rows if len(rows) <= max_rows else np.random.default_rng(0).choice(rows, max_rows, replace=False)
    cosines = _non_mated_cosines(embeddings, prototypes, own, np.sort(sample))
    finite: Float64[np.ndarray, " m"] = cosines[np.isfinite(cosines)].astype(np.float64)
    return Thresholds(
        own=float(np.quantile(finite, 1 - fmr)),
        other=float(np.quantile(other_cosine[rows], 1 - fpir)),
        fmr=fmr,
        fpir=fpir,
        images=len(rows),
        comparisons=len(finite),
    )


class IdentityPair(NamedTuple):
    """Two similar identities, with the cosine of their class means."""

    left: str
    right: str
    cosine: float


def find_same_person(embeddings: Embeddings, threshold: float) -> list[IdentityPair]:
    """Find pairs of identities that are probably the same person.

    Args:
        embeddings: embeddings with labels.
        threshold: minimum cosine of the class means, e.g. ``find_suspects(embeddings).thresholds.other``.

    Returns:
        The pairs, highest cosine first.

    Example:
        >>> from spherecf.embeddings import Embeddings
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
    """Find people who are probably in two data sets, by comparing the class means of their identities.

    Class means are compared in blocks, so the full matrix (85,742 by 5,749 for MS1MV2 and LFW) is never in
    memory.

    Args:
        train: embeddings of the training set, with labels.
        test: embeddings of the test set, with labels.
        threshold: minimum cosine of the class means, e.g. ``find_suspects(train).thresholds.other``, which
            1 in 100 non-mated searches of the training set reaches by chance.

    Returns:
        Each identity of ``test`` above the threshold (``right``) with the nearest identity of ``train``
        (``left``), highest cosine first.

    Raises:
        InputError: the embeddings differ in dimension, or have no identities.

    Example:
        >>> from spherecf.embeddings import Embeddings
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
    """Find names of identities of ``test`` that also occur in ``train``, ignoring case and ``_``.

    Identities without images are ignored.

    Returns:
        The names as written in ``test``; None if all names of one of the sets are numbers.

    Example:
        >>> from spherecf.data import orl_faces
        >>> find_shared_names(orl_faces().subset(range(20)), orl_faces().subset(range(10, 30)))
        ['s10']
    """
    train_names, test_names = (_normalised_names(source) for source in (train, test))
    if any(all(name.isdecimal() for name in names) for names in (train_names, test_names)):
        return None
    return sorted(test_names[name] for name in train_names.keys() & test_names.keys())


def _normalised_names(source: ImageSource) -> dict[str, str]:
    """Normalised name -> name of every identity that has images."""
    names = [source.identities[label] for label in np.unique(source.labels[source.labels >= 0]).tolist()]
    return {name.casefold().replace("_", " ").strip(): name for name in names}
