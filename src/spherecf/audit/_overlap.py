"""People who are there twice: in one set under two names, or in a training and a test set."""

from typing import NamedTuple

import numpy as np

from spherecf.audit._prototypes import blocks, class_means
from spherecf.common.progress import progress
from spherecf.data import ImageSource
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError


class IdentityPair(NamedTuple):
    """Two identities that look alike, with the cosine of their class means."""

    left: str
    right: str
    cosine: float


def find_same_person(embeddings: Embeddings, threshold: float) -> list[IdentityPair]:
    """Pairs of identities whose class means have at least this cosine, the most alike first.

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
    found = []
    with progress("comparing identities", len(prototypes.mu)) as advance:
        for part in blocks(len(prototypes.mu), len(prototypes.mu)):
            cosines = prototypes.mu[part] @ prototypes.mu[part.start :].T
            rows, columns = np.nonzero(np.triu(cosines >= threshold, 1))
            found += [
                IdentityPair(prototypes.names[part.start + row], prototypes.names[part.start + column],
                             round(float(cosines[row, column]), 4))
                for row, column in zip(rows.tolist(), columns.tolist())
            ]  # fmt: skip
            advance(len(cosines))
    return sorted(found, key=lambda pair: -pair.cosine)


def find_overlap(train: Embeddings, test: Embeddings, threshold: float) -> list[IdentityPair]:
    """Identities of ``test`` whose nearest identity of ``train`` has at least this cosine of class means.

    Class means are compared block by block, so the matrix of 85,742 by 5,749 is never held as a whole.

    Args:
        threshold: e.g. ``find_suspects(train).thresholds.other``, which a search of the training set reaches
            by chance in one of 100 cases.

    Returns:
        ``left`` in train, ``right`` in test, the most alike first.

    Raises:
        InputError: the embeddings have another dimension, or no identities.

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
        raise InputError(f"expected embeddings of one recogniser, got {train.dim} and {test.dim} dimensions")
    left, right = class_means(train)[0], class_means(test)[0]
    found = []
    with progress("comparing with the other set", len(right.mu)) as advance:
        for part in blocks(len(right.mu), len(left.mu)):
            cosines = right.mu[part] @ left.mu.T
            nearest = cosines.argmax(1)
            for place, row in enumerate(nearest.tolist()):
                if cosines[place, row] >= threshold:
                    names = left.names[row], right.names[part.start + place]
                    found.append(IdentityPair(*names, round(float(cosines[place, row]), 4)))
            advance(len(cosines))
    return sorted(found, key=lambda pair: -pair.cosine)


def find_shared_names(train: ImageSource, test: ImageSource) -> list[str] | None:
    """Names of ``test`` that are in ``train`` too, capitals and ``_`` aside; only of identities with images.

    Returns:
        None where the names of one set are numbers, which say nothing about people.

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
