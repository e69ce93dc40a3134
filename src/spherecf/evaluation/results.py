"""Results of the pair protocol as plain data, ready for JSON, and the signature of every number."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import check_pairs
from spherecf.common.version import __version__
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import Interval
from spherecf.evaluation.discard import Edc, RejectionCurve
from spherecf.evaluation.folds import TenFold
from spherecf.evaluation.rates import NearestPoint, TmrAtFmr


def signature(protocol: str, **facts: object) -> str:
    """``protocol|name:value|...|spherecf:version``; facts in the order given, absent ones (None) left out.

    Example:
        >>> signature("cfp-fp/tenfold", pairs="sha256:3f1a", flip="none", score="mls").rsplit("|", 1)[0]
        'cfp-fp/tenfold|pairs:sha256:3f1a|flip:none|score:mls'
    """
    parts = [
        f"{name.replace('_', '-')}:{_plain(value)}" for name, value in facts.items() if value is not None
    ]
    return "|".join([protocol, *parts, f"spherecf:{__version__}"])


def short_hash(digest: str) -> str:
    """The first 12 hex digits of a SHA-256, marked as such."""
    return f"sha256:{digest.removeprefix('sha256:')[:12]}"


def _plain(value: object) -> str:
    return str(value).replace("|", "/").replace("\n", " ")


def input_facts(
    left: Mapping[str, Any], right: Mapping[str, Any], left_hash: str, right_hash: str, pairs_hash: str | None
) -> dict[str, object]:
    """What a result owes to its inputs, from the provenance of the embeddings; equal sides are named once.

    Args:
        left: provenance of the left embeddings: ``data`` (hash), ``view``, ``backbone``, ``model``, and where
            stated ``alignment`` and ``flip``.
        right: of the right ones.
        left_hash: fingerprint of the left embeddings.
        right_hash: of the right ones.
        pairs_hash: of the pair list, if known.

    Example:
        >>> facts = input_facts({"view": "clean"}, {"view": "cross-v1/0"}, "aa", "bb", None)
        >>> facts["view"], facts["embeddings"]
        ('clean+cross-v1/0', 'sha256:aa+sha256:bb')
    """

    def both(name: str, shorten: bool = False) -> str | None:
        stated = [side.get(name) for side in (left, right)]
        if stated == [None, None]:
            return None
        text = [
            "?" if value is None else short_hash(str(value)) if shorten else str(value) for value in stated
        ]
        return text[0] if text[0] == text[1] else "+".join(text)

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
    """A pair near the wrong end: who, which images, and how sure the recogniser was of each."""

    score: str
    """Name of the score."""
    mated: bool
    value: float
    left: str
    """Key of the left image, or name of the template."""
    right: str
    kappa: tuple[float, float]
    subjects: tuple[str, str]
    """Empty where people are unknown."""


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
    """The ``count`` mated pairs with the lowest scores, then as many non-mated ones with the highest.

    Pairs are taken from the ends whether or not a threshold would get them wrong. Of equal scores the pair
    that is listed first comes first.

    Args:
        name: of the score.
        scores: (n,) larger = more alike.
        mated: (n,) true where both show one person.
        keys: n left and n right keys.
        kappa: (n,) of the left and of the right images.
        subjects: n left and n right people.
        count: of each kind, at most.

    Raises:
        InputError: NaN scores, one kind of pair only, or columns of different lengths.

    Example:
        >>> keys = ["a", "b", "c"], ["d", "e", "f"]
        >>> kappa = [9.0, 8.0, 7.0], [6.0, 5.0, 4.0]
        >>> found = worst_mistakes("cosine", [0.9, 0.2, 0.4], [1, 1, 0], keys, kappa, count=1)
        >>> [(one.left, one.mated, one.value, one.kappa) for one in found]
        [('b', True, 0.2, (8.0, 5.0)), ('c', False, 0.4, (7.0, 4.0))]
    """
    s, m = check_pairs(scores, mated)
    sure = [np.asarray(side, np.float64) for side in kappa]
    people = [np.asarray(side).astype(str) for side in subjects or ([""] * s.size, [""] * s.size)]
    sizes = [*map(len, keys), *map(len, sure), *map(len, people)]
    if any(size != s.size for size in sizes):
        raise InputError(
            f"mistakes: {s.size} scores, but keys, kappas and subjects of {sizes}; expected as many of each"
        )
    order = np.argsort(s, kind="stable")
    highest = np.argsort(-s, kind="stable")
    return [
        Mistake(
            name, bool(m[i]), float(s[i]), keys[0][i], keys[1][i],
            (float(sure[0][i]), float(sure[1][i])), (str(people[0][i]), str(people[1][i])),
        )
        for i in [*order[m[order]][:count].tolist(), *highest[~m[highest]][:count].tolist()]
    ]  # fmt: skip


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
