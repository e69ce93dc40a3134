"""The heads that are compared: exact and released loss, with and without the sample in its prototype."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spherecf.models import ConfidenceModel, FrozenBackbone
from spherecf.training import ConfidenceConfig, FeatureCache, TrainingData, fit_confidence


@dataclass(frozen=True)
class HeadVariant:
    """One way to train a head. ``score`` names its mutual likelihood score in reports."""

    score: str
    loss: str
    leave_one_out: bool

    def config(self, base: ConfidenceConfig, seed: int) -> ConfidenceConfig:
        """The settings of this variant."""
        return replace(
            base,
            seed=seed,
            loss=replace(base.loss, variant=self.loss),
            prototypes=replace(base.prototypes, leave_one_out=self.leave_one_out),
        )


VARIANTS = (
    HeadVariant("mls", "exact", True),
    HeadVariant("mls_with_sample", "exact", False),
    HeadVariant("mls_released", "released", True),
    HeadVariant("mls_released_with_sample", "released", False),
)
"""The first is the product's own."""


def fit_variants(
    backbone: FrozenBackbone,
    data: TrainingData,
    config: ConfidenceConfig,
    folder: Path,
    seeds: Sequence[int],
    variants: Sequence[HeadVariant] = VARIANTS,
) -> dict[tuple[int, str], ConfidenceModel]:
    """A model for every seed and variant, each saved in its own folder and resumed from there."""
    models = {}
    for seed in seeds:
        for variant in variants:
            place = folder / f"{variant.score}-seed{seed}"
            model = fit_confidence(backbone, data, variant.config(config, seed), place)
            model.save(place / "confidence.safetensors")
            models[seed, variant.score] = model
    return models


def log_kappas(
    models: Mapping[tuple[int, str], ConfidenceModel], cache: FeatureCache
) -> dict[tuple[int, str], NDArray[np.float32]]:
    """What every model says of every row of a cache."""
    return {name: cache.log_kappa(model.head) for name, model in models.items()}
