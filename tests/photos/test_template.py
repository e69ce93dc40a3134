import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.photos.conftest import DIM, RADIUS, face, photo

from spherecf.calibration import Calibration
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError, ModelError
from spherecf.photos import AssessedPhoto, FaceAssessor, build_template

E = np.eye(DIM)


def near(axis: int, by: int, amount: float = 0.2) -> np.ndarray:
    return np.asarray(E[axis] + amount * E[by])


def test_pools_natural_parameters_and_says_what_each_adds(calibration: Calibration) -> None:
    kappa, mu = np.array([100.0, 60.0, 30.0]), np.stack([near(0, 5), near(0, 6), near(0, 7)])
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    photos = [photo(f"p{row}", face(mu[row], kappa[row], row)) for row in range(3)]
    built = build_template(photos, calibration, radius=RADIUS)
    eta = kappa[:, None] * mu
    assert built.kappa == pytest.approx(np.linalg.norm(eta.sum(0)), rel=1e-6)
    assert built.mu == pytest.approx(eta.sum(0) / np.linalg.norm(eta.sum(0)), abs=1e-6)
    assert built.grown == pytest.approx([np.linalg.norm(eta[: row + 1].sum(0)) for row in range(3)])
    for row, one in enumerate(built.photos):
        rest = np.linalg.norm(eta.sum(0) - eta[row])
        assert one.gain == pytest.approx(built.kappa - rest) and one.weight == pytest.approx(kappa[row] / 190)
        assert one.helps and not one.stranger and one.group == 0
    assert built.groups == 1 and built.warnings == ()


def test_a_stranger_is_suspected_and_left_out_on_request(calibration: Calibration) -> None:
    photos = [photo(f"p{row}", face(near(0, 5 + row), 100.0, row)) for row in range(4)]
    photos.insert(1, photo("bob", face(E[3], 120.0, 9)))
    built = build_template(photos, calibration, radius=RADIUS)
    assert [one.stranger for one in built.photos] == [False, True, False, False, False]
    assert not built.photos[1].helps and built.groups == 2 and "still in the template" in built.warnings[0]
    cleaned = build_template(photos, calibration, radius=RADIUS, exclude_strangers=True)
    assert cleaned.pooled == ("p0", "p1", "p2", "p3") and len(cleaned.grown) == 4
    alone = build_template([photos[0], *photos[2:]], calibration, radius=RADIUS)
    assert cleaned.kappa == pytest.approx(alone.kappa) and cleaned.mu == pytest.approx(alone.mu)
    assert cleaned.photos[1].weight == 0 and "left out" in cleaned.warnings[0]


def test_two_people_half_and_half_are_said(calibration: Calibration) -> None:
    photos = [photo(f"p{row}", face(near(row // 2, 5 + row), 100.0, row)) for row in range(4)]
    built = build_template(photos, calibration, radius=RADIUS)
    assert built.groups == 2 and any("groups of 2, 2" in warning for warning in built.warnings)


def test_copies_do_not_hide_a_second_person(calibration: Calibration) -> None:
    anna = [photo(f"copy{row}", face(near(0, 5), 100.0, 0)) for row in range(4)]
    bob = [photo(f"b{row}", face(near(1, 6 + row), 100.0, 1 + row)) for row in range(2)]
    built = build_template([*anna, *bob], calibration, radius=RADIUS)
    assert [one.group for one in built.photos] == [1, 1, 1, 1, 0, 0]
    assert any("groups of 2, 1" in warning for warning in built.warnings)


def test_a_poor_photo_is_no_stranger_and_helps_little(calibration: Calibration) -> None:
    photos = [photo(f"p{row}", face(near(0, 5 + row), 100.0, row)) for row in range(3)]
    built = build_template([*photos, photo("poor", face(E[4], 5.0, 9))], calibration, radius=RADIUS)
    assert not built.photos[3].stranger and not built.photos[3].helps


def test_the_same_picture_twice_counts_once(calibration: Calibration) -> None:
    one, other = photo("a", face(near(0, 5), 100.0, 1)), photo("b", face(near(0, 6), 80.0, 2))
    copy = photo("copy", face(near(0, 5), 100.0, 1))
    built = build_template([one, other, copy], calibration, radius=RADIUS)
    assert built.kappa == pytest.approx(build_template([one, other], calibration, radius=RADIUS).kappa)
    assert built.photos[2].same_as == "a" and not built.photos[2].helps and built.photos[2].gain == 0
    assert built.grown[2] == pytest.approx(built.grown[1])
    assert any("1 duplicate image was ignored" in warning for warning in built.warnings)


def test_photos_without_a_face_are_listed(calibration: Calibration) -> None:
    built = build_template([photo("wall"), photo("a", face(E[0], 50.0))], calibration, radius=RADIUS)
    assert built.photos[0].kappa is None and built.photos[0].reason == "no face found."
    assert built.photos[0].quality == -1 and built.pooled == ("a",) and built.kappa == pytest.approx(50)
    with pytest.raises(InputError, match=r"none of the 1 photos has a usable face. The first, wall: no face"):
        build_template([photo("wall")], calibration, radius=RADIUS)
    lost = photo("haze", face(E[0], float("nan")))
    with pytest.raises(InputError, match="The first, haze: the recogniser gives no direction"):
        build_template([lost], calibration, radius=RADIUS)
    with pytest.raises(InputError, match="none of the 0 photos"):
        build_template([], calibration, radius=RADIUS)
    with pytest.raises(ModelError, match="not calibrated"):
        build_template([photo("a", face(E[0], 50.0))], None, radius=RADIUS)


def test_uses_the_rule_for_templates_where_there_is_one(calibration: Calibration) -> None:
    photos = [photo(f"p{row}", face(near(0, 5 + row), 100.0, row)) for row in range(3)]
    photos.append(photo("bob", face(E[3], 100.0, 9)))
    rule = replace(calibration.decisions[0], score="mls-template", accept=1e9, reject=-1e9)
    never = replace(calibration, decisions=(*calibration.decisions, rule))
    assert not any(one.stranger for one in build_template(photos, never, radius=RADIUS).photos)


def test_is_saved_as_an_embeddings_file(calibration: Calibration, tmp_path: Path) -> None:
    photos = [photo("wall"), *(photo(f"p{row}", face(near(0, 5 + row), 100.0, row)) for row in range(2))]
    built = build_template(photos, calibration, radius=RADIUS)
    saved = Embeddings.load(built.save(tmp_path / "anna.safetensors", "anna", provenance={"model": "m"}))
    assert saved.keys == ["anna"] and saved.mu[0] == pytest.approx(built.mu)
    assert saved.kappa[0] == pytest.approx(built.kappa, rel=1e-5) and saved.extras["photos"].tolist() == [2]
    assert saved.skipped == [("wall", "no face found.")] and saved.provenance["pooled"] == ["p0", "p1"]
    facts = built.to_dict()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_real_faces(assessor: FaceAssessor, photos: dict[str, AssessedPhoto]) -> None:
    own = [one for name, one in photos.items() if name.startswith("s1/")]
    model, bob = assessor.model, photos["s2/1.pgm"]
    built = build_template([*own, bob], model.calibration, radius=model.radius)
    assert [one.stranger for one in built.photos] == [False] * len(own) + [True]
    assert list(built.grown) == sorted(built.grown)


@pytest.mark.parametrize(("share", "helps"), [(0.22, False), (0.28, True)])
def test_a_photo_helps_from_a_quarter_of_the_average_gain(
    calibration: Calibration, share: float, helps: bool
) -> None:
    kappa = share * 300 / (4 - share)  # of one direction: then the gain of a photo is its kappa
    photos = [photo(f"p{row}", face(E[0], 100.0, row)) for row in range(3)]
    built = build_template([*photos, photo("weak", face(E[0], kappa, 9))], calibration, radius=RADIUS)
    average = np.mean([one.gain for one in built.photos])
    assert built.photos[3].gain / average == pytest.approx(share, rel=1e-5)
    assert [one.helps for one in built.photos] == [True, True, True, helps]
