"""SCF-G: its density and its optimum."""

import pytest
import torch
from torch.distributions import Normal
from torch.nn.functional import normalize

from spherecf.errors import InputError
from spherecf.losses import gaussian_confidence_loss, gaussian_confidence_loss_from_cosine
from spherecf.vmf import inverse_mean_resultant_length


@pytest.fixture
def faces():
    generator = torch.Generator().manual_seed(0)
    mu, prototypes = (normalize(torch.randn(5, 16, generator=generator).double(), dim=1) for _ in range(2))
    return mu, torch.tensor([-3.0, 0.0, 2.0, 5.0, 9.0]).double(), prototypes


def test_is_minus_the_log_density_at_the_prototype(faces):
    mu, log_precision, prototypes = faces
    density = Normal(mu, (-log_precision / 2).exp()[:, None]).log_prob(prototypes).sum(1)
    loss = gaussian_confidence_loss(*faces, reduction="none")
    torch.testing.assert_close(loss, -density)
    cosine = (mu * prototypes).sum(1)
    for reduction, expected in (("none", loss), ("mean", loss.mean()), ("sum", loss.sum())):
        torch.testing.assert_close(
            gaussian_confidence_loss_from_cosine(cosine, log_precision, 16, reduction), expected
        )


def test_best_precision_is_dim_over_the_squared_distance(faces):
    mu, _, prototypes = faces
    grid = torch.linspace(0, 6, 60001).double()
    for m, w in zip(mu, prototypes):
        many = gaussian_confidence_loss(
            m.expand(len(grid), -1), grid, w.expand(len(grid), -1), reduction="none"
        )
        best = grid[many.argmin()].exp().item()
        assert best == pytest.approx(16 / (m - w).square().sum().item(), rel=1e-4)
        assert best == pytest.approx(16 / (2 * (1 - (m @ w).item())), rel=1e-4)


def test_at_large_kappa_the_vmf_optimum_has_one_dimension_less():
    cosine = torch.tensor(0.99).double()
    kappa = inverse_mean_resultant_length(cosine, 128).item()
    assert kappa == pytest.approx(127 / (2 * 0.01), rel=0.01)


def test_gradients(faces):
    mu, log_precision, prototypes = faces
    log_precision.requires_grad_()
    loss = gaussian_confidence_loss(mu, log_precision, prototypes, reduction="sum")
    (slope,) = torch.autograd.grad(loss, log_precision)
    cosine = (mu * prototypes).sum(1)
    torch.testing.assert_close(slope, log_precision.exp() * (1 - cosine) - 8)
    function = lambda c, p: gaussian_confidence_loss_from_cosine(c, p, 16)  # noqa: E731
    assert torch.autograd.gradcheck(function, (cosine.requires_grad_(), log_precision))


def test_a_prototype_next_to_the_mean_is_resolved_in_float32():
    """1 - cos would be a multiple of 6e-8; the difference of the vectors is not."""
    mu = normalize(torch.randn(1, 512, generator=torch.Generator().manual_seed(1)), dim=1)
    prototype = mu + 1e-6 * torch.randn(1, 512, generator=torch.Generator().manual_seed(2))
    log_precision = torch.tensor([24.0])
    got = gaussian_confidence_loss(mu, log_precision, prototype)
    torch.testing.assert_close(
        got.double(), gaussian_confidence_loss(mu.double(), log_precision.double(), prototype.double()),
        rtol=1e-5, atol=0,
    )  # fmt: skip


def test_half_precision_and_bad_arguments(faces):
    mu, log_precision, prototypes = faces
    assert (
        gaussian_confidence_loss(mu.bfloat16(), log_precision.bfloat16(), mu.bfloat16()).dtype
        == torch.float32
    )
    with pytest.raises(InputError, match=r"prototypes: 5 of 5 .*unit"):
        gaussian_confidence_loss(mu, log_precision, 3 * prototypes)
    with pytest.raises(InputError, match=r"mu: .*unit"):
        gaussian_confidence_loss(mu * torch.nan, log_precision, prototypes)
    with pytest.raises(InputError, match="dim, the number of coordinates, >= 2; got 1"):
        gaussian_confidence_loss_from_cosine(log_precision, log_precision, 1)
    with pytest.raises((InputError, TypeError)):
        gaussian_confidence_loss(mu, log_precision[:3], prototypes)
    with pytest.raises((InputError, TypeError)):
        gaussian_confidence_loss_from_cosine(log_precision, log_precision[:3], 16)
