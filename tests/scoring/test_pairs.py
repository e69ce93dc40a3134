"""Row-by-row scores against 50-digit values, and their gradients."""

import pytest
import torch
from scorers import ScorerConformance, at_cosine, directions
from scores_mpmath import mutual_likelihood
from torch import Tensor

from spherecf.errors import InputError
from spherecf.scoring import cosine_score, mutual_likelihood_matrix, mutual_likelihood_score


class TestCosine(ScorerConformance):
    def score(self, mu_a: Tensor, kappa_a: Tensor, mu_b: Tensor, kappa_b: Tensor) -> Tensor:
        return cosine_score(mu_a, mu_b)


class TestMutualLikelihood(ScorerConformance):
    def score(self, mu_a: Tensor, kappa_a: Tensor, mu_b: Tensor, kappa_b: Tensor) -> Tensor:
        return mutual_likelihood_score(mu_a, kappa_a, mu_b, kappa_b)


class TestMutualLikelihood512(TestMutualLikelihood):
    dim = 512


@pytest.mark.parametrize("dim", [2, 3, 128, 512])
def test_equals_50_digit_truth(dim: int) -> None:
    mu = directions(40, dim, dtype=torch.float64)
    cos = torch.linspace(-1, 1, 40, dtype=torch.float64)
    other = at_cosine(mu, cos)
    exact_cos = (mu * other).sum(1).clamp(-1, 1)
    kappa_a = 10 ** torch.linspace(-3, 5, 40, dtype=torch.float64)
    kappa_b = kappa_a.roll(7)
    truth = [
        float(mutual_likelihood(float(c), float(a), float(b), dim))
        for c, a, b in zip(exact_cos, kappa_a, kappa_b)
    ]
    expected = torch.tensor(truth, dtype=torch.float64)
    score = mutual_likelihood_score(mu, kappa_a, other, kappa_b)
    torch.testing.assert_close(score, expected, rtol=1e-12, atol=2e-9)


def test_kappa_zero_is_the_uniform_distribution() -> None:
    mu = directions(2, 512)
    zero, some = torch.zeros(2), torch.tensor([3.0, 700.0])
    expected = float(mutual_likelihood(0.3, 0, 3, 512))
    score = mutual_likelihood_score(mu, zero, mu.flip(0), some)
    assert score.tolist() == pytest.approx([expected, expected], abs=1e-3)  # nothing known: no face is closer


def test_radius_shifts_all_scores_equally() -> None:
    mu, kappa = directions(4, 8), torch.tensor([1.0, 10.0, 100.0, 1000.0])
    one = mutual_likelihood_score(mu, kappa, mu.flip(0), kappa, radius=1.0)
    r = mutual_likelihood_score(mu, kappa, mu.flip(0), kappa, radius=64.0)
    torch.testing.assert_close(one - r, torch.full((4,), 8 * 4.158883083))


def test_gradients() -> None:
    mu_a, mu_b = directions(5, 6, 0, torch.float64), directions(5, 6, 1, torch.float64)
    kappa_a = torch.tensor([0.5, 3.0, 20.0, 400.0, 400.0], dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (mu_a, kappa_a, mu_b, kappa_a.detach().flip(0).clone())]
    assert torch.autograd.gradcheck(mutual_likelihood_score, inputs)


def test_gradients_stay_finite_where_directions_cancel() -> None:
    mu = directions(1, 6, dtype=torch.float64)
    kappa = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
    mutual_likelihood_score(mu, kappa, -mu, kappa).sum().backward()
    assert torch.isfinite(kappa.grad).all()


def test_broadcasts_one_against_many() -> None:
    mu, kappa = directions(6, 8), torch.linspace(1, 100, 6)
    one = mutual_likelihood_score(mu[:1], kappa[:1], mu, kappa)
    assert one.shape == (6,)
    torch.testing.assert_close(one[3:4], mutual_likelihood_score(mu[:1], kappa[:1], mu[3:4], kappa[3:4]))


def test_half_types_are_widened() -> None:
    mu, kappa = directions(3, 8), torch.tensor([1.0, 2.0, 3.0])
    assert mutual_likelihood_score(mu.half(), kappa.half(), mu.half(), kappa.half()).dtype == torch.float32


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_rounded_lengths_of_half_types_are_no_angles(half: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    mu = torch.nn.functional.normalize(torch.randn(40, 512, generator=generator), dim=-1).to(half)
    kappa = torch.full((40,), 3000.0)
    unit = torch.nn.functional.normalize(mu.float(), dim=-1)
    assert cosine_score(mu, mu) == pytest.approx(1, abs=1e-6)
    for function in (mutual_likelihood_score, mutual_likelihood_matrix):
        assert function(mu, kappa, mu, kappa) == pytest.approx(function(unit, kappa, unit, kappa), abs=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_refuses_bad_kappa(value: float) -> None:
    mu = directions(3, 8)
    bad = torch.tensor([1.0, value, 2.0])
    with pytest.raises(InputError, match="kappa_b: 1 of 3 "):
        mutual_likelihood_score(mu, torch.ones(3), mu, bad)


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), float("inf")])
def test_refuses_bad_radius(radius: float) -> None:
    with pytest.raises(InputError, match="radius"):
        mutual_likelihood_score(directions(1, 4), torch.ones(1), directions(1, 4), torch.ones(1), radius)
