"""What is saved with a model and applied by it: kappa in percent, likelihood ratios, thresholds, decisions.

NumPy and scipy only. The numbers are fitted here; how good they are is measured in `spherecf.evaluation`.
"""

from spherecf.calibration.calibration import (
    PAIR_SCORE,
    TEMPLATE_SCORE,
    Calibration,
    Calibrator,
    fit_calibration,
)
from spherecf.calibration.calibrators import (
    IsotonicCalibrator,
    KappaScale,
    LogisticCalibrator,
    pool_adjacent_violators,
)
from spherecf.calibration.checks import check_mated, check_pairs, llr_limits
from spherecf.calibration.decisions import (
    Decision,
    DecisionRule,
    ErrorCount,
    ThresholdEntry,
    ThresholdTable,
    allowed_errors,
    threshold_at_rate,
    unresolved_rate,
)
from spherecf.calibration.intervals import binomial_cdf, binomial_upper, clopper_pearson, wilson

__all__ = [
    "PAIR_SCORE",
    "TEMPLATE_SCORE",
    "Calibration",
    "Calibrator",
    "Decision",
    "DecisionRule",
    "ErrorCount",
    "IsotonicCalibrator",
    "KappaScale",
    "LogisticCalibrator",
    "ThresholdEntry",
    "ThresholdTable",
    "allowed_errors",
    "binomial_cdf",
    "binomial_upper",
    "check_mated",
    "check_pairs",
    "clopper_pearson",
    "fit_calibration",
    "llr_limits",
    "pool_adjacent_violators",
    "threshold_at_rate",
    "unresolved_rate",
    "wilson",
]
