"""What page and terminal have in common: results grouped by pair list and condition, and numbers as text."""

from collections.abc import Sequence

from spherecf.evaluation._bootstrap import Interval
from spherecf.evaluation._result import Measure, PairReport, ScoreResult

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
    return (
        f"{c['pairs']:,} pairs ({c['mated']:,} mated, {c['non_mated']:,} non-mated), "
        f"{c['images']:,} images{people}; {failed}{pairs}"
    )


def unresolved_text(reports: Sequence[PairReport]) -> list[str]:
    """Why some numbers are missing, each reason once."""
    reasons = [e.unresolved for r in reports for s in r.scores.values() for e in s.tmr if e.unresolved]
    return list(dict.fromkeys(reasons))
