"""Tables of results, numbers as text, and tables for the terminal."""

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
    """A number as text, with its interval.

    Args:
        value: e.g. "0.9912".
        interval: e.g. "[0.985, 0.996]"; page and terminal show it below the value.
        mark: "better", "worse" or "missing", shown as a colour.
        colour: of the dot before the value, that of its line in the plots.
    """

    value: str
    interval: str = ""
    mark: str = ""
    colour: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".rstrip()


@dataclass(frozen=True)
class Table:
    """A summary table.

    Args:
        title: above it.
        header: names of the columns.
        rows: of as many entries as the header; numbers as text, or as a `Cell`.
        note: a sentence below it, how to read it.
        signatures: one per row, where rows are results: everything their numbers depend on.
        groups: the place of a group's first row -> name of the group, and its counts.

    Raises:
        InputError: a row is longer or shorter than the header, or signatures are fewer or more than rows.
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
        for place, row in enumerate(self.rows):
            if len(row) != len(self.header):
                raise InputError(
                    f"table {self.title!r}: row {place} has {len(row)} entries, the header {len(self.header)}"
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
        """Each signature once, after the numbers of its rows."""
        rows: dict[str, list[str]] = {}
        for number, signature in enumerate(self.signatures, 1):
            rows.setdefault(signature, []).append(str(number))
        return [(", ".join(numbers), signature) for signature, numbers in rows.items()]


Grouped = dict[str, dict[str, list[PairReport]]]

LOWER_IS_BETTER = frozenset({"eer"})


def grouped(reports: Sequence[PairReport]) -> Grouped:
    """Pair list -> condition -> its runs, all in the order given."""
    found: Grouped = {}
    for report in reports:
        found.setdefault(report.name, {}).setdefault(report.condition, []).append(report)
    return found


def run_names(runs: Sequence[PairReport]) -> list[str]:
    """The runs' labels; unlabelled ones among several are numbered, a single one needs no name."""
    return [run.label or (f"run {i}" if len(runs) > 1 else "") for i, run in enumerate(runs, 1)]


def metric_names(reports: Sequence[PairReport]) -> list[str]:
    """Columns of a table: accuracy, TMR at every target of any report, EER, AUC."""
    targets = {entry.target for report in reports for score in report.scores.values() for entry in score.tmr}
    return ["accuracy", *(f"tmr@{target:g}" for target in sorted(targets, reverse=True)), "eer", "auc"]


def heading(metric: str) -> str:
    """A metric as the header of a column, with the name that others use for it.

    >>> heading("tmr@0.001"), heading("eer")
    ('TMR (TAR) at FMR (FAR) ≤ 0.001', 'EER')
    """
    if metric.startswith("tmr@"):
        return f"TMR (TAR) at FMR (FAR) ≤ {metric.removeprefix('tmr@')}"
    return metric.upper() if metric in ("eer", "auc") else "Accuracy"


def score_cell(result: ScoreResult, metric: str) -> Cell:
    """A metric of a score; an unresolved target says so instead of giving a number."""
    measure = result.measure(metric)
    if measure is None:
        asked = any(metric == f"tmr@{entry.target:g}" for entry in result.tmr)
        return Cell("unresolved" if asked else "–", mark="missing")
    spread = f" ± {result.tenfold.std:.4f}" if metric == "accuracy" else ""
    return Cell(f"{measure.value:.4f}{spread}", interval_text(measure.interval))


def interval_text(interval: Interval | None, signed: bool = False) -> str:
    """``[low, high]``, empty where there is none.

    >>> interval_text(Interval(0.9, 0.95, 0.0)), interval_text(Interval(-0.01, 0.02, 0.3), signed=True)
    ('[0.900, 0.950]', '[-0.010, +0.020]')
    """
    if interval is None or interval.low != interval.low:  # NaN: undefined in every draw
        return ""
    form = "+.3f" if signed else ".3f"
    return f"[{interval.low:{form}}, {interval.high:{form}}]"


def verdict(metric: str, difference: Measure) -> str:
    """ "better" or "worse" where the whole interval is on one side of zero, otherwise empty."""
    if difference.interval is None or abs(difference.value) < 5e-5:  # shown as zero
        return ""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    ends = sorted((sign * difference.interval.low, sign * difference.interval.high))
    return "better" if ends[0] > 0 else "worse" if ends[1] < 0 else ""


def counts_text(report: PairReport) -> str:
    """The counts of pairs, images and people of a result, as text."""
    c = report.counts
    people = f" of {c['subjects']:,} people" if c["subjects"] else ""
    failed = f"{c['failed_images']:,} images could not be embedded" if c["failed_images"] else "none failed"
    pairs = f", {c['failed_pairs']:,} pairs left out" if c["failed_pairs"] else ""
    warning = next((r.tenfold.warning for r in report.scores.values() if r.tenfold.one_sided), "")
    one_sided = f"; {warning}" if warning else ""
    return (
        f"{c['pairs']:,} pairs ({c['mated']:,} mated, {c['non_mated']:,} non-mated), "
        f"{c['images']:,} images{people}; {failed}{pairs}{one_sided}"
    )


def unresolved_text(reports: Sequence[PairReport]) -> list[str]:
    """Why some numbers are missing, each reason once."""
    reasons = [e.unresolved for r in reports for s in r.scores.values() for e in s.tmr if e.unresolved]
    return list(dict.fromkeys(reasons))


def areas_table(runs: Sequence[PairReport]) -> Table | None:
    """Areas under EDC: a row per score and start, a column per confidence; None without EDC."""
    confidences = list(dict.fromkeys(item.confidence for run in runs for item in run.edc))
    rows, reasons = [], []
    for run, label in zip(runs, run_names(runs)):
        found = {(item.score, item.start, item.confidence): item.edc for item in run.edc}
        for score, start in dict.fromkeys((item.score, item.start) for item in run.edc):
            ones = [found.get((score, start, confidence)) for confidence in confidences]
            first = next(one for one in ones if one is not None)
            named = f"{score}, {label}" if label else score
            where = start.replace("<=", " ≤ ").upper()
            begin = "unresolved" if first.start is None else f"{first.start:.4f}"
            areas = [one.pauc_normalised.get("0.2") if one else None for one in ones]
            rows.append([named, where, begin, *("–" if area is None else f"{area:.3f}" for area in areas)])
            if first.unresolved:
                reasons.append(f"{where}: {first.unresolved}.")
    if not rows:
        return None
    return Table(
        "Areas under error versus discard, up to 20 % discarded (1 is uninformative, smaller is better)",
        ["Score", "Threshold at", "FNMR at the start", *confidences],
        rows,
        " ".join(dict.fromkeys(reasons)),
    )


def score_table(conditions: dict[str, list[PairReport]]) -> Table:
    """Every score of every condition and run: a group of rows for each run, with its counts."""
    metrics = metric_names([run for runs in conditions.values() for run in runs])
    rows: list[list[Cell]] = []
    signatures, groups = [], {}
    for condition, runs in conditions.items():
        for run, label in zip(runs, run_names(runs)):
            counts = f"{counts_text(run)}; intervals: {run.resampling}"
            groups[len(rows)] = (f"{condition}, {label}" if label else condition, counts)
            for score, result in run.scores.items():
                named = Cell(result.score, colour=score_colour(score, run))
                rows.append([named, *(score_cell(result, metric) for metric in metrics)])
                signatures.append(result.signature)
    return Table("", ["Score", *map(heading, metrics)], rows, signatures=signatures, groups=groups)


def difference_table(runs: Sequence[PairReport]) -> Table | None:
    """Each score minus the cosine; None where there is nothing to compare."""
    known = {name.split(":", 1)[1] for run in runs for name in run.differences}
    metrics = [metric for metric in metric_names(runs) if metric in known]
    rows = []
    for run, label in zip(runs, run_names(runs)):
        for score in run.scores:
            found = [run.differences.get(f"{score}-cosine:{metric}") for metric in metrics]
            if any(found):
                named = Cell(f"{score}, {label}" if label else score)
                rows.append([named, *map(difference_cell, found, metrics)])
    return Table("Minus cosine", ["Score", *map(heading, metrics)], rows) if rows else None


def difference_cell(difference: Measure | None, metric: str) -> Cell:
    """A difference with its sign, marked better or worse where its interval excludes zero."""
    if difference is None:
        return Cell("–", mark="missing")
    between = interval_text(difference.interval, signed=True)
    return Cell(f"{difference.value:+.4f}", between, verdict(metric, difference))


_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


def pair_rejection_tables(report: PairReport) -> list[Table]:
    """Two tables of a `PairReport`: a row per score and confidence.

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
    rows, signed = [], []
    for entry in report.rejection:
        at = dict(zip(entry.curve.fractions, entry.curve.tmr, strict=True))
        if all(value is None for value in entry.curve.tmr):
            continue  # the target is beyond the number of pairs
        cells = ["–" if at.get(share) is None else f"{at[share]:.4f}" for share in _SHARES]
        rows.append([entry.score, entry.confidence, f"{entry.curve.target:g}", *cells])
        signed.append(signatures[entry.score])
    header = ["score", "confidence", "FMR ≤", *(f"{100 * share:g} % rejected" for share in _SHARES)]
    rejected = Table(f"{report.name}: TMR after rejecting images", header, rows, signatures=signed)
    rows, signed = [], []
    for found in report.edc:
        if found.edc.pauc_normalised:
            areas = [f"{value:.3f}" for value in found.edc.pauc_normalised.values()]
            rows.append([found.score, found.confidence, found.start, f"{found.edc.start:.4f}", *areas])
            signed.append(signatures[found.score])
    limits = next((list(f.edc.pauc_normalised) for f in report.edc if f.edc.pauc_normalised), [])
    header = ["score", "confidence", "start", "FNMR", *(f"pAUC to {float(limit):.0%}" for limit in limits)]
    note = "Relative to a flat line: 1 is uninformative, smaller is better."
    discarded = Table(f"{report.name}: area under error versus discard", header, rows, note, signed)
    return [rejected, discarded]


_RATIO = "largest / smallest"


def group_table(report: GroupReport, title: str, signature: str = "") -> Table:
    """A block of rows per threshold, a row per group in it, the spread below them; all of one signature.

    Example:
        >>> from spherecf.evaluation import by_group
        >>> report = by_group([3, 1, 2, 0], [1, 0, 1, 0], list("AABB"), list("AABB"), 0.5)
        >>> [row[:2] for row in group_table(report, "toy").rows][:3]
        [['most accurate', 'A'], ['most accurate', 'B'], ['most accurate', 'largest / smallest']]
    """
    header = ["Threshold", "Group", "Mated", "Non-mated", "FMR", "TMR", "Accuracy", "With own threshold"]
    rows = []
    for group in report.groups:
        counts = [group.group, f"{group.mated:,}", f"{group.non_mated:,}"]
        own = "–" if group.own_accuracy is None else f"accuracy {group.own_accuracy:.4f}"
        rows.append(["most accurate", *counts, "–", "–", f"{group.accuracy:.4f}", own])
    rows.append(["most accurate", _RATIO, "", "", "", "", f"{_ratio(report.spread['error'])} (error)", ""])
    for entry in report.overall:
        if entry.tmr is not None:
            rows += _block(report, entry.target)
    note = "One threshold for all groups, set on all pairs."
    note += "".join(f" Unresolved: {entry.unresolved}." for entry in report.overall if entry.unresolved)
    if report.ungrouped:
        note += f" {report.ungrouped:,} pairs with an image of unknown group are left out."
    return Table(title, header, rows, note, [signature] * len(rows) if signature else ())


def _block(report: GroupReport, target: float) -> list[list[str]]:
    named, rows = f"FMR ≤ {target:g}", []
    for group in report.groups:
        here = next(one for one in group.at if one.target == target)
        own = next((one.tmr for one in group.own if one.target == target), None)
        fmr = "–" if here.fmr is None else f"{here.fmr:.3g}"
        tmr = "–" if here.tmr is None else f"{here.tmr:.4f}"
        counts = [group.group, f"{group.mated:,}", f"{group.non_mated:,}"]
        rows.append([named, *counts, fmr, tmr, "–", "–" if own is None else f"TMR {own:.4f}"])
    fnmr = f"{_ratio(report.spread[f'fnmr@{target:g}'])} (FNMR)"
    return [*rows, [named, _RATIO, "", "", _ratio(report.spread[f"fmr@{target:g}"]), fnmr, "", ""]]


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else "∞" if ratio == float("inf") else f"{ratio:.2f}"


_INTERVAL = re.compile(r" ?\[([+-]?\d\.\d+), ([+-]?\d\.\d+)\]")


def terminal_table(reports: Sequence[PairReport]) -> Group:
    """One table per pair list, condition and run, a row per score; print it with any rich console.

    Each value has its interval below it; the last column is the accuracy minus that of the cosine.

    Example:
        >>> import numpy as np
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.data import PairList
        >>> from spherecf.evaluation import PairOptions, evaluate_pairs
        >>> e = Embeddings(np.eye(8, 9), np.full(8, 5.0), list("abcdefgh"))
        >>> mated, fold = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
        >>> pairs = PairList("toy", list("abcd"), list("efgh"), mated, fold)
        >>> report = evaluate_pairs(e, e, pairs, PairOptions(draws=0))
        >>> table = terminal_table([report])  # print it by rich.console.Console().print(table)
    """
    parts: list[RichTable | Text] = []
    for name, conditions in grouped(reports).items():
        members = [run for runs in conditions.values() for run in runs]
        for condition, runs in conditions.items():
            for run, label in zip(runs, run_names(runs)):
                parts.append(
                    rich_table(_narrow_table(run, ", ".join(filter(None, [f"{name}: {condition}", label]))))
                )
                parts.append(Text(f"{counts_text(run)}; intervals: {run.resampling}", "dim"))
        parts += [Text(f"unresolved: {reason}", "yellow") for reason in unresolved_text(members)]
        absent = dict.fromkeys(name for run in members for name in run.absent_confidences)
        if absent:
            parts.append(Text(f"confidences that these embeddings do not have: {', '.join(absent)}", "dim"))
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
        shown.add_row(*(Text(_INTERVAL.sub(_below, str(cell))) for cell in row))
    return shown


def _below(interval: re.Match[str]) -> str:
    """An interval below its value, in few characters; it may break between its ends."""
    return "\n" + " ".join(end.replace("0.", ".").replace("1.000", "1") for end in interval.groups())


def _narrow_table(run: PairReport, title: str) -> Table:
    """The scores of one run for eighty columns: no AUC, short headings, and what each gains on the cosine."""
    metrics = [metric for metric in metric_names([run]) if metric != "auc"]
    header = [f"TMR @\n≤{m.removeprefix('tmr@')}" if m.startswith("tmr@") else m for m in metrics]
    rows = []
    for score, result in run.scores.items():
        cells = [score_cell(result, metric) for metric in metrics]
        shown = [
            Cell("–" if cell.mark else cell.value.split(" ")[0], cell.interval, cell.mark) for cell in cells
        ]
        gain = run.differences.get(f"{score}-cosine:accuracy")
        rows.append([result.score, *shown, difference_cell(gain, "accuracy") if gain else ""])
    return Table(title, ["score", *header, "accuracy\n- cosine"], rows)
