"""The functions of an angle on which all margins are built: unbiased values and finite gradients."""

import mpmath
import pytest
import torch

from spherecf.common.arrays import widen
from spherecf.errors import InputError
from spherecf.losses.margin_functions import apply_margin, multiply_angle, rotate


def slope(function, cosine):
    cosine = cosine.clone().requires_grad_()
    return torch.autograd.grad(function(cosine).sum(), cosine)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_is_the_cosine_of_the_sum_to_rounding_also_near_one(dtype):
    eps = torch.finfo(dtype).eps
    cosine = torch.tensor([1, 1 - eps / 2, 1 - 100 * eps, 0.3, -0.7, -1 + eps, -1], dtype=dtype)
    for margin in (0.0, 0.5, -0.4):
        true = [float(mpmath.cos(mpmath.acos(c) + mpmath.mpf(margin))) for c in cosine.tolist()]
        torch.testing.assert_close(
            rotate(cosine, margin), torch.tensor(true, dtype=dtype), rtol=0, atol=2 * eps
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_slope_near_one_is_exact_and_at_one_that_of_the_float_below(dtype):
    """sin(theta + m) / sin theta; in float32 the largest is 1389 for m = 0.5."""
    below = torch.tensor(1 - torch.finfo(dtype).eps / 2, dtype=dtype)
    for function in (lambda c: rotate(c, 0.5), lambda c: multiply_angle(c, 1.35, 0.2)):
        factor, margin = (
            (1, mpmath.mpf(0.5)) if function(below) < 0.9 else (mpmath.mpf(1.35), mpmath.mpf(0.2))
        )
        theta = mpmath.acos(below.item())
        true = float(factor * mpmath.sin(factor * theta + margin) / mpmath.sin(theta))
        at = slope(function, torch.stack([below, torch.ones_like(below), 1 + 3 * (1 - below)]))
        assert at[0].item() == pytest.approx(true, rel=1e-5 if dtype == torch.float32 else 1e-7)
        assert at[1].item() == pytest.approx(true, rel=1e-4) == at[2].item()
        assert slope(function, -torch.ones(2, dtype=dtype)).isfinite().all()


def test_a_zero_margin_changes_nothing():
    cosine = torch.tensor([1.0, 0.5, -1.0])
    assert torch.equal(rotate(cosine, 0.0), cosine)
    assert torch.equal(slope(lambda c: rotate(c, 0.0), cosine), torch.ones(3))
    # The slope of cos(2 theta) in cos theta is 4 cos theta, at the ends too.
    doubled = slope(lambda c: multiply_angle(c, 2.0, 0.0), torch.tensor([1.0, 0.5, 0.1]).double())
    torch.testing.assert_close(doubled, torch.tensor([4.0, 2.0, 0.4]).double(), rtol=1e-6, atol=1e-6)


def test_first_and_second_derivatives():
    cosine = torch.linspace(-0.95, 0.95, 12, dtype=torch.float64).requires_grad_()
    margin = torch.linspace(0.1, 0.9, 12, dtype=torch.float64).requires_grad_()
    for function in (lambda c, m: rotate(c, m), lambda c, m: multiply_angle(c, 1.7, 0.1) + m):
        assert torch.autograd.gradcheck(function, (cosine, margin))
        assert torch.autograd.gradgradcheck(function, (cosine, margin))


def test_multiple_angle_decreases_without_a_jump():
    theta = torch.linspace(0, torch.pi, 20001, dtype=torch.float64)
    for factor, margin in ((1.35, 0.0), (4.0, 0.0), (0.9, 0.4)):
        steps = multiply_angle(theta.cos(), factor, margin).diff()
        assert (steps < 1e-12).all() and (steps > -factor * 2e-4).all()


def test_straight_keeps_the_value_and_other_gradients():
    cosine = torch.tensor([0.9, -0.2], requires_grad=True)
    other = torch.tensor([0.3, 0.4], requires_grad=True)
    exact, straight = (apply_margin(lambda c: c**3 * other, cosine, g) for g in ("exact", "straight"))
    assert torch.equal(exact, straight)
    by_cosine, by_other = torch.autograd.grad(straight.sum(), (cosine, other))
    assert torch.equal(by_cosine, torch.ones(2)) and torch.equal(by_other, cosine.detach() ** 3)


def test_widening_and_bad_arguments():
    assert widen(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert widen(torch.ones(2, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(InputError, match=r"floating-point numbers, .*got torch\.int64"):
        widen(torch.ones(2, dtype=torch.int64))
    with pytest.raises((InputError, TypeError), match="crooked"):
        apply_margin(lambda c: c, torch.ones(2), "crooked")
