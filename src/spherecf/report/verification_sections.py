"""Sections on 1:1 and 1:N: IJB, identification, and comparison with old papers."""

from collections.abc import Mapping, Sequence

from spherecf.evaluation import (
    GalleryResult,
    IdentificationReport,
    Measure,
    NearestPoint,
    TemplateReport,
    TemplateResult,
    TmrAtFmr,
)
from spherecf.report.figures import Series, det_lines, line_plot
from spherecf.report.parts import Plot, Section, Table
from spherecf.report.tables import difference_text, group_table, interval_text


def nearest_section(
    found: Mapping[str, tuple[Sequence[TmrAtFmr], Sequence[NearestPoint], str]],
) -> Section:
    """Both ways of counting side by side, for the report.

    Args:
        found: name of a score -> what `tmr_at_fmr` and `tmr_at_nearest_fmr` found for the same targets, and
            the signature of the first.

    Example:
        >>> from spherecf.evaluation import tmr_at_fmr, tmr_at_nearest_fmr
        >>> scores, mated = [0.9, 0.8, 0.7, 0.6], [True, False, True, False]
        >>> both = [count(scores, mated, 0.5) for count in (tmr_at_fmr, tmr_at_nearest_fmr)]
        >>> section = nearest_section({"cosine": (*both, "toy|fmr:at-most")})
        >>> section.tables[0].rows, section.tables[0].signatures
        ([['cosine', '0.5', '1.0000', '1.0000', '0.5', '+0.0 %']], ['toy|fmr:nearest'])
    """
    rows, signatures = [], []
    for name, (exact, nearest, signature) in found.items():
        for one, point in zip(exact, nearest):
            tmr = "unresolved" if one.tmr is None else f"{one.tmr:.4f}"
            excess = f"{100 * point.excess / point.target:+.1f} %"
            rows.append([name, f"{one.target:g}", tmr, f"{point.tmr:.4f}", f"{point.fmr:.3g}", excess])
            signatures.append(signature.replace("|fmr:at-most", "|fmr:nearest"))
    header = ["Score", "Target", "TMR at FMR ≤ target", "TMR at the nearest point", "FMR there", "Off by"]
    note = "Many papers take the point of the ROC nearest to the target, on either side of it."
    return Section("Comparing with old papers", tables=[Table("", header, rows, note, signatures)])


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


def identification_table(report: IdentificationReport) -> Table:
    """Per way to pool and to score a row for each gallery and one for their mean: ranks, TPIR at FPIR.

    Example:
        >>> identification_table(IdentificationReport("toy", 1, {}, [], [], "none", [])).header
        ['Pooling', 'Mode', 'Score', 'Gallery']
    """
    first = report.results[0].galleries[0] if report.results else None
    ranks = [] if first is None else list(first.ranks)
    targets = [] if first is None else [f"{entry.target:g}" for entry in first.tpir]
    header = ["Pooling", "Mode", "Score", "Gallery", *(f"Rank {rank}" for rank in ranks)]
    header += [f"TPIR ≤ {target}" for target in targets]
    rows, signatures = [], []
    for result in report.results:
        named = [result.pooling, result.mode, result.score]
        for gallery in result.galleries:
            rows.append([*named, gallery.gallery, *_cells(gallery)])
        mean = [*(f"rank-{rank}" for rank in ranks), *(f"tpir@{target}" for target in targets)]
        rows.append([*named, "mean", *(_text(result.mean.get(name)) for name in mean)])
        signatures += [result.signature] * (len(result.galleries) + 1)
    entries = [e for result in report.results for gallery in result.galleries for e in gallery.tpir]
    reasons = dict.fromkeys(e.unresolved for e in entries if e.unresolved)
    note = "".join(f"Unresolved (–): {why}. " for why in reasons)
    note += (
        f"Open set: a mate counts if its rank is at most {report.max_rank}; ties in rank count against it."
    )
    return Table(f"{report.name}, 1:N identification", header, rows, note, signatures)


def identification_section(report: IdentificationReport) -> Section:
    """Table, CMC and open-set DET of every gallery; see ``docs/ijb.md``.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> from spherecf.evaluation import IdentificationResult
        >>> counts = {"images": 9, "probes": 4, "gallery_templates": 5, "people": 2, "failed_images": 0}
        >>> counts |= {"failed_probes": 0, "failed_gallery_templates": 0}
        >>> det = {"fpir": [], "fnir": []}
        >>> gallery = GalleryResult("G1", 3, 2, 0, {"1": Measure(1.0, None)}, [1.0], [], {}, det)
        >>> row = IdentificationResult("N0D0F1K0", "mean", "cosine", "", [gallery], {})
        >>> len(identification_section(IdentificationReport("toy", 1, counts, [], [], "none", [row])).plots)
        1
    """
    plots = []
    for place, gallery in enumerate(report.results[0].galleries):
        ones = [(result.name, result.galleries[place]) for result in report.results]
        plots += _plots(f"{report.name}-1-n-{gallery.gallery}", gallery.gallery, ones)
    return Section(f"{report.name} 1:N", identification_notes(report), [identification_table(report)], plots)


def identification_notes(report: IdentificationReport) -> list[str]:
    """Counts and failures in words.

    Example:
        >>> counts = {"images": 9, "probes": 4, "gallery_templates": 5, "people": 2, "failed_images": 0}
        >>> counts |= {"failed_probes": 0, "failed_gallery_templates": 0}
        >>> identification_notes(IdentificationReport("toy", 1, counts, [], [], "none", []))
        ['4 probes of 2 people, 5 enrolled templates, 9 images; intervals: none.']
    """
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
    notes += failure_notes(report.failures, report.failed_templates)
    if c["failed_probes"] or c["failed_gallery_templates"]:
        notes.append(
            f"{c['failed_probes']:,} probes and {c['failed_gallery_templates']:,} enrolled templates had no "
            "image left; the probes of such an enrolment are left out of its gallery."
        )
    return notes + report.notes


def _plots(name: str, gallery: str, results: list[tuple[str, GalleryResult]]) -> list[Plot]:
    ranks = "; ".join(f"{label}: rank 1 {one.ranks['1'].value:.4f}" for label, one in results)
    cmc = [Series(label, range(1, len(one.cmc) + 1), one.cmc) for label, one in results]
    plots = [
        line_plot(
            f"{name}-cmc", cmc, xlabel="rank", ylabel="share of mated probes", log_x=True, alt=ranks,
            caption=f"CMC, gallery {gallery}; higher is better.",
        )
    ]  # fmt: skip
    if any(one.det["fpir"] for _, one in results):
        low = 0.5 / max(2, results[0][1].non_mated)
        det = [Series(label, one.det["fpir"], one.det["fnir"]) for label, one in results]
        caption = f"Open-set DET, gallery {gallery}; lower is better."
        plots.append(
            det_lines(f"{name}-det", det, caption=caption, alt=ranks, low=low, xlabel="FPIR", ylabel="FNIR")
        )
    return plots


def _cells(gallery: GalleryResult) -> list[str]:
    cells = [_text(measure) for measure in gallery.ranks.values()]
    for entry in gallery.tpir:
        between = gallery.tpir_intervals.get(f"{entry.target:g}")
        cells.append(_text(None if entry.tpir is None else Measure(entry.tpir, between)))
    return cells


def _text(measure: Measure | None) -> str:
    if measure is None:
        return "–"
    return f"{measure.value:.4f} {interval_text(measure.interval)}".rstrip()
