"""Do decision rules hold on people of other sets, as shipped and refitted on some of those people?"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.calibration import PAIR_EVIDENCE, Calibration, ConditionalCalibrator, DecisionRule
from spherecf.common.progress import progress
from spherecf.common.version import environment
from spherecf.data import ImageSource, View
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import SubjectRates, check_people, in_turns
from spherecf.models import ConfidenceModel
from spherecf.report import ReportFiles, Section, Table, write_report
from spherecf.training import FeatureCache, build_cache
from studies.graded import GRADES, Condition, GradedFaces, ScoredPairs, centred
from studies.shipped import add_evidence, halves

Array = NDArray[Any]

RATES = (1e-2, 1e-3, 1e-4)
"""False match rates to check; smaller rates need more pairs than these sets have."""
SHOWN = RATES[1:]
LOCAL = (20, 50, 100, 200)
"""Numbers of people that rules are refitted on."""
_MAX_IMAGES = 4000  # of a whole set
_MAX_COMPARED = 2000  # of a test set: two million pairs
_MAX_EACH, _MAX_REFIT = 4, 1000  # images per person, and in all, that rules are refitted on
_MIN_REST = 20  # people left to measure on


@dataclass(frozen=True, eq=False)
class FaceSet:
    """Images of known people, and all pairs of these images.

    Attributes:
        name: of the set.
        embeddings: of its images, labelled.
        pairs: of all images, with their evidence.
    """

    name: str
    embeddings: Embeddings
    pairs: ScoredPairs

    @classmethod
    def of(cls, name: str, embeddings: Embeddings, calibration: Calibration) -> "FaceSet":
        """Up to 2,000 of these images and all of their pairs, with evidence."""
        sample = embeddings.select(np.sort(in_turns(np.asarray(embeddings.labels))[:_MAX_COMPARED]))
        faces = GradedFaces(
            ["none"], sample.mu[:, None], sample.kappa[:, None], np.asarray(sample.labels), sample.keys,
            sample.radius,
        )  # fmt: skip
        calibrator = calibration.likelihood[PAIR_EVIDENCE]
        assert isinstance(calibrator, ConditionalCalibrator)
        return cls(name, sample, add_evidence(faces.pairs(Condition("none", "none")), calibrator))

    @property
    def people(self) -> Array:
        """(people,) labels."""
        return np.unique(np.asarray(self.embeddings.labels))

    def only(self, people: Array) -> Embeddings:
        """About four images of each of these people, at most 1,000 in all."""
        images = self.embeddings.select(np.flatnonzero(np.isin(np.asarray(self.embeddings.labels), people)))
        rows = in_turns(np.asarray(images.labels))[: min(_MAX_EACH * people.size, _MAX_REFIT)]
        return images.select(np.sort(rows))

    def without(self, people: Array) -> ScoredPairs:
        """The pairs in which none of these people appears."""
        excluded = np.isin(self.pairs.left, people) | np.isin(self.pairs.right, people)
        return self.pairs.select(np.flatnonzero(~excluded)) if people.size else self.pairs


@dataclass(frozen=True)
class Count:
    """Errors of a rule on pairs that were not used to fit it.

    Attributes:
        fitted_on: the people the rule was fitted on, in words.
        measured_on: name of the set it was measured on.
        people: number of people it was refitted on; 0 for a rule of the model, or of another set.
        alpha: bound on the false match rate.
        rate: measured false match rate, mean over the repetitions.
        ends: its 95 % interval over people, both those of the fit and those of the measurement.
        matches: share of the mated pairs that are called a match.
        kept: repetitions in which the rate is at most ``alpha``.
        repetitions: number of repetitions.
        look_alikes: number of pairs of people that cause half of the false matches.
    """

    fitted_on: str
    measured_on: str
    people: int
    alpha: float
    rate: float
    ends: tuple[float, float]
    matches: float
    kept: int = 1
    repetitions: int = 1
    look_alikes: int = 0


@dataclass
class _Tally:
    """Results of one rule, one entry per repetition."""

    rates: list[float] = field(default_factory=list)
    drawn: list[Array] = field(default_factory=list)
    matches: list[float] = field(default_factory=list)
    look_alikes: list[int] = field(default_factory=list)

    def add(self, rates: SubjectRates, column: int, matches: float, look_alikes: int) -> None:
        self.rates.append(float(rates.rates[column]))
        self.drawn.append(rates.drawn[:, column])
        self.matches.append(matches)
        self.look_alikes.append(look_alikes)

    def count(self, fitted_on: str, measured_on: str, people: int, alpha: float) -> Count:
        low, high = np.quantile(np.concatenate(self.drawn), [0.025, 0.975])
        return Count(
            fitted_on, measured_on, people, alpha, float(np.mean(self.rates)), (float(low), float(high)),
            float(np.mean(self.matches)), sum(rate <= alpha for rate in self.rates), len(self.rates),
            round(np.mean(self.look_alikes)),
        )  # fmt: skip


def select_rules(calibration: Calibration) -> Calibration:
    """The calibration with only the rules for two images at the `RATES`."""
    rules = tuple(
        rule
        for rule in calibration.decisions
        if (rule.score, rule.error) == (PAIR_EVIDENCE, "fmr") and rule.alpha in RATES
    )
    if {rule.alpha for rule in rules} != set(RATES):
        raise InputError(f"transfer: the model has no evidence rules for {RATES}; calibrate it again")
    return replace(calibration, decisions=rules)


def count(pairs: ScoredPairs, rules: Sequence[DecisionRule], tallies: Sequence[_Tally], draws: int) -> None:
    """Apply each rule to these pairs and add the result to its tally."""
    values = pairs.scores["evidence"]
    for min_confidence in {rule.min_confidence for rule in rules}:
        # Rules with the same minimum confidence share one pass over the pairs.
        indices = [i for i, rule in enumerate(rules) if rule.min_confidence == min_confidence]
        accepts = [np.inf if (accept := rules[i].accept) is None else accept for i in indices]
        grid = np.unique(np.array(accepts, np.float64))
        scores = np.where(pairs.confidence >= min_confidence, values, -np.inf)
        false, true = (pairs.reach(scores, mated, grid, 0 if mated else draws) for mated in (False, True))
        for i, accept in zip(indices, accepts):
            column = int(np.searchsorted(grid, accept))
            false_matches = ~pairs.mated & (scores >= accept)
            tallies[i].add(false, column, float(true.rates[column]), _count_look_alikes(pairs, false_matches))


def _count_look_alikes(pairs: ScoredPairs, false_matches: NDArray[np.bool_]) -> int:
    """The smallest number of pairs of people that cause half of the false matches."""
    people = np.sort(np.stack([pairs.left[false_matches], pairs.right[false_matches]]), axis=0)
    counts = np.sort(np.unique(people, axis=1, return_counts=True)[1])[::-1]
    return int(np.searchsorted(np.cumsum(counts), counts.sum() / 2) + 1) if counts.size else 0


def across_sets(face_sets: Sequence[FaceSet], calibration: Calibration, draws: int, seed: int) -> list[Count]:
    """Measure the model's rules, and rules refitted on each set, on all other sets."""
    results: list[Count] = []
    no_people = np.empty(0, np.int64)
    with progress("rules of one set, measured on another", len(face_sets) ** 2) as advance:
        for source in (None, *face_sets):
            refitted = calibration
            if source is not None:
                refitted = _refit(source.only(source.people), calibration, draws, seed)
            for face_set in face_sets:
                if face_set is not source:
                    tallies = [_Tally() for _ in RATES]
                    count(face_set.without(no_people), refitted.decisions, tallies, draws)
                    name = "the model" if source is None else source.name
                    results += [
                        tally.count(name, face_set.name, 0, rule.alpha)
                        for tally, rule in zip(tallies, refitted.decisions)
                    ]
                    advance()
    return results


def _refit(people: Embeddings, calibration: Calibration, draws: int, seed: int) -> Calibration:
    return check_people(people, calibration, draws=draws, seed=seed, min_people=min(LOCAL)).calibration


def within_sets(
    face_sets: Sequence[FaceSet], calibration: Calibration, *, repetitions: int, draws: int, seed: int
) -> list[Count]:
    """Measure the model's rules, and rules refitted on some people of a set, on its other people."""
    cells = [
        (face_set, people)
        for face_set in face_sets
        for people in LOCAL
        if people + _MIN_REST <= face_set.people.size
    ]
    results: list[Count] = []
    with progress("refitted rules", len(cells) * repetitions) as advance:
        for face_set, people in cells:
            before, after = ([_Tally() for _ in RATES] for _ in range(2))
            for repetition in range(repetitions):
                rng = np.random.default_rng([seed, people, repetition])
                local = rng.permutation(face_set.people)[:people]
                refitted = _refit(face_set.only(local), calibration, draws, repetition)
                rest = face_set.without(local)
                count(rest, (*calibration.decisions, *refitted.decisions), (*before, *after), draws)
                advance()
            for name, tallies in (("the model", before), ("its own people", after)):
                results += [
                    tally.count(name, face_set.name, people, rule.alpha)
                    for tally, rule in zip(tallies, calibration.decisions)
                ]
    return results


@dataclass(frozen=True, eq=False)
class Transfer:
    """All results of the study.

    Attributes:
        face_sets: (name, people, images, non-mated pairs, mated pairs) of each set.
        across_sets: results of the model's rules, and of rules refitted on every other set.
        within_sets: results of the model's rules, and of rules refitted on some people of the same set.
    """

    face_sets: list[tuple[str, int, int, int, int]]
    across_sets: list[Count]
    within_sets: list[Count]


def measure_transfer(
    model: ConfidenceModel,
    test: ImageSource,
    others: Mapping[str, ImageSource],
    folder: str | Path,
    *,
    repetitions: int = 10,
    draws: int = 200,
    seed: int = 0,
) -> Transfer:
    """Measure the model's rules, and refitted rules, on people that were not used to fit them.

    The sets are the second half of the people of ``test``, by pose and under unseen damage, and the people of
    the other sets who have two or more images.

    Args:
        model: calibrated on the first half of the people of ``test``.
        test: aligned crops, several of each person.
        others: further sets by name.
        folder: of the caches; that of ``test`` is shared with `studies.shipped.ship`.
        repetitions: random samples of the people that rules are refitted on.
        draws: bootstrap samples of people, for each repetition.
        seed: of both.

    Raises:
        InputError: the model is not calibrated, or has no evidence rules for `RATES`.
    """
    if model.calibration is None:
        raise InputError("transfer: the model is not calibrated")
    calibration = select_rules(model.calibration)
    face_sets = _face_sets(model, test, others, Path(folder))
    sizes = [
        (
            face_set.name, face_set.people.size, len(face_set.embeddings), int((~face_set.pairs.mated).sum()),
            int(face_set.pairs.mated.sum()),
        )
        for face_set in face_sets
    ]  # fmt: skip
    return Transfer(
        sizes,
        across_sets(face_sets, calibration, draws, seed),
        within_sets(face_sets, calibration, repetitions=repetitions, draws=draws, seed=seed),
    )


def _face_sets(
    model: ConfidenceModel, test: ImageSource, others: Mapping[str, ImageSource], folder: Path
) -> list[FaceSet]:
    backbone, head, calibration = model.backbone, model.head, model.calibration
    assert calibration is not None
    test_cache = build_cache(backbone, head, test, list(GRADES.values()), folder / "test-cache")
    clean, damaged = _views(model, test_cache, *(list(GRADES).index(grade) for grade in ("none", "unseen")))
    pose = np.array([key.split("/")[-2] if key.count("/") > 1 else "as it is" for key in clean.keys])
    by_pose = {name: clean.select(np.flatnonzero(pose == name)) for name in np.unique(pose).tolist()}
    face_sets = []
    for name, images in (by_pose | {"unseen damage": damaged}).items():
        _, second = halves(np.asarray(images.labels))
        held_out = images.select(np.flatnonzero(second))
        face_sets.append(FaceSet.of(f"{test.name}, {name}", held_out, calibration))
    for name, source in others.items():
        cache = build_cache(backbone, head, sample_images(source), [View()], folder / f"{name}-cache")
        (images,) = _views(model, cache, 0)
        face_sets.append(FaceSet.of(name, images, calibration))
    return face_sets


def sample_images(source: ImageSource, seed: int = 0) -> ImageSource:
    """At most 4,000 images of people with two or more: one image of everyone, then a second one, ..."""
    label, count = np.unique(source.labels, return_counts=True)
    rows = np.flatnonzero(np.isin(source.labels, label[(count > 1) & (label >= 0)]))
    order = np.random.default_rng(seed).permutation(rows)
    return source.subset(np.sort(order[in_turns(source.labels[order])[:_MAX_IMAGES]]))


def _views(model: ConfidenceModel, cache: FeatureCache, *views: int) -> list[Embeddings]:
    """Embeddings of the labelled images, one per view."""
    log_kappa = cache.log_kappa(model.head)
    embeddings = (cache.embeddings(view, log_kappa, {"radius": model.radius}) for view in views)
    embeddings = (replace(view, mu=centred(model, view.mu)) for view in embeddings)
    return [view.select(np.flatnonzero(np.asarray(view.labels) >= 0)) for view in embeddings]


def transfer_tables(result: Transfer) -> list[Table]:
    """Sizes of the sets; rules of other sets; refitted rules."""
    face_sets = [[name, *(f"{number:,}" for number in numbers)] for name, *numbers in result.face_sets]
    header = ["set", "people", "images", "non-mated pairs", "mated pairs"]
    return [
        Table("The sets", header, face_sets),
        *(_across_sets(result, alpha) for alpha in SHOWN),
        *(_within_sets(result, alpha) for alpha in SHOWN),
    ]


def _across_sets(result: Transfer, alpha: float) -> Table:
    counts = {(c.fitted_on, c.measured_on): c for c in result.across_sets if c.alpha == alpha}
    names = list(dict.fromkeys(measured_on for _, measured_on in counts))
    rows = [
        [
            fitted_on,
            *(
                _false_matches(counts[fitted_on, name]) if (fitted_on, name) in counts else "-"
                for name in names
            ),
        ]
        for fitted_on in dict.fromkeys(fitted_on for fitted_on, _ in counts)
    ]
    note = (
        "False match rate, its 95 % interval over people, and the number of pairs of people that cause half "
        "of the false matches. A star marks a rate above the bound. The rules of a set are refitted on its "
        "people with at most 1,000 images."
    )
    return Table(
        f"FMR bound {alpha:g}: rules of one set, measured on another", ["fitted on", *names], rows, note
    )


def _false_matches(count: Count) -> str:
    star = "" if count.rate <= count.alpha else " *"
    return f"{count.rate:.1e} [{count.ends[0]:.1e}, {count.ends[1]:.1e}] by {count.look_alikes}{star}"


def _within_sets(result: Transfer, alpha: float) -> Table:
    rows = []
    cells = {(c.measured_on, c.people, c.fitted_on): c for c in result.within_sets if c.alpha == alpha}
    for name, people in dict.fromkeys((name, people) for name, people, _ in cells):
        row = [name, str(people)]
        for fitted_on in ("the model", "its own people"):
            c = cells[name, people, fitted_on]
            row += [
                f"{c.rate:.1e} [{c.ends[0]:.1e}, {c.ends[1]:.1e}]", f"{c.kept} of {c.repetitions}",
                f"{c.matches:.3f}",
            ]  # fmt: skip
        rows.append(row)
    note = (
        "Rules are refitted on about four images of each person and measured on the other people of the set. "
        "FMR: mean over the samples of people, with its 95 % interval over the people of the fit and of the "
        "measurement. Kept: samples in which the rate is within the bound."
    )
    columns = ["FMR", "kept", "TMR"]
    header = ["set", "people", *(f"{rule}: {column}" for rule in ("model", "refitted") for column in columns)]
    return Table(f"FMR bound {alpha:g}: rules refitted on some of the people", header, rows, note)


def present_transfer(result: Transfer, folder: str | Path, provenance: dict[str, Any]) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and ``report.json``."""
    first, *others = transfer_tables(result)
    return write_report(
        folder,
        title="Do the rules hold on other people?",
        sections=[Section("Rules of other sets, and refitted rules", tables=others)],
        results={name: [asdict(c) for c in getattr(result, name)] for name in ("across_sets", "within_sets")},
        summary=[first],
        provenance={"environment": environment(), **provenance},
    )
