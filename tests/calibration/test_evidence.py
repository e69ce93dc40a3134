"""Conditional evidence: what it learns, that it rises, its rarity against counts, and what it refuses."""

import json
from typing import Any

import numpy as np
import pytest

from spherecf.calibration import Calibration, ConditionalCalibrator, DecisionRule, LogisticCalibrator
from spherecf.errors import InputError
from spherecf.evaluation import cllr


def world(seed: int, n: int = 40_000, roles: bool = False) -> dict[str, Any]:
    """Pairs whose cosines scatter more and whose mated ones agree less, the less sure both sides are."""
    rng = np.random.default_rng(seed)
    log_kappa = rng.uniform(3, 5.5, (2, n))
    if roles:
        log_kappa[0] += 1
    mated = rng.random(n) < 0.25
    informative = log_kappa.sum(0) - 8 - roles
    spread = 0.06 + 0.02 * (3 - informative / 2)
    cosines = spread * rng.normal(size=n) + mated * 0.15 * informative * (informative > 0)
    scores = cosines * np.exp(log_kappa.sum(0) / 4) - 400
    return {"scores": scores, "cosines": cosines, "kappas": np.exp(log_kappa), "mated": mated}


def fit(data: dict[str, Any], **more: Any) -> ConditionalCalibrator:
    return ConditionalCalibrator.fit(**data, score="evidence", radius=64.0, neutral=-400.0, **more)


@pytest.fixture(scope="module")
def known() -> ConditionalCalibrator:
    return fit(world(0))


def test_it_costs_less_than_a_line_on_new_pairs(known: ConditionalCalibrator) -> None:
    new = world(1)
    line = LogisticCalibrator.fit(world(0)["scores"], world(0)["mated"], score="mls")
    own = cllr(known.llr(new["scores"], tuple(new["kappas"])), new["mated"])
    assert own < cllr(line(new["scores"]), new["mated"]) - 0.02


def test_one_threshold_lets_as_many_strangers_pass_whatever_the_kappas(known: ConditionalCalibrator) -> None:
    new = world(2, 400_000)
    other = ~new["mated"]
    kappas = new["kappas"][:, other]
    rarity = known.rarity(new["cosines"][other], tuple(kappas))
    level = np.log(kappas).sum(0)
    for rate in (0.05, 0.01, 0.001):
        for low, high in ((6, 7.5), (7.5, 9), (9, 11)):
            inside = (level >= low) & (level < high)
            assert rate / 2 < (rarity[inside] >= -np.log(rate)).mean() < 2 * rate


@pytest.mark.parametrize("roles", [False, True])
def test_all_rise_with_the_cosine(roles: bool) -> None:
    calibrator = fit(world(3, roles=roles), roles=roles)
    cosine = np.linspace(-1, 1, 400)
    for kappas in ((5.0, 400.0), (100.0, 100.0), (30.0, 30.0), (0.0, 1e9)):
        scores = cosine * 10 - 400
        assert (np.diff(calibrator.llr(scores, kappas)) >= 0).all()
        assert (np.diff(calibrator.rarity(cosine, kappas)) > 0).all()
        assert (np.diff(calibrator.evidence(scores, cosine, kappas)) >= 0).all()


def test_sides_may_be_swapped_unless_they_have_roles(known: ConditionalCalibrator) -> None:
    there, back = known.evidence(-395.0, 0.3, (40.0, 200.0)), known.evidence(-395.0, 0.3, (200.0, 40.0))
    assert there == back
    template = fit(world(4, roles=True), roles=True)
    assert template.evidence(-395.0, 0.3, (40.0, 200.0)) != template.evidence(-395.0, 0.3, (200.0, 40.0))


def test_rare_is_not_enough_where_the_ratio_is_small(known: ConditionalCalibrator) -> None:
    scores, cosines = np.array([-400.0, -399.0, -380.0]), np.array([0.9, 0.9, 0.9])
    ratio = known._ratio(scores, (25.0, 25.0))
    found = known.evidence(scores, cosines, (25.0, 25.0))
    assert (found <= np.maximum(2.5 * ratio, ratio)).all() and found[0] < 1 < known.rarity(0.9, (25.0, 25.0))


def test_conditions_count_alike_however_many_pairs_they_have() -> None:
    data = world(5)
    twice = {name: np.concatenate([column, column[..., :20_000]], -1) for name, column in data.items()}
    where = np.arange(40_000) // 20_000
    once, again = (
        fit(d, conditions=w) for d, w in ((data, where), (twice, np.append(where, where[:20_000])))
    )
    np.testing.assert_allclose(once.offset, again.offset, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(once.start, again.start, atol=1e-3)


def test_kappas_beyond_those_seen_count_as_the_nearest(known: ConditionalCalibrator) -> None:
    low, high = np.exp(known.left)
    assert known.llr(-399.0, (0.0, 1e30)) == pytest.approx(known.llr(-399.0, (low, high)), rel=1e-12)
    data = world(6)
    data["kappas"][0, :5] = 0
    assert np.isfinite(fit(data).left).all()


def test_pairs_that_separate_perfectly_stay_finite() -> None:
    data = world(7)
    data["scores"] = np.where(data["mated"], -390.0, -410.0) + data["cosines"]
    assert np.isfinite(fit(data).llr([-410.0, -390.0], (50.0, 50.0))).all()


def test_through_json_and_a_calibration(known: ConditionalCalibrator) -> None:
    facts = json.loads(json.dumps(known.to_dict(), allow_nan=False))
    assert ConditionalCalibrator.from_dict(facts) == known
    calibration = Calibration("m" * 64, "d" * 64, likelihood={"evidence": known})
    said = calibration.to_dict()
    assert said["version"] == 2 and Calibration.from_dict(json.loads(json.dumps(said))) == calibration
    kappas = (50.0, 90.0)
    assert calibration.llr("evidence", -395.0, 64.0, kappas=kappas) == known.llr(-395.0, kappas)
    assert calibration.evidence("evidence", -395.0, 0.2, kappas) == known.evidence(-395.0, 0.2, kappas)
    assert calibration.evidence("mls", -395.0, 0.2, kappas) == -395.0
    assert calibration.best_score() == "evidence" and calibration.best_score(1) == "mls"


def test_older_calibrations_open_with_their_line_and_are_written_as_before() -> None:
    line = LogisticCalibrator("mls", 64.0, 0.6, 240.0, 100, 100)
    rule = DecisionRule("mls", 64.0, "kappa", -390.0, -410.0, 20.0, "fmr", 1e-3, 0.05)
    older = Calibration("m" * 64, "d" * 64, likelihood={"mls": line}, decisions=(rule,))
    facts = older.to_dict()
    assert facts["version"] == 1 and "extrapolated" not in facts["decisions"][0]
    found = Calibration.from_dict(facts)
    assert found == older and found.best_score() == found.best_score(2) == "mls"
    assert found.best_decision(1e-3) == found.best_decision(1e-3, 1) == rule
    assert found.evidence("mls", [-395.0], [0.2], (1.0, 1.0)).tolist() == [-395.0]


def test_what_was_never_calibrated_is_refused(known: ConditionalCalibrator) -> None:
    calibration = Calibration("m" * 64, "d" * 64, likelihood={"evidence": known})
    with pytest.raises(InputError, match=r"no evidence for the score 'evidence-templates'; .* for evidence"):
        calibration.evidence("evidence-templates", -395.0, 0.2, (1.0, 1.0))
    with pytest.raises(InputError, match="takes the kappas of both sides"):
        calibration.llr("evidence", -395.0)
    with pytest.raises(InputError, match=r"radius 64"):
        calibration.llr("evidence", -395.0, 32.0, kappas=(1.0, 1.0))
    with pytest.raises(InputError, match="no decision rule"):
        calibration.best_decision(1e-3)


def test_bad_data_are_refused(known: ConditionalCalibrator) -> None:
    data = world(8, 4000)
    for bad, message in (
        ({"scores": np.full(4000, -400.0)}, "all 4000 scores are equal"),
        ({"scores": -data["scores"]}, "swapped"),
        ({"cosines": data["cosines"][:9]}, "expected cosines"),
        ({"cosines": np.full(4000, np.nan)}, "NaN"),
        ({"kappas": -data["kappas"]}, ">= 0"),
        ({"kappas": 0 * data["kappas"]}, "above 0"),
        ({"mated": np.zeros(4000, bool)}, "error rates need both kinds"),
    ):
        with pytest.raises(InputError, match=message):
            fit({**data, **bad})
    with pytest.raises(InputError, match=r"2000 of them; there are \d{3}"):
        fit({name: column[..., :900] for name, column in data.items()})
    with pytest.raises(InputError, match="expected numbers >= 0 and finite"):
        known.llr(-400.0, (np.inf, 1.0))
    facts = known.to_dict()
    for wrong in ({"offset": [1.0]}, {"left": [3.0, 2.0]}, {"tail": 0.0}, {"mated": 0}, {"shape": 2.0}):
        with pytest.raises(InputError):
            ConditionalCalibrator.from_dict({**facts, **wrong})
