"""Training data of a confidence head: cached or streamed features, and cosines to the prototypes."""

import hashlib
import math
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from spherecf.common.arrays import HostCopy, to_device
from spherecf.common.progress import begun_ahead, in_order, isolate_failures
from spherecf.common.readers import Readers, reading_processes
from spherecf.data import (
    ImageBatch,
    ImageSource,
    ListFile,
    Subset,
    View,
    ViewRequest,
    batch_bytes,
    load_batch,
)
from spherecf.errors import InputError, ModelError
from spherecf.extract import KeepDirection
from spherecf.models import (
    BackboneOutput,
    ConfidenceHead,
    FrozenBackbone,
    load_prototypes,
    prototype_identities,
)
from spherecf.training.batches import on_device, to_part
from spherecf.training.cache import FeatureCache, run_backbone_on_all
from spherecf.training.config import ConfidenceConfig
from spherecf.training.distributed import Ranks
from spherecf.training.loop import Part, Rows

_BLOCK = 65536


@dataclass(frozen=True, eq=False)
class Targets:
    """The rows of a cache that have a prototype.

    Attributes:
        rows: (n,) rows of the cache.
        cosine: (n,) cos(mu, prototype) of each row.
        identities: (n,) identity of each row.
        singletons: keys of images left out because their identity has no other usable image.
        prototypes: with which the cosines are computed.
    """

    rows: NDArray[np.int64]
    cosine: NDArray[np.float32]
    identities: NDArray[np.int64]
    singletons: list[str]
    prototypes: "Prototypes"


def prototype_targets(
    cache: FeatureCache, prototypes: Float[Tensor, "identities dim"] | None = None, leave_one_out: bool = True
) -> Targets:
    """Compute the cosines to given prototypes, or to the class means of the clean views.

    With ``leave_one_out`` (class means only), all views of an image are compared with the mean of the *other*
    images of its identity: a mean that includes the image inflates the cosine, and hence kappa.

    Args:
        cache: features of the training images.
        prototypes: (identities, dim), unit, indexed by label; None for class means.
        leave_one_out: see above.

    Raises:
        InputError: labels without a prototype, prototypes of another dimension, or no row with a prototype.
    """
    views = len(cache.views)
    # Prototypes are means of clean views, and an image is usable if its clean view is.
    if bool((cache.valid.reshape(-1, views) & ~cache.valid[::views, None]).any()):
        raise InputError("the cache lacks the clean view of some images; view 0 must be the clean one")
    source, dim, singletons = cache.source, cache.mu.shape[1], list[str]()
    lookup: Prototypes
    if prototypes is not None:
        lookup = GivenPrototypes(source, prototypes, dim)
    else:
        means = MeanPrototypes(source.labels, cache.mu[::views], cache.valid[::views], leave_one_out)
        lookup, singletons = means, means.singletons(source)
    rows = np.flatnonzero(cache.valid & np.repeat(lookup.usable, views))
    if not len(rows):
        raise InputError(
            f"nothing to learn from: {len(cache.source)} images, {len(cache.skipped)} unreadable, "
            f"{len(singletons)} the only one of their identity; class means need two or more images of each"
        )
    cosine = np.empty(len(rows), np.float32)
    for start in range(0, len(rows), _BLOCK):  # in blocks: the memory-mapped directions may exceed the memory
        block = rows[start : start + _BLOCK]
        mu = torch.from_numpy(cache.mu[block])  # (block, dim)
        cosine[start : start + _BLOCK] = (mu * lookup.of(block // views)).sum(1).clamp(-1, 1).numpy()
    return Targets(rows, cosine, source.labels[rows // views], singletons, lookup)


def check_fit(prototypes: Tensor, dim: int, labels: NDArray[np.int64]) -> None:
    """Check that prototypes fit the backbone's dimension and the labels.

    Raises:
        InputError: prototypes of another dimension, or labels without a prototype.
    """
    if dim != prototypes.shape[1]:
        raise InputError(f"prototypes have dimension {prototypes.shape[1]}, the backbone {dim}")
    max_label = int(labels.max(initial=-1))
    if max_label >= len(prototypes):
        raise InputError(
            f"labels reach {max_label}, but there are {len(prototypes)} prototypes: not this data set's "
            "classifier"
        )


def prototypes_for(source: ImageSource, path: str | Path) -> Float[Tensor, "identities dim"]:
    """Load a classifier's prototypes, indexed by the labels of a source.

    Rows in files of `train_backbone` have names and are matched by name. In other files the row index is the
    label; for a list file it is the number in the list, even if numbers are missing there.

    Raises:
        InputError: identities with images but without a prototype; the message counts and names them.
        FileFormatError: the file is unreadable.
    """
    prototypes = load_prototypes(path)
    names = prototype_identities(path)
    identities = source.identities
    if names is None and _numbered(source):
        names = [str(row) for row in range(len(prototypes))]
        identities = [number.lstrip("0") or "0" for number in identities]
    if names is None:
        return prototypes
    # Identities without images need no prototype: the source may be a subset of the data set.
    row = {name: index for index, name in enumerate(names)}
    present = np.unique(source.labels[source.labels >= 0])
    missing = [source.identities[label] for label in present if identities[label] not in row]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of {len(present)} identities of {source.name} have no prototype there "
            f"({', '.join(missing[:5])}, ...): not this data set's classifier, or fit.min_images left them "
            "out"
        )
    matched = torch.zeros(len(source.identities), prototypes.shape[1])
    matched[present] = prototypes[[row[identities[label]] for label in present]]
    return matched


def _numbered(source: ImageSource) -> bool:
    """Whether the source is a list file whose labels are all integers."""
    while isinstance(source, Subset):
        source = source.parent
    return isinstance(source, ListFile) and all(name.isdecimal() for name in source.identities)


@runtime_checkable
class Prototypes(Protocol):
    """One prototype for each image of a source.

    Attributes:
        usable: (images,) False for images without a prototype.
    """

    usable: NDArray[np.bool_]

    def of(self, images: NDArray[np.int64]) -> Tensor:
        """Unit prototypes (n, dim) of these images."""
        ...

    def all(self) -> Tensor:
        """Prototypes (identities, dim) from all images of each identity; zeros if it has none."""
        ...

    def digest(self) -> str:
        """Hash of the prototypes."""
        ...


class GivenPrototypes:
    """Prototypes of a classifier, one per identity."""

    def __init__(self, source: ImageSource, prototypes: Float[Tensor, "identities dim"], dim: int) -> None:
        check_fit(prototypes, dim, source.labels)
        self._labels, self._prototypes = source.labels, prototypes.cpu()
        self.usable = source.labels >= 0

    def of(self, images: NDArray[np.int64]) -> Tensor:
        return self._prototypes[torch.from_numpy(self._labels[images])]

    def all(self) -> Tensor:
        return self._prototypes

    def digest(self) -> str:
        return hashlib.sha256(self._prototypes.contiguous().numpy().data).hexdigest()


class MeanPrototypes:
    """Class means of clean directions; with ``leave_one_out`` each image is left out of its own mean.

    Only the sum over each identity is stored; the direction of an image is subtracted on access.

    Args:
        labels: (images,) identity of each image, -1 if unknown.
        mu: (images, dim) directions of the clean images; may be memory-mapped.
        valid: (images,) False for images without a direction.
        leave_one_out: see above.
        skipped: reason by key of images without a direction.
    """

    def __init__(
        self,
        labels: NDArray[np.int64],
        mu: NDArray[np.float32],
        valid: NDArray[np.bool_],
        leave_one_out: bool,
        skipped: dict[str, str] | None = None,
    ) -> None:
        labelled = valid & (labels >= 0)
        counts = np.bincount(labels[labelled], minlength=int(labels.max(initial=0)) + 1)
        self.usable = labelled & (counts[labels] > 1)
        self.skipped = skipped or {}
        self._singletons = np.flatnonzero(labelled & (counts[labels] < 2))
        self._mu, self._labels, self._leave_one_out = mu, labels, leave_one_out
        # float64, so that subtracting an image from its identity's sum causes no visible rounding error.
        self._sums = torch.zeros(len(counts), mu.shape[1], dtype=torch.float64)
        for rows in np.array_split(np.flatnonzero(labelled), max(1, len(mu) // _BLOCK)):
            self._sums.index_add_(0, torch.from_numpy(labels[rows]), torch.from_numpy(mu[rows]).double())

    def of(self, images: NDArray[np.int64]) -> Tensor:
        sums = self._sums[torch.from_numpy(self._labels[images])]  # (n, dim)
        if self._leave_one_out:
            sums = sums - torch.from_numpy(self._mu[images]).double()
        return normalize(sums, dim=1).float()

    def all(self) -> Tensor:
        return normalize(self._sums, dim=1).float()

    def singletons(self, source: ImageSource) -> list[str]:
        """Keys of images whose identity has no other usable image."""
        return [source.keys[image] for image in self._singletons.tolist()]

    def digest(self) -> str:
        return hashlib.sha256(self._sums.numpy().data).hexdigest()


def mean_prototypes(
    backbone: FrozenBackbone,
    source: ImageSource,
    folder: str | Path,
    leave_one_out: bool = True,
    ranks: Ranks | None = None,
) -> MeanPrototypes:
    """Compute class means by one resumable pass over the clean images; directions are stored in ``folder``.

    Raises:
        StorageError: not enough disk space for the directions.
    """
    recorder, directions = KeepDirection(backbone.dim), Path(folder) / "directions"
    store = run_backbone_on_all(
        ranks or Ranks(), backbone, source, [View()], recorder, directions, description="directions"
    )
    mu: NDArray[np.float32] = store.arrays["mu"]
    skipped = dict(store.notes["skipped"])
    return MeanPrototypes(source.labels, mu, store.arrays["valid"], leave_one_out, skipped)


class Sample(NamedTuple):
    """Input and target of a head for n entries.

    Attributes:
        summary: (n, *summary_shape) input of the head.
        mu: (n, dim) directions.
        cosine: (n,) cosines to the prototypes.
    """

    summary: Tensor
    mu: Tensor
    cosine: Tensor


@runtime_checkable
class Features(Protocol):
    """Training data of a head: entries 0 .. n - 1, each one view of an image that has a prototype."""

    @property
    def images(self) -> Rows:
        """(n,) image of each entry, ascending."""
        ...

    @property
    def identities(self) -> Rows:
        """(n,) identity of each entry."""
        ...

    @property
    def cosine(self) -> NDArray[np.float32] | None:
        """(n,) cos(mu, prototype) of each entry; None if it is computed on access."""
        ...

    @property
    def dim(self) -> int:
        """Dimension of the embedding."""
        ...

    @property
    def summary_shape(self) -> tuple[int, ...]:
        """Shape of one entry's summary."""
        ...

    @property
    def prototypes(self) -> Prototypes:
        """The prototypes with which the cosines are computed."""
        ...

    def load(self, parts: Iterable[Rows], directions: bool = False) -> Generator[Part, None, None]:
        """Yield the entries of each part in order; ``Part.data`` is a `Sample`, or images for fine-tuning.

        Without ``directions``, the samples' ``mu`` may be empty.
        """
        ...

    def keys(self, entries: Rows) -> list[str]:
        """Keys of the entries' images."""
        ...

    def digest(self) -> str:
        """Hash of the training data, on which the identity of checkpoints depends."""
        ...


class CachedFeatures:
    """Entries of a finished cache; the backbone is not needed any more."""

    def __init__(self, cache: FeatureCache, targets: Targets, device: torch.device | None = None) -> None:
        self.cache, self._targets = cache, targets
        self.images = targets.rows // len(cache.views)
        self.identities, self.cosine = targets.identities, targets.cosine
        self.dim, self.summary_shape = cache.mu.shape[1], cache.summary_shape
        self.prototypes = targets.prototypes
        self._device = device or torch.device("cpu")

    def load(self, parts: Iterable[Rows], directions: bool = False) -> Generator[Part, None, None]:
        def read(entries: Rows) -> Part:
            rows = self._targets.rows[entries]
            sample = Sample(
                self.cache.summaries(rows),
                torch.from_numpy(self.cache.mu[rows if directions else rows[:0]]),
                torch.from_numpy(self._targets.cosine[entries]),
            )
            if self._device.type == "cuda":  # copies from pinned memory do not block the CPU
                sample = Sample(*(column.pin_memory() for column in sample))
            return Part(entries, sample, {})

        if self._device.type == "cpu":  # without read-ahead: the head uses all cores
            yield from map(read, parts)
        else:
            with closing(in_order(read, parts, workers=1, name="features")) as loaded:
                yield from on_device(loaded, self._device)

    def keys(self, entries: Rows) -> list[str]:
        return self.cache.keys(self._targets.rows[entries])

    def digest(self) -> str:
        return hashlib.sha256(self._targets.rows.tobytes() + self._targets.cosine.tobytes()).hexdigest()


class _PendingPart(NamedTuple):
    """A batch in progress on the backbone's device; ``result`` is None if the backbone failed to start."""

    part: Part
    result: tuple[BackboneOutput, HostCopy] | None


class StreamedFeatures:
    """Entries computed on access, for data whose cache would not fit, or to fine-tune the backbone.

    Args:
        backbone: frozen.
        head: whose `pool_features` is used.
        source: the images; those without an identity or a prototype are left out.
        views: of each image.
        prototypes: of each image.
        config: ``features.finetune`` loads images instead of samples; the numbers of workers, epochs and
            images per batch determine how images are read (`reading_processes`).
        ranks: that share the work; samples are placed on this rank's device.
    """

    def __init__(
        self,
        backbone: FrozenBackbone,
        head: ConfidenceHead,
        source: ImageSource,
        views: Sequence[View],
        prototypes: Prototypes,
        *,
        config: ConfidenceConfig | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        config, ranks = config or ConfidenceConfig(), ranks or Ranks()
        self._backbone, self._head, self._source, self._views = backbone, head, source, list(views)
        self.prototypes, self._finetune, self._device = prototypes, config.features.finetune, ranks.device
        # Queue one batch ahead on a GPU, so that it has work while the CPU handles the previous results.
        self._ahead = 0 if backbone.device.type == "cpu" else 1
        # Entry i is view i % len(views) of image images[i], as in a cache.
        usable = np.flatnonzero((source.labels >= 0) & prototypes.usable)
        self.images = np.repeat(usable, len(views))
        self._view = np.tile(np.arange(len(views)), len(usable))
        self.identities = source.labels[self.images]
        self.cosine: NDArray[np.float32] | None = None
        self.dim, self.summary_shape = backbone.dim, tuple(head.summary_shape)
        workers, size = config.engine.workers, backbone.preprocessing.size
        choices = 1 if config.views.per_epoch == "all" else len(views)  # views from which an epoch uses one
        reads = config.fit.epochs * len(self.images) // (choices * ranks.size)
        max_batch = math.ceil(config.fit.batch_size / (ranks.size * config.engine.accumulate))
        # Samples are computed on the backbone's device; for fine-tuning, images go to the network's device.
        self._image_device = self._device if self._finetune else backbone.device
        self._readers = Readers[ViewRequest, ImageBatch](
            partial(load_batch, source, size),
            threads=workers,
            processes=reading_processes(workers, reads, self._image_device),
            max_result_bytes=batch_bytes(max_batch, size),
            device=self._image_device,
            name="decode",
        )

    def close(self) -> None:
        """End the reader processes."""
        self._readers.close()

    def frozen(self) -> "StreamedFeatures":
        """The same entries as samples of the backbone before any fine-tuning."""
        frozen = copy(self)
        frozen._finetune = False
        return frozen

    def load(self, parts: Iterable[Rows], directions: bool = False) -> Generator[Part, None, None]:
        requests = (ViewRequest(rows, self.images[rows], self._views, self._view[rows]) for rows in parts)
        with closing(self._readers(requests)) as loaded:
            images = on_device(map(to_part, loaded), self._image_device)
            if self._finetune:
                yield from images
            else:
                yield from begun_ahead(images, self._start, self._finish, self._ahead)

    def _start(self, part: Part) -> "_PendingPart":
        """Queue a part on the backbone's device; whether it succeeded is checked in `_finish`."""
        with suppress(ModelError):  # `_finish` isolates the images that fail
            output, usable = self._backbone.run(part.data)
            return _PendingPart(part, (output, HostCopy(usable)))
        return _PendingPart(part, None)

    def _finish(self, pending: "_PendingPart") -> Part:
        """Wait for a part; if some images failed, retry them one by one."""
        entries, images, skipped = pending.part
        if pending.result is not None and len(entries):
            output, usable = pending.result
            if bool(usable.wait().all()):
                return Part(entries, self._sample(output, entries), skipped)
        return self._samples(images, entries, skipped)

    def _samples(self, images: Tensor, entries: Rows, skipped: dict[str, str]) -> Part:
        """Samples of the images (n, height, width, 3) that the backbone can embed; retries one by one."""
        parts = []
        for selection, output in isolate_failures(self._backbone, images, ModelError):
            if isinstance(output, Exception):
                skipped[self.keys(entries[selection])[0]] = str(output)
            else:
                parts.append((entries[selection], self._sample(output, entries[selection])))
        if not parts:
            empty = Sample(torch.zeros(0, *self.summary_shape), torch.zeros(0, self.dim), torch.zeros(0))
            return Part(entries[:0], _to(self._device, empty), skipped)
        rows, samples = zip(*parts)
        return Part(np.concatenate(rows), Sample(*map(torch.cat, zip(*samples))), skipped)

    @torch.no_grad()
    def _sample(self, output: BackboneOutput, entries: Rows) -> Sample:
        summary = self._head.pool_features(output.features, output.embedding)  # (n, *summary_shape)
        prototypes = to_device(self.prototypes_of(entries), output.mu.device)  # (n, dim)
        cosine = (output.mu * prototypes).sum(1).clamp(-1, 1)  # (n,)
        return _to(self._device, Sample(summary, output.mu, cosine))

    def prototypes_of(self, entries: Rows) -> Tensor:
        """Prototypes (n, dim) of the entries, to compute cosines while the backbone is fine-tuned."""
        return self.prototypes.of(self.images[entries])

    def keys(self, entries: Rows) -> list[str]:
        return [self._source.keys[image] for image in self.images[entries].tolist()]

    def digest(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self.prototypes.digest().encode()).hexdigest()


def _to(device: torch.device, sample: Sample) -> Sample:
    return Sample(*(to_device(column, device) for column in sample))
