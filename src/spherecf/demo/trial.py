"""Heads trained on some people and tested on others: what kappa gains over the cosine."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

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
    TrainingData,
    build_cache,
    fit_confidence,
    prepare,
)


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
    loss: Variant = "exact"
    leave_one_out: bool = True
    objective: Literal["scf", "scf-gaussian", "pfe-vmf", "pfe-gaussian"] = "scf"

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


CONFIDENCES = ("kappa", "norm", "sharpness", "random")


@dataclass(frozen=True)
class Condition:
    """Which view stands left and right in every pair."""

    name: str
    left: int
    right: int


def view_of(cache: FeatureCache, recipe: str, seed: int) -> int:
    """Place of a degraded view among those of a cache."""
    return [view.signature for view in cache.views].index(View(Degradation(recipe, seed)).signature)


def conditions(cache: FeatureCache, recipes: Sequence[str], seed: int) -> list[Condition]:
    """Clean, and by each recipe across and both degraded; view 0 of the cache is the clean one."""
    found = [Condition("clean/clean", 0, 0)]
    for recipe in recipes:
        degraded = view_of(cache, recipe, seed)
        found += [
            Condition(f"clean/{recipe}", 0, degraded), Condition(f"{recipe}/{recipe}", degraded, degraded)
        ]  # fmt: skip
    return found


def evaluate_condition(
    cache: FeatureCache,
    models: Mapping[str, ConfidenceModel],
    said: Mapping[str, NDArray[np.float32]],
    variants: Sequence[HeadVariant],
    pairs: PairList,
    condition: Condition,
    name: str,
    seed: int,
    draws: int,
) -> PairReport:
    """One pair list under one condition.

    Args:
        cache: features of the test images; its first view is clean.
        models: by the score's name; "mls" gives the kappa of EDC and rejection.
        said: by the score's name, what the head says of every row of the cache.
        variants: the heads.
        pairs: who is compared with whom.
        condition: which views.
        name: of the pairs in the report.
        seed: of the heads, for the label.
        draws: of the bootstrap.
    """
    model = models["mls"]
    facts: dict[str, Any] = {
        "model": model.fingerprint(), "backbone": model.backbone.sha256, "radius": model.radius,
    }  # fmt: skip
    left, right = (cache.embeddings(view, said["mls"], facts) for view in (condition.left, condition.right))
    extra = {
        variant.score: score_pairs(cache, said[variant.score], variant, pairs, condition, model.radius)
        for variant in variants
        if variant.score != "mls"
    }
    options = PairOptions(radius=model.radius, confidences=CONFIDENCES, draws=draws)
    return evaluate_pairs(
        left, left if condition.left == condition.right else right, replace(pairs, name=name), options,
        extra_scores=extra, condition=condition.name, label=f"seed {seed}", step=seed,
    )  # fmt: skip


def score_pairs(
    cache: FeatureCache,
    said: NDArray[np.float32],
    variant: HeadVariant,
    pairs: PairList,
    condition: Condition,
    radius: float,
) -> NDArray[np.float64]:
    """All listed pairs by one head's own score; 0 where an image could not be used."""
    views = len(cache.views)
    rows = pairs.rows(cache.source.keys)
    a, b = (row * views + view for row, view in zip(rows, (condition.left, condition.right)))
    usable = cache.valid[a] & cache.valid[b]
    scores, a, b = np.zeros(len(usable)), a[usable], b[usable]
    mu_a, mu_b = torch.from_numpy(cache.mu[a]), torch.from_numpy(cache.mu[b])
    if variant.gaussian:
        one, two = (torch.from_numpy(said[side].reshape(len(a), -1)).double() for side in (a, b))
        scores[usable] = gaussian_score(mu_a.double(), one, mu_b.double(), two).numpy()
        return scores
    # The exponential in float32, as that of an embeddings file.
    kappa_a, kappa_b = (torch.from_numpy(np.exp(said[side])).double() for side in (a, b))
    scores[usable] = mutual_likelihood_score(mu_a, kappa_a, mu_b, kappa_b, radius).numpy()
    return scores


RECIPES = ("cross", "unseen")


@dataclass(frozen=True, eq=False)
class CrossQuality:
    """Everything the experiment found.

    Attributes:
        reports: one per seed, pair list and condition.
        seeds: of the heads and of the test degradations.
        models: by (seed, score); "mls" is the exact loss with prototypes that leave the sample out.
        test: features of the test images in every view.
        log_kappa: by (seed, score), of every row of ``test``.
        facts: what the training data were, and what was left out.
    """

    reports: list[PairReport]
    seeds: tuple[int, ...]
    models: dict[tuple[int, str], ConfidenceModel]
    test: FeatureCache
    log_kappa: dict[tuple[int, str], NDArray[np.float32]]
    facts: dict[str, Any]

    def views_of(self, seed: int) -> list[int]:
        """Places of the clean view and of this seed's degraded ones among the views of ``test``."""
        each = (len(self.test.views) - 1) // len(self.seeds)
        first = 1 + self.seeds.index(seed) * each
        return [0, *range(first, first + each)]


def cross_quality(
    backbone: FrozenBackbone,
    train: ImageSource,
    test: ImageSource,
    pair_lists: Sequence[PairList],
    folder: str | Path,
    config: ConfidenceConfig | None = None,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    recipes: Sequence[str] = RECIPES,
    variants: Sequence[HeadVariant] = VARIANTS,
    draws: int = 1000,
    batch_size: int = 32,
) -> CrossQuality:
    """Train heads on ``train``, compare pairs of ``test``: clean/clean, clean/degraded and degraded/degraded.

    Each seed has its own heads (initialisation, order, validation split) and its own degradations of the test
    images. Every step resumes where an interrupted run stopped.

    Args:
        backbone: the frozen recogniser.
        train: aligned crops of known people; none of them may be in ``test``.
        test: aligned crops that the pair lists name.
        pair_lists: who is compared with whom.
        folder: gets caches, heads and their histories.
        config: settings of the heads; loss variant, leave-one-out and seed are set here.
        seeds: one repetition each.
        recipes: degradations of the test images; "unseen" has kinds no training view contains.
        variants: heads to compare; "mls", which must be among them, gives the kappa of EDC and rejection.
        draws: of the bootstrap over subjects.
        batch_size: views per call of the backbone.

    Raises:
        InputError: no seeds or pair lists, no variant "mls", or pairs of images that are not in ``test``.
    """
    if not seeds or not pair_lists:
        raise InputError(
            f"expected at least one seed and one pair list, got {len(seeds)} and {len(pair_lists)}"
        )
    if "mls" not in (names := [variant.score for variant in variants]):
        raise InputError(
            f"variants: expected one with the score mls, which the reports are about, got {names}"
        )
    config, folder = config or ConfidenceConfig(), Path(folder)
    data = prepare(backbone, train, config, folder / "train-cache", batch_size=batch_size)
    models = fit_variants(backbone, data, config, folder, seeds, variants)
    views = [View(), *(View(Degradation(recipe, seed)) for seed in seeds for recipe in recipes)]
    first = models[seeds[0], "mls"]
    used = named_images(test, pair_lists)
    cache = build_cache(backbone, first.head, used, views, folder / "test-cache", batch_size=batch_size)
    result = CrossQuality([], tuple(seeds), models, cache, log_kappas(models, cache), data.facts)
    cells = [
        (pairs, seed, condition)
        for pairs in pair_lists
        for seed in seeds
        for condition in conditions(cache, recipes, seed)
    ]
    for pairs, seed, condition in track(cells, "comparing", len(cells)):
        own = {variant.score: models[seed, variant.score] for variant in variants}
        said = {variant.score: result.log_kappa[seed, variant.score] for variant in variants}
        result.reports.append(
            evaluate_condition(cache, own, said, variants, pairs, condition, pairs.name, seed, draws)
        )
    return result


def named_images(test: ImageSource, pair_lists: Sequence[PairList]) -> ImageSource:
    """The images that pair lists name, in the order of the source."""
    named = np.unique(np.concatenate([np.concatenate(pairs.rows(test.keys)) for pairs in pair_lists]))
    return test if len(named) == len(test) else test.subset(named)
