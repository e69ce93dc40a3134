"""What an evaluation of calibration found: plain data, ready for JSON, and the calibration itself."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from spherecf.calibration import Calibration, DecisionRule, ErrorCount, ThresholdEntry
from spherecf.evaluation._bootstrap import Interval
from spherecf.evaluation._llr import Reliability
from spherecf.evaluation._result import plain


@dataclass(frozen=True)
class Cost:
    """Cllr of one calibrator on people it was not fitted on."""

    method: str
    cllr: float
    interval: Interval | None
    """Over people; None without draws."""
    loss: float
    """Above the smallest Cllr of any rising function on the same pairs."""
    reliability: Reliability
    separated: bool = False
    """The straight line was regularised, see `spherecf.calibration.LogisticCalibrator`."""


@dataclass(frozen=True)
class ThresholdCheck:
    """A threshold fitted on some people, and what it does on others."""

    fitted: ThresholdEntry
    checked: ThresholdEntry | None
    """Counts and intervals of the same threshold on the other people; None where none was fitted."""


@dataclass(frozen=True)
class RuleCheck:
    """A decision rule, and what it does on people who had no part in making it."""

    rule: DecisionRule
    coverage: float
    """Share of the pairs decided."""
    coverage_mated: float
    coverage_non_mated: float
    errors: list[ErrorCount]
    """Found there; ``upper`` is again the one-sided bound at delta."""


@dataclass(frozen=True)
class CoverageCurve:
    """Share of the other people's pairs that is decided, for several bounds on both errors."""

    abstain: str
    """What leaves pairs undecided: "score", "confidence" or "both"."""
    alphas: list[float]
    coverage: list[float]


@dataclass(frozen=True)
class ScoreCalibration:
    """Everything about one score."""

    score: str
    signature: str
    min_cllr: float
    costs: list[Cost]
    """Of the method asked for, then of the other one."""
    tippett: dict[str, list[float]]
    thresholds: list[ThresholdCheck]
    decisions: list[RuleCheck]
    curves: list[CoverageCurve]


@dataclass(frozen=True)
class KappaLevel:
    """A percentile of the reference images."""

    percent: float
    kappa: float
    cosine: float
    """A_d(kappa): the expected cosine to the person's prototype."""
    iso: int


@dataclass(frozen=True)
class CalibrationReport:
    """Result of `evaluate_calibration`; `to_dict` is JSON-able."""

    name: str
    condition: str
    counts: dict[str, int]
    failures: list[tuple[str, str]]
    split: str
    """What was drawn into the parts: "groups" of linked people, or "people"."""
    unit: str
    """"subject", or "image" where people are unknown: then parts may share people, and no promise holds."""
    confidence: str
    resampling: str
    kappa: list[KappaLevel]
    scores: dict[str, ScoreCalibration]
    calibration: Calibration = field(repr=False)

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; without ``curves`` the points of plots and the calibration are left out."""
        bare = asdict(replace(self, calibration=Calibration("", "")))
        del bare["calibration"]
        if curves:
            bare["calibration"] = self.calibration.to_dict()
        else:
            for score in bare["scores"].values():
                del score["tippett"], score["curves"]
        found: dict[str, Any] = plain(bare)
        return found
