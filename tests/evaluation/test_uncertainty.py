"""Confidences in open-set decisions against 40-digit arithmetic."""

import numpy as np
import pytest
from tests.reference.open_world import open_world
from tests.reference.openset_slow import DIGITS, mp, non_specificity, posterior, unknown_divergence

from spherecf.evaluation import OpenSet, decide
from spherecf.evaluation.open_set import (
    Searched,
    divergences,
    gallery_confidences,
    log_risks,
    probe_confidences,
)

KAPPA, BETA = 30.0, 0.4


@pytest.fixture(scope="module")
def searched() -> tuple[OpenSet, Searched]:
    gallery, names, probes, who = open_world(dim=8, enrolled=6, strangers=6, each=2, kappas=(0.01, 400.0))
    data = OpenSet(gallery, names, probes, who)
    return data, data.search((KAPPA, KAPPA), BETA, 0)


def test_every_piece_against_many_digits(searched: tuple[OpenSet, Searched]) -> None:
    data, found = searched
    best, truth = found.posterior, data.truth
    made = decide(best.best_cosine, best.best == truth, truth >= 0, 0.55)
    assert 0 < made.accepted.sum() < truth.size
    risks, parts, sure = log_risks(found, made.accepted), divergences(found), gallery_confidences(found, made)
    cosines = (data.probes.mu @ data.gallery.mu.T).astype(np.float64)
    with mp.workdps(DIGITS):
        for row in range(truth.size):
            kappa, accepted = float(found.kappa[row]), bool(made.accepted[row])
            p, total = posterior(cosines[row], 8, KAPPA, BETA)
            q, _ = posterior(cosines[row], 8, KAPPA, BETA, kappa)
            top, second = sorted(cosines[row])[::-1][:2]
            known, others = mp.fsum(p[1:]), mp.fsum(p[1:]) - max(p[1:])
            expected = [p[0], others, 0, 0] if accepted else [0, 0, known, p[0] * non_specificity(kappa, 8)]
            assert risks[row] == pytest.approx(
                [float(mp.log(r)) if r else -np.inf for r in expected], abs=1e-6
            )
            assert parts[row] == pytest.approx(
                [float(mp.fsum(x * mp.log(x / ((1 - mp.mpf(BETA)) / 6)) for x in p[1:])),
                 float(unknown_divergence(p[0], total, kappa, 8))], abs=1e-6,
            )  # fmt: skip
            wrong = 1 - max(q[1:]) if accepted else mp.fsum(q[1:])
            assert {name: values[row] for name, values in sure.items()} == pytest.approx(
                {
                    "threshold_distance": abs(top - 0.55),
                    "margin": top - second,
                    "max_posterior": -float(mp.log(1 - max(p))),
                    "galue": float(mp.fsum(x * mp.log(x) for x in p)),
                    "mutual_risk": -float(mp.log(wrong)),
                },
                abs=1e-4,
            )


def test_non_specificity_is_one_for_a_blank_picture_and_falls() -> None:
    gallery, names, probes, who = open_world(dim=512, enrolled=3, strangers=3, each=2)
    probes.kappa[:] = 10.0 ** np.arange(-5, 7)
    found = OpenSet(gallery, names, probes, who).search((300.0, 300.0), 0.5, 0)
    vague = log_risks(found, np.zeros(12, bool))[:, 3] - found.posterior.log_unknown
    assert vague[0] == pytest.approx(0, abs=1e-9) and (np.diff(vague) < 0).all() and np.isfinite(vague).all()


def test_mean_resultant_is_kappa_in_another_unit() -> None:
    kappa = 10.0 ** np.linspace(-2, 6, 50)
    own = probe_confidences(kappa, 512, {"norm": kappa / 2}, 7)
    assert (np.diff(own["mean_resultant"]) > 0).all()
    assert own["mean_resultant"][0] > 0 and own["mean_resultant"][-1] < 1
    assert list(own) == ["kappa", "mean_resultant", "norm", "random"]
    assert np.array_equal(own["random"], probe_confidences(kappa, 512, {}, 7)["random"])
