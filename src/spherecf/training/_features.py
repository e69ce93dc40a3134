"""What a confidence head learns from, entry by entry: from a cache, or from a backbone that runs along."""

import hashlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from copy import copy
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherecf.data import ImageSource, View, load_batches
from spherecf.models import ConfidenceHead, FrozenBackbone
from spherecf.training._cache import FeatureCache
from spherecf.training._shown import Shown
from spherecf.training._targets import Prototypes, Targets
from spherecf.training._task import Part, Rows


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

    def load(self, parts: Iterable[Rows]) -> Generator[Part, None, None]:
        """The entries of each part, in order; ``Part.data`` is a `Sample`, or images if it is for tuning."""
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

    def load(self, parts: Iterable[Rows]) -> Generator[Part, None, None]:
        for entries in parts:
            rows = self._targets.rows[entries]
            sample = Sample(
                self.cache.summaries(rows).to(self._device),
                torch.from_numpy(self.cache.mu[rows]).to(self._device),
                torch.from_numpy(self._targets.cosine[entries]).to(self._device),
            )
            yield Part(entries, sample, {})

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
    ) -> None:
        self._backbone, self._head, self._source, self._views = backbone, head, source, list(views)
        self._prototypes, self._tuning, self._workers = prototypes, tuning, workers or None
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

    def load(self, parts: Iterable[Rows]) -> Generator[Part, None, None]:
        shown = Shown(self._source, len(self.images), self._choose)
        size = self._backbone.preprocessing.size
        with closing(load_batches(shown, parts, size=size, workers=self._workers)) as loaded:
            for batch in loaded:
                images = torch.from_numpy(batch.images)
                data = images if self._tuning else self._look(images, batch.rows)
                yield Part(batch.rows, data, {item.key: item.reason for item in batch.skipped})

    def _choose(self, entry: int) -> tuple[int, View]:
        return int(self.images[entry]), self._views[self._view[entry]]

    def _look(self, images: Tensor, entries: Rows) -> Sample:
        if not len(entries):
            return Sample(torch.zeros(0, *self.summary_shape), torch.zeros(0, self.dim), torch.zeros(0))
        output = self._backbone(images)
        with torch.no_grad():
            summary = self._head.summarize(output.features, output.embedding)
            prototypes = self._prototypes.of(self.images[entries]).to(output.mu.device)
            cosine = (output.mu * prototypes).sum(1).clamp(-1, 1)
        return Sample(summary, output.mu, cosine)

    def prototypes_of(self, entries: Rows) -> Tensor:
        """(n, dim) for a loss that computes its own cosines."""
        return self._prototypes.of(self.images[entries])

    def keys(self, entries: Rows) -> list[str]:
        return [self._source.keys[image] for image in self.images[entries].tolist()]

    def digest(self) -> str:
        return hashlib.sha256(self.images.tobytes() + self._prototypes.digest().encode()).hexdigest()
