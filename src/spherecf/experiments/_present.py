"""The experiment's report: summary over seeds, strips of faces by kappa, and what to keep in mind."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from spherecf.common.version import environment
from spherecf.experiments._cross_quality import CrossQuality
from spherecf.experiments._pictures import pictures
from spherecf.experiments._summary import Cell, summarize
from spherecf.report import ReportFiles, Strip, Table, rich_table, strip_by_kappa, write_report

_FACES = 14


def present(
    result: CrossQuality, folder: str | Path, *, title: str, notes: Sequence[str], provenance: dict[str, Any]
) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and ``report.json`` into the folder."""
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
        notes=[*notes, *_left_out(result)],
        strips=kappa_strips(result),
        provenance=facts,
        tables=tables(result),
    )


def tables(result: CrossQuality) -> list[Table]:
    """What the experiment found, over all seeds: scores, gains over the cosine, EDC of every confidence."""
    cells = summarize(result.reports)
    discards = [edc_table(result, start) for start in ("fmr<=0.001", "fnmr<=0.05")]
    # Few non-mated pairs cannot resolve the first start: that table would be empty.
    shown = [table for table in discards if table.rows]
    return [score_table(cells, len(result.seeds)), gain_table(cells), *shown]


def show(result: CrossQuality, console: Console) -> None:
    """Print the tables."""
    show_tables(tables(result), console)


def show_tables(found: Sequence[Table], console: Console) -> None:
    """Print tables for people."""
    for table in found:
        console.print(rich_table(table))


def score_table(cells: Sequence[Cell], seeds: int) -> Table:
    """Rows are pair list and condition, columns scores, entries "accuracy / TMR at 1e-2 / 1e-3"."""
    scores = list(dict.fromkeys(cell.score for cell in cells))
    found = {(cell.pairs, cell.condition, cell.score, cell.metric): cell for cell in cells}
    metrics = list(dict.fromkeys(cell.metric for cell in cells))
    rows = []
    for pairs, condition in dict.fromkeys((cell.pairs, cell.condition) for cell in cells):
        entries = [
            " / ".join(_number(found[pairs, condition, score, metric].mean) for metric in metrics)
            for score in scores
        ]
        rows.append([pairs, condition, *entries])
    over = f"{seeds} seed{'s' * (seeds > 1)}"
    note = f"Entries: {' / '.join(metrics)}, mean over {over}. A dash: too few non-mated pairs."
    return Table("Scores", ["pairs", "left/right", *scores], rows, note)


def gain_table(cells: Sequence[Cell], score: str = "mls") -> Table:
    """What the mutual likelihood score gains over the cosine, with intervals over subjects."""
    rows = []
    for cell in cells:
        if cell.score != score or cell.mean is None:
            continue
        between = cell.interval
        interval = "" if between is None else f"{between.low:+.3f} to {between.high:+.3f}"
        rows.append(
            [
                cell.pairs,
                cell.condition,
                cell.metric,
                _number(cell.mean),
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
        "Deviation: over seeds. Interval: 1000 draws of subjects, each averaged over the seeds.",
    )


def edc_table(result: CrossQuality, start: str, score: str = "cosine") -> Table:
    """Normalised partial area (to 20 % discarded) under the EDC of every confidence, mean over seeds."""
    groups: dict[tuple[str, str], dict[str, list[float]]] = {}
    for report in result.reports:
        for item in report.edc:
            area = item.edc.pauc_normalised.get("0.2")
            if item.score == score and item.start == start and area is not None:
                cell = groups.setdefault((report.name, report.condition), {})
                cell.setdefault(item.confidence, []).append(area)
    names = list(dict.fromkeys(name for cell in groups.values() for name in cell))
    rows = [
        [*group, *(f"{np.mean(cell[name]):.3f}" if name in cell else "–" for name in names)]
        for group, cell in groups.items()
    ]
    return Table(
        f"Error versus discard, {score} at {start}",
        ["pairs", "left/right", *names],
        rows,
        "Area under FNMR to 20 % discarded, over that of no information: smaller is better, 1 tells nothing.",
    )


def kappa_strips(result: CrossQuality, count: int = _FACES) -> list[Strip]:
    """Test faces from the least to the most sure, in every view of the first seed."""
    cache, seed = result.test, result.seeds[0]
    strips = []
    for place in result.views_of(seed):
        shown, view = cache.embeddings(place, result.log_kappa[seed, "mls"], {}), cache.views[place]
        strips.append(strip_by_kappa(view.signature, shown, pictures(cache.source, view), count=count))
    return strips


def _left_out(result: CrossQuality) -> list[str]:
    facts, skipped = result.facts, result.test.skipped
    text = f"Trained on {facts['used']} of {facts['images']} images"
    alone = len(facts["only_one_of_identity"])
    text += f"; {alone} are the only one of their person" * bool(alone)
    text += f"; {len(facts['skipped'])} could not be used" * bool(facts["skipped"]) + "."
    listed = [f"{key}: {reason}" for key, reason in [*facts["skipped"].items(), *skipped.items()]]
    return [text, *(f"Left out: {line}" for line in listed[:20])]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
