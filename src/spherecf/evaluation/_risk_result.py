"""What risk-controlled recognition found: plain data, ready for JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from spherecf.evaluation._result import Measure, plain


@dataclass(frozen=True)
class OperatingPoint:
    """The decisions at one FPIR, and what was fitted for it on the validation subjects."""

    fpir_target: float
    threshold: float | None
    fpir: float | None
    f1: float | None
    """With nothing rejected."""
    counts: dict[str, int]
    """``identified``, ``misidentified``, ``false_rejects``, ``false_accepts``, ``true_rejects``"""
    validation_errors: int
    log_weights: dict[str, float] | None
    """Natural logarithms of the four weights of MPRisk."""
    calibrator: dict[str, list[float]] | None
    """``mean``, ``scale``, ``coefficients`` of HolUE's."""
    unresolved: str | None = None
    """Why there are no ratios."""

    @classmethod
    def without(cls, fpir: float, reason: str) -> "OperatingPoint":
        """No threshold."""
        return cls(fpir, None, None, None, {}, 0, None, None, reason)


@dataclass(frozen=True)
class ConfidencePrr:
    """One confidence at one operating point."""

    confidence: str
    fpir_target: float
    prr: Measure
    minus_kappa: Measure
    """PRR minus that of kappa, on the same draws."""
    f1: list[float]
    """After rejecting each of ``RejectionReport.shares``."""
    signature: str


@dataclass(frozen=True)
class RejectionReport:
    """Result of `evaluate_rejection`; `to_dict` is JSON-able."""

    name: str
    counts: dict[str, int]
    """``gallery``, ``probes``, ``mated``, ``non_mated``, ``subjects``, and with ``validation_`` in front."""
    kappa_gallery: dict[str, float]
    """``posterior``: at the mean direction; ``mutual``: over the probe's distribution."""
    beta: float
    limit: float
    resampling: str
    points: list[OperatingPoint]
    shares: list[float]
    prr: list[ConfidencePrr]
    absent_confidences: list[str]
    """Known confidences that these probes lack."""

    def at(self, confidence: str, fpir: float) -> ConfidencePrr | None:
        """By confidence and FPIR target; None where unresolved or absent."""
        for entry in self.prr:
            if entry.confidence == confidence and entry.fpir_target == fpir:
                return entry
        return None

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; without ``curves`` the F1 after each share is left out."""
        found: dict[str, Any] = plain(asdict(self))
        if not curves:
            del found["shares"]
            for entry in found["prr"]:
                del entry["f1"]
        return found
