"""The tables and the report of a reproduction, with paired intervals over seeds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from spherecf.common.version import environment
from spherecf.evaluation import Interval, PairReport, interval
from spherecf.report import Axis, Plot, ReportFiles, Section, Series, Table, line_plot, write_report
from studies.reproduce import Reproduction
from studies.templates import TemplateTrial

T = TypeVar("T")

PAIR_METRICS = ("accuracy", "tmr@0.01", "tmr@0.001")
NAMES = {
    "": "no head", "cosine": "cosine", "mls": "SCF", "mls_released": "SCF as released", "scf_g": "SCF-G",
    "pfe_v": "PFE-v", "pfe_g": "PFE-G",
}  # fmt: skip
"""Names of scores and heads in the paper."""

_BASE = "no head: mean, cosine"
_STAR = (
    "95 % intervals over subjects, each bootstrap sample averaged over the seeds; a star marks an interval "
    "without zero."
)
_SEEDS = f"Mean ± standard deviation over seeds; differences with {_STAR} A dash: too few non-mated pairs."
_SEARCH = f"TPIR: the mate has rank 1 and its score reaches the threshold. {_SEEDS}"
_PRR = "Mean ± standard deviation over seeds and both galleries. 1: errors rejected first; 0: no information."


@dataclass(frozen=True)
class Run:
    """One metric of one row for one seed: its value and its bootstrap samples."""

    value: float | None
    drawn: NDArray[Any] | None


@dataclass(frozen=True)
class Gain:
    """A mean over seeds, and its difference from another row on the same seeds and bootstrap samples."""

    mean: float
    deviation: float
    difference: float
    interval: Interval | None

    @property
    def level(self) -> str:
        """``0.912 ± 0.003``."""
        return f"{self.mean:.3f} ± {self.deviation:.3f}"

    @property
    def text(self) -> str:
        """``+0.012 [+0.003, +0.020] *``; the star marks a 95 % interval without zero."""
        if self.interval is None:
            return f"{self.difference:+.3f}"
        star = " *" if self.interval.low > 0 or self.interval.high < 0 else ""
        return f"{self.difference:+.3f} [{self.interval.low:+.3f}, {self.interval.high:+.3f}]{star}"


def gain(runs: Sequence[Run], base: Sequence[Run]) -> Gain | None:
    """Paired comparison, seed by seed; None if the value of a seed is missing.

    Example:
        >>> gain([Run(0.9, None), Run(0.8, None)], [Run(0.7, None), Run(0.7, None)]).text
        '+0.150'
    """
    values, others = ([run.value for run in side if run.value is not None] for side in (runs, base))
    if not values or len(values) < len(runs) or len(others) < len(base):
        return None
    draws = [run.drawn - other.drawn for run, other in zip(runs, base)
             if run.drawn is not None and other.drawn is not None]  # fmt: skip
    between = interval(np.mean(draws, 0)) if len(draws) == len(values) else None
    return Gain(
        float(np.mean(values)), float(np.std(values)), float(np.mean(np.subtract(values, others))), between
    )


def pair_tables(reports: Sequence[PairReport]) -> list[Table]:
    """A table per pair list; rows are conditions and methods."""
    tables = []
    for name, conditions in _grouped(reports, lambda r: r.name, lambda r: r.condition).items():
        rows, lines = list[list[str]](), list[str]()
        for condition, runs in conditions.items():
            metrics = {score: _pair_runs(runs, score) for score in runs[0].scores}
            rows += _rows(condition, metrics, "cosine", PAIR_METRICS)
            lines += [_signed(result.signature, runs) for result in runs[0].scores.values()]
        header = _header("left/right", "method", PAIR_METRICS, "cosine")
        tables.append(Table(f"Pairs: {name}", header, rows, _SEEDS, lines))
    return tables


def template_tables(trials: Sequence[TemplateTrial]) -> list[Table]:
    """A table per backbone; rows are settings, poolings and scores."""
    return _protocol_tables(trials, "Templates 1:1", lambda trial: trial.pairs, _template_runs, _SEEDS)


def search_tables(trials: Sequence[TemplateTrial]) -> list[Table]:
    """A table per backbone: rank 1 and TPIR at FPIR, means of both galleries."""
    return _protocol_tables(trials, "Search 1:N", lambda trial: trial.searches, _search_runs, _SEARCH)


def rejection_tables(trials: Sequence[TemplateTrial]) -> list[Table]:
    """A table per backbone: PRR of every confidence in open-set search."""
    tables = []
    for backbone, plans in _grouped(trials, lambda t: t.backbone, lambda t: t.plan).items():
        rows, lines, fpirs = [], list[str](), list[float]()
        for plan, runs in plans.items():
            reports = [report for run in runs for report in run.rejection.values()]
            fpirs = [point.fpir_target for point in reports[0].points]
            for confidence in dict.fromkeys(entry.confidence for r in reports for entry in r.prr):
                cells = []
                entries = [entry for r in reports for entry in r.prr if entry.confidence == confidence]
                for fpir in fpirs:
                    values = [entry.prr.value for entry in entries if entry.fpir_target == fpir]
                    cells.append(f"{np.mean(values):.2f} ± {np.std(values):.2f}" if values else "–")
                rows.append([plan, confidence, *cells])
                lines.append(_signed(entries[0].signature, runs))
        header = ["templates", "confidence", *(f"PRR at FPIR {fpir:g}" for fpir in fpirs)]
        tables.append(Table(f"Rejection in open-set search: {backbone}", header, rows, _PRR, lines))
    return tables


def released_table(reports: Sequence[PairReport], trials: Sequence[TemplateTrial]) -> Table:
    """Difference of the exact and the released loss, both with their own score."""
    rows = []
    for name, conditions in _grouped(reports, lambda r: r.name, lambda r: r.condition).items():
        for condition, runs in conditions.items():
            if "mls_released" in runs[0].scores:
                exact, released = _pair_runs(runs, "mls"), _pair_runs(runs, "mls_released")
                rows += [
                    [f"{name}, {condition}", _heading(metric), _gain_text(exact, released, metric)]
                    for metric in PAIR_METRICS
                ]
    for backbone, plans in _grouped(trials, lambda t: t.backbone, lambda t: t.plan).items():
        for plan, trial in plans.items():
            by_row = _template_runs(trial)
            released_runs = by_row.get("SCF as released: kappa, mls")
            if released_runs is not None:
                exact = by_row["SCF: kappa, mls"]
                rows += [
                    [f"{backbone}, {plan}", _heading(metric), _gain_text(exact, released_runs, metric)]
                    for metric in exact
                ]
    title, header = "SCF exact minus SCF as released", ["setting", "metric", "difference"]
    return Table(title, header, rows, f"Means over seeds with {_STAR}")


Metrics = Mapping[str, list[Run]]


def _pair_runs(runs: Sequence[PairReport], score: str) -> Metrics:
    """The runs of one score, by metric."""
    metrics: dict[str, list[Run]] = {}
    for metric in PAIR_METRICS:
        measures = [run.scores[score].measure(metric) if score in run.scores else None for run in runs]
        metrics[metric] = [
            Run(None if measure is None else measure.value, run.resampled.get(f"{score}:{metric}"))
            for run, measure in zip(runs, measures)
        ]
    return metrics


def _template_runs(trials: Sequence[TemplateTrial]) -> dict[str, Metrics]:
    """The 1:1 runs by table row ("head: pooling, score") and metric."""
    rows: dict[str, dict[str, list[Run]]] = {}
    for trial in trials:
        for head, report in trial.pairs.items():
            for result in report.results:
                row = rows.setdefault(f"{NAMES.get(head, head)}: {result.name}", {})
                for entry in result.tmr:
                    metric = f"tmr@{entry.target:g}"
                    drawn = report.resampled.get(f"{result.name}:{metric}")
                    row.setdefault(metric, []).append(Run(entry.tmr, drawn))
    return dict(rows)


def _search_runs(trials: Sequence[TemplateTrial]) -> dict[str, Metrics]:
    """The 1:N runs by table row and metric."""
    rows: dict[str, dict[str, list[Run]]] = {}
    for trial in trials:
        for head, report in trial.searches.items():
            for result in report.results:
                row = rows.setdefault(f"{NAMES.get(head, head)}: {result.name}", {})
                for metric in ("rank-1", "tpir@0.1", "tpir@0.01"):
                    measure = result.mean.get(metric)
                    drawn = report.resampled.get(f"{result.name}:{metric}")
                    row.setdefault(metric, []).append(Run(None if measure is None else measure.value, drawn))
    return dict(rows)


def _protocol_tables(
    trials: Sequence[TemplateTrial],
    title: str,
    reports: Callable[[TemplateTrial], Mapping[str, Any]],
    collect: Callable[[Sequence[TemplateTrial]], dict[str, Metrics]],
    note: str,
) -> list[Table]:
    tables = []
    for backbone, plans in _grouped(trials, lambda t: t.backbone, lambda t: t.plan).items():
        rows, lines, metrics = list[list[str]](), list[str](), list[str]()
        for plan, runs in plans.items():
            collected = collect(runs)
            metrics = list(collected[_BASE])
            rows += _rows(plan, collected, _BASE, metrics)
            first = [result for report in reports(runs[0]).values() for result in report.results]
            lines += [_signed(result.signature, runs) for result in first]
        header = _header("templates", "pooling, score", metrics, "mean, cosine")
        tables.append(Table(f"{title}: {backbone}", header, rows, note, lines))
    return tables


def _signed(line: str, runs: Sequence[object]) -> str:
    """The signature of the first seed, used for all: only heads, templates and embeddings differ."""
    return f"{line}|seeds:{len(runs)}"


def _rows(setting: str, methods: Mapping[str, Metrics], base: str, metrics: Sequence[str]) -> list[list[str]]:
    rows = []
    for name, runs in methods.items():
        cells = [gain(runs[metric], methods[base][metric]) for metric in metrics]
        levels = ["–" if cell is None else cell.level for cell in cells]
        differences = ["" if name == base else "–" if cell is None else cell.text for cell in cells]
        rows.append([setting, NAMES.get(name, name), *levels, *differences])
    return rows


def _header(setting: str, method: str, metrics: Sequence[str], base: str) -> list[str]:
    headings = [_heading(metric) for metric in metrics]
    return [setting, method, *headings, *(f"{heading} minus {base}" for heading in headings)]


def _heading(metric: str) -> str:
    for prefix, text in (("tmr@", "TMR at FMR ≤ "), ("tpir@", "TPIR at FPIR ≤ ")):
        if metric.startswith(prefix):
            return text + metric.removeprefix(prefix)
    return metric


def _gain_text(method: Metrics, base: Metrics, metric: str) -> str:
    difference = gain(method[metric], base[metric])
    return "–" if difference is None else difference.text


def _grouped(
    items: Sequence[T], outer: Callable[[T], str], inner: Callable[[T], str]
) -> dict[str, dict[str, list[T]]]:
    groups: dict[str, dict[str, list[T]]] = {}
    for item in items:
        groups.setdefault(outer(item), {}).setdefault(inner(item), []).append(item)
    return groups


NOTES = (
    "Heads are trained on people who look like nobody in the test set, according to the recogniser.",
    "Half degraded means half of all images of the set, drawn at random, not half of each template. The "
    "degradation recipe is not used in training.",
    "The pair lists below show the first seed; the tables are over all seeds.",
)


def reproduction_tables(result: Reproduction) -> list[Table]:
    """All results: pairs, templates 1:1 and 1:N, rejection, and the exact against the released loss."""
    trials = result.templates
    return [
        *pair_tables(result.reports),
        *template_tables(trials),
        *search_tables(trials),
        *rejection_tables(trials),
        released_table(result.reports, trials),
    ]


def present_reproduction(result: Reproduction, folder: str | Path, provenance: dict[str, Any]) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and ``report.json``; the JSON has every number of every seed."""
    first = min(seed for _, seed, _ in result.models)
    first_seed = [report for report in result.reports if report.label == f"seed {first}"]
    return write_report(
        folder,
        first_seed,
        title="Sphere Confidence Face compared with other methods",
        sections=[Section("Training", tables=[], plots=_histories(result))],
        results={"templates": [_plain(run) for run in result.templates], "facts": result.facts},
        summary=[
            *NOTES,
            *(_describe_people(name, facts) for name, facts in result.facts.items()),
            *reproduction_tables(result),
        ],
        strips=result.strips,
        provenance={
            "environment": environment(),
            "models": {
                "-".join(map(str, name)): {"fingerprint": model.fingerprint(), **model.record}
                for name, model in result.models.items()
            },
            **provenance,
        },
    )


def _describe_people(name: str, facts: dict[str, Any]) -> str:
    return (
        f"{name}: {facts['people_of_both']} people of the training set look like somebody in the test set. "
        f"They and others, {facts['held_out_people']} people with {facts['held_out_images']} images in all, "
        f"are used only for testing; {facts['train_people']} people with {facts['train_images']} images are "
        "used for training."
    )


def _histories(result: Reproduction) -> list[Plot]:
    """Held-out loss per epoch minus that of the best epoch; every head of the first seed, by backbone."""
    plots = list[Plot]()
    for backbone in result.facts:
        series = []
        for (name, seed, score), model in result.models.items():
            losses = [epoch["held_out_loss"] for epoch in model.record.get("history", [])]
            if name == backbone and losses and seed == min(s for _, s, _ in result.models):
                best = min(losses)
                epochs = [float(i + 1) for i in range(len(losses))]
                series.append(Series(NAMES.get(score, score), epochs, [loss - best for loss in losses]))
        if series:
            plots.append(
                line_plot(
                    f"history-{len(plots)}",
                    series,
                    Axis("epoch"),
                    Axis("held-out loss above its best"),
                    caption=f"{backbone}: held-out loss of the first seed, in nats per image or pair.",
                    alt="; ".join(f"{line.label}: last {line.y[-1]:.3f}" for line in series),
                )
            )
    return plots


def _plain(trial: TemplateTrial) -> dict[str, Any]:
    return {
        "backbone": trial.backbone,
        "plan": trial.plan,
        "seed": trial.seed,
        "pairs": {head: report.to_dict(curves=False) for head, report in trial.pairs.items()},
        "searches": {head: report.to_dict(curves=False) for head, report in trial.searches.items()},
        "rejection": {name: report.to_dict(curves=False) for name, report in trial.rejection.items()},
    }
