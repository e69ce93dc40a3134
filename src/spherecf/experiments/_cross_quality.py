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
        variants: heads to compare; the first one gives the kappa of EDC and rejection curves.
        draws: of the bootstrap over subjects.
        batch_size: views per call of the backbone.

    Raises:
        InputError: no seeds or pair lists, or pairs of images that are not in ``test``.
    """
    if not seeds or not pair_lists:
        raise InputError(
            f"expected at least one seed and one pair list, got {len(seeds)} and {len(pair_lists)}"
        )
    config, folder = config or ConfidenceConfig(), Path(folder)
    data = prepare(backbone, train, config, folder / "train-cache", batch_size=batch_size)
    models = fit_variants(backbone, data, config, folder, seeds, variants)
    views = [View(), *(View(Degradation(recipe, seed)) for seed in seeds for recipe in recipes)]
    first = models[seeds[0], variants[0].score]
    used = _only_named(test, pair_lists)
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


def _only_named(test: ImageSource, pair_lists: Sequence[PairList]) -> ImageSource:
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
    sides = {
        variant.score: (
            _side(result, condition.left, condition.seed, variant.score),
            _side(result, condition.right, condition.seed, variant.score),
        )
        for variant in variants
    }
    left, right = sides[variants[0].score]
    same = condition.left == condition.right
    subjects = None
    if pairs.subjects_left is not None and pairs.subjects_right is not None:
        subjects = (np.asarray(pairs.subjects_left), np.asarray(pairs.subjects_right))
    return evaluate_pairs(
        left,
        left if same else right,
        pairs.left,
        pairs.right,
        pairs.mated,
        pairs.fold,
        name=pairs.name,
        subjects=subjects,
        radius=radius,
        extra_scores={name: _scores(pairs, *sides[name], radius) for name in sides if name != "mls"},
        confidences=CONFIDENCES,
        draws=draws,
        condition=condition.name,
        pairs_hash=pairs.fingerprint(),
        step=condition.seed,
        label=f"seed {condition.seed}",
    )


def _side(result: CrossQuality, view: int, seed: int, score: str) -> Embeddings:
    model = result.models[seed, score]
    facts = {"model": model.fingerprint(), "backbone": model.backbone.sha256, "radius": model.radius}
    return result.test.embeddings(view, result.log_kappa[seed, score], facts)


def _scores(pairs: PairList, left: Embeddings, right: Embeddings, radius: float) -> NDArray[np.float64]:
    """Scores of all listed pairs, NaN where an image could not be used."""
    at = [_rows(e, keys) for e, keys in ((left, pairs.left), (right, pairs.right))]
    good = (at[0] >= 0) & (at[1] >= 0)
    scores = np.full(len(pairs), np.nan)
    a, b = (
        (torch.from_numpy(e.mu[rows[good]]), torch.from_numpy(e.kappa[rows[good]]).double())
        for e, rows in zip((left, right), at)
    )
    scores[good] = mutual_likelihood_score(*a, *b, radius).double().numpy()
    return scores


def _rows(embeddings: Embeddings, keys: Sequence[str]) -> NDArray[np.int64]:
    index = {key: row for row, key in enumerate(embeddings.keys)}
    return np.array([index.get(key, -1) for key in keys], np.int64)
