"""Angles to the mean direction, sampled by inverting their distribution function.

Density of the angle on [0, pi]: proportional to exp(kappa cos a) sin(a)^(d-2). Inversion rather than
rejection: every draw costs the same few vectorised operations, nothing is redrawn (so no loop that waits for
the data), and the draw is a smooth function of kappa whose derivative -dF/dkappa / density comes from the
same quadrature.
"""

from collections.abc import Callable
from math import pi, prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CELLS = 40  # half a standard deviation each
_HALF_WIDTH = 10.0  # standard deviations either side of the mode; the mass beyond is below 1e-13
_NEWTON_STEPS = 6
_BLOCK = 1 << 19  # density evaluations at once
# Gauss-Legendre nodes and weights on [0, 1].
_NODES = (0.06943184420297371, 0.33000947820757187, 0.6699905217924281, 0.9305681557970262)
_WEIGHTS = (0.17392742256872692, 0.32607257743127307, 0.32607257743127307, 0.17392742256872692)


def draw_angles(kappa: Tensor, dim: int, sample_shape: torch.Size) -> Tensor:
    """Angles in float64, shape ``sample_shape + kappa.shape``; differentiable once in kappa."""
    count = prod(sample_shape)
    uniform = torch.rand(kappa.numel(), count, dtype=torch.float64, device=kappa.device)
    angles: Tensor = _invert_distribution(kappa.double().reshape(-1), uniform, dim)
    return angles.T.reshape(sample_shape + kappa.shape)


class _InverseDistribution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, uniform: Tensor, dim: int) -> Tensor:
        rows = max(1, _BLOCK // (len(_NODES) * max(_CELLS, uniform.shape[1])))
        parts = zip(torch.split(kappa, rows), torch.split(uniform, rows), strict=True)
        blocks = [_invert(k, u, dim) for k, u in parts]
        angles, slopes = (torch.cat(block) for block in zip(*blocks, strict=True))
        ctx.save_for_backward(slopes)
        return angles

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (grads[0] * slopes).sum(1), None, None


_invert_distribution: Callable[..., Tensor] = _InverseDistribution.apply


class _Density:
    """exp(kappa (cos a - cos mode)) (sin a / sin mode)^(d-2), one kappa per row."""

    def __init__(self, kappa: Tensor, dim: int) -> None:
        self.kappa, self.power = kappa, dim - 2
        root = self.power + (self.power**2 + 4 * kappa * kappa).sqrt()
        cosine = 2 * kappa / root.clamp(min=1e-300)
        self.sine = (2 * self.power / root.clamp(min=1e-300)).sqrt()
        self.mode = torch.atan2(self.sine, cosine)
        curvature = kappa * cosine + (root / 2 if self.power else 0)
        self.width = _HALF_WIDTH * curvature.rsqrt()

    def __call__(self, angle: Tensor) -> tuple[Tensor, Tensor]:
        """The density and cos a - cos mode, at angles of shape (rows, ...)."""
        kappa, mode, sine = (v.view(-1, *[1] * (angle.ndim - 1)) for v in (self.kappa, self.mode, self.sine))
        offset = -2 * torch.sin((angle + mode) / 2) * torch.sin((angle - mode) / 2)
        exponent = kappa * offset
        if self.power:
            exponent = exponent + self.power * torch.log(torch.sin(angle) / sine)
        return exponent.exp(), offset

    def integrate(self, start: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """The density, and the density times the offset, integrated over [start, start + length]."""
        nodes, weights = start.new_tensor(_NODES), start.new_tensor(_WEIGHTS)
        density, offset = self(start.unsqueeze(-1) + length.unsqueeze(-1) * nodes)
        return length * (density @ weights), length * ((density * offset) @ weights)


def _invert(kappa: Tensor, uniform: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Angles (rows, count) where the distribution function is ``uniform``, and their slopes in kappa."""
    density = _Density(kappa, dim)
    low = (density.mode - density.width).clamp(min=0)
    high = (density.mode + density.width).clamp(max=pi)
    cell = ((high - low) / _CELLS).unsqueeze(1)
    starts = low.unsqueeze(1) + cell * torch.arange(_CELLS, dtype=low.dtype, device=low.device)
    mass, moment = density.integrate(starts, cell.expand_as(starts))
    below, moment_below = (torch.nn.functional.pad(v.cumsum(1), (1, 0)) for v in (mass, moment))
    total, mean = below[:, -1:], moment_below[:, -1:] / below[:, -1:]

    target = uniform * total
    index = torch.searchsorted(below.contiguous(), target, right=True).sub(1).clamp(0, _CELLS - 1)
    start, rest = starts.gather(1, index), target - below.gather(1, index)
    step = cell * (rest / mass.gather(1, index)).clamp(0, 1)
    for _ in range(_NEWTON_STEPS):
        miss = density.integrate(start, step)[0] - rest
        slope = density(start + step)[0].clamp(min=1e-300)
        step = torch.minimum((step - miss / slope).clamp(min=0), cell)
    part, part_moment = density.integrate(start, step)
    # d/dkappa of the distribution function, times `total`: the integral of (cos a - mean cosine) up to the
    # angle.
    change = (moment_below.gather(1, index) + part_moment) - mean * (below.gather(1, index) + part)
    angle = start + step
    return angle, -change / density(angle)[0].clamp(min=1e-300)
