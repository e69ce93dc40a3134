"""Reports: results of the evaluation as one HTML page, Markdown, JSON, and tables for a terminal."""

from spherecf.report.decision_sections import (
    calibration_section,
    calibration_tables,
    mean_prr_table,
    rejection_notes,
    rejection_section,
    rejection_tables,
)
from spherecf.report.figures import (
    Histogram,
    Series,
    det_lines,
    histogram_plot,
    line_plot,
    require_matplotlib,
)
from spherecf.report.pair_figures import strip_by_kappa, strips_of_mistakes
from spherecf.report.parts import Plot, Section, Strip, Table
from spherecf.report.tables import group_table, pair_rejection_tables, rich_table, terminal_table
from spherecf.report.verification_sections import (
    identification_notes,
    identification_section,
    identification_table,
    ijb_notes,
    ijb_section,
    ijb_tables,
    nearest_section,
)
from spherecf.report.write import ReportFiles, write_report

__all__ = [
    "Histogram",
    "Plot",
    "ReportFiles",
    "Section",
    "Series",
    "Strip",
    "Table",
    "calibration_section",
    "calibration_tables",
    "det_lines",
    "group_table",
    "histogram_plot",
    "identification_notes",
    "identification_section",
    "identification_table",
    "ijb_notes",
    "ijb_section",
    "ijb_tables",
    "line_plot",
    "mean_prr_table",
    "nearest_section",
    "pair_rejection_tables",
    "rejection_notes",
    "rejection_section",
    "rejection_tables",
    "require_matplotlib",
    "rich_table",
    "strip_by_kappa",
    "strips_of_mistakes",
    "terminal_table",
    "write_report",
]
