"""The images of a gallery's members, and decision rules stored in a gallery."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.gallery.conftest import DIM, MODEL, RADIUS, calibration, near

from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.gallery import Gallery


def enrol_three(gallery: Gallery, people: np.ndarray) -> None:
    """Enrol Ann with two photos, Bob with one photo, and Cid with two frames of one video."""
    second = near(people, 1)
    gallery.enrol(
        "Ann", np.stack([people[0], second[0]]), [60.0, 80.0], media=["a", "b"], sources=["a.jpg", "b.jpg"]
    )
    gallery.enrol("Bob", people[1:2], [70.0], media=["c"], sources=["c.jpg"])
    gallery.enrol(
        "Cid", np.stack([people[2], second[2]]), [60.0, 80.0], media=["v", "v"], sources=["1.jpg", "2.jpg"]
    )


def test_members_have_one_direction_per_medium(opened: Callable[..., Gallery], people: np.ndarray) -> None:
    gallery = opened()
    enrol_three(gallery, people)
    members = gallery.members()
    assert [members.identities[label] for label in members.labels] == ["Ann", "Ann", "Bob", "Cid"]
    assert members.radius == RADIUS and members.provenance["model"] == MODEL
    np.testing.assert_allclose(members.mu[:2], [people[0], near(people, 1)[0]], atol=1e-6)
    np.testing.assert_allclose(members.kappa[:3], [60, 80, 70], rtol=1e-5)
    mean = (60.0 * people[2] + 80.0 * near(people, 1)[2]) / 2
    np.testing.assert_allclose(members.mu[3] * members.kappa[3], mean, rtol=1e-4, atol=1e-4)


def test_members_can_be_sampled(opened: Callable[..., Gallery], people: np.ndarray) -> None:
    gallery = opened()
    with pytest.raises(InputError, match="expected members"):
        gallery.members()
    gallery.enrol_many([f"p{i}" for i in range(40)], people, np.zeros(40))
    samples = [gallery.members(10, seed=seed) for seed in (0, 0, 1)]
    names = [sample.identities for sample in samples]
    assert names[0] == names[1] != names[2] and len(set(names[0])) == 10
    rows = [int(name[1:]) for name in names[0]]
    np.testing.assert_allclose(samples[0].mu, people[rows], atol=1e-6)
    assert (samples[0].kappa > 0).all()  # the logarithm of 0 is not finite


def test_stored_rules_decide(opened: Callable[..., Gallery], people: np.ndarray) -> None:
    stranger, gallery = near(people, 2)[1], opened(calibration=calibration())
    enrol_three(gallery, people)
    before = gallery.identify(stranger, 70.0)
    assert (before.answer, before.tested_on) == ("identified", "pairs")
    rules = [
        {**rule.to_dict(), "accept": 1e6, "tested_on": "40 people of the door"}
        for rule in calibration().decisions
    ]
    stricter = calibration().from_dict(calibration().to_dict() | {"decisions": rules}, model=MODEL)
    gallery.keep_rules(stricter)
    after = gallery.identify(stranger, 70.0)
    assert (after.answer, after.tested_on) == ("undecided", "40 people of the door")
    gallery.close()
    reopened = opened(calibration=calibration())
    assert reopened.calibration == stricter
    assert reopened.identify(stranger, 70.0).to_dict()["tested_on"] == "40 people of the door"
    reopened.keep_rules(None)
    reopened.close()
    assert opened(calibration=calibration()).identify(stranger, 70.0) == before


def test_rules_of_another_model_and_damaged_rules_are_refused(
    opened: Callable[..., Gallery], people: np.ndarray, tmp_path: Path
) -> None:
    gallery = opened()
    with pytest.raises(ModelError, match="calibration was made for the model ffff"):
        gallery.keep_rules(calibration(model="f" * 64))
    assert gallery.identify(people[0], 3.0).tested_on is None  # no rule was stored
    gallery.keep_rules(calibration())
    gallery.close()
    newer = json.dumps(calibration().to_dict() | {"version": 9})
    for text, message in (
        ("[]", "is damaged"),
        ("{", "is damaged"),
        (newer, "version 9, .*; update spherecf"),
    ):
        with sqlite3.connect(tmp_path / "people") as db:
            db.execute("UPDATE facts SET value = ? WHERE name = 'calibration'", (text,))
        with pytest.raises(FileFormatError, match=message):
            Gallery.open(tmp_path / "people", model=MODEL, dim=DIM, radius=RADIUS)
