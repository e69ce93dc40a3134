"""Photos as aligned crops: every image of another source is detected and aligned when it is asked for."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64, UInt8

from spherecf.data import ImageError, ImageSource, encode_image
from spherecf.errors import InputError
from spherecf.faces._align import align
from spherecf.faces._detect import FaceDetector
from spherecf.faces._find import ATTEMPTS, SMALL, SURE, find_upright, turned_text
from spherecf.faces._photo import read_photo

_WHOLE = 1 << 30  # crops of data sets are of all pixels; OpenCV refuses more than these


class AlignedFaces(ImageSource):
    """The photos of another source as aligned crops; keys, labels and identities are the parent's.

    Of several faces the one with the largest box, weighed by its detector score, is taken. Small pictures are
    enlarged and framed before detection, large ones shrunk, and photos turned upright by their Exif tag. A
    photo without an upright face raises `ImageError`, so that passes over the data count and list it
    (failure to acquire).

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
        photo = read_photo(self.parent.read(index), name=where, max_pixels=_WHOLE, decoded=_WHOLE).pixels
        faces, turned = find_upright(photo, self.detector)
        if turned:
            raise ImageError(where, f"the face is {turned_text(turned)}.", "Rotate the picture.")
        if not faces:
            height, width = photo.shape[:2]
            raise ImageError(where, f"no face found in {width}x{height} px.", "Is there one, and upright?")
        try:
            return align(photo, faces[0].landmarks, self.size)
        except InputError as error:  # a detection without extent
            raise ImageError(where, f"the face found cannot be aligned: {error}") from error

    def sizes(self) -> Int64[np.ndarray, " n"]:
        """The most that a crop can take as PNG; the crops themselves are not known before they are made."""
        return np.full(len(self), 3 * self.size**2 + 8 * self.size + 1024, np.int64)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the parent's fingerprint, detector and settings; no photo is aligned for it."""
        settings = (self.detector.sha256, self.detector.min_score, self.size, ATTEMPTS, SMALL, SURE)
        facts = repr(("spherecf.faces/3", self.parent.fingerprint(), *settings))
        return hashlib.sha256(facts.encode()).hexdigest()

    def subset(self, indices: Iterable[int] | Int64[np.ndarray, " m"]) -> "AlignedFaces":
        return AlignedFaces(self.parent.subset(indices), self.detector, size=self.size)
