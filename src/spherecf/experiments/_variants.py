"""The heads that are compared: ours, the released loss, and the rivals of the paper, in one code path."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spherecf.models import ConfidenceModel, FrozenBackbone
from spherecf.training import ConfidenceConfig, FeatureCache, TrainingData, fit_confidence


@dataclass(frozen=True)
class HeadVariant:
    """One way to train a head.

    Attributes:
        score: names its score in reports.
        loss: variant of the sphere confidence loss.
        leave_one_out: the sample is not in its own prototype.
        objective: the sphere confidence loss or a rival, as in a recipe.
    """

    score: str
    loss: str = "exact"
    leave_one_out: bool = True
    objective: str = "scf"

    @property
    def gaussian(self) -> bool:
        """Its embeddings are Gaussians: scored and pooled by precision."""
        return self.objective in ("scf-gaussian", "pfe-gaussian")

    def config(self, base: ConfidenceConfig, seed: int) -> ConfidenceConfig:
        """The settings of this variant."""
        return replace(
            base,
            seed=seed,
            loss=replace(base.loss, variant=self.loss, objective=self.objective),
            prototypes=replace(base.prototypes, leave_one_out=self.leave_one_out),
        )


VARIANTS = (
    HeadVariant("mls", "exact", True),
    HeadVariant("mls_with_sample", "exact", False),
    HeadVariant("mls_released", "released", True),
    HeadVariant("mls_released_with_sample", "released", False),
)
"""Exact and released loss, with and without the sample in its prototype; the first is the product's own."""

BASELINES = (
    HeadVariant("mls"),
    HeadVariant("mls_released", loss="released"),
    HeadVariant("scf_g", objective="scf-gaussian"),
    HeadVariant("pfe_v", objective="pfe-vmf"),
    HeadVariant("pfe_g", objective="pfe-gaussian"),
)
"""The family of the paper: SCF exact, SCF as released, SCF-G, PFE-v and PFE-G."""


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
