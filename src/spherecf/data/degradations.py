"""Image degradations of graded severity, and the views of an image that a backbone embeds.

A degradation is determined by a named, versioned `DegradationRecipe`, a seed and the image's key. The same
key therefore gets the same degradation on any machine and in any order, and the signature ``name-vN/seed``
identifies the set. Training and test recipes use different random streams and ranges; the test recipe
``unseen`` has only kinds that ``train`` lacks, ``beyond`` only kinds that no training recipe contains.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.common.arrays import check_rgb
from spherecf.data.damage import KINDS, Image
from spherecf.errors import InputError


@dataclass(frozen=True)
class DegradationRecipe:
    """A distribution of degradations: kinds with weights, number of kinds per image, and range of strengths.

    Attributes:
        name: name of the recipe.
        version: with ``name``, part of the signature of every result.
        kinds: weight of each kind in the draw (see `KINDS`).
        count: minimum and maximum number of kinds combined on one image.
        strength: range from which the strength of each kind is drawn uniformly, within [0, 1].
        salt: separates the random streams of recipes that use the same seed.
    """

    name: str
    version: int
    kinds: Mapping[str, float]
    count: tuple[int, int]
    strength: tuple[float, float]
    salt: str


@dataclass(frozen=True)
class Degraded:
    """A degraded image, its severity in [0, 1] (1 - prod(1 - strength)), and the kinds applied in order."""

    image: Image
    severity: float
    kinds: tuple[str, ...]


_COMMON = ("resolution", "gaussian_blur", "motion_blur", "noise", "jpeg", "occlusion", "exposure", "gamma")
_UNSEEN = ("pixelate", "defocus", "salt_pepper", "haze", "shift")
_BEYOND = ("pixelate", "salt_pepper", "posterise", "stripes", "ghost")
_WIDE = {kind: 3.0 if kind in _COMMON else 1.0 for kind in KINDS if kind not in _BEYOND}

RECIPES: dict[str, DegradationRecipe] = {
    recipe.name: recipe
    for recipe in (
        DegradationRecipe("train", 1, dict.fromkeys(_COMMON, 1.0), (1, 3), (0.0, 1.0), "training"),
        DegradationRecipe(
            "cross", 1, dict.fromkeys(_COMMON, 1.0) | {"resolution": 2.0}, (1, 2), (0.1, 0.8), "test"
        ),
        DegradationRecipe("unseen", 1, dict.fromkeys(_UNSEEN, 1.0), (1, 2), (0.1, 0.8), "test"),
        DegradationRecipe("wide", 1, _WIDE, (1, 3), (0.0, 1.0), "training"),
        DegradationRecipe("beyond", 1, dict.fromkeys(_BEYOND, 1.0), (1, 2), (0.1, 0.8), "test"),
    )
}
"""``train`` to train a head, ``cross`` for cross-quality test sets, ``unseen`` with kinds that ``train``
lacks; ``wide`` has three times the kinds of ``train``, ``beyond`` has kinds that neither of these two has."""


class Degradation:
    """Degrade images deterministically: the result depends only on recipe, seed and key.

    Args:
        recipe: a name in `RECIPES` or a custom `DegradationRecipe`.
        seed: part of the signature.

    Raises:
        InputError: unknown recipe or kinds, or a count, strength or weight out of range.

    Example:
        >>> import numpy as np
        >>> degrade = Degradation("cross", seed=0)
        >>> degrade.signature
        'cross-v1/0'
        >>> image = np.full((112, 112, 3), 128, np.uint8)
        >>> first, again = degrade(image, "someone/1.jpg"), degrade(image, "someone/1.jpg")
        >>> bool((first.image == again.image).all()), first.kinds == again.kinds
        (True, True)
    """

    def __init__(self, recipe: str | DegradationRecipe, seed: int = 0) -> None:
        if isinstance(recipe, str):
            if recipe not in RECIPES:
                raise InputError(f"unknown degradation recipe {recipe!r}; known: {', '.join(RECIPES)}")
            recipe = RECIPES[recipe]
        if unknown := set(recipe.kinds) - set(KINDS):
            raise InputError(f"unknown degradation kinds {sorted(unknown)}; known: {', '.join(KINDS)}")
        weights = np.array(list(recipe.kinds.values()), float)
        if not 1 <= recipe.count[0] <= recipe.count[1] <= len(weights):
            raise InputError(f"recipe {recipe.name}: count {recipe.count} must be within 1..{len(weights)}")
        if not 0 <= recipe.strength[0] <= recipe.strength[1] <= 1:
            raise InputError(f"recipe {recipe.name}: strength {recipe.strength} must be within 0..1")
        if not (weights >= 0).all() or np.count_nonzero(weights) < recipe.count[1]:
            raise InputError(
                f"recipe {recipe.name}: weights must be 0 or more, and at least {recipe.count[1]} of them "
                "positive"
            )
        self.recipe, self.seed = recipe, seed
        self._names, self._weights = list(recipe.kinds), weights / weights.sum()

    @property
    def signature(self) -> str:
        """``name-vVERSION/seed``, for the signature of results; for a custom recipe with its hash."""
        custom = "" if self.recipe == RECIPES.get(self.recipe.name) else f"-{_short_hash(self.recipe)}"
        return f"{self.recipe.name}-v{self.recipe.version}{custom}/{self.seed}"

    def __call__(self, image: NDArray[Any], key: str) -> Degraded:
        """Degrade one uint8 RGB image (height, width, 3); the input is not modified."""
        check_rgb(image, f"{key}: ")
        recipe = self.recipe
        text = f"{recipe.name}-v{recipe.version}|{recipe.salt}|{self.seed}|{key}"
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))
        count = rng.integers(recipe.count[0], recipe.count[1] + 1)
        drawn = rng.choice(len(self._names), size=count, replace=False, p=self._weights)
        kinds, intact = [], 1.0
        for index in drawn:
            strength = rng.uniform(*recipe.strength)
            image = KINDS[self._names[index]](image, strength, rng)
            kinds.append(self._names[index])
            intact *= 1 - strength
        return Degraded(image, 1 - intact, tuple(kinds))


def _short_hash(recipe: DegradationRecipe) -> str:
    text = repr(recipe).removeprefix("Degradation")  # the class's former name, on which signatures depend
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True)
class View:
    """A transform of an image before embedding: optionally degraded, optionally mirrored.

    Example:
        >>> View().signature, View(Degradation("cross", seed=3), flip=True).signature
        ('clean', 'cross-v1/3+flip')
    """

    degradation: Degradation | None = None
    flip: bool = False

    @property
    def signature(self) -> str:
        """Name of the transform, for the signature of results."""
        return ("clean" if self.degradation is None else self.degradation.signature) + "+flip" * self.flip

    @classmethod
    def from_signature(cls, signature: str) -> "View":
        """The view with this signature.

        Raises:
            InputError: this version cannot reproduce it: a custom recipe, another version of a recipe, or not
                a signature.

        Example:
            >>> View.from_signature("cross-v1/3+flip").signature
            'cross-v1/3+flip'
        """
        name, flip = signature.removesuffix("+flip"), signature.endswith("+flip")
        if name == "clean":
            return cls(flip=flip)
        match = re.fullmatch(r"(\w+)-v(\d+)/(\d+)", name)
        if match and match[1] in RECIPES:
            view = cls(Degradation(match[1], int(match[3])), flip)
            if view.signature == signature:
                return view
        raise InputError(
            f"view {signature!r} cannot be reproduced by this version; expected e.g. 'clean' or "
            "'cross-v1/0+flip' with an unchanged built-in recipe"
        )

    def __call__(self, image: NDArray[np.uint8], key: str) -> Degraded:
        """Apply the view to a uint8 RGB image; a clean view has severity 0."""
        degraded = Degraded(image, 0.0, ()) if self.degradation is None else self.degradation(image, key)
        if not self.flip:
            return degraded
        # A reversed copy by NumPy takes 40 times as long, as long as decoding the image.
        return Degraded(np.asarray(cv2.flip(degraded.image, 1), np.uint8), degraded.severity, degraded.kinds)


def training_views(
    degraded: int = 3, *, recipe: str = "train", seed: int = 0, flip: bool = False
) -> list[View]:
    """The clean view and ``degraded`` independently degraded ones; with ``flip``, also each of them mirrored.

    Raises:
        InputError: ``degraded`` is negative.

    Example:
        >>> [view.signature for view in training_views(2)]
        ['clean', 'train-v1/0', 'train-v1/1']
    """
    if degraded < 0:
        raise InputError(f"the number of degraded views must be 0 or more, got {degraded}")
    degradations = [None, *(Degradation(recipe, seed * 1000 + index) for index in range(degraded))]
    return [
        View(degradation, mirrored) for mirrored in (False, True)[: 1 + flip] for degradation in degradations
    ]
