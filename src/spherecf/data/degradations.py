"""Graded image degradations, and the views in which one image is shown to a backbone.

A degradation is drawn from a named, versioned `DegradationRecipe`, a seed and the image's key alone, so the
same key always gets the same degradation, on any machine, in any order, and the signature ``name-vN/seed``
identifies the set. Training and test recipes draw from different random streams and ranges; the ``unseen``
recipe has only kinds that no training recipe contains.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.errors import InputError

Image = NDArray[np.uint8]
Operation = Callable[[Image, float, np.random.Generator], Image]

FACE_SHARE = 0.7
"""Width of the face over the width of an ArcFace-aligned crop (about 78 of 112 px)."""


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


def _pixels(image: Any) -> Image:
    """What OpenCV returns, under the type that it is."""
    return np.asarray(image, np.uint8)


def _resize_down_up(image: Image, width: float, down: int, up: int) -> Image:
    size = max(2, round(width))
    small = cv2.resize(image, (size, size), interpolation=down)
    return _pixels(cv2.resize(small, image.shape[1::-1], interpolation=up))


def _resolution(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Down to `FACE_SHARE` x 10 = 7 px across the face, geometric in strength, and up again."""
    up = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
    return _resize_down_up(image, 56 * (10 / 56) ** strength, cv2.INTER_AREA, up)


def _gaussian_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    return _pixels(cv2.GaussianBlur(image, (0, 0), 0.6 + 5.0 * strength, borderType=cv2.BORDER_REFLECT))


def _motion_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    length = 3 + 22 * strength
    size = int(np.ceil(length)) | 1
    kernel = np.zeros((size, size), np.float32)
    angle = rng.uniform(0, np.pi)
    step = 0.5 * (length - 1) * np.array([np.cos(angle), np.sin(angle)])
    centre = np.array([size // 2, size // 2])
    start, end = (np.round((centre + sign * step) * 16).astype(int) for sign in (-1, 1))
    cv2.line(kernel, start.tolist(), end.tolist(), 1.0, 1, cv2.LINE_AA, 4)
    return _pixels(cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT))


def _noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Sensor noise: a signal-dependent and a constant part."""
    pixels = image.astype(np.float32)
    deviation = (4 + 46 * strength) * np.sqrt(0.5 + pixels / 255)
    noisy = pixels + deviation * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _jpeg(image: Image, strength: float, rng: np.random.Generator) -> Image:
    quality = round(40 * (4 / 40) ** strength)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return _pixels(cv2.imdecode(encoded, cv2.IMREAD_COLOR))


def _occlusion(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """A grey, coloured or noisy rectangle or ellipse over up to 60 % of the picture."""
    height, width = image.shape[:2]
    area = (0.08 + 0.52 * strength) * height * width
    aspect = np.exp(rng.uniform(-0.6, 0.6))
    half = np.array([np.sqrt(area * aspect), np.sqrt(area / aspect)]) / 2
    centre = rng.uniform([0.2 * width, 0.2 * height], [0.8 * width, 0.8 * height])
    mask = np.zeros((height, width), np.uint8)
    if rng.random() < 0.5:
        low, high = (centre - half).astype(int), (centre + half).astype(int)
        cv2.rectangle(mask, low.tolist(), high.tolist(), 1, cv2.FILLED)
    else:
        axes = (half * 2 / np.sqrt(np.pi)).astype(int)  # same area as the rectangle
        cv2.ellipse(mask, centre.astype(int).tolist(), axes.tolist(), 0, 0, 360, 1, cv2.FILLED)
    fill = np.broadcast_to(rng.integers(0, 256, 3, np.uint8), image.shape)
    if rng.random() < 0.3:
        fill = rng.integers(0, 256, image.shape, np.uint8)
    return np.where(mask[..., None] > 0, fill, image)


def _lookup(image: Image, curve: NDArray[np.float64]) -> Image:
    return _pixels(cv2.LUT(image, np.clip(255 * curve, 0, 255).astype(np.uint8)))


_RAMP = np.arange(256) / 255


def _exposure(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Too dark or too bright by up to 4 stops, clipped as a sensor clips."""
    stops = (0.5 + 3.5 * strength) * (-1 if rng.random() < 0.6 else 0.7)
    return _lookup(image, _RAMP * 2.0**stops)


def _gamma(image: Image, strength: float, rng: np.random.Generator) -> Image:
    exponent = np.exp((0.3 + 1.3 * strength) * rng.choice([-1, 1]))
    return _lookup(image, _RAMP**exponent)


def _pixelate(image: Image, strength: float, rng: np.random.Generator) -> Image:
    return _resize_down_up(image, 40 * (9 / 40) ** strength, cv2.INTER_AREA, cv2.INTER_NEAREST)


def _defocus(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Disc-shaped point spread, unlike the Gaussian's."""
    radius = round(2 + 9 * strength)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)).astype(np.float32)
    return _pixels(cv2.filter2D(image, -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT))


def _salt_pepper(image: Image, strength: float, rng: np.random.Generator) -> Image:
    draw = rng.random(image.shape[:2], dtype=np.float32)[..., None]
    share = 0.02 + 0.33 * strength
    return np.where(draw < share / 2, 0, np.where(draw < share, 255, image)).astype(np.uint8)


def _haze(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Contrast lost to a bright veil."""
    veil = 0.3 + 0.6 * strength
    return _lookup(image, (1 - veil) * _RAMP + veil * rng.uniform(0.5, 0.9))


def _shift(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Bad alignment: rotated, scaled and moved, as from wrong landmarks."""
    height, width = image.shape[:2]
    angle, scale = 35 * strength * rng.choice([-1, 1]), 1 + 0.3 * strength * rng.uniform(-1, 1)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(angle), float(scale))
    matrix[:, 2] += 0.2 * strength * width * rng.uniform(-1, 1, 2)
    return _pixels(cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE))


KINDS: dict[str, Operation] = {
    "resolution": _resolution,
    "gaussian_blur": _gaussian_blur,
    "motion_blur": _motion_blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "occlusion": _occlusion,
    "exposure": _exposure,
    "gamma": _gamma,
    "pixelate": _pixelate,
    "defocus": _defocus,
    "salt_pepper": _salt_pepper,
    "haze": _haze,
    "shift": _shift,
}
"""Every kind, as ``operation(image, strength in [0, 1], rng)``; the effect grows with strength."""

_COMMON = ("resolution", "gaussian_blur", "motion_blur", "noise", "jpeg", "occlusion", "exposure", "gamma")
_UNSEEN = ("pixelate", "defocus", "salt_pepper", "haze", "shift")

RECIPES: dict[str, DegradationRecipe] = {
    recipe.name: recipe
    for recipe in (
        DegradationRecipe("train", 1, dict.fromkeys(_COMMON, 1.0), (1, 3), (0.0, 1.0), "training"),
        DegradationRecipe(
            "cross", 1, dict.fromkeys(_COMMON, 1.0) | {"resolution": 2.0}, (1, 2), (0.1, 0.8), "test"
        ),
        DegradationRecipe("unseen", 1, dict.fromkeys(_UNSEEN, 1.0), (1, 2), (0.1, 0.8), "test"),
    )
}
"""``train`` for fitting a head, ``cross`` for the cross-quality sets, ``unseen`` for kinds never trained."""


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
        return Degraded(_pixels(cv2.flip(shown.image, 1)), shown.severity, shown.kinds)


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
