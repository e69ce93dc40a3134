"""One threshold for everybody, and its error rates in each group of people or images.

In the manner of M. Wang, W. Deng, J. Hu, X. Tao, Y. Huang, "Racial Faces in the Wild", ICCV 2019 (accuracy
per group) and of P. Grother, M. Ngan, K. Hanaoka, "Face Recognition Vendor Test Part 3: Demographic Effects",
NISTIR 8280 (FMR of each group at a threshold set on everybody).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.common.parsing import spelt
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.folds import tenfold
from spherecf.evaluation.pairs import (
    PairOptions,
    Pairs,
    check_same_recogniser,
    resolve_pairs,
    score_listed,
)
from spherecf.evaluation.rates import ScoreSplit, Targets, TmrAtFmr, sort_pairs
from spherecf.evaluation.results import plain
from spherecf.evaluation.templates import TemplateSet

Array = NDArray[Any]

BETWEEN = "(between groups)"


@dataclass(frozen=True)
class AtThreshold:
    """One group at the threshold that gives everybody an FMR of at most ``target``."""

    target: float
    threshold: float
    fmr: float | None
    """None without non-mated pairs."""
    tmr: float | None
    false_matches: int
    true_matches: int


@dataclass(frozen=True)
class GroupResult:
    """The pairs of which both sides are of one group."""

    group: str
    mated: int
    non_mated: int
    accuracy: float
    """At the threshold that is most accurate on the pairs of all groups."""
    own_accuracy: float | None
    """At its own: over folds where there are folds, else at the most accurate threshold of this group."""
    at: list[AtThreshold]
    own: list[TmrAtFmr]
    """TMR at FMR with the group's own thresholds; empty if one kind of pair is missing."""


@dataclass(frozen=True)
class GroupReport:
    """Every group, and how far they are apart."""

    overall: list[TmrAtFmr]
    """The thresholds: of all pairs of which both sides are of a known group."""
    accuracy_threshold: float
    groups: list[GroupResult]
    """In the order of their names; the pairs between two groups come last, as a group of their own."""
    spread: dict[str, float | None]
    """"fmr@0.001", "fnmr@0.001", "error": largest over smallest of the groups (not of the pairs between);
    infinite where the smallest is 0, None where a group has no such number."""
    ungrouped: int
    """Pairs of which a side is of no known group; they take no part."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        found: dict[str, Any] = plain(asdict(self))
        return found


def by_group(
    scores: ArrayLike,
    mated: ArrayLike,
    left: Sequence[str] | Array,
    right: Sequence[str] | Array,
    targets: Targets,
    *,
    folds: ArrayLike | None = None,
) -> GroupReport:
    """Error rates of each group at thresholds that are set on everybody, and at its own.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both show one person.
        left: (n,) group of the left side, "" where unknown.
        right: (n,) of the right side.
        targets: FMR targets; those that all pairs together cannot resolve have a reason in ``overall``.
        folds: (n,) for the groups' own accuracy.

    Raises:
        InputError: shapes differ, NaN scores, one kind of pair only, or fewer than two groups.

    Example:
        >>> report = by_group(
        ...     [0.9, 0.1, 0.8, 0.7, 0.2],
        ...     [1, 0, 1, 0, 0],
        ...     ["A", "A", "B", "B", "A"],
        ...     ["A", "A", "B", "B", "B"],
        ...     0.4,
        ... )
        >>> [(g.group, g.accuracy, g.at[0].fmr) for g in report.groups]
        [('A', 1.0, 0.0), ('B', 1.0, 1.0), ('(between groups)', 1.0, 0.0)]
    """
    a, b, s, m = np.asarray(left, str), np.asarray(right, str), np.asarray(scores), np.asarray(mated)
    if not a.shape == b.shape == s.shape == m.shape:
        raise InputError(f"groups: expected one per side of {s.shape} pairs, got {a.shape} and {b.shape}")
    known = (a != "") & (b != "")
    s, m, a, b = s[known], m[known].astype(bool), a[known], b[known]
    fold = None if folds is None else np.asarray(folds)[known]
    names = np.unique(np.concatenate([a, b])).tolist()
    if len(names) < 2:
        raise InputError(f"groups: expected at least two, the pairs are of {names}")
    overall = ScoreSplit.of(s, m).tmr_at_fmr(targets)
    best = _most_accurate(s, m)
    members = {name: (a == name) & (b == name) for name in names} | {BETWEEN: a != b}
    groups = [
        _measure(name, s[rows], m[rows], None if fold is None else fold[rows], overall, best, targets)
        for name, rows in members.items()
        if rows.any()
    ]
    inside = [group for group in groups if group.group != BETWEEN]
    return GroupReport(overall, best, groups, _spread(inside, overall), int((~known).sum()))


def _measure(
    name: str,
    scores: Array,
    mated: Array,
    folds: Array | None,
    overall: Sequence[TmrAtFmr],
    best: float,
    targets: Targets,
) -> GroupResult:
    true, false = int(mated.sum()), int((~mated).sum())
    at = []
    for entry in overall:
        if entry.threshold is None:
            continue
        accepted = scores >= entry.threshold
        hits, errors = int((accepted & mated).sum()), int((accepted & ~mated).sum())
        rates = errors / false if false else None, hits / true if true else None
        at.append(AtThreshold(entry.target, entry.threshold, *rates, errors, hits))
    both = bool(true and false)
    own: float | None = None
    if both and folds is not None and np.unique(folds).size > 1:
        own = tenfold(scores, mated, folds).mean
    elif both and folds is None:
        own = float(((scores >= _most_accurate(scores, mated)) == mated).mean())
    own_tmr = ScoreSplit.of(scores, mated).tmr_at_fmr(targets) if both else []
    return GroupResult(name, true, false, float(((scores >= best) == mated).mean()), own, at, own_tmr)


def _most_accurate(scores: Array, mated: Array) -> float:
    """The largest of the thresholds with the highest accuracy."""
    curve = sort_pairs(scores, mated).curve()
    return float(curve.thresholds[int((curve.true - curve.false).argmax())])


def _spread(groups: Sequence[GroupResult], overall: Sequence[TmrAtFmr]) -> dict[str, float | None]:
    found: dict[str, float | None] = {"error": _over([1 - group.accuracy for group in groups])}
    for place, entry in enumerate(one for one in overall if one.threshold is not None):
        ones = [group.at[place] for group in groups]
        found[f"fmr@{entry.target:g}"] = _over([one.fmr for one in ones])
        found[f"fnmr@{entry.target:g}"] = _over([None if one.tmr is None else 1 - one.tmr for one in ones])
    return found


def _over(rates: Sequence[float | None]) -> float | None:
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates) or len(known) < 2:
        return None
    low, high = min(known), max(known)
    return high / low if low > 0 else float("inf") if high > 0 else 1.0


def named_groups(names: Sequence[str], groups: Mapping[str, str], what: str) -> list[str]:
    """Group of each name, "" where it has none.

    Raises:
        InputError: none of the names has a group: they are spelt differently.

    Example:
        >>> named_groups(["a", "b"], {"a": "A"}, "image")
        ['A', '']
    """
    found = [groups.get(name) or groups.get(spelt(name), "") for name in names]
    if not any(found):
        shown, given = ", ".join(map(repr, names[:2])), ", ".join(map(repr, list(groups)[:2]))
        raise InputError(
            f"groups: no {what} has a group; they look like {shown} here and {given} in the groups; both "
            "must be spelt alike"
        )
    return found


def extra_groups(embeddings: Embeddings, name: str) -> dict[str, str]:
    """Key to group by the values of an extra column, e.g. ``severity``.

    Raises:
        InputError: no such column.

    Example:
        >>> e = Embeddings(np.eye(2), np.zeros(2), ["a", "b"], extras={"severity": np.array([0, 2.5])})
        >>> extra_groups(e, "severity")
        {'a': '0', 'b': '2.5'}
    """
    if name not in embeddings.extras:
        known = ", ".join(sorted(embeddings.extras)) or "none"
        raise InputError(f"groups: these embeddings have no extra {name!r} (they have: {known})")
    shown = (np.format_float_positional(value, trim="-") for value in embeddings.extras[name])
    return dict(zip(embeddings.keys, shown))


def template_groups(templates: TemplateSet, groups: Mapping[str, str], of: str) -> dict[int, str]:
    """Template to group; a template whose images are of several groups has none.

    Args:
        templates: the set.
        groups: name to group.
        of: what the names are of: "template", "subject" (of the galleries and probes) or "image".

    Raises:
        InputError: another kind, or no name that occurs in the set.

    Example:
        >>> from spherecf.data import IjbMeta
        >>> meta = IjbMeta("toy", ["a", "b"], np.array([1, 2]), np.array([1, 2]))
        >>> template_groups(meta, {"a": "A", "b": "B"}, "image")
        {1: 'A', 2: 'B'}
    """
    if of not in ("template", "subject", "image"):
        raise InputError(f"groups of {of!r}: expected template, subject or image")
    if of == "image":
        found: dict[int, set[str]] = {}
        names = named_groups(templates.files, groups, of)
        for template, group in zip(templates.templates.tolist(), names):
            found.setdefault(template, set()).add(group)
        return {template: ones.pop() if len(ones) == 1 else "" for template, ones in found.items()}
    people = templates.subjects() if of == "subject" else {}
    ids = list(people) if of == "subject" else np.unique(templates.templates).tolist()
    return dict(zip(ids, named_groups([str(people.get(t, t)) for t in ids], groups, of)))


def pair_groups(
    left: Embeddings,
    right: Embeddings,
    pairs: Pairs,
    groups: Mapping[str, str],
    of: str,
    options: PairOptions = PairOptions(),
) -> dict[str, GroupReport]:
    """Error rates of a pair list by group, for each score; pairs are resolved as by `evaluate_pairs`.

    Args:
        left: embeddings of the left images.
        right: of the right ones.
        pairs: the list.
        groups: name to group.
        of: what the names are of: "image" or "subject".
        options: radius, scores and targets; the rest is not used.

    Raises:
        InputError: as `evaluate_pairs` and `by_group`, two recognisers among them; groups of people where
            nobody is known.

    Example:
        >>> from spherecf.data import PairList
        >>> e = Embeddings(np.eye(4)[[0, 0, 1, 1]], np.zeros(4), list("abcd"))
        >>> mated, fold = np.array([True, False, False, False]), np.array([0, 0, 1, 1])
        >>> pairs, groups = (
        ...     PairList("toy", list("aaba"), list("bcdd"), mated, fold),
        ...     dict(zip("abcd", "AABB")),
        ... )
        >>> reports = pair_groups(e, e, pairs, groups, "image", PairOptions(targets=[0.4]))
        >>> [(group.group, group.mated, group.non_mated) for group in reports["cosine"].groups]
        [('A', 1, 0), ('(between groups)', 0, 3)]
    """
    check_same_recogniser(left, right)
    resolved = resolve_pairs(left, right, pairs.left, pairs.right, pairs.mated, pairs.fold, pairs.subjects)
    if of == "image":
        sides = [
            [side.keys[row] for row in rows.tolist()]
            for side, rows in ((left, resolved.left), (right, resolved.right))
        ]
    elif of == "subject" and resolved.unit == "subject":
        sides = [[str(person) for person in people.tolist()] for people in resolved.subjects]
    else:
        raise InputError(
            f"groups of {of!r}: a pair list has images, and people where they are known; not this"
        )
    names = named_groups([*sides[0], *sides[1]], groups, of)
    one, other = names[: len(sides[0])], names[len(sides[0]) :]
    radius = left.radius if options.radius is None else options.radius
    columns = score_listed(left, right, resolved, options.scores, radius)
    return {
        score: by_group(values, resolved.mated, one, other, options.targets, folds=resolved.folds)
        for score, values in columns.items()
    }
