"""Confidences of open-set decisions against 40-digit arithmetic."""

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
def data_and_search() -> tuple[OpenSet, Searched]:
    gallery, names, probes, probe_subjects = open_world(
        dim=8, enrolled=6, strangers=6, each=2, kappas=(0.01, 400.0)
    )
    data = OpenSet(gallery, names, probes, probe_subjects)
    return data, data.search((KAPPA, KAPPA), BETA, 0)


def test_risks_and_confidences_equal_high_precision_values(data_and_search: tuple[OpenSet, Searched]) -> None:
    data, result = data_and_search
    posterior_match, truth = result.posterior, data.truth
    decisions = decide(posterior_match.best_cosine, posterior_match.best == truth, truth >= 0, 0.55)
    assert 0 < decisions.accepted.sum() < truth.size
    risks, parts, confidences = (
        log_risks(result, decisions.accepted),
        divergences(result),
        gallery_confidences(result, decisions),
    )
    cosines = (data.probes.mu @ data.gallery.mu.T).astype(np.float64)
    with mp.workdps(DIGITS):
        for row in range(truth.size):
            kappa, accepted = float(result.kappa[row]), bool(decisions.accepted[row])
            p, total = posterior(cosines[row], 8, KAPPA, BETA)
            q, _ = posterior(cosines[row], 8, KAPPA, BETA, kappa)
            top, second = sorted(cosines[row])[::-1][:2]
            enrolled_mass, runner_up_mass = mp.fsum(p[1:]), mp.fsum(p[1:]) - max(p[1:])
            expected = (
                [p[0], runner_up_mass, 0, 0]
                if accepted
                else [0, 0, enrolled_mass, p[0] * non_specificity(kappa, 8)]
            )
            assert risks[row] == pytest.approx(
                [float(mp.log(r)) if r else -np.inf for r in expected], abs=1e-6
            )
            assert parts[row] == pytest.approx(
                [float(mp.fsum(x * mp.log(x / ((1 - mp.mpf(BETA)) / 6)) for x in p[1:])),
                 float(unknown_divergence(p[0], total, kappa, 8))], abs=1e-6,
            )  # fmt: skip
            error_probability = 1 - max(q[1:]) if accepted else mp.fsum(q[1:])
            assert {name: values[row] for name, values in confidences.items()} == pytest.approx(
                {
                    "threshold_distance": abs(top - 0.55),
                    "margin": top - second,
                    "max_posterior": -float(mp.log(1 - max(p))),
                    "galue": float(mp.fsum(x * mp.log(x) for x in p)),
                    "mutual_risk": -float(mp.log(error_probability)),
                },
                abs=1e-4,
            )


def test_non_specificity_falls_with_kappa_from_one() -> None:
    gallery, names, probes, probe_subjects = open_world(dim=512, enrolled=3, strangers=3, each=2)
    probes.kappa[:] = 10.0 ** np.arange(-5, 7)
    result = OpenSet(gallery, names, probes, probe_subjects).search((300.0, 300.0), 0.5, 0)
    log_non_specificity = log_risks(result, np.zeros(12, bool))[:, 3] - result.posterior.log_unknown
    assert (
        log_non_specificity[0] == pytest.approx(0, abs=1e-9)
        and (np.diff(log_non_specificity) < 0).all()
        and np.isfinite(log_non_specificity).all()
    )


def test_mean_resultant_length_rises_with_kappa() -> None:
    kappa = 10.0 ** np.linspace(-2, 6, 50)
    confidences = probe_confidences(kappa, 512, {"norm": kappa / 2}, 7)
    assert (np.diff(confidences["mean_resultant"]) > 0).all()
    assert confidences["mean_resultant"][0] > 0 and confidences["mean_resultant"][-1] < 1
    assert list(confidences) == ["kappa", "mean_resultant", "norm", "random"]
    assert np.array_equal(confidences["random"], probe_confidences(kappa, 512, {}, 7)["random"])
