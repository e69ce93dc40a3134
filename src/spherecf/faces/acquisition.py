"""Turn photos into aligned faces with capture facts, one photo at a time or as an image source."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray

from spherecf.data import IjbMeta, ImageError, ImageSource, decode_image, encode_image
from spherecf.errors import InputError
from spherecf.faces.alignment import CaptureFacts, align, capture_facts, check_size
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
    """One face in a photo.

    Attributes:
        crop: (size, size, 3) uint8 RGB, aligned to `ARCFACE_POINTS`.
        box: (x, y, width, height) in pixels of the upright original photo.
        landmarks: (5, 2) points (x, y) in the same pixels.
        detector_score: 0 .. 1.
        facts: size, pose, sharpness and lighting of the face.
    """

    crop: NDArray[np.uint8]
    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float64]
    detector_score: float
    facts: CaptureFacts


@dataclass(frozen=True, eq=False)
class Acquisition:
    """The result of reading one photo and detecting its faces.

    Attributes:
        name: path of the photo, or the name given by the caller.
        size: (width, height) of the upright original; None if it could not be read.
        faces: the faces, main face first (largest box area times detector score).
        failure: kind of failure; None if there is a face.
        reason: the failure as a sentence; "" if there is a face.
        notes: adjustments made in reading the photo, see `Photo`.
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
    """Read a photo, detect and align its faces, and measure the capture conditions.

    An unusable photo does not raise: the result states the failure.

    Args:
        source: a path, the bytes of a file, or RGB pixels (height, width, 3).
        detector: `FaceDetector`, or any callable that maps uint8 RGB pixels to a list of `Face`.
        name: name of the photo; by default its path.
        size: side of the crops in pixels.
        max_pixels: larger images are rejected before they are decoded.

    Raises:
        InputError: ``source`` is an array, but not of uint8 RGB pixels, or none of the above; or the size is
            below 1.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.faces import FaceDetector
        >>> detector = FaceDetector()
        >>> result = acquire(orl_faces().image(0), detector, name="somebody")
        >>> len(result.faces), result.faces[0].crop.shape, result.failure
        (1, (112, 112, 3), None)
        >>> acquire("no/such.jpg", detector).reason
        'cannot be read: no such file.'
    """
    check_size(size)
    try:
        photo = _photo(source, name, max_pixels)
    except PhotoError as error:
        reason = f"{error.problem} {error.hint}".strip()
        return Acquisition(error.where, None, (), error.kind, reason)
    upright, turned = find_upright(photo.pixels, detector)
    faces = tuple(_captured_faces(photo, upright, size))
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


def _captured_faces(photo: Photo, faces: Sequence[Face], size: int) -> Iterator[CapturedFace]:
    height, width = photo.pixels.shape[:2]
    for face in faces:
        try:
            crop = align(photo.pixels, face.landmarks, size)
        except InputError:  # landmarks without extent: a false detection
            continue
        x, y, w, h = (side / photo.scale for side in face.box)
        landmarks = (face.landmarks + 0.5) / photo.scale - 0.5
        facts = capture_facts(face, crop, (width, height), scale=photo.scale)
        yield CapturedFace(crop, (x, y, w, h), landmarks, face.score, facts)


_WHOLE = 1 << 30  # no reduced decoding for data sets; OpenCV's own limit on the number of pixels


class AlignedFaces(ImageSource):
    """Aligned face crops from the photos of another source, with its keys, labels and identities.

    If a photo has several faces, the main one is used (largest box area times detector score). Before
    detection, small images are enlarged and padded, large ones shrunk, and photos rotated by their Exif tag.
    A photo without an upright face raises `ImageError`, so jobs that skip broken images count and list it as
    a failure to acquire.

    Args:
        source: the photos.
        detector: by default `FaceDetector()`.
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
        """Name of the alignment, for the signature of results."""
        return f"arcface{self.size}+yunet-{self.detector.sha256[:8]}"

    def read(self, index: int) -> bytes:
        """The aligned crop as PNG.

        Raises:
            ImageError: the photo cannot be read, or has no upright face.
        """
        return encode_image(self.image(index))

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        where = self.where(index)
        if size not in (None, (self.size, self.size)):
            raise ImageError(
                where, f"expected an image of {size}, but these crops are {self.size}x{self.size}."
            )
        photo = read_photo(self.parent.read(index), name=where, max_pixels=_WHOLE, decoded=_WHOLE).pixels
        faces, turned = find_upright(photo, self.detector)
        if turned:
            raise ImageError(where, f"the face is {turned_text(turned)}.", "Rotate the photo.")
        if not faces:
            height, width = photo.shape[:2]
            raise ImageError(
                where, f"no face found in {width}x{height} px.", "Use a photo with an upright, visible face."
            )
        try:
            return align(photo, faces[0].landmarks, self.size)
        except InputError as error:  # landmarks without extent
            raise ImageError(where, f"the detected face cannot be aligned: {error}") from error

    def sizes(self) -> Int64[np.ndarray, " n"]:
        """Upper bound on the bytes of a crop as PNG: the exact size is known only once it has been made."""
        return np.full(len(self), 3 * self.size**2 + 8 * self.size + 1024, np.int64)

    def fingerprint(self) -> str:
        """Hex SHA-256 of the parent's fingerprint, the detector and the settings; no photo is aligned."""
        settings = (self.detector.sha256, self.detector.min_score, self.size, ATTEMPTS, SMALL, SURE)
        facts = repr(("spherecf.faces/3", self.parent.fingerprint(), *settings))
        return hashlib.sha256(facts.encode()).hexdigest()

    def subset(self, indices: Iterable[int] | Int64[np.ndarray, " m"]) -> "AlignedFaces":
        return AlignedFaces(self.parent.subset(indices), self.detector, size=self.size)


class IjbFaces(ImageSource):
    """The images of a template set, each once, aligned by its five landmarks; keys are the file names.

    No detector is used, so the crops are the same as those behind published results. All labels are -1:
    subjects are defined by the template protocols, not by image.

    Args:
        folder: folder of the images (``1.jpg`` and so on), or the parent of its folder ``loose_crop``.
        meta: from `spherecf.data.read_ijb`, with landmarks.
        size: side of the crops in pixels.

    Raises:
        InputError: the set has no landmarks.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.faces import ARCFACE_POINTS
        >>> ids = np.array([1])
        >>> meta = IjbMeta("toy", ["s1/1.pgm"], ids, ids, points=np.float32(ARCFACE_POINTS[None]))
        >>> IjbFaces(orl_faces().root, meta).image(0).shape
        (112, 112, 3)
    """

    def __init__(self, folder: str | Path, meta: IjbMeta, *, size: int = 112) -> None:
        if meta.points is None:
            raise InputError(
                f"{meta.name}: expected landmarks, but the set has none; the meta files lack "
                "*_name_5pts_score.txt"
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
        """Name of the alignment, for the signature of results."""
        return f"arcface{self.size}+given-points"

    def read(self, index: int) -> bytes:
        """The aligned crop as PNG."""
        return encode_image(self.image(index))

    def image(self, index: int, size: tuple[int, int] | None = None) -> UInt8[np.ndarray, "height width 3"]:
        where = self.where(index)
        if size not in (None, (self.size, self.size)):
            raise ImageError(
                where, f"expected an image of {size}, but these crops are {self.size}x{self.size}."
            )
        try:
            data = (self.root / self._keys[index]).read_bytes()
        except OSError as error:
            raise ImageError(
                where, f"cannot read {self.root / self._keys[index]} ({error.strerror})."
            ) from error
        try:
            return align(decode_image(data, where), self._points[index], self.size)
        except InputError as error:
            raise ImageError(where, f"it cannot be aligned by its landmarks: {error}") from error

    def sizes(self) -> Int64[np.ndarray, " n"]:
        """Upper bound on the bytes of a crop as PNG: the exact size is known only once it has been made."""
        return np.full(len(self), 3 * self.size**2 + 8 * self.size + 1024, np.int64)
