"""Metrics and protocols, computed from embeddings files and pair lists alone.

Rates are exact (from sorted scores, ties handled), never from a grid of thresholds; metrics never transform
scores; every result carries its signature, its counts and intervals over subjects.

- metrics: ``rates`` (of millions of pairs `ScoreSplit`), ``folds``, ``discard``, ``llr``, ``open_set``;
  their intervals in ``bootstrap``;
- protocols on images: ``pairs``, ``calibration``, ``decisions``, ``groups``;
- protocols on templates (``templates``): ``verification``, ``identification``, ``rejection``.
"""

from spherecf.evaluation.bootstrap import (
    Interval as Interval,
    SubjectRates,
    bootstrap_subjects,
    bootstrap_tmr,
    interval as interval,
)
from spherecf.evaluation.calibration import (
    CalibrationOptions,
    CalibrationReport as CalibrationReport,
    RuleCheck as RuleCheck,
    ScoreCalibration as ScoreCalibration,
    check_rule,
    evaluate_calibration,
    neutral_score as neutral_score,
)
from spherecf.evaluation.decisions import ScoredPairs, bounded_rule, choose_decision
from spherecf.evaluation.discard import (
    Edc as Edc,
    RejectionCurve as RejectionCurve,
    edc,
    pair_quality,
    rejection_curve as rejection_curve,
)
from spherecf.evaluation.folds import (
    TenFold as TenFold,
    disjoint_pairs as disjoint_pairs,
    split_subjects,
    tenfold,
)
from spherecf.evaluation.groups import (
    AtThreshold as AtThreshold,
    GroupReport as GroupReport,
    GroupResult as GroupResult,
    by_group as by_group,
    extra_groups as extra_groups,
    pair_groups as pair_groups,
    template_groups as template_groups,
)
from spherecf.evaluation.identification import (
    GalleryResult as GalleryResult,
    IdentificationReport as IdentificationReport,
    IdentificationResult as IdentificationResult,
    TpirAtFpir as TpirAtFpir,
    evaluate_identification,
)
from spherecf.evaluation.llr import (
    Reliability as Reliability,
    cllr,
    min_cllr,
    reliability,
    tippett as tippett,
)
from spherecf.evaluation.members import (
    MIN_MEMBERS as MIN_MEMBERS,
    MembersReport as MembersReport,
    check_members,
)
from spherecf.evaluation.open_set import (
    Decisions as Decisions,
    OpenSet,
    decide,
    f1_after_rejection as f1_after_rejection,
    fpir_threshold as fpir_threshold,
    prediction_rejection_ratio,
)
from spherecf.evaluation.pairs import PairOptions, Pairs as Pairs, evaluate_pairs
from spherecf.evaluation.people import (
    MIN_PEOPLE as MIN_PEOPLE,
    PeopleReport as PeopleReport,
    RuleCount as RuleCount,
    RuleOnPeople as RuleOnPeople,
    check_people,
    in_turns as in_turns,
)
from spherecf.evaluation.rates import (
    Curve as Curve,
    NearestPoint as NearestPoint,
    ScoreSplit,
    TmrAtFmr as TmrAtFmr,
    auc,
    det_curve,
    eer,
    roc,
    tmr_at_fmr,
    tmr_at_nearest_fmr,
)
from spherecf.evaluation.rejection import (
    ConfidencePrr as ConfidencePrr,
    OperatingPoint as OperatingPoint,
    RejectionOptions,
    RejectionReport as RejectionReport,
    evaluate_rejection,
    evaluate_template_rejection,
)
from spherecf.evaluation.results import (
    KappaHistogram as KappaHistogram,
    Measure as Measure,
    Mistake as Mistake,
    PairReport as PairReport,
    ScoreResult as ScoreResult,
    plain as plain,
    signature as signature,
    worst_mistakes,
)
from spherecf.evaluation.tails import (
    MIN_EXCEEDANCES as MIN_EXCEEDANCES,
    TailFit as TailFit,
    extrapolated_rule,
    fit_tail,
)
from spherecf.evaluation.templates import TemplateOptions, TemplateSet as TemplateSet
from spherecf.evaluation.verification import (
    TemplateReport as TemplateReport,
    TemplateResult as TemplateResult,
    evaluate_ijb,
)

# Names imported `as` themselves serve other sub-packages; they are not part of the public interface.
__all__ = [
    "CalibrationOptions",
    "ScoredPairs",
    "OpenSet",
    "PairOptions",
    "RejectionOptions",
    "ScoreSplit",
    "SubjectRates",
    "TemplateOptions",
    "auc",
    "bootstrap_subjects",
    "bootstrap_tmr",
    "bounded_rule",
    "check_members",
    "check_people",
    "check_rule",
    "choose_decision",
    "cllr",
    "decide",
    "det_curve",
    "edc",
    "eer",
    "evaluate_calibration",
    "evaluate_identification",
    "evaluate_ijb",
    "evaluate_pairs",
    "evaluate_rejection",
    "evaluate_template_rejection",
    "extrapolated_rule",
    "fit_tail",
    "min_cllr",
    "pair_quality",
    "prediction_rejection_ratio",
    "reliability",
    "roc",
    "split_subjects",
    "tenfold",
    "tmr_at_fmr",
    "tmr_at_nearest_fmr",
    "worst_mistakes",
]
