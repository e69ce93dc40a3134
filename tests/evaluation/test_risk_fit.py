"""Weights and calibrator: quality of the fit, reproducibility, and data without information."""

import numpy as np
import pytest
from tests.reference.open_world import open_world

from spherecf.evaluation import Decisions, OpenSet, decide, prediction_rejection_ratio
from spherecf.evaluation.open_set import Searched, divergences, log_risks
from spherecf.evaluation.rejection import RiskWeights, fit_calibrator, fit_risk_weights


@pytest.fixture(scope="module")
def search_and_decisions() -> tuple[Searched, Decisions]:
    data = OpenSet(*open_world(enrolled=40, strangers=40))
    result = data.search((20.0, 150.0), 0.5, 0)
    posterior, truth = result.posterior, data.truth
    return result, decide(posterior.best_cosine, posterior.best == truth, truth >= 0, 0.6)


def test_random_search_is_reproducible_and_at_least_as_good_as_equal_weights(
    search_and_decisions: tuple[Searched, Decisions],
) -> None:
    result, decisions = search_and_decisions
    risks = log_risks(result, decisions.accepted)
    options = {"limit": 0.5, "trials": 80}
    fit, repeated, other_seed = (fit_risk_weights(risks, decisions, seed=s, **options) for s in (0, 0, 1))
    assert fit.by_name() == repeated.by_name() != other_seed.by_name()
    assert max(fit.log_weights) == 0
    assert fit.prr == pytest.approx(prediction_rejection_ratio(fit.confidence(risks), decisions))
    equal = prediction_rejection_ratio(RiskWeights(np.zeros(4), np.nan).confidence(risks), decisions)
    assert fit.prr >= equal and other_seed.prr >= equal


def test_confidence_is_minus_the_log_of_the_weighted_risks(
    search_and_decisions: tuple[Searched, Decisions],
) -> None:
    result, decisions = search_and_decisions
    risks = log_risks(result, decisions.accepted)
    weights = np.array([0.3, 1.0, 0.0, 0.7])
    with np.errstate(divide="ignore"):
        confidence = RiskWeights(np.log(weights), np.nan).confidence(risks)
        assert confidence == pytest.approx(-np.log(np.exp(risks) @ weights))
        rejected = RiskWeights(np.log([1.0, 1.0, 0.0, 0.0]), np.nan).confidence(risks)
    assert (rejected[~decisions.accepted] == np.inf).all()  # all their risks have weight 0


def test_weights_balance_risks_of_very_different_scales() -> None:
    rng = np.random.default_rng(0)
    accepted = rng.random(600) < 0.5
    danger = rng.normal(size=600)
    no_risk = np.full(600, -np.inf)
    risks = np.stack(
        [np.where(accepted, danger, no_risk), no_risk, no_risk, np.where(accepted, no_risk, danger - 900)], 1
    )
    is_wrong = danger > 1
    decisions = Decisions(0.0, accepted, accepted & ~is_wrong, is_wrong, np.zeros(600, bool))
    weights = fit_risk_weights(risks, decisions, limit=0.5, trials=200, seed=0)
    assert (
        weights.log_weights[0] - weights.log_weights[3] == pytest.approx(-900, abs=2) and weights.prr > 0.95
    )


def test_data_with_one_kind_of_outcome_give_no_fit(search_and_decisions: tuple[Searched, Decisions]) -> None:
    result, decisions = search_and_decisions
    without_errors = Decisions(
        0.6, decisions.accepted, decisions.accepted, np.zeros_like(decisions.wrong), decisions.misidentified
    )
    risks, parts = log_risks(result, decisions.accepted), divergences(result)
    assert fit_risk_weights(risks, without_errors, limit=0.5, trials=8, seed=0) is None
    assert (
        fit_calibrator(parts, without_errors.wrong) is None
        and fit_calibrator(parts, ~without_errors.wrong) is None
    )


def test_the_calibrator_minimises_its_loss(search_and_decisions: tuple[Searched, Decisions]) -> None:
    result, decisions = search_and_decisions
    parts = divergences(result)
    fit = fit_calibrator(parts, decisions.wrong)

    def loss(coefficients: np.ndarray) -> float:
        odds = fit._terms(parts) @ coefficients
        sign = np.where(decisions.wrong, -1, 1)
        return float(np.logaddexp(0, -sign * odds).sum() + (coefficients[1:] ** 2).sum() / 2)

    rng = np.random.default_rng(0)
    minimum = loss(fit.coefficients)
    assert all(loss(fit.coefficients + 0.01 * rng.normal(size=6)) > minimum for _ in range(50))
    confidence = fit.confidence(parts)
    assert confidence[~decisions.wrong].mean() > confidence[decisions.wrong].mean() + 1
    assert np.mean(1 / (1 + np.exp(-confidence))) == pytest.approx(np.mean(~decisions.wrong), abs=1e-6)


def test_separable_errors_and_constant_columns_have_a_finite_fit() -> None:
    parts = np.stack([np.linspace(-1, 1, 40), np.ones(40)], 1)
    fit = fit_calibrator(parts, parts[:, 0] < 0)
    assert np.isfinite(fit.coefficients).all() and (np.diff(fit.confidence(parts)) > 0).all()


def test_trials_without_any_risk_are_skipped(search_and_decisions: tuple[Searched, Decisions]) -> None:
    """One trial in 4096 of the first half leaves out all four risks."""
    result, decisions = search_and_decisions
    risks = log_risks(result, decisions.accepted)
    fit = fit_risk_weights(risks, decisions, limit=0.5, trials=160, seed=3)
    assert max(fit.log_weights) == 0
    assert fit.prr == pytest.approx(prediction_rejection_ratio(fit.confidence(risks), decisions))
