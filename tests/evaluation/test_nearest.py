"""The nearest ROC point is the one that insightface's script selects, and misses the target."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from sklearn.metrics import roc_curve
from tests.reference.nearest_slow import tar_at_nearest_far

from spherecf.errors import InputError
from spherecf.evaluation import TmrAtFmr, tmr_at_fmr, tmr_at_nearest_fmr
from spherecf.report import nearest_section

TARGETS = (1e-6, 1e-3, 0.01, 0.05, 0.1, 0.25, 1 / 3, 0.5, 1.0)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(-8, 8), st.booleans()), min_size=2, max_size=60).filter(
        lambda pairs: len({mated for _, mated in pairs}) == 2
    ),
)
def test_the_point_equals_that_of_the_script(pairs: list[tuple[int, bool]]) -> None:
    scores, mated = np.array(pairs, np.float64).T
    points = tmr_at_nearest_fmr(scores, mated, TARGETS)
    for point, (expected_tmr, expected_fmr) in zip(points, tar_at_nearest_far(scores, mated, TARGETS)):
        assert (point.tmr, point.fmr) == (expected_tmr, expected_fmr)
        assert point.excess == expected_fmr - point.target


def test_points_of_many_pairs_equal_those_of_the_script() -> None:
    rng = np.random.default_rng(0)
    mated = np.arange(20000) % 4 == 0
    scores = rng.normal(mated * 2.5, 1)
    points = tmr_at_nearest_fmr(scores, mated, TARGETS)
    assert [(p.tmr, p.fmr) for p in points] == tar_at_nearest_far(scores, mated, TARGETS)


def test_dropped_roc_points_change_the_selection() -> None:
    scores, mated = -np.arange(12.0), np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
    all_fmrs = roc_curve(mated, scores, drop_intermediate=False)[0]
    assert 0.3 in all_fmrs  # a point on the target, but within a straight segment
    point = tmr_at_nearest_fmr(scores, mated, 0.3)[0]
    assert point.fmr == 0.0 and point.excess == -0.3


def test_the_nearest_point_may_exceed_the_target() -> None:
    scores = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    mated = [1, 0, 1, 0, 1, 0]
    nearest, at_most = tmr_at_nearest_fmr(scores, mated, 0.6)[0], tmr_at_fmr(scores, mated, 0.6)[0]
    assert nearest.fmr == pytest.approx(2 / 3) and nearest.excess > 0 and nearest.tmr == 1.0
    assert at_most.fmr == pytest.approx(1 / 3) and at_most.tmr == pytest.approx(2 / 3)


def test_the_section_shows_unresolved_targets_and_signed_excess() -> None:
    entry = TmrAtFmr(0.01, None, None, None, None, None, 2, 2, "too few")
    point = tmr_at_nearest_fmr([0.9, 0.1], [1, 0], 0.01)
    table = nearest_section({"mls": ([entry], point, "x|score:mls|fmr:at-most|ci:none")}).tables[0]
    assert table.rows == [["mls", "0.01", "unresolved", "1.0000", "0", "-100.0 %"]]
    assert table.signatures == ["x|score:mls|fmr:nearest|ci:none"]


@pytest.mark.parametrize(
    ("scores", "mated", "target", "message"),
    [
        ([0.1, 0.2], [1, 0], 0.0, "0 < target <= 1"),
        ([0.1, 0.2], [1, 0], float("nan"), "0 < target <= 1"),
        ([0.1, 0.2], [1, 1], 0.1, "error rates need both kinds"),
        ([0.1, float("nan")], [1, 0], 0.1, "1 of 2 are NaN"),
    ],
)
def test_bad_input_is_refused(scores: list[float], mated: list[int], target: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tmr_at_nearest_fmr(scores, mated, target)
