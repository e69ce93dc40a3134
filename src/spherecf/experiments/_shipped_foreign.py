"""The shipped head on sets it was not made for, by group, and on crops that are detected again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.data import ImageSource
from spherecf.embeddings import Embeddings
from spherecf.experiments._graded_faces import GradedFaces, ScoredPairs
from spherecf.experiments._grades import Condition
from spherecf.experiments._shipped_check import DecisionCount, count_decisions
from spherecf.extract import embed
from spherecf.models import ConfidenceModel


@dataclass(frozen=True)
class Foreign:
    """What the model says of one set or group, pictures as they are.

    Attributes:
        name: of the set.
        images: in it, or of a group of pairs.
        skipped: pictures without a face, or unusable.
        kappa: percentiles 5, 50, 95.
        percentile: of the median on the model's scale.
        ratio: kappa after over kappa before, percentiles 5, 50, 95; of crops that are detected again.
        decisions: by the shipped rules.
    """

    name: str
    images: int
    skipped: int = 0
    kappa: list[float] = field(default_factory=list)
    percentile: float | None = None
    ratio: list[float] = field(default_factory=list)
    decisions: list[DecisionCount] = field(default_factory=list)


_CLEAN = Condition("none", "none")


def look_elsewhere(
    model: ConfidenceModel,
    folder: Path,
    faces: GradedFaces,
    test: ImageSource,
    foreign: Mapping[str, ImageSource],
    realign: Callable[[ImageSource], ImageSource] | None,
    *,
    draws: int,
    batch_size: int,
) -> list[Foreign]:
    """Groups of the checked people's pairs, other sets, and the same crops detected and aligned again."""
    found = _by_group(model, faces, draws)
    for name, source in foreign.items():
        known = _embedded(model, source, folder / f"{name}.safetensors", batch_size)
        found.append(_set(model, name, known, draws))
    if realign is not None:
        place = {key: row for row, key in enumerate(test.keys)}
        again = realign(test.subset(np.array([place[key] for key in faces.keys])))
        known = _embedded(model, again, folder / "realigned.safetensors", batch_size)
        before = dict(zip(faces.keys, faces.of("none")[1].tolist()))
        ratio = np.asarray(known.kappa) / np.array([before[key] for key in known.keys])
        found.append(_set(model, "detected again", known, draws, ratio))
    return found


def _embedded(model: ConfidenceModel, source: ImageSource, path: Path, batch_size: int) -> Embeddings:
    """The file of an earlier run, if it is of the same model and images."""
    if path.is_file():
        known = Embeddings.load(path)
        same = known.provenance.get("model"), known.provenance.get("data")
        if same == (model.fingerprint(), source.fingerprint()):
            return known
    return embed(model, source, path, batch_size=batch_size)


def _set(
    model: ConfidenceModel, name: str, known: Embeddings, draws: int, ratio: NDArray[Any] | None = None
) -> Foreign:
    kappa = np.array(known.kappa)
    own = GradedFaces(
        ["none"], np.array(known.mu)[:, None], kappa[:, None], np.asarray(known.labels), known.keys,
        model.radius,
    )  # fmt: skip
    scale = model.calibration.kappa if model.calibration else None
    return Foreign(
        name,
        len(kappa),
        len(known.skipped),
        np.percentile(kappa, (5, 50, 95)).tolist(),
        None if scale is None else float(scale.percentile(float(np.median(kappa)))),
        [] if ratio is None else np.percentile(ratio, (5, 50, 95)).tolist(),
        _decisions(model, own.pairs(_CLEAN), name, draws),
    )


def _by_group(model: ConfidenceModel, faces: GradedFaces, draws: int) -> list[Foreign]:
    """Pairs of pictures as they are, by the groups of both."""
    groups = faces.groups()
    names = np.unique(groups).tolist()
    if len(names) < 2:
        return []
    pairs, (left, right) = faces.pairs(_CLEAN), np.triu_indices(len(groups), 1)
    found = []
    for i, one in enumerate(names):
        for other in names[i:]:
            rows = ((groups[left] == one) & (groups[right] == other)) | (
                (groups[left] == other) & (groups[right] == one)
            )
            own = ScoredPairs(
                {name: values[rows] for name, values in pairs.scores.items()},
                pairs.confidence[rows], pairs.mated[rows], pairs.left[rows], pairs.right[rows],
            )  # fmt: skip
            name = f"{one}/{other}"
            found.append(Foreign(name, int(rows.sum()), decisions=_decisions(model, own, name, draws)))
    return found


def _decisions(model: ConfidenceModel, pairs: ScoredPairs, name: str, draws: int) -> list[DecisionCount]:
    rules = model.calibration.decisions if model.calibration else ()
    return [
        count_decisions(pairs, rule, name, _CLEAN, "rule", draws) for rule in rules if rule.score == "mls"
    ]
