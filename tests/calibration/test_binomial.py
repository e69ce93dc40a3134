"""Binomial tails and intervals against high-precision sums, and against scipy.stats."""

import mpmath
import numpy as np
import pytest
from scipy import stats

from spherecf.calibration import binomial_cdf, binomial_upper, clopper_pearson, wilson
from spherecf.errors import InputError


def tail(k: int, n: int, p: float, step: int) -> mpmath.mpf:
    """P(X <= k) for step -1, P(X >= k) for step 1, summed from the largest term on."""
    rate = mpmath.mpf(p)
    odds, total = rate / (1 - rate), mpmath.mpf(0)
    term = mpmath.binomial(n, k) * rate**k * (1 - rate) ** (n - k)
    while 0 <= k <= n and term > total * mpmath.mpf(10) ** -25:
        total += term
        term *= odds * (n - k) / (k + 1) if step > 0 else k / odds / (n - k + 1)
        k += step
    return total


@pytest.mark.parametrize("n", [20, 7000, 1_570_000])
@pytest.mark.parametrize("delta", [0.4, 0.025, 1e-6])
def test_ends_are_exact(n: int, delta: float) -> None:
    """The tail beyond each end is delta."""
    with mpmath.workdps(35):
        for k in (0, 1, 7, n // 1000, n // 3):
            low, high = (float(end) for end in clopper_pearson(k, n, 1 - 2 * delta))
            half = (1 - (1 - 2 * delta)) / 2  # as rounded
            assert float(tail(k, n, high, -1) / half) == pytest.approx(1, abs=2e-10)
            assert float(binomial_cdf(k, n, high) / tail(k, n, high, -1)) == pytest.approx(1, abs=1e-11)
            assert (float(tail(k, n, low, 1) / half) if k else 1 - low) == pytest.approx(1, abs=2e-10)


def test_tails_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    n = rng.integers(0, 3000, 2000)
    k = np.floor(rng.random(2000) * (n + 1)).astype(int)
    p = rng.random(2000) ** 3
    expected = stats.binom.cdf(k, n, p)
    tails = binomial_cdf(k, n, p)
    assert np.abs(tails - expected).max() < 1e-13
    deep = expected > 1e-200
    assert np.abs(tails[deep] / expected[deep] - 1).max() < 1e-11


def test_tails_at_the_edges() -> None:
    assert binomial_cdf([-1, 0, 3, 4], 3, 0.2).tolist() == pytest.approx([0, 0.8**3, 1, 1])
    assert binomial_cdf(0, 0, 0.5) == 1 and binomial_cdf(2, 5, 0.0) == 1 and binomial_cdf(2, 5, 1.0) == 0


@pytest.mark.parametrize("n", [1, 10, 7000, 15_700_000])
def test_intervals_equal_scipy(n: int) -> None:
    for k in sorted({0, 1, n // 100_000, n // 3, n - 1, n}):
        expected = stats.binomtest(k, n).proportion_ci(0.95, "exact")
        low, high = clopper_pearson(k, n)
        assert (float(low), float(high)) == pytest.approx((expected.low, expected.high), rel=1e-9)
        expected = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
        low, high = wilson(k, n)
        assert (float(low), float(high)) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


def test_the_bound_is_where_the_tail_is_delta() -> None:
    k, n = np.array([0, 3, 40]), np.array([50, 50, 50])
    assert binomial_cdf(k, n, binomial_upper(k, n, 0.1)) == pytest.approx([0.1] * 3)
    assert binomial_upper(5, 5, 0.1) == 1 and clopper_pearson(0, 0)[1] == 1 and wilson(0, 0)[1] == 1


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(InputError, match=r"counts within 0 \.\. trials"):
        clopper_pearson(3, 2)
    with pytest.raises(InputError, match=r"within 0 \.\. 1"):
        binomial_cdf(1, 2, 1.5)
    with pytest.raises(InputError, match="delta"):
        binomial_upper(1, 2, 0.0)


def test_a_level_that_is_no_share_is_refused() -> None:
    with pytest.raises(InputError, match="level: expected 0 < level < 1, got 95"):
        clopper_pearson(0, 10, level=95)
