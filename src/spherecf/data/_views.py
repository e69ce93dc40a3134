"""Views: the ways in which one image is shown to a backbone (clean, flipped, degraded)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spherecf.data._degradations import Degradation, Degraded
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
