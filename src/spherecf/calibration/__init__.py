"""What is saved with a model and applied by it: kappa in percent, likelihood ratios, thresholds, decisions.

NumPy only. The numbers are fitted here; how good they are is measured in `spherecf.evaluation`.
"""

from spherecf.calibration.calibration import (
    PAIR_SCORE,
    TEMPLATE_SCORE,
    Calibration,
    Calibrator,
    fit_calibration,
)
from spherecf.calibration.calibrators import IsotonicCalibrator, LogisticCalibrator, pool_adjacent_violators
from spherecf.calibration.checks import llr_limits
from spherecf.calibration.decisions import Decision, DecisionRule, ErrorCount, ThresholdEntry, ThresholdTable
from spherecf.calibration.intervals import binomial_cdf, binomial_upper, clopper_pearson, wilson
from spherecf.calibration.kappa import KappaScale

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
    "binomial_cdf",
    "binomial_upper",
    "clopper_pearson",
    "fit_calibration",
    "llr_limits",
    "pool_adjacent_violators",
    "wilson",
]
