"""Comparison of two photos: decision, score, evidence, reasons, and refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.photos.conftest import DIM, RADIUS, face, photo, score

from spherecf.calibration import Calibration, ConditionalCalibrator, Decision
from spherecf.errors import InputError, ModelError
from spherecf.photos import AssessedPhoto, FaceAssessor, build_template, compare

E = np.eye(DIM)


def test_match_non_match_and_undecided(calibration: Calibration) -> None:
    anna, same = photo("a", face(E[0], 100.0, 1)), photo("b", face(E[0], 100.0, 2))
    other, between = photo("c", face(E[1], 100.0, 3)), photo("d", face(E[0] + 1.5 * E[1], 100.0, 4))
    results = [compare(anna, right, calibration, radius=RADIUS) for right in (same, other, between)]
    assert [result.decision for result in results] == [Decision.MATCH, Decision.NON_MATCH, Decision.UNDECIDED]
    assert results[0].score == pytest.approx(score(anna.faces[0], same.faces[0]))
    assert results[0].cosine == pytest.approx(1) and results[1].cosine == pytest.approx(0)
    assert "1 in 10,000" in results[0].reason and results[0].notes == ()
    assert results[0].llr is not None and results[1].llr is not None and results[0].llr > 0 > results[1].llr


def test_a_face_of_low_quality_is_undecided(calibration: Calibration) -> None:
    good, poor = photo("good", face(E[0], 100.0)), photo("poor", face(E[0], 19.9, 1))
    result = compare(good, poor, calibration, radius=RADIUS)
    assert result.decision is Decision.UNDECIDED
    assert result.reason == "the quality of poor is too low: kappa 19.9, required 20.0"


def test_a_photo_without_a_face_is_undecided(calibration: Calibration) -> None:
    result = compare(photo("a", face(E[0], 100.0)), photo("wall"), calibration, radius=RADIUS)
    assert result.decision is Decision.UNDECIDED and result.score is None and result.llr is None
    assert result.reason == "wall: no face found."
    broken = photo("b", replace(face(E[0], 100.0), kappa=float("nan")))
    result = compare(broken, broken, calibration, radius=RADIUS)
    assert result.decision is Decision.UNDECIDED and "no direction" in result.reason


def test_notes_report_the_compared_face_and_equal_images(calibration: Calibration) -> None:
    two_faces = photo("two", face(E[0], 100.0, 1), face(E[1], 100.0, 2))
    one_face = photo("one", face(E[1], 100.0, 2))
    assert compare(two_faces, one_face, calibration, radius=RADIUS).decision is Decision.NON_MATCH
    result = compare(two_faces, one_face, calibration, radius=RADIUS, faces=(1, 0))
    assert result.decision is Decision.MATCH
    assert "two has 2 faces; face 1 was compared" in result.notes[0] and "same image" in result.notes[1]
    with pytest.raises(InputError, match="one: has no face 1; it has 1"):
        compare(two_faces, one_face, calibration, radius=RADIUS, faces=(0, 1))


def test_rates_without_a_rule_are_refused(calibration: Calibration) -> None:
    a = photo("a", face(E[0], 100.0))
    with pytest.raises(ModelError, match="not calibrated"):
        compare(a, a, None, radius=RADIUS)
    other = replace(photo("b", face(np.eye(DIM + 1)[0], 100.0)), model="f" * 64)
    for photos in ((a, other), (other, a)):
        with pytest.raises(ModelError, match="this is the model ffff"):
            compare(*photos, calibration, radius=RADIUS)
    with pytest.raises(ModelError, match="this is the model ffff"):
        build_template([a, other], calibration, radius=RADIUS)
    with pytest.raises(InputError, match=r"there are rules for 0\.01, 0\.0001$"):
        compare(a, a, calibration, radius=RADIUS, max_fmr=1e-3)
    with pytest.raises(InputError, match="radius 64, but the model has radius 32"):
        compare(a, a, calibration, radius=32.0)
    rule = replace(calibration.decisions[1], accept=None, reject=None)
    result = compare(a, a, replace(calibration, decisions=(rule,)), radius=RADIUS)
    assert result.decision is Decision.UNDECIDED and "no threshold guarantees FMR" in result.reason


def test_json_has_the_error_rates_and_faces(calibration: Calibration) -> None:
    left, right = photo("a", face(E[0], 100.0)), photo("wall")
    facts = compare(left, right, calibration, radius=RADIUS, max_fmr=1e-2).to_dict()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["fmr_measured"] == 1e-3 and facts["fmr_upper"] == 0.009
    assert facts["decision"] == "undecided" and facts["max_fmr"] == 1e-2 and facts["min_kappa"] == 20.0
    assert facts["photos"][0]["face"]["quality"] == 50 and facts["photos"][1]["face"] is None


def test_evidence_decides_if_the_calibration_has_it(calibration: Calibration) -> None:
    calibrator = evidence()
    rule = replace(calibration.decisions[1], score="evidence", accept=1.0, reject=-1.0, alpha=1e-6)
    rule = replace(rule, extrapolated=(1e-8, 1e-6))
    with_evidence = replace(
        calibration,
        likelihood={**calibration.likelihood, "evidence": calibrator},
        decisions=(rule, *calibration.decisions),
    )
    anna, same = photo("a", face(E[0], 100.0, 1)), photo("b", face(E[0], 40.0, 2))
    result = compare(anna, same, with_evidence, radius=RADIUS, max_fmr=1e-6)
    assert result.rule == rule and result.decision is Decision.MATCH and "extrapolated" in result.reason
    kappas = (100.0, 40.0)
    assert result.evidence == calibrator.evidence(result.score, result.cosine, kappas)
    assert result.llr == calibrator.llr(result.score, kappas)
    facts = result.to_dict()
    assert json.loads(json.dumps(facts)) == facts and facts["fmr_extrapolated"] == [1e-8, 1e-6]
    other = compare(anna, photo("c", face(E[1], 100.0, 3)), with_evidence, radius=RADIUS, max_fmr=1e-6)
    assert other.decision is Decision.NON_MATCH
    # At FMR 1e-2, only the score has a rule.
    by_score = compare(anna, same, with_evidence, radius=RADIUS, max_fmr=1e-2)
    assert by_score.rule.score == "mls" and by_score.evidence == by_score.score


def evidence() -> ConditionalCalibrator:
    neutral = score(face(E[0], 1e-6), face(E[0], 1e-6))
    return ConditionalCalibrator(
        "evidence", RADIUS, neutral, False, (2.0, 6.0), (2.0, 6.0), (-2.0, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0),
        (0.2, 0.0, 0.0, 0.0), (-3.0, 0.0, 0.0), -0.1, 0.05, 1000, 1000,
    )  # fmt: skip


def test_decisions_on_real_faces_are_correct(
    assessor: FaceAssessor, photos: dict[str, AssessedPhoto]
) -> None:
    model = assessor.model
    names = list(photos)
    matches = non_matches = 0
    for index, left in enumerate(names):
        for right in names[index + 1 :]:
            result = compare(photos[left], photos[right], model.calibration, radius=model.radius)
            mated = left.split("/")[0] == right.split("/")[0]
            assert result.decision is not (Decision.NON_MATCH if mated else Decision.MATCH)
            matches += mated and result.decision is Decision.MATCH
            non_matches += not mated and result.decision is Decision.NON_MATCH
    assert matches >= 15 and non_matches >= 5  # of 20 and 25; the others are undecided
