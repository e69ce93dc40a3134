"""torch.func (vmap, grad, hessian, forward mode) and torch's default device, against plain autograd."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.nn.functional import normalize

from spherecf.errors import InputError
from spherecf.losses import MARGINS, margin_softmax_loss, sphere_confidence_loss
from spherecf.scoring import gaussian_score, mutual_likelihood_score
from spherecf.vmf import (
    VonMisesFisher,
    inverse_mean_resultant_length,
    log_bessel_i,
    log_normalizer,
    log_normalizer_scaled,
    mean_resultant_complement,
    mean_resultant_length,
    mean_resultant_length_derivative,
)

KAPPA = torch.tensor([0.0, 0.3, 7.0, 60.0, 900.0], dtype=torch.float64)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "log C": lambda k: log_normalizer(k, 64),
    "scaled log C": lambda k: log_normalizer_scaled(k, 3),
    "A": lambda k: mean_resultant_length(k, 64),
    "1 - A": lambda k: mean_resultant_complement(k, 3),
    "derivative of A": lambda k: mean_resultant_length_derivative(k, 64),
    "inverse of A": lambda k: inverse_mean_resultant_length(k / 1000, 64),
    "log I": lambda k: log_bessel_i(2.5, k + 1, scaled=True),
}
EACH = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)


def derivatives(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The first and the second derivative by autograd."""
    kappa = KAPPA.clone().requires_grad_()
    (first,) = torch.autograd.grad(function(kappa).sum(), kappa, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), kappa)
    return first.detach(), second


@EACH
def test_functions_under_transforms(function: Callable[[Tensor], Tensor]) -> None:
    first, second = derivatives(function)
    close = torch.testing.assert_close
    close(vmap(function)(KAPPA), function(KAPPA))
    close(vmap(function, in_dims=1, out_dims=1)(KAPPA.expand(2, 5)), function(KAPPA).expand(2, 5))
    close(vmap(grad(function))(KAPPA), first)
    close(vmap(grad(grad(function)))(KAPPA), second)
    close(jacrev(function)(KAPPA), first.diag())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's forward mode imports its own deprecated code
        close(jacfwd(function)(KAPPA), first.diag())
        close(hessian(lambda k: function(k).sum())(KAPPA), second.diag())


@EACH
def test_forward_mode(function: Callable[[Tensor], Tensor]) -> None:
    kappa = KAPPA[1:].clone().requires_grad_()
    assert torch.autograd.gradcheck(function, kappa, check_forward_ad=True, check_backward_ad=False)


def unit(*shape: int) -> Tensor:
    return normalize(torch.randn(*shape, generator=torch.manual_seed(0)), dim=-1)


MU, VALUE = unit(2, 5, 8)
CONCENTRATION = KAPPA.float()


def test_the_distribution_under_transforms() -> None:
    close, face = torch.testing.assert_close, VonMisesFisher(MU, CONCENTRATION)
    log_prob = vmap(lambda mu, k, z: VonMisesFisher(mu, k).log_prob(z))(MU, CONCENTRATION, VALUE)
    close(log_prob, face.log_prob(VALUE))
    slope = vmap(grad(lambda k, mu, z: VonMisesFisher(mu, k).log_prob(z)))(CONCENTRATION, MU, VALUE)
    close(slope, (MU * VALUE).sum(1) - mean_resultant_length(CONCENTRATION, 8), rtol=1e-5, atol=1e-6)
    other = VonMisesFisher(VALUE, CONCENTRATION)
    divergence = vmap(lambda m, k, n: kl_divergence(VonMisesFisher(m, k), VonMisesFisher(n, k)))
    close(divergence(MU, CONCENTRATION, VALUE), kl_divergence(face, other))
    fitted = vmap(lambda z: VonMisesFisher.fit(z).concentration)(torch.stack([MU, VALUE]))
    close(fitted, VonMisesFisher.fit(torch.stack([MU, VALUE])).concentration)


def test_samples_under_transforms() -> None:
    draw = vmap(lambda mu, k: VonMisesFisher(mu, k).rsample((300,)), randomness="different")
    mu, kappa = MU[0].expand(2, 8), torch.tensor([50.0, 5e4])
    samples = draw(mu, kappa)
    cosine = (samples * mu[:, None]).sum(2).mean(1)
    assert samples.shape == (2, 300, 8)
    torch.testing.assert_close(cosine, mean_resultant_length(kappa, 8), atol=0.01, rtol=0)

    def total(kappa: Tensor) -> Tensor:
        torch.manual_seed(1)
        return VonMisesFisher(MU, kappa).rsample((3,)).sum()

    kappa = CONCENTRATION.clone().requires_grad_()
    torch.testing.assert_close(grad(total)(CONCENTRATION), torch.autograd.grad(total(kappa), kappa)[0])


def test_per_sample_gradients_of_the_losses() -> None:
    one = grad(lambda k, mu, w: sphere_confidence_loss(mu[None], k[None], w[None]))
    expected = mean_resultant_length(CONCENTRATION, 8) - (MU * VALUE).sum(1)
    torch.testing.assert_close(vmap(one)(CONCENTRATION, MU, VALUE), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", MARGINS)
def test_per_sample_gradients_of_the_margins(kind: str) -> None:
    margin, labels = MARGINS[kind]().eval().requires_grad_(False), torch.arange(5)

    def loss(embedding: Tensor, label: Tensor) -> Tensor:
        return margin_softmax_loss(embedding[None], VALUE, label[None], margin)

    embedding = MU.clone().requires_grad_()
    total = margin_softmax_loss(embedding, VALUE, labels, margin, reduction="sum")
    (expected,) = torch.autograd.grad(total, embedding)
    torch.testing.assert_close(vmap(grad(loss))(MU, labels), expected)


def test_scores_under_transforms() -> None:
    arguments = (MU, CONCENTRATION, VALUE, CONCENTRATION)
    scores = vmap(mutual_likelihood_score)(*arguments)
    torch.testing.assert_close(scores, mutual_likelihood_score(*arguments))
    precision = torch.zeros(5, 1)
    scores = vmap(gaussian_score)(MU, precision, VALUE, precision)
    torch.testing.assert_close(scores, gaussian_score(MU, precision, VALUE, precision))


def test_values_are_checked_where_they_are_known() -> None:
    with pytest.raises(InputError, match="5 of 5 directions are not unit vectors"):
        grad(lambda k: VonMisesFisher(2 * MU, k).log_prob(VALUE).sum())(CONCENTRATION)
    meta = [v.to("meta") for v in (MU, CONCENTRATION, VALUE, CONCENTRATION)]
    assert VonMisesFisher(*meta[:2]).log_prob(meta[2]).is_meta
    assert mutual_likelihood_score(*meta).is_meta


def test_torchs_default_device_has_no_effect_on_arguments_elsewhere() -> None:
    """Constants that were computed while it was set would have served all later calls."""
    with torch.device("meta"):
        inside = log_normalizer(CONCENTRATION, 77)
    assert torch.equal(inside, log_normalizer(CONCENTRATION, 77))
