"""Alignment: the similarity transform that takes five landmarks to the ArcFace template."""

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.errors import InputError

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
        image = np.asarray(
            cv2.resize(image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA), np.uint8
        )
        matrix = similarity_transform((points + 0.5) * shrink - 0.5, target)  # pixel centres, not corners
    return np.asarray(cv2.warpAffine(image, matrix, (size, size)), np.uint8)
