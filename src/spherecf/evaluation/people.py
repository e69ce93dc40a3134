"""Whether decision rules hold for the people at hand, and the same rules made anew for them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.calibration import Calibration, DecisionRule, ErrorCount
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.bootstrap import SubjectRates
from spherecf.evaluation.tails import LEAST_EXCEEDANCES, extrapolated_rule, fit_tail
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
class RuleOnPeople:
    """What a rule does with these people, and the rule made for them.

    Attributes:
        rule: that was there.
        false_matches: pairs of two people that it calls a match.
        interval: 95 % interval of their share, over people.
        matches: pairs of one person that it calls a match.
        false_non_matches: pairs of one person that it calls a non-match.
        verdict: "kept": the share is below the promised rate with 95 % confidence; "broken": the whole
            interval is above it; "open": these people cannot tell.
        renewed: the rule for these people; one that decides nothing where a broken one cannot be renewed.
        how: how it was made: "counted", "extrapolated", or "kept as it was", with the reason.
    """

    rule: DecisionRule
    false_matches: int
    interval: tuple[float, float]
    matches: int
    false_non_matches: int
    verdict: Verdict
    renewed: DecisionRule
    how: str


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
        shown = [
            {**asdict(one), "rule": one.rule.to_dict(), "renewed": one.renewed.to_dict()}
            | {"interval": list(one.interval)}
            for one in self.rules
        ]
        return {"counts": self.counts, "rules": shown}


def check_people(
    embeddings: Embeddings,
    calibration: Calibration,
    *,
    one_each: bool = False,
    name: str = "",
    draws: int = 1000,
    seed: int = 0,
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

    Raises:
        InputError: fewer than 50 people, no names, no rule to check, or embeddings of another radius.

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
    person, rows, left_out = _chosen(embeddings, one_each, seed)
    own = embeddings.select(rows)
    found = [rule for rule in calibration.decisions if "template" not in rule.score and rule.error == "fmr"]
    if not found:
        raise InputError("check_people: the calibration has no rule for the false match rate of two images")
    radii = {rule.radius for rule in found} - {None, own.radius}
    if radii:
        raise InputError(
            f"check_people: the rules are for radius {radii.pop():g}, the embeddings have {own.radius:g}"
        )
    pairs = {score: _Pairs.of(own, person, score, calibration) for score in {rule.score for rule in found}}
    counts = {
        "people": int(np.unique(person).size), "images": rows.size,
        **next(iter(pairs.values())).counts(), "left_out": left_out,
    }  # fmt: skip
    of = f"{counts['people']} people" + (f" of {name}" if name else "")
    checked: list[RuleOnPeople] = []
    for rule in found:
        before = [one for one in checked if one.rule.score == rule.score and one.rule.alpha > rule.alpha]
        checked.append(_check(rule, pairs[rule.score], before, of, draws, seed))
    renewed = {id(one.rule): one.renewed for one in checked}
    record = {**calibration.record, "people": {"name": name, **counts, "images_sha256": own.fingerprint()}}
    decisions = tuple(renewed.get(id(rule), rule) for rule in calibration.decisions)
    return PeopleReport(counts, tuple(checked), replace(calibration, decisions=decisions, record=record))


def _chosen(embeddings: Embeddings, one_each: bool, seed: int) -> tuple[Array, Array, int]:
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
    if people < MIN_PEOPLE:
        raise InputError(f"check_people: expected at least {MIN_PEOPLE} people, got {people}")
    # The first image of everybody, then the second, and so on: many people tell more than many images.
    order = np.argsort(person[known], kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(person[known][order]) > 0))
    turn = np.arange(known.size) - np.repeat(starts, np.diff(np.append(starts, known.size)))
    rows = known[order][np.argsort(turn, kind="stable")][:_IMAGES]
    rows = np.sort(rows)
    return person[rows], rows, int(known.size - rows.size)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """All pairs of the images."""

    values: Array
    """(n,) what the rules read."""
    confidence: Array
    """(n,) smaller kappa."""
    left: Array
    right: Array

    @classmethod
    def of(cls, own: Embeddings, person: Array, score: str, calibration: Calibration) -> "_Pairs":
        blocks = list(_blocks(own, score, calibration))
        columns = [np.concatenate(part) for part in zip(*blocks)]
        left, right = (person[rows].astype(np.int32) for rows in columns[2:])
        return cls(columns[0], columns[1], left, right)

    @property
    def mated(self) -> NDArray[np.bool_]:
        return np.asarray(self.left == self.right)

    def counts(self) -> dict[str, int]:
        mated = int(self.mated.sum())
        return {"mated": mated, "non_mated": self.left.size - mated}

    def reach(self, mated: bool, floor: float, thresholds: Array, draws: int, seed: int) -> SubjectRates:
        """How many pairs of one kind reach the thresholds; those below the floor reach none."""
        own = self.mated == mated
        values = np.where(self.confidence[own] >= floor, self.values[own], -np.inf)
        return SubjectRates.of(values, self.left[own], self.right[own], thresholds, draws=draws, seed=seed)


def _blocks(own: Embeddings, score: str, calibration: Calibration) -> Iterator[tuple[Array, ...]]:
    """(values, smaller kappa, left row, right row) of every image with every later one."""
    mu, kappa = torch.from_numpy(np.asarray(own.mu)), torch.from_numpy(np.asarray(own.kappa))
    for start in range(0, len(own), _ROWS):
        rows = slice(start, min(start + _ROWS, len(own)))
        left, right = np.nonzero(np.arange(len(own)) > np.arange(start, rows.stop)[:, None])
        cosines = cosine_matrix(mu[rows], mu).numpy()[left, right]
        scores = cosines
        if score != "cosine":
            scores = mutual_likelihood_matrix(mu[rows], kappa[rows], mu, kappa, own.radius).numpy()[
                left, right
            ]
        sides = np.asarray(own.kappa)[left + start], np.asarray(own.kappa)[right]
        values = calibration.evidence(score, scores, cosines, sides).astype(np.float32)
        yield values, np.minimum(*sides).astype(np.float32), left + start, right


def _check(
    rule: DecisionRule, pairs: _Pairs, before: list[RuleOnPeople], of: str, draws: int, seed: int
) -> RuleOnPeople:
    floor, alpha = rule.least_confidence, rule.alpha
    accept = np.inf if rule.accept is None else rule.accept
    reject = -np.inf if rule.reject is None else rule.reject
    false = pairs.reach(False, floor, np.array([accept]), draws, seed)
    upper = float(false.upper(_DELTA)[0])
    interval = false.interval(0) if draws else (0.0, 1.0)
    verdict: Verdict = "kept" if upper <= alpha else "broken" if interval[0] > alpha else "open"
    sure = pairs.mated & (pairs.confidence >= floor)
    matches, missed = (int((sure & part).sum()) for part in (pairs.values >= accept, pairs.values < reject))
    counted = [one.renewed for one in before if one.how == "counted"]
    renewed, how = _renew(rule, pairs, counted, of, draws, seed)
    if renewed is None:
        renewed = rule if verdict != "broken" else replace(rule, accept=None, reject=None, extrapolated=None)
        # A smaller rate never has the lower threshold.
        least = max((one.renewed.accept or -np.inf for one in before), default=-np.inf)
        if renewed.accept is not None and renewed.accept < least:
            renewed = replace(renewed, accept=least)
    return RuleOnPeople(rule, int(false.reached[0]), interval, matches, missed, verdict, renewed, how)


def _renew(
    rule: DecisionRule, pairs: _Pairs, counted: list[DecisionRule], of: str, draws: int, seed: int
) -> tuple[DecisionRule | None, str]:
    """The rule for these people, or None; and how it was made."""
    if rule.accept is None or rule.reject is None:
        return None, "kept as it was: it decides nothing"
    grid = _grid(pairs.values, rule)
    false = pairs.reach(False, rule.least_confidence, grid, draws, seed)
    passes = (false.upper(_DELTA) <= rule.alpha)[::-1]
    at = grid.size - int(np.argmin(np.append(passes, False)))
    if at < grid.size:
        accept = float(grid[at])
        seen = ErrorCount(
            "false matches of non-mated pairs", int(false.reached[at]), false.pairs,
            float(false.upper(_DELTA)[at]),
        )  # fmt: skip
        reject = min(accept, _rejected(rule, pairs, draws, seed))
        made = replace(
            rule, accept=accept, reject=reject, delta=_DELTA, tested_on=of, extrapolated=None,
            counts=(seen, *rule.counts[1:]),
        )  # fmt: skip
        return made, "counted"
    if not counted or not draws:
        return None, f"kept as it was: {false.pairs:,} pairs of two people cannot tell {rule.alpha:g}"
    own = ~pairs.mated
    try:
        share = max(_TAIL, 1.01 * LEAST_EXCEEDANCES / false.pairs)
        tail = fit_tail(
            pairs.values[own], pairs.left[own], pairs.right[own], share=share, draws=draws, seed=seed
        )
        beyond = extrapolated_rule(counted[-1], [tail], rule.alpha)
    except InputError as error:
        return None, f"kept as it was: {error}"
    return replace(beyond, tested_on=f"the tail of {of}"), "extrapolated"


def _grid(values: Array, rule: DecisionRule) -> Array:
    """Thresholds to try: steps of a nat or a thousandth around the rule's own, as far as there are scores."""
    step = _STEP if rule.score != "cosine" else _STEP / 50
    low, high = float(values[np.isfinite(values)].min()), float(values[np.isfinite(values)].max())
    low, high = max(low, float(rule.reject or 0.0) - _SPAN), high + 2 * step
    return np.asarray(low + step * np.arange(int((high - low) / step) + 1))


def _rejected(rule: DecisionRule, pairs: _Pairs, draws: int, seed: int) -> float:
    """The largest threshold that few enough pairs of one person miss; the rule's own if there are few."""
    own = float(rule.reject or 0.0)
    if rule.fnmr is None or pairs.counts()["mated"] < _FEW / rule.fnmr:
        return own
    grid = _grid(pairs.values, rule)
    same = pairs.reach(True, -np.inf, grid, draws, seed)
    passes = same.upper(_DELTA, below=True) <= rule.fnmr
    at = int(np.argmin(np.append(passes, False))) - 1
    return own if at < 0 else float(grid[at])
