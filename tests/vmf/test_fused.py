"""The GPU kernel against 50-digit values, on a GPU if there is one, otherwise in Triton's interpreter."""

import math
from fractions import Fraction

import pytest
import torch

from spherecf.vmf import (
    kernels,
    log_normalizer,
    log_normalizer_scaled,
    mean_resultant_complement,
    mean_resultant_length,
)

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "triton_runs_on", lambda _: True)


def errors(got: torch.Tensor, truth: list[str]) -> list[float]:
    pairs = zip(got.tolist(), truth, strict=True)
    return [float(abs(Fraction(value) - Fraction(true))) for value, true in pairs]


@BOTH
@pytest.mark.parametrize("dim", [2, 3, 8, 64, 512, 8192])
def test_values_and_gradients_are_exact(truth_table: dict, dim: int, dtype: torch.dtype) -> None:
    """Within the limits of docs/numerics.md, which `test_functions` uses as well."""
    rows = truth_table[str(dim)]
    truth = {name: [row[name] for row in rows] for name in ("log_c", "c", "mean", "complement")}
    kappa = torch.tensor([row["kappa"] for row in rows], dtype=dtype, device=DEVICE, requires_grad=True)
    single, eps = dtype == torch.float32, torch.finfo(dtype).eps

    value = log_normalizer(kappa, dim)
    (slope,) = torch.autograd.grad(value.sum(), kappa)
    assert torch.equal(-slope, mean_resultant_length(kappa, dim))
    scale = [
        max(1, k, abs(float(true)), abs(float(truth["log_c"][0])))
        for k, true in zip(kappa.tolist(), truth["log_c"])
    ]
    limit = 1e-6 if single else 1e-14
    assert all(e <= limit * s for e, s in zip(errors(value.detach(), truth["log_c"]), scale))
    limit = 5e-7 if single else 1e-14
    assert all(e <= limit * float(t) for e, t in zip(errors(-slope, truth["mean"]), truth["mean"]))

    value = log_normalizer_scaled(kappa, dim)
    (slope,) = torch.autograd.grad(value.sum(), kappa)
    assert torch.equal(slope, mean_resultant_complement(kappa, dim))
    at_zero = abs(float(truth["c"][0]))
    scale = [max(4, abs(float(true)), at_zero, min(k, dim)) for k, true in zip(kappa.tolist(), truth["c"])]
    assert all(e <= 8 * eps * s for e, s in zip(errors(value.detach(), truth["c"]), scale))
    limit = 1e-5 if single else 1e-12
    assert all(e <= limit * float(t) for e, t in zip(errors(slope, truth["complement"]), truth["complement"]))


@pytest.mark.parametrize("dim", [3, 64])
def test_second_derivatives(dim: int) -> None:
    kappa = torch.tensor([1e-3, 2.0, 60.0, 800.0], dtype=torch.float64, device=DEVICE, requires_grad=True)
    for function in (log_normalizer, log_normalizer_scaled):
        assert torch.autograd.gradcheck(lambda k, f=function: f(k, dim), kappa)
        assert torch.autograd.gradgradcheck(lambda k, f=function: f(k, dim), kappa)


@BOTH
def test_edges_and_layouts(dtype: torch.dtype) -> None:
    for dim in (3, 512):
        bad = torch.tensor([1.0, math.nan, -1.0, 2.0, -1e-30], dtype=dtype, device=DEVICE)
        assert log_normalizer(bad, dim).isnan().tolist() == [False, True, True, False, True]
        huge = torch.tensor(
            [0.0, 5e-324, 1e-30, 1e17, torch.finfo(dtype).max], dtype=dtype, device=DEVICE, requires_grad=True
        )
        for function in (log_normalizer, log_normalizer_scaled):
            value = function(huge, dim)
            (slope,) = torch.autograd.grad(value.sum(), huge)
            assert value.isfinite().all() and slope.isfinite().all()
        infinite = torch.tensor([math.inf], dtype=dtype, device=DEVICE)  # as on the CPU
        assert log_normalizer(infinite, dim).item() == -math.inf
        assert mean_resultant_length(infinite, dim).item() == pytest.approx(1, rel=1e-6)
        kappa = torch.linspace(0, 500, 5000, dtype=dtype, device=DEVICE).view(50, 100)
        whole = log_normalizer(kappa, dim)
        assert torch.equal(whole.T[::3], log_normalizer(kappa.T[::3], dim))  # not contiguous
        assert (
            torch.equal(whole[7, 7], log_normalizer(kappa[7, 7], dim))
            and not log_normalizer(kappa[:0], dim).numel()
        )
