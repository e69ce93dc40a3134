"""What a head is trained on: which images, which views, cached or streamed."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spherecf.common.progress import console
from spherecf.data import ImageSource, View, training_views
from spherecf.errors import InputError
from spherecf.models import ConfidenceHead, FrozenBackbone, make_head
from spherecf.training._cache import FeatureCache, build_cache, cache_bytes
from spherecf.training._config import ConfidenceConfig
from spherecf.training._objective import make_objective
from spherecf.training._ranks import Ranks


@dataclass(frozen=True, eq=False)
class TrainingData:
    """A finished pass over the training images, ready to fit any number of heads of one kind.

    Attributes:
        cache: features of every view.
        facts: JSON-able facts for the record: data set, hash, views, counts, what was left out and why.
    """

    cache: FeatureCache
    facts: dict[str, Any]


def new_head(backbone: FrozenBackbone, config: ConfidenceConfig) -> ConfidenceHead:
    """A head for this backbone's map and the recipe's objective, the same for the same seed."""
    channels, height, width = backbone.feature_shape
    outputs = make_objective(config.loss, backbone.dim).outputs(backbone.dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        options = {"outputs": outputs} if outputs > 1 else {}
        return make_head(config.head.kind, channels=channels, height=height, width=width, **options)


@dataclass(frozen=True, eq=False)
class Chosen:
    """Which images can be learnt from, in which views, and the facts for the record."""

    source: ImageSource
    views: Sequence[View]
    facts: dict[str, Any]

    @classmethod
    def of(cls, source: ImageSource, config: ConfidenceConfig) -> "Chosen":
        kept = np.flatnonzero(source.labels >= 0)
        unknown = len(source) - len(kept)
        alone: list[str] = []
        if not config.prototypes.file:
            counts = np.bincount(source.labels[kept], minlength=1)
            single = counts[source.labels[kept]] < 2
            alone = [source.keys[row] for row in kept[single].tolist()]
            kept = kept[~single]
        if not len(kept):
            raise InputError(
                f"{source.name}: nothing to learn from: of {len(source)} images {unknown} have no identity "
                f"and {len(alone)} are the only one of theirs; class means need two or more images of a "
                "person, or give the classifier's weights as prototypes.file"
            )
        settings = config.views
        views = training_views(
            settings.degraded, recipe=settings.recipe, seed=settings.seed, flip=settings.flip
        )
        facts = {
            "source": source.name,
            "data": source.fingerprint(),
            "images": len(source),
            "used": len(kept),
            "without_identity": unknown,
            "only_one_of_identity": alone,
            "skipped": {},
            "views": [view.signature for view in views],
        }
        return cls(source if len(kept) == len(source) else source.subset(kept), views, facts)


def prepare(
    backbone: FrozenBackbone,
    source: ImageSource,
    config: ConfidenceConfig,
    cache: str | Path,
    *,
    batch_size: int = 32,
    ranks: Ranks | None = None,
) -> TrainingData:
    """The backbone's one pass: every view of every image that can be learnt from, into a cache on disk.

    With class-mean prototypes the only image of an identity has nothing to be compared with: such images are
    not embedded, but counted and listed.

    Raises:
        InputError: nobody has two images, or no identities are known.
        StorageError: not enough disk space for the cache.
    """
    chosen = Chosen.of(source, config)
    features = build_cache(
        backbone, _head_on_paper(backbone, config), chosen.source, chosen.views, cache,
        batch_size=batch_size, dtype=config.features.dtype, ranks=ranks,
    )  # fmt: skip
    used = chosen.facts["used"] - len(features.skipped)
    return TrainingData(features, {**chosen.facts, "used": used, "skipped": features.skipped})


def streams(backbone: FrozenBackbone, source: ImageSource, config: ConfidenceConfig, place: Path) -> bool:
    """Whether the backbone runs along; the size of the cache is said before it is made."""
    settings = config.features
    if settings.finetune or settings.source == "stream":
        return True
    views = (1 + config.views.degraded) * (1 + config.views.flip)
    needed = cache_bytes(_head_on_paper(backbone, config), backbone.dim, len(source) * views, settings.dtype)
    above = next(parent for parent in (place, *place.absolute().parents) if parent.exists())
    free = shutil.disk_usage(above).free
    fits = (place / "state.json").exists() or needed < 0.9 * free
    instead = settings.source == "auto" and not fits
    console.print(
        f"features: at most {len(source)} images x {views} views, {needed / 2**30:.2f} GiB as a cache in "
        f"{place}, {free / 2**30:.1f} GiB are free" + ("; streaming instead" if instead else ""),
        highlight=False, markup=False, soft_wrap=True,
    )  # fmt: skip
    return instead


def _head_on_paper(backbone: FrozenBackbone, config: ConfidenceConfig) -> ConfidenceHead:
    """A head without memory, for its shapes."""
    with torch.device("meta"):
        return new_head(backbone, config)
