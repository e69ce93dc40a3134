"""The Gaussian score against the log of its integral, and against the vMF score that it approximates."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from spherecf.errors import InputError
from spherecf.losses import pfe_gaussian_loss
from spherecf.scoring import gaussian_score, mutual_likelihood_score


def test_it_is_the_log_of_the_integral_of_the_product() -> None:
    """The integral of N(x; a, va) N(x; b, vb) dx for each coordinate, with the constant added back."""
    a, b, va, vb = [0.6, -0.8], [0.8, 0.6], [0.5, 2.0], [1.5, 0.1]
    total = 0.0
    for i in range(2):
        one, other = stats.norm(a[i], math.sqrt(va[i])), stats.norm(b[i], math.sqrt(vb[i]))
        total += math.log(integrate.quad(lambda x, p=one, q=other: p.pdf(x) * q.pdf(x), -20, 20)[0])
    mean = [torch.tensor(side, dtype=torch.float64) for side in (a, b)]
    precision = [-torch.tensor(side, dtype=torch.float64).log() for side in (va, vb)]
    found = gaussian_score(mean[0], precision[0], mean[1], precision[1])
    assert float(found) == pytest.approx(total + math.log(2 * math.pi), abs=1e-9)


def test_isotropic_is_the_diagonal_with_equal_entries() -> None:
    rng = torch.manual_seed(0)
    mu = torch.nn.functional.normalize(torch.randn(6, 16, generator=rng), dim=1)
    word = torch.randn(6, 1, generator=rng)
    narrow = gaussian_score(mu[:3], word[:3], mu[3:], word[3:])
    wide = gaussian_score(mu[:3], word[:3].expand(3, 16), mu[3:], word[3:].expand(3, 16))
    torch.testing.assert_close(narrow, wide)


def test_the_loss_of_pfe_is_minus_this_score() -> None:
    rng = torch.manual_seed(1)
    mu = torch.nn.functional.normalize(torch.randn(2, 8, generator=rng), dim=1)
    log_variance = torch.randn(2, 8, generator=rng)
    loss = pfe_gaussian_loss(mu, log_variance, torch.tensor([4, 4]))
    torch.testing.assert_close(-loss, gaussian_score(mu[0], -log_variance[0], mu[1], -log_variance[1]))


def test_a_sharp_vmf_scores_like_a_gaussian_of_its_precision() -> None:
    """vMF(kappa) at large kappa is N(mu, 1/kappa): both order pairs of equal kappa by the cosine alike."""
    rng = torch.manual_seed(2)
    mu = torch.nn.functional.normalize(torch.randn(40, 8, generator=rng, dtype=torch.float64), dim=1)
    kappa = torch.full((20,), 5e4, dtype=torch.float64)
    word = kappa.log()[:, None]
    gauss = gaussian_score(mu[:20], word, mu[20:], word)
    vmf = mutual_likelihood_score(mu[:20], kappa, mu[20:], kappa)
    assert np.array_equal(gauss.argsort(), vmf.argsort())


def test_extreme_precisions_do_not_overflow() -> None:
    mu = torch.eye(2, 4)
    for log_precision in (-60.0, 60.0):  # the range of an embeddings file
        word = torch.full((1, 1), log_precision)
        score = gaussian_score(mu[:1], word, mu[1:], word)
        assert bool(torch.isfinite(score).all())


@pytest.mark.parametrize(
    ("words", "message"),
    [((torch.zeros(1, 3), torch.zeros(1, 3)), "expected 1 or 4 per mean, .* got .1, 3"),
     ((torch.full((1, 1), math.nan), torch.zeros(1, 1)), "log_precision_a: 1 of 1")],
)  # fmt: skip
def test_wrong_precisions_are_refused(words: tuple[torch.Tensor, torch.Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        gaussian_score(torch.eye(1, 4), words[0], torch.eye(1, 4), words[1])
