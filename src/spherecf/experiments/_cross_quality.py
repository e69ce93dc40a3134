"""Train on some people, test on others, clean and degraded: what does kappa buy over the cosine?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf._progress import track
from spherecf.data import Degradation, ImageSource, PairList, View
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import PairReport, evaluate_pairs
from spherecf.experiments._variants import VARIANTS, HeadVariant, fit_variants, log_kappas
from spherecf.models import ConfidenceModel, FrozenBackbone
from spherecf.scoring import mutual_likelihood_score
from spherecf.training import ConfidenceConfig, FeatureCache, build_cache, prepare

CONFIDENCES = ("kappa", "norm", "sharpness", "random")
RECIPES = ("cross", "unseen")


@dataclass(frozen=True)
class Condition:
    """Which view stands left and right in every pair."""

    name: str
    left: int
    right: int
    seed: int


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
    cells = [(pairs, condition) for pairs in pair_lists for condition in _conditions(result, recipes)]
    for pairs, condition in track(cells, "comparing", len(cells)):
        result.reports.append(_evaluate(result, pairs, condition, variants, config.loss.radius, draws))
    return result


def _conditions(result: CrossQuality, recipes: Sequence[str]) -> list[Condition]:
    found = []
    for seed in result.seeds:
        clean, *degraded = result.views_of(seed)
        found.append(Condition("clean/clean", clean, clean, seed))
        for recipe, view in zip(recipes, degraded):
            found += [
                Condition(f"clean/{recipe}", clean, view, seed),
                Condition(f"{recipe}/{recipe}", view, view, seed),
            ]
    return found


def named_images(test: ImageSource, pair_lists: Sequence[PairList]) -> ImageSource:
    """The images that pair lists name, in the order of the source."""
    named = np.unique(np.concatenate([np.concatenate(pairs.rows(test.keys)) for pairs in pair_lists]))
    return test if len(named) == len(test) else test.subset(named)


def _evaluate(
    result: CrossQuality,
    pairs: PairList,
    condition: Condition,
    variants: Sequence[HeadVariant],
    radius: float,
    draws: int,
) -> PairReport:
    left, right = (_side(result, view, condition.seed) for view in (condition.left, condition.right))
    return evaluate_pairs(
        left,
        left if condition.left == condition.right else right,
        pairs.left,
        pairs.right,
        pairs.mated,
        pairs.fold,
        name=pairs.name,
        subjects=pairs.subjects,
        radius=radius,
        extra_scores={
            variant.score: _scores(result, pairs, condition, variant.score, radius)
            for variant in variants
            if variant.score != "mls"
        },
        confidences=CONFIDENCES,
        draws=draws,
        condition=condition.name,
        pairs_hash=pairs.fingerprint(),
        step=condition.seed,
        label=f"seed {condition.seed}",
    )


def _side(result: CrossQuality, view: int, seed: int) -> Embeddings:
    model = result.models[seed, "mls"]
    facts = {"model": model.fingerprint(), "backbone": model.backbone.sha256, "radius": model.radius}
    return result.test.embeddings(view, result.log_kappa[seed, "mls"], facts)


def _scores(
    result: CrossQuality, pairs: PairList, condition: Condition, score: str, radius: float
) -> NDArray[np.float64]:
    """Mutual likelihood of all listed pairs by one head; meaningless where an image could not be used."""
    cache, log_kappa = result.test, result.log_kappa[condition.seed, score]
    left, right = pairs.rows(cache.source.keys)
    (mu_a, kappa_a), (mu_b, kappa_b) = (
        (torch.from_numpy(cache.mu[rows]), torch.from_numpy(np.exp(log_kappa[rows])).double())
        for rows in (left * len(cache.views) + condition.left, right * len(cache.views) + condition.right)
    )
    return mutual_likelihood_score(mu_a, kappa_a, mu_b, kappa_b, radius).numpy()
