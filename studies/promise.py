"""Whether rules made on some people hold for those of another set: as they are, and made anew on a few."""

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
from studies.graded import GRADES, Condition, GradedFaces, ScoredPairs
from studies.shipped import halves, judge

Array = NDArray[Any]

RATES = (1e-2, 1e-3, 1e-4)
"""Promises that are looked at; smaller ones take more pairs than these sets have."""
SHOWN = RATES[1:]
LOCAL = (20, 50, 100, 200)
"""People that rules are made anew on."""
_IMAGES = 4000  # of a set that are looked at
_COMPARED = 2000  # of a crowd: two million pairs
_EACH, _MOST = 4, 1000  # pictures of a person, and of all, that rules are made anew on
_REST = 20  # people at least who are left to count on


@dataclass(frozen=True, eq=False)
class Crowd:
    """Some people, one picture as good as the other, and all pairs of their pictures."""

    name: str
    embeddings: Embeddings
    """With names."""
    pairs: ScoredPairs
    """With their evidence."""

    @classmethod
    def of(cls, name: str, embeddings: Embeddings, calibration: Calibration) -> "Crowd":
        """All pairs of these pictures, of at most 2,000, with their evidence."""
        some = embeddings.select(np.sort(in_turns(np.asarray(embeddings.labels))[:_COMPARED]))
        shown = GradedFaces(
            ["none"], some.mu[:, None], some.kappa[:, None], np.asarray(some.labels), some.keys, some.radius
        )
        known = calibration.likelihood[PAIR_EVIDENCE]
        assert isinstance(known, ConditionalCalibrator)
        return cls(name, some, judge(shown.pairs(Condition("none", "none")), known))

    @property
    def people(self) -> Array:
        """(people,) labels."""
        return np.unique(np.asarray(self.embeddings.labels))

    def only(self, people: Array) -> Embeddings:
        """Some pictures of some of them: about four of each, and at most 1,000."""
        own = self.embeddings.select(np.flatnonzero(np.isin(np.asarray(self.embeddings.labels), people)))
        rows = in_turns(np.asarray(own.labels))[: min(_EACH * people.size, _MOST)]
        return own.select(np.sort(rows))

    def without(self, people: Array) -> ScoredPairs:
        """The pairs of the others."""
        out = np.isin(self.pairs.left, people) | np.isin(self.pairs.right, people)
        return self.pairs.select(np.flatnonzero(~out)) if people.size else self.pairs


@dataclass(frozen=True)
class Count:
    """What a rule says of pairs that had no part in making it.

    Attributes:
        made_on: which people, in words.
        counted_on: name of the crowd.
        people: that the rule was made anew on; 0 for a rule of the model, or of another crowd.
        alpha: promised rate of wrong matches.
        rate: of wrong matches, mean over the repetitions.
        ends: 95 % interval over people, those who made the rule and those who are counted.
        matches: share of right ones.
        kept: repetitions with no more wrong matches than promised.
        repetitions: how many.
        look_alikes: pairs of two people who make half of the wrong matches.
    """

    made_on: str
    counted_on: str
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
    """Repetitions of one count."""

    rates: list[float] = field(default_factory=list)
    drawn: list[Array] = field(default_factory=list)
    matches: list[float] = field(default_factory=list)
    look_alikes: list[int] = field(default_factory=list)

    def add(self, rules: SubjectRates, at: int, matches: float, look_alikes: int) -> None:
        self.rates.append(float(rules.rates[at]))
        self.drawn.append(rules.drawn[:, at])
        self.matches.append(matches)
        self.look_alikes.append(look_alikes)

    def count(self, made_on: str, counted_on: str, people: int, alpha: float) -> Count:
        low, high = np.quantile(np.concatenate(self.drawn), [0.025, 0.975])
        return Count(
            made_on, counted_on, people, alpha, float(np.mean(self.rates)), (float(low), float(high)),
            float(np.mean(self.matches)), sum(rate <= alpha for rate in self.rates), len(self.rates),
            round(np.mean(self.look_alikes)),
        )  # fmt: skip


def looked_at(calibration: Calibration) -> Calibration:
    """With the rules of `RATES` for two pictures, and no others."""
    found = [rule for rule in calibration.decisions if (rule.score, rule.error) == (PAIR_EVIDENCE, "fmr")]
    some = tuple(rule for rule in found if rule.alpha in RATES)
    if {rule.alpha for rule in some} != set(RATES):
        raise InputError(f"promise: the model has no rules of its evidence for {RATES}; calibrate it again")
    return replace(calibration, decisions=some)


def count(pairs: ScoredPairs, rules: Sequence[DecisionRule], tallies: Sequence[_Tally], draws: int) -> None:
    """Add what each rule does with these pairs to its tally."""
    floor = {rule.min_confidence for rule in rules}
    values = pairs.scores["evidence"]
    for least in floor:
        own = [place for place, rule in enumerate(rules) if rule.min_confidence == least]
        accepts = [np.inf if (accept := rules[place].accept) is None else accept for place in own]
        grid = np.unique(np.array(accepts, np.float64))
        sure = np.where(pairs.confidence >= least, values, -np.inf)
        found, right = (pairs.reach(sure, mated, grid, 0 if mated else draws) for mated in (False, True))
        for place, accept in zip(own, accepts):
            at = int(np.searchsorted(grid, accept))
            wrong = ~pairs.mated & (sure >= accept)
            tallies[place].add(found, at, float(right.rates[at]), _half(pairs, wrong))


def _half(pairs: ScoredPairs, wrong: NDArray[np.bool_]) -> int:
    """How many pairs of two people make half of the wrong matches."""
    both = np.sort(np.stack([pairs.left[wrong], pairs.right[wrong]]), axis=0)
    each = np.sort(np.unique(both, axis=1, return_counts=True)[1])[::-1]
    return int(np.searchsorted(np.cumsum(each), each.sum() / 2) + 1) if each.size else 0


def elsewhere(crowds: Sequence[Crowd], calibration: Calibration, draws: int, seed: int) -> list[Count]:
    """The rules of the model, and those made anew on everybody of each crowd, counted on all other crowds."""
    found: list[Count] = []
    nobody = np.empty(0, np.int64)
    with progress("rules of one set, counted on another", len(crowds) ** 2) as advance:
        for made in (None, *crowds):
            known = calibration
            if made is not None:
                known = _anew(made.only(made.people), calibration, draws, seed)
            for crowd in crowds:
                if crowd is not made:
                    tallies = [_Tally() for _ in RATES]
                    count(crowd.without(nobody), known.decisions, tallies, draws)
                    name = "the model" if made is None else made.name
                    found += [
                        tally.count(name, crowd.name, 0, rule.alpha)
                        for tally, rule in zip(tallies, known.decisions)
                    ]
                    advance()
    return found


def _anew(people: Embeddings, calibration: Calibration, draws: int, seed: int) -> Calibration:
    return check_people(people, calibration, draws=draws, seed=seed, min_people=min(LOCAL)).calibration


def at_home(
    crowds: Sequence[Crowd], calibration: Calibration, *, repetitions: int, draws: int, seed: int
) -> list[Count]:
    """Rules made anew on some people of a crowd, counted on its other people, beside those of the model."""
    cells = [(crowd, people) for crowd in crowds for people in LOCAL if people + _REST <= crowd.people.size]
    found: list[Count] = []
    with progress("rules made anew", len(cells) * repetitions) as advance:
        for crowd, people in cells:
            before, after = ([_Tally() for _ in RATES] for _ in range(2))
            for repetition in range(repetitions):
                rng = np.random.default_rng([seed, people, repetition])
                local = rng.permutation(crowd.people)[:people]
                made = _anew(crowd.only(local), calibration, draws, repetition)
                rest = crowd.without(local)
                count(rest, (*calibration.decisions, *made.decisions), (*before, *after), draws)
                advance()
            for name, tallies in (("the model", before), ("its own people", after)):
                found += [
                    tally.count(name, crowd.name, people, rule.alpha)
                    for tally, rule in zip(tallies, calibration.decisions)
                ]
    return found


@dataclass(frozen=True, eq=False)
class Promise:
    """Everything that was counted.

    Attributes:
        crowds: (name, people, pictures, pairs of two people, pairs of one).
        elsewhere: rules of the model, and of every other crowd.
        at_home: rules of the model, and made anew on some people of the crowd itself.
    """

    crowds: list[tuple[str, int, int, int, int]]
    elsewhere: list[Count]
    at_home: list[Count]


def promise(
    model: ConfidenceModel,
    test: ImageSource,
    others: Mapping[str, ImageSource],
    folder: str | Path,
    *,
    repetitions: int = 10,
    draws: int = 200,
    seed: int = 0,
) -> Promise:
    """Count the model's rules, and rules made anew, on people who had no part in making them.

    The crowds: the people of TEST who checked the shipped model, by pose and under unseen damage; and the
    people of other sets with two or more pictures.

    Args:
        model: calibrated on the first half of the people of ``test``.
        test: aligned crops, several of each person.
        others: further sets by name.
        folder: of the caches; that of ``test`` is the one of `studies.shipped.ship`.
        repetitions: draws of the people that rules are made anew on.
        draws: of people, for each of them.
        seed: of both.

    Raises:
        InputError: the model has no rules of its evidence.
    """
    if model.calibration is None:
        raise InputError("promise: the model is not calibrated")
    calibration = looked_at(model.calibration)
    crowds = _crowds(model, test, others, Path(folder))
    sizes = [
        (
            one.name, one.people.size, len(one.embeddings), int((~one.pairs.mated).sum()),
            int(one.pairs.mated.sum()),
        )
        for one in crowds
    ]  # fmt: skip
    return Promise(
        sizes,
        elsewhere(crowds, calibration, draws, seed),
        at_home(crowds, calibration, repetitions=repetitions, draws=draws, seed=seed),
    )


def _crowds(
    model: ConfidenceModel, test: ImageSource, others: Mapping[str, ImageSource], folder: Path
) -> list[Crowd]:
    backbone, head, calibration = model.backbone, model.head, model.calibration
    assert calibration is not None
    shown = build_cache(backbone, head, test, list(GRADES.values()), folder / "test-cache")
    clean, damaged = _views(model, shown, *(list(GRADES).index(grade) for grade in ("none", "unseen")))
    pose = np.array([key.split("/")[-2] if key.count("/") > 1 else "as it is" for key in clean.keys])
    checked = {one: clean.select(np.flatnonzero(pose == one)) for one in np.unique(pose).tolist()}
    found = []
    for name, pictures in (checked | {"unseen damage": damaged}).items():
        _, second = halves(np.asarray(pictures.labels))
        own = pictures.select(np.flatnonzero(second))
        found.append(Crowd.of(f"{test.name}, {name}", own, calibration))
    for name, source in others.items():
        cache = build_cache(backbone, head, some_of(source), [View()], folder / f"{name}-cache")
        (own,) = _views(model, cache, 0)
        found.append(Crowd.of(name, own, calibration))
    return found


def some_of(source: ImageSource, seed: int = 0) -> ImageSource:
    """At most 4,000 pictures of people who have two or more: the first of everybody, then the second, ..."""
    label, count = np.unique(source.labels, return_counts=True)
    known = np.flatnonzero(np.isin(source.labels, label[(count > 1) & (label >= 0)]))
    order = np.random.default_rng(seed).permutation(known)
    return source.subset(np.sort(order[in_turns(source.labels[order])[:_IMAGES]]))


def _views(model: ConfidenceModel, cache: FeatureCache, *views: int) -> list[Embeddings]:
    """The named pictures as some views show them."""
    log_kappa = cache.log_kappa(model.head)
    found = (cache.embeddings(view, log_kappa, {"radius": model.radius}) for view in views)
    return [one.select(np.flatnonzero(np.asarray(one.labels) >= 0)) for one in found]


def promise_tables(result: Promise) -> list[Table]:
    """The crowds; rules of other sets; rules made anew."""
    crowds = [[name, *(f"{number:,}" for number in numbers)] for name, *numbers in result.crowds]
    header = ["crowd", "people", "pictures", "pairs of two people", "pairs of one"]
    return [
        Table("Who is counted", header, crowds),
        *(_elsewhere(result, alpha) for alpha in SHOWN),
        *(_at_home(result, alpha) for alpha in SHOWN),
    ]


def _elsewhere(result: Promise, alpha: float) -> Table:
    own = {(one.made_on, one.counted_on): one for one in result.elsewhere if one.alpha == alpha}
    names = list(dict.fromkeys(counted for _, counted in own))
    rows = [
        [made, *(_wrong(own[made, name]) if (made, name) in own else "-" for name in names)]
        for made in dict.fromkeys(made for made, _ in own)
    ]
    note = (
        "Share of wrong matches, 95 % interval over people, and how many pairs of two people make half of "
        "them. A star: more than promised. Rules of a crowd: made anew on its people, 1,000 pictures at most."
    )
    return Table(f"Promised {alpha:g}: rules of one set, counted on another", ["made on", *names], rows, note)


def _wrong(one: Count) -> str:
    star = "" if one.rate <= one.alpha else " *"
    return f"{one.rate:.1e} [{one.ends[0]:.1e}, {one.ends[1]:.1e}] by {one.look_alikes}{star}"


def _at_home(result: Promise, alpha: float) -> Table:
    rows = []
    cells = {(one.counted_on, one.people, one.made_on): one for one in result.at_home if one.alpha == alpha}
    for name, people in dict.fromkeys((name, people) for name, people, _ in cells):
        row = [name, str(people)]
        for made in ("the model", "its own people"):
            one = cells[name, people, made]
            row += [
                f"{one.rate:.1e} [{one.ends[0]:.1e}, {one.ends[1]:.1e}]", f"{one.kept} of {one.repetitions}",
                f"{one.matches:.3f}",
            ]  # fmt: skip
        rows.append(row)
    note = (
        "Made on about four pictures of each, counted on the other people of the crowd. Wrong matches: mean "
        "over the draws of people, and 95 % interval over those who made the rule and those who are counted. "
        "Kept: draws in which no more were counted than promised. Right: share of the pairs of one person."
    )
    each = ["wrong matches", "kept", "right"]
    header = [
        "crowd",
        "people",
        *(f"the model's rule: {one}" for one in each),
        *(f"made anew: {one}" for one in each),
    ]
    return Table(f"Promised {alpha:g}: rules made anew on some of the people", header, rows, note)


def present_promise(result: Promise, folder: str | Path, provenance: dict[str, Any]) -> ReportFiles:
    """Write ``report.html``, ``report.md`` and ``report.json``."""
    first, *others = promise_tables(result)
    return write_report(
        folder,
        title="Do the rules hold on other people?",
        sections=[Section("Rules of other sets, and rules made anew", tables=others)],
        results={name: [asdict(one) for one in getattr(result, name)] for name in ("elsewhere", "at_home")},
        summary=[first],
        provenance={"environment": environment(), **provenance},
    )
