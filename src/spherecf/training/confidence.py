"""`train_confidence`: a frozen recogniser and images of known people in, a confidence model out. Stage 2."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.common.progress import console
from spherecf.common.version import environment
from spherecf.data import ImageSource, View, training_views
from spherecf.errors import InputError
from spherecf.extract import backbone_identity
from spherecf.models import ConfidenceHead, ConfidenceModel, FrozenBackbone, make_head, save_backbone
from spherecf.training.backbone import BACKBONE_FILE
from spherecf.training.cache import FeatureCache, build_cache, cache_bytes
from spherecf.training.config import ConfidenceConfig
from spherecf.training.distributed import Ranks
from spherecf.training.features import (
    CachedFeatures,
    Features,
    GivenPrototypes,
    Prototypes,
    StreamedFeatures,
    check_fit,
    mean_prototypes,
    prototype_targets,
    prototypes_for,
)
from spherecf.training.heads import EachEpoch, FitResult, fit_head, make_objective


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


MODEL_FILE = "confidence.safetensors"


def fit_confidence(
    backbone: FrozenBackbone,
    data: TrainingData,
    config: ConfidenceConfig,
    folder: str | Path | None = None,
    *,
    prototypes: Float[Tensor, "identities dim"] | None = None,
    ranks: Ranks | None = None,
    tensorboard: bool = False,
    each_epoch: EachEpoch | None = None,
) -> ConfidenceModel:
    """Fit a head on prepared data: initialisation, epochs, the best on held-out identities, the record.

    Raises:
        InputError: prototypes or identities that do not fit the data.
        SpherecfError: the loss diverged.
    """
    ranks = ranks or Ranks()
    if prototypes is None and config.prototypes.file:
        prototypes = prototypes_for(data.cache.source, config.prototypes.file)
    targets = prototype_targets(data.cache, prototypes, config.prototypes.leave_one_out)
    features = CachedFeatures(data.cache, targets, ranks.device)
    head = new_head(backbone, config)
    identity = _identity(backbone, data.facts)
    result = fit_head(
        head, features, config, folder, ranks=ranks, identity=identity, tensorboard=tensorboard,
        each_epoch=each_epoch,
    )  # fmt: skip
    facts = {**data.facts, "lost_their_company": targets.alone}
    return ConfidenceModel(backbone, result.head, config.loss.radius, _record(config, facts, result, ranks))


def train_confidence(
    backbone: FrozenBackbone,
    source: ImageSource,
    folder: str | Path,
    config: ConfidenceConfig | None = None,
    *,
    cache: str | Path | None = None,
    batch_size: int = 32,
    ranks: Ranks | None = None,
    tensorboard: bool = False,
    each_epoch: EachEpoch | None = None,
) -> ConfidenceModel:
    """Train a confidence head for a recogniser: stage 2 of the sphere confidence face.

    With a cache the backbone sees every view once, then the head alone learns, in epochs over the cache, by
    ``dL/dkappa = A_d(kappa) - cos(mu, prototype)`` (S. Li et al., CVPR 2021, section 3). Streaming, the
    backbone runs in every epoch, which needs no space, and may learn as well (``features.finetune``). The
    same call after an interruption goes on where it stopped and ends with the identical model.

    Args:
        backbone: from `FrozenBackbone.default`, `from_onnx`, `from_checkpoint` or `from_module`.
        source: aligned crops of known people.
        folder: gets ``confidence.safetensors``, ``history.jsonl`` and the checkpoints of the fit.
        config: settings, by default those of `ConfidenceConfig`.
        cache: where the features live, by default ``folder/cache``; several runs may share one.
        batch_size: views per call of the backbone that makes the cache.
        ranks: from `join_ranks`, who train together; alone by default. All must see ``folder``.
        tensorboard: also write event files.
        each_epoch: as in `fit_head`.

    Returns:
        The model, as `spherecf.load` gives it back from the file.

    Raises:
        InputError: nothing to learn from, or prototypes that do not fit.
        StorageError: not enough disk space; nothing computed is lost.
        SpherecfError: the loss diverged.
    """
    config, ranks, folder = config or ConfidenceConfig(), ranks or Ranks(), Path(folder)
    place = Path(cache or folder / "cache")
    prototypes = None
    if config.prototypes.file:  # before the pass, not after it
        prototypes = prototypes_for(source, config.prototypes.file)
        check_fit(prototypes, backbone.dim, source.labels)
    if ranks.tell(ranks.leads and streams(backbone, source, config, place)):
        model = _train_streaming(
            backbone, source, prototypes, folder, config, place, ranks, tensorboard, each_epoch
        )
    else:
        data = prepare(backbone, source, config, place, batch_size=batch_size, ranks=ranks)
        model = fit_confidence(
            backbone, data, config, folder, prototypes=prototypes, ranks=ranks, tensorboard=tensorboard,
            each_epoch=each_epoch,
        )  # fmt: skip
    ranks.lead(lambda: model.save(folder / MODEL_FILE), "saving the model")
    return model


def _train_streaming(
    backbone: FrozenBackbone,
    source: ImageSource,
    prototypes: Tensor | None,
    folder: Path,
    config: ConfidenceConfig,
    cache: Path,
    ranks: Ranks,
    tensorboard: bool,
    each_epoch: EachEpoch | None,
) -> ConfidenceModel:
    chosen = Chosen.of(source, config)
    head = new_head(backbone, config)
    given: Prototypes
    unusable: dict[str, str] = {}
    alone: list[str] = []
    if prototypes is not None:
        given = GivenPrototypes(chosen.source, prototypes, backbone.dim)
    else:
        leave = config.prototypes.leave_one_out
        means = mean_prototypes(backbone, chosen.source, cache, leave, ranks)
        given, unusable, alone = means, means.skipped, means.alone(chosen.source)
    tuning = config.features.finetune
    features: Features = StreamedFeatures(
        backbone, head, chosen.source, chosen.views, given,
        tuning=tuning, workers=config.engine.workers, device=ranks.device,
    )  # fmt: skip
    network = backbone.trainable() if tuning else None
    result = fit_head(
        head, features, config, folder, ranks=ranks, identity=_identity(backbone, chosen.facts),
        tuned=None if network is None else (network, backbone.preprocessing), tensorboard=tensorboard,
        each_epoch=each_epoch,
    )  # fmt: skip
    skipped = {**unusable, **result.skipped}
    used = chosen.facts["used"] - len(skipped) - len(alone)
    facts = {**chosen.facts, "used": used, "skipped": skipped, "lost_their_company": alone}
    record = _record(config, facts, result, ranks)
    if network is not None:
        path = folder / BACKBONE_FILE
        tuned = network
        ranks.lead(lambda: save_backbone(path, tuned, backbone.preprocessing, record), "saving the backbone")
        backbone = FrozenBackbone.from_checkpoint(path, device=str(ranks.device))
    return ConfidenceModel(backbone, result.head, config.loss.radius, record)


def _identity(backbone: FrozenBackbone, facts: dict[str, Any]) -> dict[str, Any]:
    return {"backbone": backbone_identity(backbone), "data": facts["data"], "views": facts["views"]}


def _record(
    config: ConfidenceConfig, facts: dict[str, Any], result: FitResult, ranks: Ranks
) -> dict[str, Any]:
    return {
        "config": config.to_dict(),
        "data": {**facts, "only_one_of_identity": len(facts["only_one_of_identity"])},
        "counts": result.counts,
        "initial_kappa": result.initial_kappa,
        "best_epoch": result.best_epoch,
        "history": result.history,
        "ranks": ranks.size,
        "versions": environment(),
    }
