"""The subject bootstrap: documented weights, reproducible draws, and intervals with correct coverage."""

import numpy as np
import pytest

from spherecf.errors import InputError
from spherecf.evaluation import bootstrap as bootstrap_module, bootstrap_subjects, interval, tmr_at_fmr
from spherecf.evaluation.rates import auc_rates, eer_rates, sort_pairs, tmr_rates


def _collect(left: list[str], right: list[str], draws: int = 200) -> np.ndarray:
    weights = bootstrap_subjects(
        lambda w: {str(i): w[:, i] for i in range(w.shape[1])}, left, right, draws=draws, seed=3
    )
    return np.stack([weights[str(i)] for i in range(len(left))], 1)


def test_pair_weights_are_products_of_subject_counts() -> None:
    weights = _collect(["a", "b", "c", "a", "a"], ["a", "b", "c", "b", "c"])
    a, b, c = weights[:, 0], weights[:, 1], weights[:, 2]
    np.testing.assert_array_equal(a + b + c, 3)
    np.testing.assert_array_equal(weights[:, 3], a * b)
    np.testing.assert_array_equal(weights[:, 4], a * c)


def test_draws_depend_on_the_seed_but_not_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = ["a", "b", "c"], ["b", "c", "c"]
    expected = _collect(left, right)
    monkeypatch.setattr(bootstrap_module, "_BLOCK_WEIGHTS", 10)
    np.testing.assert_array_equal(_collect(left, right), expected)


def test_integer_weights_equal_repeated_pairs() -> None:
    rng = np.random.default_rng(0)
    mated = rng.random(300) < 0.5
    scores = np.round(rng.normal(mated * 1.0, 1), 1)
    weights = rng.integers(0, 4, (4, 300)).astype(float)
    curve = sort_pairs(scores, mated).curve(weights)
    for draw in range(4):
        repeated_rows = np.repeat(np.arange(300), weights[draw].astype(int))
        single = sort_pairs(scores[repeated_rows], mated[repeated_rows]).curve()
        assert eer_rates(curve)[draw] == pytest.approx(float(eer_rates(single)))
        assert auc_rates(curve)[draw] == pytest.approx(float(auc_rates(single)))
        assert (
            tmr_rates(curve, 0.05)[draw]
            == tmr_at_fmr(scores[repeated_rows], mated[repeated_rows], 0.05)[0].tmr
        )


def test_the_interval_covers_the_truth_for_dependent_pairs() -> None:
    """The value of a pair is that of its subject, so pairs of one subject are fully dependent."""
    covered = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        subjects = np.repeat(np.arange(40), 16)
        values = rng.normal(size=40)[subjects]
        mean = bootstrap_subjects(
            lambda w, v=values: {"mean": (w * v).sum(1) / w.sum(1)}, subjects, subjects, draws=200, seed=trial
        )["mean"]
        bounds = interval(mean)
        covered += bounds.low <= 0 <= bounds.high
    assert covered >= 50  # 95 % of 60 are 57


def test_undefined_draws_are_counted() -> None:
    bounds = interval(np.array([np.nan, 1.0, 2.0, -1.0]))
    assert bounds.undefined == 1 and bounds.below_zero == pytest.approx(1 / 3)
    assert interval(np.array([np.nan])).undefined == 1


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 subjects"):
        _collect(["a"], ["a"])
    with pytest.raises(InputError, match=r"\(1,\) and \(2,\)"):
        _collect(["a"], ["a", "b"])
