"""Metrics and protocols, computed from embeddings files and pair lists alone.

Rates are exact (from sorted scores, ties handled), never from a grid of thresholds; metrics never transform
scores; every result carries its signature, its counts and intervals over subjects.

- metrics: ``rates`` (of millions of pairs ``large_rates``), ``folds``, ``discard``, ``llr``, ``open_set``;
  their intervals in ``bootstrap``;
- protocols on images: ``pairs``, ``calibration``, ``decisions``, ``groups``;
- protocols on templates (``templates``): ``verification``, ``identification``, ``rejection``.
"""

from spherecf.evaluation.bootstrap import Interval, SubjectRates, bootstrap_subjects, bootstrap_tmr, interval
from spherecf.evaluation.calibration import (
    CalibrationOptions,
    CalibrationReport,
    RuleCheck,
    ScoreCalibration,
    check_rule,
    evaluate_calibration,
)
from spherecf.evaluation.decisions import JudgedPairs, bounded_rule, choose_decision
from spherecf.evaluation.discard import Edc, RejectionCurve, edc, pair_quality, rejection_curve
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
from spherecf.evaluation.llr import Reliability, cllr, min_cllr, reliability, tippett
from spherecf.evaluation.open_set import (
    Decisions,
    OpenSet,
    decide,
    f1_after_rejection,
    fpir_threshold,
    prediction_rejection_ratio,
)
from spherecf.evaluation.pairs import PairOptions, Pairs, evaluate_pairs
from spherecf.evaluation.rates import (
    Curve,
    NearestPoint,
    ScoreSplit,
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
    RejectionOptions,
    RejectionReport,
    evaluate_rejection,
    evaluate_template_rejection,
)
from spherecf.evaluation.results import (
    KappaHistogram,
    Measure,
    Mistake,
    PairReport,
    ScoreResult,
    plain,
    signature,
    worst_mistakes,
)
from spherecf.evaluation.subjects import disjoint_pairs, split_subjects
from spherecf.evaluation.templates import TemplateSet
from spherecf.evaluation.verification import TemplateReport, TemplateResult, evaluate_ijb

__all__ = [
    "AtThreshold",
    "CalibrationOptions",
    "CalibrationReport",
    "PairOptions",
    "Pairs",
    "ConfidencePrr",
    "Curve",
    "Decisions",
    "Edc",
    "GalleryResult",
    "GroupReport",
    "GroupResult",
    "IdentificationReport",
    "IdentificationResult",
    "Interval",
    "JudgedPairs",
    "KappaHistogram",
    "Measure",
    "Mistake",
    "NearestPoint",
    "OpenSet",
    "OperatingPoint",
    "PairReport",
    "RejectionCurve",
    "RejectionOptions",
    "RejectionReport",
    "Reliability",
    "RuleCheck",
    "ScoreCalibration",
    "ScoreResult",
    "ScoreSplit",
    "SubjectRates",
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
    "by_group",
    "check_rule",
    "choose_decision",
    "cllr",
    "decide",
    "det_curve",
    "disjoint_pairs",
    "edc",
    "eer",
    "evaluate_calibration",
    "evaluate_identification",
    "evaluate_ijb",
    "evaluate_pairs",
    "evaluate_rejection",
    "evaluate_template_rejection",
    "extra_groups",
    "f1_after_rejection",
    "fpir_threshold",
    "interval",
    "min_cllr",
    "pair_groups",
    "pair_quality",
    "plain",
    "prediction_rejection_ratio",
    "rejection_curve",
    "reliability",
    "roc",
    "signature",
    "split_subjects",
    "template_groups",
    "tenfold",
    "tippett",
    "tmr_at_fmr",
    "tmr_at_nearest_fmr",
    "worst_mistakes",
]
