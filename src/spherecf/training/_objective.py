"""What a confidence head is trained to do: the sphere confidence loss, and its rivals, behind one face."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from torch import Tensor

from spherecf.errors import InputError
from spherecf.losses import (
    Variant,
    gaussian_confidence_loss_from_cosine,
    pfe_gaussian_loss,
    pfe_vmf_loss,
    sphere_confidence_loss_from_cosine,
)
from spherecf.models import initial_kappa
from spherecf.training._config import LossSettings


@runtime_checkable
class Objective(Protocol):
    """A loss of a head's output.

    Attributes:
        pairwise: it compares samples of one identity with each other, and needs batches that hold such.
    """

    pairwise: bool

    def outputs(self, dim: int) -> int:
        """How many numbers the head gives per image."""
        ...

    def start(self, cosine: Tensor) -> float:
        """The constant, in the head's ``exp(output)``, that fits cosines to prototypes (n,) best."""
        ...

    def loss(self, output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        """One loss per sample, or per genuine pair (m,).

        Args:
            output: of the head, (n,) or (n, outputs).
            cosine: cos(mu, prototype) (n,).
            mu: (n, dim) unit; only pairwise objectives look at it.
            labels: (n,) likewise.
        """
        ...


class SphereConfidence:
    """SCF: surprise of the vMF at the prototype; exact, or as the released code computes it."""

    pairwise = False

    def __init__(self, dim: int, radius: float, variant: Variant) -> None:
        self._dim, self._radius, self._variant = dim, radius, variant

    def outputs(self, dim: int) -> int:
        return 1

    def start(self, cosine: Tensor) -> float:
        return initial_kappa(cosine, self._dim)

    def loss(self, output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return sphere_confidence_loss_from_cosine(
            cosine, output.exp(), self._dim, self._radius, self._variant, "none"
        )


class GaussianConfidence:
    """SCF-G: surprise of an isotropic Gaussian at the prototype; the head gives the log precision."""

    pairwise = False

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def outputs(self, dim: int) -> int:
        return 1

    def start(self, cosine: Tensor) -> float:
        return self._dim / _mean_square(cosine)

    def loss(self, output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return gaussian_confidence_loss_from_cosine(cosine, output, self._dim, "none")


class PairwiseVmf:
    """PFE-v: minus the mutual likelihood score of genuine pairs; the head gives log kappa."""

    pairwise = True

    def __init__(self, dim: int, radius: float) -> None:
        self._dim, self._radius = dim, radius

    def outputs(self, dim: int) -> int:
        return 1

    def start(self, cosine: Tensor) -> float:
        return initial_kappa(cosine, self._dim)

    def loss(self, output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        return pfe_vmf_loss(mu, output, labels, self._radius, "none")


class PairwiseGaussian:
    """PFE-G: minus the mutual likelihood score of genuine pairs; the head gives log precisions."""

    pairwise = True

    def __init__(self, dim: int) -> None:
        self._dim = dim

    def outputs(self, dim: int) -> int:
        return dim

    def start(self, cosine: Tensor) -> float:
        return self._dim / _mean_square(cosine)

    def loss(self, output: Tensor, cosine: Tensor, mu: Tensor, labels: Tensor) -> Tensor:
        # Precisions, not variances, so that larger is surer for every head of this library.
        return pfe_gaussian_loss(mu, -output, labels, "none")


def make_objective(settings: LossSettings, dim: int) -> Objective:
    """The objective of a recipe.

    Raises:
        InputError: an unknown one.
    """
    variant: Variant = "exact" if settings.variant == "exact" else "released"
    makers: dict[str, Callable[[], Objective]] = {
        "scf": lambda: SphereConfidence(dim, settings.radius, variant),
        "scf-gaussian": lambda: GaussianConfidence(dim),
        "pfe-vmf": lambda: PairwiseVmf(dim, settings.radius),
        "pfe-gaussian": lambda: PairwiseGaussian(dim),
    }
    if settings.objective not in makers:
        raise InputError(f"loss.objective: expected one of {', '.join(makers)}, got {settings.objective!r}")
    return makers[settings.objective]()


def _mean_square(cosine: Tensor) -> float:
    """Mean squared distance |mu - w|^2 = 2 (1 - cos)."""
    mean = float(cosine.double().mean())
    if not -1 <= mean < 1:
        raise InputError(f"the mean cosine to the prototypes is {mean:.4f}, expected within [-1, 1)")
    return 2 * (1 - mean)
