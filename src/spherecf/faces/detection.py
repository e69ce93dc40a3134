"""Face detection with YuNet through OpenCV: all faces of a photo with five landmarks, main face first."""

import contextlib
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.common.arrays import check_rgb
from spherecf.common.files import sha256_file
from spherecf.errors import InputError, ModelError
from spherecf.faces.photo import silence_opencv
from spherecf.models import default_detector_path


@dataclass(frozen=True)
class Face:
    """A detected face: box (x, y, width, height) and landmarks (5, 2) in pixels, detector score in [0, 1]."""

    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float64]
    score: float


class FaceDetector:
    """YuNet (W. Wu et al., "YuNet: a tiny millisecond-level face detector", 2023), by default from its wheel.

    Thread-safe: OpenCV's detector is not, so each call uses a network that no other call is using.

    Args:
        path: another YuNet ONNX file; by default the hash-checked one that the extra ``demo`` installs.
        min_score: minimum score; detections below it are not returned.

    Raises:
        MissingDependencyError: no path is given, and the wheel is not installed.
        ModelError: the file does not exist or is not a YuNet model.
        InputError: ``min_score`` is outside (0, 1).

    Example:
        >>> detector = FaceDetector()
        >>> detector(np.zeros((64, 64, 3), np.uint8))
        []
    """

    def __init__(self, path: str | Path | None = None, *, min_score: float = 0.6) -> None:
        if not isinstance(min_score, int | float | np.floating) or not 0 < min_score < 1:
            raise InputError(f"min_score: expected a number between 0 and 1, got {min_score!r}")
        self.path, self.min_score = Path(path or default_detector_path()), min_score
        if not self.path.is_file():
            raise ModelError(f"{self.path}: expected a YuNet ONNX file, but there is no such file")
        self.sha256 = sha256_file(self.path)
        # One network per simultaneous call, not per thread, so short-lived threads need not load one.
        self._free: queue.SimpleQueue[cv2.FaceDetectorYN] = queue.SimpleQueue()
        self(np.zeros((32, 32, 3), np.uint8))  # a wrong file fails here, not with the first photo

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.path, self.min_score)

    def __call__(self, image: NDArray[Any]) -> list[Face]:
        """Faces in a uint8 RGB image (height, width, 3), highest score first."""
        check_rgb(image)
        try:
            net = self._take()
            net.setInputSize((image.shape[1], image.shape[0]))
            rows = net.detect(np.ascontiguousarray(image[..., ::-1]))[1]
        except cv2.error as error:
            raise ModelError(f"{self.path}: not a YuNet face detector ({error.err or error})") from error
        self._free.put(net)  # a network that failed is not put back
        return sorted(map(_face, [] if rows is None else rows), key=lambda face: -face.score)

    def _take(self) -> cv2.FaceDetectorYN:
        with contextlib.suppress(queue.Empty):
            return self._free.get_nowait()
        with silence_opencv():  # OpenCV 5 warns about a target that it does not use
            return cv2.FaceDetectorYN.create(str(self.path), "", (320, 320), self.min_score)


def _rebuild(path: Path, min_score: float) -> FaceDetector:
    return FaceDetector(path, min_score=min_score)


def _face(row: NDArray[np.float32]) -> Face:
    x, y, width, height = map(float, row[:4])
    return Face((x, y, width, height), row[4:14].reshape(5, 2).astype(np.float64), float(row[14]))


FacePoints = Callable[[NDArray[np.uint8]], Sequence[Face]]
"""Any detector of faces with five landmarks: uint8 RGB pixels to `Face` records, e.g. `FaceDetector`."""

ATTEMPTS = ((640, 0.25), (320, 0.5), (1600, 0.0))
"""Detection attempts, as (longest side in pixels, border as a fraction of the shorter side): for most photos;
for a face that fills the whole image; for a small face in a large image. Each is tried only if the one before
it finds no face."""

SMALL = 160  # an image whose shorter side is below this is enlarged by a whole factor until it is not


SURE = 0.91
"""Detector score from which a face counts as upright. Of 120 frontal and 120 profile faces of CFP, all
frontal and half of the profile faces reach it; of turned faces detected as if they were upright, 1 in 50."""

_CLOSE_UP = 160  # side in pixels of the close-up of a face that is tested in all four orientations
_MARGINS = (0.05, 0.03)  # score margin for an orientation to win, in the close-up and in the whole image
_MIN_TURNED_SCORE = 0.8  # minimum score of a turned face


def find_faces(photo: NDArray[np.uint8], detector: FacePoints) -> list[Face]:
    """The faces of a photo in the photo's pixels, main face first (largest box area times detector score).

    Before detection, small images are enlarged and padded, large ones shrunk.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.faces import FaceDetector
        >>> left, right = orl_faces().image(0), orl_faces().image(25)
        >>> len(find_faces(np.hstack([left, right]), FaceDetector()))
        2
    """
    return _find(photo, detector, ATTEMPTS)


def find_upright(photo: NDArray[np.uint8], detector: FacePoints) -> tuple[list[Face], int]:
    """(upright faces as by `find_faces`, clockwise rotation in degrees if there are only turned faces).

    The rotation is 90, 180 or 270, and 0 if there is an upright face or no face at all. Detectors often
    report an upside-down face as if it were upright, with its landmarks in wrong places. Such a face has a
    low score, which rises when the image is rotated.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.faces import FaceDetector
        >>> photo, detector = orl_faces().image(0), FaceDetector()
        >>> faces, turned = find_upright(np.rot90(photo, 2), detector)
        >>> len(faces), turned
        (0, 180)
    """
    photo = np.ascontiguousarray(photo)
    faces, turned = find_faces(photo, detector), 0
    if not faces:
        return faces, _winner(_scores(photo, detector, ATTEMPTS[:2]), _MARGINS[1])[0]
    while faces and faces[0].score < SURE:
        turned = _rotation(photo, detector, faces[0])
        if not turned:
            break
        faces = faces[1:]
    return faces, 0 if faces else turned


def _rotation(photo: NDArray[np.uint8], detector: FacePoints, face: Face) -> int:
    """Clockwise rotation of a face in degrees, from its close-up or, if that is unclear, the whole image."""
    scores = _scores(_close_up(photo, face), detector, ((_CLOSE_UP, 0.0),))
    degrees, decided = _winner(scores, _MARGINS[0])
    return degrees if decided else _winner(_scores(photo, detector, ATTEMPTS[:2]), _MARGINS[1])[0]


def _scores(
    image: NDArray[np.uint8], detector: FacePoints, attempts: Sequence[tuple[int, float]]
) -> list[float]:
    """Highest face score in an image as it is, and rotated anticlockwise by 90, 180 and 270 degrees."""
    rotated = (np.ascontiguousarray(np.rot90(image, turns)) for turns in range(4))
    return [max((face.score for face in _find(image, detector, attempts)), default=0.0) for image in rotated]


def _winner(scores: Sequence[float], margin: float) -> tuple[int, bool]:
    """(clockwise rotation with the best score, or 0; whether it or the upright orientation wins clearly)."""
    best = max(range(1, 4), key=scores.__getitem__)
    if scores[best] >= max(scores[0] + margin, _MIN_TURNED_SCORE):
        return 90 * best, True
    return 0, scores[0] >= scores[best] + margin


def turned_text(degrees: int) -> str:
    """The rotation of a face in words, for messages.

    Example:
        >>> turned_text(180)
        'upside down (turned by 180 degrees)'
    """
    if degrees == 180:
        return "upside down (turned by 180 degrees)"
    return f"lying on its side (turned by 90 degrees {'clockwise' if degrees == 90 else 'anticlockwise'})"


def _close_up(photo: NDArray[np.uint8], face: Face) -> NDArray[np.uint8]:
    """A close-up of a face: a square of twice the size of its box, grey outside the image."""
    x, y, width, height = face.box
    scale = _CLOSE_UP / (2 * max(width, height, 1.0))
    shift = _CLOSE_UP / 2 - scale * np.array([x + width / 2, y + height / 2])
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    grey = (127, 127, 127)
    return np.asarray(cv2.warpAffine(photo, matrix, (_CLOSE_UP, _CLOSE_UP), borderValue=grey), np.uint8)


def _find(
    photo: NDArray[np.uint8], detector: FacePoints, attempts: Sequence[tuple[int, float]]
) -> list[Face]:
    for longest_side, border in attempts:
        scale = _scale(photo.shape[0], photo.shape[1], longest_side)
        if scale * min(photo.shape[:2]) < 1:  # so narrow that shrinking would leave no pixel
            continue
        scaled = photo if scale == 1 else _resize(photo, scale)
        padding = round(border * min(scaled.shape[:2]))
        padded = cv2.copyMakeBorder(scaled, *(padding,) * 4, cv2.BORDER_CONSTANT, value=(127, 127, 127))
        if faces := detector(np.asarray(padded, np.uint8)):
            ranked = sorted(faces, key=lambda face: -face.score * face.box[2] * face.box[3])
            return [_to_photo(face, padding, scale) for face in ranked]
    return []


def _to_photo(face: Face, padding: int, scale: float) -> Face:
    x, y, width, height = face.box
    box = ((x - padding) / scale, (y - padding) / scale, width / scale, height / scale)
    return Face(box, (face.landmarks - padding + 0.5) / scale - 0.5, face.score)


def _scale(height: int, width: int, longest_side: int) -> float:
    enlarged = float(-(-SMALL // min(height, width)))
    return min(max(enlarged, 1.0), longest_side / max(height, width))


def _resize(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation), np.uint8)
