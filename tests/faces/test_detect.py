import pickle
from concurrent.futures import ThreadPoolExecutor
from inspect import unwrap
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.models import graphs

from spherecf.data import orl_faces
from spherecf.errors import InputError, ModelError
from spherecf.faces import FaceDetector


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


def test_a_face_and_its_landmarks_are_found(detector: FaceDetector) -> None:
    (face,) = detector(orl_faces().image(0))
    x, y, width, height = face.box
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    assert 0.6 <= face.score <= 1
    assert x < left_eye[0] < nose[0] < right_eye[0] < x + width
    assert y < left_eye[1] < nose[1] < left_mouth[1] < y + height and left_mouth[0] < right_mouth[0]


def test_faces_are_sorted_by_score(detector: FaceDetector) -> None:
    left_face, right_face = (orl_faces().image(index) for index in (0, 25))
    faces = detector(np.concatenate([left_face, right_face], axis=1))
    assert len(faces) == 2 and faces[0].score >= faces[1].score
    assert {face.landmarks[2, 0] > 92 for face in faces} == {True, False}


def test_threads_get_the_same_results_as_a_single_thread(detector: FaceDetector) -> None:
    images = [orl_faces().image(index) for index in range(12)]
    sequential = [detector(image)[0].landmarks.tolist() for image in images]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(lambda image: detector(image)[0].landmarks.tolist(), images * 3))
    assert threaded == sequential * 3


def test_a_detector_keeps_its_settings_when_pickled() -> None:
    strict = pickle.loads(pickle.dumps(FaceDetector(min_score=0.99)))
    assert strict.min_score == 0.99 and strict(orl_faces().image(0)) == []


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((9, 9, 4), np.uint8)]
)
def test_arrays_that_are_not_images_are_refused(detector: FaceDetector, image: np.ndarray) -> None:
    with pytest.raises(InputError, match="expected a uint8 RGB image"):
        detector(image)


@pytest.mark.parametrize("score", [0.0, 1.0, float("nan"), "0.5", None])
def test_scores_out_of_range_are_refused(score: object) -> None:
    with pytest.raises(InputError, match="min_score"):
        unwrap(FaceDetector.__init__)(object.__new__(FaceDetector), min_score=score)  # without type checks


def test_files_that_are_not_detectors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        FaceDetector(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("this is text")
    onnx.save(graphs.iresnet(), tmp_path / "recogniser.onnx")
    for name in ("text.onnx", "recogniser.onnx"):
        with pytest.raises(ModelError, match="not a YuNet face detector"):
            FaceDetector(tmp_path / name)
