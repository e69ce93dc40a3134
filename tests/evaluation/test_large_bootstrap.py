"""The bootstrap of millions of pairs equals the plain weighted curve, draw by draw."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from spherecf.calibration import allowed_errors
from spherecf.errors import InputError
from spherecf.evaluation import bootstrap as bootstrap_module, bootstrap_subjects, bootstrap_tmr
from spherecf.evaluation.rates import sort_pairs, tmr_rates

TARGETS = [1.0, 0.5, 0.1, 0.01, 0.001]


def plain(s: np.ndarray, m: np.ndarray, a: Any, b: Any, draws: int, seed: int) -> dict[str, np.ndarray]:
    """The reference: every pair is weighted in every draw, and the complete curve recomputed."""
    pairs = sort_pairs(s, m)
    resolved = [target for target in TARGETS if allowed_errors(target, int((~m).sum())) >= 1]

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        curve = pairs.curve(weights)
        return {f"tmr@{target:g}": tmr_rates(curve, target) for target in resolved}

    return bootstrap_subjects(statistic, a, b, draws=draws, seed=seed)


def check(s: np.ndarray, m: np.ndarray, a: Any, b: Any, draws: int = 40, seed: int = 0) -> None:
    actual, expected = bootstrap_tmr(s, m, a, b, TARGETS, draws, seed), plain(s, m, a, b, draws, seed)
    assert actual.keys() == expected.keys()
    for name in actual:
        np.testing.assert_array_equal(actual[name], expected[name])


def draw(pairs: int, subjects: int, seed: int, labels: str = "subjects", digits: int = 9) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, subjects, (2, pairs))
    m = a == b if labels == "subjects" else rng.random(pairs) < 0.3
    m[:2] = True, False
    return np.round(rng.normal(m * 1.5, 1), digits), m, a, b


@pytest.mark.parametrize("labels", ["subjects", "any"])  # "any": labels independent of subjects
@pytest.mark.parametrize("digits", [9, 1, 0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_bootstrap_equals_the_plain_curve(labels: str, digits: int, dtype: type) -> None:
    s, m, a, b = draw(3000, 25, 0, labels, digits)
    check(s.astype(dtype), m, a, b)


SETTINGS = {"_BUCKET": [1, 7, 256], "_FINE": [1, 32], "_TABLE": [0, 10**6], "_COUNTS": [1, 100, 10**6],
            "_EXACT": [300, 1 << 24], "_BAGS": [2, 256], "_PAIRS": [13, 1 << 20],
            "_SAMPLE": [1, 20, 1 << 18], "_MORE": [1.25, 4]}  # fmt: skip


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6), pairs=st.integers(3, 500), subjects=st.integers(2, 30),
    labels=st.sampled_from(["subjects", "any"]), digits=st.integers(0, 3),
    sizes=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SETTINGS.items()}),
)  # fmt: skip
def test_results_do_not_depend_on_internal_sizes(
    seed: int, pairs: int, subjects: int, labels: str, digits: int, sizes: dict[str, float]
) -> None:
    s, m, a, b = draw(pairs, subjects, seed, labels, digits)
    if np.unique([a, b]).size < 2:
        return
    with pytest.MonkeyPatch.context() as patch:
        for name, value in sizes.items():
            patch.setattr(bootstrap_module, name, value)
        check(s, m, a, b, draws=12, seed=seed)


def test_subjects_may_be_names_or_any_integers() -> None:
    s, m, a, b = draw(500, 12, 3)
    expected = bootstrap_tmr(s, m, a, b, TARGETS, 30)
    names = np.array([f"{x:02}" for x in a]), np.array([f"{x:02}" for x in b])
    large, negative, small = (
        (a * 10**12, b * 10**12),
        (a - 50, b - 50),
        ((a * 20 - 120).astype(np.int8), b * 20 - 120),
    )
    for left, right in (names, large, negative, small, (a.astype(np.uint64), b)):
        actual = bootstrap_tmr(s, m, left, right, TARGETS, 30)
        for name in expected:
            np.testing.assert_array_equal(actual[name], expected[name])


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    s, m, a, b = draw(4000, 40, 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = bootstrap_tmr(s, m, a, b, TARGETS)
        torch.set_num_threads(2)
        threaded = bootstrap_tmr(s, m, a, b, TARGETS)
    finally:
        torch.set_num_threads(threads)
    for name in single:
        np.testing.assert_array_equal(single[name], threaded[name])


def test_a_draw_without_mated_pairs_is_nan() -> None:
    s, m = np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, False, False])
    a, b = np.array([0, 1, 2, 3]), np.array([0, 2, 3, 1])
    rates = bootstrap_tmr(s, m, a, b, [1.0, 0.5], 200)
    assert 0 < np.isnan(rates["tmr@1"]).sum() < 200
    check(s, m, a, b, 200)


def test_unresolved_targets_are_absent() -> None:
    s, m, a, b = draw(200, 12, 0)
    assert bootstrap_tmr(s, m, a, b, [1e-6, 0.1], 5).keys() == {"tmr@0.1"}
    assert bootstrap_tmr(s, m, a, b, [1e-6], 5) == {}


def test_bad_input_is_refused() -> None:
    s, m, a, b = draw(50, 6, 0)
    with pytest.raises(InputError, match=r"subjects: expected two \(50,\)"):
        bootstrap_tmr(s, m, a[:3], b, TARGETS)
    with pytest.raises(InputError, match="at least 2 subjects and 1 draw, got 1 and 1000"):
        bootstrap_tmr(s, m, a * 0, b * 0, TARGETS)
    with pytest.raises(InputError, match="1 draw, got 6 and 0"):
        bootstrap_tmr(s, m, a, b, TARGETS, draws=0)
    with pytest.raises(InputError, match="50 of 50 are NaN"):
        bootstrap_tmr(s * np.nan, m, a, b, TARGETS)
    with pytest.raises(InputError, match="50 mated and 0 non-mated"):
        bootstrap_tmr(s, m | True, a, b, TARGETS)
