"""The calibration saved with a model: percentiles of kappa, likelihood ratios, thresholds, decision rules.

It needs NumPy and scipy only. Calibrations are fitted here and evaluated in `spherecf.evaluation`.
"""

from spherecf.calibration.calibration import (
    GALLERY_SCORES as GALLERY_SCORES,
    PAIR_EVIDENCE as PAIR_EVIDENCE,
    PAIR_SCORE as PAIR_SCORE,
    TEMPLATE_EVIDENCE as TEMPLATE_EVIDENCE,
    TEMPLATE_SCORE as TEMPLATE_SCORE,
    TEMPLATES_EVIDENCE as TEMPLATES_EVIDENCE,
    Calibration,
    Calibrator as Calibrator,
    fit_calibration,
)
from spherecf.calibration.calibrators import (
    IsotonicCalibrator as IsotonicCalibrator,
    KappaScale,
    LogisticCalibrator as LogisticCalibrator,
    pool_adjacent_violators as pool_adjacent_violators,
)
from spherecf.calibration.checks import (
    binomial_cdf as binomial_cdf,
    binomial_upper as binomial_upper,
    check_mated as check_mated,
    check_pairs as check_pairs,
    clopper_pearson,
    llr_limits as llr_limits,
    real_numbers as real_numbers,
    wilson as wilson,
)
from spherecf.calibration.decisions import (
    Decision,
    DecisionRule,
    ErrorCount as ErrorCount,
    ThresholdEntry as ThresholdEntry,
    ThresholdTable as ThresholdTable,
    allowed_errors as allowed_errors,
    threshold_at_rate,
    unresolved_rate as unresolved_rate,
)
from spherecf.calibration.evidence import ConditionalCalibrator

# Names imported `as` themselves are for the other packages of spherecf and are not part of the public
# interface.
__all__ = [
    "Calibration",
    "ConditionalCalibrator",
    "Decision",
    "DecisionRule",
    "KappaScale",
    "clopper_pearson",
    "fit_calibration",
    "threshold_at_rate",
]
