"""Check decision rules on a set of people, and renew the rules for them."""

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
from spherecf.evaluation.bootstrap import SubjectRates, check_draws
from spherecf.evaluation.decisions import count_leading_true
from spherecf.evaluation.tails import MIN_EXCEEDANCES, TailFit, extrapolated_rule, fit_tail
from spherecf.scoring import cosine_matrix, mutual_likelihood_matrix

Array = NDArray[Any]

MIN_PEOPLE = 50
_IMAGES = 5000  # maximum number of images, 12.5 million pairs
_ROWS = 256  # images compared with all others at once
_DELTA = 0.05  # probability that the bound of a renewed rule fails
_STEP, _SPAN = 0.05, 60.0  # of the thresholds to try: step, and how far they go below reject
_TAIL = 1e-3  # share of the non-mated pairs to which a tail is fitted
_FEW = 100  # expected false non-matches needed to renew the threshold for a non-match

Verdict = Literal["kept", "broken", "open"]


@dataclass(frozen=True)
class RuleCount:
    """Decisions of a rule on a set of people.

    Attributes:
        rule: the decision rule.
        false_matches: number of non-mated pairs that the rule calls a match.
        interval: 95 % bootstrap interval, over people, of the share of false matches.
        matches: number of mated pairs that the rule calls a match.
        false_non_matches: number of mated pairs that the rule calls a non-match.
        verdict: "kept" if the share of false matches is below the rule's bound with 95 % confidence, "broken"
            if the whole interval is above the bound, "open" if neither can be shown with these people.
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
    """Decisions of a rule on a set of people, and the rule renewed for them.

    Attributes:
        renewed: the renewed rule; if a broken rule cannot be renewed, a rule that leaves all pairs undecided.
        how: how the rule was renewed: "counted", "extrapolated", or "unchanged" with the reason.
    """

    renewed: DecisionRule
    how: str

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        return super().to_dict() | {"renewed": self.renewed.to_dict()}


@dataclass(frozen=True)
class PeopleReport:
    """Result of `check_people`; `to_dict` is JSON-serialisable.

    Attributes:
        counts: ``people``, ``images``, ``mated``, ``non_mated``, ``left_out`` (images not compared).
        rules: results of each rule for two images, in the order of the calibration.
        calibration: the given calibration with the renewed rules.
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
    """Check the decision rules for two images on known people, and renew the rules for them.

    All pairs of images are compared. A renewed rule has the score of the old one. Its ``accept`` is the
    smallest threshold such that, for it and all larger ones, the share of false matches is below the rule's
    bound (with `SubjectRates.upper`, so over people). If that share is too small to be counted, the threshold
    is extrapolated from the tail of the non-mated scores (`extrapolated_rule`). ``reject`` is set in the same
    way on the mated pairs, if there are enough.

    Args:
        embeddings: embeddings with the names of people; unnamed images are not used.
        calibration: calibration of the model that made the embeddings.
        one_each: every image shows a different person, regardless of the names.
        name: name of this set of people, for the record.
        draws: bootstrap draws of people, for the intervals.
        seed: seed of the draws, and of the choice of images if there are too many to compare.
        min_people: minimum number of people. Rules made on 20 people were found not to hold
            (docs/decisions.md).

    Raises:
        InputError: there are too few people, no names or no rule to check, or the radius of the embeddings
            differs from that of the rules; or ``draws`` or ``seed`` is negative.

    Example:
        >>> from spherecf.calibration import Calibration, DecisionRule
        >>> from spherecf.embeddings import Embeddings
        >>> rng = np.random.default_rng(0)
        >>> mu = rng.normal(size=(120, 64))
        >>> mu /= np.linalg.norm(mu, axis=1, keepdims=True)
        >>> e = Embeddings(mu, np.full(120, 5.0), [str(i) for i in range(120)])
        >>> rule = DecisionRule("cosine", None, "kappa", 0.2, 0.0, 0.0, "fmr", 0.01, 0.05)
        >>> report = check_people(e, Calibration("m", "d", decisions=(rule,)), one_each=True, draws=100)
        >>> report.rules[0].verdict, bool(report.rules[0].renewed.accept > 0.25)
        ('broken', True)
    """
    check_draws(draws, seed)
    person, rows, left_out = _choose_images(embeddings, one_each, seed, min_people)
    images = embeddings.select(rows)
    rules = [rule for rule in calibration.decisions if "template" not in rule.score and rule.error == "fmr"]
    check_rules("check_people", rules, images.radius, "the embeddings have")
    pairs = PeoplePairs.of(images, person, {rule.score for rule in rules}, calibration)
    counts = {
        "people": int(np.unique(person).size), "images": rows.size, **pairs.counts, "left_out": left_out,
    }  # fmt: skip
    tested_on = f"{counts['people']} people" + (f" of {name}" if name else "")
    counter = RuleCounter(pairs, rules, draws, seed)
    results: list[RuleOnPeople] = []
    for rule in rules:
        larger = [r for r in results if r.rule.score == rule.score and r.rule.alpha > rule.alpha]
        results.append(_check_rule(rule, counter, larger, tested_on))
    renewed = {id(result.rule): result.renewed for result in results}
    people_record = {"name": name, **counts, "images_sha256": images.fingerprint()}
    record = {**calibration.record, "people": people_record}
    decisions = tuple(renewed.get(id(rule), rule) for rule in calibration.decisions)
    return PeopleReport(counts, tuple(results), replace(calibration, decisions=decisions, record=record))


def check_rules(caller: str, rules: Sequence[DecisionRule], radius: float, holder: str) -> None:
    """Refuse no rules, and rules for another radius; ``caller`` and ``holder`` begin the messages' parts."""
    if not rules:
        raise InputError(f"{caller}: the calibration has no rule for the false match rate of two images")
    other_radii = {rule.radius for rule in rules} - {None, radius}
    if other_radii:
        raise InputError(f"{caller}: the rules are for radius {other_radii.pop():g}, {holder} {radius:g}")


def _choose_images(
    embeddings: Embeddings, one_each: bool, seed: int, min_people: int
) -> tuple[Array, Array, int]:
    """(person, row) of the images to compare, and the number of images left out."""
    if one_each:
        person = np.arange(len(embeddings))
    elif embeddings.labels is None:
        raise InputError(
            "check_people: the embeddings have no names of people; embed folders of people, or state that "
            "every image shows a different person (one_each)"
        )
    else:
        person = np.asarray(embeddings.labels)
    named = np.random.default_rng(seed).permutation(np.flatnonzero(person >= 0))
    n_people = np.unique(person[named]).size
    if n_people < min_people:
        raise InputError(f"check_people: expected at least {min_people} people, got {n_people}")
    rows = np.sort(named[in_turns(person[named])[:_IMAGES]])
    return person[rows], rows, int(named.size - rows.size)


def in_turns(person: Array) -> NDArray[np.int64]:
    """(n,) rows in round-robin order: the first image of every person, then the second, and so on.

    The first k rows then have as many people as possible, which matter more than images.

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
    """All pairs of a set of images."""

    values: dict[str, Array]
    """Name of a score -> (n,) values that rules of this score read."""
    confidence: Array
    """(n,) the smaller kappa of the two images."""
    left: Array
    """(n,) person of the left image."""
    right: Array
    """(n,) person of the right image."""
    mated: NDArray[np.bool_]

    @classmethod
    def of(
        cls, images: Embeddings, person: Array, scores: Set[str], calibration: Calibration
    ) -> "PeoplePairs":
        blocks = list(_blocks(images, scores, calibration))
        confidence, left, right = (np.concatenate(part) for part in zip(*(columns for _, columns in blocks)))
        values = {score: np.concatenate([block[score] for block, _ in blocks]) for score in scores}
        left, right = (person[rows].astype(np.int32) for rows in (left, right))
        return cls(values, confidence, left, right, left == right)

    @property
    def counts(self) -> dict[str, int]:
        mated = int(self.mated.sum())
        return {"mated": mated, "non_mated": self.left.size - mated}


def _blocks(
    images: Embeddings, scores: Set[str], calibration: Calibration
) -> Iterator[tuple[dict[str, Array], tuple[Array, Array, Array]]]:
    """(values by score, (smaller kappa, left row, right row)) of each image with all later ones."""
    mu, kappa = torch.from_numpy(np.asarray(images.mu)), torch.from_numpy(np.asarray(images.kappa))
    n = len(images)
    for start in range(0, n, _ROWS):
        rows, later = slice(start, min(start + _ROWS, n)), slice(start, None)
        cells = np.nonzero(np.arange(n - start) > np.arange(rows.stop - start)[:, None])
        cosines = cosine_matrix(mu[rows], mu[later]).numpy()[cells]
        likelihoods = cosines
        if scores - {"cosine"}:
            matrix = mutual_likelihood_matrix(mu[rows], kappa[rows], mu[later], kappa[later], images.radius)
            likelihoods = matrix.numpy()[cells]
        left, right = cells[0] + start, cells[1] + start
        kappas = np.asarray(images.kappa)[left], np.asarray(images.kappa)[right]
        values = {
            score: calibration.evidence(score, likelihoods, cosines, kappas).astype(np.float32)
            for score in scores
        }
        yield values, (np.minimum(*kappas).astype(np.float32), left, right)


class RuleCounter:
    """Counts the decisions of rules on pairs; counts shared by rules of one score and floor are cached."""

    def __init__(self, pairs: PeoplePairs, rules: Sequence[DecisionRule], draws: int, seed: int) -> None:
        self.pairs, self.draws, self.seed, self._rules = pairs, draws, seed, rules
        self.accepted, self.on_grid = cache(self._accepted), cache(self._on_grid)
        self.grid, self.tail = cache(self._grid), cache(self._tail)

    def _reach(self, score: str, floor: float, thresholds: Array, mated: bool) -> SubjectRates:
        """Pairs of one kind that reach the thresholds; pairs below the floor reach none."""
        mask = self.pairs.mated == mated
        values = np.where(self.pairs.confidence[mask] >= floor, self.pairs.values[score][mask], -np.inf)
        left, right = self.pairs.left[mask], self.pairs.right[mask]
        return SubjectRates.of(values, left, right, thresholds, draws=self.draws, seed=self.seed)

    def _accepted(self, score: str, floor: float) -> SubjectRates:
        """Non-mated pairs that reach the ``accept`` thresholds of all rules with this score and floor."""
        rules = [rule for rule in self._rules if (rule.score, rule.min_confidence) == (score, floor)]
        return self._reach(score, floor, np.unique([_accept(rule) for rule in rules]), mated=False)

    def _grid(self, score: str) -> Array:
        """Thresholds to try, in equal steps (in nats, or of the cosine) over the range of the scores."""
        values = self.pairs.values[score]
        step = _STEP if score != "cosine" else _STEP / 50
        low, high = float(values[np.isfinite(values)].min()), float(values[np.isfinite(values)].max())
        min_reject = min(float(rule.reject or 0.0) for rule in self._rules if rule.score == score)
        low, high = max(low, min_reject - _SPAN), high + 2 * step
        return np.asarray(low + step * np.arange(int((high - low) / step) + 1))

    def _on_grid(self, score: str, floor: float, mated: bool) -> SubjectRates:
        """Pairs of one kind that reach the thresholds of the grid."""
        return self._reach(score, floor, self.grid(score), mated)

    def _tail(self, score: str) -> TailFit:
        """Tail of the scores of the non-mated pairs."""
        mask = ~self.pairs.mated
        share = max(_TAIL, 1.01 * MIN_EXCEEDANCES / int(mask.sum()))
        return fit_tail(
            self.pairs.values[score][mask], self.pairs.left[mask], self.pairs.right[mask], share=share,
            draws=self.draws, seed=self.seed,
        )  # fmt: skip


def _accept(rule: DecisionRule) -> float:
    return np.inf if rule.accept is None else rule.accept


def count_rule(rule: DecisionRule, counter: RuleCounter) -> RuleCount:
    """Count the decisions of a rule, which must be one of the counter's rules, on the counter's pairs."""
    floor, pairs = rule.min_confidence, counter.pairs
    accept, reject = _accept(rule), -np.inf if rule.reject is None else rule.reject
    false_matches = counter.accepted(rule.score, floor)
    index = int(np.searchsorted(false_matches.thresholds, accept))
    interval = false_matches.interval(index) if counter.draws else (0.0, 1.0)
    kept, broken = float(false_matches.upper(_DELTA)[index]) <= rule.alpha, interval[0] > rule.alpha
    is_decidable, values = pairs.mated & (pairs.confidence >= floor), pairs.values[rule.score]
    matches, misses = (int((is_decidable & mask).sum()) for mask in (values >= accept, values < reject))
    verdict: Verdict = "kept" if kept else "broken" if broken else "open"
    return RuleCount(rule, int(false_matches.reached[index]), interval, matches, misses, verdict)


def _check_rule(
    rule: DecisionRule, counter: RuleCounter, larger: list[RuleOnPeople], tested_on: str
) -> RuleOnPeople:
    """Count and renew a rule; ``larger`` has the results of rules of the same score with a larger alpha."""
    count = count_rule(rule, counter)
    counted_rules = [result.renewed for result in larger if result.how == "counted"]
    renewed, how = _renew(rule, counter, counted_rules, tested_on)
    if renewed is None:
        broken = count.verdict == "broken"
        renewed = replace(rule, accept=None, reject=None, extrapolated=None) if broken else rule
        # The threshold for a smaller rate must not be below that for a larger one.
        min_accept = max((result.renewed.accept or -np.inf for result in larger), default=-np.inf)
        if renewed.accept is not None and renewed.accept < min_accept:
            renewed = replace(renewed, accept=min_accept)
    return RuleOnPeople(**vars(count), renewed=renewed, how=how)


def _renew(
    rule: DecisionRule, counter: RuleCounter, counted_rules: list[DecisionRule], tested_on: str
) -> tuple[DecisionRule | None, str]:
    """The renewed rule, or None; and how it was renewed, or why not."""
    if rule.accept is None or rule.reject is None:
        return None, "unchanged: the rule leaves all pairs undecided"
    grid = counter.grid(rule.score)
    false_matches = counter.on_grid(rule.score, rule.min_confidence, False)
    upper = false_matches.upper(_DELTA)
    index = grid.size - count_leading_true((upper <= rule.alpha)[::-1])
    if index < grid.size:
        accept = float(grid[index])
        count = ErrorCount(
            "false matches of non-mated pairs", int(false_matches.reached[index]), false_matches.pairs,
            float(upper[index]),
        )  # fmt: skip
        renewed = replace(
            rule, accept=accept, reject=min(accept, _renewed_reject(rule, counter)), delta=_DELTA,
            tested_on=tested_on, extrapolated=None, counts=(count, *rule.counts[1:]),
        )  # fmt: skip
        return renewed, "counted"
    if not counted_rules or not counter.draws:
        n = false_matches.pairs
        return None, f"unchanged: {n:,} pairs of two people are too few for the rate {rule.alpha:g}"
    try:
        extrapolated = extrapolated_rule(counted_rules[-1], [counter.tail(rule.score)], rule.alpha)
    except InputError as error:
        return None, f"unchanged: {error}"
    return replace(extrapolated, tested_on=f"the tail of {tested_on}"), "extrapolated"


def _renewed_reject(rule: DecisionRule, counter: RuleCounter) -> float:
    """The largest threshold that keeps the rule's FNMR; with few mated pairs, the current threshold."""
    current = float(rule.reject or 0.0)
    if rule.fnmr is None or counter.pairs.counts["mated"] < _FEW / rule.fnmr:
        return current
    max_fnmr = counter.on_grid(rule.score, -np.inf, True).upper(_DELTA, below=True)
    index = count_leading_true(max_fnmr <= rule.fnmr) - 1
    return current if index < 0 else float(counter.grid(rule.score)[index])
