"""Pool adjacent violators against scikit-learn, and the calibrator built on it."""

import json

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from spherecf.calibration import IsotonicCalibrator, llr_limits, pool_adjacent_violators
from spherecf.errors import InputError


@pytest.mark.parametrize("seed", range(20))
def test_pooling_equals_sklearn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    totals = rng.integers(1, 5, n)
    hits = rng.binomial(totals, np.clip(np.linspace(-0.3, 1.2, n) + rng.normal(0, 0.4, n), 0, 1))
    starts, rates = pool_adjacent_violators(hits, totals)
    pooled = np.repeat(rates, np.diff(np.append(starts, n)))
    slow = IsotonicRegression().fit_transform(np.arange(n), hits / totals, sample_weight=totals)
    assert pooled == pytest.approx(slow, abs=1e-12)
    assert (np.diff(rates) > 0).all()


def test_each_end_counts_one_more_pair_of_each_kind() -> None:
    steps = IsotonicCalibrator.fit([1.0, 2.0, 3.0, 4.0, 5.0], [0, 0, 0, 1, 1], score="s")
    # lowest block: 3 non-mated and one more of each kind, of 5 and 4 in all; highest: 2 mated and so on
    assert steps([0.0, 3.0]) == pytest.approx(np.log([(1 / 4) / (4 / 5)] * 2))
    assert steps([4.0, 9.0]) == pytest.approx(np.log([(3 / 4) / (1 / 5)] * 2))
    assert steps(3.5) == pytest.approx((steps(3.0) + steps(4.0)) / 2)


@pytest.mark.parametrize("levels", [None, 8])
def test_increases_and_stays_within_the_limits(levels: int | None) -> None:
    rng = np.random.default_rng(0)
    mated = rng.random(800) < 0.4
    scores = rng.normal(2.0 * mated, 1)
    scores = scores if levels is None else np.round(scores * levels / 4)
    steps = IsotonicCalibrator.fit(scores, mated, score="s")
    llr = steps(np.linspace(-9, 9, 999))
    low, high = llr_limits(int(mated.sum()), int((~mated).sum()))
    assert (np.diff(llr) >= 0).all() and low - 1e-12 <= llr[0] < -1 and 1 < llr[-1] <= high + 1e-12


@pytest.mark.parametrize("scores, mated", [([1.0, 1.0], [0, 1]), ([2.0, 1.0], [0, 1]), ([1.0, 2.0], [0, 1])])
def test_smallest_sets(scores: list[float], mated: list[int]) -> None:
    steps = IsotonicCalibrator.fit(scores, mated, score="s")
    assert np.isfinite(steps([0.0, 1.0, 1.5, 2.0, 3.0])).all()
    assert bool(steps(2.0) > steps(1.0)) == (scores == [1.0, 2.0])


def test_equal_rates_are_one_block_although_their_means_round_differently() -> None:
    starts, rates = pool_adjacent_violators([1, 31, 8], [1, 39, 10])  # 32/40 and 8/10
    assert starts.tolist() == [0] and rates.tolist() == [0.8]


def test_through_json() -> None:
    steps = IsotonicCalibrator.fit([0.1, 0.3, 0.2, 0.4], [0, 0, 1, 1], score="cosine")
    assert IsotonicCalibrator.from_dict(json.loads(json.dumps(steps.to_dict()))) == steps


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="0 mated"):
        IsotonicCalibrator.fit([1.0, 2.0], [0, 0], score="s")
    with pytest.raises(InputError, match="ascending"):
        IsotonicCalibrator("s", None, (1.0, 0.0), (0.0, 1.0), 1, 1)
    for knots, llr, pairs in (
        ((0.0, 1.0), (0.0, -0.5), (1, 1)), ((0.0, 0.0), (0.0, 1.0), (1, 1)), ((), (), (1, 1)),
        ((0.0, 1.0), (0.0, np.inf), (1, 1)), ((0.0, 1.0), (0.0,), (1, 1)), ((0.0, 1.0), (0.0, 1.0), (0, 1)),
        ((0.0, 1.0), (0.0, 1.0), (1, 0)),
    ):  # fmt: skip
        with pytest.raises(InputError):
            IsotonicCalibrator("s", None, knots, llr, *pairs)
    assert IsotonicCalibrator("s", None, (0.0, 0.5), (1.0, 1.0), 1, 1)(7.0) == 1
    with pytest.raises(InputError, match="non-empty groups"):
        pool_adjacent_violators([[0, 1]], [[1, 1]])
    with pytest.raises(InputError, match="non-empty groups"):
        pool_adjacent_violators([], [])
    with pytest.raises(InputError, match="non-empty groups"):
        pool_adjacent_violators([0, 1], [1, 0])
    with pytest.raises(InputError, match="NaN"):
        IsotonicCalibrator.fit([1.0, 2.0], [0, 1], score="s")([float("nan")])
