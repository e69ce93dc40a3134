"""The report for people at a terminal."""

import re
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from spherecf.evaluation import PairReport, ScoreResult
from spherecf.report.parts import Table
from spherecf.report.tables import (
    counts_text,
    grouped,
    interval_text,
    metric_names,
    run_names,
    unresolved_text,
    value_text,
)

_INTERVAL = re.compile(r" ?\[([+-]?\d\.\d+), ([+-]?\d\.\d+)\]")


def terminal_table(reports: Sequence[PairReport]) -> Group:
    """One table per pair list, condition and run, a row per score; print it with any rich console.

    Each value has its interval below it; the last column is the accuracy minus that of the cosine.

    Example:
        >>> import numpy as np
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.evaluation import evaluate_pairs
        >>> e = Embeddings(np.eye(8, 9), np.full(8, 5.0), list("abcdefgh"))
        >>> report = evaluate_pairs(
        ...     e, e, list("abcd"), list("efgh"), [1, 0, 1, 0], [0, 0, 1, 1], name="toy", draws=0
        ... )
        >>> table = terminal_table([report])  # print it by rich.console.Console().print(table)
    """
    parts: list[RichTable | Text] = []
    for name, conditions in grouped(reports).items():
        members = [run for runs in conditions.values() for run in runs]
        for condition, runs in conditions.items():
            for run, label in zip(runs, run_names(runs)):
                parts.append(_table(run, ", ".join(filter(None, [f"{name}: {condition}", label]))))
                parts.append(Text(f"{counts_text(run)}; intervals: {run.resampling}", "dim"))
        parts += [Text(f"unresolved: {reason}", "yellow") for reason in unresolved_text(members)]
        absent = dict.fromkeys(name for run in members for name in run.absent_confidences)
        if absent:
            parts.append(Text(f"confidences that these embeddings lack: {', '.join(absent)}", "dim"))
    return Group(*parts)


def rich_table(table: Table) -> RichTable:
    """A `Table` for the terminal, its signatures left out.

    Example:
        >>> rich_table(Table("Gains", ["score", "gain"], [["mls", "+0.01"]])).row_count
        1
    """
    shown = RichTable(
        title=Text(table.title, "bold") if table.title else None, title_justify="left", box=SIMPLE_HEAD,
        show_edge=False, caption=Text(table.note, "dim") if table.note else None, caption_justify="left",
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    for place, name in enumerate(table.header):
        shown.add_column(Text(name), justify="right" if place else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(_INTERVAL.sub(_below, cell)) for cell in row))
    return shown


def _below(interval: re.Match[str]) -> str:
    """An interval below its value, in few characters; it may break between its ends."""
    return "\n" + " ".join(end.replace("0.", ".").replace("1.000", "1") for end in interval.groups())


def _table(run: PairReport, title: str) -> RichTable:
    metrics = [metric for metric in metric_names([run]) if metric != "auc"]  # the page has it
    table = RichTable(
        title=Text(title, "bold"), title_justify="left", box=SIMPLE_HEAD, show_edge=False, padding=0
    )
    table.add_column("score", overflow="fold", min_width=8)
    for metric in metrics:
        table.add_column(_short(metric), justify="right", no_wrap=True)
    table.add_column("accuracy\n- cosine", justify="right", no_wrap=True)
    for result in run.scores.values():
        cells = [_cell(result, metric) for metric in metrics]
        table.add_row(Text(result.score), *cells, _gain(run, result.score))
    return table


def _short(metric: str) -> str:
    return f"TMR @\n≤{metric.removeprefix('tmr@')}" if metric.startswith("tmr@") else metric


def _cell(result: ScoreResult, metric: str) -> Text:
    value, interval = value_text(result, metric)
    if value == "unresolved":
        return Text("–", "dim")  # the reason stands below the table
    return Text(value.split(" ")[0] + ("\n" + _narrow(interval) if interval else ""))


def _narrow(interval: str) -> str:
    """``[0.957, 1.000]`` as ``.957-1``: eighty columns are few."""
    return interval.strip("[]").replace("0.", ".").replace("1.000", "1").replace(", ", "-")


def _gain(run: PairReport, score: str) -> Text:
    difference = run.differences.get(f"{score}-cosine:accuracy")
    if difference is None:
        return Text("")
    between = (
        interval_text(difference.interval, signed=True).strip("[]").replace("0.", ".").replace(", ", " ")
    )
    return Text(f"{difference.value:+.4f}\n{between}".rstrip())
