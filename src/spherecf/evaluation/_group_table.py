"""Error rates by group as one table."""

from spherecf.evaluation._groups import GroupReport
from spherecf.evaluation._parts import Table

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
