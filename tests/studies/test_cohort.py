"""Scores normalised on a gallery, and open-set rates of sampled galleries."""

import numpy as np
import pytest
from studies.cohort import Gain, World, _gains, _Searched, cohort_tables, normalised
from studies.graded import GradedFaces

from spherecf.evaluation import fpir_threshold


def test_every_normalisation_equals_a_direct_calculation() -> None:
    rng = np.random.default_rng(0)
    scores, among = rng.normal(size=(5, 30)), rng.normal(size=(30, 30))
    results = normalised(scores, among)
    cohort_scores, gallery_scores = np.delete(scores[2], 7), np.delete(among[7], 7)
    z = (scores[2, 7] - cohort_scores.mean()) / cohort_scores.std()
    assert results["z"][2, 7] == pytest.approx(z)
    assert results["s"][2, 7] == pytest.approx(
        (z + (scores[2, 7] - gallery_scores.mean()) / gallery_scores.std()) / 2
    )
    means = np.array([np.delete(among[i], i).mean() for i in range(30)])
    centred = scores[2, 7] - (cohort_scores.mean() + gallery_scores.mean() - means.mean()) / 2
    assert results["centred"][2, 7] == pytest.approx(centred)
    ranked = np.sort(scores[2])[::-1]
    assert results["top"][2, 7] == pytest.approx(scores[2, 7] - ranked[1:11].mean() / 4)
    excess = (ranked[1:11] - ranked[11]).mean()
    assert results["tail"][2, 7] == pytest.approx((scores[2, 7] - ranked[11]) / excess)
    assert (results["as it is"] == scores).all()


def test_rates_equal_those_of_the_library() -> None:
    rng = np.random.default_rng(1)
    mated, person = rng.random(2000) < 0.4, rng.integers(0, 50, 2000)
    best_scores, is_right = rng.normal(size=2000) + 2 * mated, (rng.random(2000) < 0.9) & mated
    threshold, _ = fpir_threshold(best_scores, mated, 0.01)
    fnir = _Searched(best_scores, is_right, mated, person).fnir(np.ones(50))
    assert fnir == pytest.approx(1 - (is_right & (best_scores >= threshold))[mated].mean())


def test_galleries_and_probes_are_disjoint_and_of_the_right_size() -> None:
    rng = np.random.default_rng(2)
    person = np.repeat(np.arange(10), 4)
    mu = rng.normal(size=(40, 2, 8))
    mu = (mu / np.linalg.norm(mu, axis=2, keepdims=True)).astype(np.float32)
    kappa = np.stack([np.arange(40) + 100.0, np.arange(40) + 1.0], 1).astype(np.float32)
    faces = GradedFaces(["none", "worse"], mu, kappa, person, [str(i) for i in range(40)], 64.0)
    gallery, probes = World("w", 1, False).draw(faces, 0)
    assert len(gallery[2]) == 5 and len(probes[2]) == 35
    assert not set(gallery[1].tolist()) & set(probes[1].tolist()) and probes[1].min() >= 100
    _, mixed = World("w", 3, True).draw(faces, 0)
    assert len(mixed[2]) == 25 and mixed[1].min() < 50 < mixed[1].max()


def test_differences_have_intervals_over_subjects() -> None:
    rng = np.random.default_rng(3)
    mated, person = np.arange(1000) % 2 == 0, np.arange(1000) % 20
    worse = rng.normal(size=1000) + 1.5 * mated
    better = np.where(mated, worse + 1, worse)
    searched = {
        ("mls", way): [_Searched(values, mated, mated, person)]
        for way, values in (("as it is", worse), ("s", better))
    }
    weights = np.vstack([np.ones(20), rng.multinomial(20, np.full(20, 0.05), 50)])
    world = World("w", 1, False)
    plain, gain = _gains(world, (7, 1000), searched, weights)
    assert (plain.more, plain.ends) == (0.0, (0.0, 0.0))
    assert gain.ends[0] <= gain.more <= gain.ends[1] < 0 and gain.fnir == pytest.approx(
        plain.fnir + gain.more
    )
    all_scores = [
        Gain(world, score, "as it is", 7, 10, 0.5, 0.0, (0.0, 0.0)) for score in ("evidence", "cosine")
    ]
    table = cohort_tables(
        [
            *all_scores,
            plain,
            gain,
            *(Gain(world, s, "s", 7, 10, 0.4, -0.1, (-0.2, 0.0)) for s in ("evidence", "cosine")),
        ]
    )[0]
    assert table.title == "w, 1 image per template, probes undamaged: 7 enrolled, 10 probes"
    assert table.rows[0] == ["evidence", "0.5000", "-0.1000 [-0.2000, +0.0000]"]
