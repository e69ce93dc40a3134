"""All faces of a photo, the main one first: sizes and frames tried in turn until some are found."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.faces._detect import Face

FacePoints = Callable[[NDArray[np.uint8]], Sequence[Face]]
"""Any source of five-point faces: uint8 RGB pixels to `Face` records, say `spherecf.faces.FaceDetector`."""

ATTEMPTS = ((640, 0.25), (320, 0.5), (1600, 0.0))
"""(longest side in pixels, border as a share of the shorter side): most photos; a face that fills the whole
picture; a small face in a large picture. The next one is tried where the one before finds nothing."""

SMALL = 160  # pictures whose shorter side is below this are enlarged by whole numbers until it is not


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
    for longest, border in ATTEMPTS:
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
