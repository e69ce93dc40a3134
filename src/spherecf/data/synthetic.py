"""Synthetic images: any number of them, for measuring speed and scale without a disk."""

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Int64, UInt8

from spherecf.data.image import ImageError, decode_image, encode_image
from spherecf.data.keys import Keys
from spherecf.data.source import ImageSource
from spherecf.errors import InputError

SYNTHETIC = "synthetic:"
_GRID = 7  # colour patches across a pattern
_NUMBERS = {"images": 0, "identities": 0, "size": 112, "seed": 0}


class SyntheticImages(ImageSource):
    """Deterministic images: a smooth coloured pattern per identity, and noise per image on top.

    Image i shows identity ``i % identities``, so identities differ by one image at most. An image depends
    on seed, identity and its own number only. In memory are its labels, 8 bytes per image, and nothing else
    that grows with their number. Not faces: good for speed, scale and smoke tests.

    Args:
        images: how many.
        identities: of how many different people.
        size: (height, width).
        seed: other images for every seed.
        encoded: how `read` encodes. With ``".png"``, which loses nothing, `image` gives the pixels directly
            and costs no decoding; with ``".jpg"`` it decodes what `read` gives, as for images on disk.

    Raises:
        InputError: no images, no identities, or a picture without pixels.

    Example:
        >>> source = SyntheticImages(1_000_000, 85_742)
        >>> source.keys[85_743], int(source.labels[85_743]), source.image(85_743).shape
        ('1/85743', 1, (112, 112, 3))
    """

    def __init__(
        self,
        images: int,
        identities: int,
        size: tuple[int, int] = (112, 112),
        seed: int = 0,
        encoded: str = ".png",
    ) -> None:
        if min(images, identities, *size) < 1 or seed < 0:
            raise InputError(
                "synthetic images: expected at least 1 image, 1 identity, 1 pixel and a seed from 0 on, got "
                f"{images} images, {identities} identities, size {size}, seed {seed}"
            )
        if encoded not in (".png", ".jpg"):
            raise InputError(f"synthetic images: encoded must be .png or .jpg, got {encoded!r}")
        self.size, self.seed, self.encoded = size, seed, encoded
        labels = np.arange(images, dtype=np.int64)
        labels %= identities
        super().__init__(f"synthetic-{images}-{seed}", labels, list(map(str, range(identities))))
        self._keys = _NumberedKeys(labels)
        # One canvas of noise serves all: each image takes its own window of it.
        canvas = np.random.default_rng(seed).integers(0, 48, (2 * size[0], 2 * size[1], 3), np.uint8)
        self._noise: UInt8[np.ndarray, "height width 3"] = canvas

    @classmethod
    def parse(cls, text: str) -> "SyntheticImages":
        """From ``synthetic:images=N,identities=M[,size=112][,seed=0]``, as commands take it.

        Raises:
            InputError: another word, or a number that is none.
        """
        words = [word.partition("=") for word in text.removeprefix(SYNTHETIC).split(",")]
        given = {name.strip(): value.strip() for name, _, value in words}
        wrong = [name for name, value in given.items() if name not in _NUMBERS or not value.isdecimal()]
        if wrong or len(given) < len(words) or not {"images", "identities"} <= given.keys():
            raise InputError(
                f"{text}: expected {SYNTHETIC}images=N,identities=M, then size=PIXELS or seed=N if wanted"
            )
        numbers = _NUMBERS | {name: int(value) for name, value in given.items()}
        side = numbers["size"]
        return cls(numbers["images"], numbers["identities"], (side, side), numbers["seed"])

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    def read(self, index: int) -> bytes:
        return encode_image(self._pixels(index), self.encoded)

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        if self.encoded == ".jpg":
            return decode_image(self.read(index), self.where(index), size)
        if size not in (None, self.size):
            raise ImageError(self.where(index), f"expected a picture of {size}, these are {self.size}.")
        return self._pixels(index)

    def sizes(self) -> Int64[np.ndarray, " n"]:
        """The most that an image can take; the images themselves are not known before they are made."""
        height, width = self.size
        return np.broadcast_to(np.int64(4 * height * width + 8 * height + 1024), len(self))

    def _pixels(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        height, width = self.size
        label = int(self.labels[index])
        patches = (_mixed(self.seed, label, 3 * _GRID**2) >> np.uint64(56)).astype(np.uint8) // 5 * 4
        pattern = cv2.resize(patches.reshape(_GRID, _GRID, 3), (width, height))
        top, left = (_mixed(self.seed + 1, index, 2) % np.array([height, width], np.uint64)).tolist()
        noise = self._noise[top : top + height, left : left + width]
        return np.asarray(cv2.add(pattern, noise), np.uint8)


class _NumberedKeys(Keys):
    """``identity/image``, both numbers."""

    def __init__(self, labels: Int64[np.ndarray, " n"]) -> None:
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def _get(self, row: int) -> str:
        return f"{self._labels[row]}/{row}"


def _mixed(seed: int, number: int, count: int) -> np.ndarray:
    """``count`` random 64-bit numbers, SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), without a state."""
    start = (seed * 0xD1B54A32D192ED03 + number * 0x8CB92BA72F3D8DD7) % 2**64
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = state ^ (state >> np.uint64(31))
    return mixed
