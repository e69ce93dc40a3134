"""Rules counted on the available people, and renewed from them."""

from dataclasses import replace

import numpy as np
import pytest

from spherecf.calibration import Calibration, DecisionRule
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import check_people

ALPHAS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6)


def world(people: int, images: int, spread: float = 0.6, seed: int = 0, alike: float = 0.0) -> Embeddings:
    """Images around each person's direction; ``alike`` is the weight of a direction shared by all."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(people, 1, 32)) / np.sqrt(32) + alike * np.eye(32)[0]
    mu = (centres + spread * rng.normal(size=(people, images, 32)) / np.sqrt(32)).reshape(-1, 32)
    mu /= np.linalg.norm(mu, axis=1, keepdims=True)
    labels = np.repeat(np.arange(people), images)
    keys = [str(i) for i in range(len(mu))]
    return Embeddings(
        mu, np.full(len(mu), 4.0), keys, labels=labels, identities=[f"p{i}" for i in range(people)]
    )


def rules(*accepts: float) -> Calibration:
    decisions = tuple(
        DecisionRule("cosine", None, "kappa", accept, 0.1, 0.0, "fmr", alpha, 0.05, fnmr=0.05)
        for accept, alpha in zip(accepts, ALPHAS)
    )
    return Calibration("m", "d", decisions=decisions)


def test_counts_equal_a_slow_loop() -> None:
    e = world(50, 3)
    report = check_people(e, rules(0.5, 0.6), draws=50)
    cosine = e.mu @ e.mu.T
    left, right = np.triu_indices(len(e), 1)
    mated = e.labels[left] == e.labels[right]
    values = cosine[left, right].astype(np.float32)
    assert report.counts == {
        "people": 50, "images": 150, "mated": int(mated.sum()), "non_mated": int((~mated).sum()),
        "left_out": 0,
    }  # fmt: skip
    for check in report.rules:
        assert check.false_matches == int((values[~mated] >= check.rule.accept).sum())
        assert check.matches == int((values[mated] >= check.rule.accept).sum())
        assert check.false_non_matches == int((values[mated] < 0.1).sum())


def test_renewed_rules_hold_on_other_people_of_the_same_population() -> None:
    """People who resemble each other: the old thresholds are far too low, the new ones keep the rate."""
    own_people, other_people = world(120, 4, alike=1.0), world(120, 4, alike=1.0, seed=1)
    report = check_people(own_people, rules(0.4, 0.5, 0.6), draws=200)
    assert [check.verdict for check in report.rules] == ["broken"] * 3
    assert [check.how for check in report.rules] == ["counted"] * 3
    report_on_others = check_people(other_people, report.calibration, draws=200)
    for check in report_on_others.rules:
        assert check.verdict in ("kept", "open")
        assert check.false_matches <= 1.5 * check.rule.alpha * report_on_others.counts["non_mated"]
        assert check.rule.tested_on == "120 people"
    accepts = [check.renewed.accept for check in report.rules]
    assert accepts == sorted(accepts)


def test_rates_below_the_resolution_are_extrapolated() -> None:
    report = check_people(world(120, 4), rules(0.3, 0.5, 0.6, 0.65, 0.7), draws=200)
    last = report.rules[-1]
    assert last.how == "extrapolated" and last.renewed.extrapolated[1] <= 1e-6
    assert last.renewed.accept > report.rules[2].renewed.accept
    assert last.verdict == "open" and "tail of 120 people" in last.renewed.tested_on


def test_rules_that_cannot_be_tested_are_unchanged_and_in_order() -> None:
    report = check_people(world(50, 1), rules(0.2, 0.3, 0.31, 0.32, 0.33), one_each=True, draws=0)
    strictest = report.rules[-1]
    assert strictest.how.startswith("unchanged: 1,225 pairs") and strictest.verdict == "open"
    accepts = [check.renewed.accept for check in report.rules]
    assert accepts == sorted(accepts)
    assert report.calibration.record["people"]["people"] == 50


def test_a_broken_rule_that_cannot_be_renewed_makes_no_decisions() -> None:
    look_alikes = world(60, 1, spread=0.05, alike=30.0)  # all people look alike
    check = check_people(look_alikes, rules(0.2), one_each=True, draws=50).rules[0]
    assert check.verdict == "broken" and (check.renewed.accept is None or check.renewed.accept > 0.99)


def test_a_rule_without_thresholds_is_left_as_it_is() -> None:
    undecided = replace(rules(0.2).decisions[0], accept=None, reject=None)
    check = check_people(world(60, 2), Calibration("m", "d", decisions=(undecided,)), draws=20).rules[0]
    assert check.renewed == undecided and check.how == "unchanged: the rule leaves all pairs undecided"


def test_the_threshold_for_a_non_match_is_renewed_from_many_mated_pairs() -> None:
    e = world(60, 9, spread=1.2)  # 2160 mated pairs; 2000 are needed for a false non-match rate of 0.05
    check = check_people(e, rules(0.6), draws=20).rules[0]
    left, right = np.triu_indices(len(e), 1)
    mated = (e.mu[left] * e.mu[right]).sum(1)[e.labels[left] == e.labels[right]]
    assert check.rule.reject == 0.1 < check.renewed.reject <= check.renewed.accept
    assert 0.02 < (mated < check.renewed.reject).mean() <= 0.05
    few = check_people(world(60, 8, spread=1.2), rules(0.6), draws=20).rules[0]  # 1680 mated pairs
    assert few.renewed.reject == few.rule.reject


def test_too_many_images_are_sampled_per_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.evaluation.people._IMAGES", 120)
    counts = check_people(world(60, 5), rules(0.5), draws=20).counts
    assert counts == {"people": 60, "images": 120, "mated": 60, "non_mated": 7080, "left_out": 180}


def test_bad_input_is_refused() -> None:
    e = world(60, 2)
    with pytest.raises(InputError, match="expected at least 50 people, got 49"):
        check_people(world(49, 2), rules(0.5))
    with pytest.raises(InputError, match="have no names of people"):
        check_people(replace(e, labels=None, identities=[]), rules(0.5))
    with pytest.raises(InputError, match="no rule for the false match rate"):
        check_people(e, Calibration("m", "d"))
    with pytest.raises(InputError, match="seed: expected 0 or more, got -1"):
        check_people(e, rules(0.5), seed=-1)
    other_radius = replace(rules(0.5).decisions[0], score="mls", radius=32.0)
    with pytest.raises(InputError, match="radius 32, the embeddings have 64"):
        check_people(e, Calibration("m", "d", decisions=(other_radius,)))
