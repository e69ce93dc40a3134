"""From photos to aligned faces with their facts, one by one or as a source of images."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from spherecf.data import IjbMeta, ImageError, ImageSource, decode_image, encode_image
from spherecf.errors import InputError
from spherecf.faces.alignment import CaptureFacts, align, capture_facts
from spherecf.faces.detection import (
    ATTEMPTS,
    SMALL,
    SURE,
    Face,
    FaceDetector,
    FacePoints,
    find_upright,
    turned_text,
)
from spherecf.faces.photo import MAX_PIXELS, TURNED_BY_TAG, Failure, Photo, PhotoError, read_photo


@dataclass(frozen=True, eq=False)
class CapturedFace:
    """One face of a photo.

    Attributes:
        crop: (size, size, 3) uint8 RGB, aligned to `ARCFACE_POINTS`.
        box: (x, y, width, height) in pixels of the original photo, upright.
        landmarks: (5, 2) likewise.
        detector_score: 0 .. 1.
        facts: size, pose, sharpness, light.
    """

    crop: NDArray[np.uint8]
    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float64]
    detector_score: float
    facts: CaptureFacts


@dataclass(frozen=True, eq=False)
class Acquisition:
    """What a photo gave.

    Attributes:
        name: its path, or what the caller calls it.
        size: (width, height) of the original, upright; None where it could not be read.
        faces: the main one first (largest box times detector score).
        failure: why there is no face, in one word; None where there is one.
        reason: the same as a sentence; "" where there is a face.
        notes: what was done to the photo, see `Photo`.
    """

    name: str
    size: tuple[int, int] | None
    faces: tuple[CapturedFace, ...]
    failure: Failure | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()


def acquire(
    source: str | Path | bytes | NDArray[np.uint8],
    detector: FacePoints,
    *,
    name: str = "",
    size: int = 112,
    max_pixels: int = MAX_PIXELS,
) -> Acquisition:
    """Read a photo, find its faces, align them and say how they were taken. A bad photo never raises.

    Args:
        source: a path, the bytes of a file, or RGB pixels (height, width, 3).
        detector: `FaceDetector`, or anything that maps uint8 RGB pixels to a list of `Face`.
        name: what to call it; by default the path.
        size: side of the crops in pixels.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        InputError: pixels that are not uint8 RGB: a caller's mistake, not a bad photo.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.faces import FaceDetector
        >>> detector = FaceDetector()
        >>> found = acquire(orl_faces().image(0), detector, name="somebody")
        >>> len(found.faces), found.faces[0].crop.shape, found.failure
        (1, (112, 112, 3), None)
        >>> acquire("no/such.jpg", detector).reason
        'cannot be read: no such file.'
    """
    try:
        photo = _photo(source, name, max_pixels)
    except PhotoError as error:
        reason = f"{error.problem} {error.hint}".strip()
        return Acquisition(error.where, None, (), error.kind, reason)
    upright, turned = find_upright(photo.pixels, detector)
    faces = tuple(_captured(photo, upright, size))
    if faces:
        return Acquisition(photo.name, photo.size, faces, notes=photo.notes)
    width, height = photo.size
    failure, reason = Failure.NO_FACE, f"no face found in {width}x{height} px."
    if turned:
        tag = "its orientation tag is wrong" if TURNED_BY_TAG in photo.notes else "it has no orientation tag"
        failure = Failure.TURNED
        reason = f"the face in {width}x{height} px is {turned_text(turned)}, and {tag}: rotate the photo."
    return Acquisition(photo.name, photo.size, (), failure, reason, photo.notes)


def _photo(source: str | Path | bytes | NDArray[np.uint8], name: str, max_pixels: int) -> Photo:
    if not isinstance(source, np.ndarray):
        return read_photo(source, name=name, max_pixels=max_pixels)
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or not source.size:
        raise InputError(f"expected uint8 RGB pixels (height, width, 3), got {source.dtype} {source.shape}")
    return Photo(name or "photo", source, size=(source.shape[1], source.shape[0]))


def _captured(photo: Photo, faces: Sequence[Face], size: int) -> Iterator[CapturedFace]:
    height, width = photo.pixels.shape[:2]
    for face in faces:
        try:
            crop = align(photo.pixels, face.landmarks, size)
        except InputError:  # a detection without extent: no face
            continue
        x, y, w, h = (side / photo.scale for side in face.box)
        landmarks = (face.landmarks + 0.5) / photo.scale - 0.5
        facts = capture_facts(face, crop, (width, height), scale=photo.scale)
        yield CapturedFace(crop, (x, y, w, h), landmarks, face.score, facts)


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
