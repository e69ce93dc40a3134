import cv2
import numpy as np
import pytest

from spherecf.data import open_source, sharpness
from spherecf.faces import ARCFACE_POINTS, CaptureFacts, Face, FaceDetector, acquire
from spherecf.faces.alignment import _HEAD, capture_facts, head_pose


def seen(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The average head turned, from far away: x and y of its points."""
    y, p, r = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return (_HEAD @ (about_z @ about_y @ about_x).T)[:, :2] * 2 + 300


@pytest.mark.parametrize("yaw", [-60, -20, 0, 35])
@pytest.mark.parametrize("pitch", [-25, 0, 20])
def test_pose_of_the_average_head_is_found(yaw: float, pitch: float) -> None:
    found = head_pose(seen(yaw, pitch, 0.0))
    assert abs(found[0] - yaw) < 5 and abs(abs(found[1]) - abs(pitch)) < 6


def test_signs_of_the_pose() -> None:
    moved = ARCFACE_POINTS.copy()
    moved[2, 0] += 8  # the nose to the image's right
    assert head_pose(moved)[0] > 15
    moved = ARCFACE_POINTS.copy()
    moved[2, 1] += 8  # the nose down, towards the mouth
    assert head_pose(moved)[1] > head_pose(ARCFACE_POINTS)[1] + 8
    cos, sin = np.cos(0.5), np.sin(0.5)
    assert abs(head_pose(ARCFACE_POINTS @ np.array([[cos, sin], [-sin, cos]]))[2] - np.degrees(0.5)) < 2


def test_no_pose_of_no_extent() -> None:
    assert np.isnan(head_pose(np.zeros((5, 2)))).all()


def test_facts_are_in_pixels_of_the_original() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    face = Face((-10.0, 0.0, 40.0, 50.0), ARCFACE_POINTS, 0.9)
    whole, half = (capture_facts(face, crop, (200, 200), scale=scale) for scale in (1.0, 0.5))
    assert whole.face_px == (40, 50) and half.face_px == (80, 100) and whole.inside == 0.75
    assert half.eye_distance_px == pytest.approx(2 * whole.eye_distance_px) == pytest.approx(70.5, abs=0.5)
    middle = np.ascontiguousarray(crop[28:100, 22:89])
    grey = cv2.cvtColor(middle, cv2.COLOR_RGB2GRAY)
    assert whole.sharpness == sharpness(middle) and whole.brightness == grey.mean()
    assert whole.contrast == grey.std() and whole.to_dict()["inside"] == 0.75


def test_black_corners_of_a_crop_are_no_sharpness() -> None:
    """A turned face at the edge is cut out with black corners, whose edges are not the photo's."""
    crop = np.full((112, 112, 3), 120, np.uint8)
    cv2.fillPoly(crop, [np.array([[0, 0], [40, 0], [0, 25]])], (0, 0, 0))
    assert capture_facts(Face((0.0, 0.0, 9.0, 9.0), ARCFACE_POINTS, 0.9), crop, (9, 9)).sharpness == 0
    assert sharpness(crop) > 100


@pytest.mark.slow
def test_profiles_are_seen_to_be_turned(shared) -> None:  # type: ignore[no-untyped-def]
    source = open_source(shared / "data" / "cfp")
    detector = FaceDetector()

    def median_turn(kind: str) -> float:
        rows = [row for row, key in enumerate(source.keys) if f"/{kind}/" in key][::80][:25]
        faces = [face for row in rows for face in acquire(source.image(row), detector).faces[:1]]
        return float(np.median([abs(face.facts.yaw_degrees) for face in faces]))

    assert median_turn("frontal") < 10 and median_turn("profile") > 40


def test_an_angle_that_is_not_known_is_none() -> None:
    nan = float("nan")
    facts = CaptureFacts(30.0, nan, nan, nan, 100.0, 100.0, 50.0, 1.0, (60, 80)).to_dict()
    assert [facts[f"{angle}_degrees"] for angle in ("yaw", "pitch", "roll")] == [None] * 3
