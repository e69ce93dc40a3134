"""Graded degradation: the same pictures as they are, and damaged more and more."""

from dataclasses import dataclass

from spherecf.data import RECIPES, Degradation, Recipe, View

_KINDS = RECIPES["train"].kinds


def _graded(name: str, least: float, most: float) -> View:
    """One or two of the kinds that training knows, of limited strength; the draws are of its own stream."""
    return View(Degradation(Recipe(name, 1, _KINDS, (1, 2), (least, most), "graded")))


GRADES: dict[str, View] = {
    "none": View(),
    "mild": _graded("mild", 0.0, 0.3),
    "medium": _graded("medium", 0.3, 0.6),
    "strong": _graded("strong", 0.6, 0.9),
    "unseen": View(Degradation("unseen", 0)),
}
"""How the test pictures are shown. "unseen" has kinds that neither training nor calibration contains."""

CALIBRATED = ("none", "mild", "medium", "strong")
"""Grades that thresholds and rules are made on."""


@dataclass(frozen=True)
class Condition:
    """Which grade stands left and right in every pair.

    Example:
        >>> [condition.name for condition in conditions(["none", "mild"])]
        ['none', 'none/mild', 'mild']
    """

    left: str
    right: str

    @property
    def name(self) -> str:
        """In tables: one grade if both pictures have it."""
        return self.left if self.left == self.right else f"{self.left}/{self.right}"


def conditions(grades: list[str]) -> list[Condition]:
    """Good pictures among each other, and by every other grade one and both of them degraded."""
    found = [Condition("none", "none")]
    for grade in grades:
        if grade != "none":
            found += [Condition("none", grade), Condition(grade, grade)]
    return found
