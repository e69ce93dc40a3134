"""Weights and calibrator: what they find, that they repeat, and what they refuse to learn from."""

import numpy as np
import pytest
from tests.reference.open_world import open_world

from spherecf.evaluation import Decisions, OpenSet, decide, prediction_rejection_ratio
from spherecf.evaluation.open_set import Searched, divergences, log_risks
from spherecf.evaluation.rejection import RiskWeights, fit_calibrator, fit_risk_weights


@pytest.fixture(scope="module")
def learned() -> tuple[Searched, Decisions]:
    data = OpenSet(*open_world(enrolled=40, strangers=40))
    found = data.search((20.0, 150.0), 0.5, 0)
    best, truth = found.posterior, data.truth
    return found, decide(best.best_cosine, best.best == truth, truth >= 0, 0.6)


def test_random_search_repeats_and_never_loses_to_equal_weights(learned: tuple[Searched, Decisions]) -> None:
    found, made = learned
    risks = log_risks(found, made.accepted)
    options = {"limit": 0.5, "trials": 80}
    one, same, other = (fit_risk_weights(risks, made, seed=s, **options) for s in (0, 0, 1))
    assert one.by_name() == same.by_name() != other.by_name()
    assert max(one.log_weights) == 0
    assert one.prr == pytest.approx(prediction_rejection_ratio(one.confidence(risks), made))
    equal = prediction_rejection_ratio(RiskWeights(np.zeros(4), np.nan).confidence(risks), made)
    assert one.prr >= equal and other.prr >= equal


def test_the_weighted_sum_is_one(learned: tuple[Searched, Decisions]) -> None:
    found, made = learned
    risks = log_risks(found, made.accepted)
    weights = np.array([0.3, 1.0, 0.0, 0.7])
    with np.errstate(divide="ignore"):
        got = RiskWeights(np.log(weights), np.nan).confidence(risks)
        assert got == pytest.approx(-np.log(np.exp(risks) @ weights))
        rejected = RiskWeights(np.log([1.0, 1.0, 0.0, 0.0]), np.nan).confidence(risks)
    assert (rejected[~made.accepted] == np.inf).all()  # no risk is weighed: nothing to fear


def test_risks_of_any_size_are_brought_together() -> None:
    rng = np.random.default_rng(0)
    accepted = rng.random(600) < 0.5
    danger = rng.normal(size=600)
    none = np.full(600, -np.inf)
    risks = np.stack(
        [np.where(accepted, danger, none), none, none, np.where(accepted, none, danger - 900)], 1
    )
    wrong = danger > 1
    made = Decisions(0.0, accepted, accepted & ~wrong, wrong, np.zeros(600, bool))
    found = fit_risk_weights(risks, made, limit=0.5, trials=200, seed=0)
    assert found.log_weights[0] - found.log_weights[3] == pytest.approx(-900, abs=2) and found.prr > 0.95


def test_nothing_to_learn_from(learned: tuple[Searched, Decisions]) -> None:
    found, made = learned
    right = Decisions(0.6, made.accepted, made.accepted, np.zeros_like(made.wrong), made.misidentified)
    risks, parts = log_risks(found, made.accepted), divergences(found)
    assert fit_risk_weights(risks, right, limit=0.5, trials=8, seed=0) is None
    assert fit_calibrator(parts, right.wrong) is None and fit_calibrator(parts, ~right.wrong) is None


def test_the_calibrator_is_the_best_of_its_kind(learned: tuple[Searched, Decisions]) -> None:
    found, made = learned
    parts = divergences(found)
    fit = fit_calibrator(parts, made.wrong)

    def loss(coefficients: np.ndarray) -> float:
        odds = fit._terms(parts) @ coefficients
        sign = np.where(made.wrong, -1, 1)
        return float(np.logaddexp(0, -sign * odds).sum() + (coefficients[1:] ** 2).sum() / 2)

    rng = np.random.default_rng(0)
    least = loss(fit.coefficients)
    assert all(loss(fit.coefficients + 0.01 * rng.normal(size=6)) > least for _ in range(50))
    sure = fit.confidence(parts)
    assert sure[~made.wrong].mean() > sure[made.wrong].mean() + 1
    assert np.mean(1 / (1 + np.exp(-sure))) == pytest.approx(np.mean(~made.wrong), abs=1e-6)


def test_separable_errors_and_constant_columns_have_a_finite_fit() -> None:
    parts = np.stack([np.linspace(-1, 1, 40), np.ones(40)], 1)
    fit = fit_calibrator(parts, parts[:, 0] < 0)
    assert np.isfinite(fit.coefficients).all() and (np.diff(fit.confidence(parts)) > 0).all()
