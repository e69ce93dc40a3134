"""Graded image degradations, and the views in which one image is shown to a backbone.

A degradation is drawn from a named, versioned `DegradationRecipe`, a seed and the image's key alone, so the
same key always gets the same degradation, on any machine, in any order, and the signature ``name-vN/seed``
identifies the set. Training and test recipes draw from different random streams and ranges; the test recipe
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

from spherecf.data.damage import KINDS, Image
from spherecf.errors import InputError


@dataclass(frozen=True)
class DegradationRecipe:
    """The distribution of degradations: kinds with weights, how many at once, and the range of strengths.

    Attributes:
        name: with ``version`` part of the signature of every result.
        kinds: weight of each kind in the draw (see `KINDS`).
        count: minimum and maximum number of kinds combined on one image.
        strength: range of the uniform draw of each kind's strength, within [0, 1].
        salt: separates the random streams of recipes that share a seed.
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
"""``train`` for fitting a head, ``cross`` for the cross-quality sets, ``unseen`` for kinds that ``train``
lacks; ``wide`` has three times the kinds of ``train``, and ``beyond`` kinds that neither of the two has."""


class Degradation:
    """Degrade images deterministically: the draw depends only on recipe, seed and key.

    Args:
        recipe: a name in `RECIPES` or a custom `DegradationRecipe`.
        seed: part of the signature.

    Raises:
        InputError: unknown recipe name or unknown kinds.

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
            raise InputError(f"recipe {recipe.name}: count {recipe.count} must lie within 1..{len(weights)}")
        if not 0 <= recipe.strength[0] <= recipe.strength[1] <= 1:
            raise InputError(f"recipe {recipe.name}: strength {recipe.strength} must lie within 0..1")
        if not (weights >= 0).all() or np.count_nonzero(weights) < recipe.count[1]:
            raise InputError(
                f"recipe {recipe.name}: weights must be 0 or more, {recipe.count[1]} of them above 0"
            )
        self.recipe, self.seed = recipe, seed
        self._names, self._weights = list(recipe.kinds), weights / weights.sum()

    @property
    def signature(self) -> str:
        """``name-vVERSION/seed``, for the signature of results; a custom recipe adds its hash."""
        custom = "" if self.recipe == RECIPES.get(self.recipe.name) else f"-{_short_hash(self.recipe)}"
        return f"{self.recipe.name}-v{self.recipe.version}{custom}/{self.seed}"

    def __call__(self, image: NDArray[Any], key: str) -> Degraded:
        """Degrade one uint8 RGB image (height, width, 3); the input is left as it is."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"{key}: expected uint8 (height, width, 3), got {image.dtype} {image.shape}")
        recipe = self.recipe
        text = f"{recipe.name}-v{recipe.version}|{recipe.salt}|{self.seed}|{key}"
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))
        count = rng.integers(recipe.count[0], recipe.count[1] + 1)
        chosen = rng.choice(len(self._names), size=count, replace=False, p=self._weights)
        kinds, intact = [], 1.0
        for index in chosen:
            strength = rng.uniform(*recipe.strength)
            image = KINDS[self._names[index]](image, strength, rng)
            kinds.append(self._names[index])
            intact *= 1 - strength
        return Degraded(image, 1 - intact, tuple(kinds))


def _short_hash(recipe: DegradationRecipe) -> str:
    text = repr(recipe).removeprefix("Degradation")  # as in all signatures so far
    return hashlib.sha256(text.encode()).hexdigest()[:8]


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
            InputError: this version cannot make it: a custom recipe, another version, or no signature.

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
        raise InputError(f"view {signature!r} cannot be made again by this version")

    def __call__(self, image: NDArray[np.uint8], key: str) -> Degraded:
        """Apply the view to a uint8 RGB image; a clean view has severity 0."""
        shown = Degraded(image, 0.0, ()) if self.degradation is None else self.degradation(image, key)
        if not self.flip:
            return shown
        # NumPy's copy from back to front takes as long as decoding the image, 40 times as long as this.
        return Degraded(np.asarray(cv2.flip(shown.image, 1), np.uint8), shown.severity, shown.kinds)


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
