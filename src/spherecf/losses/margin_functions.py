"""Angles from cosines with finite gradients, and the margins made of them: fixed and adaptive."""

from collections.abc import Callable
from math import cos, inf, pi, sin
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
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


def arcface(
    cosine: Float[Tensor, "*batch"], margin: float | int = 0.5, gradient: Gradient = "exact"
) -> Float[Tensor, "*batch"]:
    """ArcFace of Deng et al., CVPR 2019, eq. 3:

        cos(theta + m)         for theta < pi - m,
        cos(theta) - m sin m   from there on, where cos(theta + m) would rise again.

    Falls with theta everywhere. At pi - m it is not continuous: it jumps from -1 down to -cos m - m sin m
    (-1.117 for m = 0.5), by about m^2 / 2. The exact derivative in the cosine is sin(theta + m) / sin theta
    before the jump and 1 after it. As theta goes to 0 it grows like sin m / theta; the derivative of the
    cosine in the embedding shrinks like theta there, so that the product stays bounded. A cosine that has
    rounded to 1 or more gets the derivative of the largest number below 1.

    Args:
        cosine: cosine to the true prototype, any shape. Half precision is computed in float32.
        margin: m in radians, 0 <= m < pi.
        gradient: "exact", or "straight": the same values with derivative 1, as code gets that changes the
            cosine in place without recording it.

    Raises:
        InputError: a margin outside its range, an unknown gradient, or integers for cosines.

    Example:
        >>> arcface(torch.tensor([1.0, 0.5, -0.9]))
        tensor([ 0.8776,  0.0236, -1.1397])
    """
    if not 0 <= margin < pi:
        raise InputError(f"arcface: expected a margin in radians, 0 <= margin < pi, got {margin}.")
    return apply_margin(lambda c: add_angle(c, float(margin)), cosine, gradient)


def cosface(cosine: Float[Tensor, "*batch"], margin: float | int = 0.35) -> Float[Tensor, "*batch"]:
    """CosFace of H. Wang et al., CVPR 2018, eq. 4: cos(theta) - m. Its derivative is 1.

    Args:
        cosine: cosine to the true prototype, any shape.
        margin: m, a cosine, >= 0.

    Example:
        >>> cosface(torch.tensor([1.0, 0.5]))
        tensor([0.6500, 0.1500])
    """
    if not 0 <= margin < inf:
        raise InputError(f"cosface: expected a margin >= 0, got {margin}.")
    return widen(cosine) - margin


def combined(
    cosine: Float[Tensor, "*batch"],
    m1: float | int = 1.0,
    m2: float | int = 0.3,
    m3: float | int = 0.2,
    gradient: Gradient = "exact",
) -> Float[Tensor, "*batch"]:
    """All three margins, cos(m1 theta + m2) - m3: Deng et al., CVPR 2019, eq. 4.

    Past pi, with m1 = 1 it goes on as `arcface`. With any other m1 as SphereFace (Liu et al., CVPR 2017,
    eq. 7): (-1)^k cos(phi) - 2 k - m3, with phi = m1 theta + m2 and k = floor(phi / pi), which is continuous
    and has the derivative m1 |sin phi| / sin theta.

    Args:
        cosine: cosine to the true prototype, any shape.
        m1: factor of the angle, > 0; SphereFace is (m1, 0, 0).
        m2: radians, 0 <= m2 < pi; ArcFace is (1, m2, 0).
        m3: a cosine, >= 0; CosFace is (1, 0, m3).
        gradient: as in `arcface`.

    Example:
        >>> combined(torch.tensor([1.0, 0.5]), m1=1.35, m2=0, m3=0)  # SphereFace
        tensor([1.0000, 0.1564])
    """
    if not 0 < m1 < inf:
        raise InputError(f"combined: expected a factor m1 > 0 of the angle, got {m1}.")
    if m1 == 1:
        return cosface(arcface(cosine, m2, gradient), m3)
    if not 0 <= m2 < pi:
        raise InputError(f"combined: expected m2 in radians, 0 <= m2 < pi, got {m2}.")
    return cosface(apply_margin(lambda c: multiply(c, float(m1), float(m2)), cosine, gradient), m3)


def add_angle(cosine: Tensor, margin: Tensor | float) -> Tensor:
    """The formula of `arcface`, also with one margin per sample."""
    if isinstance(margin, Tensor):
        seam, drop = -torch.cos(margin), margin * torch.sin(margin)
        return torch.where(cosine > seam, rotate(cosine, margin), cosine - drop)
    return torch.where(cosine > -cos(margin), rotate(cosine, margin), cosine - margin * sin(margin))


NORM_RANGE = (1e-3, 100.0)
"""AdaFace: norms are taken into this range before anything is computed of them."""


def adaface(
    cosine: Float[Tensor, "*batch"],
    norm: Float[Tensor, "*batch"],
    mean: Float[Tensor, ""] | float | int,
    std: Float[Tensor, ""] | float | int,
    margin: float | int = 0.4,
    h: float | int = 0.333,
    gradient: Gradient = "exact",
) -> Float[Tensor, "*batch"]:
    """AdaFace of Kim et al., CVPR 2022, section 3.3: the norm, a measure of quality, decides which margin.

        z = clip((|x| - mean) / (std / h), -1, 1)
        cos(theta + g_angle) - g_add,    g_angle = -m z,    g_add = m z + m

    z = -1 is ArcFace, 0 is CosFace, 1 a negative angular margin: hard samples weigh more if they are good.
    theta + g_angle is clipped to [0, pi], and there the exact derivative is 0. z is a constant: no gradient
    goes to the norm.

    Args:
        cosine: cosine to the true prototype, any shape.
        norm: length of the raw embedding, the same shape; taken into [0.001, 100].
        mean, std: running statistics of the norms.
        margin: m >= 0.
        h: concentration, > 0; z is unclipped within 1/h standard deviations of the mean.
        gradient: as in `arcface`.

    Example:
        >>> adaface(torch.full((3,), 0.5), torch.tensor([0.0, 20.0, 40.0]), mean=20.0, std=5.0)
        tensor([ 0.1233,  0.1000, -0.0022])
    """
    if not (0 <= margin < torch.pi and h > 0):
        raise InputError(f"adaface: expected 0 <= margin < pi and h > 0, got {margin} and {h}.")
    deviation = (widen(norm.detach()).clamp(*NORM_RANGE) - mean) * h
    tiny = torch.finfo(deviation.dtype).tiny
    z = (deviation / torch.as_tensor(std).clamp(min=tiny).to(deviation)).clamp(-1, 1)
    return apply_margin(lambda c: _clipped_angle(c, -margin * z) - margin * (z + 1), cosine, gradient)


def _clipped_angle(cosine: Tensor, angle: Tensor) -> Tensor:
    """cos(clip(theta + angle, 0, pi)), |angle| < pi."""
    edge, one = torch.cos(angle), torch.ones_like(cosine)
    rotated = torch.where((angle < 0) & (cosine > edge), one, rotate(cosine, angle))
    return torch.where((angle > 0) & (cosine < -edge), -one, rotated)


def magface(
    cosine: Float[Tensor, "*batch"],
    norm: Float[Tensor, "*batch"],
    lower_margin: float | int = 0.45,
    upper_margin: float | int = 0.8,
    lower_norm: float | int = 10.0,
    upper_norm: float | int = 110.0,
    gradient: Gradient = "exact",
) -> Float[Tensor, "*batch"]:
    """MagFace of Meng et al., CVPR 2021, section 3.2: ArcFace whose margin grows with the norm a,

        cos(theta + m(a)),    m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a),    a clamped to [l_a, u_a].

    Goes on past pi - m(a) as `arcface`. The gradient in the norm, -m'(a) sin(theta + m), is part of the
    method (0 where the norm is clamped) and stays with "straight", which concerns the cosine only. Add
    `magface_penalty`, or the norms only shrink.

    Args:
        cosine: cosine to the true prototype, any shape.
        norm: length a of the raw embedding, the same shape.
        lower_margin, upper_margin: l_m and u_m, radians, 0 <= l_m <= u_m < pi.
        lower_norm, upper_norm: l_a and u_a, 0 < l_a < u_a.
        gradient: as in `arcface`.

    Example:
        >>> magface(torch.full((3,), 0.5), torch.tensor([5.0, 60.0, 200.0]))
        tensor([ 0.0735, -0.1012, -0.2729])
    """
    if not (0 <= lower_margin <= upper_margin < torch.pi and 0 < lower_norm < upper_norm):
        raise InputError(
            "magface: expected 0 <= lower_margin <= upper_margin < pi and 0 < lower_norm < upper_norm, got "
            f"{lower_margin}, {upper_margin}, {lower_norm}, {upper_norm}."
        )
    slope = (upper_margin - lower_margin) / (upper_norm - lower_norm)
    margin = lower_margin + slope * (widen(norm).clamp(lower_norm, upper_norm) - lower_norm)
    return apply_margin(lambda c: add_angle(c, margin), cosine, gradient)


def magface_penalty(
    norm: Float[Tensor, "*batch"], lower_norm: float | int = 10.0, upper_norm: float | int = 110.0
) -> Float[Tensor, "*batch"]:
    """g(a) = 1 / a + a / u_a^2 of Meng et al., CVPR 2021, section 3.2, a clamped to [l_a, u_a].

    Falls up to u_a: it pulls norms up, most where they are small.

    Example:
        >>> magface_penalty(torch.tensor([10.0, 110.0]))
        tensor([0.1008, 0.0182])
    """
    a = widen(norm).clamp(lower_norm, upper_norm)
    return 1 / a + a / upper_norm**2


def curricularface_others(
    cosine: Float[Tensor, "batch classes"],
    target_cosine: Float[Tensor, " batch"],
    t: Float[Tensor, ""] | float | int,
    margin: float | int = 0.5,
) -> Float[Tensor, "batch classes"]:
    """CurricularFace of Huang et al., CVPR 2020, section 3.2: logits of the wrong classes,

        cos_j             if cos_j <= T   (easy),
        cos_j (t + cos_j) if cos_j > T    (hard),    T = arcface(cos_y, m).

    t, the running mean of the target cosines, starts at 0: hard rivals weigh little at first, more later.
    Which rivals are hard is a constant for the gradient.

    Args:
        cosine: cosines to the wrong prototypes, (batch, classes).
        target_cosine: cosine to the true prototype, (batch,).
        t: running mean.
        margin: m of the target logit, which is `arcface`.

    Example:
        >>> curricularface_others(torch.tensor([[0.1, 0.4]]), torch.tensor([0.6]), t=0.3)
        tensor([[0.1000, 0.2800]])
    """
    cosine = widen(cosine)
    hard = cosine > arcface(target_cosine.detach(), margin).unsqueeze(-1)
    return torch.where(hard, cosine * (t + cosine), cosine)
