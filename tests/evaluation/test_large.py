"""Rates from split scores equal those from the complete curve exactly."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from spherecf.errors import InputError
from spherecf.evaluation import ScoreSplit, det_curve, eer, rates as rates_module, tmr_at_fmr

scores = st.sampled_from([-np.inf, -2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 2.0, 3.0])
items = st.lists(st.tuples(scores, st.booleans()), min_size=2, max_size=60).filter(
    lambda pairs: len({mated for _, mated in pairs}) == 2
)
TARGETS = [1.0, 0.7, 0.5, 0.2, 0.1, 0.03, 1e-6]


def check(s: np.ndarray, m: np.ndarray) -> None:
    assert ScoreSplit.of(s, m).tmr_at_fmr(TARGETS) == tmr_at_fmr(s, m, TARGETS)
    assert ScoreSplit.of(s, m).eer() == eer(s, m)
    for actual, expected in zip(ScoreSplit.of(s, m).det(), det_curve(s, m)):
        np.testing.assert_array_equal(actual, expected)


@settings(max_examples=150, deadline=None)
@given(pairs=items, tail=st.sampled_from([1, 2, 8, 1000]))
def test_split_scores_equal_the_curve_with_ties(pairs: list[tuple[float, bool]], tail: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates_module, "_TAIL", tail)
        check(np.array([s for s, _ in pairs]), np.array([m for _, m in pairs]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shift", [-3.0, 0.0, 2.0, 9.0])
def test_split_scores_equal_the_curve_for_many_pairs(dtype: type, shift: float) -> None:
    rng = np.random.default_rng(0)
    m = rng.random(5000) < 0.2
    check(rng.normal(m * shift, 1).astype(dtype), m)


def test_only_the_tail_is_sorted_until_more_is_needed() -> None:
    rng = np.random.default_rng(0)
    m = np.arange(10_000) < 100
    s = rng.normal(m * 4.0, 1).astype(np.float32)
    split = ScoreSplit.of(s, m)
    split.tmr_at_fmr([0.1, 0.01])
    split.eer()
    assert split._sorted_from > 8000
    assert split.mated.dtype == split.non_mated.dtype == np.float32
    np.testing.assert_array_equal(split.non_mated, np.sort(s[~m]))
    assert split._sorted_from == 0


def test_input_scores_are_not_modified() -> None:
    s = np.random.default_rng(0).normal(size=100)
    original = s.copy()
    ScoreSplit.of(s, np.arange(100) < 10).det()
    np.testing.assert_array_equal(s, original)


def test_thinned_det_keeps_its_ends() -> None:
    rng = np.random.default_rng(0)
    m = rng.random(20_000) < 0.5
    split = ScoreSplit.of(rng.normal(m * 1.0, 1), m)
    fmr, fnmr, thresholds = split.det(400)
    assert fmr.size <= 402 < split.det()[0].size
    assert (fmr[0], fnmr[0], fmr[-1], fnmr[-1], thresholds[0]) == (0, 1, 1, 0, np.inf)
    full_size = split.det()[0].size
    assert split.det(full_size)[0].size == full_size and split.det(full_size - 1)[0].size <= 402


@pytest.mark.parametrize(
    ("scores", "mated", "message"),
    [
        ([1.0, np.nan], [True, False], "1 of 2 are NaN, first pair 1"),
        ([1.0, 2.0], [True, True], "2 mated and 0 non-mated"),
        ([1.0, 2.0], [False, False], "0 mated and 2 non-mated"),
        ([], [], "0 mated and 0 non-mated"),
        ([1.0, 2.0], [True], r"\(2,\) and \(1,\)"),
        ([1.0, 2.0], [2, 0], "expected booleans or 0 and 1"),
    ],
)
def test_bad_input_is_refused(scores: list[float], mated: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScoreSplit.of(np.array(scores), np.array(mated))


def test_bad_targets_are_refused() -> None:
    with pytest.raises(InputError, match="FMR target"):
        ScoreSplit.of([1.0, 0.0], [True, False]).tmr_at_fmr(0.0)
