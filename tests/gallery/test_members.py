"""A gallery gives its members' images, and keeps rules of its own."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.gallery.conftest import DIM, MODEL, RADIUS, calibration, near

from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.gallery import Gallery


def enrolled(gallery: Gallery, people: np.ndarray) -> None:
    """Ann by two photos, of which one twice; Bob by a photo; Cid by two frames of one video."""
    other = near(people, 1)
    gallery.enrol(
        "Ann", np.stack([people[0], other[0]]), [60.0, 80.0], media=["a", "b"], sources=["a.jpg", "b.jpg"]
    )
    gallery.enrol("Bob", people[1:2], [70.0], media=["c"], sources=["c.jpg"])
    gallery.enrol(
        "Cid", np.stack([people[2], other[2]]), [60.0, 80.0], media=["v", "v"], sources=["1.jpg", "2.jpg"]
    )


def test_images_of_members_and_the_mean_of_a_video(
    opened: Callable[..., Gallery], people: np.ndarray
) -> None:
    gallery = opened()
    enrolled(gallery, people)
    known = gallery.members()
    assert [known.identities[label] for label in known.labels] == ["Ann", "Ann", "Bob", "Cid"]
    assert known.radius == RADIUS and known.provenance["model"] == MODEL
    np.testing.assert_allclose(known.mu[:2], [people[0], near(people, 1)[0]], atol=1e-6)
    np.testing.assert_allclose(known.kappa[:3], [60, 80, 70], rtol=1e-5)
    mean = (60.0 * people[2] + 80.0 * near(people, 1)[2]) / 2
    np.testing.assert_allclose(known.mu[3] * known.kappa[3], mean, rtol=1e-4, atol=1e-4)


def test_some_members_are_drawn(opened: Callable[..., Gallery], people: np.ndarray) -> None:
    gallery = opened()
    with pytest.raises(InputError, match="expected members"):
        gallery.members()
    gallery.enrol_many([f"p{i}" for i in range(40)], people, np.zeros(40))
    drawn = [gallery.members(10, seed=seed) for seed in (0, 0, 1)]
    names = [one.identities for one in drawn]
    assert names[0] == names[1] != names[2] and len(set(names[0])) == 10
    rows = [int(name[1:]) for name in names[0]]
    np.testing.assert_allclose(drawn[0].mu, people[rows], atol=1e-6)
    assert (drawn[0].kappa > 0).all()  # 0 has no logarithm


def test_rules_that_a_gallery_keeps_decide(opened: Callable[..., Gallery], people: np.ndarray) -> None:
    stranger, gallery = near(people, 2)[1], opened(calibration=calibration())
    enrolled(gallery, people)
    before = gallery.identify(stranger, 70.0)
    assert (before.answer, before.tested_on) == ("identified", "pairs")
    rules = [
        {**rule.to_dict(), "accept": 1e6, "tested_on": "40 people of the door"}
        for rule in calibration().decisions
    ]
    own = calibration().from_dict(calibration().to_dict() | {"decisions": rules}, model=MODEL)
    gallery.keep_rules(own)
    now = gallery.identify(stranger, 70.0)
    assert (now.answer, now.tested_on) == ("undecided", "40 people of the door")
    gallery.close()
    again = opened(calibration=calibration())
    assert again.calibration == own
    assert again.identify(stranger, 70.0).to_dict()["tested_on"] == "40 people of the door"
    again.keep_rules(None)
    again.close()
    assert opened(calibration=calibration()).identify(stranger, 70.0) == before


def test_rules_of_another_model_and_damaged_ones(
    opened: Callable[..., Gallery], people: np.ndarray, tmp_path: Path
) -> None:
    gallery = opened()
    with pytest.raises(ModelError, match="calibration was made for the model ffff"):
        gallery.keep_rules(calibration(model="f" * 64))
    assert gallery.identify(people[0], 3.0).tested_on is None  # nothing was kept
    gallery.keep_rules(calibration())
    gallery.close()
    for text in ("[]", "{", '{"format": "spherecf.calibration", "version": 9}'):
        with sqlite3.connect(tmp_path / "people") as db:
            db.execute("UPDATE facts SET value = ? WHERE name = 'calibration'", (text,))
        with pytest.raises(FileFormatError, match="the gallery is damaged: its rules"):
            Gallery.open(tmp_path / "people", model=MODEL, dim=DIM, radius=RADIUS)
