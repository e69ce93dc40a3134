"""Margins that depend on the norm or on the other classes, against 50-digit values."""

import math

import pytest
import torch
from tests.reference import margins_slow as slow

from spherecf.errors import InputError
from spherecf.losses import adaface, arcface, cosface, curricularface_others, magface, magface_penalty

GRID = [
    (c, n) for c in (-0.99, -0.95, -0.6, 0.0, 0.7, 0.93, 0.99) for n in (0.5, 8.0, 19.0, 31.0, 90.0, 300.0)
]
COSINE, NORM = (torch.tensor(v, dtype=torch.float64) for v in zip(*GRID))


def slopes(function):
    cosine, norm = COSINE.clone().requires_grad_(), NORM.clone().requires_grad_()
    return torch.autograd.grad(function(cosine, norm).sum(), (cosine, norm), allow_unused=True)


def test_adaface_values_and_slopes():
    reference = lambda c, n: slow.adaface(c, n, 20.0, 8.0)  # noqa: E731
    function = lambda c, n: adaface(c, n, 20.0, 8.0)  # noqa: E731
    expected = [float(reference(c, n)) for c, n in GRID]
    assert function(COSINE, NORM).tolist() == pytest.approx(expected, abs=1e-14)
    assert function(COSINE.float(), NORM.float()).tolist() == pytest.approx(expected, abs=1e-6)
    by_cosine, by_norm = slopes(function)
    true = [float(slow.slope(lambda x, n=n: reference(x, n), c)) for c, n in GRID]
    assert by_cosine.tolist() == pytest.approx(true, rel=1e-10, abs=1e-12)
    assert by_norm is None
    clipped = by_cosine == 0  # theta + g beyond pi at a low norm, below 0 at a high one
    assert clipped[(COSINE < -0.93) & (NORM < 1)].all() and clipped[(COSINE > 0.93) & (NORM > 80)].all()


def test_adaface_is_between_arcface_and_cosface():
    cosine = torch.linspace(-0.9, 0.9, 9).double()
    at = lambda norm: adaface(cosine, torch.full_like(cosine, norm), 20.0, 5.0)  # noqa: E731
    torch.testing.assert_close(at(1.0), arcface(cosine, 0.4))
    torch.testing.assert_close(at(20.0), cosface(cosine, 0.4))
    # A negative angle, and twice the margin.
    torch.testing.assert_close(at(99.0), torch.cos(cosine.acos() - 0.4) - 0.8)


def test_adaface_clamps_norms_and_allows_a_standard_deviation_of_zero():
    one = torch.tensor([0.3])
    assert torch.equal(adaface(one, one * 1e9, 20.0, 800.0), adaface(one, one / one * 100, 20.0, 800.0))
    for norm, margin in ((20.0, 0.4), (21.0, 0.8)):
        got = adaface(torch.zeros(1), torch.tensor([norm]), torch.tensor(20.0), torch.tensor(0.0))
        assert got.item() == pytest.approx(math.cos(math.pi / 2 - (margin - 0.4)) - margin, abs=1e-6)


def test_magface_values_and_slopes():
    expected = [float(slow.magface(c, n)) for c, n in GRID]
    assert magface(COSINE, NORM).tolist() == pytest.approx(expected, abs=1e-14)
    by_cosine, by_norm = slopes(magface)
    true = [float(slow.slope(lambda x, n=n: slow.magface(x, n), c)) for c, n in GRID]
    assert by_cosine.tolist() == pytest.approx(true, rel=1e-10)
    true = [float(slow.slope(lambda x, c=c: slow.magface(c, x), n)) for c, n in GRID]
    assert by_norm.tolist() == pytest.approx(true, rel=1e-10, abs=1e-15)
    assert (by_norm[(NORM < 10) | (NORM > 110)] == 0).all() and (by_norm[NORM == 31] < 0).all()
    straight = lambda c, n: magface(c, n, gradient="straight")  # noqa: E731
    assert torch.equal(straight(COSINE, NORM), magface(COSINE, NORM))
    assert torch.equal(slopes(straight)[0], torch.ones_like(COSINE))
    torch.testing.assert_close(slopes(straight)[1], by_norm)


def test_magface_ends_are_arcface():
    cosine = torch.linspace(-0.99, 0.99, 9)
    for norm, margin in ((10.0, 0.45), (110.0, 0.8), (60.0, 0.625)):
        torch.testing.assert_close(magface(cosine, torch.full_like(cosine, norm)), arcface(cosine, margin))


def test_magface_penalty():
    # Not the lower limit of 10 itself: the gradient of clamp there depends on the version of torch.
    norms = torch.tensor([0.0, 20.0, 50.0, 110.0, 500.0], dtype=torch.float64, requires_grad=True)
    penalty = magface_penalty(norms)
    expected = [float(slow.magface_penalty(n)) for n in norms.tolist()]
    assert penalty.tolist() == pytest.approx(expected, abs=1e-15)
    (slope,) = torch.autograd.grad(penalty.sum(), norms)
    assert slope.tolist() == pytest.approx([0, -1 / 400 + 1 / 12100, -1 / 2500 + 1 / 12100, 0, 0], abs=1e-12)


def test_curricularface_others():
    cosine = torch.linspace(-0.9, 0.9, 12).double().reshape(3, 4).requires_grad_()
    target = torch.tensor([0.9, -0.3, -0.95]).double()
    got = curricularface_others(cosine, target, 0.3)
    expected = [
        [float(slow.curricularface_other(c, y, 0.3)) for c in row]
        for row, y in zip(cosine.tolist(), target.tolist())
    ]
    assert got.tolist() == [pytest.approx(row, abs=1e-14) for row in expected]
    assert torch.autograd.gradcheck(lambda c: curricularface_others(c, target, 0.3), cosine)
    hard = cosine > arcface(target)[:, None]
    assert hard.any() and not hard.all()
    (slope,) = torch.autograd.grad(got.sum(), cosine)
    torch.testing.assert_close(slope, torch.where(hard, 2 * cosine + 0.3, torch.ones_like(cosine)))


def test_bad_arguments():
    one = torch.ones(1)
    for call, message in (
        (lambda: adaface(one, one, 20.0, 1.0, margin=-1.0), "adaface: expected 0 <= margin"),
        (lambda: adaface(one, one, 20.0, 1.0, h=0), "h > 0"),
        (lambda: magface(one, one, lower_margin=0.9), "lower_margin <= upper_margin"),
        (lambda: magface(one, one, lower_norm=0), "0 < lower_norm"),
        (lambda: adaface(one, one, 20.0, 1.0, margin=math.pi), "margin < pi"),
        (lambda: magface(one, one, lower_margin=-0.1), "0 <= lower_margin"),
        (lambda: magface(one, one, upper_margin=math.pi), "upper_margin < pi"),
        (lambda: magface(one, one, lower_norm=110), "lower_norm < upper_norm"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    # No margin, or the same for all norms.
    assert adaface(one / 2, one, 20.0, 1.0, margin=0) == 0.5
    torch.testing.assert_close(magface(one / 2, one, 0.3, 0.3), arcface(one / 2, 0.3))
    assert magface(one / 2, one, 0, 0.5) == 0.5
