"""The confidence head that ships: trained, calibrated and checked on people of three separate groups."""

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
    LEAST_EXCEEDANCES,
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
    conditions,
    divide,
)

Array = NDArray[Any]

TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
ALPHAS = (1e-2, 1e-3, 1e-4, 1e-5)
BEYOND = (1e-6, 1e-7, 1e-8)
"""Rates that 250 people cannot show; their rules are extrapolated, and say so."""
FNMR, DELTA = 0.01, 0.001
_FREE = 0.01  # share of the true matches that the floor on kappa may cost
_ABOVE, _BELOW, _NAT = 60.0, 60.0, 0.05  # grid of thresholds around the neutral score, in nats
_COSINES = np.round(np.arange(-0.3, 1.0, 0.0025), 4)
_RARE = 2.0  # evidence from which on a match is tested
_OTHERS = 200_000  # non-mated pairs per condition that likelihood ratios are fitted on
_BLOCK = 1 << 18  # pairs judged at once
_SHARE = 1e-3  # of the non-mated pairs that a tail is fitted on


@dataclass(frozen=True, eq=False)
class Gathered:
    """What the rules of one score are made from, one entry per condition."""

    score: str
    non_mated: list[SubjectRates]
    mated: list[SubjectRates]
    matches: list[tuple[Array, Array]]
    """(scores, confidences) of all mated pairs."""
    sample: list[tuple[Array, NDArray[np.bool_]]]
    """(scores, mated) of all mated and some non-mated pairs."""
    tables: list[ThresholdTable]
    tails: list[TailFit]

    def rules(self, radius: float | None) -> list[DecisionRule]:
        """One per alpha, as far as the pairs support them, and further ones from tails, if there are any."""
        made = (
            bounded_rule(
                self.non_mated, self.mated, alpha=alpha, fnmr=FNMR, delta=DELTA, score=self.score,
                radius=radius,
            )
            for alpha in ALPHAS
        )  # fmt: skip
        counted = [rule for rule in made if rule.decides]
        beyond = [alpha for alpha in (*ALPHAS, *BEYOND) if counted and alpha < counted[-1].alpha]
        further = []
        for alpha in beyond if self.tails else ():
            try:
                further.append(extrapolated_rule(counted[-1], self.tails, alpha))
            except InputError as error:  # few people: the rates that they cannot tell are left out
                console.print(f"{self.score}: {error}", highlight=False, markup=False)
                break
        return counted + further

    def floor(self, accept: float) -> float:
        """The largest confidence that costs at most one in a hundred of all true matches."""
        sure = np.concatenate([c[s >= accept] for s, c in self.matches])
        return float(np.quantile(sure, _FREE)) if sure.size else -np.inf

    def likelihood(self, radius: float | None) -> LogisticCalibrator:
        """Over all conditions."""
        scores, mated = (np.concatenate(part) for part in zip(*self.sample))
        return LogisticCalibrator.fit(scores, mated, score=self.score, radius=radius)


Grids = tuple[Array, Array]
"""Thresholds from which on a match, and below which a non-match, is tested."""


def grids_of(score: str, neutral: float) -> Grids:
    """Of a cosine, of evidence, or of a mutual likelihood score around the neutral one."""
    if score == "cosine":
        return _COSINES, _COSINES
    if score.startswith(PAIR_EVIDENCE):
        return np.round(np.arange(_RARE, _ABOVE, _NAT), 2), np.round(np.arange(-_BELOW / 3, 3, _NAT), 2)
    high = np.round(neutral + np.arange(0, _ABOVE, _NAT), 2)
    return high, np.round(neutral + np.arange(-_BELOW, _ABOVE / 2, _NAT), 2)


def column_of(score: str) -> str:
    """Where a score stands among those of `ScoredPairs`."""
    if score.startswith(PAIR_EVIDENCE):
        return "evidence"
    return "cosine" if score == "cosine" else "mls"


def gather(
    score: str, pairs: Callable[[Condition], ScoredPairs], neutral: float, draws: int, seed: int = 0
) -> Gathered:
    """All conditions one after the other, so that only one of them is in memory.

    Args:
        score: name of the score for the rules.
        pairs: of a condition.
        neutral: mutual likelihood score that speaks neither for nor against.
        draws: of subjects.
        seed: of the draws.
    """
    found = Gathered(score, [], [], [], [], [], [])
    high, low = grids_of(score, neutral)
    column = column_of(score)
    rng = np.random.default_rng(seed)
    for condition in conditions(list(CALIBRATED)):
        own = pairs(condition)
        values = own.scores[column]
        found.non_mated.append(own.reach(values, False, high, draws, seed))
        found.mated.append(own.reach(values, True, low, draws, seed))
        found.matches.append((values[own.mated], own.confidence[own.mated]))
        if column != "evidence":
            some = _sample(own, rng)
            found.sample.append((values[some].astype(np.float64), own.mated[some]))
            found.tables.append(_table(own, column, score, draws, seed))
        elif draws:
            found.tails.append(tail_of(own, draws, seed))
    return found


def tail_of(pairs: ScoredPairs, draws: int, seed: int = 0, share: float = _SHARE) -> TailFit:
    """Of the evidence of the non-mated pairs."""
    other = ~pairs.mated
    share = max(share, 1.01 * LEAST_EXCEEDANCES / int(other.sum()))
    values = pairs.scores["evidence"][other]
    return fit_tail(
        values, pairs.left[other], pairs.right[other], share=share, least=0.0, draws=draws, seed=seed
    )


def _sample(pairs: ScoredPairs, rng: np.random.Generator) -> NDArray[np.int64]:
    """All mated and some non-mated pairs."""
    others = np.flatnonzero(~pairs.mated)
    return np.append(np.flatnonzero(pairs.mated), rng.permutation(others)[:_OTHERS])


def learn_evidence(
    score: str, pairs: Callable[[Condition], ScoredPairs], radius: float, neutral: float, seed: int = 0
) -> ConditionalCalibrator:
    """Over all conditions, which count alike."""
    rng = np.random.default_rng(seed)
    parts = []
    for condition in conditions(list(CALIBRATED)):
        own = pairs(condition)
        parts.append(own.select(_sample(own, rng)))
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
    """The same pairs with their evidence."""

    def judged(condition: Condition) -> ScoredPairs:
        return judge(pairs(condition), calibrator)

    return judged


def judge(pairs: ScoredPairs, calibrator: ConditionalCalibrator) -> ScoredPairs:
    """Pairs with their evidence, block by block."""
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(pairs.mated), _BLOCK)]
    found = [
        calibrator.evidence(
            pairs.scores["mls"][block], pairs.scores["cosine"][block],
            (pairs.kappas[0][block], pairs.kappas[1][block]),
        ).astype(np.float32)
        for block in blocks
    ]  # fmt: skip
    return pairs.add("evidence", np.concatenate(found))


def _table(pairs: ScoredPairs, column: str, score: str, draws: int, seed: int) -> ThresholdTable:
    """Thresholds under one condition, with intervals over people."""
    table = ThresholdTable.fit(pairs.scores[column], pairs.mated, TARGETS, score=score)
    known = {e.target: e.threshold for e in table.entries if e.threshold is not None}
    known = {target: threshold for target, threshold in known.items() if np.isfinite(threshold)}
    if not draws or not known:
        return table
    grid = np.unique(list(known.values()))
    ends = []
    for mated in (False, True):
        rates = pairs.reach(pairs.scores[column], mated, grid, draws, seed)
        ends.append({t: rates.interval(int(np.searchsorted(grid, at))) for t, at in known.items()})
    return table.with_subject_intervals(*ends)


def calibrate(
    faces: GradedFaces, *, model: str, data: str, population: str, draws: int, record: Mapping[str, Any]
) -> tuple[Calibration, list[DecisionRule]]:
    """Scale, likelihood ratios, thresholds and rules.

    Thresholds of "mls" and "cosine" are for pictures as they are; those of templates, and all rules, for
    every grade: the strictest counts.

    Args:
        faces: of the people to calibrate on.
        model: fingerprint of the model.
        data: hash of the images.
        population: what the faces are, in words.
        draws: of subjects.
        record: facts to add.

    Returns:
        (calibration, rules of the cosine made in the same way, which are for comparison).

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
            f"false match rate of {ALPHAS[0]:g}; bring more people"
        )
    cosine = gather("cosine", faces.pairs, neutral, draws)
    template = gather(TEMPLATE_SCORE, faces.template_pairs, neutral, draws)
    evidence, judged = {}, []
    for score, pairs in (
        (PAIR_EVIDENCE, faces.pairs),
        (TEMPLATE_EVIDENCE, faces.template_pairs),
        (TEMPLATES_EVIDENCE, faces.two_template_pairs),
    ):
        evidence[score] = learn_evidence(score, pairs, radius, neutral)
        judged += gather(score, with_evidence(pairs, evidence[score]), neutral, draws).rules(radius)
    floor = single.floor(float(rules[0].accept or 0.0))
    rules = [replace(rule, min_confidence=floor) for rule in (*judged, *rules, *template.rules(radius))]
    shown = [faces.of(grade)[1] for grade in CALIBRATED]
    calibration = Calibration(
        model,
        data,
        KappaScale.fit(np.concatenate(shown), dim=faces.mu.shape[2], population=population),
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
    """By target the entry with the largest threshold; unresolved where any is."""
    entries = []
    for together in zip(*(table.entries for table in tables)):
        unresolved = [entry for entry in together if entry.threshold is None]
        entries.append(
            unresolved[0] if unresolved else max(together, key=lambda entry: float(entry.threshold or 0))
        )
    return replace(tables[0], entries=tuple(entries))


def halves(person: NDArray[np.int64], seed: int = 0) -> Iterator[NDArray[np.bool_]]:
    """The images of one half of the people, and of the other."""
    people = np.random.default_rng(seed).permutation(np.unique(person))
    for part in (people[: len(people) // 2], people[len(people) // 2 :]):
        yield np.isin(person, part)


Ends = tuple[float, float] | None


@dataclass(frozen=True)
class DecisionCount:
    """What one method said of all pairs under one condition.

    Attributes:
        pairs: "image" against image, "template" against image, or "templates" against each other.
        condition: which grades; "A/B": one picture each.
        method: "rule", "mls" (one threshold of the score for all), "cosine" (its threshold on good pictures)
            or "cosine, all grades".
        alpha: promised rate of wrong matches.
        non_mated: pairs of two people.
        wrong_matches: of them.
        wrong_match_ends: 95 % interval of their rate, over people.
        mated: pairs of one person.
        matches: of them.
        wrong_non_matches: of them.
        wrong_non_match_ends: likewise.
        undecided_mated: share.
        undecided_non_mated: share.
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
        """Of all non-mated pairs."""
        return self.wrong_matches / self.non_mated

    @property
    def false_non_match_rate(self) -> float:
        """Of all mated pairs."""
        return self.wrong_non_matches / self.mated

    @property
    def kept(self) -> bool:
        """Whether no more wrong matches were found than promised."""
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
    """All methods under all conditions on people who had no part in the calibration.

    Args:
        faces: of these people.
        calibration: to be checked.
        rivals: rules of the cosine, made in the same way.
        draws: of subjects.
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
            own = judge(pairs(condition), _conditional(calibration, evidence))
            for alpha in ALPHAS:
                methods = _methods(calibration, rivals, {"rule": evidence, "mls": score}, alpha)
                counts += [
                    count_decisions(own, rule, kind, condition, method, draws) for method, rule in methods
                ]
            costs += [
                Cost(kind, condition.name, name, cllr(_llr(calibration, name, own), own.mated))
                for name in (evidence, score, "cosine" if kind == "image" else "")
                if name
            ]
    return counts, costs


def _conditional(calibration: Calibration, score: str) -> ConditionalCalibrator:
    found = calibration.likelihood[score]
    assert isinstance(found, ConditionalCalibrator)
    return found


def _llr(calibration: Calibration, score: str, pairs: ScoredPairs) -> Array:
    """(n,) by blocks, which evidence needs."""
    values = pairs.scores["cosine" if score == "cosine" else "mls"]
    blocks = [slice(start, start + _BLOCK) for start in range(0, len(values), _BLOCK)]
    return np.concatenate(
        [calibration.llr(score, values[b], kappas=(pairs.kappas[0][b], pairs.kappas[1][b])) for b in blocks]
    )


def _methods(
    calibration: Calibration, rivals: Sequence[DecisionRule], scores: Mapping[str, str], alpha: float
) -> list[tuple[str, DecisionRule]]:
    found = [
        (method, rule)
        for method, score in scores.items()
        for rule in calibration.decisions
        if (rule.score, rule.alpha) == (score, alpha)
    ]
    entry = calibration.threshold("cosine", alpha)
    if entry.threshold is not None:
        found.append(("cosine", always(entry.threshold, alpha)))
    found += [("cosine, all grades", rule) for rule in rivals if rule.alpha == alpha]
    return found


def always(threshold: float, alpha: float) -> DecisionRule:
    """The usual rule: match from the cosine threshold on, else non-match."""
    return DecisionRule(
        "cosine", None, "kappa", threshold, threshold, -np.inf, "fmr", alpha, 0.5, "good pictures"
    )


def count_decisions(
    pairs: ScoredPairs, rule: DecisionRule, kind: str, condition: Condition, method: str, draws: int
) -> DecisionCount:
    """Count what a rule says."""
    values = pairs.scores[column_of(rule.score)]
    sure = pairs.confidence >= rule.min_confidence
    accept, reject = float(rule.accept or 0.0), float(rule.reject or 0.0)
    upwards, downwards = np.where(sure, values, -np.inf), np.where(sure, -values, -np.inf)
    edge = np.nextafter(np.float32(-reject), np.float32(np.inf))  # score < reject
    at, below = np.array([accept]), np.array([float(edge)])
    matched = {mated: pairs.reach(upwards, mated, at, 0 if mated else draws) for mated in (False, True)}
    refused = {mated: pairs.reach(downwards, mated, below, draws if mated else 0) for mated in (False, True)}

    def undecided(mated: bool) -> float:
        decided = int(matched[mated].reached[0] + refused[mated].reached[0])
        return 1 - decided / matched[mated].pairs

    return DecisionCount(
        kind, condition.name, method, rule.alpha,
        matched[False].pairs, int(matched[False].reached[0]),
        matched[False].interval(0) if draws else None,
        matched[True].pairs, int(matched[True].reached[0]), int(refused[True].reached[0]),
        refused[True].interval(0) if draws else None,
        undecided(True), undecided(False),
    )  # fmt: skip


@dataclass(frozen=True)
class Foreign:
    """What the model says of one set or group, pictures as they are.

    Attributes:
        name: of the set.
        images: in it, or of a group of pairs.
        skipped: pictures without a face, or unusable.
        kappa: percentiles 5, 50, 95.
        percentile: of the median on the model's scale.
        ratio: kappa after over kappa before, percentiles 5, 50, 95; of crops that are detected again.
        decisions: by the shipped rules.
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
    """Groups of the checked people's pairs, other sets, and the same crops detected and aligned again."""
    found = _by_group(model, faces, draws)
    for name, source in foreign.items():
        known = _embedded(model, source, folder / f"{name}.safetensors")
        found.append(_set(model, name, known, draws))
    if realign is not None:
        place = {key: row for row, key in enumerate(test.keys)}
        again = realign(test.subset(np.array([place[key] for key in faces.keys])))
        known = _embedded(model, again, folder / "realigned.safetensors")
        before = dict(zip(faces.keys, faces.of("none")[1].tolist()))
        ratio = np.asarray(known.kappa) / np.array([before[key] for key in known.keys])
        found.append(_set(model, "detected again", known, draws, ratio))
    return found


def _embedded(model: ConfidenceModel, source: ImageSource, path: Path) -> Embeddings:
    """The file of an earlier run, if it is of the same model and images."""
    if path.is_file():
        known = Embeddings.load(path)
        same = known.provenance.get("model"), known.provenance.get("data")
        if same == (model.fingerprint(), source.fingerprint()):
            return known
    return embed(model, source, path)


def _set(
    model: ConfidenceModel, name: str, known: Embeddings, draws: int, ratio: NDArray[Any] | None = None
) -> Foreign:
    kappa = np.array(known.kappa)
    own = GradedFaces(
        ["none"], np.array(known.mu)[:, None], kappa[:, None], np.asarray(known.labels), known.keys,
        model.radius,
    )  # fmt: skip
    scale = model.calibration.kappa if model.calibration else None
    return Foreign(
        name,
        len(kappa),
        len(known.skipped),
        np.percentile(kappa, (5, 50, 95)).tolist(),
        None if scale is None else float(scale.percentile(float(np.median(kappa)))),
        [] if ratio is None else np.percentile(ratio, (5, 50, 95)).tolist(),
        _decisions(model, own.pairs(_CLEAN), name, draws),
    )


def _by_group(model: ConfidenceModel, faces: GradedFaces, draws: int) -> list[Foreign]:
    """Pairs of pictures as they are, by the groups of both."""
    groups = faces.groups()
    names = np.unique(groups).tolist()
    if len(names) < 2:
        return []
    pairs, (left, right) = faces.pairs(_CLEAN), np.triu_indices(len(groups), 1)
    found = []
    for i, one in enumerate(names):
        for other in names[i:]:
            rows = ((groups[left] == one) & (groups[right] == other)) | (
                (groups[left] == other) & (groups[right] == one)
            )
            name = f"{one}/{other}"
            said = _decisions(model, pairs.select(rows), name, draws)
            found.append(Foreign(name, int(rows.sum()), decisions=said))
    return found


def _decisions(model: ConfidenceModel, pairs: ScoredPairs, name: str, draws: int) -> list[DecisionCount]:
    calibration = model.calibration
    if calibration is None:
        return []
    own = judge(pairs, _conditional(calibration, PAIR_EVIDENCE))
    return [
        count_decisions(own, rule, name, _CLEAN, "rule", draws)
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
"""What the saved model says of itself."""
PERCENTS = (1, 5, 25, 50, 75, 95, 99)


@dataclass(frozen=True, eq=False)
class Shipped:
    """Everything that was made and found.

    Attributes:
        model: with its calibration.
        decisions: what the rules and the cosine say of other people, by condition.
        costs: of likelihood ratios there.
        thresholds: by score, the calibration's entries and rates of other people, pictures as they are.
        kappas: by grade and group, the percentiles `PERCENTS` of kappa.
        foreign: what is said of other sets.
        facts: of data and people, JSON-able.
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
    """Train a head on ``train``, calibrate it on half of the people of ``test``, check it on the other half.

    People of ``train`` who look like somebody of ``test`` are not learnt from (`divide`). Every pass and the
    training resume where an interrupted run stopped. The model is written to ``folder/model.safetensors``.

    Args:
        backbone: the frozen recogniser.
        train: aligned crops of known people; or a trained model, which is only calibrated and checked anew.
        test: aligned crops of other people, several images of each.
        folder: gets caches, the head and the model.
        config: settings of the head.
        foreign: further sets to look at, aligned crops of known people each.
        realign: detects and aligns the crops again, to see what that does to kappa.
        draws: of the bootstrap over subjects; 0 for no intervals.

    Raises:
        InputError: too few people or pairs for a calibration.
    """
    config, folder = config or ConfidenceConfig(), Path(folder)
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
    console.print("checking on other people", highlight=False)
    decisions, costs = check_decisions(second, calibration, rivals, draws)
    return Shipped(
        model, decisions, costs, _check_thresholds(model, second, draws), _kappas(second),
        look_elsewhere(
            model, folder, second, test, foreign or {}, realign, draws=draws
        ),
        facts,
    )  # fmt: skip


def graded(model: ConfidenceModel, cache: FeatureCache) -> GradedFaces:
    """The images that every view could use, by the model's head."""
    shape = len(cache.source), len(cache.views)
    usable = cache.valid.reshape(shape).all(1) & (cache.source.labels >= 0)
    faces = GradedFaces(
        list(GRADES), cache.mu.reshape(*shape, -1), np.exp(cache.log_kappa(model.head)).reshape(shape),
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
    found: dict[str, list[tuple[ThresholdEntry, SubjectRates | None]]] = {}
    pairs = faces.pairs(Condition("none", "none"))
    for score in ("mls", "cosine"):
        table = model.calibration.thresholds[score] if model.calibration else None
        for entry in table.entries if table else ():
            rates = None
            if entry.threshold is not None and np.isfinite(entry.threshold):
                rates = pairs.reach(pairs.scores[score], False, np.array([entry.threshold]), draws)
            found.setdefault(score, []).append((entry, rates))
    return found


def _kappas(faces: GradedFaces) -> dict[str, list[float]]:
    """Percentiles by grade, and of pictures as they are by group."""
    shown = {grade: faces.of(grade)[1] for grade in faces.grades}
    groups = faces.groups()
    for group in np.unique(groups[groups != ""]).tolist():
        shown[f"none, {group}"] = faces.of("none")[1][groups == group]
    return {name: np.percentile(values, PERCENTS).tolist() for name, values in shown.items()}
