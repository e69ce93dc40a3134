"""The GPU kernels, on a GPU or in Triton's interpreter; top and counts on any device."""

from inspect import unwrap
from typing import Any

import numpy as np
import pytest
import torch
from scorers import directions
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from spherecf.errors import InputError
from spherecf.scoring import (
    cosine_score,
    matrix as matrix_module,
    mutual_likelihood_counts,
    mutual_likelihood_matrix,
    mutual_likelihood_score,
    mutual_likelihood_top,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(params=["fused", "blocks"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without the kernels."""
    if request.param == "fused":
        pytest.importorskip("triton")
    monkeypatch.setattr(matrix_module, "triton_runs_on", lambda *_: request.param == "fused")
    return str(request.param)


def sets(rows: int, columns: int, dim: int) -> tuple[torch.Tensor, ...]:
    """Pairs with cosines from -1 to 1 and kappas from 0.1 to 1e5, and kappa 0."""
    generator = torch.Generator().manual_seed(dim)
    mu_a = directions(rows, dim)
    noise = torch.randn(columns, dim, generator=generator) / dim**0.5
    near = mu_a[torch.arange(columns) % rows] + torch.linspace(0, 3, columns)[:, None] * noise
    mu_b = torch.nn.functional.normalize(near, dim=1)
    mu_b[0] = -mu_a[0]
    kappa_a, kappa_b = (10 ** (torch.rand(n, generator=generator) * 6 - 1) for n in (rows, columns))
    kappa_a[0] = kappa_b[0] = 1e5
    kappa_a[1] = kappa_b[1] = 0.0
    return tuple(each.to(DEVICE) for each in (mu_a, kappa_a, mu_b, kappa_b))


def exact(mu_a: Any, kappa_a: Any, mu_b: Any, kappa_b: Any) -> torch.Tensor:
    double = [each.double() for each in (mu_a, kappa_a, mu_b, kappa_b)]
    return mutual_likelihood_score(double[0][:, None], double[1][:, None], double[2][None], double[3][None])


def of_the_cosine(product: str, dim: int) -> float:
    """The error of a cosine from rounded coordinates."""
    bits = {"float32": 21, "tf32": 11, "bfloat16": 8}[product]
    return 6 * 2.0 ** (-bits) / dim**0.5  # six standard deviations


@pytest.mark.parametrize("product", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize(("rows", "columns", "dim"), [(130, 140, 512), (3, 70, 5), (1, 1, 64), (140, 2, 70)])
def test_matrix_against_the_score_in_float64(
    way: str, product: Any, rows: int, columns: int, dim: int
) -> None:
    inputs = sets(max(rows, 2), max(columns, 2), dim)
    inputs = (inputs[0][:rows], inputs[1][:rows], inputs[2][:columns], inputs[3][:columns])
    truth = exact(*inputs)
    scores = mutual_likelihood_matrix(*inputs, product=product)
    assert scores.dtype == torch.float32 and scores.shape == truth.shape
    # ds / dcos is at most k_a k_b / p, and p at least |k_a - k_b|; at opposite ends the error is that of p.
    k_a, k_b = inputs[1].double()[:, None], inputs[3].double()[None]
    slack = of_the_cosine(product, dim)
    cos = (inputs[0].double() @ inputs[2].double().T).clamp(-1, 1)
    p_min = ((k_a - k_b).square() + 2 * k_a * k_b * (1 + cos - slack).clamp(0)).sqrt()
    p_max = ((k_a - k_b).square() + 2 * k_a * k_b * (1 + cos + slack)).sqrt()
    bound = (p_max - p_min) + (3e-7 * truth.abs()).clamp(2e-3)
    assert ((scores - truth).abs() <= bound).all()
    if product == "float32" and dim > 64:
        assert ((scores - truth).abs() <= (2e-6 * truth.abs()).clamp(2e-3))[1:, 1:].all()


def test_products_have_the_documented_accuracy() -> None:
    """The errors in the docstring of `mutual_likelihood_matrix`, from the parts that the kernels read."""
    fused = pytest.importorskip("spherecf.scoring.fused")
    a, b = directions(300, 512), directions(300, 512, seed=1)
    b[:100] = torch.nn.functional.normalize(a[:100] + b[:100], dim=1)
    truth, nothing = a.double() @ b.double().T, (torch.zeros(300), torch.zeros(300))
    for product, low, high in (
        ("float32", 0, 2e-8),
        ("tf32", 1.1e-5, 1.5e-5),
        ("bfloat16", 0.9e-4, 1.2e-4),
    ):
        parts = 2 if product == "float32" else 1
        left, right = (
            fused.side(matrix_module._rounded(mu, product), nothing, parts).parts.double() for mu in (a, b)
        )
        cos = left[:, 0] @ right[:, 0].T
        if parts == 2:
            cos += left[:, 0] @ right[:, 1].T + left[:, 1] @ right[:, 0].T
        error = (cos * 2.0**-30 - truth).square().mean().sqrt()
        assert low <= error <= high, product


def test_every_way_gives_the_same_scores(way: str) -> None:
    mu_a, kappa_a, mu_b, kappa_b = sets(20, 150, 512)
    kappa_b[0] = 1.0  # high kappas and opposite directions would depend on the last bit of the cosine
    out = torch.full((150, 20), torch.nan, device=DEVICE).T  # columns beside each other
    assert mutual_likelihood_matrix(mu_a, kappa_a, mu_b, kappa_b, out=out) is out
    eager = mutual_likelihood_matrix(mu_a, kappa_a, mu_b, kappa_b, compiled=False)
    torch.testing.assert_close(out, eager, rtol=2e-6, atol=3e-3)


@pytest.mark.parametrize("count", [1, 3, 40, 1000])
def test_top_is_that_of_the_whole_matrix(way: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spherecf.scoring.reductions._BLOCK_CELLS", 4096)
    monkeypatch.setattr("spherecf.scoring.reductions._MAXIMA", 100)
    inputs = sets(37, 300, 64)
    result = mutual_likelihood_top(*inputs, count)
    truth = exact(*inputs)
    torch.testing.assert_close(result.scores, truth.topk(min(count, 300)).values, rtol=1e-6, atol=2e-3)
    torch.testing.assert_close(result.scores, truth.gather(1, result.columns), rtol=0, atol=2e-3)
    assert all(len(set(row)) == len(row) for row in result.columns.tolist())


def test_scores_of_top_are_those_of_pairs() -> None:
    """Also for directions of the largest accepted length, whose cosine would exceed 1."""
    mu, kappa = 1.003 * directions(5, 16).to(DEVICE), torch.linspace(1, 500, 5, device=DEVICE)
    both, kappas = torch.cat([mu, -mu]), kappa.repeat(2)
    result = mutual_likelihood_top(mu, kappa, both, kappas, 10)
    pairs = mutual_likelihood_score(
        mu[:, None], kappa[:, None].double(), both[result.columns], kappas[result.columns].double()
    )
    torch.testing.assert_close(result.scores, pairs, rtol=1e-13, atol=0)
    assert (
        mutual_likelihood_counts(mu, kappa, both, kappas, torch.zeros(1, device=DEVICE) - 1e9) == 10
    ).all()
    every = mutual_likelihood_matrix(mu, kappa, both, kappas)
    torch.testing.assert_close(every.sort(descending=True).values.double(), pairs, rtol=1e-4, atol=1e-2)
    middle = (every.sort().values[:, 4:5] + every.sort().values[:, 5:6]) / 2
    assert (mutual_likelihood_counts(mu, kappa, both, kappas, middle) == 5).all()


@pytest.mark.parametrize("per_row", [False, True])
def test_counts_are_those_of_the_whole_matrix(
    way: str, per_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spherecf.scoring.reductions._BLOCK_CELLS", 4096)
    inputs = sets(37, 300, 64)
    scores = mutual_likelihood_matrix(*inputs)
    thresholds = (
        scores[:, [0, 7, 99]] + 0.01
        if per_row
        else scores.quantile(torch.tensor([0.0, 0.3, 0.9], device=DEVICE)) + 0.01
    )
    result = mutual_likelihood_counts(*inputs, thresholds)
    expected = (scores[:, :, None] >= thresholds.view(-1, 1, 3)).sum(1)
    near = ((scores[:, :, None] - thresholds.view(-1, 1, 3)).abs() < 3e-3).sum(1)
    assert ((result - expected).abs() <= near).all() and result.sum() > 0
    assert result.dtype == torch.int64 and (near == 0).float().mean() > 0.5


def test_empty_sides(way: str) -> None:
    mu_a, kappa_a, mu_b, kappa_b = sets(3, 4, 6)
    for a, b in ((0, 4), (3, 0)):
        inputs = mu_a[:a], kappa_a[:a], mu_b[:b], kappa_b[:b]
        assert mutual_likelihood_matrix(*inputs).shape == (a, b)
        assert mutual_likelihood_top(*inputs, 2).columns.shape == (a, min(b, 2))
        assert mutual_likelihood_counts(*inputs, torch.zeros(2, device=DEVICE)).tolist() == [[0, 0]] * a


def test_arrays_give_arrays() -> None:
    inputs = [each.cpu().numpy() for each in sets(3, 40, 6)]
    top, counts = (
        mutual_likelihood_top(*inputs, 2),
        mutual_likelihood_counts(*inputs, np.zeros(1, np.float32)),
    )
    assert all(isinstance(each, np.ndarray) for each in (*top, counts))


def test_bad_input() -> None:
    inputs = sets(3, 4, 6)
    with pytest.raises(InputError, match="product: expected one of float32, tf32, bfloat16, got 'int8'"):
        unwrap(mutual_likelihood_matrix)(*inputs, product="int8")  # without the type checks of the tests
    with pytest.raises(InputError, match="product tf32: expected directions of float32"):
        mutual_likelihood_matrix(*(each.double() for each in inputs), product="tf32")
    with pytest.raises(InputError, match="count: expected an integer >= 1"):
        mutual_likelihood_top(*inputs, 0)
    for bad in (torch.zeros(4, 2), torch.zeros(())):
        with pytest.raises(
            (InputError, TypeError), match=r"thresholds: expected \(t,\) or \(3, t\)|'thresholds'"
        ):
            mutual_likelihood_counts(*inputs, bad.to(DEVICE))


class Reads(TorchDispatchMode):
    """Counts how often a value is read from the device, and lets every check pass."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count += 1
            return True
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "score",
    [
        mutual_likelihood_score,
        lambda mu, kappa, nu, other: matrix_module.Pairs.of(mu, kappa, nu, other, 64.0, "float32"),
        lambda mu, _, nu, __: cosine_score(mu, nu),
    ],
)
def test_a_gpu_is_synchronised_once(score: Any) -> None:
    with FakeTensorMode(), Reads() as reads:
        mu, kappa = torch.empty(5, 16, device="cuda"), torch.empty(5, device="cuda")
        score(mu, kappa, mu, kappa)
    assert reads.count == 1
