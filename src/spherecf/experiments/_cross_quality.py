"""Train on some people, test on others, clean and degraded: what does kappa buy over the cosine?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.common.progress import track
from spherecf.data import Degradation, ImageSource, PairList, View
from spherecf.errors import InputError
from spherecf.evaluation import PairReport
from spherecf.experiments._pair_trial import conditions, evaluate_condition
from spherecf.experiments._variants import VARIANTS, HeadVariant, fit_variants, log_kappas
from spherecf.models import ConfidenceModel, FrozenBackbone
from spherecf.training import ConfidenceConfig, FeatureCache, build_cache, prepare

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
