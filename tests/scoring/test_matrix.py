"""The matrix against 50-digit values and the row-by-row score: eager, compiled and chunked."""

import logging

import pytest
import torch
from scorers import directions
from scores_mpmath import mutual_likelihood

from spherecf.errors import InputError
from spherecf.scoring import (
    cosine_matrix,
    kernels,
    mutual_likelihood_matrix,
    mutual_likelihood_score,
)


def sets(rows: int, columns: int, dim: int, top: float = 5.0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    mu_a = directions(rows, dim)
    noise = torch.randn(columns, dim, generator=generator) / dim**0.5
    near = mu_a[torch.arange(columns) % rows] + torch.linspace(0, 3, columns)[:, None] * noise
    mu_b = torch.nn.functional.normalize(near, dim=1)
    kappa_a = 10 ** (torch.rand(rows, generator=generator) * (top + 1) - 1)
    kappa_b = 10 ** (torch.rand(columns, generator=generator) * (top + 1) - 1)
    return mu_a, kappa_a, mu_b, kappa_b


@pytest.mark.parametrize("dim", [2, 128, 512])
def test_float32_against_50_digit_truth_at_the_same_cosine(dim: int) -> None:
    mu_a, kappa_a, mu_b, kappa_b = sets(12, 20, dim)
    kappa_a[0] = kappa_b[0] = 1e5
    cos = cosine_matrix(mu_a, mu_b)
    scores = mutual_likelihood_matrix(mu_a, kappa_a, mu_b, kappa_b)
    for i in range(12):
        for j in range(20):
            truth = float(mutual_likelihood(float(cos[i, j]), float(kappa_a[i]), float(kappa_b[j]), dim))
            error = abs(float(scores[i, j]) - truth)
            assert error < max(2e-3, 3e-7 * abs(truth)), (i, j, truth)  # 3e-7: large scores, float32 itself


@pytest.mark.parametrize("dim", [2, 3, 5, 8, 64, 512, 1024, 8192])
def test_equals_the_row_by_row_score(dim: int) -> None:
    mu_a, kappa_a, mu_b, kappa_b = (x.double() for x in sets(9, 14, dim))
    kappa_a[1] = kappa_b[2] = 0.0
    both = mutual_likelihood_matrix(mu_a, kappa_a, mu_b, kappa_b)
    rows = mutual_likelihood_score(mu_a[:, None], kappa_a[:, None], mu_b[None], kappa_b[None])
    torch.testing.assert_close(both, rows, rtol=0, atol=3e-5 if dim < 64 else 1e-6)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = sets(30, 50, 16)
    whole = mutual_likelihood_matrix(*inputs)
    monkeypatch.setattr(kernels, "_EAGER_ELEMENTS_PER_THREAD", 7)
    torch.testing.assert_close(mutual_likelihood_matrix(*inputs), whole, rtol=1e-6, atol=1e-5)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = sets(30, 50, 16)
    whole = mutual_likelihood_matrix(*inputs)
    monkeypatch.setattr("spherecf.scoring.matrix._BLOCK_ELEMENTS", 120)
    torch.testing.assert_close(mutual_likelihood_matrix(*inputs), whole, rtol=1e-5, atol=2e-3)


@pytest.mark.slow
@pytest.mark.compiler
def test_compiled_equals_eager() -> None:
    inputs = sets(70, 130, 512)
    eager = mutual_likelihood_matrix(*inputs, compiled=False)
    compiled = mutual_likelihood_matrix(*inputs, compiled=True)
    torch.testing.assert_close(compiled, eager, rtol=3e-7, atol=2e-3)


def test_without_a_compiler_it_warns_and_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> object:
        def call(*_: object) -> None:
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    kernels.compiled_kernel.cache_clear()
    inputs = sets(3, 4, 6)
    with caplog.at_level(logging.WARNING):
        scores = mutual_likelihood_matrix(*inputs, compiled=True)
    kernels.compiled_kernel.cache_clear()
    assert "no C++ compiler" in caplog.text
    torch.testing.assert_close(scores, mutual_likelihood_matrix(*inputs))


def test_out_is_filled_and_returned() -> None:
    inputs = sets(3, 4, 6)
    out = torch.empty(3, 4)
    assert mutual_likelihood_matrix(*inputs, out=out) is out
    torch.testing.assert_close(out, mutual_likelihood_matrix(*inputs))
    assert cosine_matrix(inputs[0], inputs[2], out) is out


def test_empty_sets_give_empty_matrices() -> None:
    mu, kappa = directions(3, 6), torch.ones(3)
    assert mutual_likelihood_matrix(mu[:0], kappa[:0], mu, kappa).shape == (0, 3)
    assert mutual_likelihood_matrix(mu, kappa, mu[:0], kappa[:0]).shape == (3, 0)


def test_bad_input() -> None:
    mu_a, kappa_a, mu_b, kappa_b = sets(3, 4, 6)
    with pytest.raises(InputError, match="kappa_a: 3 of 3"):
        mutual_likelihood_matrix(mu_a, -kappa_a, mu_b, kappa_b)
    with pytest.raises(InputError, match="kappa_b: 4 of 4"):
        mutual_likelihood_matrix(mu_a, kappa_a, mu_b, kappa_b / 0)
    with pytest.raises(InputError, match="mu_b: 4 of 4 directions"):
        mutual_likelihood_matrix(mu_a, kappa_a, mu_b * float("nan"), kappa_b)
    with pytest.raises(InputError, match="float32 or float64"):
        cosine_matrix(mu_a, mu_b.double())
    with pytest.raises(InputError, match=r"out: expected \(3, 4\)"):
        cosine_matrix(mu_a, mu_b, torch.empty(3, 4, dtype=torch.float64))
