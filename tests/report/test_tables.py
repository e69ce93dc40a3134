"""Numbers as text, with no more digits than are known."""

import dataclasses

import numpy as np
import pytest
from tests.evaluation.conftest import Toy

from spherecf.evaluation import Interval
from spherecf.evaluation.results import Measure
from spherecf.report.tables import (
    Cell,
    areas_table,
    counts_text,
    difference_table,
    grouped,
    heading,
    interval_text,
    metric_names,
    run_names,
    score_cell,
    unresolved_text,
    verdict,
)


def test_grouping_preserves_the_order(toy: Toy) -> None:
    a, b = toy.report(name="b", condition="x/y"), toy.report(name="a")
    second_run = dataclasses.replace(a, label="seed 1")
    assert {n: {c: len(r) for c, r in g.items()} for n, g in grouped([a, b, second_run]).items()} == {
        "b": {"x/y": 2}, "a": {"clean/clean": 1},
    }  # fmt: skip
    assert list(grouped([a, b])) == ["b", "a"]
    assert run_names([a]) == [""] and run_names([a, second_run]) == ["run 1", "seed 1"]


def test_unresolved_targets_are_marked(toy: Toy) -> None:
    report = toy.report(targets=(0.1, 0.001))
    assert metric_names([report]) == ["accuracy", "tmr@0.1", "tmr@0.001", "eer", "auc"]
    assert score_cell(report.scores["mls"], "tmr@0.001") == Cell("unresolved", mark="missing")
    assert score_cell(report.scores["mls"], "tmr@0.5") == Cell("–", mark="missing")
    assert unresolved_text([report]) == ["FMR 0.001 needs at least 1000 non-mated pairs, there are 200"]


@pytest.mark.parametrize(
    ("metric", "value", "low", "high", "expected"),
    [
        ("accuracy", 0.02, 0.01, 0.03, "better"),
        ("accuracy", -0.02, -0.03, -0.01, "worse"),
        ("accuracy", 0.02, -0.01, 0.03, ""),
        ("eer", -0.02, -0.03, -0.01, "better"),
        ("eer", 0.02, 0.01, 0.03, "worse"),
        ("auc", 0.00004, 0.00001, 0.00007, ""),
        ("accuracy", 0.02, float("nan"), float("nan"), ""),
    ],
)
def test_a_verdict_requires_the_whole_interval(
    metric: str, value: float, low: float, high: float, expected: str
) -> None:
    assert verdict(metric, Measure(value, Interval(low, high, 0.0))) == expected
    assert verdict(metric, Measure(value, None)) == ""


def test_a_missing_interval_gives_no_text() -> None:
    assert interval_text(None) == "" == interval_text(Interval(float("nan"), float("nan"), 0.0, 5))


def test_counts_include_failures(toy: Toy) -> None:
    report = toy.report()
    assert "400 pairs (200 mated, 200 non-mated)" in counts_text(report) and "none failed" in counts_text(
        report
    )
    failed = dataclasses.replace(report, counts={**report.counts, "failed_images": 2, "failed_pairs": 7})
    assert "2 images could not be embedded, 7 pairs left out" in counts_text(failed)


def test_counts_warn_of_distances_and_swapped_labels(toy: Toy) -> None:
    distance = np.where(toy.mated, 0.0, 1.0) + np.arange(toy.mated.size) % 3
    report = toy.report(extra_scores={"distance": distance})
    assert "have lower scores (distance) than" in counts_text(report)
    assert "lower scores" not in counts_text(toy.report(extra_scores={"same for all": distance * 0}))
    swapped = dataclasses.replace(toy, mated=~toy.mated).report()
    assert "have lower scores (cosine, mls) than" in counts_text(swapped)


def test_counts_warn_of_contradictions_and_repetitions(toy: Toy) -> None:
    report = toy.report()
    wrong = dataclasses.replace(report, counts={**report.counts, "contradictions": 3, "repeated_pairs": 2})
    text = "; 3 pairs have a label that contradicts the people of their images; 2 pairs repeat an earlier one"
    assert text in counts_text(wrong) and "contradicts" not in counts_text(report)


def test_areas_and_differences_may_be_missing(toy: Toy) -> None:
    assert areas_table([toy.report(confidences=[])]) is None
    few, more = (toy.report(draws=10, targets=targets) for targets in ((0.1,), (0.1, 0.02)))
    table = difference_table([few, more])
    assert table is not None
    column = [row[table.header.index(heading("tmr@0.02"))] for row in table.rows]
    half = len(column) // 2
    assert column[:half] == [Cell("–", mark="missing")] * half and half > 0
    assert Cell("–", mark="missing") not in column[half:]
