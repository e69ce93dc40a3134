"""Where a face stands: aligned to the ArcFace template, and how it was taken as plain numbers."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.data import sharpness
from spherecf.errors import InputError
from spherecf.faces.detection import Face

ARCFACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Left eye, right eye, nose, left and right mouth corner (image left) in a 112x112 crop."""


def similarity_transform(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least-squares rotation, uniform scale and shift from ``source`` to ``target`` points: a (2, 3) matrix.

    Source: S. Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    IEEE TPAMI 13(4), 1991, equations 40 to 42.

    Example:
        >>> matrix = similarity_transform(ARCFACE_POINTS * 2 + 5, ARCFACE_POINTS)
        >>> np.allclose(matrix, [[0.5, 0, -2.5], [0, 0.5, -2.5]])
        True
    """
    mean_s, mean_t = source.mean(0), target.mean(0)
    centred = source - mean_s
    u, scales, vt = np.linalg.svd((target - mean_t).T @ centred / len(source))
    signs = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * signs) @ vt
    scale = (scales * signs).sum() / centred.var(0).sum()
    return np.hstack([scale * rotation, (mean_t - scale * rotation @ mean_s)[:, None]])


def align(image: NDArray[np.uint8], landmarks: NDArray[np.floating], size: int = 112) -> NDArray[np.uint8]:
    """The aligned crop (size, size, 3) of a uint8 RGB image (height, width, 3).

    A face much larger than the crop is first shrunk by area, since picking single pixels of it would alias.

    Args:
        image: the photo.
        landmarks: (5, 2) as (x, y) in pixels, in the order of `ARCFACE_POINTS`.
        size: side of the crop.

    Raises:
        InputError: landmarks of another shape, not finite, or all in one place.

    Example:
        >>> photo = np.zeros((300, 300, 3), np.uint8)
        >>> align(photo, ARCFACE_POINTS * 2).shape
        (112, 112, 3)
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all() or np.ptp(points, axis=0).max() < 1:
        raise InputError(f"expected five distinct finite landmarks (5, 2) in pixels, got {points.tolist()}")
    target = ARCFACE_POINTS * (size / 112)
    matrix = similarity_transform(points, target)
    shrink = 2 * float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if shrink < 1:
        image, corner = _around(image, matrix, size)
        points = points - corner
        image = np.asarray(
            cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA), np.uint8
        )
        matrix = similarity_transform((points + 0.5) * shrink - 0.5, target)  # pixel centres, not corners
    return np.asarray(cv2.warpAffine(image, matrix, (size, size)), np.uint8)


def _around(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The part of a photo that a crop is made of, and its corner (x, y); the rest need not be shrunk."""
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]])
    there = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    extent = np.ptp(there, axis=0)
    limits = np.array([image.shape[1], image.shape[0]])
    low = np.clip(np.floor(there.min(0) - 0.1 * extent), 0, limits - 1).astype(np.int64)
    high = np.clip(np.ceil(there.max(0) + 0.1 * extent), low + 1, limits).astype(np.int64)
    return image[low[1] : high[1], low[0] : high[0]], low


_HEAD = np.array([[-31.5, 0, 0], [31.5, 0, 0], [0, 39.5, -32], [-26, 70, -8], [26, 70, -8]], np.float64)
"""Eyes, nose tip and mouth corners of an average head in mm: x to the image's right, y down, z away from the
camera. The eyes are 63 mm apart, the mean of adults; the nose's height puts LFW's median pitch near 0."""

_DISTANCE = 20.0  # of the assumed camera in eye distances: far enough that perspective hardly shows


@dataclass(frozen=True)
class CaptureFacts:
    """Facts of one face in one photo. They explain; no confidence is made of them.

    The pose is rough: a rigid average head is fitted to five landmarks, so a person's own proportions and the
    detector's habits show up as angles. Trust it to about 10 degrees near the front, less beyond 45.

    Attributes:
        eye_distance_px: between the eyes' centres, in pixels of the original photo; shrinks as a face turns.
        yaw_degrees: turned to the image's right (+) or left (-).
        pitch_degrees: looking down (+) or up (-).
        roll_degrees: the head leaning clockwise (+) or anticlockwise (-) in the image.
        sharpness: `spherecf.data.sharpness` of the middle of the aligned crop, where no border shows.
        brightness, contrast: mean and standard deviation of its grey levels, 0 .. 255.
        inside: share of the face's box that lies within the picture, 0 .. 1.
        face_px: (width, height) of the box in pixels of the original photo.
    """

    eye_distance_px: float
    yaw_degrees: float
    pitch_degrees: float
    roll_degrees: float
    sharpness: float
    brightness: float
    contrast: float
    inside: float
    face_px: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, rounded to what the numbers can bear; None for an angle that is not known."""
        return {
            "eye_distance_px": round(self.eye_distance_px, 1),
            "yaw_degrees": _whole(self.yaw_degrees),
            "pitch_degrees": _whole(self.pitch_degrees),
            "roll_degrees": _whole(self.roll_degrees),
            "sharpness": round(self.sharpness, 1),
            "brightness": round(self.brightness, 1),
            "contrast": round(self.contrast, 1),
            "inside": round(self.inside, 3),
            "face_px": list(self.face_px),
        }


def _whole(degrees: float) -> int | None:
    return None if np.isnan(degrees) else round(degrees)


def capture_facts(
    face: Face, crop: NDArray[np.uint8], size: tuple[int, int], *, scale: float = 1.0
) -> CaptureFacts:
    """The facts of a face found in pixels of ``size`` (width, height), ``scale`` per pixel of the original.

    Example:
        >>> from spherecf.faces import ARCFACE_POINTS
        >>> face = Face((0.0, 0.0, 112.0, 112.0), ARCFACE_POINTS, 0.9)
        >>> facts = capture_facts(face, np.full((112, 112, 3), 90, np.uint8), (56, 112))
        >>> round(facts.eye_distance_px), facts.inside, facts.brightness
        (35, 0.5, 90.0)
    """
    x, y, width, height = face.box
    across = max(0.0, min(x + width, size[0]) - max(x, 0.0))
    down = max(0.0, min(y + height, size[1]) - max(y, 0.0))
    yaw, pitch, roll = head_pose(face.landmarks)
    side = len(crop)
    middle = np.ascontiguousarray(crop[side // 4 : side * 9 // 10, side // 5 : side * 4 // 5])
    grey = cv2.cvtColor(middle, cv2.COLOR_RGB2GRAY)
    return CaptureFacts(
        eye_distance_px=float(np.linalg.norm(face.landmarks[1] - face.landmarks[0])) / scale,
        yaw_degrees=yaw,
        pitch_degrees=pitch,
        roll_degrees=roll,
        sharpness=sharpness(middle),
        brightness=float(grey.mean()),
        contrast=float(grey.std()),
        inside=across * down / (width * height) if width * height > 0 else 0.0,
        face_px=(round(width / scale), round(height / scale)),
    )


def head_pose(landmarks: NDArray[np.floating]) -> tuple[float, float, float]:
    """(yaw, pitch, roll) in degrees, estimated from five landmarks (5, 2); NaN where no head fits them.

    The average head `_HEAD` seen by a far camera is fitted by least squares of the projection (G. Terzakis
    and M. Lourakis, "A consistently fast and globally optimal solution to the perspective-n-point problem",
    ECCV 2020, in OpenCV). The head's rotation is then read as roll in the image after pitch after yaw.

    Example:
        >>> from spherecf.faces import ARCFACE_POINTS
        >>> yaw, pitch, roll = head_pose(ARCFACE_POINTS)
        >>> abs(yaw) < 3 and abs(pitch) < 10 and abs(roll) < 1
        True
    """
    points = np.asarray(landmarks, np.float64)
    points = points - points.mean(0)
    length = float(np.abs(points).max())
    if not length > 0:
        return float("nan"), float("nan"), float("nan")
    camera = np.diag([_DISTANCE, _DISTANCE, 1.0])
    solved, turn, _ = cv2.solvePnP(_HEAD, points / length, camera, np.zeros(4), flags=cv2.SOLVEPNP_SQPNP)
    if not solved:
        return float("nan"), float("nan"), float("nan")
    rotation = cv2.Rodrigues(turn)[0]
    forward = -rotation[:, 2]  # where the face looks: z of the head points away from the camera
    yaw = np.degrees(np.arctan2(forward[0], -forward[2]))
    pitch = np.degrees(np.arcsin(np.clip(forward[1], -1, 1)))
    eyes = points[1] - points[0]
    return float(yaw), float(pitch), float(np.degrees(np.arctan2(eyes[1], eyes[0])))
