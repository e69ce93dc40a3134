"""Metrics, protocols and reports, computed from embeddings files and pair lists alone.

Rates are exact (from sorted scores, ties handled), never from a grid of thresholds; metrics never transform
scores; every result carries its signature, its counts and intervals over subjects.
"""

from spherecf.evaluation._bootstrap import Interval, bootstrap_subjects, interval
from spherecf.evaluation._curve import Curve, roc
from spherecf.evaluation._discard import Edc, RejectionCurve, edc, pair_quality, rejection_curve
from spherecf.evaluation._line_plot import Series, line_plot
from spherecf.evaluation._parts import Plot, Section, Strip, Table, strip_by_kappa
from spherecf.evaluation._plots import require_matplotlib
from spherecf.evaluation._rates import TmrAtFmr, auc, det_curve, eer, tmr_at_fmr
from spherecf.evaluation._report import ReportFiles, write_report
from spherecf.evaluation._result import Measure, PairReport, ScoreResult
from spherecf.evaluation._signature import signature
from spherecf.evaluation._tenfold import TenFold, tenfold
from spherecf.evaluation._terminal import terminal_table
from spherecf.evaluation._verification import evaluate_pairs

__all__ = [
    "Curve",
    "Edc",
    "Interval",
    "Measure",
    "PairReport",
    "Plot",
    "RejectionCurve",
    "ReportFiles",
    "ScoreResult",
    "Section",
    "Series",
    "Strip",
    "Table",
    "TenFold",
    "TmrAtFmr",
    "auc",
    "bootstrap_subjects",
    "det_curve",
    "edc",
    "eer",
    "evaluate_pairs",
    "interval",
    "line_plot",
    "pair_quality",
    "rejection_curve",
    "require_matplotlib",
    "roc",
    "signature",
    "strip_by_kappa",
    "tenfold",
    "terminal_table",
    "tmr_at_fmr",
    "write_report",
]
