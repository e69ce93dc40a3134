"""Angles from cosines, with gradients that stay finite: the parts of every margin."""

from collections.abc import Callable
from math import cos, sin
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from spherecf.errors import InputError

Gradient = Literal["exact", "straight"]


def rotate(cosine: Tensor, margin: Tensor | float) -> Tensor:
    """cos(theta + m) = cos theta cos m - sin theta sin m, for every theta and m.

    The derivative in the cosine, sin(theta + m) / sin theta, is unbounded at 0 and pi. A cosine that has
    rounded to 1 or beyond gets the derivative of the largest number below 1 (sin theta = 3.5e-4 in float32,
    1.5e-8 in float64), and -1 likewise; nothing else is touched, the value least of all.
    """
    if isinstance(margin, Tensor):
        return cosine * torch.cos(margin) - _sine(cosine) * torch.sin(margin)
    return cosine * cos(margin) - _sine(cosine) * sin(margin)


def multiply(cosine: Tensor, factor: float, margin: float) -> Tensor:
    """(-1)^k cos(phi) - 2 k, k = floor(phi / pi), phi = factor theta + margin: cos(phi), continued so that it
    falls with theta without a jump. The derivative is bounded as in `rotate`."""
    return _multiple(cosine, factor, margin)


def apply_margin(function: Callable[[Tensor], Tensor], cosine: Tensor, gradient: Gradient) -> Tensor:
    """function(cosine) with its own derivative ("exact") or with derivative 1 in the cosine ("straight").

    What else the function depends on keeps its derivative. Half precision is widened to float32.
    """
    cosine = widen(cosine)
    if gradient == "exact":
        return function(cosine)
    if gradient == "straight":
        fixed = cosine.detach()
        return function(fixed) + (cosine - fixed)
    raise InputError(f"gradient: expected one of {get_args(Gradient)}, got {gradient!r}.")


def widen(x: Tensor) -> Tensor:
    """float32 or float64 as it is, half precision as float32."""
    if not x.is_floating_point():
        raise InputError(f"expected a floating-point tensor, got {x.dtype}. Convert it with .float().")
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


class _Sine(torch.autograd.Function):
    """sin theta = sqrt(1 - cos^2), without cancellation; derivative -cos / sin."""

    @staticmethod
    def forward(ctx: Any, cosine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine)
        return ((1 - cosine) * (1 + cosine)).clamp(min=0).sqrt()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (cosine,) = ctx.saved_tensors
        slope: Tensor = -cosine / _sine(cosine).clamp(min=torch.finfo(cosine.dtype).eps ** 0.5)
        return grads[0] * slope


class _Multiple(torch.autograd.Function):
    """The continued cosine of a multiple angle; derivative factor |sin phi| / sin theta."""

    @staticmethod
    def forward(ctx: Any, cosine: Tensor, factor: float, margin: float) -> Tensor:
        ctx.save_for_backward(cosine)
        ctx.factor, ctx.margin = factor, margin
        phi = factor * torch.acos(cosine.clamp(-1, 1)) + margin
        turns = torch.floor(phi / torch.pi)
        return (1 - 2 * (turns % 2)) * torch.cos(phi) - 2 * turns

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (cosine,) = ctx.saved_tensors
        # Both angles of the same cosine, so that the ratio is right where both sines vanish.
        below_one = 1 - torch.finfo(cosine.dtype).eps / 2
        inside = cosine.clamp(-below_one, below_one)
        phi = ctx.factor * torch.acos(inside) + ctx.margin
        return grads[0] * ctx.factor * torch.sin(phi).abs() / _sine(inside), None, None


_sine: Callable[[Tensor], Tensor] = _Sine.apply
_multiple: Callable[[Tensor, float, float], Tensor] = _Multiple.apply
