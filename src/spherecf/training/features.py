"""What a confidence head learns from: features cached or streamed, and the cosines to the prototypes."""

import hashlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from spherecf.common.progress import in_order, isolate_failures
from spherecf.data import ImageSource, ListFile, Subset, View, load_batches
from spherecf.errors import InputError, ModelError
from spherecf.extract import KeepDirection
from spherecf.models import (
    BackboneOutput,
    ConfidenceHead,
    FrozenBackbone,
    load_prototypes,
    prototype_identities,
)
from spherecf.training.cache import FeatureCache, run_together
from spherecf.training.distributed import Ranks
from spherecf.training.loop import Part, Rows
from spherecf.training.sampling import Shown

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
            f"({', '.join(missing[:5])}, ...): not this data set's classifier, or fit.min_images left them "
            "out"
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


def mean_prototypes(
    backbone: FrozenBackbone,
    source: ImageSource,
    folder: str | Path,
    leave_one_out: bool = True,
    ranks: Ranks | None = None,
) -> MeanPrototypes:
    """One resumable pass over the clean images, which keeps dim numbers of each, and the means of identities.

    Raises:
        StorageError: not enough disk space for the directions.
    """
    recorder, place = KeepDirection(backbone.dim), Path(folder) / "directions"
    store = run_together(
        ranks or Ranks(), backbone, source, [View()], recorder, place, description="directions"
    )
    mu: NDArray[np.float32] = store.arrays["mu"]
    skipped = dict(store.notes["skipped"])
    return MeanPrototypes(source.labels, mu, store.arrays["valid"], leave_one_out, skipped)


class Sample(NamedTuple):
    """``summary`` (n, *shape), ``mu`` (n, dim), ``cosine`` (n,) to the prototypes."""

    summary: Tensor
    mu: Tensor
    cosine: Tensor


@runtime_checkable
class Features(Protocol):
    """Entries 0 .. n - 1, each one view of one image of a known identity."""

    @property
    def images(self) -> Rows:
        """(n,) the image each entry shows, ascending."""
        ...

    @property
    def identities(self) -> Rows:
        """(n,) whose it is."""
        ...

    @property
    def cosine(self) -> NDArray[np.float32] | None:
        """(n,) to the prototypes, None where the backbone has yet to say."""
        ...

    @property
    def dim(self) -> int:
        """Of the embedding."""
        ...

    @property
    def summary_shape(self) -> tuple[int, ...]:
        """Of one entry."""
        ...

    def load(self, parts: Iterable[Rows], directions: bool = False) -> Generator[Part, None, None]:
        """The entries of each part, in order; ``Part.data`` is a `Sample`, or images if it is for tuning.

        Without ``directions`` the samples' ``mu`` may be empty.
        """
        ...

    def keys(self, entries: Rows) -> list[str]:
        """The images' keys."""
        ...

    def digest(self) -> str:
        """Hash of what is learnt from."""
        ...


class CachedFeatures:
    """Entries of a finished cache: the backbone is not needed any more."""

    def __init__(self, cache: FeatureCache, targets: Targets, device: torch.device | None = None) -> None:
        self.cache, self._targets = cache, targets
        self.images = targets.rows // len(cache.views)
        self.identities, self.cosine = targets.identities, targets.cosine
        self.dim, self.summary_shape = cache.mu.shape[1], cache.summary_shape
        self._device = device or torch.device("cpu")

    def load(self, parts: Iterable[Rows], directions: bool = False) -> Generator[Part, None, None]:
        def read(entries: Rows) -> Part:
            rows = self._targets.rows[entries]
            sample = Sample(
                self.cache.summaries(rows),
                torch.from_numpy(self.cache.mu[rows if directions else rows[:0]]),
                torch.from_numpy(self._targets.cosine[entries]),
            )
            return Part(entries, _on(self._device, sample), {})

        if self._device.type == "cpu":  # the head keeps the processors busy itself
            yield from map(read, parts)
        else:
            yield from in_order(read, parts, workers=1, name="features")

    def keys(self, entries: Rows) -> list[str]:
        return self.cache.keys(self._targets.rows[entries])

    def digest(self) -> str:
        return hashlib.sha256(self._targets.rows.tobytes() + self._targets.cosine.tobytes()).hexdigest()


class StreamedFeatures:
    """Entries computed when asked for: for data whose cache would not fit, or a backbone that changes.

    Args:
        backbone: frozen.
        head: its `summarize` is used.
        source: the images; those without identity, or without a prototype, are left out.
        views: how each is shown.
        prototypes: of each image.
        tuning: give images instead of features.
        workers: decoding threads, 0 for one per processor.
        device: where the head wants its samples.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        head: ConfidenceHead,
        source: ImageSource,
        views: Sequence[View],
        prototypes: Prototypes,
        *,
        tuning: bool = False,
        workers: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self._backbone, self._head, self._source, self._views = backbone, head, source, list(views)
        self._prototypes, self._tuning, self._workers = prototypes, tuning, workers or None
        self._device = device or torch.device("cpu")
        usable = np.flatnonzero((source.labels >= 0) & prototypes.usable)
        self.images = np.repeat(usable, len(views))
        self._view = np.tile(np.arange(len(views)), len(usable))
        self.identities = source.labels[self.images]
        self.cosine: NDArray[np.float32] | None = None
        self.dim, self.summary_shape = backbone.dim, tuple(head.summary_shape)

    def frozen(self) -> "StreamedFeatures":
        """The same entries, as the backbone saw them before any tuning."""
        twin = copy(self)
        twin._tuning = False
        return twin

    def load(self, parts: Iterable[Rows], directions: bool = False) -> Generator[Part, None, None]:
        shown = Shown(self._source, len(self.images), self._choose)
        size = self._backbone.preprocessing.size
        with closing(load_batches(shown, parts, size=size, workers=self._workers)) as loaded:
            for batch in loaded:
                skipped = {item.key: item.reason for item in batch.skipped}
                images, rows = torch.from_numpy(batch.images), batch.rows
                if self._tuning:
                    yield Part(rows, images, skipped)
                    continue
                yield self._samples(images, rows, skipped)

    def _choose(self, entry: int) -> tuple[int, View]:
        return int(self.images[entry]), self._views[self._view[entry]]

    def _samples(self, images: Tensor, entries: Rows, skipped: dict[str, str]) -> Part:
        """What the head needs of the images (n, height, width, 3) that the backbone can use."""
        parts = []
        for which, output in isolate_failures(self._backbone, images, ModelError):
            if isinstance(output, Exception):
                skipped[self.keys(entries[which])[0]] = str(output)
            else:
                parts.append((entries[which], self._sample(output, entries[which])))
        if not parts:
            nothing = Sample(torch.zeros(0, *self.summary_shape), torch.zeros(0, self.dim), torch.zeros(0))
            return Part(entries[:0], _on(self._device, nothing), skipped)
        if len(parts) == 1:
            return Part(*parts[0], skipped)
        rows, samples = zip(*parts)
        return Part(np.concatenate(rows), Sample(*map(torch.cat, zip(*samples))), skipped)

    @torch.no_grad()
    def _sample(self, output: BackboneOutput, entries: Rows) -> Sample:
        summary = self._head.summarize(output.features, output.embedding)  # (n, *summary_shape)
        prototypes = self._prototypes.of(self.images[entries]).to(output.mu.device)  # (n, dim)
        cosine = (output.mu * prototypes).sum(1).clamp(-1, 1)  # (n,)
        return _on(self._device, Sample(summary, output.mu, cosine))

    def prototypes_of(self, entries: Rows) -> Tensor:
        """(n, dim) for a loss that computes its own cosines."""
        return self._prototypes.of(self.images[entries])

    def keys(self, entries: Rows) -> list[str]:
        return [self._source.keys[image] for image in self.images[entries].tolist()]

    def digest(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self._prototypes.digest().encode()).hexdigest()


def _on(device: torch.device, sample: Sample) -> Sample:
    return Sample(*(column.to(device) for column in sample))
