"""The calibration protocol: fitted on some people, measured on others, nobody in both."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
    clopper_pearson,
    fit_calibration,
)
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import Interval, bootstrap_subjects, interval
from spherecf.evaluation.decisions import ERRORS, Abstain, Counts, ScoredPairs, choose_decision, errors_of
from spherecf.evaluation.discard import pair_quality
from spherecf.evaluation.folds import disjoint_pairs, split_subjects
from spherecf.evaluation.llr import Reliability, cllr, min_cllr, reliability, tippett
from spherecf.evaluation.pairs import (
    Pairs,
    ResolvedPairs,
    check_same_recogniser,
    resolve_pairs,
    score_listed,
)
from spherecf.evaluation.results import input_facts, plain, signature
from spherecf.scoring import mutual_likelihood_score
from spherecf.vmf import mean_resultant_length


@dataclass(frozen=True)
class Cost:
    """Cllr of one calibrator on people it was not fitted on."""

    method: str
    cllr: float
    interval: Interval | None
    """Over people; None without draws."""
    loss: float
    """Above the smallest Cllr of any rising function on the same pairs."""
    reliability: Reliability
    separated: bool = False
    """The straight line was regularised, see `spherecf.calibration.LogisticCalibrator`."""


@dataclass(frozen=True)
class ThresholdCheck:
    """A threshold fitted on some people, and what it does on others."""

    fitted: ThresholdEntry
    checked: ThresholdEntry | None
    """Counts and intervals of the same threshold on the other people; None where none was fitted."""


@dataclass(frozen=True)
class RuleCheck:
    """A decision rule, and what it does on people who had no part in making it."""

    rule: DecisionRule
    coverage: float
    """Share of the pairs decided."""
    coverage_mated: float
    coverage_non_mated: float
    errors: list[ErrorCount]
    """Found there; ``upper`` is again the one-sided bound at delta."""


@dataclass(frozen=True)
class CoverageCurve:
    """Share of the other people's pairs that is decided, for several bounds on both errors."""

    abstain: str
    """What leaves pairs undecided: "score", "confidence" or "both"."""
    alphas: list[float]
    coverage: list[float]


@dataclass(frozen=True)
class ConfidenceCell:
    """The likelihood ratios of the pairs within a range of the confidence, on people who had no part."""

    low: float
    high: float
    """Confidence of a pair, by default the smaller kappa of its images."""
    pairs: int
    cllr: float
    error: float
    """Mean gap between stated and found, as `Reliability.error`."""


@dataclass(frozen=True)
class ScoreCalibration:
    """Everything about one score."""

    score: str
    signature: str
    min_cllr: float
    costs: list[Cost]
    """Of the method asked for, then of the other one."""
    tippett: dict[str, list[float]]
    thresholds: list[ThresholdCheck]
    decisions: list[RuleCheck]
    curves: list[CoverageCurve]
    cells: list[ConfidenceCell] = field(default_factory=list)
    """By thirds of the confidence; without a third that has pairs of one kind only."""


@dataclass(frozen=True)
class KappaLevel:
    """A percentile of the reference images."""

    percent: float
    kappa: float
    cosine: float
    """A_d(kappa): the expected cosine to the person's prototype."""
    iso: int


@dataclass(frozen=True)
class CalibrationReport:
    """Result of `evaluate_calibration`; `to_dict` is JSON-able."""

    name: str
    condition: str
    counts: dict[str, int]
    failures: list[tuple[str, str]]
    split: str
    """What was drawn into the parts: "groups" of linked people, or "people"."""
    unit: str
    """"subject", or "image" where people are unknown: then parts may share people, and no promise holds."""
    confidence: str
    resampling: str
    kappa: list[KappaLevel]
    scores: dict[str, ScoreCalibration]
    calibration: Calibration = field(repr=False)

    def to_dict(self, curves: bool = True) -> dict[str, Any]:
        """Plain dicts and lists; without ``curves`` the points of plots and the calibration are left out."""
        bare = asdict(replace(self, calibration=Calibration("", "")))
        del bare["calibration"]
        if curves:
            bare["calibration"] = self.calibration.to_dict()
        else:
            for score in bare["scores"].values():
                del score["tippett"], score["curves"]
        found: dict[str, Any] = plain(bare)
        return found


Array = NDArray[Any]
Ends = tuple[float, float]

ALPHAS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
ABSTAIN: tuple[Abstain, ...] = ("both", "score", "confidence")


@dataclass(frozen=True, eq=False)
class Parts:
    """Pairs of one score, and which part of the people each belongs to."""

    score: str
    radius: float | None
    scores: Array
    sure: Array
    mated: Array
    subjects: tuple[Array, Array]
    part: Array
    """(n,) 0 tuning, 1 testing, 2 measuring, -1 none."""
    fit: Array
    """(n,) true for the first two."""
    confidence: str
    disjoint: bool
    seed: int
    draws: int
    llr: Array | None = None
    """(n,) log-likelihood ratios, of a score that does not give them alone: evidence reads kappas as well."""

    def judged(self, part: int) -> ScoredPairs:
        """The pairs of a part; those that test, disjoint if asked for."""
        rows = np.flatnonzero(self.part == part)
        if part == 1 and self.disjoint:
            a, b = (side[rows] for side in self.subjects)
            rows = rows[disjoint_pairs(a, b, self.mated[rows], seed=self.seed)]
        return ScoredPairs(
            self.scores[rows], self.sure[rows], self.mated[rows], self.score, self.radius, self.confidence,
            "disjoint pairs" if self.disjoint else "pairs",
        )  # fmt: skip

    def bootstrap(self, rows: Array, values: Array, numbers: int) -> list[tuple[Interval, Interval]]:
        """Intervals of the means of ``values`` (numbers, rows): over mated, and over non-mated pairs."""
        mated = self.mated[rows]

        def statistic(weights: Array) -> dict[str, Array]:
            found: dict[str, Array] = {}
            for name, kind in (("mated", mated), ("non_mated", ~mated)):
                own = weights * kind
                means = own @ values.T / own.sum(1, keepdims=True)
                found |= {f"{name}:{i}": means[:, i] for i in range(numbers)}
            return found

        a, b = (side[rows] for side in self.subjects)
        drawn = bootstrap_subjects(statistic, a, b, draws=self.draws, seed=self.seed)
        return [(interval(drawn[f"mated:{i}"]), interval(drawn[f"non_mated:{i}"])) for i in range(numbers)]


def calibrate_score(
    line: str, parts: Parts, calibration: Calibration, alphas: Sequence[float], delta: float
) -> tuple[ScoreCalibration, Calibration]:
    """Measure what was fitted on the people who measure; add intervals and rules to the calibration."""
    score, radius, fitted = parts.score, parts.radius, calibration.likelihood[parts.score]
    fit, new = np.flatnonzero(parts.fit), np.flatnonzero(parts.part == 2)
    kinds = IsotonicCalibrator if isinstance(fitted, LogisticCalibrator) else LogisticCalibrator
    other = kinds.fit(parts.scores[fit], parts.mated[fit], score=score, radius=radius)
    best = min_cllr(parts.scores[new], parts.mated[new])
    table = _with_intervals(calibration.thresholds[score], parts, fit)
    tuning, testing, measuring = (parts.judged(part) for part in range(3))
    rules = [
        choose_decision(tuning, testing, alpha=alpha, delta=delta, error=error)
        for alpha in alphas
        for error in ERRORS
    ]
    if isinstance(fitted, ConditionalCalibrator):
        assert parts.llr is not None
        llr = parts.llr[new]
    else:
        llr = fitted(parts.scores[new])
    found = ScoreCalibration(
        score,
        line,
        best,
        [_cost(fitted, llr, best, parts, new), _cost(other, other(parts.scores[new]), best, parts, new)],
        tippett(llr, parts.mated[new]),
        _check_thresholds(table, parts, new),
        [check_rule(rule, measuring) for rule in rules],
        [_curve(abstain, tuning, testing, measuring, delta) for abstain in ABSTAIN],
        _cells(llr, parts.mated[new], parts.sure[new]),
    )
    kept = replace(
        calibration,
        thresholds={**calibration.thresholds, score: table},
        decisions=(*calibration.decisions, *rules),
    )
    return found, kept


def check_rule(rule: DecisionRule, pairs: ScoredPairs) -> RuleCheck:
    """What a rule does on pairs that had no part in making it.

    Example:
        >>> rule = DecisionRule("cosine", None, "kappa", 0.4, 0.2, 30.0, "fmr", 0.01, 0.05)
        >>> pairs = ScoredPairs(np.array([0.5, 0.3, 0.1]), np.full(3, 40.0), np.array([True, True, False]))
        >>> found = check_rule(rule, pairs)
        >>> found.coverage_mated, [(e.errors, e.trials) for e in found.errors]
        (0.5, [(0, 1)])
    """
    said, same = rule.decide(pairs.scores, pairs.confidences), pairs.mated
    match, other = said == Decision.MATCH, said == Decision.NON_MATCH
    counts = Counts(
        *(np.asarray([rows.sum()]) for rows in (match & same, match & ~same, other & same, other & ~same))
    )
    decided = match | other
    return RuleCheck(
        rule,
        float(decided.mean()),
        float(decided[same].mean()),
        float(decided[~same].mean()),
        [
            ErrorCount(name, int(e[0]), int(n[0]), float(binomial_upper(e, n, rule.delta)[0]))
            for name, e, n in errors_of(counts, rule.error)
        ],
    )


def _cost(calibrator: Calibrator, llr: Array, best: float, parts: Parts, rows: Array) -> Cost:
    mated = parts.mated[rows]
    value = cllr(llr, mated)
    around = None
    if parts.draws:
        bits = np.logaddexp(0, np.where(mated, -llr, llr)) / np.log(2)

        def statistic(weights: Array) -> dict[str, Array]:
            sides = [(weights * kind) @ bits / (weights * kind).sum(1) for kind in (mated, ~mated)]
            return {"cllr": (sides[0] + sides[1]) / 2}

        a, b = (side[rows] for side in parts.subjects)
        drawn = bootstrap_subjects(statistic, a, b, draws=parts.draws, seed=parts.seed)
        around = interval(drawn["cllr"])
    separated = isinstance(calibrator, LogisticCalibrator) and calibrator.separated
    return Cost(calibrator.kind, value, around, value - best, reliability(llr, mated), separated)


def _cells(llr: Array, mated: Array, sure: Array) -> list[ConfidenceCell]:
    edges = np.quantile(sure, np.linspace(0, 1, _CELLS + 1))
    found = []
    for place, (low, high) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist())):
        rows = (sure >= low) & ((sure < high) | (place == _CELLS - 1))
        if mated[rows].any() and not mated[rows].all():
            own = llr[rows], mated[rows]
            found.append(ConfidenceCell(low, high, int(rows.sum()), cllr(*own), reliability(*own).error))
    return found


_CELLS = 3


def _with_intervals(table: ThresholdTable, parts: Parts, rows: Array) -> ThresholdTable:
    known = [entry for entry in table.entries if entry.threshold is not None]
    if not parts.draws or not known:
        return table
    accepted = np.stack([parts.scores[rows] >= entry.threshold for entry in known]).astype(float)
    around = parts.bootstrap(rows, accepted, len(known))
    fmr = {entry.target: (other.low, other.high) for entry, (_, other) in zip(known, around)}
    tmr = {entry.target: (same.low, same.high) for entry, (same, _) in zip(known, around)}
    return table.with_subject_intervals(fmr, tmr)


def _check_thresholds(table: ThresholdTable, parts: Parts, rows: Array) -> list[ThresholdCheck]:
    scores, mated = parts.scores[rows], parts.mated[rows]
    same, other = int(mated.sum()), int((~mated).sum())
    entries = []
    for entry in table.entries:
        if entry.threshold is None:
            entries.append(entry)
            continue
        accepted = scores >= entry.threshold
        true, false = int((accepted & mated).sum()), int((accepted & ~mated).sum())
        exact = [[float(end) for end in clopper_pearson(k, n)] for k, n in ((false, other), (true, same))]
        entries.append(
            replace(
                entry, false_matches=false, non_mated=other, true_matches=true, mated=same,
                fmr=false / other, tmr=true / same, fmr_exact=(exact[0][0], exact[0][1]),
                tmr_exact=(exact[1][0], exact[1][1]), fmr_subjects=None, tmr_subjects=None,
            )
        )  # fmt: skip
    counted = _with_intervals(ThresholdTable(table.score, table.radius, tuple(entries)), parts, rows)
    return [
        ThresholdCheck(fitted, checked if fitted.threshold is not None else None)
        for fitted, checked in zip(table.entries, counted.entries)
    ]


def _curve(
    abstain: Abstain, tuning: ScoredPairs, testing: ScoredPairs, measuring: ScoredPairs, delta: float
) -> CoverageCurve:
    rules = [choose_decision(tuning, testing, alpha=alpha, delta=delta, abstain=abstain) for alpha in ALPHAS]
    return CoverageCurve(abstain, list(ALPHAS), [check_rule(rule, measuring).coverage for rule in rules])


Method = Literal["logistic", "isotonic"]

TARGETS = (1e-1, 1e-2, 1e-3, 1e-4)
LEVELS = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0)
SHARES = (1, 1, 2)
"""Of the pairs: tuning, testing, and measuring; the first two together fit everything but decisions."""


@dataclass(frozen=True)
class CalibrationOptions:
    """What `evaluate_calibration` fits and measures.

    Attributes:
        radius: r of the mutual likelihood score; default: the one of the left embeddings, else 64.
        scores: of "cosine", "mls" and "evidence".
        confidence: "kappa" or the name of an extra; of a pair, the smaller one of its images.
        method: of the calibrator that is kept, "logistic" or "isotonic"; both are measured.
        alpha: bound on the errors of decisions; several make rules for each.
        delta: probability that the bound fails.
        disjoint: test decisions on pairs of which no two share a person: fewer, but exact.
        targets: FMR targets.
        draws: bootstrap draws of people; 0 for no intervals.
        seed: of the split and the bootstrap.
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


def evaluate_calibration(
    left: Embeddings,
    right: Embeddings,
    pairs: Pairs,
    options: CalibrationOptions = CalibrationOptions(),
    *,
    condition: str = "clean/clean",
) -> CalibrationReport:
    """Fit a calibration on half of the people and measure it on the other half.

    The half that fits is divided once more for the decisions: one part puts the rules in order, the other one
    tests them. Pairs of people from two parts are left out and counted (`split_subjects`).

    Args:
        left: embeddings of the left images.
        right: of the right ones; the same object, or another file.
        pairs: the list; where it does not tell persons, the labels of the embeddings do.
        options: what is fitted and measured.
        condition: "clean/clean", ...

    Raises:
        InputError: unknown keys, an absent confidence, left and right from different models, or too few
            people or pairs to fit and measure.

    Example:
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
    name, radius, seed, draws = pairs.name, options.radius, options.seed, options.draws
    method, delta, disjoint = options.method, options.delta, options.disjoint
    alphas = [options.alpha] if isinstance(options.alpha, int | float) else list(options.alpha)
    if not alphas or not options.scores:
        raise InputError("calibration: expected at least one score and one alpha")
    confidence, pairs_hash = options.confidence, pairs.fingerprint()
    if radius is None:
        radius = left.radius
    resolved = resolve_pairs(
        left, right, pairs.left, pairs.right, pairs.mated, np.zeros(len(pairs.left), int), pairs.subjects
    )
    part, drawn = split_subjects(*resolved.subjects, SHARES, seed=seed)
    _check_parts(part, resolved.mated)
    given = "evidence" in options.scores
    wanted = ("cosine", "mls") if given else options.scores
    values = score_listed(left, right, resolved, wanted, radius)
    sure = pair_quality(
        _confidence(left, confidence)[resolved.left], _confidence(right, confidence)[resolved.right]
    )
    fit = (part == 0) | (part == 1)
    hashes = left.fingerprint(), right.fingerprint()
    facts = input_facts(left.provenance, right.provenance, *hashes, pairs_hash)
    kappa = _kappa_of(left, right, resolved.left[fit], resolved.right[fit])
    calibration = fit_calibration(
        model=model,
        data=hashlib.sha256("".join([*hashes, str(pairs_hash), str(seed)]).encode()).hexdigest(),
        scores={score: column[fit] for score, column in values.items()},
        mated=resolved.mated[fit],
        radius=radius,
        kappa=KappaScale.fit(kappa, dim=left.dim, population=f"{kappa.size} images of {name}, {condition}"),
        method=method,
        targets=options.targets,
    )
    told = {key: value for key, value in facts.items() if value is not None}
    calibration = replace(
        calibration,
        record={**told, "name": name, "condition": condition, "seed": seed, "split": drawn},
    )
    llr: dict[str, Array] = {}
    if given:
        kappas = left.kappa[resolved.left], right.kappa[resolved.right]
        calibration, values["evidence"], llr["evidence"] = _evidence(
            calibration, values, kappas, resolved.mated, fit, left.dim, options.targets
        )
    resampling = f"{resolved.unit}-{draws}/{seed}" if draws else "none"
    found: dict[str, ScoreCalibration] = {}
    for score in options.scores:
        line = signature(
            f"{name}/calibration", condition=condition, **facts, score=score,
            r=f"{radius:g}" if score == "mls" else None, split=f"{drawn}-1+1+2/{seed}", confidence=confidence,
            llr=method, fmr="at-most", alpha="+".join(f"{alpha:g}" for alpha in alphas), delta=f"{delta:g}",
            tested="disjoint" if disjoint else "pairs", ci=resampling,
        )  # fmt: skip
        parts = Parts(
            score, calibration.likelihood[score].radius, values[score], sure, resolved.mated,
            resolved.subjects, part, fit, confidence, disjoint, seed, draws, llr.get(score),
        )  # fmt: skip
        found[score], calibration = calibrate_score(line, parts, calibration, alphas, delta)
    return CalibrationReport(
        name, condition, _counts(resolved, part, kappa.size), resolved.failures, drawn, resolved.unit,
        confidence, resampling, _levels(calibration.kappa), found, calibration,
    )  # fmt: skip


def _evidence(
    calibration: Calibration,
    values: Mapping[str, Array],
    kappas: tuple[Array, Array],
    mated: Array,
    fit: Array,
    dim: int,
    targets: Sequence[float],
) -> tuple[Calibration, Array, Array]:
    """(the calibration with evidence and its thresholds, evidence of all pairs, their likelihood ratios)."""
    mls, cosine = values["mls"], values["cosine"]
    radius = calibration.likelihood["mls"].radius
    known = ConditionalCalibrator.fit(
        mls[fit], cosine[fit], np.stack(kappas)[:, fit], mated[fit], score=PAIR_EVIDENCE, radius=radius,
        neutral=neutral_score(dim, radius or 1.0),
    )  # fmt: skip
    evidence = known.evidence(mls, cosine, kappas)
    table = ThresholdTable.fit(evidence[fit], mated[fit], targets, score=PAIR_EVIDENCE, radius=radius)
    calibration = replace(
        calibration,
        likelihood={**calibration.likelihood, PAIR_EVIDENCE: known},
        thresholds={**calibration.thresholds, PAIR_EVIDENCE: table},
    )
    return calibration, evidence, known.llr(mls, kappas)


def neutral_score(dim: int, radius: float) -> float:
    """Mutual likelihood score of two sides that say nothing: for and against weigh the same.

    Example:
        >>> round(neutral_score(128, 64.0), 2)
        -405.28
    """
    mu, nothing = torch.eye(dim, dtype=torch.float64)[:1], torch.full((1,), _NOTHING, dtype=torch.float64)
    return float(mutual_likelihood_score(mu, nothing, mu, nothing, radius=radius))


_NOTHING = 1e-6  # a concentration that says nothing


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
