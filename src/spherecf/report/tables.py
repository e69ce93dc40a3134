"""Tables of results for the report and for the terminal, and numbers formatted as text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from spherecf.errors import InputError
from spherecf.evaluation import GroupReport, Interval, Measure, PairReport, ScoreResult
from spherecf.report.figures import score_colour


@dataclass(frozen=True)
class Cell:
    """A table cell: a number formatted as text, with its interval.

    Args:
        value: e.g. "0.9912".
        interval: e.g. "[0.985, 0.996]"; page and terminal show it below the value.
        mark: "better", "worse" or "missing", shown as a colour.
        colour: colour of the dot before the value, the same as that of the score's line in the plots.
    """

    value: str
    interval: str = ""
    mark: str = ""
    colour: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".rstrip()


@dataclass(frozen=True)
class Table:
    """A table of results.

    Args:
        title: shown above the table.
        header: column names.
        rows: rows with one entry per column; numbers as text or as a `Cell`.
        note: sentence below the table that explains how to read it.
        signatures: one per row, if the rows are results: everything their numbers depend on.
        groups: index of the first row of a group -> name of the group and its counts.

    Raises:
        InputError: a row has more or fewer entries than the header, or the numbers of signatures and rows
            differ.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    note: str = ""
    signatures: Sequence[str] = ()
    groups: Mapping[int, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.signatures and len(self.signatures) != len(self.rows):
            raise InputError(
                f"table {self.title!r}: {len(self.rows)} rows, {len(self.signatures)} signatures"
            )
        for index, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise InputError(
                    f"table {self.title!r}: row {index} has {len(row)} entries, the header {len(self.header)}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists; cells as text."""
        return {
            "title": self.title,
            "header": list(self.header),
            "rows": [list(map(str, row)) for row in self.rows],
            "note": self.note,
            "signatures": list(self.signatures),
        }

    def rows_by_signature(self) -> list[tuple[str, str]]:
        """(row numbers, signature) for each distinct signature; rows are counted from 1."""
        rows: dict[str, list[str]] = {}
        for number, signature in enumerate(self.signatures, 1):
            rows.setdefault(signature, []).append(str(number))
        return [(", ".join(numbers), signature) for signature, numbers in rows.items()]


Grouped = dict[str, dict[str, list[PairReport]]]

LOWER_IS_BETTER = frozenset({"eer"})


def grouped(reports: Sequence[PairReport]) -> Grouped:
    """Pair list -> condition -> its runs, all in the order given."""
    groups: Grouped = {}
    for report in reports:
        groups.setdefault(report.name, {}).setdefault(report.condition, []).append(report)
    return groups


def run_names(runs: Sequence[PairReport]) -> list[str]:
    """Labels of the runs. A run without a label gets a number, or no name if it is the only one."""
    return [run.label or (f"run {i}" if len(runs) > 1 else "") for i, run in enumerate(runs, 1)]


def metric_names(reports: Sequence[PairReport]) -> list[str]:
    """Names of the table columns: accuracy, TMR at every FMR target of any report, EER and AUC."""
    targets = {entry.target for report in reports for score in report.scores.values() for entry in score.tmr}
    return ["accuracy", *(f"tmr@{target:g}" for target in sorted(targets, reverse=True)), "eer", "auc"]


def heading(metric: str) -> str:
    """Column heading of a metric, with its alternative name.

    >>> heading("tmr@0.001"), heading("eer")
    ('TMR (TAR) at FMR (FAR) ≤ 0.001', 'EER')
    """
    if metric.startswith("tmr@"):
        return f"TMR (TAR) at FMR (FAR) ≤ {metric.removeprefix('tmr@')}"
    return metric.upper() if metric in ("eer", "auc") else "Accuracy"


def score_cell(result: ScoreResult, metric: str) -> Cell:
    """A metric of a score: its value, "unresolved", or a dash if it was not measured."""
    measure = result.measure(metric)
    if measure is None:
        requested = any(metric == f"tmr@{entry.target:g}" for entry in result.tmr)
        return Cell("unresolved" if requested else "–", mark="missing")
    deviation = f" ± {result.tenfold.std:.4f}" if metric == "accuracy" and result.tenfold else ""
    return Cell(f"{measure.value:.4f}{deviation}", interval_text(measure.interval))


def interval_text(interval: Interval | None, signed: bool = False) -> str:
    """``[low, high]``, or an empty string if there is no interval.

    >>> interval_text(Interval(0.9, 0.95, 0.0)), interval_text(Interval(-0.01, 0.02, 0.3), signed=True)
    ('[0.900, 0.950]', '[-0.010, +0.020]')
    """
    if interval is None or interval.low != interval.low:  # NaN: undefined in every draw
        return ""
    spec = "+.3f" if signed else ".3f"
    return f"[{interval.low:{spec}}, {interval.high:{spec}}]"


def verdict(metric: str, difference: Measure) -> str:
    """ "better" or "worse" if the interval excludes zero, else an empty string."""
    if difference.interval is None or abs(difference.value) < 5e-5:  # shown as zero
        return ""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    low, high = sorted((sign * difference.interval.low, sign * difference.interval.high))
    return "better" if low > 0 else "worse" if high < 0 else ""


def counts_text(report: PairReport) -> str:
    """Numbers of pairs, images, people and failures of a report."""
    c = report.counts
    people = f" of {c['subjects']:,} people" if c["subjects"] else ""
    failed = f"{c['failed_images']:,} images could not be embedded" if c["failed_images"] else "none failed"
    pairs = f", {c['failed_pairs']:,} pairs left out" if c["failed_pairs"] else ""
    folds = next(iter(report.scores.values())).tenfold  # the same for all scores
    warnings = ["no accuracy, because all pairs are in one fold"] if folds is None else [folds.warning]
    if reverse := [name for name, result in report.scores.items() if result.auc.value < 0.5]:
        warnings.append(
            f"mated pairs have lower scores ({', '.join(reverse)}) than non-mated ones: are the labels "
            "swapped, or the scores distances?"
        )
    if wrong := c["contradictions"]:
        warnings.append(f"{wrong:,} pairs have a label that contradicts the people of their images")
    if again := c["repeated_pairs"]:
        warnings.append(f"{again:,} pairs repeat an earlier one, and count again")
    text = (
        f"{c['pairs']:,} pairs ({c['mated']:,} mated, {c['non_mated']:,} non-mated), "
        f"{c['images']:,} images{people}; {failed}{pairs}"
    )
    return "; ".join(filter(None, [text, *warnings]))


def unresolved_text(reports: Sequence[PairReport]) -> list[str]:
    """The reasons why numbers are missing, without repetition."""
    reasons = [e.unresolved for r in reports for s in r.scores.values() for e in s.tmr if e.unresolved]
    return list(dict.fromkeys(reasons))


def areas_table(runs: Sequence[PairReport]) -> Table | None:
    """Areas under EDC: a row per score and starting point, a column per confidence; None without EDC."""
    confidences = list(dict.fromkeys(item.confidence for run in runs for item in run.edc))
    rows, reasons = [], []
    for run, label in zip(runs, run_names(runs)):
        curves = {(item.score, item.start, item.confidence): item.edc for item in run.edc}
        for score, start in dict.fromkeys((item.score, item.start) for item in run.edc):
            row_curves = [curves.get((score, start, confidence)) for confidence in confidences]
            first = next(curve for curve in row_curves if curve is not None)
            name = f"{score}, {label}" if label else score
            operating_point = start.replace("<=", " ≤ ").upper()
            start_fnmr = "unresolved" if first.start is None else f"{first.start:.4f}"
            areas = [curve.pauc_normalised.get("0.2") if curve else None for curve in row_curves]
            cells = ["–" if area is None else f"{area:.3f}" for area in areas]
            rows.append([name, operating_point, start_fnmr, *cells])
            if first.unresolved:
                reasons.append(f"{operating_point}: {first.unresolved}.")
    if not rows:
        return None
    return Table(
        "Areas under error versus discard, up to 20 % discarded (1 is uninformative, smaller is better)",
        ["Score", "Threshold at", "FNMR before discarding", *confidences],
        rows,
        " ".join(dict.fromkeys(reasons)),
    )


def score_table(conditions: dict[str, list[PairReport]]) -> Table:
    """All scores of all conditions and runs: a group of rows per run, with its counts."""
    metrics = metric_names([run for runs in conditions.values() for run in runs])
    rows: list[list[Cell]] = []
    signatures, groups = [], {}
    for condition, runs in conditions.items():
        for run, label in zip(runs, run_names(runs)):
            counts = f"{counts_text(run)}; intervals: {run.resampling}"
            groups[len(rows)] = (f"{condition}, {label}" if label else condition, counts)
            for score, result in run.scores.items():
                name_cell = Cell(result.score, colour=score_colour(score, run))
                rows.append([name_cell, *(score_cell(result, metric) for metric in metrics)])
                signatures.append(result.signature)
    return Table("", ["Score", *map(heading, metrics)], rows, signatures=signatures, groups=groups)


def difference_table(runs: Sequence[PairReport]) -> Table | None:
    """Each score minus the cosine; None if there is nothing to compare."""
    compared = {name.split(":", 1)[1] for run in runs for name in run.differences}
    metrics = [metric for metric in metric_names(runs) if metric in compared]
    rows = []
    for run, label in zip(runs, run_names(runs)):
        for score in run.scores:
            differences = [run.differences.get(f"{score}-cosine:{metric}") for metric in metrics]
            if any(differences):
                name_cell = Cell(f"{score}, {label}" if label else score)
                rows.append([name_cell, *map(difference_cell, differences, metrics)])
    return Table("Minus cosine", ["Score", *map(heading, metrics)], rows) if rows else None


def difference_cell(difference: Measure | None, metric: str) -> Cell:
    """A signed difference, marked better or worse if its interval excludes zero."""
    if difference is None:
        return Cell("–", mark="missing")
    interval = interval_text(difference.interval, signed=True)
    return Cell(f"{difference.value:+.4f}", interval, verdict(metric, difference))


_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


def pair_rejection_tables(report: PairReport) -> list[Table]:
    """Two tables with a row per score and confidence: TMR after rejecting images, and areas under EDC.

    Args:
        report: from `evaluate_pairs`.

    Example:
        >>> import numpy as np
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.data import PairList
        >>> from spherecf.evaluation import PairOptions, evaluate_pairs
        >>> e = Embeddings(np.eye(8, 9), np.full(8, 5.0), list("abcdefgh"))
        >>> mated, fold = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
        >>> pairs = PairList("toy", list("abcd"), list("efgh"), mated, fold)
        >>> report = evaluate_pairs(e, e, pairs, PairOptions(draws=0))
        >>> [table.title for table in pair_rejection_tables(report)]
        ['toy: TMR after rejecting images', 'toy: area under error versus discard']
    """
    signatures = {score: result.signature for score, result in report.scores.items()}
    rows, row_signatures = [], []
    for entry in report.rejection:
        tmr_by_share = dict(zip(entry.curve.fractions, entry.curve.tmr, strict=True))
        if all(tmr is None for tmr in entry.curve.tmr):
            continue  # the target is unresolved on the whole curve
        cells = ["–" if (tmr := tmr_by_share.get(share)) is None else f"{tmr:.4f}" for share in _SHARES]
        rows.append([entry.score, entry.confidence, f"{entry.curve.target:g}", *cells])
        row_signatures.append(signatures[entry.score])
    header = ["score", "confidence", "FMR ≤", *(f"{100 * share:g} % rejected" for share in _SHARES)]
    title = f"{report.name}: TMR after rejecting images"
    rejection_table = Table(title, header, rows, signatures=row_signatures)
    rows, row_signatures = [], []
    for item in report.edc:
        if item.edc.pauc_normalised:
            areas = [f"{area:.3f}" for area in item.edc.pauc_normalised.values()]
            rows.append([item.score, item.confidence, item.start, f"{item.edc.start:.4f}", *areas])
            row_signatures.append(signatures[item.score])
    limits = next((list(i.edc.pauc_normalised) for i in report.edc if i.edc.pauc_normalised), [])
    header = ["score", "confidence", "start", "FNMR", *(f"pAUC to {float(limit):.0%}" for limit in limits)]
    title = f"{report.name}: area under error versus discard"
    note = "Relative to an uninformative confidence: 1 is uninformative, smaller is better."
    return [rejection_table, Table(title, header, rows, note, row_signatures)]


_RATIO = "largest / smallest"


def group_table(report: GroupReport, title: str, signature: str = "") -> Table:
    """Rates by group: for each threshold a row per group, followed by the ratio of largest to smallest rate.

    Args:
        report: from `by_group` or `pair_groups`.
        title: title of the table.
        signature: signature of all rows, if they have one.

    Example:
        >>> from spherecf.evaluation import by_group
        >>> report = by_group([3, 1, 2, 0], [1, 0, 1, 0], list("AABB"), list("AABB"), 0.5)
        >>> [row[:2] for row in group_table(report, "toy").rows][:3]
        [['most accurate', 'A'], ['most accurate', 'B'], ['most accurate', 'largest / smallest']]
    """
    header = ["Threshold", "Group", "Mated", "Non-mated", "FMR", "TMR", "Accuracy", "At own threshold"]
    rows = []
    for group in report.groups:
        counts = [group.group, f"{group.mated:,}", f"{group.non_mated:,}"]
        own = "–" if group.own_accuracy is None else f"accuracy {group.own_accuracy:.4f}"
        rows.append(["most accurate", *counts, "–", "–", f"{group.accuracy:.4f}", own])
    error_ratio = f"{_ratio_text(report.spread['error'])} (error)"
    rows.append(["most accurate", _RATIO, "", "", "", "", error_ratio, ""])
    for entry in report.overall:
        if entry.tmr is not None:
            rows += _rows_at_target(report, entry.target)
    note = "One threshold for all groups, set on all pairs together."
    note += "".join(f" Unresolved: {entry.unresolved}." for entry in report.overall if entry.unresolved)
    if report.ungrouped:
        note += f" {report.ungrouped:,} pairs with an image of unknown group are left out."
    return Table(title, header, rows, note, [signature] * len(rows) if signature else ())


def _rows_at_target(report: GroupReport, target: float) -> list[list[str]]:
    threshold_name, rows = f"FMR ≤ {target:g}", []
    for group in report.groups:
        shared = next(entry for entry in group.at if entry.target == target)
        own_tmr = next((entry.tmr for entry in group.own if entry.target == target), None)
        fmr = "–" if shared.fmr is None else f"{shared.fmr:.3g}"
        tmr = "–" if shared.tmr is None else f"{shared.tmr:.4f}"
        counts = [group.group, f"{group.mated:,}", f"{group.non_mated:,}"]
        own = "–" if own_tmr is None else f"TMR {own_tmr:.4f}"
        rows.append([threshold_name, *counts, fmr, tmr, "–", own])
    fmr_ratio = _ratio_text(report.spread[f"fmr@{target:g}"])
    fnmr_ratio = f"{_ratio_text(report.spread[f'fnmr@{target:g}'])} (FNMR)"
    return [*rows, [threshold_name, _RATIO, "", "", fmr_ratio, fnmr_ratio, "", ""]]


def _ratio_text(ratio: float | None) -> str:
    return "–" if ratio is None else "∞" if ratio == float("inf") else f"{ratio:.2f}"


_INTERVAL = re.compile(r" ?\[([+-]?\d\.\d+), ([+-]?\d\.\d+)\]")


def terminal_table(reports: Sequence[PairReport]) -> Group:
    """One table per pair list, condition and run with a row per score, to print on a rich console.

    Each value has its interval below it; the last column is the accuracy minus that of the cosine.

    Args:
        reports: from `evaluate_pairs`.

    Example:
        >>> import numpy as np
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.data import PairList
        >>> from spherecf.evaluation import PairOptions, evaluate_pairs
        >>> e = Embeddings(np.eye(8, 9), np.full(8, 5.0), list("abcdefgh"))
        >>> mated, fold = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
        >>> pairs = PairList("toy", list("abcd"), list("efgh"), mated, fold)
        >>> report = evaluate_pairs(e, e, pairs, PairOptions(draws=0))
        >>> table = terminal_table([report])  # rich.console.Console().print(table) prints it
    """
    parts: list[RichTable | Text] = []
    for name, conditions in grouped(reports).items():
        all_runs = [run for runs in conditions.values() for run in runs]
        for condition, runs in conditions.items():
            for run, label in zip(runs, run_names(runs)):
                title = ", ".join(filter(None, [f"{name}: {condition}", label]))
                parts.append(rich_table(_narrow_table(run, title)))
                parts.append(Text(f"{counts_text(run)}; intervals: {run.resampling}", "dim"))
        parts += [Text(f"unresolved: {reason}", "yellow") for reason in unresolved_text(all_runs)]
        absent = dict.fromkeys(name for run in all_runs for name in run.absent_confidences)
        if absent:
            parts.append(Text(f"confidences missing from these embeddings: {', '.join(absent)}", "dim"))
    return Group(*parts)


def rich_table(table: Table) -> RichTable:
    """Convert a `Table` to a rich table for the terminal, without signatures.

    Example:
        >>> rich_table(Table("Gains", ["score", "gain"], [["mls", "+0.01"]])).row_count
        1
    """
    converted = RichTable(
        title=Text(table.title, "bold") if table.title else None, title_justify="left", box=SIMPLE_HEAD,
        show_edge=False, caption=Text(table.note, "dim") if table.note else None, caption_justify="left",
        padding=(0, 1, 0, 0),
    )  # fmt: skip
    for column, name in enumerate(table.header):
        converted.add_column(Text(name), justify="right" if column else "left", overflow="fold")
    for row in table.rows:
        converted.add_row(*(Text(_INTERVAL.sub(_interval_below, str(cell))) for cell in row))
    return converted


def _interval_below(interval: re.Match[str]) -> str:
    """A shortened interval on the line below its value; it may wrap between its two ends."""
    return "\n" + " ".join(end.replace("0.", ".").replace("1.000", "1") for end in interval.groups())


def _narrow_table(run: PairReport, title: str) -> Table:
    """Scores of one run in eighty columns: no AUC, short headings, and each accuracy minus the cosine's."""
    metrics = [metric for metric in metric_names([run]) if metric != "auc"]
    header = [f"TMR @\n≤{m.removeprefix('tmr@')}" if m.startswith("tmr@") else m for m in metrics]
    rows = []
    for score, result in run.scores.items():
        cells = [score_cell(result, metric) for metric in metrics]
        short_cells = [
            Cell("–" if cell.mark else cell.value.split(" ")[0], cell.interval, cell.mark) for cell in cells
        ]
        gain = run.differences.get(f"{score}-cosine:accuracy")
        rows.append([result.score, *short_cells, difference_cell(gain, "accuracy") if gain else ""])
    return Table(title, ["score", *header, "accuracy\n- cosine"], rows)
