"""Detection: YuNet through OpenCV, faces with five landmarks."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.common.files import sha256_file
from spherecf.errors import InputError, ModelError
from spherecf.faces._quiet import quiet
from spherecf.models import default_detector_path


@dataclass(frozen=True)
class Face:
    """A detected face: box (x, y, width, height) and landmarks (5, 2) in pixels, detector score in [0, 1]."""

    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float64]
    score: float


class FaceDetector:
    """YuNet (W. Wu et al., "YuNet: a tiny millisecond-level face detector", 2023), by default from its wheel.

    May be used from several threads at once: OpenCV's detector may not, so each thread gets its own.

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
        self._own = threading.local()
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
            net = self._net()
            net.setInputSize((image.shape[1], image.shape[0]))
            rows = net.detect(np.ascontiguousarray(image[..., ::-1]))[1]
        except cv2.error as error:
            raise ModelError(f"{self.path}: not a YuNet face detector ({error.err or error})") from error
        return sorted(map(_face, [] if rows is None else rows), key=lambda face: -face.score)

    def _net(self) -> cv2.FaceDetectorYN:
        if not hasattr(self._own, "net"):
            with quiet():  # OpenCV 5 warns of a target that it then does not need
                self._own.net = cv2.FaceDetectorYN.create(str(self.path), "", (320, 320), self.min_score)
        net: cv2.FaceDetectorYN = self._own.net
        return net


def _remake(path: Path, min_score: float) -> FaceDetector:
    return FaceDetector(path, min_score=min_score)


def _face(row: NDArray[np.float32]) -> Face:
    x, y, width, height = map(float, row[:4])
    return Face((x, y, width, height), row[4:14].reshape(5, 2).astype(np.float64), float(row[14]))
