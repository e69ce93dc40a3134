"""Groups of template sets and of pair lists, from groups of images, people or templates."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation._groups import GroupReport, by_group, named_groups
from spherecf.evaluation._rates import Targets
from spherecf.evaluation._resolve import resolve_pairs
from spherecf.evaluation._template_set import TemplateSet
from spherecf.evaluation._verification import (
    DEFAULT_RADIUS,
    FMR_TARGETS,
    check_same_recogniser,
    score_listed,
)


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
    left_keys: Sequence[str],
    right_keys: Sequence[str],
    mated: ArrayLike,
    folds: ArrayLike,
    groups: Mapping[str, str],
    of: str,
    *,
    subjects: tuple[ArrayLike, ArrayLike] | None = None,
    scores: Sequence[str] = ("cosine", "mls"),
    targets: Targets = FMR_TARGETS,
    radius: float | None = None,
) -> dict[str, GroupReport]:
    """Error rates of a pair list by group, for each score; pairs are resolved as by `evaluate_pairs`.

    Args:
        left: embeddings of the left images.
        right: of the right ones.
        left_keys: n keys into ``left``.
        right_keys: n keys into ``right``.
        mated: (n,) true where both show one person.
        folds: (n,) for the groups' own accuracy.
        groups: name to group.
        of: what the names are of: "image" or "subject".
        subjects: (left, right) person of each pair; default: the labels of the embeddings.
        scores: of "cosine" and "mls".
        targets: FMR targets.
        radius: r of the mutual likelihood score.

    Raises:
        InputError: as `evaluate_pairs` and `by_group`, two recognisers among them; groups of people where
            nobody is known.

    Example:
        >>> e = Embeddings(np.eye(4)[[0, 0, 1, 1]], np.zeros(4), list("abcd"))
        >>> groups, folds = dict(zip("abcd", "AABB")), [0, 0, 1, 1]
        >>> found = pair_groups(e, e, "aaba", "bcdd", [1, 0, 0, 0], folds, groups, "image", targets=0.4)
        >>> [(group.group, group.mated, group.non_mated) for group in found["cosine"].groups]
        [('A', 1, 0), ('(between groups)', 0, 3)]
    """
    check_same_recogniser(left, right)
    pairs = resolve_pairs(left, right, left_keys, right_keys, mated, folds, subjects)
    if of == "image":
        sides = [
            [side.keys[row] for row in rows.tolist()]
            for side, rows in ((left, pairs.left), (right, pairs.right))
        ]
    elif of == "subject" and pairs.unit == "subject":
        sides = [[str(person) for person in people.tolist()] for people in pairs.subjects]
    else:
        raise InputError(
            f"groups of {of!r}: a pair list has images, and people where they are known; not this"
        )
    names = named_groups([*sides[0], *sides[1]], groups, of)
    one, other = names[: len(sides[0])], names[len(sides[0]) :]
    r = float(left.provenance.get("radius", DEFAULT_RADIUS)) if radius is None else radius
    found = score_listed(left, right, pairs, scores, r)
    return {
        score: by_group(values, pairs.mated, one, other, targets, folds=pairs.folds)
        for score, values in found.items()
    }
