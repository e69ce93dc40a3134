"""Scores of pairs by products, strips, triangles and gathering, against the row-by-row scores."""

from inspect import unwrap

import numpy as np
import pytest
import torch

from spherecf.errors import InputError
from spherecf.scoring import (
    Templates,
    cosine_score,
    gaussian_score,
    mutual_likelihood_score,
    score_template_pairs,
    template_pairs as template_pairs_module,
)
from spherecf.scoring.matrix import run_in_threads


def templates(count: int, seed: int, dim: int = 32, top: float = 4) -> Templates:
    rng = np.random.default_rng(seed)
    mu = rng.normal(size=(8, dim))[rng.integers(0, 8, count)] + rng.normal(size=(count, dim)) * 0.7
    one = np.ones(count, np.int64)
    return Templates(
        np.arange(count) * 3, (mu / np.linalg.norm(mu, axis=1, keepdims=True)).astype(np.float32),
        (10 ** rng.uniform(-1, top, count)).astype(np.float32), one, one,
        rng.normal(size=(count, dim)).astype(np.float32),
    )  # fmt: skip


def slow(score: str, left: Templates, right: Templates, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = (torch.from_numpy(side.mu[at]) for side, at in ((left, a), (right, b)))
    if score == "cosine":
        return cosine_score(x, y).numpy()
    if score == "gaussian":
        p, q = (torch.from_numpy(side.log_precision[at]) for side, at in ((left, a), (right, b)))
        return gaussian_score(x, p, y, q).numpy()
    k, m = (torch.from_numpy(side.kappa[at]) for side, at in ((left, a), (right, b)))
    return mutual_likelihood_score(x.double(), k, y.double(), m).numpy()


WAYS = {
    "one product": {},
    "strips": {"_STRIP_CELLS": 3000},
    "gathered": {"_SPARSE": 0},
    "small parts": {"_PAIRS": 64, "_GATHERED": 50},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("score", ["cosine", "mls", "gaussian"])
@pytest.mark.parametrize("one_set", [True, False])
def test_equals_row_by_row(monkeypatch: pytest.MonkeyPatch, score: str, way: str, one_set: bool) -> None:
    left = templates(150, 0)
    right = left if one_set else templates(170, 1)
    rng = np.random.default_rng(2)
    a, b = rng.integers(5, 150, 2000), rng.integers(0, len(right) - 9, 2000)
    for name, value in WAYS[way].items():
        monkeypatch.setattr(template_pairs_module, name, value)
    scores = score_template_pairs(left, right, a, b, score)
    expected = slow(score, left, right, a, b)
    atol = {"cosine": 5e-7, "mls": 2e-3, "gaussian": 1e-5}[score]
    np.testing.assert_allclose(scores, expected, atol=atol, rtol=3e-7)
    for threads in (1, 2, 5):
        again = score_template_pairs(
            left, right, a.astype(np.int32), b.astype(np.int32), score, threads=threads
        )
        np.testing.assert_array_equal(again, scores)


def test_results_do_not_depend_on_the_order_of_pairs() -> None:
    t, rng = templates(200, 0), np.random.default_rng(1)
    a, b, order = rng.integers(0, 200, 3000), rng.integers(0, 200, 3000), rng.permutation(3000)
    scores = score_template_pairs(t, t, a, b)
    np.testing.assert_array_equal(score_template_pairs(t, t, a[order], b[order]), scores[order])


def test_results_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    t, rng = templates(300, 0), np.random.default_rng(1)
    a, b = rng.integers(0, 300, 9000), rng.integers(0, 300, 9000)
    scores = score_template_pairs(t, t, a, b)
    for pairs in (100, 1000, 100_000):
        monkeypatch.setattr(template_pairs_module, "_PAIRS", pairs)
        np.testing.assert_array_equal(score_template_pairs(t, t, a, b), scores)


def test_kappa_zero_and_large_kappas() -> None:
    t = templates(60, 0, top=6)
    t.kappa[:3] = 0
    a, b = (x.ravel() for x in np.indices((60, 60)))
    scores = score_template_pairs(t, t, a, b)
    expected = slow("mls", t, t, a, b)
    assert (t.kappa[a][a == b] > 1e5).any()  # where float32 cosines near 1 would not do
    np.testing.assert_allclose(scores, expected, atol=2e-3, rtol=1e-6)


def test_radius_shifts_all_scores_equally() -> None:
    t = templates(20, 0)
    a, b = np.arange(19), np.arange(1, 20)
    gap = score_template_pairs(t, t, a, b, radius=1.0) - score_template_pairs(t, t, a, b, radius=64.0)
    np.testing.assert_allclose(gap, 32 * np.log(64), atol=1e-3)


def test_no_pairs() -> None:
    t = templates(3, 0)
    for score in ("cosine", "mls", "gaussian"):
        assert score_template_pairs(t, t, [], [], score).dtype == np.float32
    assert score_template_pairs(t, t, [], []).shape == (0,)


def test_bad_input() -> None:
    t = templates(4, 0)
    with pytest.raises(InputError, match="score: expected 'mls', 'cosine' or 'gaussian', got 'pfe'"):
        score_template_pairs(t, t, [0], [1], "pfe")
    with pytest.raises(InputError, match=r"right_at: expected 0 .. 3, got -1 .. 4"):
        score_template_pairs(t, t, [0, 0], [-1, 4])
    with pytest.raises(InputError, match="left_at: expected a one-dimensional array of integers"):
        score_template_pairs(t, t, [0.5], [1])
    with pytest.raises(InputError, match="the same length, got 1 and 2"):
        score_template_pairs(t, t, [0], [1, 2])
    with pytest.raises(InputError, match="left has dimension 32, right 16"):
        score_template_pairs(t, templates(4, 0, dim=16), [0], [1])
    with pytest.raises(InputError, match="radius"):
        score_template_pairs(t, t, [0], [1], radius=0.0)
    bare = Templates(t.ids, t.mu, t.kappa, t.images, t.media)
    with pytest.raises(InputError, match="without log_precision"):
        score_template_pairs(t, bare, [0], [1], "gaussian")
    broken = templates(4, 0)
    broken.mu[:] = np.nan
    with pytest.raises(InputError, match="2 of 2 scores are NaN, first of pair 0: templates 3 and 6"):
        score_template_pairs(broken, t, [1, 0], [2, 2])
    for value in (-1, np.inf, np.nan):
        wrong = templates(4, 0)
        wrong.kappa[:] = value
        with pytest.raises(InputError, match="right: kappa: 4 of 4"):
            score_template_pairs(t, wrong, [0], [1])


def test_positions_and_threads_that_are_no_integers_are_refused() -> None:
    side = templates(3, 0)
    with pytest.raises(InputError, match="left_at: expected an array of real numbers"):
        score_template_pairs(side, side, [[0], [1, 2]], [1])
    for threads in ("2", 1.5):
        with pytest.raises(InputError, match="threads: expected 1 or more, an integer"):
            unwrap(run_in_threads)(len, [[0]], threads)
