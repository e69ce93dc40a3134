"""From a template set's pairs to positions of templates and the people they show, failures set apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spherecf.errors import InputError
from spherecf.evaluation._subjects import contradictions, template_people
from spherecf.evaluation._template_set import TemplateImages, TemplateSet, positions

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Side:
    """The left or the right templates of all pairs."""

    used: Array
    """(s,) positions among all templates with images, ascending."""
    ids: Array
    """(s,) their ids."""
    people: Array
    """(s,) whom they show."""
    at: Array
    """(pairs,) position of each pair's template among ``used``."""

    @classmethod
    def of(cls, ids: Array, people: Array, place: Array) -> "Side":
        """``place`` (pairs,) is among all templates."""
        here = np.zeros(ids.size, bool)
        here[place] = True
        used = np.flatnonzero(here)
        return cls(used, ids[used], people[used], (np.cumsum(here) - 1)[place])


@dataclass(frozen=True, eq=False)
class ComparedTemplates:
    """The pairs whose templates have images."""

    left: Side
    right: Side
    mated: Array
    unit: str
    """What an interval draws: "subject" or "component", see `template_people`."""
    failed: int
    """Pairs left out: a template has no image."""
    notes: list[str]

    def people(self) -> tuple[Array, Array]:
        """Person of the left and of the right template of every pair."""
        return self.left.people[self.left.at], self.right.people[self.right.at]

    def groups(self, groups: Mapping[int, str]) -> tuple[Array, Array]:
        """Group of the left and of the right template of every pair, "" where unknown."""
        left, right = (
            np.array([groups.get(template, "") for template in side.ids.tolist()])[side.at]
            for side in (self.left, self.right)
        )
        return left, right


def compare_templates(
    listed: tuple[Array, Array, Array], templates: TemplateSet, images: TemplateImages
) -> ComparedTemplates:
    """Find the templates of the pairs.

    Raises:
        InputError: of the pairs whose templates have images only one kind is left.
    """
    left, right, mated = listed
    if images.lost.size:
        kept = images.known(left) & images.known(right)
        left, right, mated = left[kept], right[kept], mated[kept]
    failed, true = listed[2].size - mated.size, int(mated.sum())
    if true in (0, mated.size):
        raise InputError(
            f"{templates.name}: {failed} of {listed[2].size} pairs have a template without images; the rest "
            f"are {true} mated and {mated.size - true} non-mated; error rates need both kinds. Embed the "
            "missing images."
        )
    ids = np.unique(images.templates)
    a, b = positions(ids, left), positions(ids, right)
    unit, people = template_people(ids, templates.subjects(), a, b, mated)
    notes = []
    if wrong := contradictions(people, a, b, mated):
        notes.append(f"{wrong:,} pairs are labelled otherwise than the people of their templates say.")
    if alike := int((a == b).sum()):
        notes.append(f"{alike:,} pairs compare a template with itself; they count as they stand in the list.")
    return ComparedTemplates(Side.of(ids, people, a), Side.of(ids, people, b), mated, unit, failed, notes)
