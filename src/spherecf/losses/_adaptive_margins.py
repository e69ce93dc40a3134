"""Adaptive margins as modules with their running statistics, with the published values as defaults."""

import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.losses._adaptive import NORM_RANGE, adaface, curricularface_others, magface, magface_penalty
from spherecf.losses._angles import Gradient, widen
from spherecf.losses._fixed_margins import ArcFace
from spherecf.losses._margin import Margin, Number

_RATE = 0.01  # of the running statistics, as published for both


class AdaFace(Margin):
    """`adaface` with its running norm statistics (Kim et al., CVPR 2022), which start at mean 20, std 100.

    Example:
        >>> margin = AdaFace()
        >>> margin.update(torch.zeros(3), torch.tensor([10.0, 20.0, 30.0]))
        >>> margin.mean, margin.std
        (tensor(20.), tensor(99.1000))
    """

    kind = "adaface"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        margin: Number = 0.4,
        h: Number = 0.333,
        rate: Number = _RATE,
        scale: Number = 64.0,
        gradient: Gradient = "exact",
    ) -> None:
        super().__init__(scale, gradient)
        self.margin, self.h, self.rate = margin, h, rate
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("std", torch.tensor(100.0))

    @torch.no_grad()
    def update(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> None:
        """Move mean and standard deviation towards the batch's, by ``rate``; one sample has no spread."""
        if len(norm) > 1:
            norm = widen(norm).clamp(*NORM_RANGE)
            _move(self.mean, norm.mean(), self.rate)
            _move(self.std, norm.std(), self.rate)

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """cos(theta + g_angle) - g_add."""
        return adaface(cosine, norm, self.mean, self.std, self.margin, self.h, self.gradient)


class MagFace(Margin):
    """`magface`, and lambda_g times `magface_penalty`: Meng et al., CVPR 2021.

    Example:
        >>> MagFace().penalty(torch.tensor([10.0, 110.0]))
        tensor([3.5289, 0.6364])
    """

    kind = "magface"

    def __init__(
        self,
        lower_margin: Number = 0.45,
        upper_margin: Number = 0.8,
        lower_norm: Number = 10.0,
        upper_norm: Number = 110.0,
        lambda_g: Number = 35.0,
        scale: Number = 64.0,
        gradient: Gradient = "exact",
    ) -> None:
        super().__init__(scale, gradient)
        self.lower_margin, self.upper_margin = lower_margin, upper_margin
        self.lower_norm, self.upper_norm, self.lambda_g = lower_norm, upper_norm, lambda_g

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """cos(theta + m(a))."""
        margins, norms = (self.lower_margin, self.upper_margin), (self.lower_norm, self.upper_norm)
        return magface(cosine, norm, *margins, *norms, self.gradient)

    def penalty(self, norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """lambda_g g(a)."""
        return self.lambda_g * magface_penalty(norm, self.lower_norm, self.upper_norm)


class CurricularFace(ArcFace):
    """`arcface` for the true class, `curricularface_others` for the rest: Huang et al., CVPR 2020.

    Example:
        >>> margin = CurricularFace()
        >>> margin.update(torch.tensor([0.6, 0.8]), torch.ones(2))
        >>> margin.t
        tensor(0.0070)
    """

    kind = "curricularface"
    t: Tensor

    def __init__(
        self,
        margin: Number = 0.5,
        rate: Number = _RATE,
        scale: Number = 64.0,
        gradient: Gradient = "exact",
    ) -> None:
        super().__init__(margin, scale, gradient)
        self.rate = rate
        self.register_buffer("t", torch.tensor(0.0))

    @torch.no_grad()
    def update(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> None:
        """Move t towards the batch's mean cosine to the true prototype, by ``rate``."""
        if len(cosine):
            _move(self.t, widen(cosine).mean(), self.rate)

    def others(
        self, cosine: Float[Tensor, "n classes"], target_cosine: Float[Tensor, " n"]
    ) -> Float[Tensor, "n classes"]:
        """Hard rivals times (t + cos)."""
        return curricularface_others(cosine, target_cosine, self.t, self.margin)


def _move(statistic: Tensor, value: Tensor, rate: float) -> None:
    """One step of a moving average, in place. A value that is not finite is left out: it would never go."""
    statistic.copy_(torch.where(value.isfinite(), statistic.lerp(value.to(statistic), rate), statistic))
