"""Intervals over subjects equal those of lists that are really resampled; DET points are thinned safely."""

import numpy as np
import pytest
from tests.evaluation.conftest import Toy
from tests.reference import tenfold_slow_bootstrap as slow

from spherecf.evaluation import PairOptions, evaluate_pairs, interval
from spherecf.evaluation.rates import spread


def test_intervals_equal_the_slow_reference(toy: Toy) -> None:
    n, draws = 120, 25
    left, right = toy.left[:n], toy.right[:n]
    rng = np.random.default_rng(0)
    scores = {name: np.round(rng.normal(toy.mated[:n] * 2.0), 1) for name in ("cosine", "other")}
    options = PairOptions(scores=[], targets=[0.1], draws=draws, seed=4)
    report = evaluate_pairs(toy.clean, toy.clean, toy.pairs(count=n), options, extra_scores=scores)
    people = [[key.split("/")[0] for key in side] for side in (left, right)]
    resampled = [
        slow.copies(*people, people_drawn)
        for people_drawn in slow.draw_people(people[0] + people[1], draws, 4)
    ]
    mated, folds = toy.mated[:n].tolist(), toy.folds[:n].tolist()
    accuracy = {
        s: np.array([slow.accuracy(v.tolist(), mated, folds, d) for d in resampled])
        for s, v in scores.items()
    }
    tmr = {s: np.array([slow.tmr(v.tolist(), mated, 0.1, d) for d in resampled]) for s, v in scores.items()}
    for score in scores:
        assert_same_interval(report.scores[score].accuracy.interval, interval(accuracy[score]))
        assert_same_interval(report.scores[score].tmr_intervals["0.1"], interval(tmr[score]))
    assert_same_interval(
        report.differences["other-cosine:accuracy"].interval, interval(accuracy["other"] - accuracy["cosine"])
    )
    assert_same_interval(
        report.differences["other-cosine:tmr@0.1"].interval, interval(tmr["other"] - tmr["cosine"])
    )


def assert_same_interval(actual, expected) -> None:
    assert (actual.low, actual.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert actual.below_zero == expected.below_zero and actual.undefined == expected.undefined == 0


def test_thinned_det_keeps_the_ends_and_the_rare_errors() -> None:
    fmr = np.arange(5001) / 5000
    fnmr = 1 - np.sqrt(fmr)
    rows = spread(fmr, fnmr)
    assert rows.size <= 402 and rows[0] == 0 and rows[-1] == 5000
    assert {1, 2, 3, 4, 5} <= set(rows.tolist())
    assert spread(fmr[:300], fnmr[:300]).size == 300
