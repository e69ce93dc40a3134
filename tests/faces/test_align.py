import inspect
from typing import Any

import cv2
import numpy as np
import pytest

from spherecf.errors import InputError
from spherecf.faces import ARCFACE_POINTS, acquire, align
from spherecf.faces.alignment import similarity_transform


def rotation(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


def transform(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0, 3.1])
@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_an_exact_similarity_is_recovered(angle: float, scale: float) -> None:
    matrix = rotation(angle, scale, (31.0, -8.0))
    recovered = similarity_transform(transform(ARCFACE_POINTS, matrix), ARCFACE_POINTS)
    assert np.allclose(transform(transform(ARCFACE_POINTS, matrix), recovered), ARCFACE_POINTS, atol=1e-9)


def test_the_similarity_has_the_smallest_squared_error() -> None:
    points = ARCFACE_POINTS * 2 + np.random.default_rng(0).normal(0, 3, (5, 2))
    best = similarity_transform(points, ARCFACE_POINTS)

    def error(matrix: np.ndarray) -> float:
        return float(((transform(points, matrix) - ARCFACE_POINTS) ** 2).sum())

    for angle, scale, x, y in np.random.default_rng(1).normal([0, 1, 0, 0], [0.01, 0.01, 0.3, 0.3], (200, 4)):
        change = rotation(angle, scale, (x, y))
        perturbed = np.hstack(
            [change[:, :2] @ best[:, :2], (change[:, :2] @ best[:, 2] + change[:, 2])[:, None]]
        )
        assert error(best) <= error(perturbed)


def test_mirrored_landmarks_do_not_mirror_the_face() -> None:
    matrix = similarity_transform(ARCFACE_POINTS * [-1, 1], ARCFACE_POINTS)
    assert np.linalg.det(matrix[:, :2]) > 0


def test_landmarks_are_mapped_onto_the_template() -> None:
    matrix = rotation(0.3, 1.5, (40.0, 20.0))
    photo = np.zeros((260, 260, 3), np.uint8)
    for x, y in transform(ARCFACE_POINTS, matrix):
        cv2.circle(photo, (round(x), round(y)), 4, (255, 255, 255), cv2.FILLED)
    crop = align(photo, transform(ARCFACE_POINTS, matrix))
    assert crop.shape == (112, 112, 3)
    for x, y in ARCFACE_POINTS:
        assert crop[round(y), round(x)].min() > 200


def test_template_landmarks_leave_the_image_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    assert np.abs(align(image, ARCFACE_POINTS).astype(int) - image).max() <= 1
    assert align(image, ARCFACE_POINTS, 224).shape == (224, 224, 3)


def test_a_large_photo_does_not_alias() -> None:
    # finer than the resolution of the crop
    checks = (np.indices((1120, 1120)).sum(0) % 2 * 255).astype(np.uint8)
    photo = np.repeat(checks[..., None], 3, axis=2)
    assert align(photo, ARCFACE_POINTS * 9.3)[2:].std() < 5  # the first rows mix with the border


@pytest.mark.parametrize(
    "landmarks", [np.zeros((5, 2)), np.full((5, 2), np.nan), ARCFACE_POINTS[:4], ARCFACE_POINTS.ravel()]
)
def test_bad_landmarks_are_refused(landmarks: np.ndarray) -> None:
    with pytest.raises(InputError, match="five distinct finite landmarks"):
        align(np.zeros((112, 112, 3), np.uint8), landmarks)


@pytest.mark.parametrize("outside", [ARCFACE_POINTS + 1e6, ARCFACE_POINTS * 1e5, ARCFACE_POINTS * 1e300])
def test_landmarks_outside_the_photo_are_refused(outside: np.ndarray) -> None:
    photo = np.zeros((112, 112, 3), np.uint8)
    for landmarks in (outside, np.vstack([[[50, 50]], outside[1:]])):
        with pytest.raises(InputError, match="within the photo of 112x112 px"):
            align(photo, landmarks)


@pytest.mark.parametrize("size", [0, -5, 112.0, "112"])
def test_a_size_that_is_no_number_of_pixels_is_refused(size: Any) -> None:
    photo = np.zeros((112, 112, 3), np.uint8)
    with pytest.raises(InputError, match="size: expected"):
        align(photo, ARCFACE_POINTS, size)
    with pytest.raises(InputError, match="size: expected"):  # not "no face found"
        inspect.unwrap(acquire)(photo, lambda _: [], size=size)


def test_pixels_far_from_the_face_do_not_change_the_crop() -> None:
    photo = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (900, 1400, 3), np.uint8), (0, 0), 4)
    points = transform(ARCFACE_POINTS, rotation(0.2, 5.0, (400.3, 120.7)))
    canvas = np.zeros((2700, 4200, 3), np.uint8)
    canvas[900:1800, 1400:2800] = photo
    crop, crop_of_canvas = align(photo, points), align(canvas, points + np.array([1400, 900]))
    assert np.abs(crop.astype(int) - crop_of_canvas).mean() < 0.5


def test_a_large_face_is_reduced_by_area_averaging() -> None:
    """Alternating black and white rows become grey; picking single pixels would not mix them."""
    photo = np.zeros((336, 336, 3), np.uint8)
    photo[1::2] = 255
    assert align(photo, ARCFACE_POINTS * 3)[2:-2].std() < 40
