"""Decision rules that meet two error bounds in every condition."""

from statistics import NormalDist

import numpy as np
import pytest

from spherecf.calibration import DecisionRule
from spherecf.errors import InputError
from spherecf.evaluation import SubjectRates, bounded_rule

GRID = np.arange(-4, 8, 0.1)


def sides(
    shift: float, seed: int = 0, people: int = 200, draws: int = 200
) -> tuple[SubjectRates, SubjectRates]:
    """Rates of non-mated pairs with scores around ``shift`` and of mated pairs around 4 - shift."""
    rng, subjects = np.random.default_rng(seed), np.arange(20_000) % people
    non_mated = SubjectRates.of(
        rng.normal(shift, 1, 20_000), subjects, (subjects + 1) % people, GRID, draws=draws
    )
    mated = SubjectRates.of(rng.normal(4 - shift, 1, 20_000), subjects, subjects, GRID, draws=draws)
    return non_mated, mated


def test_the_worst_condition_determines_the_rule() -> None:
    easy, hard = sides(0.0), sides(1.0)
    rules = [
        bounded_rule(
            [non_mated for non_mated, _ in conditions],
            [mated for _, mated in conditions],
            alpha=0.01,
            fnmr=0.02,
        )
        for conditions in ([easy], [hard], [easy, hard])
    ]
    assert rules[0].accept < rules[1].accept == rules[2].accept
    assert rules[2].reject == rules[1].reject < rules[0].reject
    for rule in rules:
        assert rule.counts[0].upper <= 0.01 and rule.counts[1].upper <= 0.02
        assert rule.error == "fmr" and rule.fnmr == 0.02
        assert DecisionRule.from_dict(rule.to_dict()) == rule
    below = GRID[np.searchsorted(GRID, rules[0].accept) - 1]  # the next looser threshold fails
    assert easy[0].upper(0.05)[np.searchsorted(GRID, below)] > 0.01


def test_the_bound_fails_no_more_often_than_stated() -> None:
    alpha, failures = 0.02, 0
    for seed in range(100):
        rule = bounded_rule(*([side] for side in sides(0.0, seed, draws=100)), alpha=alpha, fnmr=0.5)
        failures += 1 - NormalDist().cdf(rule.accept) > alpha
    assert failures <= 10  # at most 5 expected; 11 or more have a probability of 1 %


def test_too_few_pairs_give_a_rule_without_decisions() -> None:
    rng = np.random.default_rng(0)
    rates = SubjectRates.of(rng.normal(size=50), np.arange(50) % 9, np.arange(50) % 7, GRID, draws=50)
    assert not bounded_rule([rates], [sides(0.0)[1]], alpha=1e-3, fnmr=0.1).decides


def test_reject_and_accept_thresholds_do_not_cross() -> None:
    non_mated, mated = sides(-2.0)  # so far apart that any threshold between them qualifies
    rule = bounded_rule([non_mated], [mated], alpha=0.01, fnmr=0.01)
    assert rule.reject == rule.accept


def test_conditions_must_share_their_thresholds() -> None:
    non_mated, mated = sides(0.0)
    with pytest.raises(InputError, match="same thresholds"):
        bounded_rule(
            [non_mated, SubjectRates.of([0.0, 1.0], [0, 1], [1, 0], [0.5])], [mated], alpha=0.1, fnmr=0.1
        )
    with pytest.raises(InputError, match="mated"):
        bounded_rule([non_mated], [], alpha=0.1, fnmr=0.1)


def test_rules_of_older_files_have_no_bound_for_mated_pairs() -> None:
    facts = DecisionRule("cosine", None, "kappa", 0.4, 0.2, 30.0, "fmr", 0.01, 0.05).to_dict()
    del facts["fnmr"]
    assert DecisionRule.from_dict(facts).fnmr is None
