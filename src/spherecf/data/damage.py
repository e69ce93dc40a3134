"""The kinds of image degradation that recipes draw from, each with a strength in [0, 1].

Positions on the face assume an ArcFace-aligned crop: eyes at 0.46 and mouth at 0.82 of its height.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Operation = Callable[[Image, float, np.random.Generator], Image]

FACE_SHARE = 0.7
"""Width of the face relative to an ArcFace-aligned crop (about 78 of 112 px)."""


def _pixels(image: Any) -> Image:
    """OpenCV's result as uint8, which its type hints do not state."""
    return np.asarray(image, np.uint8)


def _resize_down_up(image: Image, width: float, down: int, up: int) -> Image:
    size = max(2, round(width))
    small = cv2.resize(image, (size, size), interpolation=down)
    return _pixels(cv2.resize(small, image.shape[1::-1], interpolation=up))


def _resolution(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Downscaled and upscaled again; at full strength the face is `FACE_SHARE` x 10 = 7 px wide.

    The size is geometric in strength.
    """
    up = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
    return _resize_down_up(image, 56 * (10 / 56) ** strength, cv2.INTER_AREA, up)


def _gaussian_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    return _pixels(cv2.GaussianBlur(image, (0, 0), 0.6 + 5.0 * strength, borderType=cv2.BORDER_REFLECT))


def _line(length: float, angle: float) -> NDArray[np.float32]:
    """A kernel that blurs along a line."""
    size = int(np.ceil(length)) | 1
    kernel = np.zeros((size, size), np.float32)
    step = 0.5 * (length - 1) * np.array([np.cos(angle), np.sin(angle)])
    centre = np.array([size // 2, size // 2])
    start, end = (np.round((centre + sign * step) * 16).astype(int) for sign in (-1, 1))
    cv2.line(kernel, start.tolist(), end.tolist(), 1.0, 1, cv2.LINE_AA, 4)
    return np.asarray(kernel / kernel.sum(), np.float32)


def _motion_blur(image: Image, strength: float, rng: np.random.Generator) -> Image:
    kernel = _line(3 + 22 * strength, rng.uniform(0, np.pi))
    return _pixels(cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT))


def _noise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Sensor noise with a signal-dependent and a constant part."""
    pixels = image.astype(np.float32)
    deviation = (4 + 46 * strength) * np.sqrt(0.5 + pixels / 255)
    noisy = pixels + deviation * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _jpeg(image: Image, strength: float, rng: np.random.Generator) -> Image:
    quality = round(40 * (4 / 40) ** strength)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return _pixels(cv2.imdecode(encoded, cv2.IMREAD_COLOR))


def _occlusion(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """A rectangle or ellipse of one colour or of noise, over up to 60 % of the image."""
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
    """Under- or overexposed by up to 4 stops, clipped as by a sensor."""
    stops = (0.5 + 3.5 * strength) * (-1 if rng.random() < 0.6 else 0.7)
    return _lookup(image, _RAMP * 2.0**stops)


def _gamma(image: Image, strength: float, rng: np.random.Generator) -> Image:
    exponent = np.exp((0.3 + 1.3 * strength) * rng.choice([-1, 1]))
    return _lookup(image, _RAMP**exponent)


def _pixelate(image: Image, strength: float, rng: np.random.Generator) -> Image:
    return _resize_down_up(image, 40 * (9 / 40) ** strength, cv2.INTER_AREA, cv2.INTER_NEAREST)


def _defocus(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Disc-shaped point spread function."""
    radius = round(2 + 9 * strength)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)).astype(np.float32)
    return _pixels(cv2.filter2D(image, -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT))


def _salt_pepper(image: Image, strength: float, rng: np.random.Generator) -> Image:
    draw = rng.random(image.shape[:2], dtype=np.float32)[..., None]
    share = 0.02 + 0.33 * strength
    return np.where(draw < share / 2, 0, np.where(draw < share, 255, image)).astype(np.uint8)


def _haze(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Contrast reduced by a bright veil."""
    veil = 0.3 + 0.6 * strength
    return _lookup(image, (1 - veil) * _RAMP + veil * rng.uniform(0.5, 0.9))


def _shift(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Misalignment: rotated, scaled and shifted, as by wrong landmarks."""
    height, width = image.shape[:2]
    angle, scale = 35 * strength * rng.choice([-1, 1]), 1 + 0.3 * strength * rng.uniform(-1, 1)
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(angle), float(scale))
    matrix[:, 2] += 0.2 * strength * width * rng.uniform(-1, 1, 2)
    return _pixels(cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE))


def _clip(pixels: NDArray[Any]) -> Image:
    clipped: Image = np.clip(pixels, 0, 255).astype(np.uint8)
    return clipped


def _grid(image: Image) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x and y of every pixel's centre, each (height, width), from 0 to 1."""
    height, width = image.shape[:2]
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return x.astype(np.float32), y.astype(np.float32)


def _sample(image: Image, x: NDArray[Any], y: NDArray[Any]) -> Image:
    """The image interpolated at points in the coordinates of `_grid`."""
    height, width = image.shape[:2]
    points = (x * width - 0.5).astype(np.float32), (y * height - 0.5).astype(np.float32)
    return _pixels(cv2.remap(image, *points, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))


def _mask(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """A cloth mask of any colour from the chin upwards, at full strength up to below the eyes."""
    height, width = image.shape[:2]
    top = 0.88 - 0.36 * strength
    corners = np.array([[0.1, top], [0.5, top - 0.06], [0.9, top], [0.8, 1.05], [0.2, 1.05]])
    covered = np.zeros((height, width), np.uint8)
    cv2.fillPoly(covered, [np.round(corners * [width, height]).astype(np.int32)], 1)
    cloth = 0.15 * image + 0.85 * rng.integers(0, 256, 3)
    return np.where(covered[..., None] > 0, cloth, image).astype(np.uint8)


def _glasses(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Tinted glasses, larger and darker with strength."""
    height, width = image.shape[:2]
    lenses = np.zeros((height, width), np.uint8)
    axes = (round((0.09 + 0.09 * strength) * width), round((0.06 + 0.08 * strength) * height))
    for x in (0.34, 0.66):
        cv2.ellipse(lenses, (round(x * width), round(0.46 * height)), axes, 0, 0, 360, 1, cv2.FILLED)
    cv2.line(lenses, (0, round(0.44 * height)), (width, round(0.44 * height)), 1, max(1, width // 40))
    opacity = 0.5 + 0.5 * strength
    tinted = (1 - opacity) * image + opacity * rng.integers(0, 80, 3)
    return np.where(lenses[..., None] > 0, tinted, image).astype(np.uint8)


def _rain(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Bright, nearly vertical streaks on a veil."""
    drops = (rng.random(image.shape[:2], np.float32) < 0.005 + 0.045 * strength).astype(np.float32)
    length = 6 + 14 * strength
    streaks = cv2.filter2D(drops, -1, _line(length, np.pi / 2 + rng.uniform(-0.5, 0.5)))
    share = np.minimum(streaks * length * 0.6 + 0.2 * strength, 1)[..., None]
    return _clip(image + share * (rng.uniform(180, 255) - image))


def _low_light(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Low light, amplified: few grey levels, and independent noise per colour channel."""
    stops = 2 + 4 * strength
    signal = image * np.float32(2.0**-stops) + rng.normal(0, 1.2, image.shape)
    return _clip(np.round(signal) * 2.0 ** (stops - 0.4 - 0.8 * strength))


def _halftone(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Halftone printing: dots of two tones on a rotated screen."""
    x, y = _grid(image)
    angle, cells = rng.uniform(0, np.pi / 2), 40 * (16 / 40) ** strength
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    screen = 0.5 + 0.25 * (np.cos(2 * np.pi * cells * u) + np.cos(2 * np.pi * cells * v))
    share = 0.3 + 0.7 * strength
    return _clip((1 - share) * image + share * 255 * (image / 255 > screen[..., None]))


def _moire(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Curved bands, shifted between the colour channels, as in a photo of a display."""
    x, y = _grid(image)
    angle, waves = rng.uniform(0, 2 * np.pi), rng.uniform(4, 16)
    phase = waves * (x * np.cos(angle) + y * np.sin(angle) + 0.3 * (x - 0.5) * (y - 0.5))
    bands = np.sin(2 * np.pi * (phase[..., None] + rng.uniform(0, 1, 3)))
    return _clip(image * (1 + (0.15 + 0.6 * strength) * bands))


def _turn_head(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """One half of the face compressed and the other stretched, as if the head were turned or nodding."""
    x, y = _grid(image)
    horizontal = np.exp((0.15 + 0.85 * strength) * rng.choice([-1, 1]))
    vertical = np.exp(0.4 * strength * rng.uniform(-1, 1))
    slope = 0.5 * strength * rng.uniform(-1, 1)
    return _sample(image, x**horizontal, y**vertical + slope * (x - 0.5) * (y - 0.5))


def _half(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Up to 60 % missing from one side: filled with one colour, or with the mirrored remainder."""
    x, y = _grid(image)
    axis, far, lost = rng.integers(2), rng.integers(2), 0.1 + 0.5 * strength
    along = (x, y)[axis]
    along = 1 - along if far else along
    mirrored = np.abs(along - lost) + lost
    source = 1 - mirrored if far else mirrored
    mirrored_image = _sample(image, *((source, y), (x, source))[axis])
    if rng.random() < 0.3:
        return mirrored_image
    return np.where((along < lost)[..., None], rng.integers(0, 256, 3, np.uint8), image)


def _zoom(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """A crop at a random position, enlarged; at full strength it has 0.3 of the image's width."""
    x, y = _grid(image)
    share = 0.92 - 0.62 * strength
    left, top = rng.uniform(0, 1 - share, 2)
    return _sample(image, left + share * x, top + share * y)


def _rotate(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Rotated by up to 180 degrees."""
    height, width = image.shape[:2]
    angle = (10 + 170 * strength) * rng.choice([-1, 1])
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), float(angle), 1)
    return _pixels(cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE))


def _shadow(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """A shadow with a soft edge: one side up to four stops darker than the other."""
    x, y = _grid(image)
    angle, edge = rng.uniform(0, 2 * np.pi), rng.uniform(-0.15, 0.15)
    depth = (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) - edge
    share = 1 / (1 + np.exp(-depth * rng.uniform(8, 40)))
    return _clip(image * 2.0 ** -((0.5 + 3.5 * strength) * share[..., None]))


def _colour_cast(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Coloured light."""
    gains = np.exp((0.1 + 1.2 * strength) * rng.uniform(-1, 1, 3))
    return _clip(image * (gains / gains.mean()))


def _copies(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """A copy of a copy: downscaled, compressed and upscaled three times."""
    width, height = image.shape[1::-1]
    interpolations = (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA)
    for _ in range(3):
        scale = 1 - 0.65 * strength * rng.uniform(0.6, 1)
        size = max(2, round(width * scale)), max(2, round(height * scale))
        small = cv2.resize(image, size, interpolation=interpolations[rng.integers(4)])
        quality = round(50 * (5 / 50) ** strength)
        encoded = cv2.imencode(".webp", small, [cv2.IMWRITE_WEBP_QUALITY, quality])[1]
        decoded = _pixels(cv2.imdecode(encoded, cv2.IMREAD_COLOR))
        image = _pixels(
            cv2.resize(decoded, (width, height), interpolation=interpolations[rng.integers(1, 3)])
        )
    return image


def _texture(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Blended with a pattern; at full strength only the pattern is left, and no face."""
    height, width = image.shape[:2]
    x, y = _grid(image)
    angle, waves = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(0, 3.3))
    along = x * np.cos(angle) + y * np.sin(angle)
    kind = rng.integers(4)
    if kind == 0:
        pattern = along[..., None]
    elif kind == 1:
        pattern = np.sin(2 * np.pi * waves * along)[..., None]
    elif kind == 2:
        pattern = ((waves * x).astype(int) + (waves * y).astype(int))[..., None] % 2
    else:
        size = max(2, round(waves * 3))
        coarse = rng.random((size, size, 3), np.float32)
        pattern = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    span = np.ptp(pattern) or 1
    first, second = rng.integers(0, 256, (2, 3))
    coloured = first + (second - first) * ((pattern - pattern.min()) / span)
    share = 0.4 + 0.6 * strength
    return _clip((1 - share) * image + share * coloured)


def _shuffle(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Tiles are permuted: a few of them, at full strength all."""
    number = int(rng.integers(3, 7))
    height, width = image.shape[0] // number, image.shape[1] // number
    tiles = rng.permutation(number * number)[: max(2, round((0.1 + 0.9 * strength) * number * number))]
    shuffled = image.copy()
    for to, start in zip(tiles.tolist(), np.roll(tiles, 1).tolist()):
        (row, column), (y, x) = divmod(to, number), divmod(start, number)
        shuffled[row * height : (row + 1) * height, column * width : (column + 1) * width] = image[
            y * height : (y + 1) * height, x * width : (x + 1) * width
        ]
    return shuffled


def _posterise(image: Image, strength: float, rng: np.random.Generator) -> Image:
    steps = 9 * (1 / 9) ** strength
    return _lookup(image, np.round(_RAMP * steps) / steps)


def _stripes(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Every other band of lines shifted sideways, as by interlacing."""
    x, y = _grid(image)
    bands = (y * image.shape[0] / rng.integers(1, 4)).astype(int) % 2
    return _sample(image, x + bands * (0.02 + 0.18 * strength) * rng.choice([-1, 1]), y)


def _ghost(image: Image, strength: float, rng: np.random.Generator) -> Image:
    """Double exposure."""
    x, y = _grid(image)
    angle, step = rng.uniform(0, 2 * np.pi), 0.03 + 0.22 * strength
    twin = _sample(image, x + step * np.cos(angle), y + step * np.sin(angle))
    return _pixels(cv2.addWeighted(image, 0.5, twin, 0.5, 0))


# A kind has the name of its function: renaming one changes recipes and what they draw.
KINDS: dict[str, Operation] = {
    operation.__name__.removeprefix("_"): operation
    for operation in (
        _resolution, _gaussian_blur, _motion_blur, _noise, _jpeg, _occlusion, _exposure, _gamma, _pixelate,
        _defocus, _salt_pepper, _haze, _shift, _mask, _glasses, _rain, _low_light, _halftone, _moire,
        _turn_head, _half, _zoom, _rotate, _shadow, _colour_cast, _copies, _texture, _shuffle, _posterise,
        _stripes, _ghost,
    )
}  # fmt: skip
"""Operation by kind: ``operation(image, strength in [0, 1], rng)``; the effect grows with strength."""
