"""Von Mises-Fisher and the uniform distribution: densities, samples, divergences, fit, invalid arguments."""

import math

import pytest
import torch
from torch.distributions import kl_divergence
from torch.nn.functional import normalize

from spherecf.errors import InputError
from spherecf.vmf import (
    HypersphericalUniform,
    VonMisesFisher,
    log_normalizer,
    mean_resultant_complement,
    mean_resultant_length,
    mean_resultant_length_derivative,
)

DIMS = pytest.mark.parametrize("dim", [2, 3, 4, 8, 512])
KAPPAS = pytest.mark.parametrize("kappa", [0.0, 0.01, 1.0, 30.0, 1e3, 1e8])


def unit(*shape, seed=0, dtype=torch.float64):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def test_density_integrates_to_one_on_the_circle_and_the_ball():
    angle = torch.linspace(0, 2 * math.pi, 4001, dtype=torch.float64)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], -1)
    density = VonMisesFisher(unit(2), torch.tensor(7.0).double()).log_prob(circle).exp()
    assert density.mean() * 2 * math.pi == pytest.approx(1, abs=1e-12)
    height = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    ball = torch.stack([(1 - height**2).clamp(min=0).sqrt(), torch.zeros_like(height), height], -1)
    z_axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    density = VonMisesFisher(z_axis, torch.tensor(7.0).double()).log_prob(ball).exp()
    assert torch.trapezoid(density, height) * 2 * math.pi == pytest.approx(1, abs=1e-6)


def test_radius_convention():
    """log_prob and entropy, also of the uniform distribution, include the paper's 1 / r^d; KL does not."""
    mu, kappa, value = unit(5, 8), torch.tensor([0.0, 1, 10, 100, 1e4]).double(), unit(5, 8, seed=1)
    small, large = VonMisesFisher(mu, kappa), VonMisesFisher(mu, kappa, radius=64.0)
    shift = 8 * math.log(64)
    torch.testing.assert_close(large.log_prob(64 * value), small.log_prob(value) - shift)
    torch.testing.assert_close(large.entropy(), small.entropy() + shift)
    torch.testing.assert_close(small.log_prob(value), log_normalizer(kappa, 8) + kappa * (mu * value).sum(-1))
    uniform = HypersphericalUniform(8, radius=64.0)
    assert uniform.log_prob(64 * value[0]).item() == pytest.approx(large.log_prob(64 * value)[0].item())
    other = VonMisesFisher(value, kappa.flip(0)), VonMisesFisher(value, kappa.flip(0), radius=64.0)
    torch.testing.assert_close(kl_divergence(small, other[0]), kl_divergence(large, other[1]))
    torch.testing.assert_close(large.mean, 64 * mean_resultant_length(kappa, 8)[:, None] * mu)
    torch.testing.assert_close(large.mode, 64 * mu)


@DIMS
@KAPPAS
def test_samples_have_the_moments_and_gradients_of_the_distribution(dim, kappa):
    """1 - cos has mean 1 - A_d and variance A_d', and pathwise gradients give d(mean cos)/dkappa."""
    torch.manual_seed(dim)
    count = 4000
    kappa = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    mu = unit(dim)
    draws = VonMisesFisher(mu, kappa).rsample((count,))
    assert draws.shape == (count, dim)
    torch.testing.assert_close(draws.norm(dim=-1), torch.ones(count, dtype=torch.float64))
    one_minus_cosine = 0.5 * (draws - mu).square().sum(-1)
    (slope,) = torch.autograd.grad(one_minus_cosine.mean(), kappa)
    draws, one_minus_cosine, kappa = draws.detach(), one_minus_cosine.detach(), kappa.detach()
    variance = mean_resultant_length_derivative(kappa, dim)
    deviation = (variance / count).sqrt()
    assert abs(one_minus_cosine.mean() - mean_resultant_complement(kappa, dim)) < 4.5 * deviation
    assert one_minus_cosine.var() / variance == pytest.approx(1, abs=0.2)
    assert -slope / variance == pytest.approx(1, abs=0.1)
    # No direction across mu is preferred.
    across = draws - (draws @ mu)[:, None] * mu
    share = across.square().sum(-1).mean() / (dim - 1)
    assert (across.mean(0).abs() < 5.5 * (share / count).sqrt() + 1e-12).all()


@pytest.mark.parametrize(("dim", "kappa"), [(2, 0.5), (2, 40.0), (3, 3.0), (5, 1e5), (64, 20.0)])
def test_samples_follow_the_distribution_function(dim, kappa):
    """Kolmogorov-Smirnov against the numerically integrated density of the angle."""
    torch.manual_seed(1)
    mu = unit(dim)
    draws = VonMisesFisher(mu, torch.tensor(kappa).double()).sample((5000,))
    half_chord = ((draws - mu).norm(dim=-1) / 2).clamp(max=1)
    angle = (2 * torch.asin(half_chord)).sort().values
    grid = torch.linspace(0, 1, 200001, dtype=torch.float64)[1:-1] * min(math.pi, angle.max().item() * 2)
    log_density = -2 * kappa * torch.sin(grid / 2) ** 2 + (dim - 2) * grid.sin().abs().clamp(min=1e-300).log()
    distribution = (log_density - log_density.max()).exp().cumsum(0)
    expected = distribution[torch.searchsorted(grid, angle).clamp(max=len(grid) - 1)] / distribution[-1]
    empirical = torch.arange(1, 5001, dtype=torch.float64) / 5000
    assert (expected - empirical).abs().max() < 1.95 / math.sqrt(5000)  # passes with probability 0.999


def test_gradient_of_the_expectation_in_mu():
    """d E[a^T z] / d mu along a tangent: A_d times the tangent part of a."""
    torch.manual_seed(2)
    for dim in (2, 3, 16):
        mu, a, kappa = unit(dim).requires_grad_(), unit(dim, seed=3), torch.tensor(5.0).double()
        VonMisesFisher(normalize(mu, dim=0), kappa).rsample((8000,)).matmul(a).mean().backward()
        tangent = mean_resultant_length(kappa, dim) * (a - (a @ mu.detach()) * mu.detach())
        torch.testing.assert_close(mu.grad, tangent, atol=0.03, rtol=0)


def test_sample_shapes_blocks_and_types():
    mu, kappa = unit(3, 1, 6, dtype=torch.float32), torch.rand(4) * 50
    face = VonMisesFisher(mu, kappa)
    assert face.batch_shape == (3, 4) and face.event_shape == (6,)
    assert face.rsample((2, 5)).shape == (2, 5, 3, 4, 6) and face.sample().dtype == torch.float32
    assert face.rsample((0,)).shape == (0, 3, 4, 6)
    assert face.log_prob(face.sample((7,))).shape == (7, 3, 4)
    wide = VonMisesFisher(
        unit(3, dtype=torch.float32), torch.linspace(0, 900, 7001)
    )  # several blocks of rows
    assert wide.sample().shape == (7001, 3)
    half = VonMisesFisher(
        torch.tensor([1.0, 0.0], dtype=torch.bfloat16), torch.tensor(3.0, dtype=torch.bfloat16)
    )
    assert half.sample().dtype == half.entropy().dtype == torch.float32


def test_expand():
    face = VonMisesFisher(unit(8), torch.tensor(3.0).double(), radius=2.0).expand((5, 2))
    assert face.batch_shape == (5, 2) and face.entropy().shape == (5, 2) and face.radius == 2
    assert face.sample().shape == (5, 2, 8)
    assert HypersphericalUniform(4).expand((3,)).rsample((2,)).shape == (2, 3, 4)


@pytest.mark.parametrize("dim", [2, 3, 8, 512])
def test_entropy_and_divergences_by_monte_carlo(dim):
    torch.manual_seed(dim)
    kappa = torch.tensor([0.5, 20.0, 700.0]).double()
    p = VonMisesFisher(unit(3, dim), kappa)
    q = VonMisesFisher(normalize(p.mean_direction + 0.3 * unit(3, dim, seed=9), dim=-1), kappa.flip(0) + 1)
    uniform = HypersphericalUniform(dim)
    z, anywhere = p.sample((8000,)), uniform.sample((8000,)).double()[:, None]
    for exact, draws in (
        (p.entropy(), -p.log_prob(z)),
        (kl_divergence(p, q), p.log_prob(z) - q.log_prob(z)),
        (kl_divergence(p, uniform), p.log_prob(z) - uniform.log_prob(z)),
        (
            kl_divergence(uniform, q),
            uniform.log_prob(anywhere) - q.log_prob(anywhere),
        ),
    ):
        spread = draws.std(0) / math.sqrt(len(draws)) + 1e-9
        assert ((draws.mean(0) - exact).abs() < 5 * spread).all()


@KAPPAS
def test_divergences_are_accurate_in_float32(kappa):
    """Also small ones near kappa = 0, and those between very large concentrations."""
    for dim in (3, 512):
        mu, kappa_ = unit(dim, dtype=torch.float32), torch.tensor(kappa)
        single = VonMisesFisher(mu, kappa_)
        double = VonMisesFisher(normalize(mu.double(), dim=-1), kappa_.double())
        for target in (HypersphericalUniform(dim), None):
            got, exact = (
                kl_divergence(p, target or VonMisesFisher(p.mean_direction, 1.5 * p.concentration)).double()
                for p in (single, double)
            )
            torch.testing.assert_close(got, exact, rtol=2e-5, atol=2e-4 if target is None else 1e-6)
        assert kl_divergence(single, single).item() == 0


def test_entropy_and_divergence_are_differentiable():
    kappa = torch.tensor([0.0, 1.0, 600.0, 1e5], dtype=torch.float64, requires_grad=True)
    face = VonMisesFisher(unit(4, 512), kappa)
    (slope,) = torch.autograd.grad(kl_divergence(face, HypersphericalUniform(512)).sum(), kappa)
    torch.testing.assert_close(slope, kappa * mean_resultant_length_derivative(kappa, 512))
    (slope,) = torch.autograd.grad(face.entropy().sum(), kappa)
    torch.testing.assert_close(slope, -kappa * mean_resultant_length_derivative(kappa, 512))


def test_log_density_is_differentiable_twice_in_both_parameters_and_the_value():
    mu, value = unit(2, 6).requires_grad_(), unit(3, 1, 6, seed=1).requires_grad_()
    kappa = torch.tensor([2.0, 300.0], dtype=torch.float64, requires_grad=True)

    def density(mu, kappa, value):
        return VonMisesFisher(mu, kappa, validate_args=False).log_prob(value)

    assert density(mu, kappa, value).shape == (3, 2)
    assert torch.autograd.gradcheck(density, (mu, kappa, value))
    assert torch.autograd.gradgradcheck(density, (mu, kappa, value))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_give_float32_and_gradients_of_their_type(half):
    kappa = torch.tensor([0.5, 300.0], dtype=half, requires_grad=True)
    mu = unit(2, 512, dtype=torch.float32)
    density = VonMisesFisher(mu, kappa).log_prob(mu)
    assert density.dtype == torch.float32
    torch.testing.assert_close(density, VonMisesFisher(mu, kappa.detach().float()).log_prob(mu))
    density.sum().backward()
    assert kappa.grad.dtype == half and kappa.grad.isfinite().all()


@pytest.mark.parametrize("dim", [2, 3, 64])
def test_fit_recovers_parameters(dim):
    torch.manual_seed(4)
    truth = VonMisesFisher(unit(3, dim), torch.tensor([2.0, 30.0, 500.0]).double(), radius=64.0)
    draws = truth.sample((8000,)).movedim(0, 1)
    fitted = VonMisesFisher.fit(draws, radius=64.0)
    torch.testing.assert_close(fitted.concentration, truth.concentration, rtol=0.06, atol=0.15)
    assert ((fitted.mean_direction * truth.mean_direction).sum(-1) > 0.95).all()
    at_fit = fitted.log_prob(draws.movedim(1, 0)).mean(0)
    for change in (0.9, 1.1):  # it is the maximum
        moved = VonMisesFisher(fitted.mean_direction, change * fitted.concentration, radius=64.0)
        assert (moved.log_prob(draws.movedim(1, 0)).mean(0) < at_fit).all()


def test_fit_with_weights_equals_fit_with_repeated_samples():
    value, counts = unit(6, 4), torch.tensor([3, 0, 1, 2, 5, 1])
    weighted = VonMisesFisher.fit(value, counts.double())
    repeated = VonMisesFisher.fit(value.repeat_interleave(counts, 0))
    torch.testing.assert_close(weighted.concentration, repeated.concentration)
    torch.testing.assert_close(weighted.mean_direction, repeated.mean_direction)


def test_fit_at_the_edges():
    same = unit(1, 5).expand(4, 5)
    assert VonMisesFisher.fit(same).concentration.isfinite()
    assert VonMisesFisher.fit(torch.eye(3)[:1].expand(4, 3)).concentration == pytest.approx(2**46)
    assert VonMisesFisher.fit(torch.eye(3)[:1]).mean_direction.tolist() == [1, 0, 0]
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    nothing = VonMisesFisher.fit(opposite)
    assert nothing.concentration == 0 and nothing.mean_direction.tolist() == [1, 0]
    for weights in (torch.zeros(4), torch.tensor([1.0, -1, 1, 1]), torch.tensor([1.0, math.nan, 1, 1])):
        with pytest.raises(InputError, match="weights"):
            VonMisesFisher.fit(same, weights)


@pytest.mark.parametrize(
    ("mu", "kappa", "message"),
    [
        (torch.ones(3), torch.tensor(1.0), "unit"),
        (torch.tensor([math.nan, 0.0]), torch.tensor(1.0), "unit"),
        (torch.tensor([1.0, 0.0]), torch.tensor(-1.0), ">= 0"),
        (torch.tensor([1.0, 0.0]), torch.tensor(math.nan), ">= 0"),
        (torch.tensor([1.0, 0.0]), torch.tensor(math.inf), ">= 0"),
        (torch.tensor([1.0]), torch.tensor(1.0), "dim >= 2"),
        (torch.eye(3), torch.ones(2), "broadcast"),
    ],
)
def test_bad_arguments(mu, kappa, message):
    with pytest.raises(InputError, match=message):
        VonMisesFisher(mu, kappa)


def test_bad_radius_values_and_spheres():
    face = VonMisesFisher(torch.tensor([1.0, 0.0]), torch.tensor(1.0))
    with pytest.raises(InputError, match="radius"):
        VonMisesFisher(torch.tensor([1.0, 0.0]), torch.tensor(1.0), radius=-1.0)
    with pytest.raises(ValueError, match="length 2"):
        face.log_prob(torch.tensor([2.0, 0.0]))
    with pytest.raises(InputError, match="same sphere"):
        kl_divergence(face, HypersphericalUniform(2, radius=2.0))


@DIMS
@KAPPAS
def test_variance_is_that_of_the_samples(dim, kappa):
    torch.manual_seed(0)
    face = VonMisesFisher(unit(dim), torch.tensor(kappa).double(), radius=2.0)
    samples = face.sample((20000,))
    torch.testing.assert_close(samples.var(0), face.variance, rtol=0.08, atol=0)
    second_moment = face.variance.sum() + face.mean.square().sum()
    torch.testing.assert_close(second_moment, torch.tensor(4.0).double(), rtol=1e-12, atol=0)


def test_variance_of_the_uniform_is_that_without_concentration():
    uniform = HypersphericalUniform(5, radius=2.0, batch_shape=(3,))
    torch.testing.assert_close(
        uniform.variance, VonMisesFisher(unit(5).float(), torch.zeros(3), 2.0).variance
    )
    assert torch.equal(uniform.mean, torch.zeros(3, 5))


def test_fit_depends_on_directions_only():
    """Lengths may be off by 1e-3; at 1e6 that would be more than 1 - A_d."""
    torch.manual_seed(0)
    samples = VonMisesFisher(unit(512), torch.tensor(1e6).double()).sample((200,))
    exact = VonMisesFisher.fit(samples)
    long = VonMisesFisher.fit(samples * 1.0005)
    torch.testing.assert_close(long.concentration, exact.concentration, rtol=1e-9, atol=0)


def test_directions_in_bfloat16_are_accepted_and_of_unit_length():
    mu = unit(50, 3).bfloat16()
    face = VonMisesFisher(mu, torch.ones(50))
    torch.testing.assert_close(face.mean_direction.norm(dim=-1), torch.ones(50), rtol=1e-6, atol=0)
    assert VonMisesFisher.fit(mu).concentration.isfinite()
    with pytest.raises(InputError, match=r"normalize\(value.float\(\), dim=-1\)"):
        face.log_prob(mu)


def test_the_support_describes_itself():
    uniform = HypersphericalUniform(3, radius=64.0)
    face = VonMisesFisher(unit(3).float(), torch.ones(2), radius=64.0)
    for distribution in (uniform, face):
        assert repr(distribution.support) == "Sphere(radius=64)"
        samples = distribution.sample((4,))
        assert distribution.support.check(samples).all()
        assert distribution.support.check(1.0009 * samples).all()
        assert not distribution.support.check(1.002 * samples).any()


def test_uniforms_diverge_only_between_different_spheres():
    uniform, batch = HypersphericalUniform(3, radius=2.0), HypersphericalUniform(3, 2.0, batch_shape=(4,))
    assert torch.equal(kl_divergence(uniform, batch), torch.zeros(4))
    for other in (HypersphericalUniform(3), HypersphericalUniform(4, radius=2.0)):
        with pytest.raises(InputError, match="same sphere"):
            kl_divergence(uniform, other)


def test_a_batch_shape_that_is_none_is_refused():
    with pytest.raises(InputError, match="batch_shape: expected a tuple of integers"):
        HypersphericalUniform(3, batch_shape=4)


@pytest.mark.parametrize("dim", [3, 512])
@pytest.mark.parametrize("kappa", [1e2, 1e6, 1e8])
def test_log_density_and_fit_are_accurate_in_float32(dim, kappa):
    face = VonMisesFisher(unit(dim, dtype=torch.float32), torch.tensor(kappa))
    torch.manual_seed(0)
    z = face.sample((300,))
    mu, directions = (normalize(v.double(), dim=-1) for v in (face.mean_direction, z))
    exact = VonMisesFisher(mu, torch.tensor(kappa).double())
    assert (face.log_prob(z) - exact.log_prob(directions)).abs().max() < 1e-3
    assert (face.log_prob(face.mode) - exact.log_prob(mu)).abs() < 1e-3
    estimate, wide = VonMisesFisher.fit(z), VonMisesFisher.fit(z.double())
    assert float(estimate.concentration) == pytest.approx(float(wide.concentration), rel=1e-6)


def test_derivatives_of_the_log_density_are_those_of_the_formula():
    mu, z = (unit(3, seed=s).requires_grad_() for s in (0, 1))
    kappa = torch.tensor(7.0, dtype=torch.float64)
    of_mu, of_z = torch.autograd.grad(VonMisesFisher(mu, kappa, 2.0).log_prob(2 * z), (mu, z))
    torch.testing.assert_close(of_mu, kappa * z.detach())
    torch.testing.assert_close(of_z, kappa * mu.detach())


@pytest.mark.parametrize("kappa", [1e155, 1e300])
def test_very_large_kappas_in_float64_are_sampled(kappa):
    face = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]).double(), torch.tensor(kappa, dtype=torch.float64))
    torch.testing.assert_close(face.sample((5,)), face.mode.expand(5, 3))
    assert float(face.entropy()) == pytest.approx(1 - math.log(kappa / (2 * math.pi)), rel=1e-12)


def test_entropy_of_very_large_kappas_is_that_of_float64():
    kappa = torch.tensor([1e17, 1e19, 1e26])
    mu = unit(512, dtype=torch.float32)
    wide = VonMisesFisher(unit(512), kappa.double()).entropy()
    torch.testing.assert_close(VonMisesFisher(mu, kappa).entropy().double(), wide, rtol=1e-6, atol=0)


def test_fit_has_finite_gradients_where_the_mean_is_zero():
    value = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64, requires_grad=True)
    estimate = VonMisesFisher.fit(value)
    (gradient,) = torch.autograd.grad(estimate.concentration + estimate.mean_direction.sum(), value)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_the_uniform_log_density_of_half_precision_is_float32(half):
    value = torch.eye(3, dtype=half)
    log_density = HypersphericalUniform(3).log_prob(value)
    assert log_density.dtype == torch.float32
    torch.testing.assert_close(log_density, torch.full((3,), -math.log(4 * math.pi)))


def test_divergences_have_the_common_batch_shape():
    axes = torch.eye(3)

    def both(shape):
        mu = axes[0].expand(*shape, 3)
        return VonMisesFisher(mu, torch.tensor(2.0)), HypersphericalUniform(3, batch_shape=shape)

    for p in both((2,)):
        for q in both((4, 1)):
            assert kl_divergence(p, q).shape == kl_divergence(q, p).shape == (4, 2)
        for q in both((3,)):
            with pytest.raises(InputError, match=r"batch shapes \(2,\) and \(3,\) do not broadcast"):
                kl_divergence(p, q)


def test_parameters_on_different_devices_are_refused():
    with pytest.raises(InputError, match="mean_direction is on meta, concentration is on cpu"):
        VonMisesFisher(torch.eye(3, device="meta"), torch.tensor(1.0))


def test_many_samples_of_one_distribution_are_drawn_in_blocks(monkeypatch):
    from spherecf.vmf import distributions

    sizes = []
    invert = distributions._invert
    monkeypatch.setattr(distributions, "_BLOCK", 1 << 10)
    monkeypatch.setattr(
        distributions, "_invert", lambda k, u, dim: sizes.append(u.numel()) or invert(k, u, dim)
    )
    kappa = torch.tensor([5.0, 50.0], requires_grad=True)
    torch.manual_seed(0)
    blocks = VonMisesFisher(torch.eye(3)[:2], kappa).rsample((1000,))
    (gradient,) = torch.autograd.grad(blocks[..., 0].sum(), kappa)
    assert max(sizes) <= 256
    monkeypatch.undo()
    torch.manual_seed(0)
    whole = VonMisesFisher(torch.eye(3)[:2], kappa).rsample((1000,))
    torch.testing.assert_close(blocks, whole)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole[..., 0].sum(), kappa)[0])


def test_the_uniform_describes_itself():
    text = repr(HypersphericalUniform(3, 64.0, (2,)))
    assert text == "HypersphericalUniform(dim=3, radius=64, batch_shape=(2,))"
