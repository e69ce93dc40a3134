"""Rules are counted on people who had no part in making them."""

import numpy as np
import pytest
from studies.promise import (
    RATES,
    Crowd,
    Promise,
    at_home,
    elsewhere,
    promise_tables,
    sample_images,
    select_rules,
)

from spherecf.calibration import Calibration
from spherecf.data import orl_faces
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.models import load


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    known = load().calibration
    assert known is not None
    return select_rules(known)


def crowd(name: str, people: int, calibration: Calibration, alike: float = 0.0, seed: int = 0) -> Crowd:
    """Four pictures of everybody; ``alike`` of every direction is one that all share."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(people, 1, 128)) / np.sqrt(128) + alike * np.eye(128)[0]
    mu = (own + 0.7 * rng.normal(size=(people, 4, 128)) / np.sqrt(128)).reshape(-1, 128)
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    label = np.repeat(np.arange(people), 4)
    keys, names = [str(i) for i in range(len(mu))], [f"p{i}" for i in range(people)]
    kappa = rng.uniform(4.5, 5.5, len(mu))
    return Crowd.of(name, Embeddings(mu, kappa, keys, labels=label, identities=names), calibration)


@pytest.fixture(scope="module")
def crowds(calibration: Calibration) -> list[Crowd]:
    return [crowd("apart", 45, calibration), crowd("alike", 60, calibration, alike=0.55, seed=1)]


def test_rules_of_the_model_are_counted_on_everybody(crowds: list[Crowd], calibration: Calibration) -> None:
    found = elsewhere(crowds, calibration, 50, 0)
    cells = {(one.made_on, one.counted_on, one.alpha): one for one in found}
    assert {key[:2] for key in cells} == {
        ("the model", "apart"), ("the model", "alike"), ("apart", "alike"), ("alike", "apart")
    }  # fmt: skip
    for one in crowds:
        values, mated = one.pairs.scores["evidence"], one.pairs.mated
        for rule in calibration.decisions:
            said = cells["the model", one.name, rule.alpha]
            sure = one.pairs.confidence >= rule.min_confidence
            assert said.rate == pytest.approx(
                (sure & ~mated & (values >= rule.accept)).sum() / (~mated).sum()
            )
            assert said.matches == pytest.approx((sure & mated & (values >= rule.accept)).sum() / mated.sum())
            assert said.ends[0] <= said.rate <= said.ends[1] and said.people == 0
    # Rules of people who resemble each other are stricter, and right for the others too.
    assert cells["the model", "alike", 1e-2].rate > 2e-2 > cells["the model", "apart", 1e-2].rate
    assert cells["alike", "apart", 1e-2].rate < cells["the model", "apart", 1e-2].rate


def test_rules_made_anew_are_counted_on_the_others(crowds: list[Crowd], calibration: Calibration) -> None:
    found = at_home(crowds, calibration, repetitions=3, draws=50, seed=0)
    assert {(one.counted_on, one.people) for one in found} == {("apart", 20), ("alike", 20)}
    cells = {(one.made_on, one.counted_on, one.alpha): one for one in found}
    before, after = cells["the model", "alike", 1e-2], cells["its own people", "alike", 1e-2]
    assert before.kept == 0 and after.kept == 3 == after.repetitions and after.rate < 1e-2 < before.rate
    tables = promise_tables(
        Promise([("alike", 60, 240, 28320, 360)], elsewhere(crowds, calibration, 20, 0), found)
    )
    assert len(tables) == 5 and tables[0].rows == [["alike", "60", "240", "28,320", "360"]]
    assert tables[-1].rows[1][:2] == ["alike", "20"]


def test_local_pictures_and_the_rest_have_nobody_in_common(calibration: Calibration) -> None:
    one = crowd("apart", 45, calibration)
    local = np.arange(20)
    some, rest = one.only(local), one.without(local)
    assert len(some) == 80 and set(some.labels.tolist()) == set(range(20))
    assert not np.isin(np.concatenate([rest.left, rest.right]), local).any()
    assert rest.mated.size == 100 * 99 // 2


def test_people_of_one_picture_are_left_out() -> None:
    faces = orl_faces()
    some = sample_images(faces.subset([0, 10, 11, 12, 20, 30, 31]))
    assert list(some.keys) == [faces.keys[row] for row in (10, 11, 12, 30, 31)]


def test_a_model_without_these_rules_is_refused(calibration: Calibration) -> None:
    with pytest.raises(InputError, match="no evidence rules"):
        select_rules(Calibration("m", "d", decisions=calibration.decisions[:1]))
    assert [rule.alpha for rule in calibration.decisions] == list(RATES)
