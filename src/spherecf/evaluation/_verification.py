"""The pair protocol: embeddings and a pair list in, every number of the report out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation._confidence import (
    EDC_STARTS,
    Images,
    discard_everything,
    kappa_histograms,
    reject_everything,
)
from spherecf.evaluation._curve import sort_pairs
from spherecf.evaluation._measures import differences_to_cosine, measure, resample
from spherecf.evaluation._mistakes import Mistake, worst_mistakes
from spherecf.evaluation._resolve import ResolvedPairs, resolve_pairs
from spherecf.evaluation._result import PairReport
from spherecf.evaluation._signature import input_facts, short_hash
from spherecf.scoring import cosine_score, mutual_likelihood_score

Array = NDArray[Any]

FMR_TARGETS = (1e-1, 1e-2, 1e-3)
CONFIDENCES = ("kappa", "norm", "detector_score", "sharpness", "random")
DEFAULT_RADIUS = 64.0


def evaluate_pairs(
    left: Embeddings,
    right: Embeddings,
    left_keys: Sequence[str],
    right_keys: Sequence[str],
    mated: ArrayLike,
    folds: ArrayLike,
    *,
    name: str,
    subjects: tuple[ArrayLike, ArrayLike] | None = None,
    radius: float | None = None,
    scores: Sequence[str] = ("cosine", "mls"),
    extra_scores: Mapping[str, ArrayLike] | None = None,
    confidences: Sequence[str] = CONFIDENCES,
    targets: Sequence[float] = FMR_TARGETS,
    seed: int = 0,
    draws: int = 1000,
    condition: str = "clean/clean",
    label: str = "",
    pairs_hash: str | None = None,
    step: int | str = 0,
    nearest: bool = False,
) -> PairReport:
    """Evaluate a pair list: accuracy, error rates, intervals, and what each confidence buys.

    Pairs with an image that could not be embedded (listed in ``skipped``) are failures to acquire: counted
    and listed, never scored. A key that is nowhere is an error.

    Args:
        left: embeddings of the left images.
        right: of the right ones; the same object, or another file (e.g. degraded views under the same keys).
        left_keys: n keys into ``left``.
        right_keys: n keys into ``right``.
        mated: (n,) true where both show one person.
        folds: (n,) fold of each pair.
        name: of the pair list, e.g. "cfp_fp".
        subjects: (left, right) person of each pair, for the intervals; default: the labels of the embeddings.
            Where neither is known images are drawn instead of people, and the signature says so.
        radius: r of the mutual likelihood score; default: the one in the provenance of ``left``, else 64.
        scores: of "cosine" and "mls".
        extra_scores: further scores by name, (n,) each, larger = more alike; values of pairs that failed to
            acquire are not looked at.
        confidences: "kappa", "random", or names of extras; those absent are listed in the report.
        targets: FMR targets.
        seed: of the bootstrap and of the random confidence.
        draws: bootstrap draws; 0 for no intervals.
        condition: "clean/clean", "clean/degraded", ...
        label: what tells this run from others of the same list and condition, e.g. "seed 1".
        pairs_hash: of the pair list, for the signature.
        step: for the log line.
        nearest: count as old papers do as well, see `tmr_at_nearest_fmr`.

    Raises:
        InputError: unknown keys, one kind of pair only, left and right from different recognisers, NaN or
            misshapen extra scores, unknown score names.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> mu = rng.normal(size=(8, 4))
        >>> mu /= np.linalg.norm(mu, axis=1, keepdims=True)
        >>> e = Embeddings(mu, np.full(8, 5.0), list("abcdefgh"))
        >>> left, right, mated, folds = list("abcd"), list("efgh"), [1, 0, 1, 0], [0, 0, 1, 1]
        >>> report = evaluate_pairs(e, e, left, right, mated, folds, name="toy", draws=0)
        >>> sorted(report.scores), report.counts["pairs"]
        (['cosine', 'mls'], 4)
    """
    check_same_recogniser(left, right)
    if radius is None:
        radius = float(left.provenance.get("radius", DEFAULT_RADIUS))
    pairs = resolve_pairs(left, right, left_keys, right_keys, mated, folds, subjects)
    values = score_listed(left, right, pairs, scores, radius) | _extra(extra_scores or {}, pairs, scores)
    if not values:
        raise InputError("scores: none asked for; name at least one of cosine, mls or an extra score")
    if draws < 0:
        raise InputError(f"draws: expected 0 (no intervals) or more, got {draws}")
    resampling = f"{pairs.unit}-{draws}/{seed}" if draws else "none"
    sorted_pairs = {score: sort_pairs(column, pairs.mated) for score, column in values.items()}
    resampled = resample(sorted_pairs, pairs, targets, draws, seed) if draws else {}
    images = Images.of(left, right, pairs.left, pairs.right, confidences, seed)
    facts = input_facts(
        left.provenance, right.provenance, left.fingerprint(), right.fingerprint(), pairs_hash
    )
    results = {
        score: measure(
            score, name, step, sorted_pairs[score], pairs, targets, resampled,
            {"condition": condition, **facts, "score": score,
             "r": f"{radius:g}" if score == "mls" else None, "fmr": "at-most", "ci": resampling},
            nearest,
        )
        for score in values
    }  # fmt: skip
    return PairReport(
        name=name,
        condition=condition,
        label=label,
        counts=_counts(pairs, images),
        failures=pairs.failures,
        resampling=resampling,
        scores=results,
        differences=differences_to_cosine(results, resampled),
        edc=discard_everything(values, pairs.mated, images, EDC_STARTS),
        rejection=reject_everything(values, pairs.mated, images, [t for t in targets if t < 0.1]),
        kappa_histograms=kappa_histograms(images),
        mistakes=_mistakes(left, right, pairs, values),
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
