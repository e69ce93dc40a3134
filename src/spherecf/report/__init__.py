"""Reports: results of the evaluation as one HTML page, Markdown, JSON, and tables for a terminal."""

from spherecf.report.figures import (
    Histogram,
    Plot,
    Series,
    Strip,
    det_lines,
    histogram_plot,
    line_plot,
    require_matplotlib,
    strip_by_kappa,
    strips_of_mistakes,
)
from spherecf.report.sections import (
    Section,
    calibration_section,
    identification_section,
    ijb_section,
    mean_prr_table,
    nearest_section,
    rejection_section,
)
from spherecf.report.tables import Table, group_table, pair_rejection_tables, rich_table, terminal_table
from spherecf.report.write import ReportFiles, render_html, write_report

__all__ = [
    "Histogram",
    "Plot",
    "ReportFiles",
    "Section",
    "Series",
    "Strip",
    "Table",
    "calibration_section",
    "det_lines",
    "group_table",
    "histogram_plot",
    "identification_section",
    "ijb_section",
    "line_plot",
    "mean_prr_table",
    "nearest_section",
    "pair_rejection_tables",
    "rejection_section",
    "render_html",
    "require_matplotlib",
    "rich_table",
    "strip_by_kappa",
    "strips_of_mistakes",
    "terminal_table",
    "write_report",
]
