"""The worst mistakes: lowest mated and highest non-mated scores, in order and with their subjects."""

import numpy as np
import pytest
from tests.evaluation.conftest import Toy

from spherecf.errors import InputError
from spherecf.evaluation import worst_mistakes


def test_worst_pairs_of_both_kinds_with_ties_in_list_order() -> None:
    scores = [0.5, 0.1, 0.1, 0.9, 0.9, 0.2, 0.3]
    mated = [1, 1, 1, 1, 0, 0, 0]
    keys = [f"l{i}" for i in range(7)], [f"r{i}" for i in range(7)]
    people = list("abcdefg"), list("abcdxyz")
    mistakes = worst_mistakes("s", scores, mated, keys, (np.arange(7.0), np.ones(7)), people, count=2)
    assert [(m.left, m.right, m.mated, m.value) for m in mistakes] == [
        ("l1", "r1", True, 0.1), ("l2", "r2", True, 0.1), ("l4", "r4", False, 0.9), ("l6", "r6", False, 0.3),
    ]  # fmt: skip
    assert mistakes[2].kappa == (4.0, 1.0) and mistakes[2].subjects == ("e", "x") and mistakes[2].score == "s"
    unnamed = worst_mistakes("s", scores, mated, keys, (np.ones(7), np.ones(7)))
    assert len(unnamed) == 7 and unnamed[0].subjects == ("", "")


def test_the_pair_report_contains_the_worst_mistakes(toy: Toy) -> None:
    report = toy.report(right=toy.degraded)
    assert len(report.mistakes) == 2 * 2 * 8
    cosine = [m for m in report.mistakes if m.score == "cosine" and m.mated]
    pairs = [(a, b) for a, b, m in zip(toy.left, toy.right, toy.mated) if m]
    values = sorted(
        (float(toy.clean.mu[toy.clean.rows([a])[0]] @ toy.degraded.mu[toy.degraded.rows([b])[0]]), a, b)
        for a, b in pairs
    )
    assert [(m.left, m.right) for m in cosine] == [(a, b) for _, a, b in values[:8]]
    worst = cosine[0]
    assert worst.value == pytest.approx(values[0][0], abs=1e-6)
    assert worst.kappa[1] == pytest.approx(float(toy.degraded.kappa[toy.degraded.rows([worst.right])[0]]))
    assert worst.subjects == (worst.left.split("/")[0],) * 2
    assert report.to_dict()["mistakes"][0]["left"] == worst.left


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"2 scores, but .* keys, kappas and subjects of each side"):
        worst_mistakes("s", [0.1, 0.2], [1, 0], (["a"], ["b", "c"]), ([1, 2], [1, 2]))
    with pytest.raises(InputError, match="both kinds"):
        worst_mistakes("s", [0.1, 0.2], [1, 1], (["a", "d"], ["b", "c"]), ([1, 2], [1, 2]))
