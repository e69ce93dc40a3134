"""Tables of results, numbers as text, and tables for the terminal."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from spherecf.errors import InputError
from spherecf.evaluation import GroupReport, Interval, Measure, PairReport, ScoreResult


@dataclass(frozen=True)
class Table:
    """A summary table.

    Args:
        title: above it.
        header: names of the columns.
        rows: of as many entries as the header; numbers as text.
        note: a sentence below it, how to read it.
        signatures: one per row, where rows are results: everything their numbers depend on.

    Raises:
        InputError: a row is longer or shorter than the header, or signatures are fewer or more than rows.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    signatures: Sequence[str] = ()

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
        """Plain dicts and lists."""
        return asdict(self)


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


def value_text(result: ScoreResult, metric: str) -> tuple[str, str]:
    """(value, interval) as text; an unresolved target says so instead of giving a number."""
    measure = result.measure(metric)
    if measure is None:
        asked = any(metric == f"tmr@{entry.target:g}" for entry in result.tmr)
        return ("unresolved", "too few pairs") if asked else ("–", "")
    spread = f" ± {result.tenfold.std:.4f}" if metric == "accuracy" else ""
    return f"{measure.value:.4f}{spread}", interval_text(measure.interval)


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
    """ "better" or "worse" where the interval leaves no room for the opposite, else empty."""
    if difference.interval is None or abs(difference.value) < 5e-5:  # shown as zero
        return ""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    ends = sorted((sign * difference.interval.low, sign * difference.interval.high))
    return "better" if ends[0] > 0 else "worse" if ends[1] < 0 else ""


def counts_text(report: PairReport) -> str:
    """The counts behind a result, in words."""
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
        "Areas under error versus discard, up to 20 % discarded (1 tells nothing, smaller is better)",
        ["Score", "Threshold at", "FNMR at the start", *confidences],
        rows,
        " ".join(dict.fromkeys(reasons)),
    )


def score_table(conditions: dict[str, list[PairReport]]) -> Table:
    """Every score of every condition and run, with its signature; a value and its interval share a cell."""
    members = [run for runs in conditions.values() for run in runs]
    metrics = metric_names(members)
    rows, signatures = [], []
    for condition, runs in conditions.items():
        for run, label in zip(runs, run_names(runs)):
            for result in run.scores.values():
                found = [value_text(result, metric) for metric in metrics]
                cells = [f"{value} {between}" if between[:1] == "[" else value for value, between in found]
                rows.append([f"{condition}, {label}" if label else condition, result.score, *cells])
                signatures.append(result.signature)
    return Table("", ["Left/right", "Score", *map(heading, metrics)], rows, signatures=signatures)


def difference_table(runs: Sequence[PairReport]) -> Table | None:
    """Each score minus the cosine; None where there is nothing to compare."""
    metrics = compared_metrics(runs)
    rows = []
    for run, label in zip(runs, run_names(runs)):
        for score in run.scores:
            found = [run.differences.get(f"{score}-cosine:{metric}") for metric in metrics]
            if any(found):
                texts = [("–",) if one is None else difference_text(one) for one in found]
                cells = [" ".join(filter(None, text)) for text in texts]
                rows.append([f"{score}, {label}" if label else score, *cells])
    return Table("Minus cosine", ["Score", *map(heading, metrics)], rows) if rows else None


def compared_metrics(runs: Sequence[PairReport]) -> list[str]:
    """Those of which some run has a difference to the cosine."""
    known = {name.split(":", 1)[1] for run in runs for name in run.differences}
    return [metric for metric in metric_names(runs) if metric in known]


def difference_text(difference: Measure) -> tuple[str, str]:
    """(value, interval) as text, both with their sign."""
    return f"{difference.value:+.4f}", interval_text(difference.interval, signed=True)


_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


def pair_rejection_tables(report: PairReport) -> list[Table]:
    """Two tables of a `PairReport`: a row per score and confidence.

    Args:
        report: from `evaluate_pairs`.

    Example:
        >>> import numpy as np
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.evaluation import evaluate_pairs
        >>> e = Embeddings(np.eye(8, 9), np.full(8, 5.0), list("abcdefgh"))
        >>> report = evaluate_pairs(
        ...     e, e, list("abcd"), list("efgh"), [1, 0, 1, 0], [0, 0, 1, 1], name="toy", draws=0
        ... )
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
    note = "Over a flat line: 1 tells nothing, smaller is better."
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
    header = ["Threshold", "Group", "Mated", "Non-mated", "FMR", "TMR", "Accuracy", "With its own threshold"]
    rows = []
    for group in report.groups:
        counts = [group.group, f"{group.mated:,}", f"{group.non_mated:,}"]
        own = "–" if group.own_accuracy is None else f"accuracy {group.own_accuracy:.4f}"
        rows.append(["most accurate", *counts, "–", "–", f"{group.accuracy:.4f}", own])
    rows.append(["most accurate", _RATIO, "", "", "", "", f"{_ratio(report.spread['error'])} (error)", ""])
    for entry in report.overall:
        if entry.tmr is not None:
            rows += _block(report, entry.target)
    note = "One threshold for everybody, set on all pairs."
    note += "".join(f" Unresolved: {entry.unresolved}." for entry in report.overall if entry.unresolved)
    if report.ungrouped:
        note += f" {report.ungrouped:,} pairs with a side of no known group take no part."
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
