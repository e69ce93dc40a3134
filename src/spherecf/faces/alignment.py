"""Align faces to the ArcFace template, and measure how they were captured (size, pose, sharpness, light)."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.common.arrays import check_rgb
from spherecf.data import sharpness
from spherecf.errors import InputError
from spherecf.faces.detection import Face

ARCFACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""Left eye, right eye, nose, left and right mouth corner (left in the image) as (x, y) in a 112x112 crop."""


_MAX_EXTENT = 1e9  # of landmarks in pixels, beyond which their transform cannot be computed


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
    """Align a face: a crop (size, size, 3) of a uint8 RGB image (height, width, 3).

    A face much larger than the crop is first shrunk by area averaging, since interpolating between its single
    pixels would alias.

    Args:
        image: the photo.
        landmarks: (5, 2) as (x, y) in pixels, in the order of `ARCFACE_POINTS`.
        size: side of the crop in pixels.

    Raises:
        InputError: the landmarks have another shape, are not finite, coincide, or lie outside the photo;
            the size is below 1; or the photo is not such an image.

    Example:
        >>> photo = np.zeros((300, 300, 3), np.uint8)
        >>> align(photo, ARCFACE_POINTS * 2).shape
        (112, 112, 3)
    """
    points = np.asarray(landmarks, np.float64)
    if points.shape != (5, 2) or not np.isfinite(points).all() or np.ptp(points, axis=0).max() < 1:
        raise InputError(f"expected five distinct finite landmarks (5, 2) in pixels, got {points.tolist()}")
    check_rgb(image)
    check_size(size)
    height, width = image.shape[:2]
    if not ((points >= 0) & (points < (width, height))).all(1).any() or np.ptp(points) > _MAX_EXTENT:
        raise InputError(f"expected landmarks within the photo of {width}x{height} px, got {points.tolist()}")
    target = ARCFACE_POINTS * (size / 112)
    matrix = similarity_transform(points, target)
    shrink = 2 * float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if shrink < 1:
        image, corner = _face_region(image, matrix, size)
        if round(shrink * min(image.shape[:2])) < 1:
            raise InputError(
                f"expected landmarks of a face within the photo of {width}x{height} px, got {points.tolist()}"
            )
        points = points - corner
        image = np.asarray(
            cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA), np.uint8
        )
        points = (points + 0.5) * shrink - 0.5  # coordinates refer to pixel centres
        matrix = similarity_transform(points, target)
    return np.asarray(cv2.warpAffine(image, matrix, (size, size)), np.uint8)


def check_size(size: Any) -> None:
    """Refuse the side of a crop that is not a positive number of pixels."""
    if not isinstance(size, int | np.integer) or size < 1:
        raise InputError(f"size: expected an integer of at least 1 pixel, got {size!r}")


def _face_region(
    image: NDArray[np.uint8], matrix: NDArray[np.float64], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """(the part of the photo that the crop covers, its corner (x, y)), so that only this part is shrunk."""
    corners = np.array([[0, 0], [size, 0], [0, size], [size, size]])
    corners_in_photo = (corners - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
    extent = np.ptp(corners_in_photo, axis=0)
    limits = np.array([image.shape[1], image.shape[0]])
    start = np.clip(np.floor(corners_in_photo.min(0) - 0.1 * extent), 0, limits - 1).astype(np.int64)
    stop = np.clip(np.ceil(corners_in_photo.max(0) + 0.1 * extent), start + 1, limits).astype(np.int64)
    return image[start[1] : stop[1], start[0] : stop[0]], start


_HEAD = np.array([[-31.5, 0, 0], [31.5, 0, 0], [0, 39.5, -32], [-26, 70, -8], [26, 70, -8]], np.float64)
"""Eyes, nose tip and mouth corners of an average head in mm: x to the image's right, y down, z away from the
camera. The eyes are 63 mm apart, the mean of adults; the nose's height puts LFW's median pitch near 0."""

# Focal length of the assumed camera, with the landmarks scaled to 1: so long that perspective is negligible.
_FOCAL_LENGTH = 20.0


@dataclass(frozen=True)
class CaptureFacts:
    """Capture conditions of one face in one photo: explanations for a user, not inputs to the confidence.

    The pose is approximate: a rigid average head is fitted to five landmarks, so individual proportions and
    systematic errors of the detector appear as angles. Expect errors of about 10 degrees for near-frontal
    faces, and more beyond 45 degrees.

    Attributes:
        eye_distance_px: distance between the eye centres in pixels of the original photo; decreases as the
            face turns to the side.
        yaw_degrees: turned towards the right (+) or left (-) of the image.
        pitch_degrees: looking down (+) or up (-).
        roll_degrees: head tilted clockwise (+) or anticlockwise (-) in the image.
        sharpness: `spherecf.data.sharpness` of the central part of the aligned crop, without borders.
        brightness, contrast: mean and standard deviation of its grey levels, 0 .. 255.
        inside: fraction of the face box that is within the image, 0 .. 1.
        face_px: (width, height) of the face box in pixels of the original photo.
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
        """A JSON-serialisable dict, rounded to meaningful digits; None for an unknown angle."""
        return {
            "eye_distance_px": round(self.eye_distance_px, 1),
            "yaw_degrees": _rounded_angle(self.yaw_degrees),
            "pitch_degrees": _rounded_angle(self.pitch_degrees),
            "roll_degrees": _rounded_angle(self.roll_degrees),
            "sharpness": round(self.sharpness, 1),
            "brightness": round(self.brightness, 1),
            "contrast": round(self.contrast, 1),
            "inside": round(self.inside, 3),
            "face_px": list(self.face_px),
        }


def _rounded_angle(degrees: float) -> int | None:
    return None if np.isnan(degrees) else round(degrees)


def capture_facts(
    face: Face, crop: NDArray[np.uint8], size: tuple[int, int], *, scale: float = 1.0
) -> CaptureFacts:
    """Measure the capture facts of a detected face.

    Args:
        face: the face, in the pixels in which it was detected.
        crop: its aligned crop.
        size: (width, height) of the image in which it was detected.
        scale: pixels of that image per pixel of the original photo.

    Example:
        >>> from spherecf.faces import ARCFACE_POINTS
        >>> face = Face((0.0, 0.0, 112.0, 112.0), ARCFACE_POINTS, 0.9)
        >>> facts = capture_facts(face, np.full((112, 112, 3), 90, np.uint8), (56, 112))
        >>> round(facts.eye_distance_px), facts.inside, facts.brightness
        (35, 0.5, 90.0)
    """
    x, y, width, height = face.box
    visible_width = max(0.0, min(x + width, size[0]) - max(x, 0.0))
    visible_height = max(0.0, min(y + height, size[1]) - max(y, 0.0))
    yaw, pitch, roll = head_pose(face.landmarks)
    side = len(crop)
    centre = np.ascontiguousarray(crop[side // 4 : side * 9 // 10, side // 5 : side * 4 // 5])
    grey = cv2.cvtColor(centre, cv2.COLOR_RGB2GRAY)
    return CaptureFacts(
        eye_distance_px=float(np.linalg.norm(face.landmarks[1] - face.landmarks[0])) / scale,
        yaw_degrees=yaw,
        pitch_degrees=pitch,
        roll_degrees=roll,
        sharpness=sharpness(centre),
        brightness=float(grey.mean()),
        contrast=float(grey.std()),
        inside=visible_width * visible_height / (width * height) if width * height > 0 else 0.0,
        face_px=(round(width / scale), round(height / scale)),
    )


def head_pose(landmarks: NDArray[np.floating]) -> tuple[float, float, float]:
    """(yaw, pitch, roll) in degrees, estimated from five landmarks (5, 2); NaN if no head can be fitted.

    The average head `_HEAD`, seen by a distant camera, is fitted by least squares of its projection (G.
    Terzakis and M. Lourakis, "A consistently fast and globally optimal solution to the perspective-n-point
    problem", ECCV 2020, as implemented in OpenCV). Yaw and pitch are those of the face's direction; roll is
    the angle of the line between the eyes in the image.

    Example:
        >>> from spherecf.faces import ARCFACE_POINTS
        >>> yaw, pitch, roll = head_pose(ARCFACE_POINTS)
        >>> abs(yaw) < 3 and abs(pitch) < 10 and abs(roll) < 1
        True
    """
    points = np.asarray(landmarks, np.float64)
    points = points - points.mean(0)
    extent = float(np.abs(points).max())
    if not extent > 0:
        return float("nan"), float("nan"), float("nan")
    camera = np.diag([_FOCAL_LENGTH, _FOCAL_LENGTH, 1.0])
    solved, rotation_vector, _ = cv2.solvePnP(
        _HEAD, points / extent, camera, np.zeros(4), flags=cv2.SOLVEPNP_SQPNP
    )
    if not solved:
        return float("nan"), float("nan"), float("nan")
    rotation = cv2.Rodrigues(rotation_vector)[0]
    forward = -rotation[:, 2]  # direction of the face: the head's z axis points away from the camera
    yaw = np.degrees(np.arctan2(forward[0], -forward[2]))
    pitch = np.degrees(np.arcsin(np.clip(forward[1], -1, 1)))
    eyes = points[1] - points[0]
    return float(yaw), float(pitch), float(np.degrees(np.arctan2(eyes[1], eyes[0])))
