"""The pair protocol: embeddings and a pair list in, every number of the report out.

Beside the columns of the embeddings file these names are known: "kappa"; "mean_resultant", A_d(kappa), which
increases with kappa and so gives exactly the curves of kappa; "precision", the mean log precision of
probabilistic embeddings (PFE, Shi and Jain, ICCV 2019); "random"; and "oracle", which sees the errors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import allowed_errors, check_mated
from spherecf.common.parsing import match_keys
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import Interval, bootstrap_subjects, interval
from spherecf.evaluation.discard import edc, pair_quality, rejection_curve
from spherecf.evaluation.folds import check_folds, fold_counts, tenfold
from spherecf.evaluation.rates import (
    SortedPairs,
    auc_rates,
    det_curve,
    eer_rates,
    nearest_of_curve,
    sort_pairs,
    spread,
    tmr_at_fmr,
    tmr_of_curve,
    tmr_rates,
)
from spherecf.evaluation.results import (
    Discarding,
    KappaHistogram,
    Measure,
    Mistake,
    PairReport,
    Rejection,
    ScoreResult,
    input_facts,
    short_hash,
    signature,
    worst_mistakes,
)
from spherecf.scoring import cosine_score, mutual_likelihood_score
from spherecf.vmf import mean_resultant_length

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class ResolvedPairs:
    """The pairs that can be compared."""

    left: Array
    """(pairs,) row of the left image in its file."""
    right: Array
    mated: Array
    folds: Array
    subjects: tuple[Array, Array]
    """Who is drawn by the bootstrap: people, or images where people are unknown."""
    unit: str
    """"subject" or "image"."""
    kept: Array
    """(listed,) false where an image could not be embedded."""
    failures: list[tuple[str, str]]
    failed_pairs: int


def resolve_pairs(
    left: Embeddings,
    right: Embeddings,
    left_keys: Sequence[str],
    right_keys: Sequence[str],
    mated: ArrayLike,
    folds: ArrayLike,
    subjects: tuple[ArrayLike, ArrayLike] | None,
) -> ResolvedPairs:
    """Find the rows; a pair with a skipped image is a failure to acquire, an unknown key an `InputError`."""
    kind, fold = _columns(len(left_keys), len(right_keys), mated, folds)
    rows_left, reasons_left = _find(left, left_keys)
    rows_right, reasons_right = _find(right, right_keys)
    kept = (rows_left >= 0) & (rows_right >= 0)
    rows_left, rows_right = rows_left[kept], rows_right[kept]
    failures, failed = reasons_left | reasons_right, int((~kept).sum())
    kind, fold = kind[kept], fold[kept]
    if failed and (kind.all() or not kind.any()):
        raise InputError(
            f"pairs: {failed} of {kept.size} have an image that could not be embedded; the rest are "
            f"{int(kind.sum())} mated and {int((~kind).sum())} non-mated pairs; error rates need both kinds. "
            f"First reason: {min(failures)[1]}"
        )
    unit, people = _people(left, right, rows_left, rows_right, subjects, kept)
    return ResolvedPairs(
        rows_left, rows_right, kind, fold, people, unit, kept, sorted(failures), failed
    )  # fmt: skip


def _find(side: Embeddings, listed: Sequence[str]) -> tuple[Array, set[tuple[str, str]]]:
    """Row of every listed image, -1 where it could not be embedded; key and reason of those."""
    matched = match_keys(listed, [*side.keys, *(key for key, _ in side.skipped)], "pairs")
    missing = [key for key in listed if key not in matched]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(listed)} keys are not in these embeddings of {len(side)} images: "
            f"{', '.join(map(repr, missing[:5]))}. Keys here look like "
            f"{', '.join(map(repr, side.keys[:2])) or '(none)'}; embed the missing images or use the "
            "matching list."
        )
    rows = np.fromiter((matched[key] for key in listed), np.int64, len(listed))
    failed = np.unique(rows[rows >= len(side)]) - len(side)
    return np.where(rows < len(side), rows, -1), {side.skipped[row] for row in failed.tolist()}


def _columns(left: int, right: int, mated: ArrayLike, folds: ArrayLike) -> tuple[Array, Array]:
    kind, fold = np.asarray(mated), np.asarray(folds)
    if not left == right == kind.size == fold.size:
        raise InputError(
            f"pairs: {left} left keys, {right} right keys, {kind.size} mated flags and {fold.size} folds; "
            "expected equally many"
        )
    return check_mated(kind).reshape(-1), fold.reshape(-1)


def _people(
    left: Embeddings,
    right: Embeddings,
    rows_left: Array,
    rows_right: Array,
    subjects: tuple[ArrayLike, ArrayLike] | None,
    kept: Array,
) -> tuple[str, tuple[Array, Array]]:
    """Who is drawn: the people of the pair list, else those of the embeddings, else the images."""
    if subjects is not None:
        named = np.asarray(subjects[0]), np.asarray(subjects[1])
        if not named[0].shape == named[1].shape == kept.shape:
            raise InputError(
                f"subjects: expected two ({kept.size},), got {named[0].shape} and {named[1].shape}"
            )
        return "subject", (named[0][kept], named[1][kept])
    people = _labelled(left, rows_left), _labelled(right, rows_right)
    if people[0] is not None and people[1] is not None:
        return "subject", (people[0], people[1])
    return "image", (np.asarray(left.keys)[rows_left], np.asarray(right.keys)[rows_right])


def _labelled(embeddings: Embeddings, rows: Array) -> Array | None:
    """Names of the rows' people; None as soon as one is unknown (no labels, or label -1)."""
    names = embeddings.subjects()
    if names is None or embeddings.labels is None or (embeddings.labels[rows] < 0).any():
        return None
    found: Array = names[rows]
    return found


EDC_STARTS = (("fnmr", 0.05), ("fmr", 1e-3), ("fmr", 1e-4))
_BINS = 30
_MANY = 6  # more distinct severities than this are shown as quartiles of the degraded ones


@dataclass(frozen=True, eq=False)
class Images:
    """All distinct images of a pair list; a key in two files is two images."""

    left: Array
    """(pairs,) index of each pair's left image."""
    right: Array
    kappa: Array
    confidences: dict[str, Array]
    severity: Array | None
    absent: list[str]
    oracle: bool = False
    """Asked for; it is made from the scores."""

    @classmethod
    def of(
        cls,
        left: Embeddings,
        right: Embeddings,
        rows_left: Array,
        rows_right: Array,
        names: Sequence[str],
        seed: int,
    ) -> "Images":
        """Collect them from the rows of one or two files."""
        offset = 0 if left is right else len(left)
        rows, index = np.unique(np.concatenate([rows_left, rows_right + offset]), return_inverse=True)

        def column(of: Mapping[str, Array], other: Mapping[str, Array], name: str) -> Array:
            both = of[name] if left is right else np.concatenate([of[name], other[name]])
            return np.asarray(both[rows], np.float64)

        kappa = column({"kappa": left.kappa}, {"kappa": right.kappa}, "kappa")
        confidences: dict[str, Array] = {}
        absent = []
        for name in names:
            if name == "oracle":
                continue
            if name == "kappa":
                confidences[name] = kappa
            elif name == "mean_resultant":
                confidences[name] = mean_resultant_length(torch.from_numpy(kappa), left.dim).numpy()
            elif name == "precision" and left.log_precision is not None and right.log_precision is not None:
                of, other = ({name: values.mean(1)} for values in (left.log_precision, right.log_precision))
                confidences[name] = column(of, other, name)
            elif name == "random":
                confidences[name] = np.random.default_rng(seed).random(rows.size)
            elif name in left.extras and name in right.extras:
                confidences[name] = column(left.extras, right.extras, name)
            else:
                absent.append(name)
        severity = None
        if "severity" in left.extras or "severity" in right.extras:  # a file without it is undegraded
            graded = [{"severity": np.zeros(len(side)), **side.extras} for side in (left, right)]
            severity = column(graded[0], graded[1], "severity")
        return cls(
            index[: rows_left.size], index[rows_left.size :], kappa, confidences, severity, absent,
            "oracle" in names,
        )  # fmt: skip


def discard_everything(
    scores: Mapping[str, Array], mated: Array, images: Images, starts: Sequence[tuple[str, float]]
) -> list[Discarding]:
    """EDC of every score, confidence and starting point; the oracle discards failing pairs first."""
    found = []
    for score, values in scores.items():
        of_pairs = {
            confidence: pair_quality(quality[images.left], quality[images.right])
            for confidence, quality in images.confidences.items()
        }
        if images.oracle:
            of_pairs["oracle"] = values
        for confidence, quality in of_pairs.items():
            for kind, at in starts:
                start: Any = {"start_fnmr": at} if kind == "fnmr" else {"fmr": at}
                found.append(
                    Discarding(score, confidence, f"{kind}<={at:g}", edc(values, mated, quality, **start))
                )
    return found


def reject_everything(
    scores: Mapping[str, Array], mated: Array, images: Images, targets: Sequence[float]
) -> list[Rejection]:
    """Rejection curve, by images, of every score, confidence and target."""
    found = []
    for score, values in scores.items():
        for confidence in [*images.confidences, *(["oracle"] if images.oracle else [])]:
            for target in targets:
                quality = images.confidences.get(confidence)
                if quality is None:
                    quality = _oracle_of_images(values, mated, images, target)
                curve = rejection_curve(values, mated, quality, target, images=(images.left, images.right))
                found.append(Rejection(score, confidence, curve))
    return found


def _oracle_of_images(scores: Array, mated: Array, images: Images, target: float) -> Array:
    """Rank of each image: most wrong per pair first, then by the worst margin of its pairs.

    Wrong is by the threshold of all pairs, as much as the score misses it. It sees the errors, but to find
    the best images to reject is a harder problem, which it does not solve.
    """
    threshold = tmr_at_fmr(scores, mated, target)[0].threshold or 0.0  # unresolved: no curve in any case
    margin = np.tile(np.where(mated, scores - threshold, threshold - scores), 2)
    image = np.concatenate([images.left, images.right])
    missed = np.bincount(image, np.maximum(-margin, 0)) / np.bincount(image)
    worst = np.full(images.kappa.size, np.inf)
    np.minimum.at(worst, image, margin)
    rank = np.empty(images.kappa.size)
    rank[np.lexsort((worst, -missed))] = np.arange(rank.size)
    return rank


def kappa_histograms(images: Images) -> list[KappaHistogram]:
    """log10 kappa by severity: one histogram for undegraded images, then one per level or quartile."""
    log_kappa = np.log10(images.kappa)
    low, high = float(log_kappa.min()), float(log_kappa.max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    found = []
    for label, chosen in _levels(images):
        values = log_kappa[chosen]
        if values.size:
            quartiles = 10 ** np.quantile(values, [0.25, 0.5, 0.75])
            counts = np.histogram(values, edges)[0]
            found.append(
                KappaHistogram(label, int(values.size), edges.tolist(), counts.tolist(), quartiles.tolist())
            )
    return found


def _levels(images: Images) -> list[tuple[str, Array]]:
    severity = images.severity
    if severity is None:
        return [("all images", np.ones(images.kappa.size, bool))]
    distinct = np.unique(severity)
    if distinct.size <= _MANY:
        return [("clean" if level == 0 else f"severity {level:g}", severity == level) for level in distinct]
    degraded = severity > 0
    edges = np.quantile(severity[degraded], [0, 0.25, 0.5, 0.75, 1])
    levels = [("clean", ~degraded)]
    for i in range(4):
        upper = severity <= edges[i + 1] if i == 3 else severity < edges[i + 1]
        label = f"severity {edges[i]:.2f} to {edges[i + 1]:.2f}"
        levels.append((label, degraded & (severity >= edges[i]) & upper))
    return levels


def resample(
    sorted_pairs: Mapping[str, SortedPairs],
    pairs: ResolvedPairs,
    targets: Sequence[float],
    draws: int,
    seed: int,
) -> dict[str, Array]:
    """Bootstrap of all measures at once: "score:metric" -> (draws,). All scores see the same draws."""
    non_mated = int((~pairs.mated).sum())

    def statistic(weights: Array) -> dict[str, Array]:
        found = {}
        for score, sp in sorted_pairs.items():
            curve = sp.curve(weights)
            names, fold = check_folds(pairs.folds, sp)
            correct, total, _ = fold_counts(sp, fold, len(names), weights)
            drawn = total > 0  # a fold of which no pair was drawn does not count
            accuracy = np.where(drawn, correct / np.where(drawn, total, 1), 0).sum(-1) / drawn.sum(-1)
            found[f"{score}:accuracy"] = accuracy
            found[f"{score}:eer"], found[f"{score}:auc"] = eer_rates(curve), auc_rates(curve)
            for target in targets:
                if allowed_errors(target, non_mated) >= 1:
                    found[f"{score}:tmr@{target:g}"] = tmr_rates(curve, target)
        return found

    return bootstrap_subjects(statistic, *pairs.subjects, draws=draws, seed=seed)


def measure(
    score: str,
    name: str,
    step: int | str,
    sp: SortedPairs,
    pairs: ResolvedPairs,
    options: "PairOptions",
    resampled: Mapping[str, Array],
    facts: Mapping[str, object],
) -> ScoreResult:
    """Everything about one score; ``facts`` go into its signature."""
    curve = sp.curve()
    accuracy = tenfold(sp.scores, sp.mated, pairs.folds[sp.order])
    tmr = tmr_of_curve(curve, options.targets)
    fmr, fnmr, _ = det_curve(sp.scores, sp.mated)
    thin = spread(fmr, fnmr)

    def around(metric: str) -> Interval | None:
        found = resampled.get(f"{score}:{metric}")
        return None if found is None else interval(found)

    between = {f"{entry.target:g}": around(f"tmr@{entry.target:g}") for entry in tmr if entry.tmr is not None}
    return ScoreResult(
        score=score,
        signature=signature(f"{name}/tenfold", **facts),
        log_line=accuracy.log_line(name if score == "cosine" else f"{name}:{score}", step),
        tenfold=accuracy,
        accuracy=Measure(accuracy.mean, around("accuracy")),
        tmr=tmr,
        tmr_intervals={target: found for target, found in between.items() if found is not None},
        eer=Measure(float(eer_rates(curve)), around("eer")),
        auc=Measure(float(auc_rates(curve)), around("auc")),
        det={"fmr": fmr[thin].tolist(), "fnmr": fnmr[thin].tolist()},
        nearest=nearest_of_curve(curve, options.targets) if options.nearest else [],
    )


def differences_to_cosine(
    results: Mapping[str, ScoreResult], resampled: Mapping[str, Array]
) -> dict[str, Measure]:
    """Each score minus cosine, the interval from draws that both saw."""
    found: dict[str, Measure] = {}
    base = results.get("cosine")
    if base is None:
        return found
    metrics = ["accuracy", *(f"tmr@{entry.target:g}" for entry in base.tmr), "eer", "auc"]
    for score, result in results.items():
        for metric in metrics if score != "cosine" else []:
            one, other = result.measure(metric), base.measure(metric)
            if one is None or other is None:
                continue
            draws = resampled.get(f"{score}:{metric}")
            between = None if draws is None else interval(draws - resampled[f"cosine:{metric}"])
            found[f"{score}-cosine:{metric}"] = Measure(one.value - other.value, between)
    return found


FMR_TARGETS = (1e-1, 1e-2, 1e-3)
CONFIDENCES = ("kappa", "norm", "detector_score", "sharpness", "random")


class Pairs(Protocol):
    """A list of pairs, as `spherecf.data.PairList` is one.

    Attributes:
        name: of the list, for reports and signatures.
        left, right: (n,) keys of the images.
        mated: (n,) true where both show one person.
        fold: (n,) fold of each pair, from 0.
        subjects: (left, right) persons, (n,) each, for intervals over people; None where they are not known.
    """

    @property
    def name(self) -> str: ...
    @property
    def left(self) -> Sequence[str]: ...
    @property
    def right(self) -> Sequence[str]: ...
    @property
    def mated(self) -> ArrayLike: ...
    @property
    def fold(self) -> ArrayLike: ...
    @property
    def subjects(self) -> tuple[ArrayLike, ArrayLike] | None: ...
    def fingerprint(self) -> str:
        """Hex SHA-256 over keys, mated flags and folds."""


@dataclass(frozen=True)
class PairOptions:
    """What `evaluate_pairs` measures, and how.

    Attributes:
        radius: r of the mutual likelihood score; default: the one of the left embeddings, else 64.
        scores: of "cosine" and "mls".
        confidences: "kappa", "random", or names of extras; those absent are listed in the report.
        targets: FMR targets.
        draws: of the bootstrap; 0 for no intervals.
        seed: of the bootstrap and of the random confidence.
        nearest: count as old papers do as well, see `tmr_at_nearest_fmr`.

    Raises:
        InputError: fewer than 0 draws.
    """

    radius: float | None = None
    scores: Sequence[str] = ("cosine", "mls")
    confidences: Sequence[str] = CONFIDENCES
    targets: Sequence[float] = FMR_TARGETS
    draws: int = 1000
    seed: int = 0
    nearest: bool = False

    def __post_init__(self) -> None:
        if self.draws < 0:
            raise InputError(f"draws: expected 0 (no intervals) or more, got {self.draws}")


def evaluate_pairs(
    left: Embeddings,
    right: Embeddings,
    pairs: Pairs,
    options: PairOptions = PairOptions(),
    *,
    extra_scores: Mapping[str, ArrayLike] | None = None,
    condition: str = "clean/clean",
    label: str = "",
    step: int | str = 0,
) -> PairReport:
    """Evaluate a pair list: accuracy, error rates, intervals, and what each confidence gains.

    Pairs with an image that could not be embedded (listed in ``skipped``) are failures to acquire: counted
    and listed, never scored. A key that is nowhere is an error.

    Args:
        left: embeddings of the left images.
        right: of the right ones; the same object, or another file (e.g. degraded views under the same keys).
        pairs: the list. Where it names no persons, the labels of the embeddings do; where neither is known,
            images are drawn instead of people, and the signature says so.
        options: what is measured.
        extra_scores: further scores by name, (n,) each, larger = more alike; values of pairs that failed to
            acquire are not looked at.
        condition: "clean/clean", "clean/degraded", ...
        label: what tells this run from others of the same list and condition, e.g. "seed 1".
        step: for the log line.

    Raises:
        InputError: unknown keys, one kind of pair only, left and right from different recognisers, NaN or
            misshapen extra scores, unknown score names.

    Example:
        >>> from spherecf.data import PairList
        >>> rng = np.random.default_rng(0)
        >>> mu = rng.normal(size=(8, 4))
        >>> mu /= np.linalg.norm(mu, axis=1, keepdims=True)
        >>> e = Embeddings(mu, np.full(8, 5.0), list("abcdefgh"))
        >>> mated, fold = np.array([True, False, True, False]), np.array([0, 0, 1, 1])
        >>> pairs = PairList("toy", list("abcd"), list("efgh"), mated, fold)
        >>> report = evaluate_pairs(e, e, pairs, PairOptions(draws=0))
        >>> sorted(report.scores), report.counts["pairs"]
        (['cosine', 'mls'], 4)
    """
    check_same_recogniser(left, right)
    targets, draws, seed = options.targets, options.draws, options.seed
    radius = left.radius if options.radius is None else options.radius
    resolved = resolve_pairs(left, right, pairs.left, pairs.right, pairs.mated, pairs.fold, pairs.subjects)
    values = score_listed(left, right, resolved, options.scores, radius)
    values |= _extra(extra_scores or {}, resolved, options.scores)
    if not values:
        raise InputError("scores: none asked for; name at least one of cosine, mls or an extra score")
    resampling = f"{resolved.unit}-{draws}/{seed}" if draws else "none"
    sorted_pairs = {score: sort_pairs(column, resolved.mated) for score, column in values.items()}
    resampled = resample(sorted_pairs, resolved, targets, draws, seed) if draws else {}
    images = Images.of(left, right, resolved.left, resolved.right, options.confidences, seed)
    facts = input_facts(
        left.provenance, right.provenance, left.fingerprint(), right.fingerprint(), pairs.fingerprint()
    )
    results = {
        score: measure(
            score, pairs.name, step, sorted_pairs[score], resolved, options, resampled,
            {"condition": condition, **facts, "score": score,
             "r": f"{radius:g}" if score == "mls" else None, "fmr": "at-most", "ci": resampling},
        )
        for score in values
    }  # fmt: skip
    return PairReport(
        name=pairs.name,
        condition=condition,
        label=label,
        counts=_counts(resolved, images),
        failures=resolved.failures,
        resampling=resampling,
        scores=results,
        differences=differences_to_cosine(results, resampled),
        edc=discard_everything(values, resolved.mated, images, EDC_STARTS),
        rejection=reject_everything(values, resolved.mated, images, [t for t in targets if t < 0.1]),
        kappa_histograms=kappa_histograms(images),
        mistakes=_mistakes(left, right, resolved, values),
        resampled=resampled,
        absent_confidences=images.absent,
    )


def check_same_recogniser(left: Embeddings, right: Embeddings) -> None:
    """Refuse two sides whose scores mean nothing."""
    if left.dim != right.dim:
        raise InputError(
            f"left embeddings have dimension {left.dim}, right {right.dim}: not the same recogniser"
        )
    one, other = left.provenance.get("backbone"), right.provenance.get("backbone")
    if one is not None and other is not None and one != other:
        raise InputError(
            f"left embeddings are of backbone {short_hash(str(one))}, right of {short_hash(str(other))}: "
            "scores between two recognisers mean nothing; embed both sides with one"
        )


def _extra(given: Mapping[str, ArrayLike], pairs: ResolvedPairs, taken: Sequence[str]) -> dict[str, Array]:
    found = {}
    for name, column in given.items():
        values = np.asarray(column, np.float64)
        if name in taken:
            raise InputError(f"extra score {name!r}: the name is taken, call it otherwise")
        if values.shape != pairs.kept.shape:
            raise InputError(f"extra score {name!r}: expected {pairs.kept.shape}, got {values.shape}")
        found[name] = values[pairs.kept]
        if bad := int(np.isnan(found[name]).sum()):
            raise InputError(
                f"extra score {name!r}: {bad} of {found[name].size} pairs are NaN; leave them out"
            )
    return found


def score_listed(
    left: Embeddings, right: Embeddings, pairs: ResolvedPairs, names: Sequence[str], radius: float
) -> dict[str, Array]:
    """Scores of the pairs by name, in float64, so that no two pairs tie by rounding."""
    mu_a, kappa_a, mu_b, kappa_b = (
        torch.from_numpy(np.asarray(column[rows], np.float64))
        for side, rows in ((left, pairs.left), (right, pairs.right))
        for column in (side.mu, side.kappa)
    )
    known: dict[str, Callable[[], torch.Tensor]] = {
        "cosine": lambda: cosine_score(mu_a, mu_b),
        "mls": lambda: mutual_likelihood_score(mu_a, kappa_a, mu_b, kappa_b, radius),
    }
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(f"scores: {unknown} unknown, expected some of {sorted(known)}")
    return {name: known[name]().numpy() for name in names}


def _mistakes(
    left: Embeddings, right: Embeddings, pairs: ResolvedPairs, values: Mapping[str, Array]
) -> list[Mistake]:
    keys = [left.keys[row] for row in pairs.left], [right.keys[row] for row in pairs.right]
    kappa = left.kappa[pairs.left], right.kappa[pairs.right]
    people = pairs.subjects if pairs.unit == "subject" else None
    return [
        mistake
        for score, column in values.items()
        for mistake in worst_mistakes(score, column, pairs.mated, keys, kappa, people)
    ]


def _counts(pairs: ResolvedPairs, images: Images) -> dict[str, int]:
    people = np.unique(np.concatenate(pairs.subjects)).size if pairs.unit == "subject" else 0
    return {
        "images": int(images.kappa.size),
        "pairs": int(pairs.mated.size),
        "mated": int(pairs.mated.sum()),
        "non_mated": int((~pairs.mated).sum()),
        "subjects": people,
        "failed_images": len(pairs.failures),
        "failed_pairs": pairs.failed_pairs,
    }
