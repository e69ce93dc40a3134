"""Search among distractors on the page and in the terminal."""

from spherecf.evaluation._distractors import DistractorReport
from spherecf.evaluation._line_plot import Series, line_plot
from spherecf.evaluation._parts import Section, Table


def distractor_section(report: DistractorReport) -> Section:
    """Table and plot of rank 1 and TMR against the number of distractors.

    Raises:
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> from spherecf.evaluation import AtSize, DistractorResult
        >>> at = AtSize(10, 0.9, 0.8, 0.5, 1, 20)
        >>> counts = {"searches": 2, "probes": 2, "people": 1, "distractors": 10, "failed_images": 0}
        >>> report = DistractorReport("toy", 0.1, counts, [DistractorResult("cosine", "", [at])])
        >>> distractor_section(report).tables[0].rows
        [['cosine', '10', '0.9000', '0.8000']]
    """
    ranks = [
        Series(r.score, [at.distractors for at in r.sizes], [at.rank_1 for at in r.sizes])
        for r in report.results
    ]
    alt = "; ".join(
        f"{r.score}: {r.sizes[-1].rank_1:.4f} among {r.sizes[-1].distractors:,}" for r in report.results
    )
    plot = line_plot(
        f"{report.name}-distractors", ranks, xlabel="distractors", ylabel="rank-1 rate", log_x=True,
        markers=True, caption="Rank 1 against the number of distractors; higher is better.", alt=alt,
    )  # fmt: skip
    return Section(
        f"{report.name} with distractors", distractor_notes(report), [distractor_table(report)], [plot]
    )


def distractor_notes(report: DistractorReport) -> list[str]:
    """The counts in words.

    Example:
        >>> counts = {"searches": 2, "probes": 2, "people": 1, "distractors": 10, "failed_images": 0}
        >>> distractor_notes(DistractorReport("toy", 0.1, counts, []))[0].split(";")[0]
        '2 searches by 2 probes of 1 people among 10 distractors'
    """
    c = report.counts
    return [
        f"{c['searches']:,} searches by {c['probes']:,} probes of {c['people']:,} people among "
        f"{c['distractors']:,} distractors; {c['failed_images']:,} images could not be embedded and take no "
        "part."
    ]


def distractor_table(report: DistractorReport) -> Table:
    """A row per score and number of distractors.

    Example:
        >>> distractor_table(DistractorReport("toy", 0.1, {}, [])).header[1:3]
        ['Distractors', 'Rank 1']
    """
    rows, signatures = [], []
    for result in report.results:
        for at in result.sizes:
            tmr = "–" if at.tmr is None else f"{at.tmr:.4f}"
            rows.append([result.score, f"{at.distractors:,}", f"{at.rank_1:.4f}", tmr])
            signatures.append(result.signature)
    reasons = dict.fromkeys(at.unresolved for r in report.results for at in r.sizes if at.unresolved)
    note = "".join(f"Unresolved (–): {why}. " for why in reasons) + "Ties count against the mate."
    header = ["Score", "Distractors", "Rank 1", f"TMR (TAR) at FMR (FAR) ≤ {report.target:g}"]
    return Table(f"{report.name}, one mate among distractors", header, rows, note, signatures)
