"""Fixed margins against 50-digit values, their jumps and their special cases."""

import math

import pytest
import torch
from tests.reference import margins_slow as slow

from spherecf.errors import InputError
from spherecf.losses import arcface, combined, cosface

COSINES = [-1.0, -0.999, -0.9, -0.88, -0.87, -0.5, 0.0, 0.3, 0.8, 0.9999, 1.0]
CM2 = (0.9, 0.4, 0.15)


def values(function, cosines=COSINES, dtype=torch.float64):
    return function(torch.tensor(cosines, dtype=dtype))


def slopes(function, cosines):
    cosine = torch.tensor(cosines, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(function(cosine).sum(), cosine)[0].tolist()


FORMULAS = [
    (lambda c: arcface(c, 0.5), lambda c: slow.arcface(c, 0.5)),
    (lambda c: arcface(c, 1.2), lambda c: slow.arcface(c, 1.2)),
    (lambda c: cosface(c, 0.35), lambda c: slow.cosface(c, 0.35)),
    (lambda c: combined(c), lambda c: slow.combined(c, 1, 0.3, 0.2)),
    (lambda c: combined(c, *CM2), lambda c: slow.combined(c, *CM2)),
    (lambda c: combined(c, 1.35, 0, 0), lambda c: slow.combined(c, 1.35, 0, 0)),
    (lambda c: combined(c, 4, 0, 0), lambda c: slow.combined(c, 4, 0, 0)),
]


@pytest.mark.parametrize(("fast", "reference"), FORMULAS)
def test_values_and_exact_slopes(fast, reference):
    expected = [float(reference(c)) for c in COSINES]
    assert values(fast).tolist() == pytest.approx(expected, abs=1e-14)
    assert values(fast, dtype=torch.float32).tolist() == pytest.approx(expected, abs=2e-6)
    inside = COSINES[1:-1]
    assert slopes(fast, inside) == pytest.approx([float(slow.slope(reference, c)) for c in inside], rel=1e-10)
    cosine = torch.tensor(inside, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fast, cosine, eps=1e-8, atol=1e-5)


def test_arcface_jumps_down_at_pi_minus_m_and_decreases_everywhere():
    m = 0.5
    seam = torch.tensor([-math.cos(m) + 1e-12, -math.cos(m) - 1e-12], dtype=torch.float64)
    before, after = arcface(seam, m).tolist()
    assert before == pytest.approx(-1, abs=1e-10)
    assert after == pytest.approx(-math.cos(m) - m * math.sin(m), abs=1e-10)
    assert after == pytest.approx(-1.117, abs=5e-4)
    assert before - after == pytest.approx(m**2 / 2, rel=0.07)
    theta = torch.linspace(0, math.pi, 5001, dtype=torch.float64)
    assert (arcface(theta.cos(), m).diff() < 0).all()


def test_identities():
    cosine = torch.tensor(COSINES)
    for m in (0.0, 0.3, 0.5):
        assert torch.equal(combined(cosine, 1, m, 0), arcface(cosine, m))
        assert torch.equal(combined(cosine, 1, 0, m), cosface(cosine, m))
    assert torch.equal(arcface(cosine, 0), cosine) and torch.equal(cosface(cosine, 0), cosine)
    # A factor that is nearly 1 is ArcFace up to the seam.
    near = combined(cosine[4:].double(), 1 + 1e-9, 0.5, 0)
    torch.testing.assert_close(near, arcface(cosine[4:].double(), 0.5), rtol=1e-8, atol=1e-8)


def test_straight_has_slope_one_and_the_same_values():
    functions = (arcface, lambda c, gradient: combined(c, *CM2, gradient=gradient))
    for function in functions:
        assert slopes(lambda c, f=function: f(c, gradient="straight"), COSINES) == [1.0] * len(COSINES)
        straight, exact = (values(lambda c, f=function, g=g: f(c, gradient=g)) for g in ("straight", "exact"))
        assert torch.equal(straight, exact)


def test_the_slope_in_the_embedding_stays_bounded_as_the_angle_vanishes():
    """d cos / d embedding shrinks as the slope grows: with a unit embedding the product is sin(theta + m)."""
    for theta in (1e-2, 1e-4, 1e-6):
        x = torch.tensor([math.cos(theta), math.sin(theta)], dtype=torch.float64, requires_grad=True)
        arcface((x / x.norm())[0], 0.5).backward()
        assert x.grad.norm().item() == pytest.approx(math.sin(theta + 0.5), rel=1e-4)


def test_half_precision_gives_float32_values_and_half_precision_gradients():
    for dtype in (torch.float16, torch.bfloat16):
        cosine = torch.tensor([0.5, -0.25], dtype=dtype, requires_grad=True)
        out = combined(cosine)
        assert out.dtype == torch.float32
        assert torch.equal(out, combined(cosine.detach().float()))
        out.sum().backward()
        assert cosine.grad.dtype == dtype


def test_nan_stays_nan_and_a_cosine_rounded_beyond_one_gives_none():
    assert (
        arcface(torch.tensor([math.nan])).isnan().all() and combined(torch.tensor([math.nan])).isnan().all()
    )
    cosine = torch.tensor([1.0000002, -1.0000002], requires_grad=True)
    for function in (arcface, combined, lambda c: combined(c, 1.35, 0, 0)):
        value = function(cosine)
        (slope,) = torch.autograd.grad(value.sum(), cosine)
        assert value.isfinite().all() and slope.isfinite().all()


def test_bad_arguments():
    cosine = torch.tensor([0.5])
    for call, message in (
        (lambda: arcface(cosine, -0.1), "margin in radians"),
        (lambda: arcface(cosine, 3.2), "got 3.2"),
        (lambda: arcface(cosine, math.nan), "got nan"),
        (lambda: cosface(cosine, -1), "margin >= 0, got -1"),
        (lambda: combined(cosine, 0), "factor m1 > 0"),
        (lambda: combined(cosine, 2, 4), "m2 in radians"),
        (lambda: arcface(cosine, math.pi), "margin in radians"),
        (lambda: cosface(cosine, math.inf), "margin >= 0, got inf"),
        (lambda: combined(cosine, math.inf), "factor m1 > 0"),
        (lambda: combined(cosine, 2, math.pi), "m2 in radians"),
        (lambda: combined(cosine, 2, -0.1), "m2 in radians"),
    ):
        with pytest.raises(InputError, match=message):
            call()
