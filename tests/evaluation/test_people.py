"""Rules are counted on people at hand, and made anew from them."""

from dataclasses import replace

import numpy as np
import pytest

from spherecf.calibration import Calibration, DecisionRule
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import check_people

ALPHAS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)


def world(people: int, images: int, spread: float = 0.6, seed: int = 0, alike: float = 0.0) -> Embeddings:
    """Images around the directions of people; ``alike`` of every direction is one that all share."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(people, 1, 32)) / np.sqrt(32) + alike * np.eye(32)[0]
    mu = (own + spread * rng.normal(size=(people, images, 32)) / np.sqrt(32)).reshape(-1, 32)
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    labels = np.repeat(np.arange(people), images)
    keys = [str(i) for i in range(len(mu))]
    return Embeddings(
        mu, np.full(len(mu), 4.0), keys, labels=labels, identities=[f"p{i}" for i in range(people)]
    )


def rules(*accepts: float) -> Calibration:
    made = tuple(
        DecisionRule("cosine", None, "kappa", accept, 0.1, 0.0, "fmr", alpha, 0.05, fnmr=0.05)
        for accept, alpha in zip(accepts, ALPHAS)
    )
    return Calibration("m", "d", decisions=made)


def test_counts_are_those_of_a_slow_loop() -> None:
    e = world(50, 3)
    report = check_people(e, rules(0.5, 0.6), draws=50)
    cosine = e.mu @ e.mu.T
    left, right = np.triu_indices(len(e), 1)
    same = e.labels[left] == e.labels[right]
    values = cosine[left, right].astype(np.float32)
    assert report.counts == {
        "people": 50, "images": 150, "mated": int(same.sum()), "non_mated": int((~same).sum()), "left_out": 0
    }  # fmt: skip
    for one in report.rules:
        assert one.false_matches == int((values[~same] >= one.rule.accept).sum())
        assert one.matches == int((values[same] >= one.rule.accept).sum())
        assert one.false_non_matches == int((values[same] < 0.1).sum())


def test_renewed_rules_hold_on_other_people_of_the_kind() -> None:
    """Their people resemble each other, so the old thresholds are far too low; the new ones keep the rate."""
    ours, others = world(120, 4, alike=1.0), world(120, 4, alike=1.0, seed=1)
    report = check_people(ours, rules(0.4, 0.5, 0.6), draws=200)
    assert [one.verdict for one in report.rules] == ["broken"] * 3
    assert [one.how for one in report.rules] == ["counted"] * 3
    again = check_people(others, report.calibration, draws=200)
    for one in again.rules:
        assert one.verdict in ("kept", "open")
        assert one.false_matches <= 1.5 * one.rule.alpha * again.counts["non_mated"]
        assert one.rule.tested_on == "120 people"
    accepts = [one.renewed.accept for one in report.rules]
    assert accepts == sorted(accepts)


def test_rates_beyond_the_pairs_come_from_their_tail() -> None:
    report = check_people(world(120, 4), rules(0.3, 0.5, 0.6, 0.65, 0.7), draws=200)
    last = report.rules[-1]
    assert last.how == "extrapolated" and last.renewed.extrapolated[1] <= 1e-6
    assert last.renewed.accept > report.rules[2].renewed.accept
    assert last.verdict == "open" and "tail of 120 people" in last.renewed.tested_on


def test_what_cannot_be_told_stays_and_is_never_below_a_looser_rule() -> None:
    report = check_people(world(50, 1), rules(0.2, 0.3, 0.31, 0.32, 0.33), one_each=True, draws=0)
    kept = report.rules[-1]
    assert kept.how.startswith("unchanged: 1,225 pairs") and kept.verdict == "open"
    accepts = [one.renewed.accept for one in report.rules]
    assert accepts == sorted(accepts)
    assert report.calibration.record["people"]["people"] == 50


def test_a_broken_rule_that_cannot_be_renewed_decides_nothing() -> None:
    crowd = world(60, 1, spread=0.05, alike=30.0)  # all alike
    one = check_people(crowd, rules(0.2), one_each=True, draws=50).rules[0]
    assert one.verdict == "broken" and (one.renewed.accept is None or one.renewed.accept > 0.99)


def test_many_images_are_drawn_person_by_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.evaluation.people._IMAGES", 120)
    counts = check_people(world(60, 5), rules(0.5), draws=20).counts
    assert counts == {"people": 60, "images": 120, "mated": 60, "non_mated": 7080, "left_out": 180}


def test_bad_input() -> None:
    e = world(60, 2)
    with pytest.raises(InputError, match="expected at least 50 people, got 49"):
        check_people(world(49, 2), rules(0.5))
    with pytest.raises(InputError, match="have no names of people"):
        check_people(replace(e, labels=None, identities=[]), rules(0.5))
    with pytest.raises(InputError, match="no rule for the false match rate"):
        check_people(e, Calibration("m", "d"))
    other = replace(rules(0.5).decisions[0], score="mls", radius=32.0)
    with pytest.raises(InputError, match="radius 32, the embeddings have 64"):
        check_people(e, Calibration("m", "d", decisions=(other,)))
