"""Views: the ways in which one image is shown to a backbone (clean, flipped, degraded)."""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spherecf.data._degradations import RECIPES, Degradation, Degraded
from spherecf.errors import InputError


@dataclass(frozen=True)
class View:
    """One view of an image: degraded or not, mirrored or not.

    Example:
        >>> View().signature, View(Degradation("cross", seed=3), flip=True).signature
        ('clean', 'cross-v1/3+flip')
    """

    degradation: Degradation | None = None
    flip: bool = False

    @property
    def signature(self) -> str:
        """What was done, for the signature of results."""
        return ("clean" if self.degradation is None else self.degradation.signature) + "+flip" * self.flip

    @classmethod
    def from_signature(cls, signature: str) -> "View":
        """The view that a signature names.

        Raises:
            InputError: this version cannot make it: a recipe of one's own, another version, or no signature.

        Example:
            >>> View.from_signature("cross-v1/3+flip").signature
            'cross-v1/3+flip'
        """
        name, flip = signature.removesuffix("+flip"), signature.endswith("+flip")
        if name == "clean":
            return cls(flip=flip)
        found = re.fullmatch(r"(\w+)-v(\d+)/(\d+)", name)
        if found and found[1] in RECIPES:
            view = cls(Degradation(found[1], int(found[3])), flip)
            if view.signature == signature:
                return view
        raise InputError(f"view {signature!r} cannot be made again by this version")

    def __call__(self, image: NDArray[np.uint8], key: str) -> Degraded:
        """Apply the view to a uint8 RGB image; a clean view has severity 0."""
        shown = Degraded(image, 0.0, ()) if self.degradation is None else self.degradation(image, key)
        if not self.flip:
            return shown
        return Degraded(np.ascontiguousarray(shown.image[:, ::-1]), shown.severity, shown.kinds)


def training_views(
    degraded: int = 3, *, recipe: str = "train", seed: int = 0, flip: bool = False
) -> list[View]:
    """The clean view and ``degraded`` independently degraded ones; with ``flip``, each also mirrored.

    Raises:
        InputError: ``degraded`` is negative.

    Example:
        >>> [view.signature for view in training_views(2)]
        ['clean', 'train-v1/0', 'train-v1/1']
    """
    if degraded < 0:
        raise InputError(f"the number of degraded views must be 0 or more, got {degraded}")
    plain = [None, *(Degradation(recipe, seed * 1000 + index) for index in range(degraded))]
    return [View(degradation, mirrored) for mirrored in (False, True)[: 1 + flip] for degradation in plain]
