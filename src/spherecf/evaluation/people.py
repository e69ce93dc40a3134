"""Whether decision rules hold for the people at hand, and the same rules made anew for them."""

from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import Calibration, DecisionRule, ErrorCount
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import SubjectRates
from spherecf.evaluation.tails import LEAST_EXCEEDANCES, TailFit, extrapolated_rule, fit_tail
from spherecf.scoring import cosine_matrix, mutual_likelihood_matrix

Array = NDArray[Any]

MIN_PEOPLE = 50
_IMAGES = 5000  # 12.5 million pairs
_ROWS = 256  # images compared with all others at once
_DELTA = 0.05  # chance that a renewed rule was made on lucky people
_STEP, _SPAN = 0.05, 60.0  # of the thresholds tried, around the one there is
_TAIL = 1e-3  # share of the pairs of two people that a tail is fitted on
_FEW = 100  # pairs of one person below which the threshold for a non-match stays as it is

Verdict = Literal["kept", "broken", "open"]


@dataclass(frozen=True)
class RuleCount:
    """What a rule does with these people.

    Attributes:
        rule: that was counted.
        false_matches: pairs of two people that it calls a match.
        interval: 95 % interval of their share, over people.
        matches: pairs of one person that it calls a match.
        false_non_matches: pairs of one person that it calls a non-match.
        verdict: "kept": the share is below the promised rate with 95 % confidence; "broken": the whole
            interval is above it; "open": these people cannot tell.
    """

    rule: DecisionRule
    false_matches: int
    interval: tuple[float, float]
    matches: int
    false_non_matches: int
    verdict: Verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return asdict(self) | {"rule": self.rule.to_dict(), "interval": list(self.interval)}


@dataclass(frozen=True)
class RuleOnPeople(RuleCount):
    """What a rule does with these people, and the rule made for them.

    Attributes:
        renewed: the rule for these people; one that decides nothing where a broken one cannot be renewed.
        how: how it was made: "counted", "extrapolated", or "kept as it was", with the reason.
    """

    renewed: DecisionRule
    how: str

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return super().to_dict() | {"renewed": self.renewed.to_dict()}


@dataclass(frozen=True)
class PeopleReport:
    """Result of `check_people`; `to_dict` is JSON-able.

    Attributes:
        counts: ``people``, ``images``, ``mated``, ``non_mated``, ``left_out`` (images not compared).
        rules: of two images each, in the order of the calibration.
        calibration: the same, with the renewed rules.
    """

    counts: dict[str, int]
    rules: tuple[RuleOnPeople, ...]
    calibration: Calibration

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return {"counts": self.counts, "rules": [one.to_dict() for one in self.rules]}


def check_people(
    embeddings: Embeddings,
    calibration: Calibration,
    *,
    one_each: bool = False,
    name: str = "",
    draws: int = 1000,
    seed: int = 0,
    min_people: int = MIN_PEOPLE,
) -> PeopleReport:
    """Count what the rules for two images do with known people, and make them anew.

    All images of different people are compared, and all of one person. A renewed rule has the score of the
    old one. Its ``accept`` is the smallest threshold for which it and all larger ones keep the share of false
    matches below the promised rate (`SubjectRates.upper`, so over people); where that share is too small to
    be counted, by the tail of these pairs (`extrapolated_rule`). ``reject`` is made alike from the pairs of
    one person, if there are enough.

    Args:
        embeddings: with the names of people; unnamed images are not used.
        calibration: of the model that made them.
        one_each: every image shows somebody else, whatever the names.
        name: of these people, for the record.
        draws: of people, for the intervals.
        seed: of the draws, and of the images drawn where there are more than can be compared.
        min_people: that it takes. Rules made on 20 were found not to hold (docs/decisions.md).

    Raises:
        InputError: fewer people than it takes, no names, no rule to check, or embeddings of another radius.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> mu = rng.normal(size=(120, 64))
        >>> mu /= np.linalg.norm(mu, axis=1, keepdims=True)
        >>> e = Embeddings(mu, np.full(120, 5.0), [str(i) for i in range(120)])
        >>> rule = DecisionRule("cosine", None, "kappa", 0.2, 0.0, 0.0, "fmr", 0.01, 0.05)
        >>> found = check_people(e, Calibration("m", "d", decisions=(rule,)), one_each=True, draws=100)
        >>> found.rules[0].verdict, bool(found.rules[0].renewed.accept > 0.25)
        ('broken', True)
    """
    person, rows, left_out = _chosen(embeddings, one_each, seed, min_people)
    own = embeddings.select(rows)
    found = [rule for rule in calibration.decisions if "template" not in rule.score and rule.error == "fmr"]
    if not found:
        raise InputError("check_people: the calibration has no rule for the false match rate of two images")
    radii = {rule.radius for rule in found} - {None, own.radius}
    if radii:
        raise InputError(
            f"check_people: the rules are for radius {radii.pop():g}, the embeddings have {own.radius:g}"
        )
    pairs = PeoplePairs.of(own, person, {rule.score for rule in found}, calibration)
    counts = {
        "people": int(np.unique(person).size), "images": rows.size, **pairs.counts, "left_out": left_out,
    }  # fmt: skip
    of = f"{counts['people']} people" + (f" of {name}" if name else "")
    counter = RuleCounter(pairs, found, draws, seed)
    checked: list[RuleOnPeople] = []
    for rule in found:
        before = [one for one in checked if one.rule.score == rule.score and one.rule.alpha > rule.alpha]
        checked.append(_check(rule, counter, before, of))
    renewed = {id(one.rule): one.renewed for one in checked}
    record = {**calibration.record, "people": {"name": name, **counts, "images_sha256": own.fingerprint()}}
    decisions = tuple(renewed.get(id(rule), rule) for rule in calibration.decisions)
    return PeopleReport(counts, tuple(checked), replace(calibration, decisions=decisions, record=record))


def _chosen(embeddings: Embeddings, one_each: bool, seed: int, least: int) -> tuple[Array, Array, int]:
    """(person, row) of the images to compare, and how many were left out."""
    if one_each:
        person = np.arange(len(embeddings))
    elif embeddings.labels is None:
        raise InputError(
            "check_people: the embeddings name no people; embed folders of people, or say that each image "
            "shows somebody else"
        )
    else:
        person = np.asarray(embeddings.labels)
    known = np.random.default_rng(seed).permutation(np.flatnonzero(person >= 0))
    people = np.unique(person[known]).size
    if people < least:
        raise InputError(f"check_people: expected at least {least} people, got {people}")
    rows = np.sort(known[in_turns(person[known])[:_IMAGES]])
    return person[rows], rows, int(known.size - rows.size)


def in_turns(person: Array) -> NDArray[np.int64]:
    """(n,) rows: the first of everybody, then the second, and so on: many people tell more than many images.

    Example:
        >>> in_turns(np.array([7, 7, 7, 3, 3])).tolist()
        [3, 0, 4, 1, 2]
    """
    order = np.argsort(person, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(person[order]) > 0))
    turn = np.arange(person.size) - np.repeat(starts, np.diff(np.append(starts, person.size)))
    return np.asarray(order[np.argsort(turn, kind="stable")])


@dataclass(frozen=True, eq=False)
class PeoplePairs:
    """All pairs of the images."""

    values: dict[str, Array]
    """(n,) what the rules of each score read."""
    confidence: Array
    """(n,) smaller kappa."""
    left: Array
    """(n,) person."""
    right: Array
    mated: NDArray[np.bool_]

    @classmethod
    def of(cls, own: Embeddings, person: Array, scores: Set[str], calibration: Calibration) -> "PeoplePairs":
        blocks = list(_blocks(own, scores, calibration))
        confidence, left, right = (np.concatenate(part) for part in zip(*(columns for _, columns in blocks)))
        values = {score: np.concatenate([found[score] for found, _ in blocks]) for score in scores}
        left, right = (person[rows].astype(np.int32) for rows in (left, right))
        return cls(values, confidence, left, right, left == right)

    @property
    def counts(self) -> dict[str, int]:
        mated = int(self.mated.sum())
        return {"mated": mated, "non_mated": self.left.size - mated}


def _blocks(
    own: Embeddings, scores: Set[str], calibration: Calibration
) -> Iterator[tuple[dict[str, Array], tuple[Array, Array, Array]]]:
    """(values by score, (smaller kappa, left row, right row)) of every image with every later one."""
    mu, kappa = torch.from_numpy(np.asarray(own.mu)), torch.from_numpy(np.asarray(own.kappa))
    for start in range(0, len(own), _ROWS):
        rows, later = slice(start, min(start + _ROWS, len(own))), slice(start, None)
        at = np.nonzero(np.arange(len(own) - start) > np.arange(rows.stop - start)[:, None])
        cosines = cosine_matrix(mu[rows], mu[later]).numpy()[at]
        likelihoods = cosines
        if scores - {"cosine"}:
            matrix = mutual_likelihood_matrix(mu[rows], kappa[rows], mu[later], kappa[later], own.radius)
            likelihoods = matrix.numpy()[at]
        left, right = at[0] + start, at[1] + start
        sides = np.asarray(own.kappa)[left], np.asarray(own.kappa)[right]
        values = {
            score: calibration.evidence(score, likelihoods, cosines, sides).astype(np.float32)
            for score in scores
        }
        yield values, (np.minimum(*sides).astype(np.float32), left, right)


class RuleCounter:
    """What rules do with pairs. What rules of one score and floor share is counted, and drawn, once."""

    def __init__(self, pairs: PeoplePairs, rules: Sequence[DecisionRule], draws: int, seed: int) -> None:
        self.pairs, self.draws, self.seed, self._rules = pairs, draws, seed, rules
        self.accepted, self.tried = cache(self._accepted), cache(self._tried)
        self.grid, self.tail = cache(self._grid), cache(self._tail)

    def _reach(self, score: str, floor: float, thresholds: Array, mated: bool) -> SubjectRates:
        """How many pairs of one kind reach the thresholds; those below the floor reach none."""
        own = self.pairs.mated == mated
        values = np.where(self.pairs.confidence[own] >= floor, self.pairs.values[score][own], -np.inf)
        left, right = self.pairs.left[own], self.pairs.right[own]
        return SubjectRates.of(values, left, right, thresholds, draws=self.draws, seed=self.seed)

    def _accepted(self, score: str, floor: float) -> SubjectRates:
        """Non-mated pairs at the thresholds of all rules of this score and floor."""
        own = [rule for rule in self._rules if (rule.score, rule.min_confidence) == (score, floor)]
        return self._reach(score, floor, np.unique([_accept(rule) for rule in own]), mated=False)

    def _grid(self, score: str) -> Array:
        """Thresholds to try: steps of a nat, or of a cosine, as far as there are scores."""
        values = self.pairs.values[score]
        step = _STEP if score != "cosine" else _STEP / 50
        low, high = float(values[np.isfinite(values)].min()), float(values[np.isfinite(values)].max())
        lowest = min(float(rule.reject or 0.0) for rule in self._rules if rule.score == score)
        low, high = max(low, lowest - _SPAN), high + 2 * step
        return np.asarray(low + step * np.arange(int((high - low) / step) + 1))

    def _tried(self, score: str, floor: float, mated: bool) -> SubjectRates:
        """Pairs of one kind at the thresholds of the grid."""
        return self._reach(score, floor, self.grid(score), mated)

    def _tail(self, score: str) -> TailFit:
        """Of the non-mated pairs."""
        own = ~self.pairs.mated
        share = max(_TAIL, 1.01 * LEAST_EXCEEDANCES / int(own.sum()))
        return fit_tail(
            self.pairs.values[score][own], self.pairs.left[own], self.pairs.right[own], share=share,
            draws=self.draws, seed=self.seed,
        )  # fmt: skip


def _accept(rule: DecisionRule) -> float:
    return np.inf if rule.accept is None else rule.accept


def count_rule(rule: DecisionRule, counter: RuleCounter) -> RuleCount:
    """What a rule, one of the counter's, does with the counter's pairs."""
    floor, pairs = rule.min_confidence, counter.pairs
    accept, reject = _accept(rule), -np.inf if rule.reject is None else rule.reject
    false = counter.accepted(rule.score, floor)
    at = int(np.searchsorted(false.thresholds, accept))
    interval = false.interval(at) if counter.draws else (0.0, 1.0)
    kept, broken = float(false.upper(_DELTA)[at]) <= rule.alpha, interval[0] > rule.alpha
    sure, values = pairs.mated & (pairs.confidence >= floor), pairs.values[rule.score]
    matches, missed = (int((sure & part).sum()) for part in (values >= accept, values < reject))
    verdict: Verdict = "kept" if kept else "broken" if broken else "open"
    return RuleCount(rule, int(false.reached[at]), interval, matches, missed, verdict)


def _check(rule: DecisionRule, counter: RuleCounter, before: list[RuleOnPeople], of: str) -> RuleOnPeople:
    found = count_rule(rule, counter)
    counted = [one.renewed for one in before if one.how == "counted"]
    renewed, how = _renew(rule, counter, counted, of)
    if renewed is None:
        broken = found.verdict == "broken"
        renewed = replace(rule, accept=None, reject=None, extrapolated=None) if broken else rule
        # A smaller rate never has the lower threshold.
        least = max((one.renewed.accept or -np.inf for one in before), default=-np.inf)
        if renewed.accept is not None and renewed.accept < least:
            renewed = replace(renewed, accept=least)
    return RuleOnPeople(**vars(found), renewed=renewed, how=how)


def _renew(
    rule: DecisionRule, counter: RuleCounter, counted: list[DecisionRule], of: str
) -> tuple[DecisionRule | None, str]:
    """The rule for these people, or None; and how it was made."""
    if rule.accept is None or rule.reject is None:
        return None, "kept as it was: it decides nothing"
    grid, false = counter.grid(rule.score), counter.tried(rule.score, rule.min_confidence, False)
    upper = false.upper(_DELTA)
    at = grid.size - int(np.argmin(np.append((upper <= rule.alpha)[::-1], False)))
    if at < grid.size:
        accept = float(grid[at])
        seen = ErrorCount(
            "false matches of non-mated pairs", int(false.reached[at]), false.pairs, float(upper[at])
        )
        made = replace(
            rule, accept=accept, reject=min(accept, _rejected(rule, counter)), delta=_DELTA, tested_on=of,
            extrapolated=None, counts=(seen, *rule.counts[1:]),
        )  # fmt: skip
        return made, "counted"
    if not counted or not counter.draws:
        return None, f"kept as it was: {false.pairs:,} pairs of two people cannot tell {rule.alpha:g}"
    try:
        beyond = extrapolated_rule(counted[-1], [counter.tail(rule.score)], rule.alpha)
    except InputError as error:
        return None, f"kept as it was: {error}"
    return replace(beyond, tested_on=f"the tail of {of}"), "extrapolated"


def _rejected(rule: DecisionRule, counter: RuleCounter) -> float:
    """The largest threshold that few enough pairs of one person miss; the rule's own if there are few."""
    own = float(rule.reject or 0.0)
    if rule.fnmr is None or counter.pairs.counts["mated"] < _FEW / rule.fnmr:
        return own
    misses = counter.tried(rule.score, -np.inf, True).upper(_DELTA, below=True)
    at = int(np.argmin(np.append(misses <= rule.fnmr, False))) - 1
    return own if at < 0 else float(counter.grid(rule.score)[at])
