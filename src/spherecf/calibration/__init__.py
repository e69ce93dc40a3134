"""What is saved with a model and applied by it: kappa in percent, likelihood ratios, thresholds, decisions.

NumPy only. The numbers are fitted here; how good they are is measured in `spherecf.evaluation`.
"""

from spherecf.calibration._binomial import binomial_cdf, binomial_upper, clopper_pearson, wilson
from spherecf.calibration._calibration import PAIR_SCORE, TEMPLATE_SCORE, Calibration, Calibrator
from spherecf.calibration._decision import Decision, DecisionRule, ErrorCount
from spherecf.calibration._fit import fit_calibration
from spherecf.calibration._isotonic import IsotonicCalibrator
from spherecf.calibration._kappa import KappaScale
from spherecf.calibration._labelled import llr_limits
from spherecf.calibration._logistic import LogisticCalibrator
from spherecf.calibration._pav import pool_adjacent_violators
from spherecf.calibration._thresholds import ThresholdEntry, ThresholdTable

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
