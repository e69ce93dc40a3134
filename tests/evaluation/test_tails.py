"""Tail fits on data with a known tail, and the rules extrapolated from them."""

import numpy as np
import pytest
from scipy.stats import genpareto, norm

from spherecf.calibration import DecisionRule, ErrorCount
from spherecf.errors import InputError
from spherecf.evaluation import TailFit, extrapolated_rule, fit_tail


def pairs_of(people: int, seed: int, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of a few people, some of whom resemble everyone; over all people, scores are normal."""
    rng = np.random.default_rng(seed)
    left, right = np.triu_indices(people, 1)
    likeness = rng.normal(0, spread, people)
    scores = rng.normal(0, np.sqrt(1 - 2 * spread**2), left.size) + likeness[left] + likeness[right]
    return scores, left, right


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.25])
def test_the_fit_maximises_the_likelihood(shape: float) -> None:
    scores = genpareto.rvs(shape, size=50_000, random_state=1)
    subjects = np.random.default_rng(0).integers(0, 200, (2, scores.size))
    tail = fit_tail(scores, *subjects, share=0.02, draws=0)
    assert tail.exceedances == 1000 and tail.fitted[0] == 0.02
    above = scores[scores > tail.start] - tail.start
    shape_fit, _, scale = genpareto.fit(above, floc=0)  # an independent maximisation
    maximum = genpareto.logpdf(above, shape_fit, scale=scale).sum()
    assert genpareto.logpdf(above, tail.fitted[2], scale=tail.fitted[1]).sum() > maximum - 0.01
    steps = np.arange(1000) / 1000
    deviations = genpareto.cdf(np.sort(above), shape_fit, scale=scale) - steps
    assert tail.gap == pytest.approx(max(deviations.max(), (0.001 - deviations).max()), abs=2e-3)
    assert tail.rate(tail.threshold(1e-6)) == pytest.approx(1e-6, rel=1e-9)
    assert tail.threshold(1e-6) == pytest.approx(
        tail.start + genpareto.isf(1e-6 / 0.02, tail.fitted[2], scale=tail.fitted[1]), rel=1e-6
    )


def test_the_interval_covers_a_rate_below_the_resolution() -> None:
    """Fitted on pairs of 100 people; the true rate is that of the population."""
    inside = []
    for seed in range(40):
        tail = fit_tail(*pairs_of(100, seed), share=0.05, draws=200)
        low, high = tail.interval(float(norm.isf(1e-5)))
        inside.append(low <= 1e-5 <= high)
    assert np.mean(inside) >= 0.8  # nominal 95 % needs the limiting tail; a normal one falls faster


def test_the_interval_accounts_for_pairs_that_share_people() -> None:
    scores, left, right = pairs_of(100, 0, spread=0.6)
    unshared = np.arange(2 * scores.size).reshape(2, -1)  # as if no two pairs shared a person
    ends = [
        fit_tail(scores, *subjects, share=0.05, draws=200).interval(2.5)
        for subjects in ((left, right), unshared)
    ]
    assert ends[0][1] - ends[0][0] > 1.2 * (ends[1][1] - ends[1][0])


def test_extrapolated_rules_are_marked_and_bounded() -> None:
    tails = [fit_tail(*pairs_of(300, seed), share=0.01, draws=100, seed=seed) for seed in (1, 2)]
    count = ErrorCount("false non-matches of mated pairs", 1, 100, 0.05)
    counted = DecisionRule(
        "evidence", 64.0, "kappa", 3.2, 0.0, 20.0, "fmr", 1e-3, 0.01, "pairs", (count, count), 0.01
    )
    rules = [extrapolated_rule(counted, tails, alpha) for alpha in (1e-4, 1e-6)]
    assert 3.2 < rules[0].accept < rules[1].accept and rules[1].reject == 0.0
    for rule in rules:
        assert rule.extrapolated is not None and rule.extrapolated[1] <= rule.alpha
        assert max(tail.interval(rule.accept)[1] for tail in tails) == rule.extrapolated[1]
        assert rule.counts[1] == count and DecisionRule.from_dict(rule.to_dict()) == rule
    with pytest.raises(InputError, match=r"below the counted 0\.001"):
        extrapolated_rule(counted, tails, 1e-2)
    with pytest.raises(InputError, match="without draws"):
        extrapolated_rule(counted, [fit_tail(*pairs_of(300, 1), share=0.01, draws=0)], 1e-6)
    heavy = TailFit(3.0, (0.01, 1.0, 5.0), np.array([[0.01, 1.0, 5.0]]), 100, 10_000, 0.1)
    with pytest.raises(InputError, match="too heavy"):
        extrapolated_rule(counted, [heavy], 1e-6)


def test_too_few_exceedances_are_refused() -> None:
    scores, left, right = pairs_of(50, 0)  # 1,225 pairs
    with pytest.raises(InputError, match=r"at least 100 are needed, so use 10000 pairs"):
        fit_tail(scores, left, right, share=0.01)
    with pytest.raises(InputError, match="scores are above"):
        fit_tail(np.round(scores), left, right, share=0.1)
    with pytest.raises(InputError, match="none NaN"):
        fit_tail(np.append(scores[1:], np.nan), left, right, share=0.1)
    tail = fit_tail(scores, left, right, share=0.1, draws=10)
    with pytest.raises(InputError, match="count the pairs instead"):
        tail.rate(tail.start - 1)
    with pytest.raises(InputError, match="the share of pairs in the tail"):
        tail.threshold(0.5)


def test_a_tail_starts_at_min_start_if_enough_pairs_remain() -> None:
    """In a mixture, a tail fitted across both parts is too heavy."""
    rng = np.random.default_rng(0)
    scores = np.where(rng.random(100_000) < 3e-3, rng.exponential(size=100_000), rng.normal(-8, 1.5, 100_000))
    subjects = rng.integers(0, 300, (2, scores.size))
    across, above = (
        fit_tail(scores, *subjects, share=0.01, min_start=min_start, draws=100)
        for min_start in (-np.inf, 0.0)
    )
    assert across.start < 0 == above.start and above.exceedances == (scores > 0).sum()
    truth = float(-np.log(1e-6 / 3e-3))
    assert truth < above.threshold(1e-6) < truth + 2 < 100 < across.threshold(1e-6)
    smallest = fit_tail(scores, *subjects, share=0.01, min_start=1e9, draws=0)
    assert smallest.exceedances == 100 and smallest.start == np.sort(scores)[-101]
