"""The concentration that belongs to a mean resultant length: the maximum-likelihood estimate of kappa."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from spherecf._arrays import Array, like
from spherecf.vmf._functions import computable, order_of
from spherecf.vmf._kernels import Form, evaluate, ratio_slope

_NEWTON_STEPS = 5


def inverse_mean_resultant_length(rho: Float[Array, "*batch"], dim: int) -> Float[Array, "*batch"]:
    """kappa with A_d(kappa) = rho, for rho in [0, 1]; derivative 1 / A_d'(kappa).

    Amos' bounds x / (a + sqrt(x^2 + b^2)) of A_d (1974), inverted with a = (d-1)/2 and b = (d+1)/2, are right
    at both ends; a fixed number of Newton steps on 1 - A_d, which stays accurate near 1, makes it exact to
    rounding.

    Args:
        rho: any shape. 1 gives inf, values outside [0, 1] and NaN give NaN.
        dim: dimension d >= 2.

    Example:
        >>> inverse_mean_resultant_length(torch.tensor([0.0, 0.5, 0.9]), dim=512)
        tensor([   0.0000,  341.0670, 2421.0229])
    """
    order, r = order_of(dim), computable(rho, "rho")
    return like(_inverse(r.double(), order).to(r.dtype), rho)  # ill-conditioned near 1, never in a hot loop


class _Inverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rho: Tensor, order: float) -> Tensor:
        rest = 1 - rho  # exact for rho >= 1/2
        kappa = _first_guess(rho, rest, order)
        for _ in range(_NEWTON_STEPS):
            plain = evaluate(kappa, order, Form.PLAIN)[1]
            scaled = evaluate(kappa, order, Form.SCALED)[1]
            # A - rho from whichever side is the smaller number.
            miss = torch.where(rho < 0.5, -plain - rho, rest - scaled)
            kappa = (kappa - miss / ratio_slope(kappa, order)).clamp(min=0)
        kappa = torch.where(rho == 0, 0.0, kappa)
        kappa = torch.where(rho == 1, torch.inf, kappa)
        kappa = torch.where((rho >= 0) & (rho <= 1), kappa, torch.nan)
        ctx.save_for_backward(kappa)
        ctx.order = order
        return kappa

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (kappa,) = ctx.saved_tensors
        return grads[0] / ratio_slope(kappa, ctx.order), None


_inverse: Callable[..., Tensor] = _Inverse.apply


def _first_guess(rho: Tensor, rest: Tensor, order: float) -> Tensor:
    a, b = order + 0.5, order + 1.5
    gap = rest * (1 + rho)  # 1 - rho^2
    return rho * (a + (a * a + gap * (b * b - a * a)).sqrt()) / gap.clamp(min=torch.finfo(rho.dtype).tiny)
