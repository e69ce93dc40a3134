"""The pair protocol: computes all results of a report from embeddings and a pair list.

Confidences are the extra columns of the embeddings file and these: "kappa"; "mean_resultant", A_d(kappa), a
rising function of kappa whose curves therefore equal those of kappa; "precision", the mean log precision of
probabilistic embeddings (PFE, Shi and Jain, ICCV 2019); "random"; and "oracle", which knows the errors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import allowed_errors, check_mated, real_numbers
from spherecf.common.parsing import match_keys
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import bootstrap_subjects, check_draws, interval, interval_of
from spherecf.evaluation.discard import edc, pair_quality, rejection_curve
from spherecf.evaluation.folds import fold_counts, tenfold
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
    """The pairs of a list whose images are both embedded."""

    left: Array
    """(pairs,) row of the left image in its embeddings."""
    right: Array
    """(pairs,) row of the right image in its embeddings."""
    mated: Array
    folds: Array
    subjects: tuple[Array, Array]
    """Units resampled by the bootstrap: people, or images where people are unknown."""
    unit: str
    """"subject" or "image"."""
    is_embedded: Array
    """(listed pairs,) false where an image could not be embedded."""
    failures: list[tuple[str, str]]
    """(key, reason) of the images that could not be embedded."""
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
    """Find the embeddings of all pairs; pairs with a skipped image are counted as failures to acquire.

    Raises:
        InputError: unknown keys, columns of different lengths, or pairs of one kind only are left.
    """
    is_mated, fold = _columns(len(left_keys), len(right_keys), mated, folds)
    rows_left, failures_left = _find_rows(left, left_keys)
    rows_right, failures_right = _find_rows(right, right_keys)
    is_embedded = (rows_left >= 0) & (rows_right >= 0)
    rows_left, rows_right = rows_left[is_embedded], rows_right[is_embedded]
    failures, n_failed = failures_left | failures_right, int((~is_embedded).sum())
    is_mated, fold = is_mated[is_embedded], fold[is_embedded]
    if n_failed and (is_mated.all() or not is_mated.any()):
        raise InputError(
            f"pairs: {n_failed} of {is_embedded.size} have an image that could not be embedded; the rest are "
            f"{int(is_mated.sum())} mated and {int((~is_mated).sum())} non-mated pairs; error rates need "
            f"both kinds. First reason: {min(failures)[1]}"
        )
    unit, people = _resampling_units(left, right, rows_left, rows_right, subjects, is_embedded)
    return ResolvedPairs(
        rows_left, rows_right, is_mated, fold, people, unit, is_embedded, sorted(failures), n_failed
    )  # fmt: skip


def _find_rows(embeddings: Embeddings, keys: Sequence[str]) -> tuple[Array, set[tuple[str, str]]]:
    """Row of every key, -1 if its image could not be embedded; and (key, reason) of those images."""
    matched = match_keys(keys, [*embeddings.keys, *(key for key, _ in embeddings.skipped)], "pairs")
    missing = [key for key in keys if key not in matched]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(keys)} keys are not in these embeddings of {len(embeddings)} images: "
            f"{', '.join(map(repr, missing[:5]))}. Keys here look like "
            f"{', '.join(map(repr, embeddings.keys[:2])) or '(none)'}; embed the missing images or use the "
            "matching list."
        )
    rows = np.fromiter((matched[key] for key in keys), np.int64, len(keys))
    n = len(embeddings)  # indices from n on refer to skipped images
    failed = np.unique(rows[rows >= n]) - n
    return np.where(rows < n, rows, -1), {embeddings.skipped[row] for row in failed.tolist()}


def _columns(n_left: int, n_right: int, mated: ArrayLike, folds: ArrayLike) -> tuple[Array, Array]:
    is_mated, fold = np.asarray(mated), np.asarray(folds)
    if not n_left == n_right == is_mated.size == fold.size:
        raise InputError(
            f"pairs: {n_left} left keys, {n_right} right keys, {is_mated.size} mated flags and {fold.size} "
            "folds; expected equally many"
        )
    return check_mated(is_mated).reshape(-1), fold.reshape(-1)


def _resampling_units(
    left: Embeddings,
    right: Embeddings,
    rows_left: Array,
    rows_right: Array,
    subjects: tuple[ArrayLike, ArrayLike] | None,
    is_embedded: Array,
) -> tuple[str, tuple[Array, Array]]:
    """Units that the bootstrap draws: people of the pair list, else of the embeddings, else images."""
    if subjects is not None:
        listed = np.asarray(subjects[0]), np.asarray(subjects[1])
        if not listed[0].shape == listed[1].shape == is_embedded.shape:
            raise InputError(
                f"subjects: expected two ({is_embedded.size},), got {listed[0].shape} and {listed[1].shape}"
            )
        return "subject", (listed[0][is_embedded], listed[1][is_embedded])
    people = _subject_names(left, rows_left), _subject_names(right, rows_right)
    if people[0] is not None and people[1] is not None:
        return "subject", (people[0], people[1])
    return "image", (np.asarray(left.keys)[rows_left], np.asarray(right.keys)[rows_right])


def _subject_names(embeddings: Embeddings, rows: Array) -> Array | None:
    """Names of the people of these rows; None if any of them is unknown (no labels, or label -1)."""
    all_names = embeddings.subjects()
    if all_names is None or embeddings.labels is None or (embeddings.labels[rows] < 0).any():
        return None
    names: Array = all_names[rows]
    return names


EDC_STARTS = (("fnmr", 0.05), ("fmr", 1e-3), ("fmr", 1e-4))
_BINS = 30
_MAX_SEVERITIES = 6  # with more distinct severities, degraded images are grouped by quartile


@dataclass(frozen=True, eq=False)
class Images:
    """The distinct images of a pair list, with their confidences; the same key in two files is two images."""

    left: Array
    """(pairs,) index of each pair's left image."""
    right: Array
    """(pairs,) index of each pair's right image."""
    kappa: Array
    """(images,)"""
    confidences: dict[str, Array]
    """(images,) each, by name."""
    severity: Array | None
    """(images,) severity of the degradation, 0 for undegraded images."""
    absent: list[str]
    """Requested confidences that the embeddings do not have."""
    oracle: bool = False
    """Whether the oracle is requested; it is computed from the scores."""

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
        """Collect the images from rows of one or two sets of embeddings."""
        offset = 0 if left is right else len(left)
        rows, index = np.unique(np.concatenate([rows_left, rows_right + offset]), return_inverse=True)

        def column(left_values: Array, right_values: Array) -> Array:
            values = left_values if left is right else np.concatenate([left_values, right_values])
            return np.asarray(values[rows], np.float64)

        kappa = column(left.kappa, right.kappa)
        available = {
            name: column(values, right.extras[name])
            for name, values in left.extras.items()
            if name in right.extras and name in names
        }
        available |= {"kappa": kappa, "random": np.random.default_rng(seed).random(rows.size)}
        available["mean_resultant"] = mean_resultant_length(torch.from_numpy(kappa), left.dim).numpy()
        if left.log_precision is not None and right.log_precision is not None:
            available["precision"] = column(left.log_precision.mean(1), right.log_precision.mean(1))
        requested = [name for name in names if name != "oracle"]
        severity = None
        if "severity" in left.extras or "severity" in right.extras:  # without it, images are undegraded
            left_severity, right_severity = (
                side.extras.get("severity", np.zeros(len(side))) for side in (left, right)
            )
            severity = column(left_severity, right_severity)
        return cls(
            index[: rows_left.size], index[rows_left.size :], kappa,
            {name: available[name] for name in requested if name in available}, severity,
            [name for name in requested if name not in available], "oracle" in names,
        )  # fmt: skip


def edc_curves(
    scores: Mapping[str, Array], mated: Array, images: Images, starts: Sequence[tuple[str, float]]
) -> list[Discarding]:
    """EDC of every score, confidence and starting point; the oracle discards false non-matches first."""
    curves = []
    for score, values in scores.items():
        qualities = {
            confidence: pair_quality(quality[images.left], quality[images.right])
            for confidence, quality in images.confidences.items()
        }
        if images.oracle:
            qualities["oracle"] = values
        for confidence, quality in qualities.items():
            for kind, rate in starts:
                start: Any = {"start_fnmr": rate} if kind == "fnmr" else {"fmr": rate}
                curves.append(
                    Discarding(score, confidence, f"{kind}<={rate:g}", edc(values, mated, quality, **start))
                )
    return curves


def rejection_curves(
    scores: Mapping[str, Array], mated: Array, images: Images, targets: Sequence[float]
) -> list[Rejection]:
    """Rejection curve, by images, of every score, confidence and FMR target."""
    curves = []
    for score, values in scores.items():
        for confidence in [*images.confidences, *(["oracle"] if images.oracle else [])]:
            for target in targets:
                quality = images.confidences.get(confidence)
                if quality is None:
                    quality = _oracle_quality(values, mated, images, target)
                curve = rejection_curve(values, mated, quality, target, images=(images.left, images.right))
                curves.append(Rejection(score, confidence, curve))
    return curves


def _oracle_quality(scores: Array, mated: Array, images: Images, target: float) -> Array:
    """(images,) rank by mean shortfall over the image's pairs, largest first, then by its smallest margin.

    The margin of a pair is the distance of its score from the threshold for ``target``, negative on the wrong
    side; the shortfall is the size of a negative margin. This oracle knows the errors, but it does not search
    for the optimal set of images to reject, which is a harder problem.
    """
    threshold = tmr_at_fmr(scores, mated, target)[0].threshold or 0.0  # if unresolved, there is no curve
    margin = np.tile(np.where(mated, scores - threshold, threshold - scores), 2)
    image = np.concatenate([images.left, images.right])
    shortfall = np.bincount(image, np.maximum(-margin, 0)) / np.bincount(image)
    min_margin = np.full(images.kappa.size, np.inf)
    np.minimum.at(min_margin, image, margin)
    rank = np.empty(images.kappa.size)
    rank[np.lexsort((min_margin, -shortfall))] = np.arange(rank.size)
    return rank


def kappa_histograms(images: Images) -> list[KappaHistogram]:
    """log10 kappa by severity: one histogram for undegraded images, then one per level or quartile."""
    log_kappa = np.log10(images.kappa)
    low, high = float(log_kappa.min()), float(log_kappa.max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    histograms = []
    for label, selection in _severity_levels(images):
        values = log_kappa[selection]
        if values.size:
            quartiles = 10 ** np.quantile(values, [0.25, 0.5, 0.75])
            counts = np.histogram(values, edges)[0]
            histograms.append(
                KappaHistogram(label, int(values.size), edges.tolist(), counts.tolist(), quartiles.tolist())
            )
    return histograms


def _severity_levels(images: Images) -> list[tuple[str, Array]]:
    """(label, mask of the images) of each severity or quartile of severities."""
    severity = images.severity
    if severity is None:
        return [("all images", np.ones(images.kappa.size, bool))]
    distinct = np.unique(severity)
    if distinct.size <= _MAX_SEVERITIES:
        return [("clean" if level == 0 else f"severity {level:g}", severity == level) for level in distinct]
    degraded = severity > 0
    edges = np.quantile(severity[degraded], [0, 0.25, 0.5, 0.75, 1])
    levels = [("clean", ~degraded)]
    for i in range(4):
        below_end = severity <= edges[i + 1] if i == 3 else severity < edges[i + 1]
        label = f"severity {edges[i]:.2f} to {edges[i + 1]:.2f}"
        levels.append((label, degraded & (severity >= edges[i]) & below_end))
    return levels


def resample(
    sorted_pairs: Mapping[str, SortedPairs],
    pairs: ResolvedPairs,
    targets: Sequence[float],
    draws: int,
    seed: int,
) -> dict[str, Array]:
    """Bootstrap all metrics at once: "score:metric" -> (draws,). All scores use the same draws."""
    non_mated = int((~pairs.mated).sum())
    names, fold = np.unique(pairs.folds, return_inverse=True)

    def statistic(weights: Array) -> dict[str, Array]:
        values = {}
        for score, sp in sorted_pairs.items():
            curve = sp.curve(weights)
            if names.size > 1:
                correct, total, _ = fold_counts(sp, fold[sp.order], names.size, weights)
                drawn = total > 0  # folds without a drawn pair are left out of the mean
                accuracy = np.where(drawn, correct / np.where(drawn, total, 1), 0).sum(-1) / drawn.sum(-1)
                values[f"{score}:accuracy"] = accuracy
            values[f"{score}:eer"], values[f"{score}:auc"] = eer_rates(curve), auc_rates(curve)
            for target in targets:
                if allowed_errors(target, non_mated) >= 1:
                    values[f"{score}:tmr@{target:g}"] = tmr_rates(curve, target)
        return values

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
    """All metrics of one score; ``facts`` go into its signature."""
    curve = sp.curve()
    folds = pairs.folds[sp.order]
    accuracy = tenfold(sp.scores, sp.mated, folds) if np.unique(folds).size > 1 else None
    tmr = tmr_of_curve(curve, options.targets)
    fmr, fnmr, _ = det_curve(sp.scores, sp.mated)
    thin = spread(fmr, fnmr)
    tmr_intervals = {f"{e.target:g}": interval_of(resampled, f"{score}:tmr@{e.target:g}") for e in tmr}
    return ScoreResult(
        score=score,
        signature=signature(f"{name}/tenfold", **facts),
        log_line=accuracy.log_line(name if score == "cosine" else f"{name}:{score}", step)
        if accuracy
        else None,
        tenfold=accuracy,
        accuracy=Measure(accuracy.mean, interval_of(resampled, f"{score}:accuracy")) if accuracy else None,
        tmr=tmr,
        tmr_intervals={target: around for target, around in tmr_intervals.items() if around is not None},
        eer=Measure(float(eer_rates(curve)), interval_of(resampled, f"{score}:eer")),
        auc=Measure(float(auc_rates(curve)), interval_of(resampled, f"{score}:auc")),
        det={"fmr": fmr[thin].tolist(), "fnmr": fnmr[thin].tolist()},
        nearest=nearest_of_curve(curve, options.targets) if options.nearest else [],
    )


def differences_to_cosine(
    results: Mapping[str, ScoreResult], resampled: Mapping[str, Array]
) -> dict[str, Measure]:
    """Each score minus cosine, with intervals from the bootstrap draws that both share."""
    differences: dict[str, Measure] = {}
    cosine = results.get("cosine")
    if cosine is None:
        return differences
    metrics = ["accuracy", *(f"tmr@{entry.target:g}" for entry in cosine.tmr), "eer", "auc"]
    for score, result in results.items():
        for metric in metrics if score != "cosine" else []:
            measured, reference = result.measure(metric), cosine.measure(metric)
            if measured is None or reference is None:
                continue
            draws = resampled.get(f"{score}:{metric}")
            around = None if draws is None else interval(draws - resampled[f"cosine:{metric}"])
            differences[f"{score}-cosine:{metric}"] = Measure(measured.value - reference.value, around)
    return differences


FMR_TARGETS = (1e-1, 1e-2, 1e-3)
CONFIDENCES = ("kappa", "norm", "detector_score", "sharpness", "random")


class Pairs(Protocol):
    """Interface of a pair list, e.g. `spherecf.data.PairList`.

    Attributes:
        name: name of the list, for reports and signatures.
        left, right: (n,) keys of the images.
        mated: (n,) true where both images show the same person.
        fold: (n,) fold of each pair, from 0.
        subjects: people of the left and of the right images, (n,) each, for intervals over people; None if
            unknown.
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
    """Options of `evaluate_pairs`.

    Attributes:
        radius: r of the mutual likelihood score; default: that of the left embeddings, else 64.
        scores: any of "cosine" and "mls".
        confidences: "kappa", "mean_resultant", "precision", "random", "oracle", or names of extras; the
            report lists those that are not available.
        targets: FMR targets.
        draws: bootstrap draws; 0 for no intervals.
        seed: seed of the bootstrap and of the random confidence.
        nearest: whether to also report TMR as old papers count it, see `tmr_at_nearest_fmr`.

    Raises:
        InputError: ``draws`` or ``seed`` is negative.
    """

    radius: float | None = None
    scores: Sequence[str] = ("cosine", "mls")
    confidences: Sequence[str] = CONFIDENCES
    targets: Sequence[float] = FMR_TARGETS
    draws: int = 1000
    seed: int = 0
    nearest: bool = False

    def __post_init__(self) -> None:
        check_draws(self.draws, self.seed)


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
    """Evaluate a pair list: accuracy, error rates, intervals, and the benefit of each confidence.

    Pairs with an image that could not be embedded (listed in ``skipped``) are failures to acquire: they are
    counted and listed, but not scored. A key that is neither embedded nor skipped is an error. If all pairs
    are in one fold, there is no cross-validated accuracy; all other results are the same.

    Args:
        left: embeddings of the left images.
        right: embeddings of the right images: the same object, or others (e.g. degraded views under the same
            keys).
        pairs: the pair list. People are those of the list or else the labels of the embeddings. If they are
            unknown, the bootstrap draws images instead of people, which the signature records.
        options: scores, confidences, FMR targets and bootstrap settings.
        extra_scores: further scores by name, (n,) each, larger = more alike; values of pairs that failed to
            acquire are ignored.
        condition: "clean/clean", "clean/degraded", ...
        label: distinguishes this run from others of the same list and condition, e.g. "seed 1".
        step: training step for the log line.

    Raises:
        InputError: unknown keys, pairs of one kind only, left and right from different recognisers, extra
            scores with NaN or of the wrong shape, or unknown score names.

    Example:
        >>> from spherecf.embeddings import Embeddings
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
    values |= _extra_scores(extra_scores or {}, resolved, options.scores)
    if not values:
        raise InputError("scores: none requested; name at least one of cosine, mls or an extra score")
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
        edc=edc_curves(values, resolved.mated, images, EDC_STARTS),
        rejection=rejection_curves(values, resolved.mated, images, [t for t in targets if t < 0.1]),
        kappa_histograms=kappa_histograms(images),
        mistakes=_mistakes(left, right, resolved, values),
        resampled=resampled,
        absent_confidences=images.absent,
    )


def check_same_recogniser(left: Embeddings, right: Embeddings) -> None:
    """Raise `InputError` if two sets of embeddings come from different recognisers."""
    if left.dim != right.dim:
        raise InputError(
            f"left embeddings have dimension {left.dim}, right {right.dim}: not the same recogniser"
        )
    a, b = left.provenance.get("backbone"), right.provenance.get("backbone")
    if a is not None and b is not None and a != b:
        raise InputError(
            f"left embeddings are of backbone {short_hash(str(a))}, right of {short_hash(str(b))}: scores "
            "between two recognisers are meaningless; embed both sides with the same one"
        )


def _extra_scores(
    columns: Mapping[str, ArrayLike], pairs: ResolvedPairs, used_names: Sequence[str]
) -> dict[str, Array]:
    scores = {}
    for name, column in columns.items():
        values = real_numbers(column, f"extra score {name!r}").astype(np.float64, copy=False)
        if name in used_names:
            raise InputError(f"extra score {name!r}: this name is already used; choose another")
        if values.shape != pairs.is_embedded.shape:
            raise InputError(f"extra score {name!r}: expected {pairs.is_embedded.shape}, got {values.shape}")
        scores[name] = values[pairs.is_embedded]
        if n_nan := int(np.isnan(scores[name]).sum()):
            raise InputError(
                f"extra score {name!r}: {n_nan} of {scores[name].size} pairs are NaN; leave them out"
            )
    return scores


def score_listed(
    left: Embeddings, right: Embeddings, pairs: ResolvedPairs, names: Sequence[str], radius: float
) -> dict[str, Array]:
    """Scores of the pairs by name, in float64 to avoid ties from rounding."""
    mu_a, kappa_a, mu_b, kappa_b = (
        torch.from_numpy(np.asarray(column[rows], np.float64))
        for side, rows in ((left, pairs.left), (right, pairs.right))
        for column in (side.mu, side.kappa)
    )
    functions: dict[str, Callable[[], torch.Tensor]] = {
        "cosine": lambda: cosine_score(mu_a, mu_b),
        "mls": lambda: mutual_likelihood_score(mu_a, kappa_a, mu_b, kappa_b, radius),
    }
    unknown = [name for name in names if name not in functions]
    if unknown:
        raise InputError(f"scores: {unknown} unknown, expected any of {sorted(functions)}")
    return {name: functions[name]().numpy() for name in names}


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
    people = contradictions = 0
    if pairs.unit == "subject":
        left, right = pairs.subjects
        people = np.unique(np.concatenate([left, right])).size
        contradictions = int(((left == right) != pairs.mated).sum())
    low, high = np.minimum(images.left, images.right), np.maximum(images.left, images.right)
    distinct = np.unique(low * images.kappa.size + high).size
    return {
        "images": int(images.kappa.size),
        "pairs": int(pairs.mated.size),
        "mated": int(pairs.mated.sum()),
        "non_mated": int((~pairs.mated).sum()),
        "subjects": people,
        "failed_images": len(pairs.failures),
        "failed_pairs": pairs.failed_pairs,
        "contradictions": contradictions,
        "repeated_pairs": pairs.mated.size - distinct,
    }
