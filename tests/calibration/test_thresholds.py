"""Threshold tables have the counts of `tmr_at_fmr`."""

import json

import numpy as np
import pytest
import torch

from spherecf.calibration import ThresholdTable, clopper_pearson, threshold_at_rate
from spherecf.errors import InputError
from spherecf.evaluation import tmr_at_fmr


@pytest.mark.parametrize("levels", [None, 20, 2])
def test_counts_are_those_of_tmr_at_fmr(levels: int | None) -> None:
    rng = np.random.default_rng(0)
    mated = rng.random(600) < 0.4
    scores = rng.normal(2.0 * mated, 1)
    scores = scores if levels is None else np.round(scores * levels / 8)
    targets = [1.0, 0.3, 0.1, 0.01, 0.003, 0.001]
    table = ThresholdTable.fit(scores, mated, targets, score="s")
    assert [entry.target for entry in table.entries] == targets
    for entry, expected in zip(table.entries, tmr_at_fmr(scores, mated, targets)):
        assert (entry.threshold, entry.fmr, entry.tmr) == (expected.threshold, expected.fmr, expected.tmr)
        assert (entry.false_matches, entry.true_matches) == (expected.false_matches, expected.true_matches)
        assert (entry.unresolved is None) == (expected.unresolved is None)
    entry = table.at(0.1)
    assert entry.fmr_exact == pytest.approx(
        [float(x) for x in clopper_pearson(entry.false_matches, entry.non_mated)]
    )


def test_intervals_over_subjects_and_json() -> None:
    table = ThresholdTable.fit([3.0, 3.0, 1.0], [0, 0, 1], [0.5, 0.1], score="mls", radius=64.0)
    table = table.with_subject_intervals({0.5: (0.1, 0.9)}, {0.5: (0.0, 1.0)})
    assert table.at(0.5).fmr_subjects == (0.1, 0.9) and table.at(0.1).fmr_subjects is None
    # An interval without width, from a bootstrap in which no pair was ever accepted, is left out.
    assert table.with_subject_intervals({0.5: (0.0, 0.0)}, {0.5: (1.0, 1.0)}).at(0.5).tmr_subjects is None
    assert (
        table.at(0.5).threshold == float("inf") and table.at(0.5).false_matches == 0
    )  # ties stay out together
    again = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert ThresholdTable.from_dict(again) == table


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="FMR targets"):
        ThresholdTable.fit([1.0, 2.0], [0, 1], [], score="s")
    with pytest.raises(InputError, match="FMR targets"):
        ThresholdTable.fit([1.0, 2.0], [0, 1], [0.0], score="s")
    with pytest.raises(InputError, match=r"no threshold for FMR 0\.2; the table has 0\.5"):
        ThresholdTable.fit([1.0, 2.0], [0, 1], [0.5], score="s").at(0.2)


def test_integer_scores_have_thresholds() -> None:
    assert threshold_at_rate(np.array([70, 90]), np.array([10, 80]), 0.5) == 70
    assert threshold_at_rate(np.array([1]), np.array([2, 2]), 0.5) == np.inf
    assert threshold_at_rate([70, 90], torch.tensor([10, 80]), 0.5) == 70
    with pytest.raises(InputError, match="non_mated: expected real numbers"):
        threshold_at_rate([0.5], ["0.1"], 0.5)


def test_scores_that_are_not_ascending_are_refused() -> None:
    for mated, non_mated in (([0.9, 0.8], [0.1, 0.2]), ([0.8, 0.9], [0.2, 0.1]), ([0.1, np.nan], [0.1, 0.2])):
        with pytest.raises(InputError, match="in ascending order"):
            threshold_at_rate(np.array(mated), np.array(non_mated), 0.5)
    with pytest.raises(InputError, match="0 < rate <= 1, got 2"):
        threshold_at_rate(np.array([0.9]), np.array([0.1]), 2.0)


def test_targets_may_be_an_array() -> None:
    table = ThresholdTable.fit([0.9, 0.1], [1, 0], np.array([1.0]), score="s")  # type: ignore[arg-type]
    assert table.at(1.0).threshold == 0.1
