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
