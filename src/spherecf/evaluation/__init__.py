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

from spherecf.evaluation.bootstrap import Interval, SubjectRates, bootstrap_subjects, bootstrap_tmr, interval
from spherecf.evaluation.calibration import (
    CalibrationReport,
    ScoreCalibration,
    check_rule,
    evaluate_calibration,
)
from spherecf.evaluation.decisions import JudgedPairs, bounded_rule, choose_decision
from spherecf.evaluation.discard import Edc, RejectionCurve, edc, pair_quality, rejection_curve
from spherecf.evaluation.distractors import (
    AtSize,
    DistractorReport,
    DistractorResult,
    identify_with_distractors,
)
from spherecf.evaluation.folds import TenFold, tenfold
from spherecf.evaluation.groups import (
    AtThreshold,
    GroupReport,
    GroupResult,
    by_group,
    extra_groups,
    pair_groups,
    template_groups,
)
from spherecf.evaluation.identification import (
    GalleryResult,
    IdentificationReport,
    IdentificationResult,
    TpirAtFpir,
    evaluate_identification,
)
from spherecf.evaluation.large_rates import ScoreSplit
from spherecf.evaluation.llr import Reliability, cllr, min_cllr, reliability, tippett
from spherecf.evaluation.open_set import (
    Decisions,
    OpenSet,
    decide,
    f1_after_rejection,
    fpir_threshold,
    prediction_rejection_ratio,
)
from spherecf.evaluation.pairs import evaluate_pairs
from spherecf.evaluation.rates import (
    Curve,
    NearestPoint,
    TmrAtFmr,
    auc,
    det_curve,
    eer,
    roc,
    tmr_at_fmr,
    tmr_at_nearest_fmr,
)
from spherecf.evaluation.rejection import (
    ConfidencePrr,
    OperatingPoint,
    RejectionReport,
    evaluate_rejection,
    evaluate_template_rejection,
)
from spherecf.evaluation.results import Measure, Mistake, PairReport, ScoreResult, signature, worst_mistakes
from spherecf.evaluation.subjects import disjoint_pairs, split_subjects
from spherecf.evaluation.synthetic import SyntheticTemplates, synthetic_templates
from spherecf.evaluation.templates import TemplateSet
from spherecf.evaluation.verification import TemplateReport, TemplateResult, evaluate_ijb

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
    "RejectionCurve",
    "RejectionReport",
    "Reliability",
    "ScoreCalibration",
    "ScoreResult",
    "ScoreSplit",
    "SubjectRates",
    "SyntheticTemplates",
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
    "check_rule",
    "choose_decision",
    "cllr",
    "decide",
    "by_group",
    "det_curve",
    "disjoint_pairs",
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
    "identify_with_distractors",
    "interval",
    "min_cllr",
    "pair_groups",
    "pair_quality",
    "prediction_rejection_ratio",
    "rejection_curve",
    "reliability",
    "roc",
    "signature",
    "split_subjects",
    "synthetic_templates",
    "template_groups",
    "tenfold",
    "tippett",
    "tmr_at_fmr",
    "tmr_at_nearest_fmr",
    "worst_mistakes",
]
