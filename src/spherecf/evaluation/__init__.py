"""Metrics, protocols and reports, computed from embeddings files and pair lists alone.

Rates are exact (from sorted scores, ties handled), never from a grid of thresholds; metrics never transform
scores; every result carries its signature, its counts and intervals over subjects.

A protocol is up to three files: itself, ``_x_result`` (plain data) and ``_x_section`` (its page).

- metrics: ``_curve``, ``_rates``, ``_tenfold``, ``_discard``, ``_prr``, ``_llr``, ``_nearest``; of millions
  of pairs ``_large`` and ``_subject_rates``; intervals in ``_bootstrap`` and ``_large_bootstrap``;
- protocols on images: ``_verification``, ``_calibration``, ``_selective``, ``_bounded_rule``,
  ``_distractors``, ``_groups``;
- protocols on templates (``_template_set``, ``_modes``): ``_ijb``, ``_identification``, ``_risk``,
  ``_template_rejection``;
- reports: ``_report`` on ``_content``, written by ``_html`` and ``_markdown`` from the pieces in ``_parts``.
"""

from spherecf.evaluation._bootstrap import Interval, bootstrap_subjects, interval
from spherecf.evaluation._bounded_rule import bounded_rule
from spherecf.evaluation._calibration import evaluate_calibration
from spherecf.evaluation._calibration_result import CalibrationReport, ScoreCalibration
from spherecf.evaluation._calibration_score import check_rule
from spherecf.evaluation._calibration_section import calibration_section, calibration_tables
from spherecf.evaluation._canvas import require_matplotlib
from spherecf.evaluation._curve import Curve, roc
from spherecf.evaluation._discard import Edc, RejectionCurve, edc, pair_quality, rejection_curve
from spherecf.evaluation._discard_tables import pair_rejection_tables
from spherecf.evaluation._distractors import (
    AtSize,
    DistractorReport,
    DistractorResult,
    identify_with_distractors,
)
from spherecf.evaluation._distractors_section import distractor_notes, distractor_section, distractor_table
from spherecf.evaluation._group_names import extra_groups, pair_groups, template_groups
from spherecf.evaluation._group_table import group_table
from spherecf.evaluation._groups import AtThreshold, GroupReport, GroupResult, by_group
from spherecf.evaluation._identification import evaluate_identification
from spherecf.evaluation._identification_result import (
    GalleryResult,
    IdentificationReport,
    IdentificationResult,
    TpirAtFpir,
)
from spherecf.evaluation._identification_section import (
    identification_notes,
    identification_section,
    identification_table,
)
from spherecf.evaluation._ijb import TemplateReport, TemplateResult, evaluate_ijb
from spherecf.evaluation._ijb_section import ijb_notes, ijb_section, ijb_tables
from spherecf.evaluation._large import ScoreSplit
from spherecf.evaluation._large_bootstrap import bootstrap_tmr
from spherecf.evaluation._line_plot import Histogram, Series, det_lines, histogram_plot, line_plot
from spherecf.evaluation._llr import Reliability, cllr, min_cllr, reliability, tippett
from spherecf.evaluation._mistakes import Mistake, worst_mistakes
from spherecf.evaluation._nearest import NearestPoint, tmr_at_nearest_fmr
from spherecf.evaluation._nearest_section import nearest_section
from spherecf.evaluation._open_set import OpenSet
from spherecf.evaluation._parts import Plot, Section, Strip, Table
from spherecf.evaluation._prr import (
    Decisions,
    decide,
    f1_after_rejection,
    fpir_threshold,
    prediction_rejection_ratio,
)
from spherecf.evaluation._rates import TmrAtFmr, auc, det_curve, eer, tmr_at_fmr
from spherecf.evaluation._report import ReportFiles, write_report
from spherecf.evaluation._result import Measure, PairReport, ScoreResult
from spherecf.evaluation._risk import evaluate_rejection
from spherecf.evaluation._risk_result import ConfidencePrr, OperatingPoint, RejectionReport
from spherecf.evaluation._risk_section import (
    mean_prr_table,
    rejection_notes,
    rejection_section,
    rejection_tables,
)
from spherecf.evaluation._selective import JudgedPairs, choose_decision
from spherecf.evaluation._signature import signature
from spherecf.evaluation._split_subjects import disjoint_pairs, split_subjects
from spherecf.evaluation._strips import strip_by_kappa, strips_of_mistakes
from spherecf.evaluation._subject_rates import SubjectRates
from spherecf.evaluation._synthetic import SyntheticTemplates, synthetic_templates
from spherecf.evaluation._template_rejection import evaluate_template_rejection
from spherecf.evaluation._template_set import TemplateSet
from spherecf.evaluation._tenfold import TenFold, tenfold
from spherecf.evaluation._terminal import rich_table, terminal_table
from spherecf.evaluation._verification import evaluate_pairs

__all__ = [
    "AtSize",
    "AtThreshold",
    "CalibrationReport",
    "ConfidencePrr",
    "Curve",
    "Decisions",
    "DistractorReport",
    "DistractorResult",
    "Edc",
    "GalleryResult",
    "GroupReport",
    "GroupResult",
    "Histogram",
    "IdentificationReport",
    "IdentificationResult",
    "Interval",
    "JudgedPairs",
    "Measure",
    "Mistake",
    "NearestPoint",
    "OpenSet",
    "OperatingPoint",
    "PairReport",
    "Plot",
    "RejectionCurve",
    "RejectionReport",
    "Reliability",
    "ReportFiles",
    "ScoreCalibration",
    "ScoreResult",
    "ScoreSplit",
    "Section",
    "Series",
    "Strip",
    "SubjectRates",
    "SyntheticTemplates",
    "Table",
    "TemplateReport",
    "TemplateResult",
    "TemplateSet",
    "TenFold",
    "TmrAtFmr",
    "TpirAtFpir",
    "auc",
    "bootstrap_subjects",
    "bootstrap_tmr",
    "bounded_rule",
    "calibration_section",
    "calibration_tables",
    "check_rule",
    "choose_decision",
    "cllr",
    "decide",
    "by_group",
    "det_curve",
    "det_lines",
    "disjoint_pairs",
    "distractor_notes",
    "distractor_section",
    "distractor_table",
    "edc",
    "eer",
    "evaluate_identification",
    "evaluate_calibration",
    "evaluate_ijb",
    "evaluate_pairs",
    "evaluate_rejection",
    "evaluate_template_rejection",
    "f1_after_rejection",
    "fpir_threshold",
    "extra_groups",
    "group_table",
    "histogram_plot",
    "identification_notes",
    "identification_section",
    "identification_table",
    "identify_with_distractors",
    "ijb_notes",
    "ijb_section",
    "ijb_tables",
    "interval",
    "line_plot",
    "mean_prr_table",
    "min_cllr",
    "nearest_section",
    "pair_groups",
    "pair_quality",
    "pair_rejection_tables",
    "prediction_rejection_ratio",
    "rejection_curve",
    "rejection_notes",
    "rejection_section",
    "rejection_tables",
    "reliability",
    "require_matplotlib",
    "rich_table",
    "roc",
    "signature",
    "split_subjects",
    "strip_by_kappa",
    "strips_of_mistakes",
    "synthetic_templates",
    "template_groups",
    "tenfold",
    "terminal_table",
    "tippett",
    "tmr_at_fmr",
    "tmr_at_nearest_fmr",
    "worst_mistakes",
    "write_report",
]
