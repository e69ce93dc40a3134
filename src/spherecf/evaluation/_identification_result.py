"""What 1:N search found: plain data, ready for JSON."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from spherecf.evaluation._bootstrap import Interval
from spherecf.evaluation._result import Measure, plain


@dataclass(frozen=True)
class TpirAtFpir:
    """The largest TPIR whose FPIR does not exceed ``target``, with the counts behind it."""

    target: float
    tpir: float | None
    fnir: float | None
    fpir: float | None
    threshold: float | None
    identified: int | None
    false_positives: int | None
    mated: int
    non_mated: int
    unresolved: str | None = None
    """Why there is no number."""


@dataclass(frozen=True)
class GalleryResult:
    """One gallery, for one way to pool and to score."""

    gallery: str
    enrolled: int
    mated: int
    """Probes whose subject is enrolled."""
    non_mated: int
    ranks: dict[str, Measure]
    """"1", "5", "10" to the share of mated probes whose mate is among the first so many."""
    cmc: list[float]
    """The same for every rank from 1, up to 100."""
    tpir: list[TpirAtFpir]
    tpir_intervals: dict[str, Interval]
    det: dict[str, list[float]]
    """``fpir`` and ``fnir``, thinned for plotting."""


@dataclass(frozen=True)
class IdentificationResult:
    """One way to pool and to score: every gallery, and their mean."""

    mode: str
    pooling: str
    score: str
    signature: str
    galleries: list[GalleryResult]
    mean: dict[str, Measure]
    """"rank-1", "tpir@0.01", ...: mean over galleries; absent where one gallery has no number."""

    @property
    def name(self) -> str:
        """Of the row and its line: "kappa, mls"."""
        return f"{self.pooling}, {self.score}"


@dataclass(frozen=True)
class IdentificationReport:
    """Result of 1:N search; `to_dict` is JSON-able."""

    name: str
    max_rank: int
    """A mate counts as identified in the open set if its rank is at most this."""
    counts: dict[str, int]
    """``images``, ``probes``, ``gallery_templates``, ``people``, ``failed_images``, ``failed_probes``,
    ``failed_gallery_templates``"""
    failures: list[tuple[str, str]]
    failed_templates: list[int]
    resampling: str
    results: list[IdentificationResult]
    notes: list[str] = field(default_factory=list)
    resampled: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)
    """Bootstrap draws of the means by "kappa, mls:tpir@0.01" and so on; not in the JSON."""

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; without ``curves`` CMC and DET are left out."""
        found: dict[str, Any] = plain(asdict(replace(self, resampled={})))
        del found["resampled"]
        if not curves:
            for gallery in (gallery for result in found["results"] for gallery in result["galleries"]):
                del gallery["cmc"], gallery["det"]
        return found
