"""The inverse of A_d over the whole range, and its derivatives."""

import math

import pytest
import torch

from spherecf.vmf import inverse_mean_resultant_length, mean_resultant_complement, mean_resultant_length
from spherecf.vmf.functions import _first_guess

DIMS = pytest.mark.parametrize("dim", [2, 3, 8, 64, 512, 8192])


@DIMS
def test_inverts_mean_resultant_length(dim):
    small = torch.logspace(-12, -0.31, 60, dtype=torch.float64)
    for rho in (small, 1 - torch.logspace(-12, -0.31, 60, dtype=torch.float64)):
        kappa = inverse_mean_resultant_length(rho, dim)
        torch.testing.assert_close(mean_resultant_length(kappa, dim), rho, rtol=2e-14, atol=0)
        torch.testing.assert_close(mean_resultant_complement(kappa, dim), 1 - rho, rtol=1e-12, atol=0)


@DIMS
def test_recovers_the_table(truth_table, dim):
    """kappa, to the accuracy that the rounding of rho allows."""
    rows = [row for row in truth_table[str(dim)] if row["kappa"] <= 1e4]
    kappa = torch.tensor([row["kappa"] for row in rows], dtype=torch.float64)
    rho = torch.tensor([float(row["mean"]) for row in rows], dtype=torch.float64)
    condition = rho / (kappa * torch.tensor([float(row["slope"]) for row in rows])).clamp(min=1e-30)
    error = (inverse_mean_resultant_length(rho, dim) - kappa).abs() / kappa.clamp(min=1e-30)
    assert (error <= 1e-12 + 4e-16 * condition).all()


def test_float32_is_rounded_from_the_truth():
    rho = torch.tensor([1e-4, 0.2, 0.5, 0.9, 0.99999])
    exact = inverse_mean_resultant_length(rho.double(), 3)
    torch.testing.assert_close(inverse_mean_resultant_length(rho, 3).double(), exact, rtol=1e-7, atol=0)


@DIMS
def test_gradcheck(dim):
    rho = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: inverse_mean_resultant_length(r, dim), rho)
    assert torch.autograd.gradgradcheck(lambda r: inverse_mean_resultant_length(r, dim), rho)


@DIMS
def test_the_start_value_is_close(dim):
    """Checked separately, because the Newton steps hide a start value that is only slightly wrong."""
    small = torch.logspace(-8, -0.4, 50, dtype=torch.float64)
    rho = torch.cat([small, 1 - small])
    off = _first_guess(rho, 1 - rho, dim / 2 - 1) / inverse_mean_resultant_length(rho, dim) - 1
    assert off.abs().max() < 0.35 / dim


@DIMS
def test_the_ends_are_exact(dim):
    for dtype in (torch.float32, torch.float64):
        assert inverse_mean_resultant_length(torch.tensor([0.0, 1.0], dtype=dtype), dim).tolist() == [
            0,
            math.inf,
        ]


def test_edges():
    rho = torch.tensor([0.0, 1.0, -0.1, 1.1, math.nan], requires_grad=True)
    kappa = inverse_mean_resultant_length(rho, 512)
    assert kappa[:2].tolist() == [0, math.inf] and kappa[2:].isnan().all()
    kappa[:1].sum().backward()
    assert rho.grad[0] == pytest.approx(512)
    assert inverse_mean_resultant_length(torch.tensor(0.5, dtype=torch.bfloat16), 8).dtype == torch.float32
