"""Rules that keep two promises under every condition."""

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
    """Non-mated pairs around ``shift``, mated pairs around 4 - shift."""
    rng, who = np.random.default_rng(seed), np.arange(20_000) % people
    other = SubjectRates.of(rng.normal(shift, 1, 20_000), who, (who + 1) % people, GRID, draws=draws)
    same = SubjectRates.of(rng.normal(4 - shift, 1, 20_000), who, who, GRID, draws=draws)
    return other, same


def test_the_worst_condition_decides() -> None:
    good, bad = sides(0.0), sides(1.0)
    rules = [
        bounded_rule([other for other, _ in chosen], [same for _, same in chosen], alpha=0.01, fnmr=0.02)
        for chosen in ([good], [bad], [good, bad])
    ]
    assert rules[0].accept < rules[1].accept == rules[2].accept
    assert rules[2].reject == rules[1].reject < rules[0].reject
    for rule in rules:
        assert rule.counts[0].upper <= 0.01 and rule.counts[1].upper <= 0.02
        assert rule.error == "fmr" and rule.fnmr == 0.02
        assert DecisionRule.from_dict(rule.to_dict()) == rule
    below = GRID[np.searchsorted(GRID, rules[0].accept) - 1]  # the next looser threshold would have failed
    assert good[0].upper(0.05)[np.searchsorted(GRID, below)] > 0.01


def test_the_promise_is_kept_as_often_as_said() -> None:
    alpha, broken = 0.02, 0
    for seed in range(100):
        rule = bounded_rule(*([side] for side in sides(0.0, seed, draws=100)), alpha=alpha, fnmr=0.5)
        broken += 1 - NormalDist().cdf(rule.accept) > alpha
    assert broken <= 10  # 5 expected at most; 11 or more have a chance of 1 %


def test_too_few_pairs_give_a_rule_that_decides_nothing() -> None:
    rng = np.random.default_rng(0)
    few = SubjectRates.of(rng.normal(size=50), np.arange(50) % 9, np.arange(50) % 7, GRID, draws=50)
    assert not bounded_rule([few], [sides(0.0)[1]], alpha=1e-3, fnmr=0.1).decides


def test_the_bands_do_not_cross() -> None:
    other, same = sides(-2.0)  # so far apart that anything between them would do
    rule = bounded_rule([other], [same], alpha=0.01, fnmr=0.01)
    assert rule.reject == rule.accept


def test_conditions_must_share_their_thresholds() -> None:
    other, same = sides(0.0)
    with pytest.raises(InputError, match="same thresholds"):
        bounded_rule([other, SubjectRates.of([0.0, 1.0], [0, 1], [1, 0], [0.5])], [same], alpha=0.1, fnmr=0.1)
    with pytest.raises(InputError, match="mated"):
        bounded_rule([other], [], alpha=0.1, fnmr=0.1)


def test_a_rule_of_an_older_file_has_no_promise_for_mated_pairs() -> None:
    facts = DecisionRule("cosine", None, "kappa", 0.4, 0.2, 30.0, "fmr", 0.01, 0.05).to_dict()
    del facts["fnmr"]
    assert DecisionRule.from_dict(facts).fnmr is None
