import cv2
import numpy as np
import pytest
from tests.faces.pictures import portrait

from spherecf.faces import Face, FaceDetector
from spherecf.faces.detection import find_faces


def scene(*places: tuple[int, int, int]) -> np.ndarray:
    """Grey, with faces (left, top, width) in it, drawn from ORL."""
    photo = np.full((480, 800, 3), 90, np.uint8)
    for index, (left, top, width) in enumerate(places):
        height = width * 112 // 92
        photo[top : top + height, left : left + width] = cv2.resize(portrait(index * 12), (width, height))
    return photo


def test_all_faces_the_largest_first() -> None:
    faces = find_faces(scene((30, 30, 92), (200, 60, 184), (500, 20, 138)), FaceDetector())
    noses = [face.landmarks[2, 0] for face in faces]
    assert len(noses) == 3 and 200 < noses[0] < 384 < 500 < noses[1] < 638 and noses[2] < 122


def test_none_in_a_picture_without_one() -> None:
    assert find_faces(scene(), FaceDetector()) == []


def test_any_source_of_five_points_will_do() -> None:
    """It sees resized and framed pictures; what it finds comes back in the photo's own pixels."""
    shapes = []

    def centre(pixels: np.ndarray) -> list[Face]:
        height, width = pixels.shape[:2]
        shapes.append((height, width))
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        points = middle + np.array([[-9.0, -9], [9, -9], [0, 0], [-9, 9], [9, 9]])
        return [Face((width / 2 - 20, height / 2 - 20, 40.0, 40.0), points, 0.9)]

    (face,) = find_faces(np.zeros((960, 1280, 3), np.uint8), centre)
    assert shapes == [(720, 880)]  # half the size, framed by a quarter of the shorter side
    assert np.allclose(face.box, (600, 440, 80, 80)) and np.allclose(face.landmarks[2], (639.5, 479.5))


@pytest.mark.parametrize("shape", [(1, 10_000, 3), (10_000, 1, 3), (2, 3000, 3), (1, 1, 3)])
def test_none_in_a_line_of_pixels(shape: tuple[int, int, int]) -> None:
    assert find_faces(np.zeros(shape, np.uint8), FaceDetector()) == []
