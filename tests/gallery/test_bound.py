"""The score bound of a bin is above every score in it, and close to the maximum."""

import numpy as np
import pytest
import torch
from tests.reference.gallery import score_at

from spherecf.gallery.bound import BinEnds, Bound

COSINES = np.array([-1.0, -0.999, -0.5, 0.0, 0.3, 0.9, 0.9999, 1.0])


@pytest.mark.parametrize("dim", [3, 512])
@pytest.mark.parametrize("probe_kappa", [0.0, 1e-3, 5.0, 200.0, 1e5])
@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (0, 1), (100, 110), (190, 210), (10, 1000), (1e5, 1.1e5), (1e-6, 1e6)]
)
def test_bound_is_above_every_score_in_the_bin(dim: int, probe_kappa: float, low: float, high: float) -> None:
    rng = np.random.default_rng(0)
    inside = np.clip(probe_kappa * np.array([1, 0.9999, 1.0001]), low, high)
    kappas = np.concatenate([[low, high], rng.uniform(low, high, 100), inside])
    scores = score_at(COSINES[:, None], probe_kappa, kappas[None], dim, 64.0)
    ends = np.full((2, len(COSINES)), [[float(low)], [float(high)]])
    bound, bins = Bound(np.array([probe_kappa]), dim, 64.0), BinEnds.of(*ends, dim)
    assert (bound.of_bins(bins, COSINES) >= scores.max(1)).all()
    for score_to_beat in np.quantile(scores, [0.1, 0.5, 0.9]):
        min_cosines = bound.cosines(bins, COSINES, np.full(len(COSINES), score_to_beat))
        excluded = min_cosines >= COSINES
        assert (scores[excluded] < score_to_beat).all() and (min_cosines <= COSINES).all()
    row_kappas = np.broadcast_to(kappas, scores.shape).ravel().copy()
    cosines = np.repeat(COSINES, len(kappas))
    np.testing.assert_allclose(bound.of_rows(row_kappas, cosines), scores.ravel(), rtol=1e-10, atol=1e-5)


def test_bound_is_tight_for_a_narrow_bin() -> None:
    low, high = np.linspace(100, 900, 50), np.linspace(100, 900, 50) + 4.0
    cosine = np.full(50, 0.4)
    bound = Bound(np.array([300.0]), 512, 64.0).of_bins(BinEnds.of(low, high, 512), cosine)
    kappas = torch.linspace(0, 4, 41).double().numpy()[:, None] + low
    assert (bound - score_at(cosine, 300.0, kappas, 512, 64.0).max(0) < 0.05).all()
