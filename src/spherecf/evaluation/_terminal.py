"""The report for people at a terminal."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from spherecf.evaluation._result import PairReport
from spherecf.evaluation._tables import (
    counts_text,
    grouped,
    interval_text,
    metric_names,
    run_names,
    unresolved_text,
    value_text,
)


def terminal_table(reports: Sequence[PairReport]) -> Group:
    """One table per pair list: a row per condition, run and score; print it with any rich console.

    Each value has its interval below it; where the mutual likelihood score or any other is compared with the
    cosine, the last column gives the difference in accuracy.
    """
    parts: list[RichTable | Text] = []
    for name, conditions in grouped(reports).items():
        members = [run for runs in conditions.values() for run in runs]
        metrics = metric_names(members)
        table = RichTable(title=Text(name, style="bold"), title_justify="left", show_lines=False)
        for column in ("condition", "score"):
            table.add_column(column, overflow="fold")
        for metric in metrics:
            table.add_column(_short(metric), justify="right")
        table.add_column("accuracy - cosine", justify="right")
        for condition, runs in conditions.items():
            for run, label in zip(runs, run_names(runs)):
                table.add_section()
                for place, result in enumerate(run.scores.values()):
                    first = Text("\n".join(filter(None, [condition, label])) if place == 0 else "")
                    cells = [Text("\n".join(filter(None, value_text(result, m)))) for m in metrics]
                    table.add_row(first, Text(result.score), *cells, _gain(run, result.score))
        parts.append(table)
        for condition, runs in conditions.items():
            parts.append(Text(f"{condition}: {counts_text(runs[0])}; intervals: {runs[0].resampling}", "dim"))
        parts += [Text(f"unresolved: {reason}", "yellow") for reason in unresolved_text(members)]
        absent = dict.fromkeys(name for run in members for name in run.absent_confidences)
        if absent:
            parts.append(Text(f"not in these embeddings: {', '.join(absent)}", "dim"))
    return Group(*parts)


def _short(metric: str) -> str:
    return f"TMR@FMR≤{metric.removeprefix('tmr@')}" if metric.startswith("tmr@") else metric


def _gain(run: PairReport, score: str) -> Text:
    difference = run.differences.get(f"{score}-cosine:accuracy")
    if difference is None:
        return Text("")
    return Text(f"{difference.value:+.4f}\n{interval_text(difference.interval, signed=True)}".rstrip())
