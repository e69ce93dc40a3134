"""Costs of likelihood ratios against published examples and slow counting."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from spherecf.errors import InputError
from spherecf.evaluation import cllr, min_cllr, reliability, tippett


@pytest.mark.parametrize(
    "expected, mated, non_mated",
    [  # likelihood ratios, with costs published by the forensic toolbox `lir`
        (1, [1, 1], [1, 1]),
        (2, [1 / 3] * 2, [3] * 2),
        (0.4150374992788437, [3] * 2, [1 / 3] * 2),
        (0.7075187496394219, [1], [1 / 3] * 2),
        (0.507177646488535, [1], [1 / 100] * 100),
        (0.5400680236656377, [1], [1 / 100] * 100 + [100]),
        (0.5723134914863265, [1], [1 / 100] * 100 + [100] * 2),
        (0.6952113122368764, [1], [1 / 100] * 100 + [100] * 6),
    ],
)
def test_costs_equal_published_values(expected: float, mated: list[float], non_mated: list[float]) -> None:
    kind = np.repeat([True, False], [len(mated), len(non_mated)])
    assert cllr(np.log([*mated, *non_mated]), kind) == pytest.approx(expected, abs=1e-12)


def test_infinite_ratios_are_accepted_and_nan_refused() -> None:
    assert cllr([np.inf, -np.inf], [1, 0]) == 0 and cllr([-np.inf, 0.0], [1, 0]) == np.inf
    with pytest.raises(InputError, match="NaN"):
        cllr([np.nan, 0.0], [1, 0])


@pytest.mark.parametrize("levels", [None, 10])
def test_the_minimum_cost_is_that_of_isotonic_regression(levels: int | None) -> None:
    rng = np.random.default_rng(0)
    mated = rng.random(500) < 0.3
    scores = rng.normal(1.5 * mated, 1)
    scores = scores if levels is None else np.round(scores * levels / 5)
    chance = IsotonicRegression(y_min=0, y_max=1).fit_transform(scores, mated)
    with np.errstate(divide="ignore"):
        llr = np.log(chance / (1 - chance)) - np.log(mated.mean() / (1 - mated.mean()))
    minimum = min_cllr(scores, mated)
    assert minimum == pytest.approx(cllr(llr, mated), abs=1e-12)
    for rising in (scores, 3 * scores - 1, np.exp(scores)):
        assert min_cllr(rising, mated) == minimum <= cllr(rising, mated)
    assert min_cllr(-scores, mated) <= 1


def test_reliability_bins_equal_a_direct_calculation() -> None:
    rng = np.random.default_rng(1)
    mated = rng.random(300) < 0.4
    llr = rng.normal(mated, 1.5)
    result = reliability(llr, mated)
    chance = 1 / (1 + np.exp(-llr) * (~mated).sum() / mated.sum())
    gap = 0.0
    for bin_ in result.bins:
        rows = (chance >= bin_.low) & (chance < bin_.high)
        assert (bin_.pairs, bin_.mated) == (rows.sum(), mated[rows].sum())
        if bin_.pairs:
            assert bin_.stated == pytest.approx(chance[rows].mean()) and bin_.found == mated[rows].mean()
            assert bin_.interval[0] <= bin_.found <= bin_.interval[1]
            gap += abs(chance[rows].mean() - mated[rows].mean()) * rows.sum() / 300
        else:
            assert bin_.stated is None and bin_.interval == (0, 1)
    assert sum(bin_.pairs for bin_ in result.bins) == 300 and result.error == pytest.approx(gap)


def test_true_ratios_are_reliable_and_exaggerated_ones_are_not() -> None:
    rng = np.random.default_rng(2)
    mated = rng.random(40_000) < 0.5
    llr = 1.5 * rng.normal(1.5 * mated, 1) - 1.5**2 / 2
    assert reliability(llr, mated).error < 0.01 < 0.05 < reliability(3 * llr, mated).error
    assert cllr(llr, mated) - min_cllr(llr, mated) < 0.005 < cllr(3 * llr, mated) - min_cllr(llr, mated)


def test_infinite_ratios_are_in_the_outer_bins() -> None:
    result = reliability([np.inf, -np.inf, 0.0], [1, 0, 1])
    assert result.bins[0].pairs == 1 and result.bins[-1].pairs == 1


def test_tippett_curves_equal_counts() -> None:
    rng = np.random.default_rng(3)
    mated = rng.random(900) < 0.5
    llr = rng.normal(mated, 1)
    curves = tippett(llr, mated, points=50)
    assert len(curves["llr"]) == 50
    for x, mated_share, non_mated_share in zip(curves["llr"], curves["mated"], curves["non_mated"]):
        assert (mated_share, non_mated_share) == ((llr[mated] >= x).mean(), (llr[~mated] >= x).mean())


def test_edges_must_ascend_from_0_to_1() -> None:
    for edges in ([0.0, 0.5], [0.0, 0.5, 0.5, 1.0], [1.0]):
        with pytest.raises(InputError, match="ascending from 0 to 1"):
            reliability([0.0, 1.0], [0, 1], edges=edges)
