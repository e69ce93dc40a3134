"""The calibration protocol: fitted on some people, measured on others, nobody in both."""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from spherecf.calibration import KappaScale, fit_calibration
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation._calibration_result import CalibrationReport, KappaLevel, ScoreCalibration
from spherecf.evaluation._calibration_score import Parts, calibrate_score
from spherecf.evaluation._discard import pair_quality
from spherecf.evaluation._resolve import ResolvedPairs, resolve_pairs
from spherecf.evaluation._signature import input_facts, signature
from spherecf.evaluation._split_subjects import split_subjects
from spherecf.evaluation._verification import DEFAULT_RADIUS, check_same_recogniser, score_listed
from spherecf.vmf import mean_resultant_length

Array = NDArray[Any]
Method = Literal["logistic", "isotonic"]

TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)
LEVELS = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0)
SHARES = (1, 1, 2)
"""Of the pairs: tuning, testing, and measuring; the first two together fit everything but decisions."""


def evaluate_calibration(
    left: Embeddings,
    right: Embeddings,
    left_keys: Sequence[str],
    right_keys: Sequence[str],
    mated: ArrayLike,
    *,
    name: str,
    subjects: tuple[ArrayLike, ArrayLike] | None = None,
    radius: float | None = None,
    scores: Sequence[str] = ("cosine", "mls"),
    confidence: str = "kappa",
    method: Method = "logistic",
    alpha: float = 0.01,
    delta: float = 0.05,
    disjoint: bool = False,
    targets: Sequence[float] = TARGETS,
    seed: int = 0,
    draws: int = 1000,
    condition: str = "clean/clean",
    pairs_hash: str | None = None,
) -> CalibrationReport:
    """Fit a calibration on half of the people and measure it on the other half.

    The half that fits is divided once more for the decisions: one part puts the rules in order, the other one
    tests them. Pairs of people from two parts are left out and counted (`split_subjects`).

    Args:
        left: embeddings of the left images.
        right: of the right ones; the same object, or another file.
        left_keys: n keys into ``left``.
        right_keys: n keys into ``right``.
        mated: (n,) true where both show one person.
        name: of the pair list.
        subjects: (left, right) person of each pair; default: the labels of the embeddings.
        radius: r of the mutual likelihood score; default: the one in the provenance of ``left``, else 64.
        scores: of "cosine" and "mls".
        confidence: "kappa" or the name of an extra; of a pair, the smaller one of its images.
        method: of the calibrator that is kept, "logistic" or "isotonic"; both are measured.
        alpha: bound on the errors of decisions.
        delta: chance that a promise is not kept.
        disjoint: test decisions on pairs of which no two share a person: fewer, but exact.
        targets: FMR targets.
        seed: of the split and the bootstrap.
        draws: bootstrap draws of people; 0 for no intervals.
        condition: "clean/clean", ...
        pairs_hash: of the pair list.

    Raises:
        InputError: unknown keys, an absent confidence, left and right from different models, or too few
            people or pairs to fit and measure.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> people = rng.normal(size=(60, 8))
        >>> rows = np.repeat(people, 4, axis=0) + rng.normal(size=(240, 8)) / 2
        >>> mu = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        >>> keys = [f"{i // 4}/{i % 4}" for i in range(240)]
        >>> e = Embeddings(mu, rng.normal(3, 1, 240), keys, np.arange(240) // 4)
        >>> a, b = rng.integers(0, 240, (2, 3000))
        >>> b = np.where(np.arange(3000) % 2, b, a ^ 1)
        >>> pairs = [keys[i] for i in a], [keys[i] for i in b], a // 4 == b // 4
        >>> report = evaluate_calibration(e, e, *pairs, name="toy", draws=0, alpha=0.2)
        >>> report.scores["cosine"].costs[0].cllr < 0.6, report.split
        (True, 'people')
    """
    check_same_recogniser(left, right)
    model = _model(left, right)
    if radius is None:
        radius = float(left.provenance.get("radius", DEFAULT_RADIUS))
    pairs = resolve_pairs(
        left, right, left_keys, right_keys, mated, np.zeros(len(left_keys), int), subjects
    )  # fmt: skip
    part, drawn = split_subjects(*pairs.subjects, SHARES, seed=seed)
    _check_parts(part, pairs.mated)
    values = score_listed(left, right, pairs, scores, radius)
    sure = pair_quality(
        _confidence(left, confidence)[pairs.left], _confidence(right, confidence)[pairs.right]
    )
    fit = (part == 0) | (part == 1)
    hashes = left.fingerprint(), right.fingerprint()
    facts = input_facts(left.provenance, right.provenance, *hashes, pairs_hash)
    kappa = _kappa_of(left, right, pairs.left[fit], pairs.right[fit])
    calibration = fit_calibration(
        model=model,
        data=hashlib.sha256("".join([*hashes, str(pairs_hash), str(seed)]).encode()).hexdigest(),
        scores={score: column[fit] for score, column in values.items()},
        mated=pairs.mated[fit],
        radius=radius,
        kappa=kappa,
        dim=left.dim,
        population=f"{kappa.size} images of {name}, {condition}",
        method=method,
        targets=targets,
        record={key: value for key, value in facts.items() if value is not None}
        | {"name": name, "condition": condition, "seed": seed, "split": drawn},
    )
    resampling = f"{pairs.unit}-{draws}/{seed}" if draws else "none"
    found: dict[str, ScoreCalibration] = {}
    for score, column in values.items():
        line = signature(
            f"{name}/calibration", condition=condition, **facts, score=score,
            r=f"{radius:g}" if score == "mls" else None, split=f"{drawn}-1+1+2/{seed}", confidence=confidence,
            llr=method, fmr="at-most", alpha=f"{alpha:g}", delta=f"{delta:g}",
            tested="disjoint" if disjoint else "pairs", ci=resampling,
        )  # fmt: skip
        parts = Parts(column, sure, pairs.mated, pairs.subjects, part, fit, confidence, disjoint, seed, draws)
        found[score], calibration = calibrate_score(score, line, parts, calibration, alpha, delta)
    return CalibrationReport(
        name, condition, _counts(pairs, part, kappa.size), pairs.failures, drawn, pairs.unit, confidence,
        resampling, _levels(calibration.kappa), found, calibration,
    )  # fmt: skip


def _model(left: Embeddings, right: Embeddings) -> str:
    one, other = (str(side.provenance.get("model", "")) for side in (left, right))
    if one != other:
        raise InputError(
            f"left embeddings are of the model {one or '(unstated)'}, right of {other or '(unstated)'}: "
            "their kappas do not mean the same; embed both sides with one model"
        )
    return one


def _check_parts(part: Array, mated: Array) -> None:
    for index, what in enumerate(("tuning", "testing", "measuring")):
        own = mated[part == index]
        if not own.any() or own.all():
            raise InputError(
                f"calibration: the people for {what} have {int(own.sum())} mated and {int((~own).sum())} "
                "non-mated pairs among them; both kinds are needed in each part: give a longer pair list"
            )


def _confidence(side: Embeddings, name: str) -> Array:
    if name == "kappa":
        return side.kappa
    if name not in side.extras:
        raise InputError(f"confidence {name!r}: not among kappa, {', '.join(side.extras) or '(no extras)'}")
    return side.extras[name]


def _kappa_of(left: Embeddings, right: Embeddings, rows_left: Array, rows_right: Array) -> Array:
    """kappa of every image of these pairs, once; a key in two files is two images."""
    if left is right:
        return np.asarray(left.kappa[np.union1d(rows_left, rows_right)])
    return np.concatenate([left.kappa[np.unique(rows_left)], right.kappa[np.unique(rows_right)]])


def _levels(scale: KappaScale | None) -> list[KappaLevel]:
    if scale is None:
        return []
    kappa = scale.kappa_at(np.array(LEVELS))
    cosine = mean_resultant_length(torch.from_numpy(kappa), scale.dim)
    return [
        KappaLevel(*row) for row in zip(LEVELS, kappa.tolist(), cosine.tolist(), scale.iso(kappa).tolist())
    ]


def _counts(pairs: ResolvedPairs, part: Array, images: int) -> dict[str, int]:
    names = {0: "tuning", 1: "testing", 2: "measuring", -1: "left_out"}
    return {
        "pairs": int(part.size),
        "people": int(np.unique(np.concatenate(pairs.subjects)).size),
        "reference_images": images,
        **{f"{name}_mated": int((pairs.mated & (part == i)).sum()) for i, name in names.items()},
        **{f"{name}_non_mated": int((~pairs.mated & (part == i)).sum()) for i, name in names.items()},
        "failed_images": len(pairs.failures),
        "failed_pairs": pairs.failed_pairs,
    }
