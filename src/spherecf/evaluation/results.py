"""Results of the pair protocol as plain data, and signatures that state what a number depends on."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import check_pairs
from spherecf.common.version import __version__
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import Interval
from spherecf.evaluation.discard import Edc, RejectionCurve
from spherecf.evaluation.folds import TenFold
from spherecf.evaluation.rates import NearestPoint, TmrAtFmr

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def signature(protocol: str, **facts: object) -> str:
    """Signature of a result: ``protocol|name:value|...|spherecf:version``.

    Args:
        protocol: name of the protocol, e.g. "cfp-fp/tenfold".
        facts: what the result depends on, in the order to show it; facts that are None are left out.

    Example:
        >>> signature("cfp-fp/tenfold", pairs="sha256:3f1a", flip="none", score="mls").rsplit("|", 1)[0]
        'cfp-fp/tenfold|pairs:sha256:3f1a|flip:none|score:mls'
    """
    parts = [
        f"{name.replace('_', '-')}:{_plain(value)}" for name, value in facts.items() if value is not None
    ]
    return "|".join([protocol, *parts, f"spherecf:{__version__}"])


def short_hash(digest: str) -> str:
    """The first 12 hex digits of a SHA-256, with prefix ``sha256:``."""
    return f"sha256:{digest.removeprefix('sha256:')[:12]}"


def _plain(value: object) -> str:
    return str(value).replace("|", "/").replace("\n", " ")


def input_facts(
    left: Mapping[str, Any], right: Mapping[str, Any], left_hash: str, right_hash: str, pairs_hash: str | None
) -> dict[str, object]:
    """The inputs that a result depends on, for its signature; equal values of both sides are given once.

    Args:
        left: provenance of the left embeddings: ``data`` (hash), ``view``, ``backbone``, ``model``, and, if
            recorded, ``alignment`` and ``flip``.
        right: provenance of the right embeddings.
        left_hash: fingerprint of the left embeddings.
        right_hash: fingerprint of the right embeddings.
        pairs_hash: fingerprint of the pair list, if known.

    Example:
        >>> facts = input_facts({"view": "clean"}, {"view": "cross-v1/0"}, "aa", "bb", None)
        >>> facts["view"], facts["embeddings"]
        ('clean+cross-v1/0', 'sha256:aa+sha256:bb')
    """

    def both(name: str, shorten: bool = False) -> str | None:
        values = [side.get(name) for side in (left, right)]
        if values == [None, None]:
            return None
        texts = [
            "?" if value is None else short_hash(str(value)) if shorten else str(value) for value in values
        ]
        return texts[0] if texts[0] == texts[1] else "+".join(texts)

    hashes = [short_hash(left_hash), short_hash(right_hash)]
    return {
        "pairs": None if pairs_hash is None else short_hash(pairs_hash),
        "data": both("data", shorten=True),
        "view": both("view"),
        "align": both("alignment"),
        "flip": both("flip"),
        "backbone": both("backbone", shorten=True),
        "model": both("model", shorten=True),
        "embeddings": hashes[0] if hashes[0] == hashes[1] else "+".join(hashes),
    }


@dataclass(frozen=True)
class Mistake:
    """A mated pair with a low score, or a non-mated pair with a high score."""

    score: str
    """Name of the score."""
    mated: bool
    value: float
    """Score of the pair."""
    left: str
    """Key of the left image, or name of the template."""
    right: str
    kappa: tuple[float, float]
    subjects: tuple[str, str]
    """Names of the two people; empty if unknown."""


def worst_mistakes(
    name: str,
    scores: ArrayLike,
    mated: ArrayLike,
    keys: tuple[Sequence[str], Sequence[str]],
    kappa: tuple[ArrayLike, ArrayLike],
    subjects: tuple[ArrayLike, ArrayLike] | None = None,
    *,
    count: int = 8,
) -> list[Mistake]:
    """The mated pairs with the lowest scores, then the non-mated pairs with the highest scores.

    The pairs are those at the ends of the score distributions, whether or not they would be wrong at a
    threshold. Pairs with equal scores are in the order of the list.

    Args:
        name: name of the score.
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show the same person.
        keys: keys of the left and of the right images, n each.
        kappa: kappas of the left and of the right images, (n,) each.
        subjects: people of the left and of the right images, n each.
        count: maximum number of pairs of each kind.

    Raises:
        InputError: a score is NaN, the pairs are of one kind only, or the columns differ in length.

    Example:
        >>> keys = ["a", "b", "c"], ["d", "e", "f"]
        >>> kappa = [9.0, 8.0, 7.0], [6.0, 5.0, 4.0]
        >>> mistakes = worst_mistakes("cosine", [0.9, 0.2, 0.4], [1, 1, 0], keys, kappa, count=1)
        >>> [(m.left, m.mated, m.value, m.kappa) for m in mistakes]
        [('b', True, 0.2, (8.0, 5.0)), ('c', False, 0.4, (7.0, 4.0))]
    """
    s, m = check_pairs(scores, mated)
    kappas = [np.asarray(side, np.float64) for side in kappa]
    people = [np.asarray(side).astype(str) for side in subjects or ([""] * s.size, [""] * s.size)]
    sizes = [*map(len, keys), *map(len, kappas), *map(len, people)]
    if any(size != s.size for size in sizes):
        raise InputError(
            f"mistakes: {s.size} scores, but {sizes} keys, kappas and subjects of each side; expected "
            "equally many"
        )
    order = np.argsort(s, kind="stable")
    highest = np.argsort(-s, kind="stable")
    return [
        Mistake(
            name, bool(m[i]), float(s[i]), keys[0][i], keys[1][i],
            (float(kappas[0][i]), float(kappas[1][i])), (str(people[0][i]), str(people[1][i])),
        )
        for i in [*order[m[order]][:count].tolist(), *highest[~m[highest]][:count].tolist()]
    ]  # fmt: skip


_STEPS = 200


@dataclass(frozen=True)
class Measure:
    """A measured value with its bootstrap interval."""

    value: float
    interval: Interval | None
    """None without draws."""


@dataclass(frozen=True)
class ScoreResult:
    """All results of one score."""

    score: str
    signature: str
    log_line: str | None
    tenfold: TenFold | None
    """Cross-validated accuracy; like ``accuracy`` and ``log_line`` None if all pairs are in one fold."""
    accuracy: Measure | None
    tmr: list[TmrAtFmr]
    tmr_intervals: dict[str, Interval]
    """FMR target ("0.001") -> interval of its TMR; unresolved targets are absent."""
    eer: Measure
    auc: Measure
    det: dict[str, list[float]]
    """``fmr`` and ``fnmr`` of the DET curve, thinned for plotting."""
    nearest: list[NearestPoint] = field(default_factory=list)
    """TMR at the ROC points nearest to the targets, if requested."""

    def measure(self, name: str) -> Measure | None:
        """The metric "accuracy", "eer", "auc" or "tmr@0.001"; None if it has no value."""
        if name.startswith("tmr@"):
            target = name.removeprefix("tmr@")
            for entry in self.tmr:
                if f"{entry.target:g}" == target and entry.tmr is not None:
                    return Measure(entry.tmr, self.tmr_intervals.get(target))
            return None
        measure: Measure | None = getattr(self, name)
        return measure


@dataclass(frozen=True)
class Discarding:
    """EDC of one score and confidence for one threshold."""

    score: str
    confidence: str
    start: str
    """The operating point that sets the threshold: "fnmr<=0.05", "fmr<=0.001", ..."""
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
    """Bin edges of log10 kappa, the same for all severities."""
    counts: list[int]
    quartiles: list[float]
    """Quartiles of kappa (25, 50 and 75 %)."""


@dataclass(frozen=True)
class PairReport:
    """Result of `evaluate_pairs`: one pair list under one condition; `to_dict` is JSON-serialisable."""

    name: str
    condition: str
    counts: dict[str, int]
    """``images``, ``pairs``, ``mated``, ``non_mated``, ``subjects``, ``failed_images``, ``failed_pairs``,
    ``contradictions`` (pairs whose label contradicts the people), ``repeated_pairs`` (listed again, in either
    order)"""
    failures: list[tuple[str, str]]
    """(key, reason) of the images of this list that could not be embedded."""
    resampling: str
    """Unit, draws and seed of the bootstrap: "subject-1000/0", "image-..." without subjects, or "none"."""
    scores: dict[str, ScoreResult]
    differences: dict[str, Measure]
    """Each score minus the cosine on the same draws, keyed like "mls-cosine:accuracy"."""
    edc: list[Discarding]
    rejection: list[Rejection]
    kappa_histograms: list[KappaHistogram] = field(default_factory=list)
    absent_confidences: list[str] = field(default_factory=list)
    """Requested confidences that these embeddings do not have."""
    mistakes: list[Mistake] = field(default_factory=list)
    """The worst pairs of every score, see `worst_mistakes`."""
    label: str = ""
    """Distinguishes this run from others of the same list and condition, e.g. "seed 1"."""
    resampled: dict[str, NDArray[Any]] = field(default_factory=dict, repr=False, compare=False)
    """Values per bootstrap draw, keyed like "mls:accuracy", for statistics over reports; not in the JSON."""

    def log_lines(self) -> list[str]:
        """One line per score in the customary form, see `TenFold.log_line`."""
        return [result.log_line for result in self.scores.values() if result.log_line]

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; missing numbers are None, an infinite threshold is "inf".

        Long EDC curves are sampled at every 0.5 % discarded, where they are exact; the areas are those of the
        full curves. Without ``curves`` the points of DET, EDC, rejection and histograms are left out.
        """
        report = plain_report(self, without="resampled")
        for entry in report["edc"]:
            entry["edc"] |= _thin_steps(entry["edc"])
        if not curves:
            for result in report["scores"].values():
                del result["det"]
            for entry in report["edc"]:
                del entry["edc"]["discard_fraction"], entry["edc"]["fnmr"]
            del report["rejection"], report["kappa_histograms"]
        return report


def _thin_steps(edc: dict[str, Any]) -> dict[str, list[float]]:
    fractions, fnmr = edc["discard_fraction"], edc["fnmr"]
    if len(fractions) <= _STEPS:
        return {}
    sampled = [i / _STEPS for i in range(_STEPS)]
    steps = [bisect_right(fractions, fraction) - 1 for fraction in sampled]
    return {"discard_fraction": sampled, "fnmr": [fnmr[i] for i in steps]}


def plain_report(report: "DataclassInstance", *, without: str) -> dict[str, Any]:
    """The fields of a report as `plain` values, except the field ``without``."""
    fields = asdict(replace(report, **{without: None}))
    return {name: plain(value) for name, value in fields.items() if name != without}


def plain(value: Any) -> Any:
    """Convert to JSON-serialisable dicts, lists and numbers; NaN becomes None, an infinity "inf" or "-inf".

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
