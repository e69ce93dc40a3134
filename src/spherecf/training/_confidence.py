"""`train_confidence`: a frozen recogniser and images of known people in, a confidence model out."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from spherecf._version import environment
from spherecf.data import ImageSource, training_views
from spherecf.errors import InputError
from spherecf.models import ConfidenceHead, ConfidenceModel, FrozenBackbone, load_prototypes, make_head
from spherecf.training._cache import FeatureCache, build_cache
from spherecf.training._config import ConfidenceConfig
from spherecf.training._fit import FitResult, fit_head
from spherecf.training._targets import Targets, prototype_targets

MODEL_FILE = "confidence.safetensors"


@dataclass(frozen=True, eq=False)
class TrainingData:
    """A finished pass over the training images, ready to fit any number of heads of one kind.

    Attributes:
        cache: features of every view.
        facts: JSON-able facts for the record: data set, hash, views, counts, what was left out and why.
    """

    cache: FeatureCache
    facts: dict[str, Any]


def new_head(backbone: FrozenBackbone, kind: str, seed: int) -> ConfidenceHead:
    """A head of a kind for this backbone's map, the same for the same seed."""
    channels, height, width = backbone.feature_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make_head(kind, channels=channels, height=height, width=width)


def prepare(
    backbone: FrozenBackbone,
    source: ImageSource,
    config: ConfidenceConfig,
    cache: str | Path,
    *,
    batch_size: int = 32,
) -> TrainingData:
    """The backbone's one pass: every view of every image that can be learnt from, into a cache on disk.

    With class-mean prototypes the only image of an identity has nothing to be compared with: such images are
    not embedded, but counted and listed.

    Raises:
        InputError: nobody has two images, or no identities are known.
        StorageError: not enough disk space for the cache.
    """
    kept = np.flatnonzero(source.labels >= 0)
    unknown = len(source) - len(kept)
    alone: list[str] = []
    if not config.prototypes.file:
        counts = np.bincount(source.labels[kept], minlength=1)
        single = counts[source.labels[kept]] < 2
        alone = [source.keys[row] for row in kept[single]]
        kept = kept[~single]
    if not len(kept):
        raise InputError(
            f"{source.name}: nothing to learn from: of {len(source)} images {unknown} have no identity and "
            f"{len(alone)} are the only one of theirs; class means need two or more images of a person, or "
            "give the classifier's weights as prototypes.file"
        )
    settings = config.views
    views = training_views(settings.degraded, recipe=settings.recipe, seed=settings.seed, flip=settings.flip)
    chosen = source if len(kept) == len(source) else source.subset(kept)
    head = new_head(backbone, config.head.kind, config.seed)
    features = build_cache(backbone, head, chosen, views, cache, batch_size=batch_size)
    facts = {
        "source": source.name,
        "data": source.fingerprint(),
        "images": len(source),
        "used": len(kept) - len(features.skipped),
        "without_identity": unknown,
        "only_one_of_identity": alone,
        "skipped": features.skipped,
        "views": [view.signature for view in views],
    }
    return TrainingData(features, facts)


def fit_confidence(
    backbone: FrozenBackbone,
    data: TrainingData,
    config: ConfidenceConfig,
    folder: str | Path | None = None,
    *,
    prototypes: Float[Tensor, "identities dim"] | None = None,
    tensorboard: bool = False,
) -> ConfidenceModel:
    """Fit a head on prepared data: initialisation, epochs, the best on held-out identities, the record.

    Raises:
        InputError: prototypes or identities that do not fit the data.
        SpherecfError: the loss diverged.
    """
    if prototypes is None and config.prototypes.file:
        prototypes = load_prototypes(config.prototypes.file)
    targets = prototype_targets(data.cache, prototypes, config.prototypes.leave_one_out)
    head = new_head(backbone, config.head.kind, config.seed)
    identity = {"backbone": backbone.sha256, "data": data.facts["data"], "views": data.facts["views"]}
    result = fit_head(head, data.cache, targets, config, folder, identity=identity, tensorboard=tensorboard)
    record = _record(config, data, targets, result)
    return ConfidenceModel(backbone, result.head, config.loss.radius, record)


def train_confidence(
    backbone: FrozenBackbone,
    source: ImageSource,
    folder: str | Path,
    config: ConfidenceConfig | None = None,
    *,
    cache: str | Path | None = None,
    batch_size: int = 32,
    tensorboard: bool = False,
) -> ConfidenceModel:
    """Train a confidence head for a frozen recogniser: stage 2 of the sphere confidence face.

    The backbone sees every view once, into a cache on disk; then the head alone learns, in epochs over the
    cache, by ``dL/dkappa = A_d(kappa) - cos(mu, prototype)`` (S. Li et al., CVPR 2021, section 3). The same
    call after an interruption goes on where it stopped and ends with the identical model.

    Args:
        backbone: from `FrozenBackbone.default`, `from_onnx` or `from_module`.
        source: aligned crops of known people.
        folder: gets ``confidence.safetensors``, ``history.jsonl`` and the state of the fit.
        config: settings, by default those of `ConfidenceConfig`.
        cache: where the features live, by default ``folder/cache``; several runs may share one.
        batch_size: views per call of the backbone.
        tensorboard: also write event files.

    Returns:
        The model, as `spherecf.load` gives it back from the file.

    Raises:
        InputError: nothing to learn from, or prototypes that do not fit.
        StorageError: not enough disk space; nothing computed is lost.
        SpherecfError: the loss diverged.
    """
    config = config or ConfidenceConfig()
    folder = Path(folder)
    data = prepare(backbone, source, config, cache or folder / "cache", batch_size=batch_size)
    model = fit_confidence(backbone, data, config, folder, tensorboard=tensorboard)
    model.save(folder / MODEL_FILE)
    return model


def _record(
    config: ConfidenceConfig, data: TrainingData, targets: Targets, result: FitResult
) -> dict[str, Any]:
    listed = {**data.facts, "only_one_of_identity": len(data.facts["only_one_of_identity"])}
    return {
        "config": config.to_dict(),
        "data": {**listed, "lost_their_company": targets.alone},
        "counts": result.counts,
        "initial_kappa": result.initial_kappa,
        "best_epoch": result.best_epoch,
        "history": result.history,
        "versions": environment(),
    }
