"""The report of a reproduction: its tables, what was trained, and the pair lists of the first seed."""

from pathlib import Path
from typing import Any

from spherecf.common.version import environment
from spherecf.experiments._reproduce import Reproduction
from spherecf.experiments._reproduce_tables import (
    NAMES,
    pair_tables,
    rejection_tables,
    released_table,
    search_tables,
    template_tables,
)
from spherecf.experiments._template_trial import TemplateTrial
from spherecf.report import Plot, ReportFiles, Section, Series, Table, line_plot, write_report

NOTES = (
    "Heads learn on people who look like nobody in the test set; who looks alike is said by the recogniser.",
    "A template of 3 images with half degraded: half of all images of the set, drawn at random, not of each "
    "template. The degradations are of a recipe that no training view contains.",
    "The pair lists below are those of the first seed; the tables are over all seeds.",
)


def reproduction_tables(result: Reproduction) -> list[Table]:
    """Everything that was found: pairs, templates 1:1 and 1:N, rejection, and exact against released."""
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
    shown = [report for report in result.reports if report.label == f"seed {first}"]
    return write_report(
        folder,
        shown,
        title="Sphere Confidence Face and its rivals, in one code path",
        sections=[Section("Training", tables=[], plots=_histories(result))],
        results={"templates": [_plain(run) for run in result.templates], "facts": result.facts},
        notes=[*NOTES, *(_who(name, facts) for name, facts in result.facts.items())],
        tables=reproduction_tables(result),
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


def _who(name: str, facts: dict[str, Any]) -> str:
    return (
        f"{name}: {facts['people_of_both']} people of the training set look like somebody of the test "
        f"set; they and others, {facts['held_out_people']} in all with {facts['held_out_images']} images, "
        f"are only tested. {facts['train_people']} people with {facts['train_images']} images train."
    )


def _histories(result: Reproduction) -> list[Plot]:
    """Held-out loss per epoch, what is above the best epoch; every seed of every head."""
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
                    xlabel="epoch",
                    ylabel="held-out loss above its best",
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
