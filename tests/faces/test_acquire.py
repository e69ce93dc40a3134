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


def test_a_photo_by_path_bytes_or_pixels(detector: FaceDetector, tmp_path: Path) -> None:
    pixels = portrait()
    path = tmp_path / "face.png"
    path.write_bytes(encode_image(pixels))
    found = [acquire(source, detector) for source in (path, str(path), path.read_bytes(), pixels)]
    assert [one.name for one in found] == [str(path), str(path), "photo", "photo"]
    for one in found:
        (face,) = one.faces
        assert one.size == (184, 224) and one.failure is None and one.reason == ""
        assert np.array_equal(face.crop, found[0].faces[0].crop) and face.crop.shape == (112, 112, 3)
        assert 0.6 <= face.detector_score <= 1 and face.facts.eye_distance_px > 50
    assert acquire(pixels, detector, size=160).faces[0].crop.shape == (160, 160, 3)


def test_many_faces_each_with_its_own_crop(detector: FaceDetector) -> None:
    photo = np.hstack([portrait(index) for index in (0, 12, 25)])
    faces = acquire(photo, detector).faces
    assert len(faces) == 3 and len({face.crop.tobytes() for face in faces}) == 3
    areas = [face.box[2] * face.box[3] * face.detector_score for face in faces]
    assert areas == sorted(areas, reverse=True)


def test_a_reduced_photo_is_measured_in_the_original(
    detector: FaceDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = np.full((1280, 1600, 3), 90, np.uint8)
    photo[300:748, 500:868] = portrait(scale=4.0)
    whole = acquire(jpeg(photo), detector)
    monkeypatch.setattr(acquisition_module, "read_photo", partial(read_photo, decoded=600_000))
    reduced = acquire(jpeg(photo), detector)
    assert whole.size == reduced.size == (1600, 1280) and reduced.notes == ("decoded at 1/2 of its size",)
    one, other = whole.faces[0], reduced.faces[0]
    assert np.abs(one.landmarks - other.landmarks).max() < 4
    assert np.allclose(one.box, other.box, atol=6)
    assert other.facts.eye_distance_px == pytest.approx(one.facts.eye_distance_px, rel=0.02)
    assert other.facts.face_px == pytest.approx(one.facts.face_px, rel=0.02)


def test_a_turned_photo_is_measured_upright(detector: FaceDetector) -> None:
    upright, lying = acquire(jpeg(portrait()), detector), acquire(lying_jpeg(portrait()), detector)
    assert upright.size == lying.size and lying.notes == ("turned by its Exif tag",)
    assert np.abs(upright.faces[0].landmarks - lying.faces[0].landmarks).max() < 3


def test_a_tiny_face_is_found_and_told(detector: FaceDetector) -> None:
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
def test_a_bad_photo_is_an_outcome(
    detector: FaceDetector, source: bytes | str | np.ndarray, failure: Failure, reason: str
) -> None:
    found = acquire(source, detector, name="it")
    assert (found.name, found.faces, found.failure) == ("it", (), failure) and reason in found.reason
    assert (found.size is None) == (failure is not Failure.NO_FACE)


def test_the_limit_is_told_with_the_size(detector: FaceDetector) -> None:
    found = acquire(jpeg(portrait()), detector, max_pixels=10_000)
    assert found.failure is Failure.TOO_LARGE and "184x224" in found.reason and "0.01" in found.reason


def test_a_detection_without_extent_is_no_face() -> None:
    def flat(pixels: np.ndarray) -> list[Face]:
        return [
            Face((0.0, 0.0, 0.0, 0.0), np.zeros((5, 2)), 0.9),
            Face((0.0, 0.0, 9.0, 9.0), ARCFACE_POINTS, 0.8),
        ]

    found = acquire(portrait(), flat)
    assert len(found.faces) == 1 and found.faces[0].detector_score == 0.8


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("index", [0, 30, 121])
def test_a_turned_face_is_named_with_its_angle(detector: FaceDetector, index: int, degrees: int) -> None:
    """Some are found as if they were upright, some not at all: the reason is the same."""
    framed = cv2.copyMakeBorder(portrait(index, 3.0), 80, 80, 80, 80, cv2.BORDER_REPLICATE)
    for picture in (portrait(index), framed):
        found = acquire(jpeg(turned(picture, degrees)), detector)
        assert (found.failure, found.faces) == (Failure.TURNED, ())
        side = {90: "by 90 degrees clockwise", 180: "upside down", 270: "by 90 degrees anticlockwise"}
        assert side[degrees] in found.reason and "no orientation tag" in found.reason


def test_a_wrong_tag_is_named(detector: FaceDetector) -> None:
    found = acquire(lying_jpeg(turned(portrait(), 180)), detector)
    assert found.failure is Failure.TURNED and "tag is wrong" in found.reason


def test_a_picture_on_its_head_does_not_cost_the_faces_beside_it(detector: FaceDetector) -> None:
    large, small = turned(portrait(0, 3.0), 180), portrait(25, 2.0)
    photo = np.full((400, 700, 3), 90, np.uint8)
    photo[20 : 20 + large.shape[0], 20 : 20 + large.shape[1]] = large
    photo[100 : 100 + small.shape[0], 450 : 450 + small.shape[1]] = small
    found = acquire(photo, detector)
    assert found.failure is None and [face.box[0] > 400 for face in found.faces] == [True]


def test_an_unsure_face_that_no_other_direction_betters_is_a_face() -> None:
    asked = []

    def unsure(pixels: np.ndarray) -> list[Face]:
        asked.append(pixels.shape)
        middle = np.array([pixels.shape[1] / 2, pixels.shape[0] / 2])
        return [Face((*(middle - 20), 40.0, 40.0), middle + (ARCFACE_POINTS - 56) / 3, 0.7)]

    assert len(acquire(portrait(), unsure).faces) == 1 and len(asked) > 1
    asked.clear()
    sure = acquire(portrait(), lambda pixels: [replace(face, score=0.95) for face in unsure(pixels)])
    assert len(sure.faces) == 1 and len(asked) == 1


def test_wrong_pixels_are_the_callers_mistake(detector: FaceDetector) -> None:
    with pytest.raises(InputError, match="uint8 RGB pixels"):
        acquire(np.zeros((20, 20, 4), np.uint8), detector)
