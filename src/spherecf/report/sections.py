"""Report sections of one protocol each: verification, identification, calibration, rejection."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spherecf.calibration import ErrorCount, ThresholdEntry
from spherecf.evaluation import (
    CalibrationReport,
    ConfidencePrr,
    GalleryResult,
    IdentificationReport,
    Interval,
    Measure,
    NearestPoint,
    OperatingPoint,
    RejectionReport,
    RuleCheck,
    TemplateReport,
    TmrAtFmr,
)
from spherecf.report.figures import Axis, Plot, Series, Strip, det_lines, line_plot
from spherecf.report.tables import Table, difference_cell, group_table, interval_text


@dataclass(frozen=True)
class Section:
    """The results of one protocol as part of a report.

    Args:
        title: heading of the section.
        notes: sentences at its top.
        tables: tables of results.
        plots: from `line_plot`, `det_lines` or `histogram_plot`.
        strips: rows of faces.
    """

    title: str
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plots: Sequence[Plot] = ()
    strips: Sequence[Strip] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists; of plots only the text, of strips only the captions."""
        return {
            "title": self.title,
            "notes": list(self.notes),
            "tables": [table.to_dict() for table in self.tables],
            "plots": [{"caption": plot.caption, "alt": plot.alt} for plot in self.plots],
            "strips": [strip.to_dict() for strip in self.strips],
        }


def nearest_section(results: Mapping[str, tuple[Sequence[TmrAtFmr], Sequence[NearestPoint], str]]) -> Section:
    """Compare TMR at FMR <= target with TMR at the ROC point nearest to the target, as old papers count it.

    Args:
        results: name of each score -> results of `tmr_at_fmr` and of `tmr_at_nearest_fmr` for the same
            targets, and the signature of the former.

    Example:
        >>> from spherecf.evaluation import tmr_at_fmr, tmr_at_nearest_fmr
        >>> scores, mated = [0.9, 0.8, 0.7, 0.6], [True, False, True, False]
        >>> both = [count(scores, mated, 0.5) for count in (tmr_at_fmr, tmr_at_nearest_fmr)]
        >>> section = nearest_section({"cosine": (*both, "toy|fmr:at-most")})
        >>> section.tables[0].rows, section.tables[0].signatures
        ([['cosine', '0.5', '1.0000', '1.0000', '0.5', '+0.0 %']], ['toy|fmr:nearest'])
    """
    rows, signatures = [], []
    for name, (exact, nearest, signature) in results.items():
        for entry, point in zip(exact, nearest):
            tmr = "unresolved" if entry.tmr is None else f"{entry.tmr:.4f}"
            excess = f"{100 * point.excess / point.target:+.1f} %"
            rows.append([name, f"{entry.target:g}", tmr, f"{point.tmr:.4f}", f"{point.fmr:.3g}", excess])
            signatures.append(signature.replace("|fmr:at-most", "|fmr:nearest"))
    header = [
        "Score", "Target", "TMR at FMR ≤ target", "TMR at nearest point", "FMR at nearest point", "Excess",
    ]  # fmt: skip
    note = (
        "Many papers report the ROC point nearest to the target, whose FMR may be above or below the target."
    )
    return Section("Comparing with old papers", tables=[Table("", header, rows, note, signatures)])


def _verification_table(report: TemplateReport) -> Table:
    """A row per pooling mode and score: TMR at each FMR with its interval, and EER."""
    targets = [entry.target for entry in report.results[0].tmr] if report.results else []
    header = ["Pooling", "Mode", "Score", *(f"≤ {target:g}" for target in targets), "EER"]
    rows = [
        [
            result.pooling, result.mode, result.score,
            *(_rate_text(entry.target, entry.tmr, result.tmr_intervals) for entry in result.tmr),
            f"{result.eer:.4f}",
        ]
        for result in report.results
    ]  # fmt: skip
    reasons = [e.unresolved for result in report.results for e in result.tmr if e.unresolved]
    note = " ".join(f"Unresolved (–): {reason}." for reason in dict.fromkeys(reasons))
    signatures = [result.signature for result in report.results]
    return Table(f"{report.name}, 1:1: TMR (TAR) at FMR (FAR) ≤ target", header, rows, note, signatures)


def ijb_section(report: TemplateReport, plots: bool = True) -> Section:
    """Section of a 1:1 template protocol: TMR of every row, rates by group, differences, DET curves.

    The differences are relative to the first row. ``docs/ijb.md`` explains the pooling modes.

    Args:
        report: from `evaluate_ijb`.
        plots: whether to draw plots, which needs matplotlib.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> import numpy as np
        >>> from spherecf.data import IjbMeta, TemplatePairs
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.evaluation import TemplateOptions, evaluate_ijb
        >>> ids = np.array([1, 2, 3])
        >>> pairs = TemplatePairs(ids[:2], ids[1:], np.array([True, False]))
        >>> e = Embeddings(np.array([[1, 0], [0.8, 0.6], [-1, 0]]), np.zeros(3), list("abc"))
        >>> report = evaluate_ijb(
        ...     e, IjbMeta("toy", list("abc"), ids, ids, pairs), TemplateOptions(["N0"], draws=0)
        ... )
        >>> ijb_section(report).title
        'toy 1:1'
    """
    groups = [
        group_table(result.groups, f"By group: {result.name}", result.signature)
        for result in report.results
        if result.groups
    ]
    tables = [_verification_table(report), *groups, *filter(None, [_template_differences(report)])]
    det_plots = []
    if plots:
        lines = [Series(result.name, result.det["fmr"], result.det["fnmr"]) for result in report.results]
        det_plots = [
            det_lines(
                f"{report.name}-1-1-det", lines, caption="DET of template pairs; lower is better.",
                alt="; ".join(f"{result.name}: EER {result.eer:.4f}" for result in report.results),
                low=0.5 / max(2, report.counts["non_mated"]),
            )
        ]  # fmt: skip
    return Section(f"{report.name} 1:1", _ijb_notes(report), tables, det_plots)


def _ijb_notes(report: TemplateReport) -> list[str]:
    c = report.counts
    notes = [
        f"{c['pairs']:,} pairs ({c['mated']:,} mated, {c['non_mated']:,} non-mated) of {c['templates']:,} "
        f"templates of {c['media']:,} media and {c['images']:,} images; intervals: {report.resampling}."
    ]
    notes += _failure_notes(report.failures, report.failed_templates)
    if c["failed_pairs"]:
        notes.append(f"{c['failed_pairs']:,} pairs are left out because a template has no usable image.")
    if c["repeated_pairs"]:
        notes.append(
            f"{c['repeated_pairs']:,} pairs repeat an earlier pair of the list; every occurrence counts."
        )
    return notes + report.notes


def _failure_notes(failures: list[tuple[str, str]], templates: list[int]) -> list[str]:
    """Numbers of images and templates that could not be embedded, with examples."""
    notes = []
    if images := len(failures):
        key, reason = failures[0]
        notes.append(
            f"{images:,} image{'s' * (images > 1)} could not be embedded (failures to acquire, not "
            f"scored); the first is {key}: {reason}."
        )
    if templates:
        ids = ", ".join(map(str, templates[:5])) + (", ..." if len(templates) > 5 else "")
        notes.append(f"{len(templates):,} template{'s' * (len(templates) > 1)} without any image: {ids}.")
    return notes


def _template_differences(report: TemplateReport) -> Table | None:
    if not report.differences:
        return None
    metrics = list(dict.fromkeys(name.rsplit(":", 1)[1] for name in report.differences))
    rows = []
    for result in report.results[1:]:
        measures = [report.differences.get(f"{result.name}:{metric}") for metric in metrics]
        cells = [str(difference_cell(measure, "tmr")) for measure in measures]
        rows.append([result.pooling, result.score, *cells])
    header = ["Pooling", "Score", *(f"≤ {metric.removeprefix('tmr@')}" for metric in metrics)]
    note = "All rows use the same bootstrap draws."
    return Table(f"TMR minus that of {report.results[0].name}", header, rows, note)


def _identification_table(report: IdentificationReport) -> Table:
    """A row per pooling mode and score, for each gallery and for their mean: ranks and TPIR at FPIR."""
    first = report.results[0].galleries[0] if report.results else None
    ranks = [] if first is None else list(first.ranks)
    targets = [] if first is None else [f"{entry.target:g}" for entry in first.tpir]
    header = ["Pooling", "Mode", "Score", "Gallery", *(f"Rank {rank}" for rank in ranks)]
    header += [f"TPIR ≤ {target}" for target in targets]
    rows, signatures = [], []
    for result in report.results:
        condition = [result.pooling, result.mode, result.score]
        for gallery in result.galleries:
            rows.append([*condition, gallery.gallery, *_gallery_cells(gallery)])
        metrics = [*(f"rank-{rank}" for rank in ranks), *(f"tpir@{target}" for target in targets)]
        rows.append([*condition, "mean", *(_measure_text(result.mean.get(metric)) for metric in metrics)])
        signatures += [result.signature] * (len(result.galleries) + 1)
    entries = [e for result in report.results for gallery in result.galleries for e in gallery.tpir]
    reasons = dict.fromkeys(e.unresolved for e in entries if e.unresolved)
    note = "".join(f"Unresolved (–): {reason}. " for reason in reasons)
    note += (
        f"Open set: a probe counts as identified only if its mate is within rank {report.max_rank}; "
        "ties in rank count against the mate."
    )
    return Table(f"{report.name}, 1:N identification", header, rows, note, signatures)


def identification_section(report: IdentificationReport, plots: bool = True) -> Section:
    """Section of a 1:N protocol: ranks and TPIR, with CMC and open-set DET curves of every gallery.

    Args:
        report: from `evaluate_identification`.
        plots: whether to draw plots, which needs matplotlib.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> import numpy as np
        >>> from spherecf.data import IjbMeta, TemplateList
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.evaluation import TemplateOptions, evaluate_identification
        >>> ids = np.array([1, 2, 3, 4])
        >>> gallery, probes = TemplateList(ids[:2], ids[:2]), TemplateList(ids[2:], np.array([1, 9]))
        >>> meta = IjbMeta("toy", list("abcd"), ids, ids, galleries={"G1": gallery}, probes=probes)
        >>> e = Embeddings(np.array([[1, 0], [0, 1], [0.8, 0.6], [-1, 0]]), np.zeros(4), list("abcd"))
        >>> report = evaluate_identification(e, meta, TemplateOptions(modes=["N0"], targets=[1.0], draws=0))
        >>> section = identification_section(report)
        >>> section.title, len(section.plots)
        ('toy 1:N', 2)
    """
    gallery_plots: list[Plot] = []
    for index, gallery in enumerate(report.results[0].galleries if plots else []):
        results = [(result.name, result.galleries[index]) for result in report.results]
        gallery_plots += _gallery_plots(f"{report.name}-1-n-{gallery.gallery}", gallery.gallery, results)
    return Section(
        f"{report.name} 1:N", _identification_notes(report), [_identification_table(report)], gallery_plots
    )


def _identification_notes(report: IdentificationReport) -> list[str]:
    c = report.counts
    notes = [
        f"{c['probes']:,} probes of {c['people']:,} people, {c['gallery_templates']:,} enrolled templates, "
        f"{c['images']:,} images; intervals: {report.resampling}."
    ]
    if report.results:
        notes += [
            f"Gallery {g.gallery}: {g.enrolled:,} enrolled, {g.mated:,} probes with a mate, "
            f"{g.non_mated:,} without."
            for g in report.results[0].galleries
        ]
    notes += _failure_notes(report.failures, report.failed_templates)
    if c["failed_probes"] or c["failed_gallery_templates"]:
        notes.append(
            f"{c['failed_probes']:,} probes and {c['failed_gallery_templates']:,} enrolled templates have no "
            "usable image; probes whose mate is such a template are not searched in its gallery."
        )
    return notes + report.notes


def _gallery_plots(name: str, gallery: str, results: list[tuple[str, GalleryResult]]) -> list[Plot]:
    ranks = "; ".join(f"{label}: rank 1 {result.ranks['1'].value:.4f}" for label, result in results)
    cmc = [Series(label, range(1, len(result.cmc) + 1), result.cmc) for label, result in results]
    plots = [
        line_plot(
            f"{name}-cmc",
            cmc,
            Axis("rank", log=True),
            Axis("share of mated probes"),
            alt=ranks,
            caption=f"CMC, gallery {gallery}; higher is better.",
        )
    ]
    if any(result.det["fpir"] for _, result in results):
        low = 0.5 / max(2, results[0][1].non_mated)
        det = [Series(label, result.det["fpir"], result.det["fnir"]) for label, result in results]
        caption = f"Open-set DET, gallery {gallery}; lower is better."
        plots.append(
            det_lines(f"{name}-det", det, caption=caption, alt=ranks, low=low, xlabel="FPIR", ylabel="FNIR")
        )
    return plots


def _gallery_cells(gallery: GalleryResult) -> list[str]:
    rates = [_rate_text(entry.target, entry.tpir, gallery.tpir_intervals) for entry in gallery.tpir]
    return [*map(_measure_text, gallery.ranks.values()), *rates]


def _rate_text(target: float, rate: float | None, intervals: Mapping[str, Interval]) -> str:
    return _measure_text(None if rate is None else Measure(rate, intervals.get(f"{target:g}")))


def _measure_text(measure: Measure | None) -> str:
    if measure is None:
        return "–"
    return f"{measure.value:.4f} {interval_text(measure.interval)}".rstrip()


def calibration_section(report: CalibrationReport, plots: bool = True) -> Section:
    """Section of the calibration protocol: costs, thresholds, decision rules, the kappa scale, and plots.

    Args:
        report: from `evaluate_calibration`.
        plots: whether to draw plots, which needs matplotlib.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> import numpy as np
        >>> from spherecf.data import PairList
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.evaluation import CalibrationOptions, evaluate_calibration
        >>> rng, person = np.random.default_rng(0), np.repeat(np.arange(60), 4)
        >>> mu = rng.normal(size=(60, 8))[person] + rng.normal(size=(240, 8)) / 2
        >>> keys = [str(image) for image in range(240)]
        >>> e = Embeddings(
        ...     mu / np.linalg.norm(mu, axis=1, keepdims=True), rng.normal(3, 1, 240), keys, person
        ... )
        >>> a = rng.integers(0, 240, 3000)
        >>> b = np.where(np.arange(3000) % 2, rng.integers(0, 240, 3000), a ^ 1)
        >>> pairs = PairList("toy", [keys[i] for i in a], [keys[i] for i in b], a // 4 == b // 4, a * 0)
        >>> report = evaluate_calibration(e, e, pairs, CalibrationOptions(draws=0, alpha=0.2))
        >>> calibration_section(report).title
        'toy: calibration, clean/clean'
    """
    plot_list: list[Plot] = []
    if report.scores and plots:
        plot_list = [_reliability_plot(report), *_tippett_plots(report), *_coverage_plots(report)]
    tables = [_cost_table(report), _threshold_table(report), _rule_table(report)] if report.scores else []
    tables += [_confidence_table(report)] if any(score.cells for score in report.scores.values()) else []
    tables += [_kappa_table(report)] if report.kappa else []
    title = f"{report.name}: calibration, {report.condition}"
    return Section(title, _calibration_notes(report), tables, plot_list)


def _calibration_notes(report: CalibrationReport) -> list[str]:
    c = report.counts
    notes = []
    if c:
        tuning, testing, measuring, left_out = (
            c[f"{part}_mated"] + c[f"{part}_non_mated"]
            for part in ("tuning", "testing", "measuring", "left_out")
        )
        notes.append(
            f"{c['people']:,} people, divided into disjoint parts: {tuning + testing:,} pairs for fitting "
            f"({tuning:,} to order the decision rules, {testing:,} to test them), {measuring:,} pairs for "
            f"measuring. Left out: {left_out:,} pairs of people from two parts, {c['failed_pairs']:,} pairs "
            "with a failed image."
        )
    if report.unit == "image":
        notes.append("Identities are unknown: the parts may share people, and then no bound holds.")
    return notes


def _cost_table(report: CalibrationReport) -> Table:
    rows, signatures = [], []
    for score in report.scores.values():
        for cost in score.costs:
            suffix = " (regularised: the classes are separable)" if cost.separated else ""
            value = f"{cost.cllr:.4f} {interval_text(cost.interval)}".strip()
            numbers = [value, f"{score.min_cllr:.4f}", f"{cost.loss:+.4f}", f"{cost.reliability.error:.4f}"]
            rows.append([score.score, cost.method + suffix, *numbers])
            signatures.append(score.signature)
    return Table(
        "Log-likelihood ratios on held-out people",
        ["Score", "Calibrator", "Cllr, bits", "Minimum Cllr", "Loss", "Calibration error"],
        rows,
        "Cllr: 0 is perfect, 1 is uninformative. Minimum Cllr: after the best monotone transformation on "
        "these pairs. Calibration error: mean difference between predicted probability and observed share of "
        "matches. The first calibrator of each score is the one that is saved.",
        signatures,
    )


def _confidence_table(report: CalibrationReport) -> Table:
    rows, signatures = [], []
    for score in report.scores.values():
        for cell in score.cells:
            span = f"{cell.low:.4g} to {cell.high:.4g}"
            numbers = [f"{cell.pairs}", f"{cell.cllr:.4f}", f"{cell.error:.4f}"]
            rows.append([score.score, span, *numbers])
            signatures.append(score.signature)
    return Table(
        f"Log-likelihood ratios by {report.confidence} of the pair",
        ["Score", f"{report.confidence} of the pair", "Pairs", "Cllr, bits", "Calibration error"],
        rows,
        "Pairs of held-out people in three equal parts by confidence. A calibrator that only reads the score "
        "is right only on average over all confidences; `evidence` also reads the kappas of both sides.",
        signatures,
    )


def _threshold_table(report: CalibrationReport) -> Table:
    rows, signatures, reasons = [], [], []
    for score in report.scores.values():
        for check in score.thresholds:
            fitted, checked = check.fitted, check.checked
            if checked is None or fitted.threshold is None:
                rows.append([score.score, f"{fitted.target:g}", "unresolved", "", "", ""])
                reasons.append(f" {fitted.unresolved}.")
            else:
                rates = [_entry_text(fitted), _entry_text(checked), _entry_text(checked, mated=True)]
                rows.append([score.score, f"{fitted.target:g}", f"{fitted.threshold:.5g}", *rates])
            signatures.append(score.signature)
    return Table(
        "Thresholds",
        ["Score", "FMR target", "Threshold", "FMR, fitted", "FMR, held out", "TMR, held out"],
        rows,
        "Rates with counts and 95 % intervals: from the bootstrap over people or, without it or if no pair "
        "or every pair is accepted, Clopper-Pearson." + "".join(dict.fromkeys(reasons)),
        signatures,
    )


def _entry_text(entry: ThresholdEntry, mated: bool = False) -> str:
    """The FMR at a threshold, or the TMR, with its counts and interval."""
    rate, matches, n_pairs, subjects, exact = (
        (entry.tmr, entry.true_matches, entry.mated, entry.tmr_subjects, entry.tmr_exact)
        if mated
        else (entry.fmr, entry.false_matches, entry.non_mated, entry.fmr_subjects, entry.fmr_exact)
    )
    low, high = subjects or exact or (math.nan, math.nan)
    return f"{rate:.3g} ({matches}/{n_pairs}) [{low:.3g}, {high:.3g}]"


def _rule_table(report: CalibrationReport) -> Table:
    rows, signatures = [], []
    for score in report.scores.values():
        for check in score.decisions:
            rows.append([score.score, *_rule_cells(check, report.confidence)])
            signatures.append(score.signature)
    first = next(iter(report.scores.values())).decisions[0].rule
    return Table(
        "Decisions with a bounded error rate",
        ["Score", "Bound", "Rule", "Errors, tested", "Decided, held out", "Errors, held out"],
        rows,
        f"Each bound on its own holds with probability {1 - first.delta:g} over the draw of the testing "
        f"{first.tested_on}, for pairs exchangeable with them. Decided: share of all, of mated and of "
        "non-mated pairs.",
        signatures,
    )


def _rule_cells(check: RuleCheck, confidence: str) -> list[str]:
    rule = check.rule
    bound = f"{rule.error} ≤ {rule.alpha:g}"
    if rule.accept is None or rule.reject is None:
        return [bound, "no rule meets the bound; all pairs undecided", "", "0", ""]
    non_match = f"non-match < {rule.reject:.4g}" if rule.reject < rule.accept else "otherwise non-match"
    text = f"match ≥ {rule.accept:.4g}, {non_match}"
    if rule.min_confidence > -math.inf:
        text += f", {confidence} ≥ {rule.min_confidence:.4g}"
    shares = (check.coverage, check.coverage_mated, check.coverage_non_mated)
    return [
        bound, text, _errors_text(rule.counts, upper=True), ", ".join(f"{share:.3f}" for share in shares),
        _errors_text(check.errors),
    ]  # fmt: skip


def _errors_text(counts: Sequence[ErrorCount], upper: bool = False) -> str:
    return "; ".join(
        f"{count.errors}/{count.trials}" + (f" (below {count.upper:.4f})" if upper else "")
        for count in counts
    )


def _kappa_table(report: CalibrationReport) -> Table:
    scale = report.calibration.kappa
    return Table(
        "Scale of kappa",
        ["Percentile", "κ", "Expected cosine A(κ)", "ISO 0 .. 100"],
        [[f"{row.percent:g}", f"{row.kappa:.4g}", f"{row.cosine:.4f}", str(row.iso)] for row in report.kappa],
        "" if scale is None else f"Reference population: {scale.population}.",
    )


def _reliability_plot(report: CalibrationReport) -> Plot:
    lines = [Series("perfect", [0, 1], [0, 1])]
    for score in report.scores.values():
        bins = [b for b in score.costs[0].reliability.bins if b.stated is not None and b.found is not None]
        predicted, observed = [b.stated or 0.0 for b in bins], [b.found or 0.0 for b in bins]
        lines.append(Series(score.score, predicted, observed))
    errors = ", ".join(f"{s} {result.costs[0].reliability.error:.4f}" for s, result in report.scores.items())
    return line_plot(
        f"reliability-{report.name}-{report.condition}",
        lines,
        Axis("predicted probability of a match"),
        Axis("share of mated pairs"),
        markers=True,
        caption="Reliability diagram, held-out people. A perfect calibration follows the diagonal.",
        alt=f"Calibration error: {errors}",
    )


def _tippett_plots(report: CalibrationReport) -> list[Plot]:
    plots = []
    for score in report.scores.values():
        t = score.tippett
        lines = [
            Series("mated", t["llr"], t["mated"], steps=True),
            Series("non-mated", t["llr"], t["non_mated"], steps=True),
        ]
        shares = [_share_at_zero(t["llr"], t[kind]) for kind in ("mated", "non_mated")]
        plots.append(
            line_plot(
                f"tippett-{score.score}-{report.name}-{report.condition}",
                lines,
                Axis("log-likelihood ratio (natural)"),
                Axis("share of pairs at or above it"),
                caption=f"Tippett plot, {score.score}, held-out people. Mated pairs belong to the right of "
                "0, non-mated pairs to the left.",
                alt=f"LLR ≥ 0: {shares[0]:.3f} of the mated and {shares[1]:.4f} of the non-mated pairs",
            )
        )
    return plots


def _share_at_zero(llr: Sequence[float], shares: Sequence[float]) -> float:
    return next((share for x, share in zip(llr, shares) if x >= 0), 0.0)


def _coverage_plots(report: CalibrationReport) -> list[Plot]:
    names = {"both": "score and confidence", "score": "score alone", "confidence": "confidence alone"}
    plots = []
    for score in report.scores.values():
        lines = [Series(names[curve.abstain], curve.alphas, curve.coverage) for curve in score.curves]
        coverages = ", ".join(f"{names[c.abstain]} {c.coverage[-1]:.3f}" for c in score.curves)
        plots.append(
            line_plot(
                f"coverage-{score.score}-{report.name}-{report.condition}",
                lines,
                Axis("bound on false matches and on false non-matches", log=True),
                Axis("share of pairs decided"),
                markers=True,
                caption=f"Share of held-out pairs decided, {score.score}, for each criterion of abstention. "
                "Higher is better.",
                alt=f"At {score.curves[0].alphas[-1]:g}: {coverages}",
            )
        )
    return plots


_SAME_AS_KAPPA = "mean_resultant"  # a rising function of kappa: the curves of both coincide


def rejection_section(report: RejectionReport, plots: bool = True) -> Section:
    """Section of rejection in open-set identification: operating points, and PRR of every confidence.

    Args:
        report: from `evaluate_rejection`.
        plots: whether to draw plots, which needs matplotlib.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> import numpy as np
        >>> from spherecf.evaluation import OpenSet, RejectionOptions, evaluate_rejection
        >>> from spherecf.scoring import pool_templates
        >>> rng, subject = np.random.default_rng(0), np.repeat(np.arange(60), 3)
        >>> mu = rng.normal(size=(60, 16))[subject] + 0.5 * rng.normal(size=(180, 16))
        >>> mu = mu / np.linalg.norm(mu, axis=1, keepdims=True)
        >>> t = pool_templates(mu, rng.uniform(20, 60, 180), np.arange(180))
        >>> enrolled, probes = np.arange(0, 120, 3), np.flatnonzero(np.arange(180) % 3 > 0)
        >>> test = OpenSet(t.select(enrolled), subject[enrolled], t.select(probes), subject[probes])
        >>> report = evaluate_rejection(test, RejectionOptions([0.1], draws=0, trials=20), name="toy")
        >>> rejection_section(report).title
        'toy: rejection in open-set identification'
    """
    resolved = [point for point in report.points if _entries(report, point)]
    return Section(
        title=f"{report.name}: rejection in open-set identification",
        notes=_rejection_notes(report),
        tables=[_operating_point_table(report), *(_prr_table(report, point) for point in resolved)],
        plots=[_f1_plot(report, point) for point in resolved] if plots else [],
    )


def mean_prr_table(reports: Sequence[RejectionReport]) -> Table:
    """Mean PRR of every confidence over the galleries, a column per FPIR; blank if any is unresolved.

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
            entries = [report.at(name, fpir) for report in reports]
            values = [entry.prr.value for entry in entries if entry is not None]
            cells.append(f"{sum(values) / len(values):.3f}" if len(values) == len(reports) else "")
        rows.append([name, *cells])
    galleries = ", ".join(report.name for report in reports)
    return Table(f"PRR, mean of {galleries}", ["confidence", *(f"FPIR ≤ {fpir:g}" for fpir in fpirs)], rows)


def _entries(report: RejectionReport, point: OperatingPoint) -> list[ConfidencePrr]:
    return [entry for entry in report.prr if entry.fpir_target == point.fpir_target]


def _rejection_notes(report: RejectionReport) -> list[str]:
    c = report.counts
    notes = []
    if c:
        notes.append(
            f"{c['probes']:,} probes ({c['mated']:,} mated, {c['non_mated']:,} non-mated) of "
            f"{c['subjects']:,} people, searched in a gallery of {c['gallery']:,}. Gallery concentration, "
            f"calibrator and weights are fitted on {c['validation_probes']:,} probes of "
            f"{c['validation_subjects']:,} other people with a gallery of {c['validation_gallery']:,}."
        )
    notes.append(
        f"Gallery concentration: {report.kappa_gallery['posterior']:.4g} for the probes' mean directions, "
        f"{report.kappa_gallery['mutual']:.4g} for their distributions. Prior probability that a probe is "
        f"unknown: {report.beta:g}. PRR up to {100 * report.limit:g} % rejected; intervals: "
        f"{report.resampling}."
    )
    notes += [f"FPIR {p.fpir_target:g}: {p.unresolved}" for p in report.points if p.unresolved]
    failed_gallery, failed_probes = c.get("failed_gallery", 0), c.get("failed_probes", 0)
    if failed_gallery or failed_probes:
        notes.append(
            f"{failed_gallery:,} gallery templates have no embedded image; {failed_probes:,} probes were not "
            "searched because they, or the gallery template of their subject, have none."
        )
    if report.absent_confidences:
        notes.append(f"Confidences missing from these probes: {', '.join(report.absent_confidences)}.")
    return notes


def _operating_point_table(report: RejectionReport) -> Table:
    header = [
        "FPIR ≤", "FPIR", "threshold", "F1", "identified", "misidentified", "false rejects", "false accepts",
        "true rejects",
    ]  # fmt: skip
    rows = []
    for p in report.points:
        if p.threshold is None or p.fpir is None or p.f1 is None:
            rows.append([f"{p.fpir_target:g}", "unresolved", *[""] * (len(header) - 2)])
            continue
        counts = [f"{count:,}" for count in p.counts.values()]
        rows.append([f"{p.fpir_target:g}", f"{p.fpir:.4f}", f"{p.threshold:.4f}", f"{p.f1:.4f}", *counts])
    return Table(f"{report.name}: operating points without rejection", header, rows)


def _prr_table(report: RejectionReport, point: OperatingPoint) -> Table:
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
    f1_heading = f"F1, {100 * report.shares[10]:g} % rejected"
    return Table(
        f"{report.name}: PRR at FPIR ≤ {point.fpir_target:g}",
        ["confidence", "PRR", "95 %", "minus kappa", "95 %", f1_heading],
        rows,
        note="1: all errors are rejected first. 0: no better than random. Below 0: worse than random.",
        signatures=[entry.signature for entry in entries],
    )


def _f1_plot(report: RejectionReport, point: OperatingPoint) -> Plot:
    entries = [entry for entry in _entries(report, point) if entry.confidence != _SAME_AS_KAPPA]
    best = max((e for e in entries if e.confidence != "oracle"), key=lambda e: e.prr.value)
    operating_point = f"FPIR ≤ {point.fpir_target:g}"
    return line_plot(
        f"prr-{report.name}-{point.fpir_target:g}",
        [Series(entry.confidence, report.shares, entry.f1) for entry in entries],
        Axis("share of probes rejected"),
        Axis("F1 of the remaining probes"),
        caption=f"F1 against the share of probes rejected, at {operating_point}: the earlier a line rises, "
        "the better. The oracle rejects errors first; an uninformative confidence stays flat.",
        alt=f"At {operating_point} F1 is {point.f1:.3f} without rejection; {best.confidence} has the largest "
        f"PRR, {best.prr.value:.3f}, and F1 {best.f1[10]:.3f} with 10 % rejected.",
    )
