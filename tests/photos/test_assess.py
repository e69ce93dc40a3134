import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tests.faces.pictures import jpeg, portrait

from spherecf.data import orl_faces
from spherecf.errors import InputError, ModelError
from spherecf.faces import Face, Failure
from spherecf.models import load
from spherecf.photos import FaceAssessor
from spherecf.vmf import mean_resultant_length


@pytest.fixture(scope="module")
def assessor() -> FaceAssessor:
    return FaceAssessor()


def group(*indices: int) -> np.ndarray:
    return np.hstack([portrait(index) for index in indices])


def test_kappa_percentile_integer_and_cosine_agree(assessor: FaceAssessor) -> None:
    photo = assessor(portrait(), "somebody")
    face = photo.main
    assert face is not None and photo.name == "somebody" and photo.failure is None and photo.reason == ""
    mu, log_kappa = assessor.model.embed(face.captured.crop[None])
    assert np.allclose(face.mu, mu[0]) and face.kappa == pytest.approx(float(log_kappa.exp()), rel=1e-4)
    scale = assessor.model.calibration.kappa  # type: ignore[union-attr]
    assert scale is not None and face.percentile == pytest.approx(float(scale.percentile(face.kappa)))
    assert face.quality == int(scale.iso(face.kappa))
    expected = mean_resultant_length(torch.tensor(face.kappa, dtype=torch.float64), 128)
    assert face.expected_cosine == pytest.approx(float(expected))


def test_a_blurred_face_is_less_sure_and_says_why(assessor: FaceAssessor) -> None:
    sharp = assessor(portrait(scale=4.0)).main
    blurred = assessor(cv2.GaussianBlur(portrait(scale=4.0), (0, 0), 10)).main
    assert sharp is not None and blurred is not None and blurred.kappa < sharp.kappa
    assert "blurred" in blurred.reasons and "blurred" not in sharp.reasons


def test_reasons_do_not_enter_kappa(assessor: FaceAssessor, monkeypatch: pytest.MonkeyPatch) -> None:
    before = assessor(portrait()).main
    monkeypatch.setattr("spherecf.photos.assessment.explain", lambda facts: ("anything",))
    after = assessor(portrait()).main
    assert before is not None and after is not None
    assert after.reasons == ("anything",) and (after.kappa, after.quality) == (before.kappa, before.quality)


def test_all_faces_or_the_main_one(assessor: FaceAssessor) -> None:
    picture = group(0, 12, 25)
    everyone = assessor(picture)
    only = FaceAssessor(assessor.model, assessor.detector, faces="main")(picture)
    assert len(everyone.faces) == 3 and len(only.faces) == 1 and len(only.acquisition.faces) == 3
    assert only.faces[0].kappa == pytest.approx(everyone.faces[0].kappa, rel=1e-4)


def test_the_stream_is_the_call_in_order(assessor: FaceAssessor, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(portrait(30)))
    photos = [
        ("", tmp_path / "a.jpg"), ("b", b"text"), ("c", group(0, 12)), ("d", portrait(50)),
        ("e", tmp_path / "no.jpg"),
    ]  # fmt: skip
    alone = [assessor(photo, name) for name, photo in photos]
    for batch_size in (1, 2, 32):
        together = list(assessor.stream(photos, batch_size=batch_size, threads=2))
        assert [photo.name for photo in together] == [str(tmp_path / "a.jpg"), "b", "c", "d", "e"]
        assert [photo.failure for photo in together] == [photo.failure for photo in alone]
        for one, other in zip(alone, together):
            assert [face.kappa for face in one.faces] == pytest.approx(
                [face.kappa for face in other.faces], rel=1e-3
            )


def test_everything_but_pixels_and_direction_as_json(assessor: FaceAssessor) -> None:
    photo = json.loads(json.dumps(assessor(portrait(), "x").to_dict(), allow_nan=False))
    assert photo["photo"] == "x" and photo["size_px"] == [184, 224] and photo["failure"] is None
    (face,) = photo["faces"]
    assert {
        "quality",
        "percentile",
        "kappa",
        "expected_cosine",
        "reasons",
        "box",
        "landmarks",
        "facts",
    } <= set(face)
    nothing = json.loads(json.dumps(assessor(b"", "y").to_dict()))
    assert (nothing["failure"], nothing["size_px"], nothing["faces"]) == ("empty", None, [])
    assert "empty" in nothing["reason"]


def test_one_face_without_a_direction_costs_no_other(
    assessor: FaceAssessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = assessor(portrait()).main
    assert good is not None
    embed = assessor.model.embed

    def picky(crops: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        if any(not np.array_equal(crop, good.captured.crop) for crop in crops):
            raise ModelError("an embedding that is zero")
        return embed(crops)

    monkeypatch.setattr(assessor.model, "embed", picky)
    first, second = assessor.stream([("a", portrait()), ("b", portrait(25))])
    assert first.main is not None and first.main.kappa == pytest.approx(good.kappa, rel=1e-4)
    failed = second.main
    assert (
        failed is not None and np.isnan(failed.kappa) and failed.quality == -1 and failed.percentile is None
    )
    assert failed.to_dict()["kappa"] is None and failed.to_dict()["expected_cosine"] is None


def test_without_a_calibration_there_is_no_scale(assessor: FaceAssessor) -> None:
    model = load(backbone=assessor.model.backbone)
    model.calibration = None
    face = FaceAssessor(model, assessor.detector)(portrait()).main
    assert face is not None and face.kappa > 0 and (face.percentile, face.quality) == (None, -1)


def test_another_source_of_landmarks(assessor: FaceAssessor) -> None:
    found = FaceAssessor(assessor.model, lambda pixels: list[Face]())(portrait())
    assert found.failure is Failure.NO_FACE and found.main is None


def test_wrong_settings_are_refused(assessor: FaceAssessor) -> None:
    for how in ({"batch_size": 0}, {"threads": 0}):
        with pytest.raises(InputError, match=">= 1"):
            next(assessor.stream([("a", orl_faces().image(0))], **how))
