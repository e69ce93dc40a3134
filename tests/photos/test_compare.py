import json
from dataclasses import replace

import numpy as np
import pytest
from tests.photos.conftest import DIM, RADIUS, face, photo, score

from spherecf.calibration import Calibration, ConditionalCalibrator, Decision
from spherecf.errors import InputError, ModelError
from spherecf.photos import AssessedPhoto, FaceAssessor, compare

E = np.eye(DIM)


def test_match_non_match_and_undecided(calibration: Calibration) -> None:
    anna, again = photo("a", face(E[0], 100.0, 1)), photo("b", face(E[0], 100.0, 2))
    other, between = photo("c", face(E[1], 100.0, 3)), photo("d", face(E[0] + 1.5 * E[1], 100.0, 4))
    found = [compare(anna, right, calibration, radius=RADIUS) for right in (again, other, between)]
    assert [one.decision for one in found] == [Decision.MATCH, Decision.NON_MATCH, Decision.UNDECIDED]
    assert found[0].score == pytest.approx(score(anna.faces[0], again.faces[0]))
    assert found[0].cosine == pytest.approx(1) and found[1].cosine == pytest.approx(0)
    assert "1 in 10,000" in found[0].reason and found[0].notes == ()
    assert found[0].llr is not None and found[1].llr is not None and found[0].llr > 0 > found[1].llr


def test_a_poor_face_decides_nothing(calibration: Calibration) -> None:
    sure, poor = photo("sure", face(E[0], 100.0)), photo("poor", face(E[0], 19.9, 1))
    found = compare(sure, poor, calibration, radius=RADIUS)
    assert found.decision is Decision.UNDECIDED
    assert found.reason == "the quality of poor is too low: kappa 19.9, required 20.0"


def test_no_face_is_undecided_and_not_a_non_match(calibration: Calibration) -> None:
    found = compare(photo("a", face(E[0], 100.0)), photo("wall"), calibration, radius=RADIUS)
    assert found.decision is Decision.UNDECIDED and found.score is None and found.llr is None
    assert found.reason == "wall: no face found."
    broken = photo("b", replace(face(E[0], 100.0), kappa=float("nan")))
    found = compare(broken, broken, calibration, radius=RADIUS)
    assert found.decision is Decision.UNDECIDED and "no direction" in found.reason


def test_says_which_face_was_taken_and_that_pictures_are_the_same(calibration: Calibration) -> None:
    two = photo("two", face(E[0], 100.0, 1), face(E[1], 100.0, 2))
    one = photo("one", face(E[1], 100.0, 2))
    assert compare(two, one, calibration, radius=RADIUS).decision is Decision.NON_MATCH
    found = compare(two, one, calibration, radius=RADIUS, faces=(1, 0))
    assert found.decision is Decision.MATCH
    assert "two has 2 faces; face 1 was compared" in found.notes[0] and "same image" in found.notes[1]
    with pytest.raises(InputError, match="one: has no face 1; it has 1"):
        compare(two, one, calibration, radius=RADIUS, faces=(0, 1))


def test_refuses_what_it_cannot_promise(calibration: Calibration) -> None:
    a = photo("a", face(E[0], 100.0))
    with pytest.raises(ModelError, match="not calibrated"):
        compare(a, a, None, radius=RADIUS)
    with pytest.raises(InputError, match=r"there are: mls fmr <= 0.01, mls fmr <= 0.0001"):
        compare(a, a, calibration, radius=RADIUS, max_fmr=1e-3)
    with pytest.raises(InputError, match="radius 64, but the model has radius 32"):
        compare(a, a, calibration, radius=32.0)
    rule = replace(calibration.decisions[1], accept=None, reject=None)
    found = compare(a, a, replace(calibration, decisions=(rule,)), radius=RADIUS)
    assert found.decision is Decision.UNDECIDED and "no threshold guarantees FMR" in found.reason


def test_the_json_has_the_grounds(calibration: Calibration) -> None:
    left, right = photo("a", face(E[0], 100.0)), photo("wall")
    facts = compare(left, right, calibration, radius=RADIUS, max_fmr=1e-2).to_dict()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["fmr_seen"] == 1e-3 and facts["fmr_upper"] == 0.009
    assert facts["decision"] == "undecided" and facts["max_fmr"] == 1e-2 and facts["min_kappa"] == 20.0
    assert facts["photos"][0]["face"]["quality"] == 50 and facts["photos"][1]["face"] is None


def test_evidence_decides_where_the_calibration_has_it(calibration: Calibration) -> None:
    known = evidence()
    rule = replace(calibration.decisions[1], score="evidence", accept=1.0, reject=-1.0, alpha=1e-6)
    rule = replace(rule, extrapolated=(1e-8, 1e-6))
    better = replace(
        calibration,
        likelihood={**calibration.likelihood, "evidence": known},
        decisions=(rule, *calibration.decisions),
    )
    anna, again = photo("a", face(E[0], 100.0, 1)), photo("b", face(E[0], 40.0, 2))
    found = compare(anna, again, better, radius=RADIUS, max_fmr=1e-6)
    assert found.rule == rule and found.decision is Decision.MATCH and "extrapolated" in found.reason
    kappas = (100.0, 40.0)
    assert found.evidence == known.evidence(found.score, found.cosine, kappas)
    assert found.llr == known.llr(found.score, kappas)
    facts = found.to_dict()
    assert json.loads(json.dumps(facts)) == facts and facts["fmr_extrapolated"] == [1e-8, 1e-6]
    other = compare(anna, photo("c", face(E[1], 100.0, 3)), better, radius=RADIUS, max_fmr=1e-6)
    assert other.decision is Decision.NON_MATCH
    plain = compare(anna, again, better, radius=RADIUS, max_fmr=1e-2)  # only the score has a rule for it
    assert plain.rule.score == "mls" and plain.evidence == plain.score


def evidence() -> ConditionalCalibrator:
    neutral = score(face(E[0], 1e-6), face(E[0], 1e-6))
    return ConditionalCalibrator(
        "evidence", RADIUS, neutral, False, (2.0, 6.0), (2.0, 6.0), (-2.0, 0.0, 0.0, 0.0), (0.5, 0.0, 0.0),
        (0.2, 0.0, 0.0, 0.0), (-3.0, 0.0, 0.0), -0.1, 0.05, 1000, 1000,
    )  # fmt: skip


def test_real_faces(assessor: FaceAssessor, photos: dict[str, AssessedPhoto]) -> None:
    model = assessor.model
    names = list(photos)
    matches = strangers = 0
    for place, left in enumerate(names):
        for right in names[place + 1 :]:
            found = compare(photos[left], photos[right], model.calibration, radius=model.radius)
            same = left.split("/")[0] == right.split("/")[0]
            assert found.decision is not (Decision.NON_MATCH if same else Decision.MATCH)
            matches += same and found.decision is Decision.MATCH
            strangers += not same and found.decision is Decision.NON_MATCH
    assert matches >= 15 and strangers >= 5  # of 20 and 25; the others are undecided
