"""ProbFace, CR-FIQA and RTS against plain NumPy, one pair, image or temperature at a time."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch.nn.functional import normalize

from spherecf.errors import InputError
from spherecf.losses import certainty_ratio_loss, probface_loss, random_temperature_loss

LABELS = torch.tensor([5, 2, 5, 9, 2, 5])
PAIRS = [(0, 2), (0, 5), (1, 4), (2, 5)]


@pytest.fixture
def mu() -> torch.Tensor:
    return normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).double(), dim=1)


@pytest.fixture
def log_variance() -> torch.Tensor:
    return torch.randn(6, generator=torch.Generator().manual_seed(1)).double() - 1


def slow_probface(mu: np.ndarray, variance: np.ndarray, labels: np.ndarray) -> list[float]:
    def distance(i: int, j: int) -> float:
        return float(np.square(mu[i] - mu[j]).sum() / (variance[i] + variance[j]))

    def hinge(anchor: int, positive: int) -> float:
        others = [distance(anchor, n) for n in range(len(mu)) if labels[n] != labels[anchor]]
        if not others:
            return 0.0
        mated = distance(anchor, positive)
        beyond = [d for d in others if d > mated]
        return max(0.0, 3 + mated - (min(beyond) if beyond else max(others)))

    spread = np.mean((variance / variance.mean() - 1) ** 2)
    pairs = [(i, j) for i in range(len(mu)) for j in range(i + 1, len(mu)) if labels[i] == labels[j]]
    return [
        distance(i, j) + np.log(variance[i] + variance[j])
        + 0.001 * (hinge(i, j) + hinge(j, i)) / 2 + 0.128 * spread
        for i, j in pairs
    ]  # fmt: skip


@pytest.mark.parametrize("labels", [LABELS, torch.ones(6, dtype=torch.int64)], ids=["several", "one person"])
def test_probface_value(mu: torch.Tensor, log_variance: torch.Tensor, labels: torch.Tensor) -> None:
    loss = probface_loss(mu, log_variance, labels, "none")
    expected = slow_probface(mu.numpy(), log_variance.exp().numpy(), labels.numpy())
    assert loss.tolist() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(probface_loss(mu, log_variance, labels), loss.mean())
    torch.testing.assert_close(probface_loss(mu, log_variance, labels, "sum"), loss.sum())


def test_probface_pulls_both_variances_to_the_distance() -> None:
    """Two equal variances at squared distance D: d/dv of D / 2v + log 2v is 0 at 2v = D; the rest is flat."""
    mu = normalize(torch.tensor([[1.0, 0.0], [0.6, 0.8]]).double(), dim=1)
    value = torch.full((2,), np.log(0.4), requires_grad=True, dtype=torch.float64)  # D = 0.8
    probface_loss(mu, value, torch.tensor([1, 1])).backward()
    assert value.grad is not None and value.grad.abs().max() < 1e-6


def test_certainty_ratio_value() -> None:
    cosine, nearest = torch.tensor([0.9, 0.5, -0.2]), torch.tensor([0.2, 0.6, -0.1])
    ratio = torch.tensor([0.8, 1.4, -0.25], requires_grad=True)
    loss = certainty_ratio_loss(ratio, cosine, nearest, "none")
    gap = np.abs(np.array([0.8 - 0.75, 1.4 - 0.3125, -0.25 + 0.2 / 0.9]))
    np.testing.assert_allclose(loss.detach(), np.where(gap < 0.5, gap**2, gap - 0.25), rtol=1e-5)
    assert certainty_ratio_loss(ratio, cosine, nearest).item() == pytest.approx(loss.mean().item())


def test_the_ratio_is_a_constant_for_the_gradient() -> None:
    cosine, nearest = (torch.tensor([value], requires_grad=True) for value in (0.5, 0.3))
    ratio = torch.tensor([0.2], requires_grad=True)
    certainty_ratio_loss(ratio, cosine, nearest).backward()
    assert ratio.grad is not None and cosine.grad is None and nearest.grad is None


def slow_temperature(log_variance: float, cosine: float, others: np.ndarray, quantiles: int) -> float:
    v, losses = np.exp(log_variance), []
    for k in range(quantiles):
        t = v * chi2(16).ppf((k + 0.5) / quantiles) / 16
        logits = 64 * np.append(cosine, others) / t
        losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[0])
    return float(np.mean(losses) + 8 * (v - 1 - log_variance))


def test_random_temperature_value() -> None:
    others = torch.tensor([[0.3, 0.1, -torch.inf], [0.3, 0.45, 0.2]]).double()
    log_variance, cosine = torch.tensor([0.3, -0.5]).double(), torch.tensor([0.5, 0.4]).double()
    loss = random_temperature_loss(log_variance, cosine, others, "none")
    rows = zip(log_variance.tolist(), cosine.tolist(), others.numpy())
    assert loss.tolist() == pytest.approx([slow_temperature(*row, 4) for row in rows], rel=1e-9)
    torch.testing.assert_close(random_temperature_loss(log_variance, cosine, others), loss.mean())


def test_four_quantiles_are_enough_for_the_random_temperature() -> None:
    """Compared with 2,000 quantiles, for a softmax that is neither flat nor saturated."""
    others = np.array([0.1, 0.12])
    args = [torch.tensor([x]).double() for x in (0.2, 0.11)], torch.from_numpy(others)[None]
    assert random_temperature_loss(*args[0], args[1]).item() == pytest.approx(
        slow_temperature(0.2, 0.11, others, 2000), rel=0.02
    )


def test_the_temperature_is_higher_for_a_misclassified_image() -> None:
    others, grid = torch.tensor([[0.4]]).double(), torch.linspace(-1, 2, 301).double()
    best = []
    for cosine in (0.6, 0.35, 0.25):
        losses = random_temperature_loss(grid, torch.full_like(grid, cosine), others.expand(301, 1), "none")
        best.append(grid[losses.argmin()].item())
    assert best[0] == pytest.approx(0, abs=0.02) and best[0] < best[1] < best[2]


def test_shapes_are_checked(mu: torch.Tensor, log_variance: torch.Tensor) -> None:
    for call in (
        lambda: probface_loss(mu, log_variance[:5], LABELS),
        lambda: certainty_ratio_loss(torch.ones(2), torch.ones(2), torch.ones(3)),
        lambda: random_temperature_loss(torch.ones(2), torch.ones(2), torch.ones(3, 4)),
    ):
        with pytest.raises((InputError, TypeError)):
            call()
    with pytest.raises(InputError, match="expected at least two samples of one identity"):
        probface_loss(mu, log_variance, torch.arange(6))
