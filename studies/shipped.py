"""The shipped confidence head: trained, calibrated and evaluated on three disjoint groups of people."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration import (
    PAIR_EVIDENCE,
    PAIR_SCORE,
    TEMPLATE_EVIDENCE,
    TEMPLATE_SCORE,
    TEMPLATES_EVIDENCE,
    Calibration,
    ConditionalCalibrator,
    DecisionRule,
    KappaScale,
    LogisticCalibrator,
    ThresholdEntry,
    ThresholdTable,
)
from spherecf.common.progress import console
from spherecf.data import ImageSource
from spherecf.demo.trial import BATCH
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import (
    MIN_EXCEEDANCES,
    SubjectRates,
    TailFit,
    bounded_rule,
    cllr,
    extrapolated_rule,
    fit_tail,
    neutral_score,
)
from spherecf.extract import embed
from spherecf.models import ConfidenceModel, FrozenBackbone
from spherecf.training import ConfidenceConfig, FeatureCache, build_cache, fit_confidence, new_head, prepare
from studies.graded import (
    CALIBRATED,
    GRADES,
    Condition,
    GradedFaces,
    ScoredPairs,
    centred,
    conditions,
    divide,
)

Array = NDArray[Any]

SETTINGS = ConfidenceConfig.from_dict({"features": {"centre": 0.3}})
"""Settings of the shipped head: the default recipe, with centred directions."""

TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
ALPHAS = (1e-2, 1e-3, 1e-4, 1e-5)
BEYOND = (1e-6, 1e-7, 1e-8)
"""Rates too small to count with 250 people; their rules are extrapolated and marked as such."""
FNMR, DELTA = 0.01, 0.001
_FLOOR_COST = 0.01  # share of the correct matches that the minimum kappa may lose
_ABOVE, _BELOW, _STEP = 60.0, 60.0, 0.05  # grid of thresholds around the neutral score, in nats
_COSINES = np.round(np.arange(-0.3, 1.0, 0.0025), 4)
_MIN_EVIDENCE = 2.0  # smallest evidence that is tested as a threshold for a match
_MAX_NON_MATED = 200_000  # non-mated pairs per condition that likelihood ratios are fitted on
_BLOCK = 1 << 18  # pairs whose evidence is computed at once
_TAIL_SHARE = 1e-3  # share of the non-mated pairs that a tail is fitted on


@dataclass(frozen=True, eq=False)
class PairStatistics:
    """Statistics of one score that its rules are fitted on, one entry per condition."""

    score: str
    non_mated: list[SubjectRates]
    mated: list[SubjectRates]
    matches: list[tuple[Array, Array]]
    """(scores, confidences) of all mated pairs."""
    sample: list[tuple[Array, NDArray[np.bool_]]]
    """(scores, mated) of all mated pairs and a sample of the non-mated pairs."""
    tables: list[ThresholdTable]
    tails: list[TailFit]

    def rules(self, radius: float | None) -> list[DecisionRule]:
        """One rule per alpha that the pairs support, then extrapolated rules, if tails were fitted."""
        bounded = (
            bounded_rule(
                self.non_mated, self.mated, alpha=alpha, fnmr=FNMR, delta=DELTA, score=self.score,
                radius=radius,
            )
            for alpha in ALPHAS
        )  # fmt: skip
        counted = [rule for rule in bounded if rule.decides]
        beyond = [alpha for alpha in (*ALPHAS, *BEYOND) if counted and alpha < counted[-1].alpha]
        extrapolated = []
        for alpha in beyond if self.tails else ():
            try:
                extrapolated.append(extrapolated_rule(counted[-1], self.tails, alpha))
            except InputError as error:  # too few people: leave out this rate and all smaller ones
                console.print(f"{self.score}: {error}", highlight=False, markup=False)
                break
        return counted + extrapolated

    def floor(self, accept: float) -> float:
        """The largest minimum confidence that loses at most one in a hundred of all correct matches."""
        confidences = np.concatenate([c[s >= accept] for s, c in self.matches])
        return float(np.quantile(confidences, _FLOOR_COST)) if confidences.size else -np.inf

    def likelihood(self, radius: float | None) -> LogisticCalibrator:
        """Likelihood ratio of the score, fitted over all conditions."""
        scores, mated = (np.concatenate(part) for part in zip(*self.sample))
        return LogisticCalibrator.fit(scores, mated, score=self.score, radius=radius)


Grids = tuple[Array, Array]
"""Candidate thresholds for a match, and for a non-match."""


def grids_of(score: str, neutral: float) -> Grids:
    """Candidate thresholds of the cosine, of evidence, or of a mutual likelihood score around `neutral`."""
    if score == "cosine":
        return _COSINES, _COSINES
    if score.startswith(PAIR_EVIDENCE):
        return (
            np.round(np.arange(_MIN_EVIDENCE, _ABOVE, _STEP), 2),
            np.round(np.arange(-_BELOW / 3, 3, _STEP), 2),
        )
    high = np.round(neutral + np.arange(0, _ABOVE, _STEP), 2)
    return high, np.round(neutral + np.arange(-_BELOW, _ABOVE / 2, _STEP), 2)


def column_of(score: str) -> str:
    """Name of the column of `ScoredPairs` with this score."""
    if score.startswith(PAIR_EVIDENCE):
        return "evidence"
    return "cosine" if score == "cosine" else "mls"


def gather(
    score: str, pairs: Callable[[Condition], ScoredPairs], neutral: float, draws: int, seed: int = 0
) -> PairStatistics:
    """Statistics of one score, one condition after the other, so that only one is in memory.

    Args:
        score: name of the score for the rules.
        pairs: function that makes the pairs of a condition.
        neutral: mutual likelihood score of two images without information (kappa 0).
        draws: bootstrap samples of subjects.
        seed: of the draws.
    """
    statistics = PairStatistics(score, [], [], [], [], [], [])
    high, low = grids_of(score, neutral)
    column = column_of(score)
    rng = np.random.default_rng(seed)
    for condition in conditions(list(CALIBRATED)):
        scored = pairs(condition)
        values = scored.scores[column]
        statistics.non_mated.append(scored.reach(values, False, high, draws, seed))
        statistics.mated.append(scored.reach(values, True, low, draws, seed))
        statistics.matches.append((values[scored.mated], scored.confidence[scored.mated]))
        if column != "evidence":
            rows = _sample(scored, rng)
            statistics.sample.append((values[rows].astype(np.float64), scored.mated[rows]))
            statistics.tables.append(_table(scored, column, score, draws, seed))
        elif draws:
            statistics.tails.append(tail_of(scored, draws, seed))
    return statistics


def tail_of(pairs: ScoredPairs, draws: int, seed: int = 0, share: float = _TAIL_SHARE) -> TailFit:
    """Fit the tail of the evidence of the non-mated pairs."""
    non_mated = ~pairs.mated
    share = max(share, 1.01 * MIN_EXCEEDANCES / int(non_mated.sum()))
    values = pairs.scores["evidence"][non_mated]
    return fit_tail(
        values,
        pairs.left[non_mated],
        pairs.right[non_mated],
        share=share,
        min_start=0.0,
        draws=draws,
        seed=seed,
    )


def _sample(pairs: ScoredPairs, rng: np.random.Generator) -> NDArray[np.int64]:
    """Row indices of all mated pairs and a random sample of the non-mated pairs."""
    non_mated = np.flatnonzero(~pairs.mated)
    return np.append(np.flatnonzero(pairs.mated), rng.permutation(non_mated)[:_MAX_NON_MATED])


def learn_evidence(
    score: str, pairs: Callable[[Condition], ScoredPairs], radius: float, neutral: float, seed: int = 0
) -> ConditionalCalibrator:
    """Fit the conditional calibrator over all conditions, each with equal weight."""
    rng = np.random.default_rng(seed)
    parts = []
    for condition in conditions(list(CALIBRATED)):
        scored = pairs(condition)
        parts.append(scored.select(_sample(scored, rng)))
    return ConditionalCalibrator.fit(
        np.concatenate([part.scores["mls"] for part in parts]),
        np.concatenate([part.scores["cosine"] for part in parts]),
        np.concatenate([np.stack(part.kappas) for part in parts], axis=1),
        np.concatenate([part.mated for part in parts]),
        score=score, radius=radius, neutral=neutral, roles=score == TEMPLATE_EVIDENCE,
        conditions=np.repeat(np.arange(len(parts)), [len(part.mated) for part in parts]),
    )  # fmt: skip


def with_evidence(
    pairs: Callable[[Condition], ScoredPairs], calibrator: ConditionalCalibrator
) -> Callable[[Condition], ScoredPairs]:
    """The same function, with evidence added to the pairs."""

    def scored_pairs(condition: Condition) -> ScoredPairs:
        return add_evidence(pairs(condition), calibrator)

    return scored_pairs


def add_evidence(pairs: ScoredPairs, calibrator: ConditionalCalibrator) -> ScoredPairs:
    """The same pairs with their evidence, computed in blocks."""
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(pairs.mated), _BLOCK)]
    evidence = [
        calibrator.evidence(
            pairs.scores["mls"][block], pairs.scores["cosine"][block],
            (pairs.kappas[0][block], pairs.kappas[1][block]),
        ).astype(np.float32)
        for block in blocks
    ]  # fmt: skip
    return pairs.add("evidence", np.concatenate(evidence))


def _table(pairs: ScoredPairs, column: str, score: str, draws: int, seed: int) -> ThresholdTable:
    """Thresholds under one condition, with intervals over people."""
    table = ThresholdTable.fit(pairs.scores[column], pairs.mated, TARGETS, score=score)
    thresholds = {
        e.target: e.threshold for e in table.entries if e.threshold is not None and np.isfinite(e.threshold)
    }
    if not draws or not thresholds:
        return table
    grid = np.unique(list(thresholds.values()))
    intervals = []
    for mated in (False, True):
        rates = pairs.reach(pairs.scores[column], mated, grid, draws, seed)
        intervals.append(
            {
                target: rates.interval(int(np.searchsorted(grid, threshold)))
                for target, threshold in thresholds.items()
            }
        )
    return table.with_subject_intervals(*intervals)


def calibrate(
    faces: GradedFaces, *, model: str, data: str, population: str, draws: int, record: Mapping[str, Any]
) -> tuple[Calibration, list[DecisionRule]]:
    """Fit the kappa scale, likelihood ratios, thresholds and rules.

    Thresholds of "mls" and "cosine" are fitted on undamaged images. Thresholds of templates and all rules
    hold for every grade of damage: they are those of the strictest grade.

    Args:
        faces: of the people to calibrate on.
        model: fingerprint of the model.
        data: hash of the images.
        population: description of the faces.
        draws: bootstrap samples of subjects.
        record: facts to add.

    Returns:
        (calibration, cosine rules fitted in the same way, for comparison).

    Raises:
        InputError: too few people or pairs for any rule.
    """
    radius = faces.radius
    neutral = neutral_score(faces.mu.shape[2], radius)
    single = gather(PAIR_SCORE, faces.pairs, neutral, draws)
    rules = single.rules(radius)
    if not rules:
        raise InputError(
            f"{len(np.unique(faces.person))} people with {len(faces.person)} images support no rule with a "
            f"false match rate of {ALPHAS[0]:g}; use more people"
        )
    cosine = gather("cosine", faces.pairs, neutral, draws)
    template = gather(TEMPLATE_SCORE, faces.template_pairs, neutral, draws)
    evidence, evidence_rules = {}, []
    for score, pairs in (
        (PAIR_EVIDENCE, faces.pairs),
        (TEMPLATE_EVIDENCE, faces.template_pairs),
        (TEMPLATES_EVIDENCE, faces.two_template_pairs),
    ):
        evidence[score] = learn_evidence(score, pairs, radius, neutral)
        statistics = gather(score, with_evidence(pairs, evidence[score]), neutral, draws)
        evidence_rules += statistics.rules(radius)
    floor = single.floor(float(rules[0].accept or 0.0))
    rules = [
        replace(rule, min_confidence=floor) for rule in (*evidence_rules, *rules, *template.rules(radius))
    ]
    kappas = [faces.of(grade)[1] for grade in CALIBRATED]
    calibration = Calibration(
        model,
        data,
        KappaScale.fit(np.concatenate(kappas), dim=faces.mu.shape[2], population=population),
        {
            PAIR_SCORE: single.likelihood(radius),
            "cosine": cosine.likelihood(None),
            TEMPLATE_SCORE: template.likelihood(radius),
            **evidence,
        },
        {
            PAIR_SCORE: replace(single.tables[0], radius=radius),
            "cosine": cosine.tables[0],
            TEMPLATE_SCORE: replace(strictest(template.tables), radius=radius),
        },
        tuple(rules),
        {**record, "neutral": neutral, "grades": list(CALIBRATED)},
    )
    return calibration, cosine.rules(None)


def strictest(tables: Sequence[ThresholdTable]) -> ThresholdTable:
    """For each target the entry with the largest threshold, or an unresolved entry if there is one."""
    entries = []
    for same_target in zip(*(table.entries for table in tables)):
        unresolved = [entry for entry in same_target if entry.threshold is None]
        entries.append(
            unresolved[0] if unresolved else max(same_target, key=lambda entry: float(entry.threshold or 0))
        )
    return replace(tables[0], entries=tuple(entries))


def halves(person: NDArray[np.int64], seed: int = 0) -> Iterator[NDArray[np.bool_]]:
    """Masks of the images of one half of the people, and of the other half."""
    people = np.random.default_rng(seed).permutation(np.unique(person))
    for part in (people[: len(people) // 2], people[len(people) // 2 :]):
        yield np.isin(person, part)


Ends = tuple[float, float] | None


@dataclass(frozen=True)
class DecisionCount:
    """Decisions of one method on all pairs under one condition.

    Attributes:
        pairs: "image" against image, "template" against image, or "templates" against each other.
        condition: grades of the two sides; "A/B": left images of grade A, right images of grade B.
        method: "rule", "mls" (one threshold of the score for all), "cosine" (its threshold on good images)
            or "cosine, all grades".
        alpha: bound on the false match rate.
        non_mated: number of non-mated pairs.
        wrong_matches: false matches among them.
        wrong_match_ends: 95 % interval of the false match rate, over people.
        mated: number of mated pairs.
        matches: correct matches among them.
        wrong_non_matches: false non-matches among them.
        wrong_non_match_ends: 95 % interval of the false non-match rate, over people.
        undecided_mated: share of the mated pairs left undecided.
        undecided_non_mated: share of the non-mated pairs left undecided.
    """

    pairs: str
    condition: str
    method: str
    alpha: float
    non_mated: int
    wrong_matches: int
    wrong_match_ends: Ends
    mated: int
    matches: int
    wrong_non_matches: int
    wrong_non_match_ends: Ends
    undecided_mated: float
    undecided_non_mated: float

    @property
    def false_match_rate(self) -> float:
        """False matches divided by all non-mated pairs, decided or not."""
        return self.wrong_matches / self.non_mated

    @property
    def false_non_match_rate(self) -> float:
        """False non-matches divided by all mated pairs, decided or not."""
        return self.wrong_non_matches / self.mated

    @property
    def kept(self) -> bool:
        """Whether the measured false match rate is within the bound."""
        return self.false_match_rate <= self.alpha


@dataclass(frozen=True)
class Cost:
    """Cllr of a likelihood ratio under one condition, in bits."""

    pairs: str
    condition: str
    score: str
    cllr: float


def check_decisions(
    faces: GradedFaces,
    calibration: Calibration,
    rivals: Sequence[DecisionRule],
    draws: int,
) -> tuple[list[DecisionCount], list[Cost]]:
    """Evaluate all methods under all conditions on people that were not used for calibration.

    Args:
        faces: of these people.
        calibration: to be evaluated.
        rivals: cosine rules fitted in the same way.
        draws: bootstrap samples of subjects.
    """
    counts: list[DecisionCount] = []
    costs: list[Cost] = []
    kinds: list[tuple[str, str, str, Callable[[Condition], ScoredPairs]]] = [
        ("image", PAIR_EVIDENCE, PAIR_SCORE, faces.pairs),
        ("template", TEMPLATE_EVIDENCE, TEMPLATE_SCORE, faces.template_pairs),
        ("templates", TEMPLATES_EVIDENCE, "", faces.two_template_pairs),
    ]
    for kind, evidence, score, pairs in kinds:
        for condition in conditions(list(faces.grades)):
            scored = add_evidence(pairs(condition), _conditional(calibration, evidence))
            for alpha in ALPHAS:
                methods = _methods(calibration, rivals, {"rule": evidence, "mls": score}, alpha)
                counts += [
                    count_decisions(scored, rule, kind, condition, method, draws) for method, rule in methods
                ]
            costs += [
                Cost(kind, condition.name, name, cllr(_llr(calibration, name, scored), scored.mated))
                for name in (evidence, score, "cosine" if kind == "image" else "")
                if name
            ]
    return counts, costs


def _conditional(calibration: Calibration, score: str) -> ConditionalCalibrator:
    calibrator = calibration.likelihood[score]
    assert isinstance(calibrator, ConditionalCalibrator)
    return calibrator


def _llr(calibration: Calibration, score: str, pairs: ScoredPairs) -> Array:
    """(n,) log-likelihood ratios, computed in blocks because evidence needs much memory."""
    values = pairs.scores["cosine" if score == "cosine" else "mls"]
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(values), _BLOCK)]
    return np.concatenate(
        [calibration.llr(score, values[b], kappas=(pairs.kappas[0][b], pairs.kappas[1][b])) for b in blocks]
    )


def _methods(
    calibration: Calibration, rivals: Sequence[DecisionRule], scores: Mapping[str, str], alpha: float
) -> list[tuple[str, DecisionRule]]:
    methods = [
        (method, rule)
        for method, score in scores.items()
        for rule in calibration.decisions
        if (rule.score, rule.alpha) == (score, alpha)
    ]
    entry = calibration.threshold("cosine", alpha)
    if entry.threshold is not None:
        methods.append(("cosine", always(entry.threshold, alpha)))
    methods += [("cosine, all grades", rule) for rule in rivals if rule.alpha == alpha]
    return methods


def always(threshold: float, alpha: float) -> DecisionRule:
    """The usual rule that never answers undecided: match if cosine >= threshold, otherwise non-match."""
    return DecisionRule(
        "cosine", None, "kappa", threshold, threshold, -np.inf, "fmr", alpha, 0.5, "good pictures"
    )


def count_decisions(
    pairs: ScoredPairs, rule: DecisionRule, kind: str, condition: Condition, method: str, draws: int
) -> DecisionCount:
    """Apply a rule to all pairs and count its decisions."""
    values = pairs.scores[column_of(rule.score)]
    confident = pairs.confidence >= rule.min_confidence
    accept, reject = float(rule.accept or 0.0), float(rule.reject or 0.0)
    upwards, downwards = np.where(confident, values, -np.inf), np.where(confident, -values, -np.inf)
    # score < reject is the same as -score >= the next float32 above -reject.
    edge = np.nextafter(np.float32(-reject), np.float32(np.inf))
    high, low = np.array([accept]), np.array([float(edge)])
    matched = {mated: pairs.reach(upwards, mated, high, 0 if mated else draws) for mated in (False, True)}
    rejected = {mated: pairs.reach(downwards, mated, low, draws if mated else 0) for mated in (False, True)}

    def undecided(mated: bool) -> float:
        decided = int(matched[mated].reached[0] + rejected[mated].reached[0])
        return 1 - decided / matched[mated].pairs

    return DecisionCount(
        kind, condition.name, method, rule.alpha,
        matched[False].pairs, int(matched[False].reached[0]),
        matched[False].interval(0) if draws else None,
        matched[True].pairs, int(matched[True].reached[0]), int(rejected[True].reached[0]),
        rejected[True].interval(0) if draws else None,
        undecided(True), undecided(False),
    )  # fmt: skip


@dataclass(frozen=True)
class Foreign:
    """Kappa and decisions on one set, or on one group of pairs, with undamaged images.

    Attributes:
        name: of the set.
        images: number of images in the set, or of pairs in the group.
        skipped: images without a face, or unusable.
        kappa: percentiles 5, 50, 95.
        percentile: percentile of the median kappa on the model's scale.
        ratio: kappa after over kappa before detecting and aligning the crops again, percentiles 5, 50, 95.
        decisions: of the shipped rules.
    """

    name: str
    images: int
    skipped: int = 0
    kappa: list[float] = field(default_factory=list)
    percentile: float | None = None
    ratio: list[float] = field(default_factory=list)
    decisions: list[DecisionCount] = field(default_factory=list)


_CLEAN = Condition("none", "none")


def look_elsewhere(
    model: ConfidenceModel,
    folder: Path,
    faces: GradedFaces,
    test: ImageSource,
    foreign: Mapping[str, ImageSource],
    realign: Callable[[ImageSource], ImageSource] | None,
    *,
    draws: int,
) -> list[Foreign]:
    """Evaluate groups of the evaluation pairs, other sets, and the same crops detected and aligned again."""
    results = _by_group(model, faces, draws)
    for name, source in foreign.items():
        embeddings = _embedded(model, source, folder / f"{name}.safetensors")
        results.append(_set(model, name, embeddings, draws))
    if realign is not None:
        row_of = {key: row for row, key in enumerate(test.keys)}
        realigned = realign(test.subset(np.array([row_of[key] for key in faces.keys])))
        embeddings = _embedded(model, realigned, folder / "realigned.safetensors")
        before = dict(zip(faces.keys, faces.of("none")[1].tolist()))
        ratio = np.asarray(embeddings.kappa) / np.array([before[key] for key in embeddings.keys])
        results.append(_set(model, "detected again", embeddings, draws, ratio))
    return results


def _embedded(model: ConfidenceModel, source: ImageSource, path: Path) -> Embeddings:
    """Embed the images, or load the file of an earlier run with the same model and images."""
    if path.is_file():
        saved = Embeddings.load(path)
        made_from = saved.provenance.get("model"), saved.provenance.get("data")
        if made_from == (model.fingerprint(), source.fingerprint()):
            return saved
    return embed(model, source, path)


def _set(
    model: ConfidenceModel, name: str, embeddings: Embeddings, draws: int, ratio: NDArray[Any] | None = None
) -> Foreign:
    kappa = np.array(embeddings.kappa)
    faces = GradedFaces(
        ["none"], np.array(embeddings.mu)[:, None], kappa[:, None], np.asarray(embeddings.labels),
        embeddings.keys, model.radius,
    )  # fmt: skip
    scale = model.calibration.kappa if model.calibration else None
    return Foreign(
        name,
        len(kappa),
        len(embeddings.skipped),
        np.percentile(kappa, (5, 50, 95)).tolist(),
        None if scale is None else float(scale.percentile(float(np.median(kappa)))),
        [] if ratio is None else np.percentile(ratio, (5, 50, 95)).tolist(),
        _decisions(model, faces.pairs(_CLEAN), name, draws),
    )


def _by_group(model: ConfidenceModel, faces: GradedFaces, draws: int) -> list[Foreign]:
    """Decisions on pairs of undamaged images, by the groups of both images."""
    groups = faces.groups()
    names = np.unique(groups).tolist()
    if len(names) < 2:
        return []
    pairs, (left, right) = faces.pairs(_CLEAN), np.triu_indices(len(groups), 1)
    results = []
    for i, group in enumerate(names):
        for other in names[i:]:
            rows = ((groups[left] == group) & (groups[right] == other)) | (
                (groups[left] == other) & (groups[right] == group)
            )
            name = f"{group}/{other}"
            decisions = _decisions(model, pairs.select(rows), name, draws)
            results.append(Foreign(name, int(rows.sum()), decisions=decisions))
    return results


def _decisions(model: ConfidenceModel, pairs: ScoredPairs, name: str, draws: int) -> list[DecisionCount]:
    calibration = model.calibration
    if calibration is None:
        return []
    scored = add_evidence(pairs, _conditional(calibration, PAIR_EVIDENCE))
    return [
        count_decisions(scored, rule, name, _CLEAN, "rule", draws)
        for rule in calibration.decisions
        if rule.score == PAIR_EVIDENCE and rule.extrapolated is None
    ]


MODEL_FILE = "model.safetensors"
COMMAND = "python -m studies shipped LFW CFP --out runs/shipped"
CARD = {
    "what": "how sure a face recogniser can be of one picture: log kappa of a von Mises-Fisher distribution",
    "licence": "research use: learnt from LFW, calibrated on CFP, both collected from the web for research",
    "not": "liveness, identity, the probability of a match, or neutral between groups of people",
    "page": "docs/model-card.md",
    "command": COMMAND,
}
"""Description stored in the saved model."""
PERCENTS = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True, eq=False)
class Shipped:
    """The model and all results.

    Attributes:
        model: with its calibration.
        decisions: of the rules and of the cosine on the evaluation people, by condition.
        costs: Cllr of the likelihood ratios on the evaluation people.
        thresholds: by score, the calibration's entries and their rates on the evaluation people, for
            undamaged images.
        kappas: by grade and group, the percentiles `PERCENTS` of kappa.
        foreign: results on other sets.
        facts: about data and people, JSON-serialisable.
    """

    model: ConfidenceModel
    decisions: list[DecisionCount]
    costs: list[Cost]
    thresholds: dict[str, list[tuple[ThresholdEntry, SubjectRates | None]]]
    kappas: dict[str, list[float]]
    foreign: list[Foreign] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


def ship(
    backbone: FrozenBackbone,
    train: ImageSource | ConfidenceModel,
    test: ImageSource,
    folder: str | Path,
    config: ConfidenceConfig | None = None,
    *,
    foreign: Mapping[str, ImageSource] | None = None,
    realign: Callable[[ImageSource], ImageSource] | None = None,
    draws: int = 1000,
) -> Shipped:
    """Train a head on ``train``, calibrate it on half of the people of ``test``, evaluate it on the others.

    People of ``train`` who look like somebody in ``test`` are not used for training (`divide`). After an
    interruption, the run continues where it stopped. The model is written to ``folder/model.safetensors``.

    Args:
        backbone: the frozen recogniser.
        train: aligned crops of known people; or a trained model, which is only recalibrated and evaluated.
        test: aligned crops of other people, several images of each.
        folder: output folder for caches, the head and the model.
        config: settings of the head; `SETTINGS` by default.
        foreign: further sets to evaluate, aligned crops of known people each.
        realign: detects and aligns the crops again, to measure the effect on kappa.
        draws: bootstrap samples of subjects; 0 for no intervals.

    Raises:
        InputError: too few people or pairs for a calibration.
    """
    config, folder = config or SETTINGS, Path(folder)
    cache = build_cache(
        backbone, train.head if isinstance(train, ConfidenceModel) else new_head(backbone, config), test,
        list(GRADES.values()), folder / "test-cache", batch_size=BATCH,
    )  # fmt: skip
    if isinstance(train, ConfidenceModel):
        model, facts = train, dict(train.record.get("card", {}).get("people", {}))
    else:
        data = prepare(backbone, train, config, folder / "train-cache", batch_size=BATCH)
        division = divide(data.cache, cache, share=0.0)
        model = fit_confidence(backbone, division.training(data), config, folder / "head")
        facts = {
            **division.facts, "train": train.fingerprint(), "test": test.fingerprint(),
            "skipped": {**data.cache.skipped, **cache.skipped},
        }  # fmt: skip
        model.record["card"] = {**CARD, "train": train.name, "calibrated": test.name, "people": facts}
    faces = graded(model, cache)
    first, second = (faces.only(half) for half in halves(faces.person))
    console.print("calibrating", highlight=False)
    calibration, rivals = calibrate(
        first, model=model.fingerprint(), data=test.fingerprint(), population=_population(test.name, first),
        draws=draws, record={"people": len(np.unique(first.person)), "images": len(first.keys)},
    )  # fmt: skip
    model = model.with_calibration(calibration)
    model.save(folder / MODEL_FILE)
    console.print("evaluating on other people", highlight=False)
    decisions, costs = check_decisions(second, calibration, rivals, draws)
    return Shipped(
        model, decisions, costs, _check_thresholds(model, second, draws), _kappas(second),
        look_elsewhere(
            model, folder, second, test, foreign or {}, realign, draws=draws
        ),
        facts,
    )  # fmt: skip


def graded(model: ConfidenceModel, cache: FeatureCache) -> GradedFaces:
    """The images that are usable in every view, with the kappas of the model's head."""
    shape = len(cache.source), len(cache.views)
    usable = cache.valid.reshape(shape).all(1) & (cache.source.labels >= 0)
    log_kappa = cache.log_kappa(model.head)
    faces = GradedFaces(
        list(GRADES), centred(model, cache.mu).reshape(*shape, -1),
        np.exp(log_kappa).reshape(shape),
        cache.source.labels, cache.source.keys, model.radius,
    )  # fmt: skip
    return faces.only(usable)


def _population(name: str, faces: GradedFaces) -> str:
    people, images = len(np.unique(faces.person)), len(faces.keys)
    grades = ", ".join(CALIBRATED[1:])
    return (
        f"{images} pictures of {people} people of {name}, each as it is and with {grades} artificial damage: "
        f"{images * len(CALIBRATED)} views"
    )


def _check_thresholds(
    model: ConfidenceModel, faces: GradedFaces, draws: int
) -> dict[str, list[tuple[ThresholdEntry, SubjectRates | None]]]:
    """By score, the threshold entries of the calibration and their false match rates on these people."""
    results: dict[str, list[tuple[ThresholdEntry, SubjectRates | None]]] = {}
    pairs = faces.pairs(Condition("none", "none"))
    for score in ("mls", "cosine"):
        table = model.calibration.thresholds[score] if model.calibration else None
        for entry in table.entries if table else ():
            rates = None
            if entry.threshold is not None and np.isfinite(entry.threshold):
                rates = pairs.reach(pairs.scores[score], False, np.array([entry.threshold]), draws)
            results.setdefault(score, []).append((entry, rates))
    return results


def _kappas(faces: GradedFaces) -> dict[str, list[float]]:
    """Percentiles of kappa by grade, and by group for undamaged images."""
    kappas = {grade: faces.of(grade)[1] for grade in faces.grades}
    groups = faces.groups()
    for group in np.unique(groups[groups != ""]).tolist():
        kappas[f"none, {group}"] = faces.of("none")[1][groups == group]
    return {name: np.percentile(values, PERCENTS).tolist() for name, values in kappas.items()}
