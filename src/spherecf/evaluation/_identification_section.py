"""1:N on the page and in the terminal."""

from spherecf.evaluation._identification_result import (
    GalleryResult,
    IdentificationReport,
)
from spherecf.evaluation._ijb_section import failure_notes
from spherecf.evaluation._line_plot import Series, det_lines, line_plot
from spherecf.evaluation._parts import Plot, Section, Table
from spherecf.evaluation._result import Measure
from spherecf.evaluation._tables import interval_text


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
