"""The demo: train a head for a recogniser on the ORL faces or the user's photos, and write a report."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from spherecf.common.version import environment
from spherecf.data import (
    ImageSource,
    View,
    draw_pairs,
    encode_image,
    open_source,
    orl_faces,
    split_identities,
)
from spherecf.demo.trial import VARIANTS, CrossQuality, TrialOptions, cross_quality
from spherecf.errors import InputError
from spherecf.evaluation import Interval, PairReport, interval
from spherecf.faces import AlignedFaces
from spherecf.models import FrozenBackbone
from spherecf.report import ReportFiles, Strip, Table, rich_table, strip_by_kappa, write_report
from spherecf.training import ConfidenceConfig, FitSettings, ViewSettings


def pictures(source: ImageSource, view: View) -> Callable[[str], bytes]:
    """A function that maps a key to its encoded image in this view."""
    index = {key: row for row, key in enumerate(source.keys)}

    def picture(key: str) -> bytes:
        return encode_image(view(source.image(index[key]), key).image)

    return picture


METRICS = ("accuracy", "tmr@0.01", "tmr@0.001")


@dataclass(frozen=True)
class Cell:
    """A metric of one score under one condition, over all seeds.

    Attributes:
        pairs: name of the pair list.
        condition: name of the condition.
        score: name of the score.
        metric: name of the metric.
        mean: mean over seeds; None if there are too few pairs for the target.
        spread: standard deviation over seeds (0 for one seed).
        gain: mean difference from the cosine.
        interval: 95 % interval of the gain, from bootstrap samples over subjects, averaged over seeds.
    """

    pairs: str
    condition: str
    score: str
    metric: str
    mean: float | None
    spread: float
    gain: float
    interval: Interval | None


def summarise(reports: Sequence[PairReport], metrics: Sequence[str] = METRICS) -> list[Cell]:
    """Summarise reports over seeds, by pair list, condition, score and metric, in this order."""
    groups: dict[tuple[str, str], list[PairReport]] = {}
    for report in reports:
        groups.setdefault((report.name, report.condition), []).append(report)
    return [
        _cell(name, condition, score, metric, seed_reports)
        for (name, condition), seed_reports in groups.items()
        for score in seed_reports[0].scores
        for metric in metrics
    ]


def _cell(name: str, condition: str, score: str, metric: str, reports: Sequence[PairReport]) -> Cell:
    """Summarise a metric over the reports of all seeds."""
    measures = [report.scores[score].measure(metric) for report in reports]
    values = np.array([measure.value for measure in measures if measure is not None])
    if len(values) < len(reports):
        return Cell(name, condition, score, metric, None, 0.0, 0.0, None)
    cosine = [report.scores["cosine"].measure(metric) for report in reports]
    gain = values - np.array([measure.value for measure in cosine if measure is not None])
    gain_interval = None
    samples = [report.resampled for report in reports]
    if score != "cosine" and all(f"{score}:{metric}" in sample for sample in samples):
        # Reports with the same bootstrap seed resample the same subjects, so their samples can be averaged.
        differences = [sample[f"{score}:{metric}"] - sample[f"cosine:{metric}"] for sample in samples]
        gain_interval = interval(np.mean(differences, 0))
    return Cell(
        name,
        condition,
        score,
        metric,
        float(values.mean()),
        float(values.std()),
        float(gain.mean()),
        gain_interval,
    )


_FACES_PER_STRIP = 14


def present(
    result: CrossQuality, folder: str | Path, *, title: str, notes: Sequence[str], provenance: dict[str, Any]
) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and ``report.json`` to the folder."""
    facts = {
        "training": result.facts,
        "seeds": list(result.seeds),
        "environment": environment(),
        "models": {f"{score}-seed{seed}": model.record for (seed, score), model in result.models.items()},
        **provenance,
    }
    return write_report(
        folder,
        result.reports,
        title=title,
        summary=[*notes, *_describe_skipped(result), *tables(result)],
        strips=kappa_strips(result),
        provenance=facts,
    )


def tables(result: CrossQuality) -> list[Table]:
    """Tables over all seeds: scores, gains over the cosine, EDC of every confidence."""
    cells = summarise(result.reports)
    edc_tables = [edc_table(result, start) for start in ("fmr<=0.001", "fnmr<=0.05")]
    # With few non-mated pairs, FMR 0.001 cannot be measured, and its table is empty.
    edc_tables = [table for table in edc_tables if table.rows]
    return [score_table(cells, len(result.seeds)), gain_table(cells), *edc_tables]


def show_tables(tables: Sequence[Table], console: Console) -> None:
    """Print tables on the console."""
    for table in tables:
        console.print(rich_table(table))


def score_table(cells: Sequence[Cell], seeds: int) -> Table:
    """Table of all metrics: one row per pair list and condition, one column per score."""
    scores = list(dict.fromkeys(cell.score for cell in cells))
    cell_of = {(cell.pairs, cell.condition, cell.score, cell.metric): cell for cell in cells}
    metrics = list(dict.fromkeys(cell.metric for cell in cells))
    rows = []
    for pairs, condition in dict.fromkeys((cell.pairs, cell.condition) for cell in cells):
        entries = [
            " / ".join(_format(cell_of[pairs, condition, score, metric].mean) for metric in metrics)
            for score in scores
        ]
        rows.append([pairs, condition, *entries])
    n_seeds = f"{seeds} seed{'s' * (seeds > 1)}"
    note = f"Entries: {' / '.join(metrics)}, mean over {n_seeds}. A dash means too few non-mated pairs."
    return Table("Scores", ["pairs", "left/right", *scores], rows, note)


def gain_table(cells: Sequence[Cell], score: str = "mls") -> Table:
    """Table of the gain of the mutual likelihood score over the cosine, with intervals over subjects."""
    rows = []
    for cell in cells:
        if cell.score != score or cell.mean is None:
            continue
        interval = "" if cell.interval is None else f"{cell.interval.low:+.3f} to {cell.interval.high:+.3f}"
        rows.append(
            [
                cell.pairs,
                cell.condition,
                cell.metric,
                _format(cell.mean),
                f"{cell.spread:.3f}",
                f"{cell.gain:+.3f}",
                interval,
            ]
        )
    header = ["pairs", "left/right", "metric", score, "deviation", "minus cosine", "95 % interval"]
    return Table(
        "Mutual likelihood score against the cosine",
        header,
        rows,
        "Deviation: standard deviation over seeds. Interval: bootstrap over subjects, averaged over seeds.",
    )


def edc_table(result: CrossQuality, start: str, score: str = "cosine") -> Table:
    """Table of the normalised area under the EDC (up to 20 % discarded) of every confidence, over seeds."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    for report in result.reports:
        for item in report.edc:
            area = item.edc.pauc_normalised.get("0.2")
            if item.score == score and item.start == start and area is not None:
                areas = groups.setdefault((report.name, report.condition), {})
                areas.setdefault(item.confidence, []).append(area)
    names = list(dict.fromkeys(name for areas in groups.values() for name in areas))
    rows = [
        [*group, *(f"{np.mean(areas[name]):.3f}" if name in areas else "–" for name in names)]
        for group, areas in groups.items()
    ]
    return Table(
        f"Error versus discard, {score} at {start}",
        ["pairs", "left/right", *names],
        rows,
        "Area under FNMR up to 20 % discarded, relative to random discarding: lower is better, 1 is random.",
    )


def kappa_strips(result: CrossQuality, count: int = _FACES_PER_STRIP) -> list[Strip]:
    """Test faces by increasing kappa, in every view of the first seed."""
    cache, seed = result.test, result.seeds[0]
    strips = []
    for index in result.views_of(seed):
        embeddings, view = cache.embeddings(index, result.log_kappa[seed, "mls"], {}), cache.views[index]
        strips.append(strip_by_kappa(view.signature, embeddings, pictures(cache.source, view), count=count))
    return strips


def _describe_skipped(result: CrossQuality) -> list[str]:
    """Notes on the number of training images, and on images that were skipped."""
    facts, skipped = result.facts, result.test.skipped
    text = f"Trained on {facts['used']} of {facts['images']} images"
    singletons = len(facts["only_one_of_identity"])
    text += f"; {singletons} are the only image of their person" * bool(singletons)
    text += f"; {len(facts['skipped'])} were unusable" * bool(facts["skipped"]) + "."
    lines = [f"{key}: {reason}" for key, reason in [*facts["skipped"].items(), *skipped.items()]]
    return [text, *(f"Left out: {line}" for line in lines[:20])]


def _format(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


CONFIG = ConfidenceConfig(
    views=ViewSettings(degraded=7), fit=FitSettings(epochs=30, batch_size=128, held_out=0.2)
)
"""Settings for data sets with few people: more degraded views per image, smaller batches, more epochs."""


@dataclass(frozen=True, eq=False)
class Demo:
    """Result of the demo, with the files of its report and notes for the reader."""

    result: CrossQuality
    files: ReportFiles
    notes: list[str]

    @property
    def tables(self) -> list[Table]:
        """Scores, gains over the cosine, and EDC of every confidence."""
        return tables(self.result)


def demo(
    folder: str | Path,
    data: str | Path | None = None,
    *,
    seed: int = 0,
    draws: int = 1000,
    config: ConfidenceConfig | None = None,
    backbone: FrozenBackbone | None = None,
) -> Demo:
    """Train a confidence head on half of the people and test it on the other half, clean and degraded.

    Args:
        folder: folder for caches, heads and ``report/report.html``.
        data: folder, list or .rec with labelled photos or face crops; None for the ORL faces (40 people with
            10 grey images each). If the images do not have the size of the recogniser's input (SFace:
            112x112 pixels), faces are detected and aligned; images without a face are counted and listed.
        seed: random seed of the split, the pairs, the degradations and the head.
        draws: number of bootstrap samples.
        config: settings of the head; by default `CONFIG`.
        backbone: recogniser; by default SFace.

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
            f"{source.name}: expected at least 4 people with two or more images (half of them to train, half "
            f"to test), got {int((counts > 1).sum())}; use one sub-folder per person"
        )
    train_rows, test_rows = split_identities(crops, 0.5, seed)
    train, test = crops.subset(train_rows), crops.subset(test_rows)
    pairs = draw_pairs(test, seed=seed)
    pairs = replace(pairs, name=source.name)
    result = cross_quality(
        backbone, train, test, [pairs], folder, config,
        TrialOptions((seed,), ("cross",), (VARIANTS[0], VARIANTS[3]), draws),
    )  # fmt: skip
    notes = _notes(train, test, data is None)
    files = present(
        result,
        Path(folder) / "report",
        title=f"SphereCF on {source.name}: confidence and recognition",
        notes=notes,
        provenance={"data": source.fingerprint(), "backbone": backbone.sha256, "config": config.to_dict()},
    )
    return Demo(result, files, notes)


def _aligned(source: ImageSource, size: tuple[int, int]) -> ImageSource:
    if len(source) and source.image(0).shape[:2] == size:
        return source
    return AlignedFaces(source, size=size[0])


def _notes(train: ImageSource, test: ImageSource, default: bool) -> list[str]:
    n_train, n_test = (len(np.unique(part.labels)) for part in (train, test))
    notes = [
        f"The head was trained on {n_train} people ({len(train)} images) and tested on {n_test} other people "
        f"({len(test)} images).",
        "This is a small data set: the intervals are wide, and differences within them are not significant. "
        "The demo shows that everything works and how to read the results. It does not show how well the "
        "method works on your photos.",
    ]
    if default:
        notes.append(
            "The ORL faces are frontal grey studio images of 40 people, mostly white men, taken from 1992 to "
            "1994. Clean pairs are easy for any recogniser; the confidence matters on degraded pairs."
        )
    return notes
