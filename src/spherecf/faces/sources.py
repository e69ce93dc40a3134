"""Photos and loose crops as sources of aligned crops, detected and aligned on request."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from spherecf.data import IjbMeta, ImageError, ImageSource, decode_image, encode_image
from spherecf.errors import InputError
from spherecf.faces.alignment import align
from spherecf.faces.detection import ATTEMPTS, SMALL, SURE, FaceDetector, find_upright, turned_text
from spherecf.faces.photo import read_photo

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


class IjbFaces(ImageSource):
    """Every image of a template set once, aligned by its five landmarks; keys are its file names.

    No detector runs, so the crops are those of the published numbers. Whom an image shows is for the template
    protocols to say: labels are -1.

    Args:
        folder: the pictures, ``1.jpg`` and so on, or the folder above its ``loose_crop``.
        meta: from `spherecf.data.read_ijb`, with landmarks.
        size: side of the crops in pixels.

    Raises:
        InputError: the set has no landmarks.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.faces import ARCFACE_POINTS
        >>> one = np.array([1])
        >>> meta = IjbMeta("toy", ["s1/1.pgm"], one, one, points=np.float32(ARCFACE_POINTS[None]))
        >>> IjbFaces(orl_faces().root, meta).image(0).shape
        (112, 112, 3)
    """

    def __init__(self, folder: str | Path, meta: IjbMeta, *, size: int = 112) -> None:
        if meta.points is None:
            raise InputError(
                f"{meta.name}: no landmarks; expected the file *_name_5pts_score.txt among the meta files"
            )
        first = {name: row for row, name in reversed(list(enumerate(meta.files)))}
        self._keys = list(dict.fromkeys(meta.files))
        self._points = meta.points[[first[key] for key in self._keys]]
        self.root, self.size = Path(folder), size
        if (self.root / "loose_crop").is_dir():
            self.root /= "loose_crop"
        super().__init__(meta.name, np.full(len(self._keys), -1, np.int64), [])

    @property
    def keys(self) -> Sequence[str]:
        return self._keys

    @property
    def alignment(self) -> str:
        """What was done to the pictures, for the signature of results."""
        return f"arcface{self.size}+given-points"

    def read(self, index: int) -> bytes:
        """The aligned crop as PNG."""
        return encode_image(self.image(index))

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        where = self.where(index)
        if size not in (None, (self.size, self.size)):
            raise ImageError(where, f"expected a picture of {size}, crops are {self.size}x{self.size}.")
        try:
            data = (self.root / self._keys[index]).read_bytes()
        except OSError as error:
            raise ImageError(
                where, f"cannot read {self.root / self._keys[index]} ({error.strerror})."
            ) from error
        try:
            return align(decode_image(data, where), self._points[index], self.size)
        except InputError as error:
            raise ImageError(where, f"its landmarks are of no use: {error}") from error

    def sizes(self) -> Int64[np.ndarray, " n"]:
        """The most that a crop can take as PNG; the crops themselves are not known before they are made."""
        return np.full(len(self), 3 * self.size**2 + 8 * self.size + 1024, np.int64)
