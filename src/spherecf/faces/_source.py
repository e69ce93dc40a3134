"""Photos as aligned crops: every image of another source is detected and aligned when it is asked for."""

import hashlib
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from spherecf.data import ImageError, ImageSource, decode_image, encode_image
from spherecf.errors import InputError
from spherecf.faces._align import align
from spherecf.faces._detect import Face, FaceDetector

_ATTEMPTS = ((640, 0.25), (320, 0.5), (1600, 0.0))
"""(longest side in pixels, border as a share of the shorter side): most photos; a face that fills the whole
picture; a small face in a large picture. The next one is tried where the one before finds nothing."""

_SMALL = 160  # pictures whose shorter side is below this are enlarged by whole numbers until it is not


class AlignedFaces(ImageSource):
    """The photos of another source as aligned crops; keys, labels and identities are the parent's.

    Of several faces the one with the largest box, weighed by its detector score, is taken. Small pictures are
    enlarged and framed before detection, large ones shrunk, and photos turned upright by their Exif tag. A
    photo without a face raises `ImageError`, so that passes over the data count and list it (failure to
    acquire).

    Args:
        source: the photos.
        detector: by default `FaceDetector` as it comes.
        size: side of the crops in pixels.

    Example:
        >>> from spherecf.data import orl_faces
        >>> faces = AlignedFaces(orl_faces())
        >>> faces.image(0).shape, faces.keys[0]
        ((112, 112, 3), 's1/1.pgm')
    """

    def __init__(self, source: ImageSource, detector: FaceDetector | None = None, *, size: int = 112) -> None:
        if size < 16:
            raise InputError(f"size: expected at least 16 pixels, got {size}")
        super().__init__(source.name, source.labels, source.identities)
        self.parent, self.detector, self.size = source, detector or FaceDetector(), size
        self.ignored = source.ignored

    @property
    def keys(self) -> Sequence[str]:
        return self.parent.keys

    @property
    def alignment(self) -> str:
        """What was done to the photos, for the signature of results."""
        return f"arcface{self.size}+yunet-{self.detector.sha256[:8]}"

    def read(self, index: int) -> bytes:
        """The aligned crop as PNG.

        Raises:
            ImageError: the photo cannot be read, or has no face.
        """
        return encode_image(self.image(index))

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        where = self.where(index)
        if size not in (None, (self.size, self.size)):
            raise ImageError(where, f"expected a picture of {size}, crops are {self.size}x{self.size}.")
        photo = _upright(self.parent.read(index), where)
        face = find_face(photo, self.detector)
        if face is None:
            height, width = photo.shape[:2]
            raise ImageError(where, f"no face found in {width}x{height} px.", "Is there one, and upright?")
        try:
            return align(photo, face.landmarks, self.size)
        except InputError as error:  # a detection without extent
            raise ImageError(where, f"the face found cannot be aligned: {error}") from error

    def sizes(self) -> Int64[np.ndarray, " n"]:
        """The most that a crop can take as PNG; the crops themselves are not known before they are made."""
        return np.full(len(self), 3 * self.size**2 + 8 * self.size + 1024, np.int64)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the parent's fingerprint, detector and settings; no photo is aligned for it."""
        settings = (self.detector.sha256, self.detector.min_score, self.size, _ATTEMPTS, _SMALL)
        facts = repr(("spherecf.faces/1", self.parent.fingerprint(), *settings))
        return hashlib.sha256(facts.encode()).hexdigest()

    def subset(self, indices: Iterable[int] | Int64[np.ndarray, " m"]) -> "AlignedFaces":
        return AlignedFaces(self.parent.subset(indices), self.detector, size=self.size)


def find_face(photo: NDArray[np.uint8], detector: FaceDetector) -> Face | None:
    """The main face of a photo in the photo's own pixels, or None: largest box times detector score."""
    for longest, border in _ATTEMPTS:
        scale = _scale(photo.shape[0], photo.shape[1], longest)
        shown = photo if scale == 1 else _resize(photo, scale)
        frame = round(border * min(shown.shape[:2]))
        framed = cv2.copyMakeBorder(shown, *(frame,) * 4, cv2.BORDER_CONSTANT, value=(127, 127, 127))
        if faces := detector(np.asarray(framed, np.uint8)):
            best = max(faces, key=lambda face: face.score * face.box[2] * face.box[3])
            x, y, width, height = best.box
            return Face(
                ((x - frame) / scale, (y - frame) / scale, width / scale, height / scale),
                (best.landmarks - frame + 0.5) / scale - 0.5,
                best.score,
            )
    return None


def _scale(height: int, width: int, longest: int) -> float:
    enlarged = float(-(-_SMALL // min(height, width)))
    return min(max(enlarged, 1.0), longest / max(height, width))


def _resize(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=how), np.uint8)


def _upright(data: bytes, where: str) -> NDArray[np.uint8]:
    """Decoded and checked as everywhere, but turned by its Exif tag, which cameras rely on."""
    image = decode_image(data, where)
    if b"Exif" in data[:4096]:
        turned = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        return np.asarray(turned, np.uint8)
    return image
