"""Detection: YuNet through OpenCV; all faces of a photo with five landmarks, the main one first."""

import contextlib
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

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

    May be used from several threads at once: OpenCV's detector may not, so each call takes one that is free.

    Args:
        path: another YuNet ONNX file; by default the hash-checked one of the extra ``demo``.
        min_score: detections below it are not reported.

    Raises:
        MissingDependencyError: no path given, and the wheel is not installed.
        ModelError: the file is no YuNet.
        InputError: ``min_score`` outside (0, 1).

    Example:
        >>> detector = FaceDetector()
        >>> detector(np.zeros((64, 64, 3), np.uint8))
        []
    """

    def __init__(self, path: str | Path | None = None, *, min_score: float = 0.6) -> None:
        if not 0 < min_score < 1:
            raise InputError(f"min_score: expected a number between 0 and 1, got {min_score}")
        self.path, self.min_score = Path(path or default_detector_path()), min_score
        if not self.path.is_file():
            raise ModelError(f"{self.path}: expected a YuNet ONNX file, found no such file")
        self.sha256 = sha256_file(self.path)
        # As many as were ever busy at once, whichever threads called: a short-lived one loads no network.
        self._free: queue.SimpleQueue[cv2.FaceDetectorYN] = queue.SimpleQueue()
        self(np.zeros((32, 32, 3), np.uint8))  # a wrong file fails here and not in the first photo

    def __reduce__(self) -> tuple[object, ...]:
        return _remake, (self.path, self.min_score)

    def __call__(self, image: NDArray[Any]) -> list[Face]:
        """Faces in a uint8 RGB image (height, width, 3), surest first."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(
                f"expected a uint8 RGB image (height, width, 3), got {image.dtype} {image.shape}"
            )
        try:
            net = self._take()
            net.setInputSize((image.shape[1], image.shape[0]))
            rows = net.detect(np.ascontiguousarray(image[..., ::-1]))[1]
        except cv2.error as error:
            raise ModelError(f"{self.path}: not a YuNet face detector ({error.err or error})") from error
        self._free.put(net)  # one that failed is not used again
        return sorted(map(_face, [] if rows is None else rows), key=lambda face: -face.score)

    def _take(self) -> cv2.FaceDetectorYN:
        with contextlib.suppress(queue.Empty):
            return self._free.get_nowait()
        with silence_opencv():  # OpenCV 5 warns of a target that it then does not need
            return cv2.FaceDetectorYN.create(str(self.path), "", (320, 320), self.min_score)


def _remake(path: Path, min_score: float) -> FaceDetector:
    return FaceDetector(path, min_score=min_score)


def _face(row: NDArray[np.float32]) -> Face:
    x, y, width, height = map(float, row[:4])
    return Face((x, y, width, height), row[4:14].reshape(5, 2).astype(np.float64), float(row[14]))


FacePoints = Callable[[NDArray[np.uint8]], Sequence[Face]]
"""Any source of five-point faces: uint8 RGB pixels to `Face` records, say `spherecf.faces.FaceDetector`."""

ATTEMPTS = ((640, 0.25), (320, 0.5), (1600, 0.0))
"""(longest side in pixels, border as a share of the shorter side): most photos; a face that fills the whole
picture; a small face in a large picture. The next one is tried where the one before finds nothing."""

SMALL = 160  # pictures whose shorter side is below this are enlarged by whole numbers until it is not


SURE = 0.91
"""Detector score from which a face counts as upright. Of 120 frontal and 120 profile faces of CFP all frontal
and half of the profile ones have it; turned, and found as if they were upright, 1 in 50."""

_CLOSE = 160  # side in pixels in which a face and as much around it is looked at from all directions
_LEADS = (0.05, 0.03)  # by which one direction must lead, close and in the whole picture
_LYING = 0.8  # score from which a face that was not found upright is one


def find_faces(photo: NDArray[np.uint8], detector: FacePoints) -> list[Face]:
    """The faces of a photo in the photo's own pixels, the main one first: largest box times detector score.

    Small pictures are enlarged and framed before detection, large ones shrunk.

    Example:
        >>> from spherecf.data import orl_faces
        >>> from spherecf.faces import FaceDetector
        >>> left, right = orl_faces().image(0), orl_faces().image(25)
        >>> len(find_faces(np.hstack([left, right]), FaceDetector()))
        2
    """
    return _find(photo, detector, ATTEMPTS)


def find_upright(photo: NDArray[np.uint8], detector: FacePoints) -> tuple[list[Face], int]:
    """`find_faces` without faces that are turned; and if none is left, by how many degrees: 90, 180 or 270
    clockwise, 0 where there is no face either way.

    Detectors find many a face that stands on its head, as if it were upright: its landmarks are then in wrong
    places. Such a face has a low score, and a higher one when the picture is turned.

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
        return faces, _lead(_scores(photo, detector, ATTEMPTS[:2]), _LEADS[1])[0]
    while faces and faces[0].score < SURE:
        turned = _turned(photo, detector, faces[0])
        if not turned:
            break
        faces = faces[1:]
    return faces, 0 if faces else turned


def _turned(photo: NDArray[np.uint8], detector: FacePoints, face: Face) -> int:
    """By how many degrees a face is turned; the whole picture is tried where a close look is not enough."""
    close = _scores(_around(photo, face), detector, ((_CLOSE, 0.0),))
    turned, decided = _lead(close, _LEADS[0])
    return turned if decided else _lead(_scores(photo, detector, ATTEMPTS[:2]), _LEADS[1])[0]


def _scores(
    shown: NDArray[np.uint8], detector: FacePoints, attempts: Sequence[tuple[int, float]]
) -> list[float]:
    """Highest score of a face in a picture as it is, and turned anticlockwise by 90, 180, 270 degrees."""
    pictures = (np.ascontiguousarray(np.rot90(shown, turns)) for turns in range(4))
    return [
        max((face.score for face in _find(picture, detector, attempts)), default=0.0) for picture in pictures
    ]


def _lead(scores: Sequence[float], margin: float) -> tuple[int, bool]:
    """(degrees clockwise of the surest direction if it leads, whether it or the upright one does)."""
    best = max(range(1, 4), key=scores.__getitem__)
    if scores[best] >= max(scores[0] + margin, _LYING):
        return 90 * best, True
    return 0, scores[0] >= scores[best] + margin


def turned_text(degrees: int) -> str:
    """How a face is turned, for messages.

    Example:
        >>> turned_text(180)
        'upside down (turned by 180 degrees)'
    """
    if degrees == 180:
        return "upside down (turned by 180 degrees)"
    return f"lying on its side (turned by 90 degrees {'clockwise' if degrees == 90 else 'anticlockwise'})"


def _around(photo: NDArray[np.uint8], face: Face) -> NDArray[np.uint8]:
    """A square of twice the size of a face's box around it; grey beyond the picture."""
    x, y, width, height = face.box
    scale = _CLOSE / (2 * max(width, height, 1.0))
    shift = _CLOSE / 2 - scale * np.array([x + width / 2, y + height / 2])
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    grey = (127, 127, 127)
    return np.asarray(cv2.warpAffine(photo, matrix, (_CLOSE, _CLOSE), borderValue=grey), np.uint8)


def _find(
    photo: NDArray[np.uint8], detector: FacePoints, attempts: Sequence[tuple[int, float]]
) -> list[Face]:
    for longest, border in attempts:
        scale = _scale(photo.shape[0], photo.shape[1], longest)
        if scale * min(photo.shape[:2]) < 1:  # a line of pixels, of which nothing would be left
            continue
        shown = photo if scale == 1 else _resize(photo, scale)
        frame = round(border * min(shown.shape[:2]))
        framed = cv2.copyMakeBorder(shown, *(frame,) * 4, cv2.BORDER_CONSTANT, value=(127, 127, 127))
        if faces := detector(np.asarray(framed, np.uint8)):
            ranked = sorted(faces, key=lambda face: -face.score * face.box[2] * face.box[3])
            return [_moved(face, frame, scale) for face in ranked]
    return []


def _moved(face: Face, frame: int, scale: float) -> Face:
    x, y, width, height = face.box
    box = ((x - frame) / scale, (y - frame) / scale, width / scale, height / scale)
    return Face(box, (face.landmarks - frame + 0.5) / scale - 0.5, face.score)


def _scale(height: int, width: int, longest: int) -> float:
    enlarged = float(-(-SMALL // min(height, width)))
    return min(max(enlarged, 1.0), longest / max(height, width))


def _resize(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=how), np.uint8)
