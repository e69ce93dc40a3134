from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from tests.faces.pictures import jpeg, lying_jpeg, portrait, turned

from spherecf.data import encode_image
from spherecf.errors import InputError
from spherecf.faces import (
    ARCFACE_POINTS,
    Face,
    FaceDetector,
    Failure,
    acquire,
    acquisition as acquisition_module,
    read_photo,
)


@pytest.fixture(scope="module")
def detector() -> FaceDetector:
    return FaceDetector()


def test_photos_are_accepted_as_path_bytes_or_pixels(detector: FaceDetector, tmp_path: Path) -> None:
    pixels = portrait()
    path = tmp_path / "face.png"
    path.write_bytes(encode_image(pixels))
    photos = [acquire(source, detector) for source in (path, str(path), path.read_bytes(), pixels)]
    assert [photo.name for photo in photos] == [str(path), str(path), "photo", "photo"]
    for photo in photos:
        (face,) = photo.faces
        assert photo.size == (184, 224) and photo.failure is None and photo.reason == ""
        assert np.array_equal(face.crop, photos[0].faces[0].crop) and face.crop.shape == (112, 112, 3)
        assert 0.6 <= face.detector_score <= 1 and face.facts.eye_distance_px > 50
    assert acquire(pixels, detector, size=160).faces[0].crop.shape == (160, 160, 3)


def test_each_of_several_faces_gets_its_own_crop(detector: FaceDetector) -> None:
    photo = np.hstack([portrait(index) for index in (0, 12, 25)])
    faces = acquire(photo, detector).faces
    assert len(faces) == 3 and len({face.crop.tobytes() for face in faces}) == 3
    areas = [face.box[2] * face.box[3] * face.detector_score for face in faces]
    assert areas == sorted(areas, reverse=True)


def test_facts_of_a_reduced_photo_are_in_original_pixels(
    detector: FaceDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = np.full((1280, 1600, 3), 90, np.uint8)
    photo[300:748, 500:868] = portrait(scale=4.0)
    full = acquire(jpeg(photo), detector)
    monkeypatch.setattr(acquisition_module, "read_photo", partial(read_photo, decoded=600_000))
    reduced = acquire(jpeg(photo), detector)
    assert full.size == reduced.size == (1600, 1280) and reduced.notes == ("decoded at 1/2 of its size",)
    full_face, reduced_face = full.faces[0], reduced.faces[0]
    assert np.abs(full_face.landmarks - reduced_face.landmarks).max() < 4
    assert np.allclose(full_face.box, reduced_face.box, atol=6)
    assert reduced_face.facts.eye_distance_px == pytest.approx(full_face.facts.eye_distance_px, rel=0.02)
    assert reduced_face.facts.face_px == pytest.approx(full_face.facts.face_px, rel=0.02)


def test_facts_of_a_rotated_photo_are_in_upright_pixels(detector: FaceDetector) -> None:
    upright, rotated = acquire(jpeg(portrait()), detector), acquire(lying_jpeg(portrait()), detector)
    assert upright.size == rotated.size and rotated.notes == ("turned by its Exif tag",)
    assert np.abs(upright.faces[0].landmarks - rotated.faces[0].landmarks).max() < 3


def test_a_tiny_face_is_found_and_its_size_reported(detector: FaceDetector) -> None:
    photo = np.full((600, 800, 3), 90, np.uint8)
    photo[200:244, 300:336] = cv2.resize(portrait(), (36, 44), interpolation=cv2.INTER_AREA)
    (face,) = acquire(photo, detector).faces
    assert face.facts.eye_distance_px < 18


@pytest.mark.parametrize(
    ("source", "failure", "reason"),
    [
        (b"", Failure.EMPTY, "empty"),
        (b"text", Failure.NOT_AN_IMAGE, "not an image"),
        (jpeg(portrait())[:900], Failure.TRUNCATED, "truncated"),
        ("no/such.jpg", Failure.UNREADABLE, "no such file"),
        (np.full((200, 300, 3), 90, np.uint8), Failure.NO_FACE, "no face found in 300x200 px"),
    ],
)
def test_a_bad_photo_is_a_result_not_an_exception(
    detector: FaceDetector, source: bytes | str | np.ndarray, failure: Failure, reason: str
) -> None:
    photo = acquire(source, detector, name="it")
    assert (photo.name, photo.faces, photo.failure) == ("it", (), failure) and reason in photo.reason
    assert (photo.size is None) == (failure is not Failure.NO_FACE)


def test_the_reason_states_image_size_and_limit(detector: FaceDetector) -> None:
    photo = acquire(jpeg(portrait()), detector, max_pixels=10_000)
    assert photo.failure is Failure.TOO_LARGE and "184x224" in photo.reason and "0.01" in photo.reason


def test_detections_of_zero_size_are_ignored() -> None:
    def detect_with_empty_box(pixels: np.ndarray) -> list[Face]:
        return [
            Face((0.0, 0.0, 0.0, 0.0), np.zeros((5, 2)), 0.9),
            Face((0.0, 0.0, 9.0, 9.0), ARCFACE_POINTS, 0.8),
        ]

    photo = acquire(portrait(), detect_with_empty_box)
    assert len(photo.faces) == 1 and photo.faces[0].detector_score == 0.8


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("index", [0, 30, 121])
def test_the_reason_states_the_angle_of_a_rotated_face(
    detector: FaceDetector, index: int, degrees: int
) -> None:
    """The reason is the same whether the detector finds the rotated face as upright or misses it."""
    framed = cv2.copyMakeBorder(portrait(index, 3.0), 80, 80, 80, 80, cv2.BORDER_REPLICATE)
    for image in (portrait(index), framed):
        photo = acquire(jpeg(turned(image, degrees)), detector)
        assert (photo.failure, photo.faces) == (Failure.TURNED, ())
        side = {90: "by 90 degrees clockwise", 180: "upside down", 270: "by 90 degrees anticlockwise"}
        assert side[degrees] in photo.reason and "no orientation tag" in photo.reason


def test_a_wrong_orientation_tag_is_reported(detector: FaceDetector) -> None:
    photo = acquire(lying_jpeg(turned(portrait(), 180)), detector)
    assert photo.failure is Failure.TURNED and "tag is wrong" in photo.reason


def test_an_upside_down_face_does_not_hide_upright_ones(detector: FaceDetector) -> None:
    inverted, upright = turned(portrait(0, 3.0), 180), portrait(25, 2.0)
    photo = np.full((400, 700, 3), 90, np.uint8)
    photo[20 : 20 + inverted.shape[0], 20 : 20 + inverted.shape[1]] = inverted
    photo[100 : 100 + upright.shape[0], 450 : 450 + upright.shape[1]] = upright
    result = acquire(photo, detector)
    assert result.failure is None and [face.box[0] > 400 for face in result.faces] == [True]


def test_a_low_score_face_is_kept_if_no_rotation_scores_higher() -> None:
    requests = []

    def detect_with_low_score(pixels: np.ndarray) -> list[Face]:
        requests.append(pixels.shape)
        middle = np.array([pixels.shape[1] / 2, pixels.shape[0] / 2])
        return [Face((*(middle - 20), 40.0, 40.0), middle + (ARCFACE_POINTS - 56) / 3, 0.7)]

    assert len(acquire(portrait(), detect_with_low_score).faces) == 1 and len(requests) > 1
    requests.clear()
    confident = acquire(
        portrait(), lambda pixels: [replace(face, score=0.95) for face in detect_with_low_score(pixels)]
    )
    assert len(confident.faces) == 1 and len(requests) == 1


def test_invalid_pixel_arrays_raise_input_error(detector: FaceDetector) -> None:
    with pytest.raises(InputError, match="uint8 RGB pixels"):
        acquire(np.zeros((20, 20, 4), np.uint8), detector)
