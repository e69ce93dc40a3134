"""Special functions and their gradients against 50-digit values, and their edge cases."""

import math
import subprocess
import sys
import textwrap
from fractions import Fraction
from inspect import unwrap

import mpmath as mp
import pytest
import torch

from spherecf.errors import InputError
from spherecf.vmf import (
    log_bessel_i,
    log_normalizer,
    log_normalizer_scaled,
    mean_resultant_complement,
    mean_resultant_length,
    mean_resultant_length_derivative,
    product_concentration,
)
from spherecf.vmf.functions import log_normalizer_relative

DIMS = (2, 3, 8, 64, 128, 256, 512, 1024, 4096, 8192)
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
ALL = pytest.mark.parametrize(
    "function",
    [
        log_normalizer,
        log_normalizer_scaled,
        mean_resultant_length,
        mean_resultant_complement,
        mean_resultant_length_derivative,
    ],
)


def errors(got, truth):
    """Absolute errors, computed exactly."""
    return [
        float(abs(Fraction(value) - Fraction(true))) for value, true in zip(got.tolist(), truth, strict=True)
    ]


def columns(truth_table, dim, dtype):
    rows = truth_table[str(dim)]
    return torch.tensor([row["kappa"] for row in rows], dtype=dtype), {
        name: [row[name] for row in rows] for name in rows[0]
    }


@BOTH
@pytest.mark.parametrize("dim", DIMS)
def test_log_normalizer_is_exact(truth_table, dim, dtype):
    kappa, truth = columns(truth_table, dim, dtype)
    limit = 1e-14 if dtype == torch.float64 else 1e-6
    at_zero = abs(float(truth["log_c"][0]))
    for k, true, error in zip(
        kappa.tolist(), truth["log_c"], errors(log_normalizer(kappa, dim), truth["log_c"]), strict=True
    ):
        assert error <= limit * max(1, k, abs(float(true)), at_zero), k


@BOTH
@pytest.mark.parametrize("dim", DIMS)
def test_scaled_log_normalizer_is_exact_relative_to_itself(truth_table, dim, dtype):
    kappa, truth = columns(truth_table, dim, dtype)
    eps = torch.finfo(dtype).eps
    at_zero = abs(float(truth["c"][0]))
    for k, true, error in zip(
        kappa.tolist(), truth["c"], errors(log_normalizer_scaled(kappa, dim), truth["c"]), strict=True
    ):
        assert error <= 8 * eps * max(4, abs(float(true)), at_zero, min(k, dim)), k


def test_scaled_log_normalizer_is_accurate_enough_for_the_mutual_likelihood_score(truth_table):
    kappa, truth = columns(truth_table, 512, torch.float32)
    error = errors(log_normalizer_scaled(kappa, 512), truth["c"])
    assert max(e for e, k in zip(error, kappa.tolist()) if k <= 1e5) < 5e-4


@BOTH
@pytest.mark.parametrize("dim", [64, 512, 8192])
def test_small_values_near_kappa_zero_keep_their_digits(truth_table, dim, dtype):
    """log C_d(kappa) - log C_d(0) has a small relative error, which divergences from the uniform need."""
    kappa, truth = columns(truth_table, dim, dtype)
    at_zero = Fraction(truth["log_c"][0])
    near = [Fraction(value) - at_zero for value in truth["log_c"]]
    for k, true, got in zip(kappa.tolist(), near, log_normalizer_relative(kappa, dim, scaled=False).tolist()):
        if 1e-2 < k < dim / 10:
            assert abs(Fraction(got) - true) <= 32 * torch.finfo(dtype).eps * abs(true), k


@BOTH
@pytest.mark.parametrize("dim", DIMS)
def test_mean_resultant_length_is_exact(truth_table, dim, dtype):
    kappa, truth = columns(truth_table, dim, dtype)
    limit = 1e-14 if dtype == torch.float64 else 5e-7
    for true, error in zip(
        truth["mean"], errors(mean_resultant_length(kappa, dim), truth["mean"]), strict=True
    ):
        assert error <= limit * float(true)


@BOTH
@pytest.mark.parametrize("dim", DIMS)
def test_complement_and_derivative_are_exact(truth_table, dim, dtype):
    kappa, truth = columns(truth_table, dim, dtype)
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    for name, function in (
        ("complement", mean_resultant_complement),
        ("slope", mean_resultant_length_derivative),
    ):
        for true, error in zip(truth[name], errors(function(kappa, dim), truth[name]), strict=True):
            assert error <= limit * float(true), name


@BOTH
@pytest.mark.parametrize("dim", [2, 3, 512])
def test_gradients_are_the_exact_functions(truth_table, dim, dtype):
    kappa, truth = columns(truth_table, dim, dtype)
    kappa.requires_grad_()
    limit = 1e-14 if dtype == torch.float64 else 5e-7
    (first,) = torch.autograd.grad(log_normalizer(kappa, dim).sum(), kappa, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), kappa)
    assert torch.equal(-first, mean_resultant_length(kappa, dim))
    eps = 4 * torch.finfo(dtype).eps  # both sum one polynomial, but not with the same instructions
    torch.testing.assert_close(-second, mean_resultant_length_derivative(kappa, dim), rtol=eps, atol=0)
    (scaled,) = torch.autograd.grad(log_normalizer_scaled(kappa, dim).sum(), kappa)
    assert torch.equal(scaled, mean_resultant_complement(kappa, dim))
    assert max(errors(-first, truth["mean"])) <= limit


@pytest.mark.slow
def test_table_is_the_truth(oracle, truth_table):
    with mp.workdps(60):
        for dim, index in ((2, 20), (3, 40), (64, 10), (512, 33), (1024, 25), (8192, 36)):
            row = truth_table[str(dim)][index]
            for name, value in oracle["truth"](dim, row["kappa"]).items():
                assert abs(mp.mpf(row[name]) / value - 1) < 1e-28
        for order, x in ((255, 30000), (4095, 30000), (0, 500)):  # both methods of the oracle
            below, beyond = (oracle["log_scaled_bessel"](mp.mpf(order), x, switch) for switch in (1e9, 0))
            assert abs(below / beyond - 1) < 1e-45


@pytest.mark.parametrize("dim", [2, 3, 4, 8, 21, 22, 50, 51, 64, 512])
@ALL
def test_gradcheck(function, dim):
    kappa = torch.tensor([1e-3, 0.3, 2.0, 9.0, 60.0, 800.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda k: function(k, dim), kappa)
    assert torch.autograd.gradgradcheck(lambda k: function(k, dim), kappa)


@ALL
def test_gradients_at_zero_are_finite_to_second_order(function):
    for dim in (2, 3, 512):
        kappa = torch.zeros(3, requires_grad=True)
        (first,) = torch.autograd.grad(function(kappa, dim).sum(), kappa, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), kappa)
        assert first.isfinite().all() and second.isfinite().all()


@ALL
@BOTH
def test_values_and_gradients_are_finite_everywhere(function, dtype):
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    for dim in (2, 3, 20, 512, 8192):
        kappa = torch.tensor(
            [0, 5e-324, tiny, 1e-30, 1.0, 1e17, 1e18, 1e30, huge], dtype=dtype, requires_grad=True
        )
        value = function(kappa, dim)
        value.sum().backward()
        assert value.isfinite().all() and kappa.grad.isfinite().all(), dim


@ALL
def test_only_nan_and_negative_arguments_give_nan(function):
    kappa = torch.tensor([1.0, math.nan, -1.0, 2.0, -1e-30])
    assert function(kappa, 512).isnan().tolist() == [False, True, True, False, True]


@ALL
@BOTH
def test_no_jump_where_the_recurrence_begins_and_no_dependence_on_blocks(function, dtype):
    """Neighbouring dims on both sides of the smallest expanded order; blocks against single elements."""
    kappa = torch.linspace(0, 500, 40001, dtype=dtype)
    whole = function(kappa, 50)
    assert torch.equal(whole[::4000], torch.stack([function(k, 50) for k in kappa[::4000]]))
    assert torch.equal(whole[::2], function(kappa[::2], 50))  # not contiguous
    values = torch.stack(
        [function(kappa[1::1000], dim).double() for dim in range(18, 25)]
    )  # shift ends at 22 (f32)
    curvature = values.diff(n=3, dim=0).abs() / values.abs().amax(0).clamp(min=1e-12)
    assert curvature.max() < 5e-3


@pytest.mark.parametrize("dim", [2, 8, 48, 49, 50, 51, 52, 512])
def test_smooth_in_kappa(dim):
    """One expression for all kappas has no jumps: third differences on a fine grid are rounding errors."""
    kappa = torch.linspace(0.5, 300, 60000, dtype=torch.float64)
    for function in (log_normalizer_scaled, mean_resultant_length, mean_resultant_length_derivative):
        value = function(kappa, dim)
        smooth = value.diff(n=3).abs().max() / value.abs().max()
        assert smooth < 1e-6


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@ALL
def test_half_precision_is_computed_and_returned_in_float32(function, half):
    kappa = torch.tensor([0.0, 0.5, 300.0, 6e4], dtype=half, requires_grad=True)
    value = function(kappa, 512)
    assert value.dtype == torch.float32 and torch.equal(value, function(kappa.detach().float(), 512))
    value.sum().backward()
    assert kappa.grad.dtype == half and kappa.grad.isfinite().all()


@pytest.mark.parametrize("order", [0, 0.5, 1, 2.25, 31, 255, 4095])
def test_log_bessel_against_mpmath(oracle, order):
    x = torch.tensor([1e-6, 0.1, 1.0, 7.0, 30.0, 400.0, 9000.0, 1e6], dtype=torch.float64)
    for value, plain, scaled in zip(
        x, log_bessel_i(order, x), log_bessel_i(order, x, scaled=True), strict=True
    ):
        true = oracle["log_scaled_bessel"](mp.mpf(order), mp.mpf(value.item()))
        scale = max(1, abs(float(true)), order)
        assert abs(mp.mpf(scaled.item()) - true) < 3e-15 * scale
        assert abs(mp.mpf(plain.item()) - true - value.item()) < 3e-15 * max(scale, value.item())


def test_log_bessel_edges():
    zero = torch.zeros(2, requires_grad=True)
    assert log_bessel_i(0, zero).abs().max() < 1e-8 and log_bessel_i(2, zero).tolist() == [-math.inf] * 2
    log_bessel_i(0, zero).sum().backward()
    assert zero.grad.tolist() == [0, 0]
    assert log_bessel_i(1, torch.tensor([-1.0, math.nan])).isnan().all()
    x = torch.tensor([0.2, 5.0, 90.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: log_bessel_i(2.5, v), x)
    assert torch.autograd.gradgradcheck(lambda v: log_bessel_i(2.5, v, scaled=True), x)
    for order in (-1, math.nan, math.inf):
        with pytest.raises(InputError, match="finite order"):
            log_bessel_i(order, zero)


@ALL
def test_bad_arguments(function):
    for dim in (1, 0, 2.5, True):
        with pytest.raises((InputError, TypeError), match=r"dim|type"):
            function(torch.ones(2), dim)
    with pytest.raises((InputError, TypeError), match=r"floating-point|type"):
        function(torch.ones(2, dtype=torch.int64), 512)


def test_product_concentration_is_the_length_of_the_sum():
    generator = torch.Generator().manual_seed(0)
    mu = torch.nn.functional.normalize(torch.randn(2, 40, 8, generator=generator).double(), dim=-1)
    mu[1, :20] = torch.nn.functional.normalize(mu[0, :20] + 1e-3 * mu[1, :20], dim=-1)
    kappa = torch.logspace(-9, 6, 40).double()
    cosine = (mu[0] * mu[1]).sum(-1)
    a, b = kappa, kappa.flip(0)
    p, square, missing = product_concentration(a, b, 1 + cosine, 1 - cosine)
    length = (a[:, None] * mu[0] + b[:, None] * mu[1]).norm(dim=-1)
    torch.testing.assert_close(p, length)
    torch.testing.assert_close(square, length.square())
    torch.testing.assert_close(missing, a + b - length, rtol=1e-6, atol=1e-9)
    tiny = torch.full((1,), 1e-11)
    assert product_concentration(tiny, tiny, *torch.tensor([[2.0], [0.0]]))[0] == pytest.approx(2e-11)
    zero = torch.zeros(1, requires_grad=True)
    product_concentration(zero, zero, *torch.tensor([[1.0], [1.0]]))[0].backward()
    assert zero.grad.isfinite().all()


def test_shapes_and_empty():
    assert log_normalizer(torch.tensor(1.0), 3).shape == ()
    assert mean_resultant_length(torch.ones(2, 0, 3), 3).shape == (2, 0, 3)


@pytest.mark.slow
@pytest.mark.compiler
def test_compiles_without_graph_breaks():
    """In a separate process, because the run-time type checks of the test suite cannot be traced."""
    program = """
        import torch
        from spherecf.losses import sphere_confidence_loss
        from spherecf.vmf import *

        def everything(mu, kappa, prototypes):
            rho = mean_resultant_length(kappa, 512)
            extra = log_bessel_i(33.5, kappa, scaled=True) + log_normalizer(kappa, 3)
            extra = extra + inverse_mean_resultant_length(rho, 512) / kappa
            extra = extra + mean_resultant_length_derivative(kappa, 64)
            density = VonMisesFisher(mu, kappa).log_prob(prototypes) + VonMisesFisher(mu, kappa).entropy()
            losses = [sphere_confidence_loss(mu, kappa, prototypes, variant=v) for v in ("exact", "released")]
            return sum(losses) + (extra + density).sum()

        torch.manual_seed(0)
        mu, w = (torch.nn.functional.normalize(torch.randn(6, 512), dim=-1) for _ in range(2))
        kappa = torch.tensor([0.5, 1.0, 30.0, 600.0, 3e3, 5e4])
        results = []
        traced = torch.compile(everything, fullgraph=True, backend="aot_eager")
        for function in (everything, traced):
            k = kappa.clone().requires_grad_()
            value = function(mu, k, w)
            value.backward()
            results.append((value, k.grad))
        (v0, g0), (v1, g1) = results
        torch.testing.assert_close(v0, v1, rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(g0, g1, rtol=1e-4, atol=1e-6)
        # and as machine code, the function that all others are made of
        compiled = torch.compile(log_normalizer, fullgraph=True)
        k = kappa.clone().requires_grad_()
        torch.testing.assert_close(compiled(k, 512), log_normalizer(kappa, 512), rtol=1e-6, atol=1e-4)
        slope, = torch.autograd.grad(compiled(k, 512).sum(), k)
        torch.testing.assert_close(slope, -mean_resultant_length(kappa, 512), rtol=1e-4, atol=1e-6)
        # and for another dim, which torch then takes as variable
        compiled = torch.compile(log_normalizer, fullgraph=True, backend="aot_eager")
        for dim in (128, 64, 32):
            torch.testing.assert_close(compiled(k, dim), log_normalizer(kappa, dim), rtol=1e-6, atol=1e-4)
        # and under the transforms
        slopes = torch.compile(torch.func.vmap(torch.func.grad(lambda k: log_normalizer(k, 512))))(kappa)
        torch.testing.assert_close(slopes, -mean_resultant_length(kappa, 512), rtol=1e-4, atol=1e-6)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]


@BOTH
@pytest.mark.parametrize("order", [0, 0.5, 3, 255])
def test_scaled_functions_beyond_the_range_of_squares_follow_their_asymptotes(dtype, order):
    limit = 1e18 if dtype == torch.float32 else 1e150
    x = torch.tensor([0.5, 1.5, 1e3, 1e12, 1e20], dtype=dtype) * limit
    wide = x.double()
    half_log = 0.5 * torch.log(2 * math.pi * wide)
    torch.testing.assert_close(
        log_bessel_i(order, x, scaled=True).double(), -half_log, rtol=1e-6, atol=max(1, order) * 1e-5
    )
    assert log_bessel_i(order, torch.tensor(torch.inf, dtype=dtype), scaled=True) == -torch.inf
    dim = round(2 * order + 2)
    c = log_normalizer_scaled(x, dim).double()
    expected = (dim - 1) * torch.log(wide) / 2 - (dim - 1) * math.log(2 * math.pi) / 2
    torch.testing.assert_close(c, expected, rtol=1e-6, atol=1e-6)
    complement = mean_resultant_complement(x, dim).double()
    torch.testing.assert_close(complement, (dim - 1) / 2 / wide, rtol=1e-6, atol=0)
    gradient = torch.func.vmap(torch.func.grad(lambda k: log_normalizer_scaled(k, dim)))(x)
    torch.testing.assert_close(gradient.double(), complement, rtol=1e-6, atol=0)


@pytest.mark.parametrize("order", ["2", None, [1], 2j, 1e306, torch.ones(2)])
def test_an_order_that_is_no_number_in_range_is_refused(order):
    with pytest.raises(InputError, match="log_bessel_i: expected a finite order"):
        unwrap(log_bessel_i)(order, torch.ones(1))  # the test suite checks types at calls


def test_a_dimension_beyond_the_floats_is_refused():
    with pytest.raises(InputError, match="expected dim"):
        log_normalizer(torch.ones(1), 10**400)
