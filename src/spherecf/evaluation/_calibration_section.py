"""Calibration on the report's page: costs, thresholds, decisions, the scale of kappa, and three plots."""

import math
from collections.abc import Sequence

from spherecf.calibration import ErrorCount, ThresholdEntry
from spherecf.evaluation._calibration_result import CalibrationReport, RuleCheck
from spherecf.evaluation._line_plot import Series, line_plot
from spherecf.evaluation._parts import Plot, Section, Table
from spherecf.evaluation._tables import interval_text


def calibration_section(report: CalibrationReport) -> Section:
    """Tables and plots of one `evaluate_calibration`.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> from spherecf.calibration import Calibration
        >>> nothing = CalibrationReport(
        ...     "toy",
        ...     "clean/clean",
        ...     {},
        ...     [],
        ...     "people",
        ...     "subject",
        ...     "kappa",
        ...     "none",
        ...     [],
        ...     {},
        ...     Calibration("", ""),
        ... )
        >>> calibration_section(nothing).title
        'toy: calibration, clean/clean'
    """
    plots = []
    if report.scores:
        plots = [_reliability_plot(report), *_tippett_plots(report), *_coverage_plots(report)]
    return Section(
        title=f"{report.name}: calibration, {report.condition}",
        notes=_notes(report),
        tables=calibration_tables(report),
        plots=plots,
    )


def calibration_tables(report: CalibrationReport) -> list[Table]:
    """Costs, thresholds, decisions and the scale of kappa.

    Example:
        >>> from spherecf.calibration import Calibration
        >>> nothing = CalibrationReport(
        ...     "toy",
        ...     "clean/clean",
        ...     {},
        ...     [],
        ...     "people",
        ...     "subject",
        ...     "kappa",
        ...     "none",
        ...     [],
        ...     {},
        ...     Calibration("", ""),
        ... )
        >>> [table.title for table in calibration_tables(nothing)]
        []
    """
    tables = [_costs(report), _thresholds(report), _decisions(report)] if report.scores else []
    return [*tables, *([_kappa(report)] if report.kappa else [])]


def _notes(report: CalibrationReport) -> list[str]:
    c = report.counts
    notes = []
    if c:
        tuned, tested, new, lost = (
            c[f"{part}_mated"] + c[f"{part}_non_mated"]
            for part in ("tuning", "testing", "measuring", "left_out")
        )
        notes.append(
            f"{c['people']:,} people in parts with nobody in common: {tuned + tested:,} pairs fit "
            f"({tuned:,} order the decision rules, {tested:,} test them), {new:,} other pairs measure. Left "
            f"out: {lost:,} pairs of people from two parts, {c['failed_pairs']:,} pairs with a failed image."
        )
    if report.unit == "image":
        notes.append("People are unknown: parts may share them, so the promises of decisions do not hold.")
    return notes


def _costs(report: CalibrationReport) -> Table:
    rows, signatures = [], []
    for one in report.scores.values():
        for cost in one.costs:
            mark = " (regularised: the data separate)" if cost.separated else ""
            value = f"{cost.cllr:.4f} {interval_text(cost.interval)}".strip()
            numbers = [value, f"{one.min_cllr:.4f}", f"{cost.loss:+.4f}", f"{cost.reliability.error:.4f}"]
            rows.append([one.score, cost.method + mark, *numbers])
            signatures.append(one.signature)
    return Table(
        "Log-likelihood ratios, on people they were not fitted on",
        ["Score", "Calibrator", "Cllr, bits", "Minimum Cllr", "Loss", "Gap of stated and found"],
        rows,
        "Cllr: 0 is perfect, 1 knows nothing. The minimum is that of the best rising function on these "
        "pairs. The first calibrator of a score is the one that is kept.",
        signatures,
    )


def _thresholds(report: CalibrationReport) -> Table:
    rows, signatures, why = [], [], []
    for one in report.scores.values():
        for check in one.thresholds:
            fitted, checked = check.fitted, check.checked
            if checked is None or fitted.threshold is None:
                rows.append([one.score, f"{fitted.target:g}", "unresolved", "", "", ""])
                why.append(f" {fitted.unresolved}.")
            else:
                found = [_rate(fitted), _rate(checked), _rate(checked, mated=True)]
                rows.append([one.score, f"{fitted.target:g}", f"{fitted.threshold:.5g}", *found])
            signatures.append(one.signature)
    return Table(
        "Thresholds",
        [
            "Score",
            "FMR target",
            "Threshold",
            "FMR where fitted",
            "FMR of other people",
            "TMR of other people",
        ],
        rows,
        "Rates with counts and 95 % intervals: over people where drawn, else Clopper-Pearson's."
        + "".join(dict.fromkeys(why)),
        signatures,
    )


def _rate(entry: ThresholdEntry, mated: bool = False) -> str:
    rate, hits, of = (
        (entry.tmr, entry.true_matches, entry.mated)
        if mated
        else (entry.fmr, entry.false_matches, entry.non_mated)
    )
    ends = (
        (entry.tmr_subjects or entry.tmr_exact) if mated else (entry.fmr_subjects or entry.fmr_exact)
    ) or (math.nan, math.nan)
    return f"{rate:.3g} ({hits}/{of}) [{ends[0]:.2g}, {ends[1]:.2g}]"


def _decisions(report: CalibrationReport) -> Table:
    rows, signatures = [], []
    for one in report.scores.values():
        for check in one.decisions:
            rows.append([one.score, *_rule_cells(check, report.confidence)])
            signatures.append(one.signature)
    first = next(iter(report.scores.values())).decisions[0].rule
    return Table(
        "Decisions that keep a promise",
        ["Score", "Promise", "Rule", "When tested", "Decided, other people", "Errors, other people"],
        rows,
        f"Each promise holds with probability {1 - first.delta:g} over the choice of the testing "
        f"{first.tested_on}, for pairs exchangeable with them; each alone. Decided: of all, of the "
        "mated, of the non-mated pairs.",
        signatures,
    )


def _rule_cells(check: RuleCheck, confidence: str) -> list[str]:
    rule = check.rule
    promise = f"{rule.error} ≤ {rule.alpha:g}"
    if rule.accept is None or rule.reject is None:
        return [promise, "none keeps it: all undecided", "", "0", ""]
    apart = f"non-match < {rule.reject:.4g}" if rule.reject < rule.accept else "else non-match"
    text = f"match ≥ {rule.accept:.4g}, {apart}"
    if rule.least_confidence > -math.inf:
        text += f", {confidence} ≥ {rule.least_confidence:.4g}"
    shares = (check.coverage, check.coverage_mated, check.coverage_non_mated)
    return [
        promise, text, _errors_text(rule.counts, upper=True), ", ".join(f"{share:.3f}" for share in shares),
        _errors_text(check.errors),
    ]  # fmt: skip


def _errors_text(counts: Sequence[ErrorCount], upper: bool = False) -> str:
    return "; ".join(
        f"{count.errors}/{count.trials}" + (f" (below {count.upper:.4f})" if upper else "")
        for count in counts
    )


def _kappa(report: CalibrationReport) -> Table:
    scale = report.calibration.kappa
    return Table(
        "What kappa means",
        ["Percentile", "κ", "Expected cosine A(κ)", "ISO 0 .. 100"],
        [[f"{row.percent:g}", f"{row.kappa:.4g}", f"{row.cosine:.4f}", str(row.iso)] for row in report.kappa],
        "" if scale is None else f"Among {scale.population}.",
    )


def _reliability_plot(report: CalibrationReport) -> Plot:
    lines = [Series("perfect", [0, 1], [0, 1])]
    for one in report.scores.values():
        bins = [b for b in one.costs[0].reliability.bins if b.stated is not None and b.found is not None]
        stated, found = [b.stated or 0.0 for b in bins], [b.found or 0.0 for b in bins]
        lines.append(Series(one.score, stated, found))
    gaps = ", ".join(f"{s} {one.costs[0].reliability.error:.4f}" for s, one in report.scores.items())
    return line_plot(
        f"reliability-{report.name}-{report.condition}", lines, markers=True,
        xlabel="stated chance of a match", ylabel="share of mated pairs",
        caption="Reliability on other people. The diagonal is right.",
        alt=f"Mean gap: {gaps}",
    )  # fmt: skip


def _tippett_plots(report: CalibrationReport) -> list[Plot]:
    plots = []
    for one in report.scores.values():
        t = one.tippett
        lines = [
            Series("mated", t["llr"], t["mated"], steps=True),
            Series("non-mated", t["llr"], t["non_mated"], steps=True),
        ]
        misled = [_at_zero(t["llr"], t[kind]) for kind in ("mated", "non_mated")]
        plots.append(
            line_plot(
                f"tippett-{one.score}-{report.name}-{report.condition}", lines,
                xlabel="log likelihood ratio (natural)", ylabel="share of pairs with at least that",
                caption=f"Tippett plot, {one.score}, on other people. Mated right of 0, non-mated left.",
                alt=f"At least 0: {misled[0]:.3f} of the mated, {misled[1]:.4f} of the non-mated pairs",
            )
        )  # fmt: skip
    return plots


def _at_zero(llr: Sequence[float], shares: Sequence[float]) -> float:
    return next((share for x, share in zip(llr, shares) if x >= 0), 0.0)


def _coverage_plots(report: CalibrationReport) -> list[Plot]:
    names = {"both": "score and confidence", "score": "score alone", "confidence": "confidence alone"}
    plots = []
    for one in report.scores.values():
        lines = [Series(names[curve.abstain], curve.alphas, curve.coverage) for curve in one.curves]
        ends = ", ".join(f"{names[c.abstain]} {c.coverage[-1]:.3f}" for c in one.curves)
        plots.append(
            line_plot(
                f"coverage-{one.score}-{report.name}-{report.condition}", lines, log_x=True, markers=True,
                xlabel="bound on false matches and on false non-matches", ylabel="share of pairs decided",
                caption=f"What a promise costs, {one.score}: decided pairs of other people, by what may "
                "leave a pair undecided. Higher is better.",
                alt=f"At {one.curves[0].alphas[-1]:g}: {ends}",
            )
        )  # fmt: skip
    return plots
