"""The confidence head that ships: trained, calibrated and checked on people of three separate groups."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spherecf.calibration import ThresholdEntry
from spherecf.common.progress import console
from spherecf.data import ImageSource
from spherecf.evaluation import SubjectRates
from spherecf.experiments._division import divide
from spherecf.experiments._graded_faces import GradedFaces
from spherecf.experiments._grades import CALIBRATED, GRADES, Condition
from spherecf.experiments._shipped_calibration import calibrate, halves
from spherecf.experiments._shipped_check import Cost, DecisionCount, check_decisions
from spherecf.experiments._shipped_foreign import Foreign, look_elsewhere
from spherecf.models import ConfidenceModel, FrozenBackbone
from spherecf.training import ConfidenceConfig, FeatureCache, build_cache, fit_confidence, new_head, prepare

MODEL_FILE = "model.safetensors"
COMMAND = "spherecf experiment shipped LFW CFP --out runs/shipped"
CARD = {
    "what": "how sure a face recogniser can be of one picture: log kappa of a von Mises-Fisher distribution",
    "licence": "research use: learnt from LFW, calibrated on CFP, both collected from the web for research",
    "not": "liveness, identity, the probability of a match, or neutral between groups of people",
    "page": "docs/model-card.md",
    "command": COMMAND,
}
"""What the saved model says of itself."""
PERCENTS = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True, eq=False)
class Shipped:
    """Everything that was made and found.

    Attributes:
        model: with its calibration.
        decisions: what the rules and the cosine say of other people, by condition.
        costs: of likelihood ratios there.
        thresholds: by score, the calibration's entries and rates of other people, pictures as they are.
        kappas: by grade and group, the percentiles `PERCENTS` of kappa.
        foreign: what is said of other sets.
        facts: of data and people, JSON-able.
    """

    model: ConfidenceModel
    decisions: list[DecisionCount]
    costs: list[Cost]
    thresholds: dict[str, list[tuple[ThresholdEntry, SubjectRates | None]]]
    kappas: dict[str, list[float]]
    foreign: list[Foreign] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def ship(
    backbone: FrozenBackbone,
    train: ImageSource,
    test: ImageSource,
    folder: str | Path,
    config: ConfidenceConfig | None = None,
    *,
    foreign: Mapping[str, ImageSource] | None = None,
    realign: Callable[[ImageSource], ImageSource] | None = None,
    draws: int = 1000,
    batch_size: int = 32,
) -> Shipped:
    """Train a head on ``train``, calibrate it on half of the people of ``test``, check it on the other half.

    People of ``train`` who look like somebody of ``test`` are not learnt from (`divide`). Every pass and the
    training resume where an interrupted run stopped. The model is written to ``folder/model.safetensors``.

    Args:
        backbone: the frozen recogniser.
        train: aligned crops of known people.
        test: aligned crops of other people, several images of each.
        folder: gets caches, the head and the model.
        config: settings of the head.
        foreign: further sets to look at, aligned crops of known people each.
        realign: detects and aligns the crops again, to see what that does to kappa.
        draws: of the bootstrap over subjects; 0 for no intervals.
        batch_size: views per call of the backbone.

    Raises:
        InputError: too few people or pairs for a calibration.
    """
    config, folder = config or ConfidenceConfig(), Path(folder)
    data = prepare(backbone, train, config, folder / "train-cache", batch_size=batch_size)
    cache = build_cache(
        backbone, new_head(backbone, config), test, list(GRADES.values()), folder / "test-cache",
        batch_size=batch_size,
    )  # fmt: skip
    division = divide(data.cache, cache, share=0.0)
    model = fit_confidence(backbone, division.training(data), config, folder / "head")
    facts = {
        **division.facts, "train": train.fingerprint(), "test": test.fingerprint(),
        "skipped": {**data.cache.skipped, **cache.skipped},
    }  # fmt: skip
    model.record["card"] = {**CARD, "train": train.name, "calibrated": test.name, "people": facts}
    faces = graded(model, cache)
    first, second = (faces.only(half) for half in halves(faces.person))
    console.print("calibrating", highlight=False)
    calibration, rivals = calibrate(
        first, model=model.fingerprint(), data=test.fingerprint(), population=_population(test.name, first),
        draws=draws, record={"people": len(np.unique(first.person)), "images": len(first.keys)},
    )  # fmt: skip
    model = model.with_calibration(calibration)
    model.save(folder / MODEL_FILE)
    console.print("checking on other people", highlight=False)
    decisions, costs = check_decisions(second, calibration, rivals, draws)
    return Shipped(
        model, decisions, costs, _check_thresholds(model, second, draws), _kappas(second),
        look_elsewhere(
            model, folder, second, test, foreign or {}, realign, draws=draws, batch_size=batch_size
        ),
        facts,
    )  # fmt: skip


def graded(model: ConfidenceModel, cache: FeatureCache) -> GradedFaces:
    """The images that every view could use, by the model's head."""
    shape = len(cache.source), len(cache.views)
    usable = cache.valid.reshape(shape).all(1) & (cache.source.labels >= 0)
    faces = GradedFaces(
        list(GRADES), cache.mu.reshape(*shape, -1), np.exp(cache.log_kappa(model.head)).reshape(shape),
        cache.source.labels, cache.source.keys, model.radius,
    )  # fmt: skip
    return faces.only(usable)


def _population(name: str, faces: GradedFaces) -> str:
    people, images = len(np.unique(faces.person)), len(faces.keys)
    grades = ", ".join(CALIBRATED[1:])
    return (
        f"{images} pictures of {people} people of {name}, each as it is and with {grades} artificial damage: "
        f"{images * len(CALIBRATED)} views"
    )


def _check_thresholds(
    model: ConfidenceModel, faces: GradedFaces, draws: int
) -> dict[str, list[tuple[ThresholdEntry, SubjectRates | None]]]:
    found: dict[str, list[tuple[ThresholdEntry, SubjectRates | None]]] = {}
    pairs = faces.pairs(Condition("none", "none"))
    for score in ("mls", "cosine"):
        table = model.calibration.thresholds[score] if model.calibration else None
        for entry in table.entries if table else ():
            rates = None
            if entry.threshold is not None and np.isfinite(entry.threshold):
                rates = pairs.reach(pairs.scores[score], False, np.array([entry.threshold]), draws)
            found.setdefault(score, []).append((entry, rates))
    return found


def _kappas(faces: GradedFaces) -> dict[str, list[float]]:
    """Percentiles by grade, and of pictures as they are by group."""
    shown = {grade: faces.of(grade)[1] for grade in faces.grades}
    groups = faces.groups()
    for group in np.unique(groups[groups != ""]).tolist():
        shown[f"none, {group}"] = faces.of("none")[1][groups == group]
    return {name: np.percentile(values, PERCENTS).tolist() for name, values in shown.items()}
