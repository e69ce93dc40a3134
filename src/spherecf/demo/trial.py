"""Train heads on some people and test them on others, to measure the gain of kappa over the cosine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.common.progress import track
from spherecf.data import Degradation, ImageSource, PairList, View
from spherecf.errors import InputError
from spherecf.evaluation import PairOptions, PairReport, evaluate_pairs
from spherecf.losses import Variant
from spherecf.models import ConfidenceModel, FrozenBackbone
from spherecf.scoring import gaussian_score, mutual_likelihood_score
from spherecf.training import (
    ConfidenceConfig,
    FeatureCache,
    Objectives,
    TrainingData,
    build_cache,
    fit_confidence,
    prepare,
)


@dataclass(frozen=True)
class HeadVariant:
    """A way of training a head.

    Attributes:
        score: name of the head's score in reports.
        loss: variant of the sphere confidence loss.
        leave_one_out: compute the prototype of each sample without the sample itself.
        objective: the sphere confidence loss or an alternative, as in a recipe.
    """

    score: str
    loss: Variant = "exact"
    leave_one_out: bool = True
    objective: Objectives = "scf"

    @property
    def gaussian(self) -> bool:
        """Whether the embeddings are Gaussians, which are scored and pooled by precision."""
        return self.objective in ("scf-gaussian", "pfe-gaussian")

    def config(self, base: ConfidenceConfig, seed: int) -> ConfidenceConfig:
        """Settings of this variant, derived from common settings."""
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
"""Exact and released loss, without and with the sample in its prototype. The first variant is the default."""

BASELINES = (
    HeadVariant("mls"),
    HeadVariant("mls_released", loss="released"),
    HeadVariant("scf_g", objective="scf-gaussian"),
    HeadVariant("pfe_v", objective="pfe-vmf"),
    HeadVariant("pfe_g", objective="pfe-gaussian"),
)
"""The methods of the paper: SCF (exact), SCF (as released), SCF-G, PFE-v and PFE-G."""


def fit_variants(
    backbone: FrozenBackbone,
    data: TrainingData,
    config: ConfidenceConfig,
    folder: Path,
    seeds: Sequence[int],
    variants: Sequence[HeadVariant] = VARIANTS,
) -> dict[tuple[int, str], ConfidenceModel]:
    """Train a model for every seed and variant. Each is saved in a separate folder, and resumed from it."""
    models = {}
    for seed in seeds:
        for variant in variants:
            target = folder / f"{variant.score}-seed{seed}"
            model = fit_confidence(backbone, data, variant.config(config, seed), target)
            model.save(target / "confidence.safetensors")
            models[seed, variant.score] = model
    return models


def log_kappas(
    models: Mapping[tuple[int, str], ConfidenceModel], cache: FeatureCache
) -> dict[tuple[int, str], NDArray[np.float32]]:
    """Log kappa of every row of a cache, for each model."""
    return {key: cache.log_kappa(model.head) for key, model in models.items()}


CONFIDENCES = ("kappa", "norm", "sharpness", "random")


@dataclass(frozen=True)
class Condition:
    """Indices of the views of the left and right images of all pairs."""

    name: str
    left: int
    right: int


def view_of(cache: FeatureCache, recipe: str, seed: int) -> int:
    """Index of a degraded view in a cache."""
    return [view.signature for view in cache.views].index(View(Degradation(recipe, seed)).signature)


def conditions(cache: FeatureCache, recipes: Sequence[str], seed: int) -> list[Condition]:
    """Conditions to evaluate: clean pairs, and for each recipe, pairs with one or both images degraded.

    View 0 of the cache must be clean.
    """
    result = [Condition("clean/clean", 0, 0)]
    for recipe in recipes:
        degraded = view_of(cache, recipe, seed)
        result += [
            Condition(f"clean/{recipe}", 0, degraded), Condition(f"{recipe}/{recipe}", degraded, degraded)
        ]  # fmt: skip
    return result


@dataclass(frozen=True, eq=False)
class TrainedHeads:
    """The heads of one seed, and their outputs for a cache.

    Attributes:
        seed: seed of the training.
        variants: training variants of the heads.
        models: models by the name of the score. The kappa of "mls" is used for EDC and rejection.
        outputs: outputs of the heads for every row of the cache, by the name of the score.
    """

    seed: int
    variants: Sequence[HeadVariant]
    models: Mapping[str, ConfidenceModel]
    outputs: Mapping[str, NDArray[np.float32]]


def evaluate_condition(
    heads: "TrainedHeads",
    cache: FeatureCache,
    pairs: PairList,
    condition: Condition,
    *,
    draws: int,
    name: str = "",
) -> PairReport:
    """Evaluate a pair list under one condition.

    Args:
        heads: heads of one seed, with their outputs for the cache.
        cache: features of the test images; view 0 is clean.
        pairs: pair list.
        condition: views to compare.
        draws: number of bootstrap samples over subjects.
        name: name of the pairs in the report; by default the name of the list.
    """
    model, outputs = heads.models["mls"], heads.outputs
    facts: dict[str, Any] = {
        "model": model.fingerprint(), "backbone": model.backbone.sha256, "radius": model.radius,
    }  # fmt: skip
    left, right = (
        cache.embeddings(view, outputs["mls"], facts) for view in (condition.left, condition.right)
    )
    extra = {
        variant.score: score_pairs(cache, outputs[variant.score], variant, pairs, condition, model.radius)
        for variant in heads.variants
        if variant.score != "mls"
    }
    options = PairOptions(radius=model.radius, confidences=CONFIDENCES, draws=draws)
    return evaluate_pairs(
        left, left if condition.left == condition.right else right, replace(pairs, name=name or pairs.name),
        options, extra_scores=extra, condition=condition.name, label=f"seed {heads.seed}", step=heads.seed,
    )  # fmt: skip


def score_pairs(
    cache: FeatureCache,
    outputs: NDArray[np.float32],
    variant: HeadVariant,
    pairs: PairList,
    condition: Condition,
    radius: float,
) -> NDArray[np.float64]:
    """Score all pairs of a list with one head. The score is 0 if an image is unusable."""
    n_views = len(cache.views)
    rows = pairs.rows(cache.source.keys)
    a, b = (row * n_views + view for row, view in zip(rows, (condition.left, condition.right)))
    usable = cache.valid[a] & cache.valid[b]
    scores, a, b = np.zeros(len(usable)), a[usable], b[usable]
    mu_a, mu_b = torch.from_numpy(cache.mu[a]), torch.from_numpy(cache.mu[b])
    if variant.gaussian:
        left, right = (torch.from_numpy(outputs[side].reshape(len(a), -1)).double() for side in (a, b))
        scores[usable] = gaussian_score(mu_a.double(), left, mu_b.double(), right).numpy()
        return scores
    # The exponential is computed in float32, as for an embeddings file.
    kappa_a, kappa_b = (torch.from_numpy(np.exp(outputs[side])).double() for side in (a, b))
    scores[usable] = mutual_likelihood_score(mu_a, kappa_a, mu_b, kappa_b, radius).numpy()
    return scores


RECIPES = ("cross", "unseen")


@dataclass(frozen=True, eq=False)
class CrossQuality:
    """Results of `cross_quality`.

    Attributes:
        reports: reports for each seed, pair list and condition.
        seeds: seeds of the heads and of the degradations of the test images.
        models: models by (seed, score); "mls" is the exact loss with leave-one-out prototypes.
        test: features of the test images in every view.
        log_kappa: log kappa of every row of ``test``, by (seed, score).
        facts: facts about the training data and the skipped images.
    """

    reports: list[PairReport]
    seeds: tuple[int, ...]
    models: dict[tuple[int, str], ConfidenceModel]
    test: FeatureCache
    log_kappa: dict[tuple[int, str], NDArray[np.float32]]
    facts: dict[str, Any]

    def views_of(self, seed: int) -> list[int]:
        """Indices in ``test`` of the clean view and of the degraded views of a seed."""
        views_per_seed = (len(self.test.views) - 1) // len(self.seeds)
        first = 1 + self.seeds.index(seed) * views_per_seed
        return [0, *range(first, first + views_per_seed)]


BATCH = 32  # batch size of the backbone, in views


@dataclass(frozen=True)
class TrialOptions:
    """Options of `cross_quality`.

    Attributes:
        seeds: seeds; the trial is repeated once per seed.
        recipes: degradations of the test images; "unseen" has kinds of degradation that are not in the
            training views.
        variants: heads to compare. One must have the score "mls", whose kappa is used for EDC and rejection.
        draws: number of bootstrap samples over subjects.
    """

    seeds: Sequence[int] = (0, 1, 2)
    recipes: Sequence[str] = RECIPES
    variants: Sequence[HeadVariant] = VARIANTS
    draws: int = 1000


def cross_quality(
    backbone: FrozenBackbone,
    train: ImageSource,
    test: ImageSource,
    pair_lists: Sequence[PairList],
    folder: str | Path,
    config: ConfidenceConfig | None = None,
    options: TrialOptions = TrialOptions(),
) -> CrossQuality:
    """Train heads on ``train``, and evaluate pairs of ``test``: clean, clean/degraded and degraded/degraded.

    Each seed has different heads (initialisation, order of the samples, validation split) and different
    degradations of the test images. An interrupted run continues after its last finished step.

    Args:
        backbone: frozen recogniser.
        train: aligned crops with identity labels, of people who are not in ``test``.
        test: aligned crops of the images in the pair lists.
        pair_lists: pairs to evaluate.
        folder: folder for caches, heads and their histories.
        config: settings of the heads; loss variant, leave-one-out and seed are overridden.
        options: seeds, degradations and variants.

    Raises:
        InputError: there are no seeds or pair lists, no variant has the score "mls", or a pair has an image
            that is not in ``test``.
    """
    seeds, variants = options.seeds, options.variants
    if not seeds or not pair_lists:
        raise InputError(
            f"expected at least one seed and one pair list, got {len(seeds)} and {len(pair_lists)}"
        )
    if "mls" not in (names := [variant.score for variant in variants]):
        raise InputError(f"variants: expected a variant with the score mls, got {names}")
    config, folder = config or ConfidenceConfig(), Path(folder)
    data = prepare(backbone, train, config, folder / "train-cache", batch_size=BATCH)
    models = fit_variants(backbone, data, config, folder, seeds, variants)
    views = [View(), *(View(Degradation(recipe, seed)) for seed in seeds for recipe in options.recipes)]
    first_model = models[seeds[0], "mls"]
    images = named_images(test, pair_lists)
    cache = build_cache(backbone, first_model.head, images, views, folder / "test-cache", batch_size=BATCH)
    result = CrossQuality([], tuple(seeds), models, cache, log_kappas(models, cache), data.facts)
    runs = [
        (pairs, seed, condition)
        for pairs in pair_lists
        for seed in seeds
        for condition in conditions(cache, options.recipes, seed)
    ]
    for pairs, seed, condition in track(runs, "evaluating", len(runs)):
        heads = TrainedHeads(
            seed,
            variants,
            {name: models[seed, name] for name in names},
            {name: result.log_kappa[seed, name] for name in names},
        )
        result.reports.append(evaluate_condition(heads, cache, pairs, condition, draws=options.draws))
    return result


def named_images(test: ImageSource, pair_lists: Sequence[PairList]) -> ImageSource:
    """The subset of images that occur in the pair lists, in the order of the source."""
    rows = np.unique(np.concatenate([np.concatenate(pairs.rows(test.keys)) for pairs in pair_lists]))
    return test if len(rows) == len(test) else test.subset(rows)
