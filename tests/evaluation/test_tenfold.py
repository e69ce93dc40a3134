"""Ten-fold accuracy against a slow, obvious loop."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from tests.reference import tenfold_slow

from spherecf.errors import InputError
from spherecf.evaluation import tenfold
from spherecf.evaluation.folds import check_folds, fold_counts
from spherecf.evaluation.rates import sort_pairs

items = st.lists(
    st.tuples(st.integers(-6, 6), st.booleans(), st.integers(0, 3)), min_size=4, max_size=60
).filter(lambda rows: len({m for _, m, _ in rows}) == 2 and len({f for _, _, f in rows}) > 1)


@settings(max_examples=300, deadline=None)
@given(rows=items)
def test_equals_the_slow_reference(rows: list[tuple[int, bool, int]]) -> None:
    scores, mated, folds = (list(column) for column in zip(*rows))
    scores = [float(s) for s in scores]
    accuracies, thresholds = tenfold_slow.tenfold(scores, mated, folds)
    result = tenfold(np.array(scores), np.array(mated), np.array(folds))
    assert result.accuracies == pytest.approx(accuracies, abs=1e-12)
    assert result.thresholds == thresholds
    assert result.mean == pytest.approx(np.mean(accuracies)) and result.std == pytest.approx(
        np.std(accuracies)
    )


def make(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mated = np.arange(n) // (n // 20) % 2 == 0
    return rng.normal(mated * 2.0, 1), mated, np.arange(n) * 10 // n


@pytest.mark.slow
def test_equals_the_slow_reference_at_full_size() -> None:
    scores, mated, folds = make(2000)
    accuracies, thresholds = tenfold_slow.tenfold(scores.tolist(), mated.tolist(), folds.tolist())
    result = tenfold(scores, mated, folds)
    assert result.accuracies == pytest.approx(accuracies) and result.thresholds == thresholds


def test_integer_weights_equal_repeated_pairs() -> None:
    scores, mated, folds = make(200)
    weights = np.random.default_rng(1).integers(0, 4, (3, 200)).astype(float)
    pairs = sort_pairs(scores, mated)
    names, fold = check_folds(folds, pairs)
    correct, total, _ = fold_counts(pairs, fold, len(names), weights)
    for draw in range(3):
        repeated_rows = np.repeat(np.arange(200), weights[draw].astype(int))
        result = tenfold(scores[repeated_rows], mated[repeated_rows], folds[repeated_rows])
        np.testing.assert_allclose(correct[draw] / total[draw], result.accuracies)


def test_the_log_line_has_the_common_format() -> None:
    line = tenfold(*make(600)).log_line("cfp_fp", 7)
    assert line.startswith("[cfp_fp][7]Accuracy-Flip: 0.") and "+-0." in line


def test_bad_folds_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 different folds, got 1"):
        tenfold([1.0, 0.0], [True, False], [3, 3])
    with pytest.raises(InputError, match=r"one per pair, shape \(2,\), got \(3,\)"):
        tenfold([1.0, 0.0], [True, False], [1, 2, 3])


def test_folds_with_one_kind_of_pairs_are_reported() -> None:
    scores = np.linspace(0, 1, 20)
    by_kind = tenfold(scores, np.repeat([True, False], 10), np.repeat(np.arange(10), 2))
    assert by_kind.one_sided == list(range(10)) and "10 of 10 folds" in by_kind.log_line("own")
    alternating = tenfold(scores, np.tile([True, False], 10), np.repeat(np.arange(10), 2))
    assert (
        alternating.one_sided == []
        and alternating.warning == ""
        and alternating.log_line("own")[-1].isdigit()
    )
    one_sided = tenfold(
        scores, np.array([True, True, *np.tile([True, False], 9)]), np.repeat(np.arange(10), 2)
    )
    assert one_sided.one_sided == [0]
