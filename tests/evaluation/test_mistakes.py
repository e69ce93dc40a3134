"""The worst mistakes are those at the wrong ends, in order, with who they are."""

import numpy as np
import pytest
from tests.evaluation.conftest import Toy

from spherecf.errors import InputError
from spherecf.evaluation import worst_mistakes


def test_ends_of_both_kinds_ties_in_the_order_listed() -> None:
    scores = [0.5, 0.1, 0.1, 0.9, 0.9, 0.2, 0.3]
    mated = [1, 1, 1, 1, 0, 0, 0]
    keys = [f"l{i}" for i in range(7)], [f"r{i}" for i in range(7)]
    people = list("abcdefg"), list("abcdxyz")
    found = worst_mistakes("s", scores, mated, keys, (np.arange(7.0), np.ones(7)), people, count=2)
    assert [(m.left, m.right, m.mated, m.value) for m in found] == [
        ("l1", "r1", True, 0.1), ("l2", "r2", True, 0.1), ("l4", "r4", False, 0.9), ("l6", "r6", False, 0.3),
    ]  # fmt: skip
    assert found[2].kappa == (4.0, 1.0) and found[2].subjects == ("e", "x") and found[2].score == "s"
    alone = worst_mistakes("s", scores, mated, keys, (np.ones(7), np.ones(7)))
    assert len(alone) == 7 and alone[0].subjects == ("", "")


def test_the_pair_report_keeps_them(toy: Toy) -> None:
    report = toy.report(right=toy.degraded)
    assert len(report.mistakes) == 2 * 2 * 8
    cosine = [m for m in report.mistakes if m.score == "cosine" and m.mated]
    pairs = [(a, b) for a, b, m in zip(toy.left, toy.right, toy.mated) if m]
    values = sorted(
        (float(toy.clean.mu[toy.clean.rows([a])[0]] @ toy.degraded.mu[toy.degraded.rows([b])[0]]), a, b)
        for a, b in pairs
    )
    assert [(m.left, m.right) for m in cosine] == [(a, b) for _, a, b in values[:8]]
    first = cosine[0]
    assert first.value == pytest.approx(values[0][0], abs=1e-6)
    assert first.kappa[1] == pytest.approx(float(toy.degraded.kappa[toy.degraded.rows([first.right])[0]]))
    assert first.subjects == (first.left.split("/")[0],) * 2
    assert report.to_dict()["mistakes"][0]["left"] == first.left


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"2 scores, but .* keys, kappas and subjects of each side"):
        worst_mistakes("s", [0.1, 0.2], [1, 0], (["a"], ["b", "c"]), ([1, 2], [1, 2]))
    with pytest.raises(InputError, match="both kinds"):
        worst_mistakes("s", [0.1, 0.2], [1, 1], (["a", "d"], ["b", "c"]), ([1, 2], [1, 2]))
