"""PFE-G and PFE-v against 50-digit values, one pair at a time."""

import inspect
import math
from typing import Any

import pytest
import torch
from tests.reference import margins_slow as slow
from tests.reference.scores_mpmath import mutual_likelihood
from torch.nn.functional import normalize

from spherecf.errors import InputError
from spherecf.losses import (
    certainty_ratio_loss,
    pfe_gaussian_loss,
    pfe_vmf_loss,
    probface_loss,
    random_temperature_loss,
    sphere_confidence_loss,
    sphere_confidence_loss_from_cosine,
)

LABELS = torch.tensor([5, 2, 5, 9, 2, 5])
PAIRS = [(0, 2), (0, 5), (1, 4), (2, 5)]


@pytest.fixture
def mu():
    return normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).double(), dim=1)


@pytest.fixture
def log_variance():
    return torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).double() - 3


LOG_KAPPA = torch.tensor([0.5, 3.0, 5.0, 1.0, 6.5, 9.0]).double()


def test_gaussian_value(mu, log_variance):
    got = pfe_gaussian_loss(mu, log_variance, LABELS, reduction="none")
    variance = log_variance.exp().tolist()
    points = mu.tolist()
    expected = [-float(slow.gaussian_score(points[i], variance[i], points[j], variance[j])) for i, j in PAIRS]
    assert got.tolist() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(pfe_gaussian_loss(mu, log_variance, LABELS), got.mean())
    torch.testing.assert_close(pfe_gaussian_loss(mu, log_variance, LABELS, "sum"), got.sum())


def test_gaussian_optimum_is_the_squared_distance():
    """One pair, equal variances, one coordinate's distance 0.3: v_i + v_j = 0.09."""
    mu = torch.tensor([[0.1], [0.4]]).double()
    grid = torch.linspace(-6, 0, 6001).double()
    losses = [pfe_gaussian_loss(mu, v.expand(2, 1), torch.tensor([1, 1])).item() for v in grid]
    best = grid[losses.index(min(losses))]
    assert 2 * best.exp().item() == pytest.approx(0.09, rel=2e-3)


def test_gaussian_is_finite_for_variances_that_overflow():
    mu, labels = torch.ones(2, 3), torch.tensor([0, 0])
    for log_variance in (-150.0, 150.0):  # float32 ends at 88 on either side
        value = torch.full((2, 3), log_variance, requires_grad=True)
        loss = pfe_gaussian_loss(mu, value, labels)
        assert loss.item() == pytest.approx(1.5 * (log_variance + math.log(2)))
        loss.backward()
        assert torch.allclose(value.grad, torch.full((2, 3), 0.25))


def test_vmf_value(mu):
    got = pfe_vmf_loss(mu, LOG_KAPPA, LABELS, reduction="none")
    kappa = LOG_KAPPA.exp().tolist()
    cosine = (mu @ mu.T).tolist()
    expected = [-float(mutual_likelihood(cosine[i][j], kappa[i], kappa[j], 8)) for i, j in PAIRS]
    assert got.tolist() == pytest.approx(expected, rel=1e-10)
    torch.testing.assert_close(pfe_vmf_loss(mu, LOG_KAPPA, LABELS), got.mean())
    shift = pfe_vmf_loss(mu, LOG_KAPPA, LABELS) - pfe_vmf_loss(mu, LOG_KAPPA, LABELS, radius=1)
    assert shift.item() == pytest.approx(8 * math.log(64))


def test_vmf_is_accurate_in_float32_where_the_plain_formula_cancels():
    """kappa 1e6 on two views of one face: log C_d is near a million, the score near a thousand."""
    generator = torch.Generator().manual_seed(2)
    first = normalize(torch.randn(1, 512, generator=generator), dim=1)
    mu = normalize(torch.cat([first, first + 1e-3 * torch.randn(1, 512, generator=generator)]), dim=1)
    log_kappa, labels = torch.tensor([14.0, 13.5]), torch.tensor([0, 0])
    exact = pfe_vmf_loss(mu.double(), log_kappa.double(), labels, radius=1)
    got = pfe_vmf_loss(mu, log_kappa, labels, radius=1)
    assert got.item() == pytest.approx(exact.item(), rel=2e-6)


def test_gradients(mu, log_variance):
    function = lambda m, v: pfe_gaussian_loss(m, v, LABELS)  # noqa: E731
    assert torch.autograd.gradcheck(function, (mu.clone().requires_grad_(), log_variance.requires_grad_()))

    def on_the_sphere(m, k):
        return pfe_vmf_loss(normalize(m, dim=1), k, LABELS)

    kappa = LOG_KAPPA.clone().requires_grad_()
    assert torch.autograd.gradcheck(on_the_sphere, (mu.clone().requires_grad_(), kappa))
    assert torch.autograd.gradgradcheck(on_the_sphere, (mu.clone().requires_grad_(), kappa))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vmf_is_finite_at_the_ends(dtype):
    """Opposite directions with equal kappas (p = 0), equal directions, and kappas from 0 to 1e8."""
    e = torch.eye(4, dtype=dtype)
    for other in (-e[0], e[0], e[1]):
        for log_kappa in ((-40.0, -40.0), (2.0, 2.0), (18.4, -40.0), (18.4, 18.4)):
            mu = torch.stack([e[0], other]).requires_grad_()
            value = torch.tensor(log_kappa, dtype=dtype, requires_grad=True)
            loss = pfe_vmf_loss(mu, value, torch.tensor([3, 3]))
            loss.backward()
            assert loss.isfinite() and value.grad.isfinite().all() and mu.grad.isfinite().all()


def test_kappa_grows_for_a_similar_pair_and_shrinks_for_a_different_one(mu):
    """The slope of the loss in log kappa is negative for a similar pair, positive for a different one."""
    near = torch.stack([mu[0], normalize(mu[0] + 0.01 * mu[1], dim=0)])
    for pair, sign in ((near, -1), (torch.stack([mu[0], -mu[0]]), 1)):
        log_kappa = torch.full((2,), 4.0).double().requires_grad_()
        pfe_vmf_loss(pair, log_kappa, torch.tensor([0, 0])).backward()
        assert (log_kappa.grad.sign() == sign).all()


def test_half_precision_comes_out_in_float32(mu, log_variance):
    assert pfe_gaussian_loss(mu.half(), log_variance.half(), LABELS).dtype == torch.float32
    assert pfe_vmf_loss(mu.bfloat16(), LOG_KAPPA.bfloat16(), LABELS).dtype == torch.float32


def test_bad_arguments(mu, log_variance):
    alone = torch.arange(6)
    for call in (
        lambda: pfe_gaussian_loss(mu, log_variance, alone),
        lambda: pfe_vmf_loss(mu, LOG_KAPPA, alone),
    ):
        with pytest.raises(InputError, match=r"the 6 labels are all different\. Use batches of P identities"):
            call()
    with pytest.raises(InputError, match=r"mu: .*unit"):
        pfe_vmf_loss(2 * mu, LOG_KAPPA, LABELS)
    with pytest.raises(InputError, match="radius"):
        pfe_vmf_loss(mu, LOG_KAPPA, LABELS, radius=0.0)
    for call in (
        lambda: pfe_gaussian_loss(mu, log_variance[:, :1], LABELS),
        lambda: pfe_vmf_loss(mu, LOG_KAPPA, LABELS[:3]),
    ):
        with pytest.raises((InputError, TypeError)):
            call()


@pytest.mark.parametrize(
    ("loss", "shapes"),
    [
        (pfe_gaussian_loss, ((6, 8), (6, 8), (6,))),
        (pfe_vmf_loss, ((6, 8), (6,), (6,))),
        (probface_loss, ((6, 8), (6,), (6,))),
        (certainty_ratio_loss, ((6,), (6,), (6,))),
        (random_temperature_loss, ((6,), (6,), (6, 3))),
        (sphere_confidence_loss, ((6, 8), (6,), (6, 8))),
    ],
)
def test_shapes_that_do_not_fit_are_refused_without_annotations_too(loss, shapes):
    """In tests the annotations are checked first; in a user's program only the loss checks."""
    alone = inspect.unwrap(loss)
    for at in range(len(shapes)):
        wrong = [torch.ones(shape if i != at else (5, *shape[1:])) for i, shape in enumerate(shapes)]
        if loss in (pfe_gaussian_loss, pfe_vmf_loss, probface_loss):
            wrong[2] = wrong[2].long()  # labels
        with pytest.raises(InputError, match=f"{loss.__name__}: expected"):
            alone(*wrong)
    with pytest.raises(InputError, match="one kappa per cosine"):
        inspect.unwrap(sphere_confidence_loss_from_cosine)(torch.ones(3), torch.ones(2), 8)


@pytest.mark.parametrize("loss", [pfe_gaussian_loss, pfe_vmf_loss, probface_loss])
def test_labels_may_stay_on_the_cpu(loss: Any) -> None:
    """The meta device stands in for a GPU: its values cannot be read, and it refuses tensors of the CPU."""
    mu, labels = torch.empty(4, 8, device="meta"), torch.tensor([1, 0, 1, 0])
    uncertainty = torch.empty((4, 8) if loss is pfe_gaussian_loss else (4,), device="meta")
    assert loss(mu, uncertainty, labels, reduction="none").device.type == "meta"
