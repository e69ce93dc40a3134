"""Conditional evidence: its fit, its monotonicity, its rarity against counts, and refused input."""

import json
from typing import Any

import numpy as np
import pytest
from scipy.stats import genpareto, norm
from sklearn.linear_model import LogisticRegression

from spherecf.calibration import Calibration, ConditionalCalibrator, DecisionRule, LogisticCalibrator
from spherecf.errors import InputError
from spherecf.evaluation import cllr


def make_pairs(seed: int, n: int = 40_000, roles: bool = False) -> dict[str, Any]:
    """Simulated pairs: lower kappas mean a larger spread of cosines and lower cosines of mated pairs."""
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
def calibrator() -> ConditionalCalibrator:
    return fit(make_pairs(0))


def test_its_cllr_is_lower_than_that_of_a_line_on_new_pairs(calibrator: ConditionalCalibrator) -> None:
    new = make_pairs(1)
    line = LogisticCalibrator.fit(make_pairs(0)["scores"], make_pairs(0)["mated"], score="mls")
    cost = cllr(calibrator.llr(new["scores"], tuple(new["kappas"])), new["mated"])
    assert cost < cllr(line(new["scores"]), new["mated"]) - 0.02


def test_one_threshold_has_the_same_fmr_at_all_kappas(calibrator: ConditionalCalibrator) -> None:
    new = make_pairs(2, 400_000)
    other = ~new["mated"]
    kappas = new["kappas"][:, other]
    rarity = calibrator.rarity(new["cosines"][other], tuple(kappas))
    level = np.log(kappas).sum(0)
    for rate in (0.05, 0.01, 0.001):
        for low, high in ((6, 7.5), (7.5, 9), (9, 11)):
            inside = (level >= low) & (level < high)
            assert rate / 2 < (rarity[inside] >= -np.log(rate)).mean() < 2 * rate


@pytest.mark.parametrize("roles", [False, True])
@pytest.mark.parametrize("shape", [0.2, 0.0])
def test_the_formula(roles: bool, shape: float) -> None:
    rng = np.random.default_rng(0)
    long, short = (6, 4) if roles else (4, 3)
    offset, slope, start, spread = (rng.normal(size=size) / 9 for size in (long, short, long, short))
    start /= 4  # a threshold of cosines
    calibrator = ConditionalCalibrator(
        "evidence", 64.0, -400.0, roles, (3.0, 6.0), (3.5, 6.5), tuple(offset), tuple(slope), tuple(start),
        tuple(spread), shape, 0.05, 10**9, 10**9,
    )  # fmt: skip
    left, right = np.log(40.0), np.log(600.0)
    total, apart = left + right - 10, left - right
    terms = np.array([1, total, apart**2, apart, total**2, apart * total] if roles else
                     [1, total, apart**2, total**2])  # fmt: skip
    of = {name: terms[: len(theta)] @ theta for name, theta in
          {"offset": offset, "slope": slope, "start": start, "spread": spread}.items()}  # fmt: skip
    ratio = of["offset"] + np.log(1 + np.exp(of["slope"])) * (np.array([-7.0, 2.0]))
    assert calibrator.llr([-407.0, -398.0], (40.0, 600.0)) == pytest.approx(ratio)
    scale = np.exp(of["spread"])
    above = np.array([0.0, 0.3, 2.0])
    rarity = calibrator.rarity(of["start"] + above, (40.0, 600.0))
    assert rarity == pytest.approx(-np.log(0.05) - genpareto.logsf(above, shape, scale=scale))
    evidence = calibrator.evidence([-407.0, -398.0, -300.0], of["start"] + 0.3, (40.0, 600.0))
    ratio = calibrator._ratio([-407.0, -398.0, -300.0], (40.0, 600.0))
    assert evidence == pytest.approx(
        [ratio[0], min(rarity[1], 2.5 * ratio[1]), min(rarity[1], 2.5 * ratio[2])]
    )
    below = calibrator.rarity(of["start"] - 0.3, (40.0, 600.0))  # falls to 0 as steeply as it rises at first
    assert below == pytest.approx(-np.log(0.05) * np.exp(-0.3 / scale / -np.log(0.05)))


def test_a_bounded_tail_continues_as_a_line() -> None:
    calibrator = ConditionalCalibrator(
        "evidence", 64.0, 0.0, False, (5.0, 5.0), (5.0, 5.0), (0.0,) * 4, (0.0,) * 3, (0.0,) * 4, (0.0,) * 3,
        -0.25, 0.05, 9, 9,
    )  # fmt: skip
    above = np.array([1.0, 3.7, 3.8, 4.8, 9.8])  # the tail would end at 4; the line begins at 3.8
    expected = -np.log(0.05) + np.append(
        -genpareto.logsf(above[:3], -0.25), np.log(0.05) / -0.25 + np.array([1.0, 6.0])
    )
    assert calibrator.rarity(above, (150.0, 150.0)) == pytest.approx(expected)


def test_at_one_kappa_it_is_logistic_regression_and_a_pareto_tail() -> None:
    rng = np.random.default_rng(3)
    mated = np.arange(20_000) < 50  # so few that the one more counts
    cosines = 0.1 * rng.normal(size=mated.size) + 0.25 * mated
    scores, kappas = 40 * cosines - 400, np.full((2, mated.size), np.exp(5.0))
    calibrator = fit({"scores": scores, "cosines": cosines, "kappas": kappas, "mated": mated})
    # Either kind weighs half, and one more pair of it stands on the wrong side.
    target = np.where(mated, 1 - 1 / (mated.sum() + 2), 1 / ((~mated).sum() + 2))
    weight = mated.size * np.where(mated, 0.5 / mated.sum(), 0.5 / (~mated).sum())
    slow = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(
        np.tile(scores + 400, 2)[:, None] / 10, np.repeat([1, 0], mated.size),
        sample_weight=np.concatenate([weight * target, weight * (1 - target)]),
    )  # fmt: skip
    assert calibrator.offset[0] == pytest.approx(slow.intercept_[0], rel=1e-3)
    assert np.log1p(np.exp(calibrator.slope[0])) == pytest.approx(slow.coef_[0, 0] / 10, rel=1e-3)
    other = cosines[~mated]
    above = other[other > calibrator.start[0]] - calibrator.start[0]
    assert above.size / other.size == pytest.approx(0.05, abs=1.5e-3)
    shape, _, scale = genpareto.fit(above, floc=0)
    assert (calibrator.shape, np.exp(calibrator.spread[0])) == (
        pytest.approx(shape, abs=2e-3), pytest.approx(scale, rel=2e-3)
    )  # fmt: skip


def test_the_rarity_depends_on_the_kappas_of_both_sides() -> None:
    """The spread of non-mated cosines depends on the sum and on the difference of the log concentrations."""
    rng = np.random.default_rng(4)
    log_kappa = rng.uniform(4, 6, (2, 60_000))
    mated = np.arange(60_000) % 4 == 0

    def sigma(left: Any, right: Any) -> Any:
        return 0.1 * np.exp(-0.2 * (left + right - 10) + 0.2 * (left - right) ** 2)

    cosines = (sigma(*log_kappa) * rng.normal(size=mated.size) + 0.5 * mated).clip(-1, 1)
    data = {"scores": 40 * cosines - 400, "cosines": cosines, "kappas": np.exp(log_kappa), "mated": mated}
    calibrator = fit(data)
    for left, right in ((4.3, 4.3), (5.0, 5.0), (5.8, 5.8), (4.3, 5.7), (5.7, 4.3)):
        for times in (2.0, 3.0):
            rarity = calibrator.rarity(times * sigma(left, right), (np.exp(left), np.exp(right)))
            assert rarity == pytest.approx(-norm.logsf(times), rel=0.15)


@pytest.mark.parametrize("roles", [False, True])
def test_all_values_increase_with_the_cosine(roles: bool) -> None:
    calibrator = fit(make_pairs(3, roles=roles), roles=roles)
    cosine = np.linspace(-1, 1, 400)
    for kappas in ((5.0, 400.0), (100.0, 100.0), (30.0, 30.0), (0.0, 1e9)):
        scores = cosine * 10 - 400
        assert (np.diff(calibrator.llr(scores, kappas)) >= 0).all()
        assert (np.diff(calibrator.rarity(cosine, kappas)) > 0).all()
        assert (np.diff(calibrator.evidence(scores, cosine, kappas)) >= 0).all()


def test_sides_may_be_swapped_unless_they_have_roles(calibrator: ConditionalCalibrator) -> None:
    left_right, right_left = (
        calibrator.evidence(-395.0, 0.3, (40.0, 200.0)),
        calibrator.evidence(-395.0, 0.3, (200.0, 40.0)),
    )
    assert left_right == right_left
    template = fit(make_pairs(4, roles=True), roles=True)
    assert template.evidence(-395.0, 0.3, (40.0, 200.0)) != template.evidence(-395.0, 0.3, (200.0, 40.0))


def test_the_rarity_is_limited_where_the_ratio_is_small(calibrator: ConditionalCalibrator) -> None:
    scores, cosines = np.array([-400.0, -399.0, -380.0]), np.array([0.9, 0.9, 0.9])
    ratio = calibrator._ratio(scores, (25.0, 25.0))
    found = calibrator.evidence(scores, cosines, (25.0, 25.0))
    assert (found <= np.maximum(2.5 * ratio, ratio)).all() and found[0] < 1 < calibrator.rarity(
        0.9, (25.0, 25.0)
    )


def test_conditions_have_the_same_weight_for_any_number_of_pairs() -> None:
    data = make_pairs(5)
    twice = {name: np.concatenate([column, column[..., :20_000]], -1) for name, column in data.items()}
    where = np.arange(40_000) // 20_000
    once, again = (
        fit(d, conditions=w) for d, w in ((data, where), (twice, np.append(where, where[:20_000])))
    )
    np.testing.assert_allclose(once.offset, again.offset, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(once.start, again.start, atol=1e-3)


@pytest.mark.parametrize("mated", [False, True])
def test_a_condition_without_mated_or_non_mated_pairs_has_no_weight(mated: bool) -> None:
    data = make_pairs(5, 20_000)
    strange = {"scores": np.full(200, -390.0), "cosines": np.full(200, 0.9), "mated": np.full(200, mated),
               "kappas": np.full((2, 200), 100.0)}  # fmt: skip
    more = {name: np.concatenate([column, strange[name]], -1) for name, column in data.items()}
    alone, again = fit(data), fit(more, conditions=np.repeat([0, 1], [20_000, 200]))
    np.testing.assert_allclose(alone.offset, again.offset, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(alone.start, again.start, atol=1e-3)


def test_kappas_are_clipped_to_the_range_of_the_fit(calibrator: ConditionalCalibrator) -> None:
    low, high = np.exp(calibrator.left)
    assert calibrator.llr(-399.0, (0.0, 1e30)) == pytest.approx(
        calibrator.llr(-399.0, (low, high)), rel=1e-12
    )
    data = make_pairs(6)
    data["kappas"][0, :5] = 0
    assert np.isfinite(fit(data).left).all()


def test_pairs_that_separate_perfectly_stay_finite() -> None:
    data = make_pairs(7)
    data["scores"] = np.where(data["mated"], -390.0, -410.0) + data["cosines"]
    assert np.isfinite(fit(data).llr([-410.0, -390.0], (50.0, 50.0))).all()


def test_through_json_and_a_calibration(calibrator: ConditionalCalibrator) -> None:
    facts = json.loads(json.dumps(calibrator.to_dict(), allow_nan=False))
    assert ConditionalCalibrator.from_dict(facts) == calibrator
    calibration = Calibration("m" * 64, "d" * 64, likelihood={"evidence": calibrator})
    saved = calibration.to_dict()
    assert saved["version"] == 2 and Calibration.from_dict(json.loads(json.dumps(saved))) == calibration
    kappas = (50.0, 90.0)
    assert calibration.llr("evidence", -395.0, 64.0, kappas=kappas) == calibrator.llr(-395.0, kappas)
    assert calibration.evidence("evidence", -395.0, 0.2, kappas) == calibrator.evidence(-395.0, 0.2, kappas)
    assert calibration.evidence("mls", -395.0, 0.2, kappas) == -395.0
    assert calibration.best_score() == "evidence" and calibration.best_score(1) == "mls"


def test_older_calibrations_can_be_opened_and_are_written_in_the_older_version() -> None:
    line = LogisticCalibrator("mls", 64.0, 0.6, 240.0, 100, 100)
    rule = DecisionRule("mls", 64.0, "kappa", -390.0, -410.0, 20.0, "fmr", 1e-3, 0.05)
    older = Calibration("m" * 64, "d" * 64, likelihood={"mls": line}, decisions=(rule,))
    facts = older.to_dict()
    assert facts["version"] == 1 and "extrapolated" not in facts["decisions"][0]
    found = Calibration.from_dict(facts)
    assert found == older and found.best_score() == found.best_score(2) == "mls"
    assert found.best_decision(1e-3) == found.best_decision(1e-3, 1) == rule
    assert found.evidence("mls", [-395.0], [0.2], (1.0, 1.0)).tolist() == [-395.0]


def test_evidence_that_was_not_calibrated_is_refused(calibrator: ConditionalCalibrator) -> None:
    calibration = Calibration("m" * 64, "d" * 64, likelihood={"evidence": calibrator})
    with pytest.raises(InputError, match=r"no evidence for the score 'evidence-templates'; .* for evidence"):
        calibration.evidence("evidence-templates", -395.0, 0.2, (1.0, 1.0))
    with pytest.raises(InputError, match="needs the kappas of both sides"):
        calibration.llr("evidence", -395.0)
    with pytest.raises(InputError, match=r"radius 64"):
        calibration.llr("evidence", -395.0, 32.0, kappas=(1.0, 1.0))
    with pytest.raises(InputError, match="no decision rule"):
        calibration.best_decision(1e-3)


def test_bad_data_are_refused(calibrator: ConditionalCalibrator) -> None:
    data = make_pairs(8, 4000)
    for bad, message in (
        ({"scores": np.full(4000, -400.0)}, "all 4000 scores are equal"),
        ({"scores": -data["scores"]}, "swapped"),
        ({"cosines": data["cosines"][:9]}, "expected cosines"),
        ({"cosines": np.full(4000, np.nan)}, "NaN"),
        ({"cosines": 100 * data["cosines"]}, r"cosines: expected -1 \.\. 1, got"),
        ({"conditions": np.zeros(9)}, r"expected conditions \(4000,\), got \(9,\)"),
        ({"conditions": data["mated"]}, "no condition has both mated and non-mated pairs"),
        ({"kappas": -data["kappas"]}, ">= 0"),
        ({"kappas": 0 * data["kappas"]}, "above 0"),
        ({"mated": np.zeros(4000, bool)}, "error rates need both kinds"),
    ):
        with pytest.raises(InputError, match=message):
            fit({**data, **bad})
    with pytest.raises(InputError, match=r"2000 non-mated pairs; there are \d{3}"):
        fit({name: column[..., :900] for name, column in data.items()})
    with pytest.raises(InputError, match="expected numbers >= 0 and finite"):
        calibrator.llr(-400.0, (np.inf, 1.0))
    with pytest.raises(InputError, match=r"cosines: expected -1 \.\. 1, got 32"):
        calibrator.evidence(-400.0, 32.0, (1.0, 1.0))
    data = make_pairs(8, 9000)
    for bad, what in (
        ({"cosines": np.where(data["mated"], data["cosines"], 0.1)}, "tail"),  # no tail of non-mated pairs
        ({"scores": np.where(np.arange(9000), data["scores"], 1e300)}, "likelihood ratio"),
    ):
        with pytest.raises(InputError, match=f"the fit of the {what} did not converge"):
            fit({**data, **bad})
    facts = calibrator.to_dict()
    for wrong in (
        {"offset": [1.0]}, {"slope": [0.0, 1.0, np.inf]}, {"left": [3.0, 2.0]}, {"left": [3.0, np.inf]},
        {"right": [-np.inf, 3.0]}, {"tail": 0.0}, {"tail": 1.0}, {"mated": 0}, {"non_mated": 0},
        {"shape": 1.0}, {"shape": -1.5}, {"neutral": np.inf}, {"radius": 0.0},
    ):  # fmt: skip
        with pytest.raises(InputError):
            ConditionalCalibrator.from_dict({**facts, **wrong})
    fine = {"left": [3.0, 3.0], "mated": 1, "non_mated": 1, "shape": -0.9, "tail": 0.5}
    assert ConditionalCalibrator.from_dict({**facts, **fine}).left == (3.0, 3.0)


def test_the_fit_does_not_depend_on_the_unit_of_the_scores(calibrator: ConditionalCalibrator) -> None:
    data, new = make_pairs(0), make_pairs(1)
    least = cllr(calibrator.llr(new["scores"], tuple(new["kappas"])), new["mated"])
    for unit in (1e-6, 1e3):
        other = ConditionalCalibrator.fit(
            **{**data, "scores": unit * data["scores"]}, score="evidence", radius=64.0, neutral=-400.0 * unit
        )
        assert cllr(other.llr(unit * new["scores"], tuple(new["kappas"])), new["mated"]) < least + 0.1
