"""The reasons that explain a low quality, from measurements of the face."""

from dataclasses import replace

import pytest

from spherecf.faces import CaptureFacts
from spherecf.photos.assessment import explain

GOOD = CaptureFacts(60.0, 5.0, -4.0, 2.0, 300.0, 120.0, 45.0, 1.0, (90, 120))


def test_a_good_face_has_no_reason() -> None:
    assert explain(GOOD) == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"eye_distance_px": 14.2}, "eyes 14 px apart"),
        ({"yaw_degrees": -52.3}, "turned 52 degrees"),
        ({"roll_degrees": -170.0}, "upside down"),
        ({"pitch_degrees": 40.0}, "looking down"),
        ({"pitch_degrees": -40.0}, "looking up"),
        ({"sharpness": 9.0}, "blurred"),
        ({"brightness": 20.0}, "dark"),
        ({"brightness": 240.0}, "overexposed"),
        ({"contrast": 5.0}, "low contrast"),
        ({"inside": 0.6}, "cut off by the image border"),
    ],
)
def test_each_measurement_has_a_reason(change: dict[str, float], reason: str) -> None:
    assert explain(replace(GOOD, **change)) == (reason,)


def test_eye_distance_is_corrected_for_yaw() -> None:
    assert explain(replace(GOOD, eye_distance_px=18.0, yaw_degrees=60.0)) == ("turned 60 degrees",)
    assert explain(replace(GOOD, eye_distance_px=9.0, yaw_degrees=60.0))[0] == "eyes 9 px apart"


def test_an_unknown_pose_is_no_reason() -> None:
    nan = float("nan")
    assert explain(replace(GOOD, yaw_degrees=nan, pitch_degrees=nan, roll_degrees=nan)) == ()


def test_small_eye_distance_is_reported_without_a_pose() -> None:
    nan = float("nan")
    assert explain(CaptureFacts(5.0, nan, nan, nan, 100.0, 100.0, 50.0, 1.0, (9, 9))) == ("eyes 5 px apart",)


def test_turned_is_reported_beyond_35_degrees() -> None:
    """Profiles start at 42 degrees; 31 degrees are common among frontal photos."""
    assert explain(replace(GOOD, yaw_degrees=34.0)) == ()
    assert explain(replace(GOOD, yaw_degrees=-36.0)) == ("turned 36 degrees",)
