"""Rules are counted on people who had no part in their calibration."""

import numpy as np
import pytest
from studies.transfer import (
    RATES,
    FaceSet,
    Transfer,
    across_sets,
    sample_images,
    select_rules,
    transfer_tables,
    within_sets,
)

from spherecf.calibration import Calibration
from spherecf.data import orl_faces
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.models import load


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    shipped = load().calibration
    assert shipped is not None
    return select_rules(shipped)


def face_set(name: str, people: int, calibration: Calibration, alike: float = 0.0, seed: int = 0) -> FaceSet:
    """Four images of each person; ``alike`` is the weight of a direction shared by all."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, 1, 128)) / np.sqrt(128) + alike * np.eye(128)[0]
    mu = (centres + 0.7 * rng.normal(size=(people, 4, 128)) / np.sqrt(128)).reshape(-1, 128)
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    label = np.repeat(np.arange(people), 4)
    keys, names = [str(i) for i in range(len(mu))], [f"p{i}" for i in range(people)]
    kappa = rng.uniform(4.5, 5.5, len(mu))
    return FaceSet.of(name, Embeddings(mu, kappa, keys, labels=label, identities=names), calibration)


@pytest.fixture(scope="module")
def face_sets(calibration: Calibration) -> list[FaceSet]:
    return [face_set("apart", 45, calibration), face_set("alike", 60, calibration, alike=0.55, seed=1)]


def test_rules_of_the_model_are_counted_on_all_people(
    face_sets: list[FaceSet], calibration: Calibration
) -> None:
    results = across_sets(face_sets, calibration, 50, 0)
    cells = {(item.fitted_on, item.measured_on, item.alpha): item for item in results}
    assert {key[:2] for key in cells} == {
        ("the model", "apart"), ("the model", "alike"), ("apart", "alike"), ("alike", "apart")
    }  # fmt: skip
    for item in face_sets:
        values, mated = item.pairs.scores["evidence"], item.pairs.mated
        for rule in calibration.decisions:
            cell = cells["the model", item.name, rule.alpha]
            is_confident = item.pairs.confidence >= rule.min_confidence
            assert cell.rate == pytest.approx(
                (is_confident & ~mated & (values >= rule.accept)).sum() / (~mated).sum()
            )
            assert cell.matches == pytest.approx(
                (is_confident & mated & (values >= rule.accept)).sum() / mated.sum()
            )
            assert cell.ends[0] <= cell.rate <= cell.ends[1] and cell.people == 0
    # Rules from people who look alike are stricter, and also hold for the others.
    assert cells["the model", "alike", 1e-2].rate > 2e-2 > cells["the model", "apart", 1e-2].rate
    assert cells["alike", "apart", 1e-2].rate < cells["the model", "apart", 1e-2].rate


def test_renewed_rules_are_counted_on_the_remaining_people(
    face_sets: list[FaceSet], calibration: Calibration
) -> None:
    results = within_sets(face_sets, calibration, repetitions=3, draws=50, seed=0)
    assert {(result.measured_on, result.people) for result in results} == {("apart", 20), ("alike", 20)}
    cells = {(result.fitted_on, result.measured_on, result.alpha): result for result in results}
    model_rule, renewed_rule = cells["the model", "alike", 1e-2], cells["its own people", "alike", 1e-2]
    assert (
        model_rule.kept == 0
        and renewed_rule.kept == 3 == renewed_rule.repetitions
        and renewed_rule.rate < 1e-2 < model_rule.rate
    )
    tables = transfer_tables(
        Transfer([("alike", 60, 240, 28320, 360)], across_sets(face_sets, calibration, 20, 0), results)
    )
    assert len(tables) == 5 and tables[0].rows == [["alike", "60", "240", "28,320", "360"]]
    assert tables[-1].rows[1][:2] == ["alike", "20"]


def test_local_images_and_the_remaining_pairs_share_no_person(calibration: Calibration) -> None:
    apart = face_set("apart", 45, calibration)
    local = np.arange(20)
    local_images, remaining = apart.only(local), apart.without(local)
    assert len(local_images) == 80 and set(local_images.labels.tolist()) == set(range(20))
    assert not np.isin(np.concatenate([remaining.left, remaining.right]), local).any()
    assert remaining.mated.size == 100 * 99 // 2


def test_people_with_one_image_are_left_out() -> None:
    faces = orl_faces()
    sampled = sample_images(faces.subset([0, 10, 11, 12, 20, 30, 31]))
    assert list(sampled.keys) == [faces.keys[row] for row in (10, 11, 12, 30, 31)]


def test_a_model_without_these_rules_is_refused(calibration: Calibration) -> None:
    with pytest.raises(InputError, match="no evidence rules"):
        select_rules(Calibration("m", "d", decisions=calibration.decisions[:1]))
    assert [rule.alpha for rule in calibration.decisions] == list(RATES)
