"""What a pair protocol found: plain data, ready for JSON."""

import math
from bisect import bisect_right
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.evaluation._bootstrap import Interval
from spherecf.evaluation._discard import Edc, RejectionCurve
from spherecf.evaluation._mistakes import Mistake
from spherecf.evaluation._nearest import NearestPoint
from spherecf.evaluation._rates import TmrAtFmr
from spherecf.evaluation._tenfold import TenFold

_STEPS = 200


@dataclass(frozen=True)
class Measure:
    """A number with its interval over what ``PairReport.resampling`` says; None without draws."""

    value: float
    interval: Interval | None


@dataclass(frozen=True)
class ScoreResult:
    """Everything measured for one score."""

    score: str
    signature: str
    log_line: str
    tenfold: TenFold
    accuracy: Measure
    tmr: list[TmrAtFmr]
    tmr_intervals: dict[str, Interval]
    """FMR target ("0.001") to the interval of its TMR; unresolved targets are absent."""
    eer: Measure
    auc: Measure
    det: dict[str, list[float]]
    """``fmr`` and ``fnmr`` of the DET curve, thinned for plotting."""
    nearest: list[NearestPoint] = field(default_factory=list)
    """The targets at the nearest points of the ROC, if asked for."""

    def measure(self, name: str) -> Measure | None:
        """By the name used in tables: "accuracy", "eer", "auc", "tmr@0.001"; None where unresolved."""
        if name.startswith("tmr@"):
            target = name.removeprefix("tmr@")
            for entry in self.tmr:
                if f"{entry.target:g}" == target and entry.tmr is not None:
                    return Measure(entry.tmr, self.tmr_intervals.get(target))
            return None
        found: Measure = getattr(self, name)
        return found


@dataclass(frozen=True)
class Discarding:
    """EDC of one score and confidence from one starting point."""

    score: str
    confidence: str
    start: str
    """The operating point: "fnmr<=0.05", "fmr<=0.001", ..."""
    edc: Edc


@dataclass(frozen=True)
class Rejection:
    """Rejection curve of one score and confidence, by images."""

    score: str
    confidence: str
    curve: RejectionCurve


@dataclass(frozen=True)
class KappaHistogram:
    """Distribution of log10 kappa over the images of one severity."""

    label: str
    images: int
    edges: list[float]
    """Of log10 kappa, the same for all severities."""
    counts: list[int]
    quartiles: list[float]
    """kappa at 25, 50 and 75 %."""


@dataclass(frozen=True)
class PairReport:
    """Result of one pair list under one condition; `to_dict` is JSON-able."""

    name: str
    condition: str
    counts: dict[str, int]
    """``images``, ``pairs``, ``mated``, ``non_mated``, ``subjects``, ``failed_images``, ``failed_pairs``"""
    failures: list[tuple[str, str]]
    """(key, reason) of the images this list needs and that could not be embedded."""
    resampling: str
    """What the intervals draw: "subject-1000/0", or "image-..." where subjects are unknown, or "none"."""
    scores: dict[str, ScoreResult]
    differences: dict[str, Measure]
    """Score minus cosine on the same draws, by "mls-cosine:accuracy" and so on."""
    edc: list[Discarding]
    rejection: list[Rejection]
    kappa_histograms: list[KappaHistogram] = field(default_factory=list)
    absent_confidences: list[str] = field(default_factory=list)
    """Asked for, but not among the extras of the embeddings."""
    mistakes: list[Mistake] = field(default_factory=list)
    """The worst of every score, see `worst_mistakes`."""
    label: str = ""
    """What tells this run from others of the same list and condition, e.g. "seed 1"."""
    resampled: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)
    """Bootstrap draws by "mls:accuracy" and so on, for statistics over several reports; not in the JSON."""

    def log_lines(self) -> list[str]:
        """One line per score, in the form the field greps for."""
        return [result.log_line for result in self.scores.values()]

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; numbers that do not exist are None, an infinite threshold is "inf".

        EDC steps are read at every 0.5 % discarded, exact there; the areas are of all steps. Without
        ``curves`` the points of DET, EDC, rejection and histograms are left out.
        """
        found: dict[str, Any] = plain(asdict(replace(self, resampled={})))
        del found["resampled"]
        for entry in found["edc"]:
            entry["edc"] |= _thin_steps(entry["edc"])
        if not curves:
            for result in found["scores"].values():
                del result["det"]
            for entry in found["edc"]:
                del entry["edc"]["discard_fraction"], entry["edc"]["fnmr"]
            del found["rejection"], found["kappa_histograms"]
        return found


def _thin_steps(edc: dict[str, Any]) -> dict[str, list[float]]:
    fractions, fnmr = edc["discard_fraction"], edc["fnmr"]
    if len(fractions) <= _STEPS:
        return {}
    at = [i / _STEPS for i in range(_STEPS)]
    held = [bisect_right(fractions, fraction) - 1 for fraction in at]
    return {"discard_fraction": at, "fnmr": [fnmr[i] for i in held]}


def plain(value: Any) -> Any:
    """Dicts, lists and numbers that JSON knows: NaN becomes None, an infinity "inf" or "-inf".

    >>> plain({"rank": np.int64(1), "rates": np.array([0.5, np.inf, np.nan])})
    {'rank': 1, 'rates': [0.5, 'inf', None]}
    """
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
