"""From a photo to aligned faces with their facts; a photo without a face is an outcome, not an error."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spherecf.errors import InputError
from spherecf.faces.alignment import align
from spherecf.faces.capture import CaptureFacts, capture_facts
from spherecf.faces.detection import Face, FacePoints, find_upright, turned_text
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
