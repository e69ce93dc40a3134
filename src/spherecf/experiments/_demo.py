"""The demo: default recogniser, ORL faces or the user's own, a head trained on the spot, a report."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from spherecf.data import ImageSource, draw_pairs, open_source, orl_faces, split_identities
from spherecf.errors import InputError
from spherecf.experiments._cross_quality import CrossQuality, cross_quality
from spherecf.experiments._present import present
from spherecf.experiments._variants import VARIANTS
from spherecf.faces import AlignedFaces
from spherecf.models import FrozenBackbone
from spherecf.report import ReportFiles
from spherecf.training import ConfidenceConfig, FitSettings, ViewSettings

CONFIG = ConfidenceConfig(
    views=ViewSettings(degraded=7), fit=FitSettings(epochs=30, batch_size=128, held_out=0.2)
)
"""Few people: more degraded views of each image, smaller batches, more epochs."""


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo found, and where it wrote it down."""

    result: CrossQuality
    files: ReportFiles
    notes: list[str]


def demo(
    folder: str | Path,
    data: str | Path | None = None,
    *,
    seed: int = 0,
    draws: int = 1000,
    config: ConfidenceConfig | None = None,
    backbone: FrozenBackbone | None = None,
) -> Demo:
    """Half of the people train a confidence head, the other half test it, clean and degraded.

    Args:
        folder: for caches, heads and ``report/report.html``.
        data: a folder, list or .rec of photos or crops of known people; None: the ORL faces (40 people, 10
            grey pictures each). Pictures that are not 112x112 are detected and aligned; those without a face
            are counted and listed.
        seed: of the split, pairs, degradations and head.
        draws: of the bootstrap.
        config: settings of the head, by default `CONFIG`.
        backbone: another recogniser than SFace.

    Raises:
        InputError: fewer than four people with two or more images.
        MissingDependencyError: the wheels of the extra ``demo`` are not installed.
    """
    config, backbone = config or CONFIG, backbone or FrozenBackbone.default()
    source = orl_faces() if data is None else open_source(data)
    crops = _aligned(source, backbone.preprocessing.size)
    counts = np.bincount(crops.labels[crops.labels >= 0], minlength=1)
    if (counts > 1).sum() < 4:
        raise InputError(
            f"{source.name}: expected at least 4 people with two or more images (half train, half test), got "
            f"{int((counts > 1).sum())}; one sub-folder per person"
        )
    train_rows, test_rows = split_identities(crops, 0.5, seed)
    train, test = crops.subset(train_rows), crops.subset(test_rows)
    pairs = draw_pairs(test, seed=seed)
    pairs = replace(pairs, name=source.name)
    result = cross_quality(
        backbone, train, test, [pairs], folder, config,
        seeds=(seed,), recipes=("cross",), variants=(VARIANTS[0], VARIANTS[3]), draws=draws,
    )  # fmt: skip
    notes = _notes(train, test, data is None)
    files = present(
        result,
        Path(folder) / "report",
        title=f"SphereCF on {source.name}: is the recogniser sure?",
        notes=notes,
        provenance={"data": source.fingerprint(), "backbone": backbone.sha256, "config": config.to_dict()},
    )
    return Demo(result, files, notes)


def _aligned(source: ImageSource, size: tuple[int, int]) -> ImageSource:
    if len(source) and source.image(0).shape[:2] == size:
        return source
    return AlignedFaces(source)


def _notes(train: ImageSource, test: ImageSource, default: bool) -> list[str]:
    people = [len(np.unique(part.labels)) for part in (train, test)]
    notes = [
        f"Head trained on {people[0]} people ({len(train)} images), tested on {people[1]} others "
        f"({len(test)} images). Nobody is in both.",
        "This is a small data set: the intervals are wide, and differences inside them mean nothing. It "
        "shows that everything runs and how to read it, not how good the method is on your photos.",
    ]
    if default:
        notes.append(
            "The ORL faces are frontal grey studio pictures of 40 people, mostly white men, 1992 to 1994. "
            "Clean pairs are easy for any recogniser; what confidence does is seen on the degraded ones."
        )
    return notes
