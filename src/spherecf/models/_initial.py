"""Where training starts: the one kappa that fits all data best."""

import torch
from jaxtyping import Float
from torch import Tensor

from spherecf import vmf
from spherecf.errors import InputError


def initial_kappa(cosines: Float[Tensor, "n"], dim: int) -> float:
    """The maximum-likelihood constant kappa, A_d^{-1}(mean cosine).

    Setting the mean over samples of dL/dkappa = A_d(kappa) - cos to zero (method of S. Li et al., CVPR 2021).

    Args:
        cosines: between each sample's direction and its identity's prototype, in [-1, 1].
        dim: of the embedding.

    Raises:
        InputError: no cosines, NaN, values outside [-1, 1], or a mean that is not positive or is 1.

    Example:
        >>> round(initial_kappa(torch.tensor([0.4, 0.6]), dim=512))
        341
    """
    if (
        not cosines.numel()
        or not bool(torch.isfinite(cosines).all())
        or float(cosines.abs().max()) > 1 + 1e-4
    ):
        raise InputError(
            f"cosines: expected numbers in [-1, 1], got {cosines.numel()} with some outside or NaN"
        )
    mean = float(cosines.double().mean())
    if not 0 < mean < 1:
        raise InputError(
            f"the mean cosine to the prototypes is {mean:.4f}, expected within (0, 1): do the prototypes "
            f"belong to this backbone, and the labels to these images?"
        )
    return float(vmf.inverse_mean_resultant_length(torch.tensor(mean, dtype=torch.float64), dim))
