"""Reports of evaluation results: an HTML page, Markdown, JSON, and tables for a terminal."""

from spherecf.report.figures import (
    Axis,
    Histogram,
    Plot as Plot,
    Series,
    Strip as Strip,
    det_lines,
    histogram_plot,
    line_plot,
    require_matplotlib as require_matplotlib,
    strip_by_kappa,
    strips_of_mistakes,
)
from spherecf.report.sections import (
    Section,
    calibration_section,
    identification_section,
    ijb_section,
    mean_prr_table as mean_prr_table,
    nearest_section as nearest_section,
    rejection_section,
)
from spherecf.report.tables import (
    Table,
    group_table as group_table,
    pair_rejection_tables as pair_rejection_tables,
    rich_table as rich_table,
    terminal_table as terminal_table,
)
from spherecf.report.write import ReportFiles as ReportFiles, render_html as render_html, write_report

# Names imported `as` themselves serve other sub-packages; they are not part of the public interface.
__all__ = [
    "Axis",
    "Histogram",
    "Section",
    "Series",
    "Table",
    "calibration_section",
    "det_lines",
    "histogram_plot",
    "identification_section",
    "ijb_section",
    "line_plot",
    "rejection_section",
    "strip_by_kappa",
    "strips_of_mistakes",
    "write_report",
]
