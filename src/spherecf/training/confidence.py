"""`train_confidence`, stage 2: train a confidence head on a frozen recogniser and labelled images."""

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.common.progress import print_text
from spherecf.common.version import environment
from spherecf.data import ImageSource, View, training_views
from spherecf.errors import InputError
from spherecf.extract import backbone_identity
from spherecf.models import (
    Centring,
    ConfidenceHead,
    ConfidenceModel,
    FrozenBackbone,
    make_head,
    save_backbone,
    without_memory,
)
from spherecf.training.backbone import BACKBONE_FILE
from spherecf.training.cache import FeatureCache, build_cache, cache_bytes
from spherecf.training.config import ConfidenceConfig
from spherecf.training.distributed import Ranks
from spherecf.training.features import (
    CachedFeatures,
    GivenPrototypes,
    Prototypes,
    StreamedFeatures,
    check_fit,
    mean_prototypes,
    prototype_targets,
    prototypes_for,
)
from spherecf.training.heads import FitResult, Monitor, fit_head, make_objective
from spherecf.training.loop import event_writer_class


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Cached features of the training images, from which any number of heads of one kind can be fitted.

    Attributes:
        cache: features of every view.
        facts: JSON-serialisable facts for the record: data set, hash, views, counts, and images left out with
            the reason.
    """

    cache: FeatureCache
    facts: dict[str, Any]


def new_head(backbone: FrozenBackbone, config: ConfidenceConfig) -> ConfidenceHead:
    """Create a head for a backbone's feature map and the recipe's objective; equal seeds give equal heads."""
    channels, height, width = backbone.feature_shape
    outputs = make_objective(config.loss, backbone.dim).outputs
    # The caller's random state is neither used nor changed.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        options = {"outputs": outputs} if outputs > 1 else {}
        return make_head(config.head.kind, channels=channels, height=height, width=width, **options)


@dataclass(frozen=True, eq=False)
class TrainingSelection:
    """The images to train on, their views, and facts for the record."""

    source: ImageSource
    views: Sequence[View]
    facts: dict[str, Any]

    @classmethod
    def of(cls, source: ImageSource, config: ConfidenceConfig) -> "TrainingSelection":
        """Select images with an identity; for class means, of identities with at least two images.

        Raises:
            InputError: no image is left.
        """
        selected = np.flatnonzero(source.labels >= 0)
        unknown = len(source) - len(selected)
        singletons: list[str] = []
        if not config.prototypes.file:
            # The class mean of a single image is undefined without the image, and has cosine 1 with it.
            counts = np.bincount(source.labels[selected], minlength=1)
            single = counts[source.labels[selected]] < 2
            singletons = [source.keys[row] for row in selected[single].tolist()]
            selected = selected[~single]
        if not len(selected):
            raise InputError(
                f"{source.name}: nothing to learn from: of {len(source)} images {unknown} have no identity "
                f"and {len(singletons)} are the only image of theirs; class means need two or more images "
                "per person, or give the classifier's weights as prototypes.file"
            )
        settings = config.views
        views = training_views(
            settings.degraded, recipe=settings.recipe, seed=settings.seed, flip=settings.flip
        )
        facts = {
            "source": source.name,
            "data": source.fingerprint(),
            "images": len(source),
            "used": len(selected),
            "without_identity": unknown,
            "only_one_of_identity": singletons,
            "skipped": {},
            "views": [view.signature for view in views],
        }
        return cls(source if len(selected) == len(source) else source.subset(selected), views, facts)


def prepare(
    backbone: FrozenBackbone,
    source: ImageSource,
    config: ConfidenceConfig,
    cache: str | Path,
    *,
    batch_size: int | None = None,
    ranks: Ranks | None = None,
) -> TrainingData:
    """Run the backbone once over every view of every training image, into a cache on disk.

    With class means, an identity's only image has no prototype: such images are not embedded, but counted and
    listed in the record.

    Args:
        backbone: frozen.
        source: labelled, aligned crops.
        config: settings.
        cache: folder of the cache.
        batch_size: views per call of the backbone; None for 32 on the CPU, 256 on a GPU.
        ranks: that share the work; a single process by default.

    Raises:
        InputError: no identity is known, or none has two images.
        StorageError: not enough disk space for the cache.
    """
    selection = TrainingSelection.of(source, config)
    features = build_cache(
        backbone, _meta_head(backbone, config), selection.source, selection.views, cache,
        batch_size=batch_size, dtype=config.features.dtype, ranks=ranks,
    )  # fmt: skip
    used = selection.facts["used"] - len(features.skipped)
    return TrainingData(features, {**selection.facts, "used": used, "skipped": features.skipped})


def streams(backbone: FrozenBackbone, source: ImageSource, config: ConfidenceConfig, folder: Path) -> bool:
    """Whether to stream features instead of caching them in ``folder``; prints the size of a cache."""
    settings = config.features
    if settings.finetune or settings.source == "stream":
        return True
    views = (1 + config.views.degraded) * (1 + config.views.flip)
    needed = cache_bytes(_meta_head(backbone, config), backbone.dim, len(source) * views, settings.dtype)
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    # Leave a tenth of the disk's free space; an existing cache has its space already.
    fits = (folder / "state.json").exists() or needed < 0.9 * free
    stream = settings.source == "auto" and not fits
    print_text(
        f"features: at most {len(source)} images x {views} views, {needed / 2**30:.2f} GiB as a cache in "
        f"{folder}, {free / 2**30:.1f} GiB are free" + ("; streaming instead" if stream else "")
    )
    return stream


def _meta_head(backbone: FrozenBackbone, config: ConfidenceConfig) -> ConfidenceHead:
    """A head on torch's meta device, with shapes but without weights."""
    with without_memory():
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
    monitor: Monitor | None = None,
) -> ConfidenceModel:
    """Fit a head to prepared data; return the model with its training record.

    Args:
        backbone: with which the data were prepared.
        data: from `prepare`.
        config: settings.
        folder: for checkpoints and logs; None to write neither.
        prototypes: (identities, dim), unit, indexed by label; by default from the recipe's file, or class
            means.
        ranks: the processes that train together; a single one by default.
        monitor: writes event files, or is called after each epoch.

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
    result = fit_head(head, features, config, folder, ranks=ranks, identity=identity, monitor=monitor)
    facts = {**data.facts, "single_image_identities": targets.singletons}
    record = _record(config, facts, result, ranks)
    centring = None
    if config.features.centre:
        identities = np.repeat(data.cache.source.labels, len(data.cache.views))
        used = np.where(data.cache.valid, identities, -1)
        centring = Centring.fit(data.cache.mu, used, config.features.centre)
    return ConfidenceModel(backbone, result.head, config.loss.radius, record, centring=centring)


def train_confidence(
    backbone: FrozenBackbone,
    source: ImageSource,
    folder: str | Path,
    config: ConfidenceConfig | None = None,
    *,
    cache: str | Path | None = None,
    batch_size: int | None = None,
    ranks: Ranks | None = None,
    monitor: Monitor | None = None,
) -> ConfidenceModel:
    """Train a confidence head for a recogniser: stage 2 of Sphere Confidence Face.

    With a cache, the backbone embeds every view once, and then only the head is trained, in epochs over the
    cache, with the gradient ``dL/dkappa = A_d(kappa) - cos(mu, prototype)`` (S. Li et al., CVPR 2021, section
    3). With streaming, the backbone runs in every epoch, which needs no disk space, and can be fine-tuned
    (``features.finetune``). After an interruption the same call resumes and ends with the identical model.

    Args:
        backbone: from `FrozenBackbone.default`, `from_onnx`, `from_checkpoint` or `from_module`.
        source: labelled, aligned crops.
        folder: receives ``confidence.safetensors``, ``history.jsonl`` and checkpoints.
        config: settings, by default those of `ConfidenceConfig`.
        cache: folder of the feature cache, by default ``folder/cache``; several runs may share it.
        batch_size: views per call of the backbone, for the cache; None for 32 on the CPU, 256 on a GPU.
        ranks: from `join_ranks`; a single process by default. All must see ``folder``.
        monitor: writes event files, or is called after each epoch.

    Returns:
        The model, as `spherecf.load` reads it from the file.

    Raises:
        InputError: no images to train on, or prototypes that do not fit.
        MissingDependencyError: events are requested, but TensorBoard is not installed.
        StorageError: not enough disk space; finished work is kept.
        SpherecfError: the loss diverged.
    """
    config, ranks, folder = config or ConfidenceConfig(), ranks or Ranks(), Path(folder)
    cache = Path(cache or folder / "cache")
    if monitor is not None and monitor.tensorboard:
        event_writer_class()  # fail before the pass over all images if it is missing
    prototypes = None
    if config.prototypes.file:  # check them before the pass over all images
        prototypes = prototypes_for(source, config.prototypes.file)
        check_fit(prototypes, backbone.dim, source.labels)
    # Rank 0 decides for all, since the free disk space may differ between ranks.
    if ranks.broadcast_object(ranks.is_main and streams(backbone, source, config, cache)):
        if config.features.centre:
            raise InputError(
                f"features.centre needs a cache, and {cache} has no space for one: free some, pass another "
                "folder as cache, or switch it off"
            )
        model = _train_streaming(backbone, source, prototypes, folder, config, cache, ranks, monitor)
    else:
        data = prepare(backbone, source, config, cache, batch_size=batch_size, ranks=ranks)
        model = fit_confidence(
            backbone, data, config, folder, prototypes=prototypes, ranks=ranks, monitor=monitor
        )
    ranks.run_on_main(lambda: model.save(folder / MODEL_FILE), "saving the model")
    return model


def _train_streaming(
    backbone: FrozenBackbone,
    source: ImageSource,
    prototypes: Tensor | None,
    folder: Path,
    config: ConfidenceConfig,
    cache: Path,
    ranks: Ranks,
    monitor: Monitor | None,
) -> ConfidenceModel:
    selection = TrainingSelection.of(source, config)
    head = new_head(backbone, config)
    lookup: Prototypes
    unusable: dict[str, str] = {}
    singletons: list[str] = []
    if prototypes is not None:
        lookup = GivenPrototypes(selection.source, prototypes, backbone.dim)
    else:
        leave_one_out = config.prototypes.leave_one_out
        means = mean_prototypes(backbone, selection.source, cache, leave_one_out, ranks)
        lookup, unusable, singletons = means, means.skipped, means.singletons(selection.source)
    finetune = config.features.finetune
    # Prototypes stay those of the backbone before fine-tuning: moving targets could collapse.
    features = StreamedFeatures(
        backbone, head, selection.source, selection.views, lookup, config=config, ranks=ranks
    )
    network = backbone.trainable() if finetune else None
    with closing(features):
        result = fit_head(
            head, features, config, folder, ranks=ranks, identity=_identity(backbone, selection.facts),
            tuned=None if network is None else (network, backbone.preprocessing), monitor=monitor,
        )  # fmt: skip
    skipped = {**unusable, **result.skipped}
    used = selection.facts["used"] - len(skipped) - len(singletons)
    facts = {**selection.facts, "used": used, "skipped": skipped, "single_image_identities": singletons}
    record = _record(config, facts, result, ranks)
    if network is not None:
        # Reload it from its file, so that the model has the file's hash, as after `load`.
        path = folder / BACKBONE_FILE
        tuned = network
        ranks.run_on_main(
            lambda: save_backbone(path, tuned, backbone.preprocessing, record), "saving the backbone"
        )
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
        "precision": config.engine.precision_on(ranks.device),
        "versions": environment(),
    }
