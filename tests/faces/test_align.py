import cv2
import numpy as np
import pytest

from spherecf.errors import InputError
from spherecf.faces import ARCFACE_POINTS, align
from spherecf.faces.alignment import similarity_transform


def turned(angle: float, scale: float, shift: tuple[float, float]) -> np.ndarray:
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]])


def moved(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return points @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize("angle", [0.0, 0.4, -2.0, 3.1])
@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_a_similarity_is_found_exactly(angle: float, scale: float) -> None:
    matrix = turned(angle, scale, (31.0, -8.0))
    found = similarity_transform(moved(ARCFACE_POINTS, matrix), ARCFACE_POINTS)
    assert np.allclose(moved(moved(ARCFACE_POINTS, matrix), found), ARCFACE_POINTS, atol=1e-9)


def test_no_other_similarity_is_closer() -> None:
    points = ARCFACE_POINTS * 2 + np.random.default_rng(0).normal(0, 3, (5, 2))
    best = similarity_transform(points, ARCFACE_POINTS)

    def error(matrix: np.ndarray) -> float:
        return float(((moved(points, matrix) - ARCFACE_POINTS) ** 2).sum())

    for angle, scale, x, y in np.random.default_rng(1).normal([0, 1, 0, 0], [0.01, 0.01, 0.3, 0.3], (200, 4)):
        change = turned(angle, scale, (x, y))
        other = np.hstack([change[:, :2] @ best[:, :2], (change[:, :2] @ best[:, 2] + change[:, 2])[:, None]])
        assert error(best) <= error(other)


def test_mirrored_landmarks_do_not_mirror_the_face() -> None:
    matrix = similarity_transform(ARCFACE_POINTS * [-1, 1], ARCFACE_POINTS)
    assert np.linalg.det(matrix[:, :2]) > 0


def test_landmarks_land_on_the_template() -> None:
    matrix = turned(0.3, 1.5, (40.0, 20.0))
    photo = np.zeros((260, 260, 3), np.uint8)
    for x, y in moved(ARCFACE_POINTS, matrix):
        cv2.circle(photo, (round(x), round(y)), 4, (255, 255, 255), cv2.FILLED)
    crop = align(photo, moved(ARCFACE_POINTS, matrix))
    assert crop.shape == (112, 112, 3)
    for x, y in ARCFACE_POINTS:
        assert crop[round(y), round(x)].min() > 200


def test_the_template_itself_leaves_the_picture_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    assert np.abs(align(picture, ARCFACE_POINTS).astype(int) - picture).max() <= 1
    assert align(picture, ARCFACE_POINTS, 224).shape == (224, 224, 3)


def test_a_large_photo_does_not_alias() -> None:
    checks = (np.indices((1120, 1120)).sum(0) % 2 * 255).astype(np.uint8)  # finer than the crop can show
    photo = np.repeat(checks[..., None], 3, axis=2)
    assert align(photo, ARCFACE_POINTS * 9.3)[2:].std() < 5  # the first row mixes with what lies outside


@pytest.mark.parametrize(
    "landmarks", [np.zeros((5, 2)), np.full((5, 2), np.nan), ARCFACE_POINTS[:4], ARCFACE_POINTS.ravel()]
)
def test_bad_landmarks_are_refused(landmarks: np.ndarray) -> None:
    with pytest.raises(InputError, match="five distinct finite landmarks"):
        align(np.zeros((112, 112, 3), np.uint8), landmarks)


def test_only_what_lies_around_the_face_is_shrunk_and_the_crop_is_the_same() -> None:
    photo = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (900, 1400, 3), np.uint8), (0, 0), 4)
    points = moved(ARCFACE_POINTS, turned(0.2, 5.0, (400.3, 120.7)))
    middle = np.zeros((2700, 4200, 3), np.uint8)
    middle[900:1800, 1400:2800] = photo
    near, far = align(photo, points), align(middle, points + np.array([1400, 900]))
    assert np.abs(near.astype(int) - far).mean() < 0.5


def test_a_face_of_three_times_the_crop_is_shrunk_by_area() -> None:
    """Rows in turn black and white come out grey; picking single pixels would keep them black and white."""
    photo = np.zeros((336, 336, 3), np.uint8)
    photo[1::2] = 255
    assert align(photo, ARCFACE_POINTS * 3)[2:-2].std() < 40
