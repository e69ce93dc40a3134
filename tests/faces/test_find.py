import cv2
import numpy as np
import pytest
from tests.faces.pictures import portrait

from spherecf.faces import Face, FaceDetector
from spherecf.faces.detection import find_faces


def scene(*positions: tuple[int, int, int]) -> np.ndarray:
    """A grey photo with ORL faces pasted at (left, top, width)."""
    photo = np.full((480, 800, 3), 90, np.uint8)
    for index, (left, top, width) in enumerate(positions):
        height = width * 112 // 92
        photo[top : top + height, left : left + width] = cv2.resize(portrait(index * 12), (width, height))
    return photo


def test_faces_are_sorted_by_size() -> None:
    faces = find_faces(scene((30, 30, 92), (200, 60, 184), (500, 20, 138)), FaceDetector())
    noses = [face.landmarks[2, 0] for face in faces]
    assert len(noses) == 3 and 200 < noses[0] < 384 < 500 < noses[1] < 638 and noses[2] < 122


def test_a_photo_without_faces_gives_none() -> None:
    assert find_faces(scene(), FaceDetector()) == []


def test_any_detector_of_five_landmarks_can_be_used() -> None:
    """The detector gets resized and padded images; results are mapped back to pixels of the photo."""
    shapes = []

    def detect_centre(pixels: np.ndarray) -> list[Face]:
        height, width = pixels.shape[:2]
        shapes.append((height, width))
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        points = middle + np.array([[-9.0, -9], [9, -9], [0, 0], [-9, 9], [9, 9]])
        return [Face((width / 2 - 20, height / 2 - 20, 40.0, 40.0), points, 0.9)]

    (face,) = find_faces(np.zeros((960, 1280, 3), np.uint8), detect_centre)
    assert shapes == [(720, 880)]  # half the size, padded by a quarter of the shorter side
    assert np.allclose(face.box, (600, 440, 80, 80)) and np.allclose(face.landmarks[2], (639.5, 479.5))


@pytest.mark.parametrize("shape", [(1, 10_000, 3), (10_000, 1, 3), (2, 3000, 3), (1, 1, 3)])
def test_degenerate_photos_give_no_faces(shape: tuple[int, int, int]) -> None:
    assert find_faces(np.zeros(shape, np.uint8), FaceDetector()) == []
