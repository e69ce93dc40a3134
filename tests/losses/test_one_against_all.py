"""SphereFace2 against 50-digit values, and its initial bias."""

import pytest
import torch
from tests.reference import margins_slow as slow

from spherecf.errors import InputError
from spherecf.losses import make_margin, sphereface2, sphereface2_bias, sphereface2_logit

COSINES = [-1.0, -0.5, 0.0, 0.3, 0.8, 1.0]


@pytest.mark.parametrize("genuine", [True, False])
def test_values_and_slopes(genuine):
    options = {"margin": 0.3, "balance": 0.6, "t": 2.5}
    cosine = torch.tensor(COSINES, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    for scale in (4.0, 40.0):
        got = sphereface2(cosine, genuine, bias, scale, **options)
        reference = lambda c, r=scale: slow.sphereface2(c, genuine, 1.5, r, 0.3, 0.6, 2.5)  # noqa: E731
        assert got.tolist() == pytest.approx([float(reference(c)) for c in COSINES], rel=1e-12)
        (slope,) = torch.autograd.grad(got.sum(), cosine)
        true = [float(slow.slope(reference, c)) for c in COSINES[1:-1]]
        assert slope[1:-1].tolist() == pytest.approx(true, rel=1e-9)
    inside = cosine.detach()[1:-1].requires_grad_()
    assert torch.autograd.gradcheck(lambda c, b: sphereface2(c, genuine, b, 4.0, **options), (inside, bias))


def test_straight_and_beyond_minus_one():
    cosine = torch.tensor([-1.0000001, -0.3, 0.9], requires_grad=True)
    exact, straight = (sphereface2_logit(cosine, True, t=3.0, gradient=g) for g in ("exact", "straight"))
    torch.testing.assert_close(exact, straight, rtol=0, atol=1e-7)
    assert exact[0].item() == pytest.approx(-1.4)
    assert torch.equal(torch.autograd.grad(straight.sum(), cosine)[0], torch.ones(3))
    (slope,) = torch.autograd.grad(exact.sum(), cosine)
    assert slope.tolist() == pytest.approx([0, 3 * 0.35**2, 3 * 0.95**2], abs=1e-6)


@pytest.mark.parametrize("identities", [2, 3, 50, 85742])
def test_bias_minimises_the_loss_at_cosine_zero(identities):
    bias = torch.tensor(sphereface2_bias(identities), dtype=torch.float64, requires_grad=True)
    zero = torch.zeros((), dtype=torch.float64)

    def loss(b):
        return sphereface2(zero, True, b) + (identities - 1) * sphereface2(zero, False, b)

    (slope,) = torch.autograd.grad(loss(bias), bias)
    assert slope.abs() < 1e-12
    assert loss(bias) < min(loss(bias + 0.5), loss(bias - 0.5))


def test_sphereface2_is_its_formula_with_a_learned_bias():
    cosine, margin = torch.linspace(-0.98, 0.98, 6), make_margin("sphereface2", start=2.0)
    assert margin.binary and margin.scale == 40
    for genuine, got in ((True, margin.positive(cosine, cosine)), (False, margin.negative(cosine[None])[0])):
        assert torch.equal(got, 50 * sphereface2(cosine, genuine, 2.0))
        (slope,) = torch.autograd.grad(got.sum(), margin.bias)
        assert slope != 0
    assert list(margin.state_dict()) == ["bias"]


def test_bad_arguments():
    one = torch.ones(1)
    for call, message in (
        (lambda: sphereface2(one, True, scale=0.0), "scale > 0"),
        (lambda: sphereface2(one, True, balance=1.0), "balance < 1"),
        (lambda: sphereface2(one, True, t=0.5), "t >= 1"),
        (lambda: sphereface2_bias(1), "at least 2 identities, got 1"),
        (lambda: sphereface2_bias(10, balance=1.0), "0 < balance < 1, got 40.0 and 1.0"),
    ):
        with pytest.raises(InputError, match=message):
            call()
