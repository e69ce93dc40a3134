"""Shares of pairs above thresholds against the plain bootstrap of weighted pairs."""

import numpy as np
import pytest

from spherecf.calibration import binomial_upper
from spherecf.errors import InputError
from spherecf.evaluation import SubjectRates, bootstrap_subjects


def some_pairs(people: int, pairs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(people)
    left = rng.integers(0, people, pairs)
    right = (left + rng.integers(0, people, pairs)) % people
    scores = np.round(rng.normal(size=pairs), 1)  # with ties
    scores[:3] = [np.inf, -np.inf, scores[3]]
    return scores, left, right


@pytest.mark.parametrize(("people", "pairs"), [(12, 900), (60, 300)])
def test_counts_and_draws_equal_the_plain_bootstrap(people: int, pairs: int) -> None:
    scores, left, right = some_pairs(people, pairs)
    thresholds = np.array([-0.5, 0.0, 0.7, 9.0])
    rates = SubjectRates.of(scores, left, right, thresholds, draws=50, seed=3)
    reach = scores[:, None] >= thresholds
    assert rates.reached.tolist() == reach.sum(0).tolist()
    np.testing.assert_array_equal(rates.rates, reach.mean(0))

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {str(column): weights @ reach[:, column] / weights.sum(1) for column in range(4)}

    plain = bootstrap_subjects(statistic, left, right, draws=50, seed=3)
    np.testing.assert_allclose(rates.drawn, np.stack(list(plain.values()), 1), rtol=1e-12)
    assert rates.interval(1) == pytest.approx(tuple(np.quantile(plain["1"], [0.025, 0.975])))


def test_the_bound_is_never_below_the_exact_binomial_bound() -> None:
    scores, left, right = some_pairs(40, 2000)
    rates = SubjectRates.of(scores, left, right, np.array([0.0, 9.0]), draws=100)
    plain = SubjectRates.of(scores, left, right, np.array([0.0, 9.0]), draws=0)
    exact = binomial_upper(rates.reached, [2000, 2000], 0.05)
    np.testing.assert_array_equal(plain.upper(0.05), exact)
    assert (rates.upper(0.05) >= exact).all() and rates.upper(0.05)[0] > exact[0]
    np.testing.assert_array_equal(
        plain.upper(0.05, below=True), binomial_upper(2000 - rates.reached, [2000] * 2, 0.05)
    )


def test_a_share_of_none_or_all_has_an_exact_interval() -> None:
    a, b, _ = some_pairs(20, 300)
    rates = SubjectRates.of(np.full(300, 0.5), a, b, [0.0, 1.0], draws=50)
    assert rates.drawn.std(axis=0).tolist() == [0, 0]
    assert rates.interval(1) == pytest.approx((0, 1 - 0.025 ** (1 / 300)))
    assert rates.interval(0) == pytest.approx((0.025 ** (1 / 300), 1))


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="none NaN"):
        SubjectRates.of([np.nan, 1.0], [0, 1], [1, 0], [0.0])
    with pytest.raises(InputError, match="ascending"):
        SubjectRates.of([0.0, 1.0], [0, 1], [1, 0], [1.0, 0.0])
    with pytest.raises(InputError, match="subjects"):
        SubjectRates.of([0.0, 1.0], [0], [1, 0], [0.0])
