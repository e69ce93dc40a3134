"""Error rates of each group of people or images at thresholds common to all groups.

Accuracy per group follows M. Wang, W. Deng, J. Hu, X. Tao, Y. Huang, "Racial Faces in the Wild", ICCV 2019;
FMR of each group at a common threshold follows P. Grother, M. Ngan, K. Hanaoka, "Face Recognition Vendor Test
Part 3: Demographic Effects", NISTIR 8280.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spherecf.common.parsing import normalised_path
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation.folds import tenfold
from spherecf.evaluation.pairs import PairOptions, Pairs, check_same_recogniser, resolve_pairs, score_listed
from spherecf.evaluation.rates import ScoreSplit, Targets, TmrAtFmr, sort_pairs
from spherecf.evaluation.results import plain
from spherecf.evaluation.templates import TemplateSet

Array = NDArray[Any]

BETWEEN = "(between groups)"


@dataclass(frozen=True)
class AtThreshold:
    """Rates of one group at the common threshold, at which the FMR of all pairs is at most ``target``."""

    target: float
    threshold: float
    fmr: float | None
    """None without non-mated pairs."""
    tmr: float | None
    """None without mated pairs."""
    false_matches: int
    true_matches: int


@dataclass(frozen=True)
class GroupResult:
    """Results of the pairs whose sides are both in one group."""

    group: str
    mated: int
    non_mated: int
    accuracy: float
    """Accuracy at the common threshold, the most accurate one on the pairs of all groups."""
    own_accuracy: float | None
    """Accuracy with thresholds of the group: cross-validated with folds, else at its best threshold."""
    at: list[AtThreshold]
    """Rates at the common thresholds."""
    own: list[TmrAtFmr]
    """TMR at FMR with thresholds of the group; empty if one kind of pair is missing."""


@dataclass(frozen=True)
class GroupReport:
    """Results of all groups, and the ratios between them."""

    overall: list[TmrAtFmr]
    """The common thresholds, set on all pairs whose sides both have a known group."""
    accuracy_threshold: float
    groups: list[GroupResult]
    """In the order of their names, followed by the pairs between two groups."""
    spread: dict[str, float | None]
    """"fmr@0.001", "fnmr@0.001", "error": ratio of the largest to the smallest rate of the groups, without
    pairs between groups; infinite if the smallest rate is 0, None if a group has no such rate."""
    ungrouped: int
    """Number of pairs with a side of unknown group, which are left out."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts and lists."""
        report: dict[str, Any] = plain(asdict(self))
        return report


def by_group(
    scores: ArrayLike,
    mated: ArrayLike,
    left: Sequence[str] | Array,
    right: Sequence[str] | Array,
    targets: Targets,
    *,
    folds: ArrayLike | None = None,
) -> GroupReport:
    """Error rates of each group at common thresholds, and at thresholds of the group.

    Args:
        scores: (n,) larger = more alike.
        mated: (n,) true where both images show the same person.
        left: (n,) group of each pair's left side, "" if unknown.
        right: (n,) group of each pair's right side.
        targets: FMR targets; for targets that all pairs together cannot resolve, ``overall`` has a reason.
        folds: (n,) folds for the accuracy with thresholds of the group.

    Raises:
        InputError: the shapes differ, a score is NaN, the pairs are of one kind only, or there are fewer than
            two groups.

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
    best = _most_accurate_threshold(s, m)
    masks = {name: (a == name) & (b == name) for name in names} | {BETWEEN: a != b}
    groups = [
        _measure(name, s[mask], m[mask], None if fold is None else fold[mask], overall, best, targets)
        for name, mask in masks.items()
        if mask.any()
    ]
    named_results = [group for group in groups if group.group != BETWEEN]
    return GroupReport(overall, best, groups, _spread(named_results, overall), int((~known).sum()))


def _measure(
    name: str,
    scores: Array,
    mated: Array,
    folds: Array | None,
    overall: Sequence[TmrAtFmr],
    accuracy_threshold: float,
    targets: Targets,
) -> GroupResult:
    n_mated, n_non_mated = int(mated.sum()), int((~mated).sum())
    rates_at_thresholds = []
    for entry in overall:
        if entry.threshold is None:
            continue
        accepted = scores >= entry.threshold
        hits, errors = int((accepted & mated).sum()), int((accepted & ~mated).sum())
        rates = errors / n_non_mated if n_non_mated else None, hits / n_mated if n_mated else None
        rates_at_thresholds.append(AtThreshold(entry.target, entry.threshold, *rates, errors, hits))
    has_both_kinds = bool(n_mated and n_non_mated)
    own_accuracy: float | None = None
    if has_both_kinds and folds is not None and np.unique(folds).size > 1:
        own_accuracy = tenfold(scores, mated, folds).mean
    elif has_both_kinds and folds is None:
        own_accuracy = _accuracy(scores, mated, _most_accurate_threshold(scores, mated))
    own_tmr = ScoreSplit.of(scores, mated).tmr_at_fmr(targets) if has_both_kinds else []
    accuracy = _accuracy(scores, mated, accuracy_threshold)
    return GroupResult(
        name, n_mated, n_non_mated, accuracy, own_accuracy, rates_at_thresholds, own_tmr
    )  # fmt: skip


def _accuracy(scores: Array, mated: Array, threshold: float) -> float:
    return float(((scores >= threshold) == mated).mean())


def _most_accurate_threshold(scores: Array, mated: Array) -> float:
    """The threshold with the highest accuracy; the largest one if there are several."""
    curve = sort_pairs(scores, mated).curve()
    return float(curve.thresholds[int((curve.true - curve.false).argmax())])


def _spread(groups: Sequence[GroupResult], overall: Sequence[TmrAtFmr]) -> dict[str, float | None]:
    ratios: dict[str, float | None] = {"error": _ratio([1 - group.accuracy for group in groups])}
    for index, entry in enumerate(e for e in overall if e.threshold is not None):
        rates = [group.at[index] for group in groups]
        ratios[f"fmr@{entry.target:g}"] = _ratio([r.fmr for r in rates])
        ratios[f"fnmr@{entry.target:g}"] = _ratio([None if r.tmr is None else 1 - r.tmr for r in rates])
    return ratios


def _ratio(rates: Sequence[float | None]) -> float | None:
    """Ratio of the largest to the smallest rate; None if a rate is missing or there is only one."""
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates) or len(known) < 2:
        return None
    low, high = min(known), max(known)
    return high / low if low > 0 else float("inf") if high > 0 else 1.0


def named_groups(names: Sequence[str], groups: Mapping[str, str], kind: str) -> list[str]:
    """Group of each name, "" if it has none; ``kind`` says in the error message what the names are of.

    Raises:
        InputError: none of the names has a group, e.g. because they are written differently.

    Example:
        >>> named_groups(["a", "b"], {"a": "A"}, "image")
        ['A', '']
    """
    name_groups = [groups.get(name) or groups.get(normalised_path(name), "") for name in names]
    if not any(name_groups):
        examples, group_examples = (", ".join(map(repr, column[:2])) for column in (names, list(groups)))
        raise InputError(
            f"groups: no {kind} has a group; they look like {examples} here and like {group_examples} in the "
            "groups; they must match"
        )
    return name_groups


def extra_groups(embeddings: Embeddings, name: str) -> dict[str, str]:
    """Group of each key by the values of an extra column, e.g. ``severity``.

    Raises:
        InputError: the embeddings have no such column.

    Example:
        >>> e = Embeddings(np.eye(2), np.zeros(2), ["a", "b"], extras={"severity": np.array([0, 2.5])})
        >>> extra_groups(e, "severity")
        {'a': '0', 'b': '2.5'}
    """
    if name not in embeddings.extras:
        available = ", ".join(sorted(embeddings.extras)) or "none"
        raise InputError(f"groups: these embeddings have no extra {name!r} (they have: {available})")
    texts = (np.format_float_positional(value, trim="-") for value in embeddings.extras[name])
    return dict(zip(embeddings.keys, texts))


def template_groups(templates: TemplateSet, groups: Mapping[str, str], of: str) -> dict[int, str]:
    """Group of each template; a template with images of several groups has none.

    Args:
        templates: the template set.
        groups: name -> group.
        of: what the names refer to: "template", "subject" (of the galleries and probes) or "image".

    Raises:
        InputError: ``of`` is none of these, or none of the names occurs in the set.

    Example:
        >>> from spherecf.data import IjbMeta
        >>> meta = IjbMeta("toy", ["a", "b"], np.array([1, 2]), np.array([1, 2]))
        >>> template_groups(meta, {"a": "A", "b": "B"}, "image")
        {1: 'A', 2: 'B'}
    """
    if of not in ("template", "subject", "image"):
        raise InputError(f"groups of {of!r}: expected template, subject or image")
    if of == "image":
        image_groups: dict[int, set[str]] = {}
        for template, group in zip(templates.templates.tolist(), named_groups(templates.files, groups, of)):
            image_groups.setdefault(template, set()).add(group)
        return {
            template: distinct.pop() if len(distinct) == 1 else ""
            for template, distinct in image_groups.items()
        }
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
    """Error rates of a pair list by group, for each score.

    Pairs with an image that could not be embedded are left out, as by `evaluate_pairs`.

    Args:
        left: embeddings of the left images.
        right: embeddings of the right images.
        pairs: the pair list.
        groups: name -> group.
        of: what the names refer to: "image" or "subject".
        options: radius, scores and targets; the other options are not used.

    Raises:
        InputError: as `evaluate_pairs` and `by_group`; or ``of`` is "subject" and people are unknown.

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
            f"groups of {of!r}: expected image, or subject if the pair list or the embeddings name people"
        )
    side_groups = named_groups([*sides[0], *sides[1]], groups, of)
    left_groups, right_groups = side_groups[: len(sides[0])], side_groups[len(sides[0]) :]
    radius = left.radius if options.radius is None else options.radius
    columns = score_listed(left, right, resolved, options.scores, radius)
    return {
        score: by_group(
            values, resolved.mated, left_groups, right_groups, options.targets, folds=resolved.folds
        )
        for score, values in columns.items()
    }
