"""Templates of several photos: pooling, gains, strangers, duplicates and photos without a face."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.photos.conftest import DIM, RADIUS, face, photo

from spherecf.calibration import Calibration
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError, ModelError
from spherecf.gallery import Gallery
from spherecf.photos import AssessedPhoto, FaceAssessor, build_template

E = np.eye(DIM)


def near(axis: int, other_axis: int, amount: float = 0.2) -> np.ndarray:
    return np.asarray(E[axis] + amount * E[other_axis])


def test_pooling_adds_natural_parameters_and_reports_each_gain(calibration: Calibration) -> None:
    kappa, mu = np.array([100.0, 60.0, 30.0]), np.stack([near(0, 5), near(0, 6), near(0, 7)])
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    photos = [photo(f"p{row}", face(mu[row], kappa[row], row)) for row in range(3)]
    template = build_template(photos, calibration, radius=RADIUS)
    eta = kappa[:, None] * mu
    assert template.kappa == pytest.approx(np.linalg.norm(eta.sum(0)), rel=1e-6)
    assert template.mu == pytest.approx(eta.sum(0) / np.linalg.norm(eta.sum(0)), abs=1e-6)
    assert template.grown == pytest.approx([np.linalg.norm(eta[: row + 1].sum(0)) for row in range(3)])
    for row, result in enumerate(template.photos):
        rest = np.linalg.norm(eta.sum(0) - eta[row])
        assert result.gain == pytest.approx(template.kappa - rest)
        assert result.weight == pytest.approx(kappa[row] / 190)
        assert result.helps and not result.stranger and result.group == 0
    assert template.groups == 1 and template.warnings == ()


def test_a_stranger_is_reported_and_excluded_on_request(calibration: Calibration) -> None:
    photos = [photo(f"p{row}", face(near(0, 5 + row), 100.0, row)) for row in range(4)]
    photos.insert(1, photo("bob", face(E[3], 120.0, 9)))
    template = build_template(photos, calibration, radius=RADIUS)
    assert [result.stranger for result in template.photos] == [False, True, False, False, False]
    assert not template.photos[1].helps and template.groups == 2
    assert "still in the template" in template.warnings[0]
    cleaned = build_template(photos, calibration, radius=RADIUS, exclude_strangers=True)
    assert cleaned.pooled == ("p0", "p1", "p2", "p3") and len(cleaned.grown) == 4
    without_bob = build_template([photos[0], *photos[2:]], calibration, radius=RADIUS)
    assert cleaned.kappa == pytest.approx(without_bob.kappa) and cleaned.mu == pytest.approx(without_bob.mu)
    assert cleaned.photos[1].weight == 0 and "left out" in cleaned.warnings[0]


def test_two_equal_groups_are_reported(calibration: Calibration) -> None:
    photos = [photo(f"p{row}", face(near(row // 2, 5 + row), 100.0, row)) for row in range(4)]
    template = build_template(photos, calibration, radius=RADIUS)
    assert template.groups == 2 and any("groups of 2, 2" in warning for warning in template.warnings)


def test_copies_do_not_hide_a_second_person(calibration: Calibration) -> None:
    anna = [photo(f"copy{row}", face(near(0, 5), 100.0, 0)) for row in range(4)]
    bob = [photo(f"b{row}", face(near(1, 6 + row), 100.0, 1 + row)) for row in range(2)]
    template = build_template([*anna, *bob], calibration, radius=RADIUS)
    assert [result.group for result in template.photos] == [1, 1, 1, 1, 0, 0]
    assert any("groups of 2, 1" in warning for warning in template.warnings)


def test_a_photo_of_low_quality_is_no_stranger_and_does_not_help(calibration: Calibration) -> None:
    photos = [photo(f"p{row}", face(near(0, 5 + row), 100.0, row)) for row in range(3)]
    template = build_template([*photos, photo("poor", face(E[4], 5.0, 9))], calibration, radius=RADIUS)
    assert not template.photos[3].stranger and not template.photos[3].helps


def test_duplicate_images_count_once(calibration: Calibration) -> None:
    first, second = photo("a", face(near(0, 5), 100.0, 1)), photo("b", face(near(0, 6), 80.0, 2))
    copy = photo("copy", face(near(0, 5), 100.0, 1))
    template = build_template([first, second, copy], calibration, radius=RADIUS)
    assert template.kappa == pytest.approx(build_template([first, second], calibration, radius=RADIUS).kappa)
    assert template.photos[2].same_as == "a" and not template.photos[2].helps and template.photos[2].gain == 0
    assert template.grown[2] == pytest.approx(template.grown[1])
    assert any("1 duplicate image was ignored" in warning for warning in template.warnings)


def test_photos_without_a_face_are_listed(calibration: Calibration) -> None:
    template = build_template([photo("wall"), photo("a", face(E[0], 50.0))], calibration, radius=RADIUS)
    assert template.photos[0].kappa is None and template.photos[0].reason == "no face found."
    assert template.photos[0].quality == -1 and template.pooled == ("a",)
    assert template.kappa == pytest.approx(50)
    with pytest.raises(InputError, match=r"none of the 1 photos has a usable face. The first, wall: no face"):
        build_template([photo("wall")], calibration, radius=RADIUS)
    hazy = photo("haze", face(E[0], float("nan")))
    with pytest.raises(InputError, match="The first, haze: the recogniser gives no direction"):
        build_template([hazy], calibration, radius=RADIUS)
    with pytest.raises(InputError, match="none of the 0 photos"):
        build_template([], calibration, radius=RADIUS)
    with pytest.raises(ModelError, match="not calibrated"):
        build_template([photo("a", face(E[0], 50.0))], None, radius=RADIUS)


def test_the_rule_for_templates_is_preferred(calibration: Calibration) -> None:
    photos = [photo(f"p{row}", face(near(0, 5 + row), 100.0, row)) for row in range(3)]
    photos.append(photo("bob", face(E[3], 100.0, 9)))
    rule = replace(calibration.decisions[0], score="mls-template", accept=1e9, reject=-1e9)
    lenient = replace(calibration, decisions=(*calibration.decisions, rule))
    assert not any(result.stranger for result in build_template(photos, lenient, radius=RADIUS).photos)


def test_template_is_saved_as_an_embeddings_file(calibration: Calibration, tmp_path: Path) -> None:
    photos = [photo("wall"), *(photo(f"p{row}", face(near(0, 5 + row), 100.0, row)) for row in range(2))]
    template = build_template(photos, calibration, radius=RADIUS)
    saved = Embeddings.load(template.save(tmp_path / "anna.safetensors", "anna", provenance={"model": "m"}))
    assert saved.keys == ["anna"] and saved.mu[0] == pytest.approx(template.mu)
    assert saved.kappa[0] == pytest.approx(template.kappa, rel=1e-5)
    assert saved.extras["photos"].tolist() == [2]
    assert saved.skipped == [("wall", "no face found.")] and saved.provenance["pooled"] == ["p0", "p1"]
    facts = template.to_dict()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_a_stranger_is_found_among_real_faces(
    assessor: FaceAssessor, photos: dict[str, AssessedPhoto]
) -> None:
    own_photos = [result for name, result in photos.items() if name.startswith("s1/")]
    model, bob = assessor.model, photos["s2/1.pgm"]
    template = build_template([*own_photos, bob], model.calibration, radius=model.radius)
    assert [result.stranger for result in template.photos] == [False] * len(own_photos) + [True]
    assert list(template.grown) == sorted(template.grown)


@pytest.mark.parametrize(
    "names",
    [
        ["s1/1", "s1/2", "s2/1", "s2/2"],
        ["s2/1", "s1/1", "s1/2", "s1/3"],
        ["s1/1", "s1/2", "s1/3"],
        ["s1/1", "s2/1"],
    ],
)
def test_a_gallery_warns_of_the_same_photos(
    assessor: FaceAssessor, photos: dict[str, AssessedPhoto], tmp_path: Path, names: list[str]
) -> None:
    model, chosen = assessor.model, [photos[f"{name}.pgm"] for name in names]
    template = build_template(chosen, model.calibration, radius=model.radius)
    strangers = [result.name for result in template.photos if result.stranger]
    expected = [warning for warning in template.warnings if "several people" in warning]
    if strangers:
        expected.insert(0, f"photos that do not look like the others: {', '.join(strangers)}")
    facts = {"model": model.fingerprint(), "dim": model.backbone.dim, "radius": model.radius}
    with Gallery.open(tmp_path / "people", calibration=model.calibration, **facts) as gallery:
        faces = [result.faces[0] for result in chosen]
        enrolled = gallery.enrol(
            "Ann", np.stack([face.mu for face in faces]), [face.kappa for face in faces], media=names,
            sources=[result.name for result in chosen],
        )  # fmt: skip
    assert list(enrolled.warnings) == expected


@pytest.mark.parametrize(("share", "helps"), [(0.22, False), (0.28, True)])
def test_a_photo_helps_from_a_quarter_of_the_average_gain(
    calibration: Calibration, share: float, helps: bool
) -> None:
    kappa = share * 300 / (4 - share)  # with equal directions, the gain of a photo is its kappa
    photos = [photo(f"p{row}", face(E[0], 100.0, row)) for row in range(3)]
    template = build_template([*photos, photo("weak", face(E[0], kappa, 9))], calibration, radius=RADIUS)
    average = np.mean([result.gain for result in template.photos])
    assert template.photos[3].gain / average == pytest.approx(share, rel=1e-5)
    assert [result.helps for result in template.photos] == [True, True, True, helps]
