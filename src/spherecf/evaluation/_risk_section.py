"""Risk-controlled recognition on the report's page: PRR tables and F1 against the rejected share."""

from collections.abc import Sequence

from spherecf.evaluation._line_plot import Series, line_plot
from spherecf.evaluation._parts import Plot, Section, Table
from spherecf.evaluation._risk_result import ConfidencePrr, OperatingPoint, RejectionReport
from spherecf.evaluation._tables import interval_text

_SAME_AS_KAPPA = "mean_resultant"


def rejection_section(report: RejectionReport) -> Section:
    """Tables and plots of one `evaluate_rejection`.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> kappas = {"posterior": 9.0, "mutual": 9.0}
        >>> nothing = RejectionReport("toy", {}, kappas, 0.5, 0.5, "none", [], [], [], [])
        >>> rejection_section(nothing).title
        'toy: rejection in open-set identification'
    """
    return Section(
        title=f"{report.name}: rejection in open-set identification",
        notes=rejection_notes(report),
        tables=rejection_tables(report),
        plots=[_plot(report, point) for point in report.points if _entries(report, point)],
    )


def rejection_tables(report: RejectionReport) -> list[Table]:
    """The operating points, then one table of PRR for each.

    Example:
        >>> kappas = {"posterior": 9.0, "mutual": 9.0}
        >>> nothing = RejectionReport("toy", {}, kappas, 0.5, 0.5, "none", [], [], [], [])
        >>> [table.title for table in rejection_tables(nothing)]
        ['toy: operating points, nothing rejected']
    """
    drawn = [point for point in report.points if _entries(report, point)]
    return [_operating_points(report), *(_prr(report, point) for point in drawn)]


def mean_prr_table(reports: Sequence[RejectionReport]) -> Table:
    """PRR of every confidence, the mean over galleries, a column per FPIR; blank where one is unresolved.

    Example:
        >>> mean_prr_table([]).rows
        []
    """
    fpirs = list(dict.fromkeys(point.fpir_target for report in reports for point in report.points))
    names = list(dict.fromkeys(entry.confidence for report in reports for entry in report.prr))
    rows = []
    for name in names:
        cells = []
        for fpir in fpirs:
            found = [report.at(name, fpir) for report in reports]
            values = [entry.prr.value for entry in found if entry is not None]
            cells.append(f"{sum(values) / len(values):.3f}" if len(values) == len(reports) else "")
        rows.append([name, *cells])
    over = ", ".join(report.name for report in reports)
    return Table(f"PRR, mean of {over}", ["confidence", *(f"FPIR ≤ {fpir:g}" for fpir in fpirs)], rows)


def _entries(report: RejectionReport, point: OperatingPoint) -> list[ConfidencePrr]:
    return [entry for entry in report.prr if entry.fpir_target == point.fpir_target]


def rejection_notes(report: RejectionReport) -> list[str]:
    """Counts, fits, failures and what is unresolved, in words.

    Example:
        >>> kappas = {"posterior": 9.0, "mutual": 9.0}
        >>> nothing = RejectionReport("toy", {}, kappas, 0.5, 0.5, "none", [], [], [], ["norm"])
        >>> rejection_notes(nothing)[-1]
        'These probes lack the confidences norm.'
    """
    c = report.counts
    notes = []
    if c:
        notes.append(
            f"{c['probes']:,} probes ({c['mated']:,} mated, {c['non_mated']:,} non-mated) of "
            f"{c['subjects']:,} people searched in a gallery of {c['gallery']:,}; gallery concentration, "
            f"calibrator and weights are fitted on {c['validation_probes']:,} probes of "
            f"{c['validation_subjects']:,} other people with a gallery of {c['validation_gallery']:,}."
        )
    notes.append(
        f"Gallery concentration {report.kappa_gallery['posterior']:.4g} at mean directions, "
        f"{report.kappa_gallery['mutual']:.4g} over the probes' distributions; prior of unknown "
        f"{report.beta:g}. PRR up to {100 * report.limit:g} % rejected; intervals: {report.resampling}."
    )
    notes += [f"FPIR {p.fpir_target:g}: {p.unresolved}" for p in report.points if p.unresolved]
    lost = c.get("failed_gallery", 0), c.get("failed_probes", 0)
    if any(lost):
        notes.append(
            f"{lost[0]:,} gallery templates have no embedded image; {lost[1]:,} probes were not searched, "
            "because they have none or their subject's gallery template has none."
        )
    if report.absent_confidences:
        notes.append(f"These probes lack the confidences {', '.join(report.absent_confidences)}.")
    return notes


def _operating_points(report: RejectionReport) -> Table:
    header = [
        "FPIR ≤", "FPIR", "threshold", "F1", "identified", "misidentified", "false rejects", "false accepts",
        "true rejects",
    ]  # fmt: skip
    rows = []
    for p in report.points:
        if p.threshold is None or p.fpir is None or p.f1 is None:
            rows.append([f"{p.fpir_target:g}", "unresolved", *[""] * (len(header) - 2)])
            continue
        counted = [f"{value:,}" for value in p.counts.values()]
        rows.append([f"{p.fpir_target:g}", f"{p.fpir:.4f}", f"{p.threshold:.4f}", f"{p.f1:.4f}", *counted])
    return Table(f"{report.name}: operating points, nothing rejected", header, rows)


def _prr(report: RejectionReport, point: OperatingPoint) -> Table:
    entries = _entries(report, point)
    rows = [
        [
            entry.confidence,
            f"{entry.prr.value:.3f}",
            interval_text(entry.prr.interval),
            f"{entry.minus_kappa.value:+.3f}",
            interval_text(entry.minus_kappa.interval, signed=True),
            f"{entry.f1[10]:.4f}",
        ]
        for entry in entries
    ]
    share = f"F1, {100 * report.shares[10]:g} % rejected"
    return Table(
        f"{report.name}: PRR at FPIR ≤ {point.fpir_target:g}",
        ["confidence", "PRR", "95 %", "minus kappa", "95 %", share],
        rows,
        note="1: errors go first. 0: the confidence tells nothing. Below 0: it rejects what is right.",
        signatures=[entry.signature for entry in entries],
    )


def _plot(report: RejectionReport, point: OperatingPoint) -> Plot:
    entries = [entry for entry in _entries(report, point) if entry.confidence != _SAME_AS_KAPPA]
    best = max((e for e in entries if e.confidence != "oracle"), key=lambda e: e.prr.value)
    at = f"FPIR ≤ {point.fpir_target:g}"
    return line_plot(
        f"prr-{report.name}-{point.fpir_target:g}",
        [Series(entry.confidence, report.shares, entry.f1) for entry in entries],
        xlabel="share of probes rejected",
        ylabel="F1 of the rest",
        caption=f"F1 against the rejected share at {at}: the sooner a line rises, the better. "
        "The oracle rejects errors first; a confidence that tells nothing stays flat.",
        alt=f"At {at} F1 is {point.f1:.3f} with nothing rejected; {best.confidence} has the largest PRR, "
        f"{best.prr.value:.3f}, and F1 {best.f1[10]:.3f} with 10 % rejected.",
    )
