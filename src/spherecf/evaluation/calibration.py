"""The calibration protocol: fit a calibration on some people and measure it on other people."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import (
    PAIR_EVIDENCE,
    Calibration,
    Calibrator,
    ConditionalCalibrator,
    Decision,
    DecisionRule,
    ErrorCount,
    IsotonicCalibrator,
    KappaScale,
    LogisticCalibrator,
    ThresholdEntry,
    ThresholdTable,
    binomial_upper,
    fit_calibration,
)
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import Interval, Statistic, bootstrap_subjects, check_draws, interval
from spherecf.evaluation.decisions import ERRORS, Abstain, Counts, ScoredPairs, choose_decision, errors_of
from spherecf.evaluation.discard import pair_quality
from spherecf.evaluation.folds import disjoint_pairs, split_subjects
from spherecf.evaluation.llr import Reliability, cllr, min_cllr, reliability, tippett
from spherecf.evaluation.pairs import Pairs, ResolvedPairs, check_same_recogniser, resolve_pairs, score_listed
from spherecf.evaluation.results import input_facts, plain, plain_report, signature
from spherecf.scoring import mutual_likelihood_score
from spherecf.vmf import mean_resultant_length


@dataclass(frozen=True)
class Cost:
    """Cllr of one calibrator on held-out people."""

    method: str
    cllr: float
    interval: Interval | None
    """Bootstrap interval over people; None without draws."""
    loss: float
    """Calibration loss: Cllr minus the minimum Cllr of any rising function on the same pairs."""
    reliability: Reliability
    separated: bool = False
    """The logistic fit had to be regularised, see `spherecf.calibration.LogisticCalibrator`."""


@dataclass(frozen=True)
class ThresholdCheck:
    """A fitted threshold, with its error rates on held-out people."""

    fitted: ThresholdEntry
    checked: ThresholdEntry | None
    """Counts and intervals of the same threshold on held-out people; None if no threshold was fitted."""


@dataclass(frozen=True)
class RuleCheck:
    """A decision rule, with its coverage and errors on held-out people."""

    rule: DecisionRule
    coverage: float
    """Share of the pairs decided."""
    coverage_mated: float
    """Share of the mated pairs decided."""
    coverage_non_mated: float
    """Share of the non-mated pairs decided."""
    errors: list[ErrorCount]
    """Errors on held-out people; ``upper`` is the one-sided bound at level delta, as in the rule."""


@dataclass(frozen=True)
class CoverageCurve:
    """Share of held-out pairs decided, for several bounds on both error rates."""

    abstain: str
    """What leaves pairs undecided: "score", "confidence" or "both"."""
    alphas: list[float]
    coverage: list[float]


@dataclass(frozen=True)
class ConfidenceCell:
    """Quality of the likelihood ratios of held-out pairs within a range of confidence."""

    low: float
    """Lower end of the range; the confidence of a pair is by default the smaller kappa of its images."""
    high: float
    pairs: int
    cllr: float
    error: float
    """Mean absolute difference of predicted and observed shares, as `Reliability.error`."""


@dataclass(frozen=True)
class ScoreCalibration:
    """All results of one score."""

    score: str
    signature: str
    min_cllr: float
    costs: list[Cost]
    """Cost of the requested calibrator, then of the other one."""
    tippett: dict[str, list[float]]
    thresholds: list[ThresholdCheck]
    decisions: list[RuleCheck]
    curves: list[CoverageCurve]
    cells: list[ConfidenceCell] = field(default_factory=list)
    """By thirds of the confidence, without those that have pairs of only one kind."""


@dataclass(frozen=True)
class KappaLevel:
    """A percentile of kappa among the reference images."""

    percent: float
    kappa: float
    cosine: float
    """A_d(kappa), the expected cosine to the person's prototype."""
    iso: int


@dataclass(frozen=True)
class CalibrationReport:
    """Result of `evaluate_calibration`; `to_dict` is JSON-serialisable."""

    name: str
    condition: str
    counts: dict[str, int]
    failures: list[tuple[str, str]]
    split: str
    """Unit that was assigned to the parts: "groups" of linked people, or "people"."""
    unit: str
    """"subject", or "image" if people are unknown: then the parts may share people, and no bound holds."""
    confidence: str
    resampling: str
    kappa: list[KappaLevel]
    scores: dict[str, ScoreCalibration]
    calibration: Calibration = field(repr=False)

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; without ``curves`` the points of plots and the calibration are left out."""
        report = plain_report(self, without="calibration")
        if curves:
            report["calibration"] = plain(self.calibration.to_dict())
        else:
            for score in report["scores"].values():
                del score["tippett"], score["curves"]
        return report


Array = NDArray[Any]

_FIT_PARTS = (0, 1)  # tuning and testing
ALPHAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
ABSTAIN: tuple[Abstain, ...] = ("both", "score", "confidence")


@dataclass(frozen=True, eq=False)
class CalibrationSplit:
    """All pairs with one score, and the part that each pair belongs to."""

    score: str
    radius: float | None
    scores: Array
    confidences: Array
    mated: Array
    subjects: tuple[Array, Array]
    part: Array
    """(n,) 0 tuning, 1 testing, 2 measuring, -1 none."""
    options: "CalibrationOptions"
    llr: Array | None = None
    """(n,) log-likelihood ratios of a score whose calibrator needs more than the score (evidence)."""

    def scored_pairs(self, part: int) -> ScoredPairs:
        """The pairs of a part; of the testing part only disjoint pairs, if requested."""
        rows = np.flatnonzero(self.part == part)
        if part == 1 and self.options.disjoint:
            a, b = (side[rows] for side in self.subjects)
            rows = rows[disjoint_pairs(a, b, self.mated[rows], seed=self.options.seed)]
        return ScoredPairs(
            self.scores[rows], self.confidences[rows], self.mated[rows], self.score, self.radius,
            self.options.confidence, "disjoint pairs" if self.options.disjoint else "pairs",
        )  # fmt: skip

    def bootstrap(self, statistic: Statistic, rows: Array) -> dict[str, Array]:
        """Bootstrap a statistic of the pairs in ``rows`` over people."""
        left, right = (side[rows] for side in self.subjects)
        return bootstrap_subjects(statistic, left, right, draws=self.options.draws, seed=self.options.seed)


def calibrate_score(
    signature_line: str,
    split: CalibrationSplit,
    calibration: Calibration,
    alphas: Sequence[float],
) -> tuple[ScoreCalibration, Calibration]:
    """Measure the fitted calibration of one score on the measuring part.

    Returns:
        The results, and the calibration with intervals and decision rules added.
    """
    score, radius, fitted = split.score, split.radius, calibration.likelihood[split.score]
    delta, new_rows = split.options.delta, np.flatnonzero(split.part == 2)
    fit_rows = np.flatnonzero(np.isin(split.part, _FIT_PARTS))
    other_kind = IsotonicCalibrator if isinstance(fitted, LogisticCalibrator) else LogisticCalibrator
    other = other_kind.fit(split.scores[fit_rows], split.mated[fit_rows], score=score, radius=radius)
    minimum = min_cllr(split.scores[new_rows], split.mated[new_rows])
    table = _with_intervals(calibration.thresholds[score], split, fit_rows)
    tuning, testing, measuring = (split.scored_pairs(part) for part in range(3))
    rules = [
        choose_decision(tuning, testing, alpha=alpha, delta=delta, error=error)
        for alpha in alphas
        for error in ERRORS
    ]
    if isinstance(fitted, ConditionalCalibrator):
        assert split.llr is not None
        llr = split.llr[new_rows]
    else:
        llr = fitted(split.scores[new_rows])
    result = ScoreCalibration(
        score,
        signature_line,
        minimum,
        [
            _cost(fitted, llr, minimum, split, new_rows),
            _cost(other, other(split.scores[new_rows]), minimum, split, new_rows),
        ],
        tippett(llr, split.mated[new_rows]),
        _check_thresholds(table, split, new_rows),
        [check_rule(rule, measuring) for rule in rules],
        [_coverage_curve(abstain, tuning, testing, measuring, delta) for abstain in ABSTAIN],
        _confidence_cells(llr, split.mated[new_rows], split.confidences[new_rows]),
    )
    extended = replace(
        calibration,
        thresholds={**calibration.thresholds, score: table},
        decisions=(*calibration.decisions, *rules),
    )
    return result, extended


def check_rule(rule: DecisionRule, pairs: ScoredPairs) -> RuleCheck:
    """Coverage and errors of a decision rule on pairs that were not used to make it.

    Args:
        rule: the decision rule.
        pairs: pairs of held-out people, with the score and confidence of the rule.

    Example:
        >>> from spherecf.calibration import DecisionRule
        >>> rule = DecisionRule("cosine", None, "kappa", 0.4, 0.2, 30.0, "fmr", 0.01, 0.05)
        >>> pairs = ScoredPairs(np.array([0.5, 0.3, 0.1]), np.full(3, 40.0), np.array([True, True, False]))
        >>> check = check_rule(rule, pairs)
        >>> check.coverage_mated, [(e.errors, e.trials) for e in check.errors]
        (0.5, [(0, 1)])
    """
    decisions, mated = rule.decide(pairs.scores, pairs.confidences), pairs.mated
    match, non_match = decisions == Decision.MATCH, decisions == Decision.NON_MATCH
    masks = match & mated, match & ~mated, non_match & mated, non_match & ~mated
    counts = Counts(*(np.asarray([mask.sum()]) for mask in masks))
    decided = match | non_match
    return RuleCheck(
        rule,
        float(decided.mean()),
        float(decided[mated].mean()),
        float(decided[~mated].mean()),
        [
            ErrorCount(name, int(e[0]), int(n[0]), float(binomial_upper(e, n, rule.delta)[0]))
            for name, e, n in errors_of(counts, rule.error)
        ],
    )


def _cost(calibrator: Calibrator, llr: Array, minimum: float, split: CalibrationSplit, rows: Array) -> Cost:
    mated = split.mated[rows]
    value = cllr(llr, mated)
    around = None
    if split.options.draws:
        bits = np.logaddexp(0, np.where(mated, -llr, llr)) / np.log(2)  # cost of each pair

        def statistic(weights: Array) -> dict[str, Array]:
            means = [(weights * kind) @ bits / (weights * kind).sum(1) for kind in (mated, ~mated)]
            return {"cllr": (means[0] + means[1]) / 2}

        around = interval(split.bootstrap(statistic, rows)["cllr"])
    separated = isinstance(calibrator, LogisticCalibrator) and calibrator.separated
    return Cost(calibrator.kind, value, around, value - minimum, reliability(llr, mated), separated)


_N_CELLS = 3


def _confidence_cells(llr: Array, mated: Array, confidences: Array) -> list[ConfidenceCell]:
    edges = np.quantile(confidences, np.linspace(0, 1, _N_CELLS + 1))
    cells = []
    for index, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist())):
        rows = (confidences >= low) & ((confidences < high) | (index == _N_CELLS - 1))
        if mated[rows].any() and not mated[rows].all():
            pairs = llr[rows], mated[rows]
            cells.append(ConfidenceCell(low, high, int(rows.sum()), cllr(*pairs), reliability(*pairs).error))
    return cells


def _with_intervals(table: ThresholdTable, split: CalibrationSplit, rows: Array) -> ThresholdTable:
    """The table with bootstrap intervals over people for its resolved entries."""
    resolved = [entry for entry in table.entries if entry.threshold is not None]
    if not split.options.draws or not resolved:
        return table
    accepted = np.stack([split.scores[rows] >= entry.threshold for entry in resolved]).astype(float)
    mated = split.mated[rows]

    def statistic(weights: Array) -> dict[str, Array]:
        rates: dict[str, Array] = {}
        for rate, kind in (("tmr", mated), ("fmr", ~mated)):
            kind_weights = weights * kind
            shares = kind_weights @ accepted.T / kind_weights.sum(1, keepdims=True)  # (draws, resolved)
            rates |= {f"{rate}@{entry.target}": column for entry, column in zip(resolved, shares.T)}
        return rates

    intervals = {name: interval(values) for name, values in split.bootstrap(statistic, rows).items()}
    ends = {name: (around.low, around.high) for name, around in intervals.items()}
    fmr, tmr = ({e.target: ends[f"{rate}@{e.target}"] for e in resolved} for rate in ("fmr", "tmr"))
    return table.with_subject_intervals(fmr, tmr)


def _check_thresholds(table: ThresholdTable, split: CalibrationSplit, rows: Array) -> list[ThresholdCheck]:
    scores, is_mated = split.scores[rows], split.mated[rows]
    sides = np.sort(scores[is_mated]), np.sort(scores[~is_mated])
    entries = (
        ThresholdEntry.counted(entry.target, entry.threshold, *sides)
        for entry in table.entries
        if entry.threshold is not None
    )
    checked = _with_intervals(replace(table, entries=tuple(entries)), split, rows)
    by_target = {entry.target: entry for entry in checked.entries}
    return [ThresholdCheck(entry, by_target.get(entry.target)) for entry in table.entries]


def _coverage_curve(
    abstain: Abstain, tuning: ScoredPairs, testing: ScoredPairs, measuring: ScoredPairs, delta: float
) -> CoverageCurve:
    rules = [choose_decision(tuning, testing, alpha=alpha, delta=delta, abstain=abstain) for alpha in ALPHAS]
    return CoverageCurve(abstain, list(ALPHAS), [check_rule(rule, measuring).coverage for rule in rules])


Method = Literal["logistic", "isotonic"]

TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)
LEVELS = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0)
SHARES = (1, 1, 2)
"""Relative sizes of tuning, testing and measuring parts; calibrators are fitted on the first two together."""


@dataclass(frozen=True)
class CalibrationOptions:
    """Options of `evaluate_calibration`.

    Attributes:
        radius: r of the mutual likelihood score; default: that of the left embeddings, else 64.
        scores: any of "cosine", "mls" and "evidence".
        confidence: "kappa" or the name of an extra; the confidence of a pair is the smaller of its images'.
        method: calibrator of the result, "logistic" or "isotonic"; both are measured.
        alpha: bound on the error rates of decisions; several bounds give rules for each.
        delta: probability that a bound fails.
        disjoint: whether to test decision rules only on pairs of which no two share a person; this leaves
            fewer pairs, but the guarantee is exact.
        targets: FMR targets.
        draws: bootstrap draws of people; 0 for no intervals.
        seed: seed of the split and the bootstrap.

    Raises:
        InputError: ``draws`` or ``seed`` is negative.
    """

    radius: float | None = None
    scores: Sequence[str] = ("cosine", "mls")
    confidence: str = "kappa"
    method: Method = "logistic"
    alpha: float | Sequence[float] = 0.01
    delta: float = 0.05
    disjoint: bool = False
    targets: Sequence[float] = TARGETS
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        check_draws(self.draws, self.seed)


def evaluate_calibration(
    left: Embeddings,
    right: Embeddings,
    pairs: Pairs,
    options: CalibrationOptions = CalibrationOptions(),
    *,
    condition: str = "clean/clean",
) -> CalibrationReport:
    """Fit a calibration on half of the people and measure it on the other half.

    For decision rules, the half for fitting is divided again: candidate rules are ordered on one part and
    tested on the other. Pairs of people from two parts are left out and counted (`split_subjects`).

    Args:
        left: embeddings of the left images.
        right: embeddings of the right images: the same object, or others.
        pairs: the pair list; if it has no people, the labels of the embeddings are used.
        options: what to fit and measure.
        condition: "clean/clean", ...

    Raises:
        InputError: unknown keys, a missing confidence, left and right from different models, or too few
            people or pairs to fit and measure.

    Example:
        >>> from spherecf.embeddings import Embeddings
        >>> from spherecf.data import PairList
        >>> rng = np.random.default_rng(0)
        >>> people = rng.normal(size=(60, 8))
        >>> rows = np.repeat(people, 4, axis=0) + rng.normal(size=(240, 8)) / 2
        >>> mu = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        >>> keys = [f"{i // 4}/{i % 4}" for i in range(240)]
        >>> e = Embeddings(mu, rng.normal(3, 1, 240), keys, np.arange(240) // 4)
        >>> a, b = rng.integers(0, 240, (2, 3000))
        >>> b, fold = np.where(np.arange(3000) % 2, b, a ^ 1), np.zeros(3000, int)
        >>> pairs = PairList("toy", [keys[i] for i in a], [keys[i] for i in b], a // 4 == b // 4, fold)
        >>> report = evaluate_calibration(e, e, pairs, CalibrationOptions(draws=0, alpha=0.2))
        >>> report.scores["cosine"].costs[0].cllr < 0.6, report.split
        (True, 'people')
    """
    check_same_recogniser(left, right)
    model = _model(left, right)
    name, seed, draws, confidence = pairs.name, options.seed, options.draws, options.confidence
    alphas = [options.alpha] if isinstance(options.alpha, int | float) else list(options.alpha)
    if not alphas or not options.scores:
        raise InputError("calibration: expected at least one score and one alpha")
    radius, pairs_hash = left.radius if options.radius is None else options.radius, pairs.fingerprint()
    resolved = resolve_pairs(
        left, right, pairs.left, pairs.right, pairs.mated, np.zeros(len(pairs.left), int), pairs.subjects
    )
    part, split_unit = split_subjects(*resolved.subjects, SHARES, seed=seed)
    _check_parts(part, resolved.mated)
    with_evidence = "evidence" in options.scores
    score_names = ("cosine", "mls") if with_evidence else options.scores  # evidence is computed from both
    values = score_listed(left, right, resolved, score_names, radius)
    confidences = pair_quality(
        _image_confidences(left, confidence)[resolved.left],
        _image_confidences(right, confidence)[resolved.right],
    )
    is_fit = np.isin(part, _FIT_PARTS)
    hashes = left.fingerprint(), right.fingerprint()
    facts = input_facts(left.provenance, right.provenance, *hashes, pairs_hash)
    kappa = _image_kappas(left, right, resolved.left[is_fit], resolved.right[is_fit])
    scale = KappaScale.fit(kappa, dim=left.dim, population=f"{kappa.size} images of {name}, {condition}")
    calibration = fit_calibration(
        model=model,
        data=hashlib.sha256("".join([*hashes, str(pairs_hash), str(seed)]).encode()).hexdigest(),
        scores={score: column[is_fit] for score, column in values.items()},
        mated=resolved.mated[is_fit],
        radius=radius,
        kappa=scale,
        method=options.method,
        targets=options.targets,
    )
    known_facts = {key: value for key, value in facts.items() if value is not None}
    calibration = replace(
        calibration,
        record={**known_facts, "name": name, "condition": condition, "seed": seed, "split": split_unit},
    )
    llr: dict[str, Array] = {}
    if with_evidence:
        kappas = left.kappa[resolved.left], right.kappa[resolved.right]
        calibration, values["evidence"], llr["evidence"] = _add_evidence(
            calibration, values, kappas, resolved.mated, is_fit, left.dim, options.targets
        )
    resampling = f"{resolved.unit}-{draws}/{seed}" if draws else "none"
    results: dict[str, ScoreCalibration] = {}
    for score in options.scores:
        line = signature(
            f"{name}/calibration", condition=condition, **facts, score=score,
            r=f"{radius:g}" if score == "mls" else None, split=f"{split_unit}-1+1+2/{seed}",
            confidence=confidence, llr=options.method, fmr="at-most",
            alpha="+".join(f"{alpha:g}" for alpha in alphas), delta=f"{options.delta:g}",
            tested="disjoint" if options.disjoint else "pairs", ci=resampling,
        )  # fmt: skip
        split = CalibrationSplit(
            score, calibration.likelihood[score].radius, values[score], confidences, resolved.mated,
            resolved.subjects, part, options, llr.get(score),
        )  # fmt: skip
        results[score], calibration = calibrate_score(line, split, calibration, alphas)
    return CalibrationReport(
        name, condition, _counts(resolved, part, kappa.size), resolved.failures, split_unit, resolved.unit,
        confidence, resampling, _kappa_levels(scale), results, calibration,
    )  # fmt: skip


def _add_evidence(
    calibration: Calibration,
    values: Mapping[str, Array],
    kappas: tuple[Array, Array],
    mated: Array,
    is_fit: Array,
    dim: int,
    targets: Sequence[float],
) -> tuple[Calibration, Array, Array]:
    """(calibration extended by evidence, evidence of all pairs, their log-likelihood ratios)."""
    mls, cosine = values["mls"], values["cosine"]
    radius = calibration.likelihood["mls"].radius
    calibrator = ConditionalCalibrator.fit(
        mls[is_fit], cosine[is_fit], np.stack(kappas)[:, is_fit], mated[is_fit], score=PAIR_EVIDENCE,
        radius=radius, neutral=neutral_score(dim, radius or 1.0),
    )  # fmt: skip
    evidence = calibrator.evidence(mls, cosine, kappas)
    table = ThresholdTable.fit(evidence[is_fit], mated[is_fit], targets, score=PAIR_EVIDENCE, radius=radius)
    calibration = replace(
        calibration,
        likelihood={**calibration.likelihood, PAIR_EVIDENCE: calibrator},
        thresholds={**calibration.thresholds, PAIR_EVIDENCE: table},
    )
    return calibration, evidence, calibrator.llr(mls, kappas)


def neutral_score(dim: int, radius: float) -> float:
    """Mutual likelihood score of two uninformative sides, which is evidence neither for nor against a match.

    Example:
        >>> round(neutral_score(128, 64.0), 2)
        -405.28
    """
    mu = torch.eye(dim, dtype=torch.float64)[:1]
    kappa = torch.full((1,), _UNINFORMATIVE_KAPPA, dtype=torch.float64)
    return float(mutual_likelihood_score(mu, kappa, mu, kappa, radius=radius))


_UNINFORMATIVE_KAPPA = 1e-6


def _model(left: Embeddings, right: Embeddings) -> str:
    left_model, right_model = (str(side.provenance.get("model", "")) for side in (left, right))
    if left_model != right_model:
        raise InputError(
            f"left embeddings are of the model {left_model or '(unknown)'}, right of "
            f"{right_model or '(unknown)'}: their kappas are not comparable; embed both sides with one model"
        )
    return left_model


def _check_parts(part: Array, mated: Array) -> None:
    for index, name in enumerate(("tuning", "testing", "measuring")):
        in_part = mated[part == index]
        if not in_part.any() or in_part.all():
            raise InputError(
                f"calibration: the people for {name} have {int(in_part.sum())} mated and "
                f"{int((~in_part).sum())} non-mated pairs among them; both kinds are needed in each part: "
                "give a longer pair list"
            )


def _image_confidences(embeddings: Embeddings, name: str) -> Array:
    if name == "kappa":
        return embeddings.kappa
    if name not in embeddings.extras:
        available = ", ".join(embeddings.extras) or "(no extras)"
        raise InputError(f"confidence {name!r}: not among kappa, {available}")
    return embeddings.extras[name]


def _image_kappas(left: Embeddings, right: Embeddings, rows_left: Array, rows_right: Array) -> Array:
    """kappa of each distinct image of these pairs; the same key in two files is two images."""
    if left is right:
        return np.asarray(left.kappa[np.union1d(rows_left, rows_right)])
    return np.concatenate([left.kappa[np.unique(rows_left)], right.kappa[np.unique(rows_right)]])


def _kappa_levels(scale: KappaScale) -> list[KappaLevel]:
    kappa = scale.kappa_at(np.array(LEVELS))
    cosine = mean_resultant_length(torch.from_numpy(kappa), scale.dim)
    return [
        KappaLevel(*row) for row in zip(LEVELS, kappa.tolist(), cosine.tolist(), scale.iso(kappa).tolist())
    ]


def _counts(pairs: ResolvedPairs, part: Array, n_images: int) -> dict[str, int]:
    names = {0: "tuning", 1: "testing", 2: "measuring", -1: "left_out"}
    return {
        "pairs": int(part.size),
        "people": int(np.unique(np.concatenate(pairs.subjects)).size),
        "reference_images": n_images,
        **{f"{name}_mated": int((pairs.mated & (part == i)).sum()) for i, name in names.items()},
        **{f"{name}_non_mated": int((~pairs.mated & (part == i)).sum()) for i, name in names.items()},
        "failed_images": len(pairs.failures),
        "failed_pairs": pairs.failed_pairs,
    }
