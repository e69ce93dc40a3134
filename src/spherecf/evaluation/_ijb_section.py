"""IJB 1:1 on the page and in the terminal."""

from spherecf.evaluation._group_table import group_table
from spherecf.evaluation._ijb import TemplateReport, TemplateResult
from spherecf.evaluation._line_plot import Series, det_lines
from spherecf.evaluation._parts import Section, Table
from spherecf.evaluation._result import Measure
from spherecf.evaluation._tables import difference_text, interval_text


def ijb_tables(report: TemplateReport) -> list[Table]:
    """The table of all rows, and where there are groups one of them for each row.

    Example:
        >>> [table.title for table in ijb_tables(TemplateReport("toy", {}, [], [], "none", [], {}))]
        ['toy, 1:1: TMR (TAR) at FMR (FAR) ≤ target']
    """
    groups = [
        group_table(result.groups, f"By group: {result.name}", result.signature)
        for result in report.results
        if result.groups
    ]
    return [_table(report), *groups]


def _table(report: TemplateReport) -> Table:
    """A row per way to pool and to score: TMR at every FMR with its interval, EER."""
    targets = [entry.target for entry in report.results[0].tmr] if report.results else []
    header = [
        "Pooling",
        "Mode",
        "Score",
        *(f"≤ {target:g}" for target in targets),
        "EER",
    ]
    rows = [
        [result.pooling, result.mode, result.score, *_rates(result), f"{result.eer:.4f}"]
        for result in report.results
    ]
    reasons = [e.unresolved for result in report.results for e in result.tmr if e.unresolved]
    note = " ".join(f"Unresolved (–): {why}." for why in dict.fromkeys(reasons))
    signatures = [result.signature for result in report.results]
    return Table(f"{report.name}, 1:1: TMR (TAR) at FMR (FAR) ≤ target", header, rows, note, signatures)


def ijb_section(report: TemplateReport) -> Section:
    """Table, differences to the first row, and DET; see ``docs/ijb.md`` for what the modes mean.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> counts = {"images": 3, "templates": 3, "media": 3, "people": 2, "pairs": 2, "mated": 1}
        >>> counts |= {"non_mated": 1, "failed_images": 1, "failed_templates": 0, "failed_pairs": 0}
        >>> counts |= {"repeated_pairs": 0}
        >>> det = {"fmr": [1.0, 0.0], "fnmr": [0.0, 0.5]}
        >>> row = TemplateResult("N0D0F1K0", "mean", "cosine", "", [], {}, 0.1, det)
        >>> ijb_section(TemplateReport("toy", counts, [], [], "none", [row], {})).title
        'toy 1:1'
    """
    low = 0.5 / max(2, report.counts["non_mated"])
    lines = [Series(result.name, result.det["fmr"], result.det["fnmr"]) for result in report.results]
    found = "; ".join(f"{result.name}: EER {result.eer:.4f}" for result in report.results)
    plot = det_lines(
        f"{report.name}-1-1-det", lines, caption="DET of template pairs; lower is better.", alt=found, low=low
    )
    tables = [*ijb_tables(report), *filter(None, [_differences(report)])]
    return Section(f"{report.name} 1:1", ijb_notes(report), tables, [plot])


def ijb_notes(report: TemplateReport) -> list[str]:
    """The counts behind the table, failures and what had to be left out, in words.

    Example:
        >>> counts = {"images": 3, "templates": 3, "media": 3, "people": 2, "pairs": 2, "mated": 1}
        >>> counts |= {"non_mated": 1, "failed_images": 1, "failed_templates": 0, "failed_pairs": 0}
        >>> counts |= {"repeated_pairs": 0}
        >>> ijb_notes(TemplateReport("toy", counts, [("a.jpg", "no face")], [], "none", [], {}))[1]
        '1 image could not be embedded (failures to acquire, never scored), first a.jpg: no face.'
    """
    c = report.counts
    notes = [
        f"{c['pairs']:,} pairs ({c['mated']:,} mated, {c['non_mated']:,} non-mated) of {c['templates']:,} "
        f"templates of {c['media']:,} media and {c['images']:,} images; intervals: {report.resampling}."
    ]
    notes += failure_notes(report.failures, report.failed_templates)
    if c["failed_pairs"]:
        notes.append(f"{c['failed_pairs']:,} pairs left out: one of their templates has no image left.")
    if c["repeated_pairs"]:
        notes.append(f"{c['repeated_pairs']:,} pairs stand in the list more than once and count as often.")
    return notes + report.notes


def failure_notes(failures: list[tuple[str, str]], templates: list[int]) -> list[str]:
    """What could not be embedded: how many, and the first of them."""
    notes = []
    if images := len(failures):
        key, reason = failures[0]
        notes.append(
            f"{images:,} image{'s' * (images > 1)} could not be embedded (failures to acquire, never "
            f"scored), first {key}: {reason}."
        )
    if templates:
        named = ", ".join(map(str, templates[:5])) + (", ..." if len(templates) > 5 else "")
        notes.append(f"{len(templates):,} template{'s' * (len(templates) > 1)} without any image: {named}.")
    return notes


def _rates(result: TemplateResult) -> list[str]:
    cells = []
    for entry in result.tmr:
        between = interval_text(result.tmr_intervals.get(f"{entry.target:g}"))
        cells.append("–" if entry.tmr is None else f"{entry.tmr:.4f} {between}".rstrip())
    return cells


def _differences(report: TemplateReport) -> Table | None:
    if not report.differences:
        return None
    metrics = list(dict.fromkeys(name.rsplit(":", 1)[1] for name in report.differences))
    rows = []
    for result in report.results[1:]:
        found = [report.differences.get(f"{result.name}:{metric}") for metric in metrics]
        rows.append([result.pooling, result.score, *map(_difference, found)])
    header = ["Pooling", "Score", *(f"≤ {metric.removeprefix('tmr@')}" for metric in metrics)]
    return Table(f"TMR minus that of {report.results[0].name}", header, rows, "On the same draws.")


def _difference(found: Measure | None) -> str:
    return "–" if found is None else " ".join(filter(None, difference_text(found)))
