"""Who a template shows, for intervals over people: from the lists, or from the mated pairs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.evaluation._split_subjects import linked

Array = NDArray[Any]


def template_people(
    ids: Array, known: Mapping[int, int], left: Array, right: Array, mated: Array
) -> tuple[str, Array]:
    """(unit, person of each template).

    The lists of subjects where they name every template of a pair. Else the templates that mated pairs
    connect are one person, and the others one each: "component" instead of "subject", since a person's
    templates need not be connected.

    Args:
        ids: (t,) templates.
        known: template to subject.
        left: (p,) position among ``ids`` of each pair's left template.
        right: (p,) of the right one.
        mated: (p,) true where both show one person.

    Example:
        >>> ids, mated = np.array([5, 6, 7]), np.array([True, False])
        >>> template_people(ids, {}, np.array([0, 1]), np.array([2, 2]), mated)
        ('component', array([0, 1, 0]))
    """
    compared = np.zeros(ids.size, bool)
    compared[left] = compared[right] = True
    if all(template in known for template in ids[compared].tolist()):
        return "subject", np.array([known.get(template, -1) for template in ids.tolist()], np.int64)
    return "component", linked(left[mated], right[mated], ids.size)


def contradictions(people: Array, left: Array, right: Array, mated: Array) -> int:
    """Pairs whose label says otherwise than the people do."""
    return int(((people[left] == people[right]) != mated).sum())
