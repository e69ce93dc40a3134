"""Results on the page: the table of a pair list, and what is said about one condition."""

from collections.abc import Sequence
from html import escape

from spherecf.evaluation._html_pieces import figures, folded, rows_and_note
from spherecf.evaluation._parts import Plot
from spherecf.evaluation._plots import score_colour
from spherecf.evaluation._result import PairReport, ScoreResult
from spherecf.evaluation._tables import (
    areas_table,
    compared_metrics,
    counts_text,
    difference_text,
    heading,
    metric_names,
    run_names,
    unresolved_text,
    value_text,
    verdict,
)

_LISTED = 50  # failures shown on the page; the JSON has all


def score_rows_table(conditions: dict[str, list[PairReport]]) -> str:
    """Every score of every condition and run, each with its signature and counts."""
    members = [run for runs in conditions.values() for run in runs]
    metrics = metric_names(members)
    head = "".join(f'<th scope="col">{escape(heading(metric))}</th>' for metric in metrics)
    rows = []
    for condition, runs in conditions.items():
        for run, label in zip(runs, run_names(runs)):
            named = f"{condition}, {label}" if label else condition
            counts = (
                f'<span class="counts">{escape(counts_text(run))}; intervals: {escape(run.resampling)}</span>'
            )
            rows.append(
                f'<tr class="group"><th colspan="{len(metrics) + 1}" scope="colgroup">'
                f"<span>{escape(named)}</span>{counts}</th></tr>"
            )
            rows += [_score_row(run, result, metrics) for result in run.scores.values()]
    reasons = "".join(f'<p class="note">Unresolved: {escape(why)}.</p>' for why in unresolved_text(members))
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">Score</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{reasons}"
    )


def _score_row(run: PairReport, result: ScoreResult, metrics: Sequence[str]) -> str:
    swatch = f'<span class="swatch" style="background:{score_colour(result.score, run)}"></span>'
    cells = [_cell(*value_text(result, metric)) for metric in metrics]
    name = f'<span class="name">{swatch}{escape(result.score)}</span>'
    return f'<tr><th scope="row">{name}{folded(result.signature)}</th>{"".join(cells)}</tr>'


def _cell(value: str, interval: str, kind: str = "") -> str:
    kind = kind or ("missing" if value in ("unresolved", "–") else "")
    below = f'<span class="ci">{escape(interval)}</span>' if interval else ""
    mark = f' class="{kind}"' if kind else ""
    return f'<td{mark}><span class="value">{escape(value)}</span>{below}</td>'


def condition_section(runs: Sequence[PairReport], plots: Sequence[Plot]) -> str:
    """Differences to the cosine, plots, areas under EDC, and failures of one condition."""
    parts = [_differences(runs), _plots(runs, plots), _areas(runs)]
    absent = dict.fromkeys(name for run in runs for name in run.absent_confidences)
    if absent:
        parts.append(
            f'<p class="note">Confidences that these embeddings lack: {escape(", ".join(absent))}.</p>'
        )
    parts.append(_failures(runs[0]))
    return "".join(parts)


def _differences(runs: Sequence[PairReport]) -> str:
    metrics = compared_metrics(runs)
    rows = []
    for run, label in zip(runs, run_names(runs)):
        for score in run.scores:
            found = [run.differences.get(f"{score}-cosine:{metric}") for metric in metrics]
            if not any(found):
                continue
            named = f"{score}, {label}" if label else score
            cells = [
                _cell("–", "") if one is None else _cell(*difference_text(one), verdict(metric, one))
                for metric, one in zip(metrics, found)
            ]
            rows.append(f'<tr><th scope="row">{escape(named)}</th>{"".join(cells)}</tr>')
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{escape(heading(metric))}</th>' for metric in metrics)
    return (
        '<h4>Minus cosine</h4><div class="scroll"><table><thead><tr><th scope="col">Score</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _plots(runs: Sequence[PairReport], plots: Sequence[Plot]) -> str:
    thin = ""
    if len(runs) > 1:
        bold = escape(run_names(runs)[0])
        thin = f'<p class="note">Bold: {bold}. Thin: the other runs. κ is that of the first.</p>'
    return figures(plots) + thin


def _areas(runs: Sequence[PairReport]) -> str:
    table = areas_table(runs)
    if table is None:
        return ""
    return f"<details><summary>{escape(table.title)}</summary>{rows_and_note(table)}</details>"


def _failures(run: PairReport) -> str:
    if not run.failures:
        return ""
    lines = "".join(f"<li>{escape(key)}: {escape(reason)}</li>" for key, reason in run.failures[:_LISTED])
    more = f"<li>… and {len(run.failures) - _LISTED} more in report.json</li>" * (len(run.failures) > _LISTED)
    count = len(run.failures)
    return (
        f"<details><summary>{count} image{'s' * (count > 1)} could not be embedded (failures to acquire, "
        f"never scored)</summary><ul>{lines}{more}</ul></details>"
    )
