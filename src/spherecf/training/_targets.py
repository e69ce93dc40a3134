"""What the head is trained towards: the cosine of each view to the prototype of its identity."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from spherecf.data import ImageSource, ListFile, Subset
from spherecf.errors import InputError
from spherecf.models import load_prototypes, prototype_identities
from spherecf.training._cache import FeatureCache

_BLOCK = 65536


@dataclass(frozen=True, eq=False)
class Targets:
    """The rows of a cache that can be learnt from.

    Attributes:
        rows: (n,) rows of the cache.
        cosine: (n,) cos(mu, prototype) of each.
        identities: (n,) identity of each.
        alone: keys of images left out because nobody else of their identity is there.
    """

    rows: NDArray[np.int64]
    cosine: NDArray[np.float32]
    identities: NDArray[np.int64]
    alone: list[str]


def prototype_targets(
    cache: FeatureCache, prototypes: Float[Tensor, "identities dim"] | None = None, leave_one_out: bool = True
) -> Targets:
    """Cosines to given prototypes, or to the class means of the clean views.

    With ``leave_one_out`` (class means only) each image is compared with the mean of the *other* images of
    its identity, in all its views: with the sample in the mean its cosine is inflated and kappa comes out
    too sure.

    Args:
        cache: features of the training images.
        prototypes: (identities, dim), unit, indexed by label; None for class means.
        leave_one_out: see above.

    Raises:
        InputError: labels beyond the prototypes, another dimension, or nothing to learn from.
    """
    views = len(cache.views)
    if bool((cache.valid.reshape(-1, views) & ~cache.valid[::views, None]).any()):
        raise InputError("the cache lacks the clean view of some images; view 0 must be the clean one")
    source, dim, alone = cache.source, cache.mu.shape[1], list[str]()
    given: Prototypes
    if prototypes is not None:
        given = GivenPrototypes(source, prototypes, dim)
    else:
        means = MeanPrototypes(source.labels, cache.mu[::views], cache.valid[::views], leave_one_out)
        given, alone = means, means.alone(source)
    rows = np.flatnonzero(cache.valid & np.repeat(given.usable, views))
    if not len(rows):
        raise InputError(
            f"nothing to learn from: {len(cache.source)} images, {len(cache.skipped)} unreadable, "
            f"{len(alone)} the only one of their identity; class means need two or more images of each"
        )
    cosine = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _BLOCK):  # never all directions at once: they may be larger than memory
        part = rows[start : start + _BLOCK]
        mu = torch.from_numpy(cache.mu[part])
        cosine[start : start + _BLOCK] = (mu * given.of(part // views)).sum(1).clamp(-1, 1).numpy()
    return Targets(rows, cosine, source.labels[rows // views], alone)


def check_fit(prototypes: Tensor, dim: int, labels: NDArray[np.int64]) -> None:
    """Whether prototypes belong to a backbone of this dimension, and to these labels.

    Raises:
        InputError: another dimension, or labels beyond them.
    """
    if dim != prototypes.shape[1]:
        raise InputError(f"prototypes have dimension {prototypes.shape[1]}, the backbone {dim}")
    largest = int(labels.max(initial=-1))
    if largest >= len(prototypes):
        raise InputError(
            f"labels reach {largest}, but there are {len(prototypes)} prototypes: not this data set's "
            "classifier"
        )


def prototypes_for(source: ImageSource, path: str | Path) -> Float[Tensor, "identities dim"]:
    """A classifier's prototypes by this source's labels.

    A file of our own stage 1 names its rows: they are matched by name. Any other goes row by label; the
    numbers of a list file are rows also where some are missing.

    Raises:
        InputError: identities with images but without a prototype; they are counted and named.
        FileFormatError: unreadable.
    """
    prototypes = load_prototypes(path)
    names = prototype_identities(path)
    if names is None and _numbered(source):
        names = [str(row) for row in range(len(prototypes))]
    if names is None:
        return prototypes
    row = {name: index for index, name in enumerate(names)}
    present = np.unique(source.labels[source.labels >= 0])
    missing = [source.identities[label] for label in present if source.identities[label] not in row]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {len(present)} identities of {source.name} have no prototype there "
            f"({', '.join(missing[:5])}, ...): not this data set's classifier, or fit.least left them out"
        )
    matched = torch.zeros(len(source.identities), prototypes.shape[1])
    matched[present] = prototypes[[row[source.identities[label]] for label in present]]
    return matched


def _numbered(source: ImageSource) -> bool:
    """A list file whose labels are whole numbers, which say more than their order."""
    while isinstance(source, Subset):
        source = source.parent
    return isinstance(source, ListFile) and all(name.isdecimal() for name in source.identities)


@runtime_checkable
class Prototypes(Protocol):
    """One prototype for each image of a source; ``usable`` (images,): False where there is none."""

    usable: NDArray[np.bool_]

    def of(self, images: NDArray[np.int64]) -> Tensor:
        """(n, dim), unit."""
        ...

    def digest(self) -> str:
        """Hash."""
        ...


class GivenPrototypes:
    """A classifier's, one per identity."""

    def __init__(self, source: ImageSource, prototypes: Float[Tensor, "identities dim"], dim: int) -> None:
        check_fit(prototypes, dim, source.labels)
        self._labels, self._prototypes = source.labels, prototypes
        self.usable = source.labels >= 0

    def of(self, images: NDArray[np.int64]) -> Tensor:
        return self._prototypes[torch.from_numpy(self._labels[images])]

    def digest(self) -> str:
        return hashlib.sha256(self._prototypes.contiguous().numpy().data).hexdigest()


class MeanPrototypes:
    """Class means of clean directions, by ``leave_one_out`` without the image itself.

    Keeps one sum per identity; an image's own direction is taken off when its prototype is asked for.

    Args:
        mu: (images, dim) directions of the clean images; may be memory-mapped.
        valid: (images,) False where there is none.
        skipped: key and reason of those.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        mu: NDArray[np.float32],
        valid: NDArray[np.bool_],
        leave_one_out: bool,
        skipped: dict[str, str] | None = None,
    ) -> None:
        good = valid & (labels >= 0)
        counts = np.bincount(labels[good], minlength=int(labels.max(initial=0)) + 1)
        self.usable = good & (counts[labels] > 1)
        self.skipped = skipped or {}
        self._alone = np.flatnonzero(good & (counts[labels] < 2))
        self._mu, self._labels, self._leave = mu, labels, leave_one_out
        self._sums = torch.zeros(len(counts), mu.shape[1], dtype=torch.float64)
        for rows in np.array_split(np.flatnonzero(good), max(1, len(mu) // _BLOCK)):
            self._sums.index_add_(0, torch.from_numpy(labels[rows]), torch.from_numpy(mu[rows]).double())

    def of(self, images: NDArray[np.int64]) -> Tensor:
        sums = self._sums[torch.from_numpy(self._labels[images])]
        if self._leave:
            sums = sums - torch.from_numpy(self._mu[images]).double()
        return normalize(sums, dim=1).float()

    def alone(self, source: ImageSource) -> list[str]:
        """Keys of images whose identity has no other usable one."""
        return [source.keys[image] for image in self._alone.tolist()]

    def digest(self) -> str:
        return hashlib.sha256(self._sums.numpy().data).hexdigest()
