"""Tables and plots of risk-controlled recognition show the numbers of the report."""

from dataclasses import replace

import pytest
from tests.reference.open_world import open_world

from spherecf.evaluation import OpenSet, RejectionOptions, RejectionReport, evaluate_rejection
from spherecf.report import mean_prr_table, rejection_section, write_report


@pytest.fixture(scope="module")
def report() -> RejectionReport:
    return evaluate_rejection(
        OpenSet(*open_world(enrolled=40, strangers=14, each=4)),
        RejectionOptions([0.01, 0.2], draws=8, trials=8),
        name="toy/G1",
    )


def test_rows_contain_their_values_and_signatures(report: RejectionReport) -> None:
    section = rejection_section(report)
    points, prr = section.tables
    assert points.rows[0][:2] == ["0.01", "unresolved"] and points.rows[1][4] == str(
        report.points[1].counts["identified"]
    )
    assert any("FPIR 0.01 needs at least 100 non-mated probes" in note for note in section.notes)
    assert any("missing from these probes: norm, precision" in note for note in section.notes)
    lost = replace(report, counts=report.counts | {"failed_gallery": 1, "failed_probes": 4})
    assert any(
        note.startswith("1 gallery templates have no embedded image; 4 probes were not")
        for note in rejection_section(lost).notes
    )
    assert [row[0] for row in prr.rows] == [entry.confidence for entry in report.prr]
    row = prr.rows[[entry.confidence for entry in report.prr].index("mprisk")]
    entry = report.at("mprisk", 0.2)
    assert row[1] == f"{entry.prr.value:.3f}" and row[3] == f"{entry.minus_kappa.value:+.3f}"
    assert row[5] == f"{entry.f1[10]:.4f}" and report.shares[10] == 0.1
    assert list(prr.signatures) == [entry.signature for entry in report.prr]


def test_one_plot_per_resolved_point_with_a_line_per_confidence(report: RejectionReport) -> None:
    (plot,) = rejection_section(report).plots
    assert "mprisk" in plot.svg and "oracle" in plot.svg and "mean_resultant" not in plot.svg
    assert f"F1 is {report.points[1].f1:.3f} without rejection" in plot.alt


def test_means_over_galleries_are_blank_if_one_is_unresolved(report: RejectionReport) -> None:
    table = mean_prr_table([report, report])
    kappa = next(row for row in table.rows if row[0] == "kappa")
    assert kappa == ["kappa", "", f"{report.at('kappa', 0.2).prr.value:.3f}"]
    assert table.title == "PRR, mean of toy/G1, toy/G1"


def test_the_section_is_part_of_a_page(report: RejectionReport, tmp_path) -> None:
    files = write_report(tmp_path, title="R", sections=[rejection_section(report)], results=report.to_dict())
    page = files.html.read_text("utf-8")
    assert "toy/G1: PRR at FPIR ≤ 0.2" in page and "|confidence:mprisk|" in page
