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

from spherecf.common.progress import in_order
from spherecf.data import ImageSource, View, load_batches
from spherecf.errors import ModelError
from spherecf.models import BackboneOutput, ConfidenceHead, FrozenBackbone
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
                output, good = self._outputs(images, rows, skipped)
                yield Part(rows[good], self._look(output, rows[good]), skipped)

    def _choose(self, entry: int) -> tuple[int, View]:
        return int(self.images[entry]), self._views[self._view[entry]]

    def _outputs(
        self, images: Tensor, entries: Rows, skipped: dict[str, str]
    ) -> tuple[BackboneOutput, NDArray[np.bool_]]:
        """What the backbone says, and which images it could take; the others are noted."""
        good = np.ones(len(entries), bool)
        try:
            return self._backbone(images), good
        except ModelError:  # one bad image must not cost its neighbours: find it
            for place in range(len(entries)):
                try:
                    self._backbone(images[place : place + 1])
                except ModelError as error:
                    good[place] = False
                    skipped[self.keys(entries[place : place + 1])[0]] = str(error)
            return self._backbone(images[torch.from_numpy(good)]), good

    def _look(self, output: BackboneOutput, entries: Rows) -> Sample:
        if not len(entries):
            nothing = torch.zeros(0, *self.summary_shape), torch.zeros(0, self.dim), torch.zeros(0)
            return _on(self._device, Sample(*nothing))
        with torch.no_grad():
            summary = self._head.summarize(output.features, output.embedding)
            prototypes = self._prototypes.of(self.images[entries]).to(output.mu.device)
            cosine = (output.mu * prototypes).sum(1).clamp(-1, 1)
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
