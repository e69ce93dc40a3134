"""ROC, TMR at FMR, EER, AUC and DET against scikit-learn, brute force and each other."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve

from spherecf.errors import InputError
from spherecf.evaluation import auc, det_curve, eer, roc, tmr_at_fmr
from spherecf.evaluation.rates import auc_rates, eer_rates, sort_pairs, spread, tmr_rates


def draw(n: int = 500, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mated = rng.random(n) < 0.4
    scores = rng.normal(mated * 1.5, 1)
    return (np.round(scores, 1) if ties else scores), mated


pairs = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=60).filter(
    lambda items: len({m for _, m in items}) == 2
)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_curves_equal_scikit_learn(seed: int, ties: bool) -> None:
    scores, mated = draw(seed=seed, ties=ties)
    fpr, tpr, thresholds = roc_curve(mated, scores, drop_intermediate=False)
    curve = roc(scores, mated)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    np.testing.assert_allclose(curve.fmr, fpr, atol=1e-15)
    np.testing.assert_allclose(curve.tmr, tpr, atol=1e-15)
    assert auc(scores, mated) == pytest.approx(roc_auc_score(mated, scores), abs=1e-14)
    crossing = brentq(lambda x: 1 - x - interp1d(fpr, tpr)(x), 0, 1, xtol=1e-14)
    assert eer(scores, mated) == pytest.approx(crossing, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(items=pairs, target=st.floats(0.01, 1.0))
def test_tmr_at_fmr_is_the_best_allowed_threshold(items: list[tuple[int, bool]], target: float) -> None:
    scores, mated = np.array([float(s) for s, _ in items]), np.array([m for _, m in items])
    result = tmr_at_fmr(scores, mated, target)[0]
    count = int((~mated).sum())
    if target * (1 + 1e-12) < 1 / count:
        assert result.tmr is None and f"there are {count}" in str(result.unresolved)
        return
    rates = []
    for threshold in [np.inf, *scores]:
        accepted = scores >= threshold
        if (accepted & ~mated).sum() / count <= target * (1 + 1e-12):
            rates.append((accepted & mated).sum() / mated.sum())
    assert result.tmr == max(rates)
    accepted = scores >= result.threshold
    assert (accepted & mated).sum() == result.true_matches
    assert (accepted & ~mated).sum() == result.false_matches <= target * count + 1e-9


def test_targets_that_are_exact_counts_are_reached() -> None:
    mated = np.array([False] * 1000 + [True])
    scores = np.arange(1001.0)[::-1]  # the mated pair scores lowest, so every allowed false match is used
    for target in (1e-1, 3e-1, 1e-2, 7e-3, 1e-3):
        assert tmr_at_fmr(scores, mated, target)[0].false_matches == round(target * 1000)


def test_targets_beyond_the_resolution_are_unresolved() -> None:
    scores, mated = draw()
    fine, beyond = tmr_at_fmr(scores, mated, [1e-2, 1e-6])
    assert fine.tmr is not None and fine.unresolved is None
    assert beyond.tmr is None and beyond.threshold is None
    assert (
        beyond.unresolved == f"FMR 1e-06 needs at least 1000000 non-mated pairs, there are {(~mated).sum()}"
    )


@settings(max_examples=100, deadline=None)
@given(items=pairs)
def test_increasing_transforms_do_not_change_rates(items: list[tuple[int, bool]]) -> None:
    scores, mated = np.array([float(s) for s, _ in items]), np.array([m for _, m in items])
    transformed = np.exp(scores) + 3
    assert eer(scores, mated) == eer(transformed, mated)
    assert auc(scores, mated) == auc(transformed, mated)
    assert tmr_at_fmr(scores, mated, 0.5)[0].tmr == tmr_at_fmr(transformed, mated, 0.5)[0].tmr


def test_integer_weights_equal_repeated_pairs() -> None:
    scores, mated = draw(80, ties=True)
    weights = np.random.default_rng(1).integers(0, 4, (2, 3, 80))
    curve = sort_pairs(scores, mated).curve(weights)
    assert curve.mated.shape == curve.non_mated.shape == (2, 3)
    for row in np.ndindex(2, 3):
        copied = np.repeat(scores, weights[row]), np.repeat(mated, weights[row])
        plain = roc(*copied)
        rows = np.searchsorted(-curve.thresholds, -plain.thresholds)
        np.testing.assert_array_equal(curve.false[row][rows], plain.false)
        np.testing.assert_array_equal(curve.true[row][rows], plain.true)
        np.testing.assert_array_equal(curve.fnmr[row][rows], plain.fnmr)
        assert eer_rates(curve)[row] == pytest.approx(eer(*copied))
        assert auc_rates(curve)[row] == pytest.approx(auc(*copied))
        for target in (0.05, 0.3, 1.0):
            assert tmr_rates(curve, target)[row] == tmr_at_fmr(*copied, target)[0].tmr


def test_perfect_inverted_and_constant_scores() -> None:
    mated = np.array([True, True, False, False])
    assert (eer([4, 3, 2, 1], mated), auc([4, 3, 2, 1], mated)) == (0.0, 1.0)
    assert (eer([1, 2, 3, 4], mated), auc([1, 2, 3, 4], mated)) == (1.0, 0.0)
    assert (eer([1, 1, 1, 1], mated), auc([1, 1, 1, 1], mated)) == (0.5, 0.5)


def test_det_corners_determine_the_curve() -> None:
    scores, mated = draw(ties=True)
    fmr, fnmr, thresholds = det_curve(scores, mated)
    curve = roc(scores, mated)
    assert thresholds.size <= curve.thresholds.size
    np.testing.assert_allclose(np.interp(curve.fmr + curve.tmr, fmr + 1 - fnmr, fmr), curve.fmr, atol=1e-12)
    assert (fmr[0], fnmr[0], fmr[-1], fnmr[-1]) == (0, 1, 1, 0)


@pytest.mark.parametrize("ties", [False, True])
def test_det_corners_are_the_turns_of_the_staircase(ties: bool) -> None:
    scores, mated = draw(60, ties=ties)
    curve = roc(scores, mated)
    points = list(zip(curve.false.tolist(), curve.true.tolist()))
    corners = [0]
    for i in range(1, len(points) - 1):
        (f0, t0), (f1, t1), (f2, t2) = points[i - 1 : i + 2]
        if not (f0 == f1 == f2 or t0 == t1 == t2):
            corners.append(i)
    corners.append(len(points) - 1)
    fmr, fnmr, thresholds = det_curve(scores, mated)
    np.testing.assert_array_equal(thresholds, curve.thresholds[corners])
    np.testing.assert_array_equal(fmr, curve.fmr[corners])
    np.testing.assert_array_equal(fnmr, curve.fnmr[corners])


@pytest.mark.parametrize("size", [399, 400, 401, 3000])
def test_thinned_points_are_the_first_to_reach_each_rate(size: int) -> None:
    progress = np.arange(size) / (size - 1)
    fmr, fnmr = np.minimum(1, (1.1 * progress) ** 3), np.minimum(1, (1.1 * (1 - progress)) ** 2)
    expected_rows = {0, size - 1}
    for fmr_level, fnmr_level in zip(np.geomspace(fmr[1], 1, 200), np.geomspace(fnmr[-2], 1, 200)):
        expected_rows.add(next(i for i in range(size) if fmr[i] >= fmr_level))
        expected_rows.add(next(i for i in reversed(range(size)) if fnmr[i] >= fnmr_level))
    assert spread(fmr, fnmr).tolist() == (list(range(size)) if size <= 400 else sorted(expected_rows))


@pytest.mark.parametrize(
    ("scores", "mated", "message"),
    [
        ([1.0, float("nan")], [True, False], "1 of 2 are NaN, first pair 1"),
        ([1.0, 2.0], [True, True], "2 mated and 0 non-mated"),
        ([1.0, 2.0], [False, False], "0 mated and 2 non-mated"),
        ([], [], "0 mated and 0 non-mated"),
        ([1.0, 2.0], [True], r"\(2,\) and \(1,\)"),
        ([1.0, 2.0], [2, 0], "expected booleans or 0 and 1"),
    ],
)
def test_bad_input_is_refused(scores: list[float], mated: list[object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        roc(np.array(scores), np.array(mated))


@pytest.mark.parametrize("target", [0.0, -0.1, 1.5, float("nan")])
def test_bad_targets_are_refused(target: float) -> None:
    with pytest.raises(InputError, match="FMR target"):
        tmr_at_fmr([1.0, 0.0], [True, False], target)
