import cv2
import numpy as np
import pytest

from spherecf.data import open_source, sharpness
from spherecf.faces import ARCFACE_POINTS, CaptureFacts, Face, FaceDetector, acquire
from spherecf.faces.alignment import _HEAD, capture_facts, head_pose


def project_head(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Coordinates (x, y) of the rotated average head's points, in orthographic projection."""
    y, p, r = np.radians([yaw, pitch, roll])
    about_y = np.array([[np.cos(y), 0, -np.sin(y)], [0, 1, 0], [np.sin(y), 0, np.cos(y)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(p), -np.sin(p)], [0, np.sin(p), np.cos(p)]])
    about_z = np.array([[np.cos(r), -np.sin(r), 0], [np.sin(r), np.cos(r), 0], [0, 0, 1]])
    return (_HEAD @ (about_z @ about_y @ about_x).T)[:, :2] * 2 + 300


@pytest.mark.parametrize("yaw", [-60, -20, 0, 35])
@pytest.mark.parametrize("pitch", [-25, 0, 20])
def test_the_pose_of_the_average_head_is_recovered(yaw: float, pitch: float) -> None:
    pose = head_pose(project_head(yaw, pitch, 0.0))
    assert abs(pose[0] - yaw) < 5 and abs(abs(pose[1]) - abs(pitch)) < 6


def test_yaw_pitch_and_roll_have_the_documented_signs() -> None:
    moved = ARCFACE_POINTS.copy()
    moved[2, 0] += 8  # nose moved to the right of the image
    assert head_pose(moved)[0] > 15
    moved = ARCFACE_POINTS.copy()
    moved[2, 1] += 8  # nose moved down, towards the mouth
    assert head_pose(moved)[1] > head_pose(ARCFACE_POINTS)[1] + 8
    cos, sin = np.cos(0.5), np.sin(0.5)
    assert abs(head_pose(ARCFACE_POINTS @ np.array([[cos, sin], [-sin, cos]]))[2] - np.degrees(0.5)) < 2


def test_coinciding_landmarks_have_no_pose() -> None:
    assert np.isnan(head_pose(np.zeros((5, 2)))).all()


def test_facts_are_in_pixels_of_the_original_photo() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    face = Face((-10.0, 0.0, 40.0, 50.0), ARCFACE_POINTS, 0.9)
    full_scale, half_scale = (capture_facts(face, crop, (200, 200), scale=scale) for scale in (1.0, 0.5))
    assert full_scale.face_px == (40, 50) and half_scale.face_px == (80, 100) and full_scale.inside == 0.75
    assert (
        half_scale.eye_distance_px
        == pytest.approx(2 * full_scale.eye_distance_px)
        == pytest.approx(70.5, abs=0.5)
    )
    middle = np.ascontiguousarray(crop[28:100, 22:89])
    grey = cv2.cvtColor(middle, cv2.COLOR_RGB2GRAY)
    assert full_scale.sharpness == sharpness(middle) and full_scale.brightness == grey.mean()
    assert full_scale.contrast == grey.std() and full_scale.to_dict()["inside"] == 0.75


def test_black_corners_of_a_crop_do_not_count_as_sharpness() -> None:
    """The crop of a rotated face at the border has black corners, whose edges are artefacts."""
    crop = np.full((112, 112, 3), 120, np.uint8)
    cv2.fillPoly(crop, [np.array([[0, 0], [40, 0], [0, 25]])], (0, 0, 0))
    assert capture_facts(Face((0.0, 0.0, 9.0, 9.0), ARCFACE_POINTS, 0.9), crop, (9, 9)).sharpness == 0
    assert sharpness(crop) > 100


@pytest.mark.slow
def test_profile_faces_have_a_large_yaw(shared) -> None:  # type: ignore[no-untyped-def]
    source = open_source(shared / "data" / "cfp")
    detector = FaceDetector()

    def median_turn(kind: str) -> float:
        rows = [row for row, key in enumerate(source.keys) if f"/{kind}/" in key][::80][:25]
        faces = [face for row in rows for face in acquire(source.image(row), detector).faces[:1]]
        return float(np.median([abs(face.facts.yaw_degrees) for face in faces]))

    assert median_turn("frontal") < 10 and median_turn("profile") > 40


def test_unknown_angles_are_none() -> None:
    nan = float("nan")
    facts = CaptureFacts(30.0, nan, nan, nan, 100.0, 100.0, 50.0, 1.0, (60, 80)).to_dict()
    assert [facts[f"{angle}_degrees"] for angle in ("yaw", "pitch", "roll")] == [None] * 3
