"""Assessment of photos: kappa, quality, reasons, JSON, and photos that cannot be assessed."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tests.faces.pictures import jpeg, portrait
from tests.tiny import oblong_model

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


def test_kappa_percentile_quality_and_expected_cosine_agree(assessor: FaceAssessor) -> None:
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


def test_a_blurred_face_has_lower_kappa_and_a_reason(assessor: FaceAssessor) -> None:
    sharp = assessor(portrait(scale=4.0)).main
    blurred = assessor(cv2.GaussianBlur(portrait(scale=4.0), (0, 0), 10)).main
    assert sharp is not None and blurred is not None and blurred.kappa < sharp.kappa
    assert "blurred" in blurred.reasons and "blurred" not in sharp.reasons


def test_reasons_do_not_change_kappa(assessor: FaceAssessor, monkeypatch: pytest.MonkeyPatch) -> None:
    before = assessor(portrait()).main
    monkeypatch.setattr("spherecf.photos.assessment.explain", lambda facts: ("anything",))
    after = assessor(portrait()).main
    assert before is not None and after is not None
    assert after.reasons == ("anything",) and (after.kappa, after.quality) == (before.kappa, before.quality)


def test_all_faces_or_only_the_main_face_are_assessed(assessor: FaceAssessor) -> None:
    image = group(0, 12, 25)
    all_faces = assessor(image)
    main_only = FaceAssessor(assessor.model, assessor.detector, faces="main")(image)
    assert len(all_faces.faces) == 3 and len(main_only.faces) == 1 and len(main_only.acquisition.faces) == 3
    assert main_only.faces[0].kappa == pytest.approx(all_faces.faces[0].kappa, rel=1e-4)


def test_stream_equals_single_calls_in_order(assessor: FaceAssessor, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(portrait(30)))
    photos = [
        ("", tmp_path / "a.jpg"), ("b", b"text"), ("c", group(0, 12)), ("d", portrait(50)),
        ("e", tmp_path / "no.jpg"),
    ]  # fmt: skip
    single = [assessor(photo, name) for name, photo in photos]
    for batch_size in (1, 2, 32):
        streamed = list(assessor.stream(photos, batch_size=batch_size, threads=2))
        assert [photo.name for photo in streamed] == [str(tmp_path / "a.jpg"), "b", "c", "d", "e"]
        assert [photo.failure for photo in streamed] == [photo.failure for photo in single]
        for expected, actual in zip(single, streamed):
            kappas = [[face.kappa for face in photo.faces] for photo in (actual, expected)]
            assert kappas[0] == pytest.approx(kappas[1], rel=1e-3)


def test_json_has_everything_except_pixels_and_direction(assessor: FaceAssessor) -> None:
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
    failed = json.loads(json.dumps(assessor(b"", "y").to_dict()))
    assert (failed["failure"], failed["size_px"], failed["faces"]) == ("empty", None, [])
    assert "empty" in failed["reason"]


def test_a_face_without_a_direction_does_not_affect_others(
    assessor: FaceAssessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = assessor(portrait()).main
    assert good is not None
    embed = assessor.model.embed

    def embed_only_good(crops: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        if any(not np.array_equal(crop, good.captured.crop) for crop in crops):
            raise ModelError("an embedding that is zero")
        return embed(crops)

    monkeypatch.setattr(assessor.model, "embed", embed_only_good)
    first, second = assessor.stream([("a", portrait()), ("b", portrait(25))])
    assert first.main is not None and first.main.kappa == pytest.approx(good.kappa, rel=1e-4)
    failed_face = second.main
    assert failed_face is not None and np.isnan(failed_face.kappa)
    assert failed_face.quality == -1 and failed_face.percentile is None
    assert failed_face.to_dict()["kappa"] is None and failed_face.to_dict()["expected_cosine"] is None


def test_without_a_calibration_there_is_no_percentile(assessor: FaceAssessor) -> None:
    model = load(backbone=assessor.model.backbone)
    model.calibration = None
    face = FaceAssessor(model, assessor.detector)(portrait()).main
    assert face is not None and face.kappa > 0 and (face.percentile, face.quality) == (None, -1)


def test_the_detector_can_be_replaced(assessor: FaceAssessor) -> None:
    photo = FaceAssessor(assessor.model, lambda pixels: list[Face]())(portrait())
    assert photo.failure is Failure.NO_FACE and photo.main is None


def test_a_stream_of_paths_without_names_is_refused(assessor: FaceAssessor) -> None:
    with pytest.raises(InputError, match=r"\(name, photo\) pairs, got 'me.jpg'"):
        list(assessor.stream(["me.jpg"]))  # type: ignore[list-item]


def test_batch_size_and_threads_must_be_positive(assessor: FaceAssessor) -> None:
    for options in ({"batch_size": 0}, {"threads": 0}):
        with pytest.raises(InputError, match=">= 1"):
            next(assessor.stream([("a", orl_faces().image(0))], **options))


def test_faces_and_recogniser_must_be_usable(assessor: FaceAssessor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="faces: expected 'main' or 'all', got 'most'"):
        FaceAssessor(assessor.model, faces="most")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a recogniser with square input, got 8x32"):
        FaceAssessor(oblong_model(tmp_path))
