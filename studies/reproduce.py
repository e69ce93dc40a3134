"""The paper's comparisons on public data: all baselines, several seeds, real faces."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.common.progress import progress
from spherecf.common.rowstore import RowStore
from spherecf.data import Degradation, ImageSource, PairList, View
from spherecf.demo.run import pictures
from spherecf.demo.trial import (
    BASELINES,
    BATCH,
    HeadVariant,
    TrainedHeads,
    conditions,
    evaluate_condition,
    fit_variants,
    named_images,
    view_of,
)
from spherecf.errors import InputError
from spherecf.evaluation import PairReport
from spherecf.extract import iter_batches
from spherecf.faces import FaceDetector
from spherecf.models import ConfidenceModel, FrozenBackbone
from spherecf.report import Strip, strip_by_kappa, strips_of_mistakes
from spherecf.training import ConfidenceConfig, FeatureCache, TrainingData, build_cache, new_head, prepare
from studies.graded import Division, divide
from studies.templates import Faces, TemplatePlan, TemplateTrial, draw_templates, run_trial

_SIZE = 160  # pixels; crops are padded with their border pixels because the detector needs some context
_MIN_SCORE = 0.05  # smallest score of a detection


def detector_scores(
    source: ImageSource, views: Sequence[View], folder: str | Path, size: tuple[int, int], batch: int = 16
) -> NDArray[np.float32]:
    """(images, views) detector scores of every view of the images; 0 if no face is found.

    The scores are cached in ``folder``; an interrupted pass continues where it stopped.
    """
    detector = FaceDetector(min_score=_MIN_SCORE)
    identity = {
        "source": source.fingerprint(),
        "views": [view.signature for view in views],
        "detector": detector.sha256,
        "frame": [_SIZE, _MIN_SCORE],
    }
    store = RowStore(folder, len(source) * len(views), {"score": ((), "float32")}, identity)
    if not store.complete:
        start = store.done // len(views)
        with (
            progress("detecting", store.rows, store.done) as advance,
            closing(iter_batches(source, views, size, batch, start)) as batches,
        ):
            for batch_read in batches:
                scores = [
                    _score(detector, image) if valid else 0.0
                    for image, valid in zip(batch_read.images, batch_read.valid)
                ]
                store.append({"score": np.array(scores, np.float32)})
                advance(len(scores))
        store.commit()
    return store.arrays["score"].reshape(len(source), len(views))


def _score(detector: FaceDetector, image: NDArray[np.uint8]) -> float:
    border = (_SIZE - image.shape[0]) // 2, (_SIZE - image.shape[1]) // 2
    padded = cv2.copyMakeBorder(image, border[0], border[0], border[1], border[1], cv2.BORDER_REPLICATE)
    faces = detector(np.asarray(padded, np.uint8))
    return faces[0].score if faces else 0.0


RECIPES = ("cross", "unseen")
MIXED = "cross"
"""Recipe that degrades the images of templates."""
TEST_PLANS = (
    TemplatePlan("3 images, clean", 3, 0.0, 4),
    TemplatePlan("3 images, half degraded", 3, 0.5, 4),
    TemplatePlan("5 images, 80 % degraded", 5, 0.8, 2),
)
"""Template settings for the test set."""
HELD_OUT_PLANS = (
    TemplatePlan("3 images, half degraded", 3, 0.5, 6),
    TemplatePlan("2 images, 80 % degraded", 2, 0.8, 6),
)
"""Template settings for the held-out people of the training set."""


@dataclass(frozen=True, eq=False)
class Reproduction:
    """All results.

    Attributes:
        reports: on pairs, one per backbone, seed, pair list and condition.
        strips: of the first seed: faces by increasing kappa, and the worst errors.
        templates: one per backbone, plan and seed.
        models: by (backbone, seed, score).
        facts: about data, backbones and fits, JSON-serialisable.
    """

    reports: list[PairReport] = field(default_factory=list)
    templates: list[TemplateTrial] = field(default_factory=list)
    models: dict[tuple[str, int, str], ConfidenceModel] = field(default_factory=dict)
    strips: list[Strip] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ReproductionOptions:
    """Settings of `reproduce`.

    Attributes:
        seeds: one repetition each, with its own heads and templates.
        degradations: number of random degradations of the test images; seed s uses number s modulo this.
        variants: heads to compare; "mls" must be among them.
        test_plans: template settings on the test set.
        held_out_plans: template settings on the held-out people of the training set.
        draws: bootstrap samples of subjects.
    """

    seeds: Sequence[int] = range(6)
    degradations: int = 3
    variants: Sequence[HeadVariant] = BASELINES
    test_plans: Sequence[TemplatePlan] = TEST_PLANS
    held_out_plans: Sequence[TemplatePlan] = HELD_OUT_PLANS
    draws: int = 1000


def reproduce(
    backbones: Sequence[FrozenBackbone],
    train: ImageSource,
    test: ImageSource,
    pair_lists: Sequence[PairList],
    folder: str | Path,
    config: ConfidenceConfig | None = None,
    options: ReproductionOptions = ReproductionOptions(),
) -> Reproduction:
    """Train every baseline with several seeds; compare pairs, templates and searches, clean and degraded.

    People of ``train`` who look like somebody in ``test`` are not used for training. Together with a share of
    the other people (`divide`) they are used for the template tests. An interrupted run continues where it
    stopped.

    Args:
        backbones: frozen recognisers; the first one decides which people are in both sets.
        train: aligned crops of known people.
        test: aligned crops of other people, with the images of the pair lists.
        pair_lists: pairs of images to compare.
        folder: output folder for caches, heads and their histories, by backbone.
        config: settings of the heads; objective, loss variant and seed are set by this function.
        options: repetitions and settings to compare.

    Raises:
        InputError: no backbones, seeds or pair lists, or no head called "mls".
    """
    seeds, degradations = options.seeds, options.degradations
    heads, names = [variant.score for variant in options.variants], [backbone.name for backbone in backbones]
    if len(set(names)) < len(names):
        raise InputError(f"backbones: expected different names, got {', '.join(names)}; rename a file")
    if not backbones or not seeds or not pair_lists or "mls" not in heads:
        raise InputError(
            "expected at least one backbone, seed and pair list and a head called mls, got "
            f"{len(backbones)}, {len(seeds)}, {len(pair_lists)} and {heads}"
        )
    config, result = config or ConfidenceConfig(), Reproduction()
    test_views = [View(), *(View(Degradation(recipe, s)) for s in range(degradations) for recipe in RECIPES)]
    held_out_views = [View(), *(View(Degradation(MIXED, s)) for s in range(degradations))]
    test_images = named_images(test, pair_lists)
    division: Division | None = None
    for backbone in backbones:
        backbone_folder = Path(folder) / backbone.name
        data = prepare(backbone, train, config, backbone_folder / "train-cache", batch_size=BATCH)
        head = new_head(backbone, config)  # defines the features to cache
        cache = build_cache(
            backbone, head, test_images, test_views, _cache_folder(backbone_folder, "test", test_images),
            batch_size=BATCH,
        )  # fmt: skip
        division = division or divide(data.cache, cache)
        held_out_images = division.tested(data.cache.source)
        held_out = build_cache(
            backbone, head, held_out_images, held_out_views,
            _cache_folder(backbone_folder, "held-out", held_out_images), batch_size=BATCH,
        )  # fmt: skip
        experiment = _Experiment(
            backbone, config, options, backbone_folder, result,
            _fit(backbone, division.training(data), config, backbone_folder, options, result),
        )  # fmt: skip
        experiment.compare_pairs(cache, pair_lists)
        experiment.show_faces(cache)
        experiment.compare_templates(f"{test.name}", cache, options.test_plans)
        experiment.compare_templates(f"{train.name}", held_out, options.held_out_plans)
        result.facts[backbone.name] = {
            "sha256": backbone.sha256, **division.facts, "train": train.fingerprint(),
            "test": test.fingerprint(),
            "skipped": {**data.cache.skipped, **cache.skipped, **held_out.skipped},
        }  # fmt: skip
    return result


def _cache_folder(folder: Path, name: str, source: ImageSource) -> Path:
    """A folder for these images only, so that a run on other images or pair lists does not replace it."""
    return folder / f"{name}-{source.fingerprint()[:8]}-cache"


def _fit(
    backbone: FrozenBackbone,
    data: TrainingData,
    config: ConfidenceConfig,
    folder: Path,
    options: ReproductionOptions,
    result: Reproduction,
) -> dict[tuple[int, str], ConfidenceModel]:
    models = fit_variants(backbone, data, config, folder, options.seeds, options.variants)
    result.models.update({(backbone.name, seed, score): model for (seed, score), model in models.items()})
    return models


@dataclass(frozen=True, eq=False)
class _Experiment:
    """The heads and settings of one backbone."""

    backbone: FrozenBackbone
    config: ConfidenceConfig
    options: ReproductionOptions
    folder: Path
    result: Reproduction
    models: Mapping[tuple[int, str], ConfidenceModel]

    def compare_pairs(self, cache: FeatureCache, pair_lists: Sequence[PairList]) -> None:
        """Evaluate every pair list, condition and seed."""
        with progress(f"{self.backbone.name}: pairs", len(self.options.seeds) * len(pair_lists)) as advance:
            for seed in self.options.seeds:
                models = {
                    variant.score: self.models[seed, variant.score] for variant in self.options.variants
                }
                heads = TrainedHeads(seed, self.options.variants, models, self._outputs(cache, seed))
                for pairs in pair_lists:
                    name = f"{self.backbone.name} {pairs.name}"
                    self.result.reports.extend(
                        evaluate_condition(
                            heads, cache, pairs, condition, draws=self.options.draws, name=name
                        )
                        for condition in conditions(cache, RECIPES, seed % self.options.degradations)
                    )
                    advance()

    def show_faces(self, cache: FeatureCache) -> None:
        """Strips of clean and degraded faces by kappa, and of the worst errors, for the first seed."""
        seed = self.options.seeds[0]
        log_kappa = cache.log_kappa(self.models[seed, "mls"].head)
        views = [0, view_of(cache, MIXED, seed % self.options.degradations)]
        clean, degraded = (pictures(cache.source, cache.views[view]) for view in views)
        for view, picture in zip(views, (clean, degraded)):
            title = f"{self.backbone.name}, {cache.views[view].signature}: by increasing kappa"
            embeddings = cache.embeddings(view, log_kappa, {})
            self.result.strips.append(strip_by_kappa(title, embeddings, picture))
        reports = [report for report in self.result.reports if report.condition == f"clean/{MIXED}"]
        first = next(report for report in reports if report.name.startswith(f"{self.backbone.name} "))
        mistakes = [mistake for mistake in first.mistakes if mistake.score == "mls"]
        title = f"{first.name}, {first.condition}"
        self.result.strips.extend(strips_of_mistakes(mistakes, clean, degraded, title=title))

    def compare_templates(self, name: str, cache: FeatureCache, plans: Sequence[TemplatePlan]) -> None:
        """Evaluate every plan and seed."""
        views = [
            cache.views[0],
            *(cache.views[view_of(cache, MIXED, s)] for s in range(self.options.degradations)),
        ]
        size = self.backbone.preprocessing.size
        # Shared by all backbones of this input size.
        folder = self.folder.parent / f"{name}-{size[0]}x{size[1]}-detector"
        detected = detector_scores(cache.source, views, folder, size)
        with progress(f"{self.backbone.name}: templates", len(self.options.seeds) * len(plans)) as advance:
            for seed in self.options.seeds:
                outputs = self._outputs(cache, seed)
                for plan in plans:
                    self.result.templates.append(self._trial(name, cache, plan, seed, outputs, detected))
                    advance()

    def _trial(
        self,
        name: str,
        cache: FeatureCache,
        plan: TemplatePlan,
        seed: int,
        outputs: Mapping[str, NDArray[np.float32]],
        detected: NDArray[np.float32],
    ) -> TemplateTrial:
        views, draw = len(cache.views), seed % self.options.degradations
        drawn = draw_templates(
            cache.source.labels, np.asarray(cache.valid.reshape(-1, views).all(1)), plan, seed
        )
        rows = np.arange(len(cache.source)) * views
        rows[drawn.image[drawn.degraded]] += view_of(cache, MIXED, draw)
        trial = TemplateTrial(self.backbone.name, f"{name}, {plan.name}", seed)
        scores = detected[drawn.image, np.where(drawn.degraded, 1 + draw, 0)]
        min_score = np.float32(1e-6)  # a template without any detected face is pooled with equal weights
        protocol = drawn.protocol(trial.plan, list(cache.source.keys), np.maximum(scores, min_score))
        run_trial(
            trial, self._faces(cache, rows, outputs), protocol, self.options.variants,
            radius=self.config.loss.radius, draws=self.options.draws,
        )  # fmt: skip
        return trial

    def _faces(
        self, cache: FeatureCache, rows: NDArray[np.int64], outputs: Mapping[str, NDArray[np.float32]]
    ) -> Faces:
        """The given cache rows, one per image; unusable images are left out, as they are in no template."""
        valid = rows[cache.valid[rows]]
        return Faces(
            cache.mu[valid],
            cache.keys(valid),
            {name: cache.store.arrays[name][valid] for name in ("norm", "sharpness", "severity")},
            {score: column[valid] for score, column in outputs.items()},
            {"backbone": self.backbone.sha256, "data": cache.source.fingerprint(), "alignment": "as-given",
             "flip": "none"},
        )  # fmt: skip

    def _outputs(self, cache: FeatureCache, seed: int) -> dict[str, NDArray[np.float32]]:
        """Outputs of every head on all rows of the cache."""
        return {v.score: cache.outputs(self.models[seed, v.score].head) for v in self.options.variants}
