"""Who trains and who is tested: nobody who looks like a test person learns a head."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.audit import IdentityPair, find_overlap, find_suspects
from spherecf.data import ImageSource
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.training import FeatureCache, TrainingData


@dataclass(frozen=True, eq=False)
class Division:
    """The people of a training set in two parts.

    Attributes:
        held_out: (images,) images of the people for the template tests: those who may be in the test set as
            well, and a share of the rest. All others train.
        shared: pairs of identities that look like one person in both sets.
        facts: JSON-able counts.
    """

    held_out: NDArray[np.bool_]
    shared: list[IdentityPair]
    facts: dict[str, Any]

    def training(self, data: TrainingData) -> TrainingData:
        """The same features with the held-out people unnamed, so that nothing is learnt from them."""
        cache = data.cache
        source = cache.source.subset(np.arange(len(cache.source)))
        source.labels = np.where(self.held_out, -1, source.labels)
        used = int((~self.held_out).sum()) - len(cache.skipped)
        return TrainingData(
            FeatureCache(cache.store, source, cache.views), {**data.facts, **self.facts, "used": used}
        )

    def tested(self, source: ImageSource) -> ImageSource:
        """The held-out people's images."""
        return source.subset(np.flatnonzero(self.held_out))


def divide(
    train: FeatureCache, test: FeatureCache, *, least: int = 6, share: float = 1 / 3, seed: int = 0
) -> Division:
    """Hold out everybody of a training set who looks like a person of the test set, and some more to test on.

    Args:
        train: features of the training set; the clean views are compared. Class means with a cosine that a
            search reaches by chance once in 100 (`spherecf.audit.find_suspects`) look alike.
        test: features of another data set, by the same recogniser.
        least: images a person needs to be drawn for the template tests.
        share: of the other people with as many images who are held out, too.
        seed: of that draw.

    Raises:
        InputError: nobody is left to train on.
    """
    own, other, source = _clean(train), _clean(test), train.source
    shared = find_overlap(own, other, find_suspects(own).thresholds.other)
    label = {name: place for place, name in enumerate(source.identities)}
    alike = np.array(sorted({label[pair.left] for pair in shared}), np.int64)
    counts = np.bincount(source.labels, minlength=len(source.identities))
    rest = np.setdiff1d(np.flatnonzero(counts >= least), alike)
    drawn = np.random.default_rng(seed).permutation(rest)[: round(share * len(rest))]
    out = np.isin(source.labels, np.concatenate([alike, drawn]))
    if out.all():
        raise InputError(
            f"{source.name}: everybody looks like a person of {test.source.name}, nobody is left to train on"
        )
    facts = {
        "people_of_both": len(alike),
        "train_people": len(np.unique(source.labels[~out])),
        "train_images": int((~out).sum()),
        "held_out_people": len(np.unique(source.labels[out])),
        "held_out_images": int(out.sum()),
    }
    return Division(out, shared, facts)


def _clean(cache: FeatureCache) -> Embeddings:
    return cache.embeddings(0, np.zeros(len(cache), np.float32), {})
