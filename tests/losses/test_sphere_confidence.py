"""The loss, exact and released, and every statement of the documentation about the difference."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from spherecf.errors import InputError
from spherecf.losses import (
    SphereConfidenceLoss,
    sphere_confidence_loss,
    sphere_confidence_loss_from_cosine,
)
from spherecf.vmf import VonMisesFisher, inverse_mean_resultant_length, mean_resultant_length

_RIVAL = runpy.run_path(str(Path(__file__).parents[1] / "reference" / "released_loss.py"))


def slope(cosine, kappa, variant, dim=512):
    kappa = torch.as_tensor(kappa, dtype=torch.float64).requires_grad_()
    cosine = torch.full_like(kappa, cosine)
    loss = sphere_confidence_loss_from_cosine(cosine, kappa, dim, variant=variant, reduction="sum")
    return torch.autograd.grad(loss, kappa)[0]


def optimum(cosine, variant):
    """Where the slope changes sign for the last time from minus to plus, by bisection."""
    low, high = torch.tensor(1e-9).double(), torch.tensor(1e6).double()
    for _ in range(80):
        middle = (low * high).sqrt()
        if slope(cosine, middle, variant) < 0:
            low = middle
        else:
            high = middle
    return middle.item()


@pytest.mark.parametrize(
    ("cosine", "exact", "released"),
    [
        (0.1, 52, 283),
        (0.3, 169, 364),
        (0.5, 341, 510),
        (0.7, 702, 849),
        (0.9, 2421, 2546),
        (0.95, 4980, 4989),
    ],
)
def test_optima_of_both_variants(cosine, exact, released):
    """The published table; made by a coarser search (here 850.0, 2547.3, 4979.5, 4992.6)."""
    assert optimum(cosine, "exact") == pytest.approx(exact, abs=0.6)
    assert optimum(cosine, "released") == pytest.approx(released, rel=1.5e-3)
    found = inverse_mean_resultant_length(torch.tensor(cosine).double(), 512).item()
    assert optimum(cosine, "exact") == pytest.approx(found, rel=1e-6)


def test_optima_at_cosine_zero():
    assert optimum(0.0, "exact") < 1e-6 and round(optimum(0.0, "released")) == 255


def test_released_optimum_is_order_over_one_minus_cosine_while_the_bessel_function_is_lost():
    for cosine in (0.1, 0.5, 0.8):
        assert optimum(cosine, "released") == pytest.approx(255 / (1 - cosine), rel=1e-3)


def test_released_gradient_is_wrong_by_more_than_a_percent_below_1892():
    """Relative to A_d, the part of the gradient that depends on kappa."""
    kappa = torch.linspace(1, 3000, 12000, dtype=torch.float64)
    exact = mean_resultant_length(kappa, 512)
    wrong = (slope(0.0, kappa, "released") / exact - 1).abs() > 0.01
    assert wrong[kappa < 1892].all() and not wrong[kappa > 1896].any()


def test_released_gradient_has_the_wrong_sign_at_kappa_500_cosine_0_6():
    assert slope(0.6, 500.0, "exact") > 0 > slope(0.6, 500.0, "released")


@pytest.mark.parametrize("dim", [8, 128, 512])
def test_released_variant_is_the_released_code(dim):
    """Value and gradient over the whole range, against the formula with scipy's ive."""
    kappa = torch.logspace(-4, 5, 200, dtype=torch.float64)
    cosine = torch.linspace(-0.2, 0.99, 200, dtype=torch.float64)
    ours, theirs = kappa.clone().requires_grad_(), kappa.clone().requires_grad_()
    a = sphere_confidence_loss_from_cosine(cosine, ours, dim, variant="released", reduction="none")
    b = _RIVAL["released_loss"](cosine, theirs, dim)
    a.sum().backward()
    b.sum().backward()
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-9)


def test_exact_loss_is_minus_the_log_density_at_the_prototype():
    torch.manual_seed(0)
    mu, prototypes = (normalize(torch.randn(5, 512).double(), dim=-1) for _ in range(2))
    kappa = torch.tensor([0.0, 1.0, 300.0, 1e4, 1e8]).double()
    loss = sphere_confidence_loss(mu, kappa, prototypes, reduction="none")
    torch.testing.assert_close(loss, -VonMisesFisher(mu, kappa, radius=64.0).log_prob(64 * prototypes))


def test_gradients():
    torch.manual_seed(0)
    mu, prototypes = (normalize(torch.randn(4, 8).double(), dim=-1).requires_grad_() for _ in range(2))
    kappa = torch.tensor([0.5, 3.0, 40.0, 900.0]).double().requires_grad_()
    cosine = (mu * prototypes).sum(-1).detach()
    (got,) = torch.autograd.grad(sphere_confidence_loss(mu, kappa, prototypes, reduction="sum"), kappa)
    torch.testing.assert_close(got, mean_resultant_length(kappa, 8) - cosine)
    for variant in ("exact", "released"):
        function = lambda c, k, v=variant: sphere_confidence_loss_from_cosine(c, k, 8, variant=v)  # noqa: E731
        assert torch.autograd.gradcheck(function, (cosine.requires_grad_(), kappa))
        assert torch.autograd.gradgradcheck(function, (cosine, kappa))


@pytest.mark.parametrize("variant", ["exact", "released"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_everywhere(variant, dtype):
    for dim in (2, 3, 512, 8192):
        kappa = torch.tensor([0.0, 1e-35, 1e-6, 1.0, 500.0, 1e8], dtype=dtype, requires_grad=True)
        loss = sphere_confidence_loss_from_cosine(torch.full_like(kappa, 0.3), kappa, dim, variant=variant)
        loss.backward()
        assert loss.isfinite() and kappa.grad.isfinite().all(), dim


def test_radius_changes_the_value_only():
    cosine, kappa = torch.tensor([0.4]), torch.tensor([100.0])
    one, two = (sphere_confidence_loss_from_cosine(cosine, kappa, 512, radius=r) for r in (1.0, 64.0))
    assert (two - one).item() == pytest.approx(512 * math.log(64), rel=1e-5)


def test_reductions_and_half_precision():
    cosine, kappa = torch.rand(7), torch.rand(7) * 900
    each = sphere_confidence_loss_from_cosine(cosine, kappa, 512, reduction="none")
    assert each.shape == (7,)
    torch.testing.assert_close(sphere_confidence_loss_from_cosine(cosine, kappa, 512), each.mean())
    torch.testing.assert_close(
        sphere_confidence_loss_from_cosine(cosine, kappa, 512, reduction="sum"), each.sum()
    )
    mu = normalize(torch.randn(7, 64), dim=-1).bfloat16()
    assert sphere_confidence_loss(mu, kappa.bfloat16(), mu).dtype == torch.float32


def test_bad_arguments():
    mu, kappa = normalize(torch.randn(4, 8), dim=-1), torch.ones(4)
    for bad in (2 * mu, mu * math.nan, torch.zeros_like(mu)):
        with pytest.raises(InputError, match=r"mu: 4 of 4 .*unit"):
            sphere_confidence_loss(bad, kappa, mu)
        with pytest.raises(InputError, match=r"prototypes: 4 of 4 .*unit"):
            sphere_confidence_loss(mu, kappa, bad)
    with pytest.raises(InputError, match="radius"):
        sphere_confidence_loss(mu, kappa, mu, radius=0.0)
    for arguments in ({"variant": "best"}, {"reduction": "median"}):
        with pytest.raises((InputError, TypeError), match=r"best|median"):
            sphere_confidence_loss(mu, kappa, mu, **arguments)
    with pytest.raises((InputError, TypeError)):
        sphere_confidence_loss(mu, kappa[:3], mu)


def test_the_module_is_the_function() -> None:
    mu, prototypes = normalize(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    kappa = torch.linspace(1, 100, 5, requires_grad=True)
    for variant in ("exact", "released"):
        module = SphereConfidenceLoss(2.0, variant, "none")
        expected = sphere_confidence_loss(mu, kappa, prototypes, 2.0, variant, "none")
        torch.testing.assert_close(module(mu, kappa, prototypes), expected, rtol=0, atol=0)
    assert SphereConfidenceLoss()(mu, kappa, prototypes) == sphere_confidence_loss(mu, kappa, prototypes)
    assert module.state_dict() == {}
    with pytest.raises(InputError):
        SphereConfidenceLoss(0.0)
