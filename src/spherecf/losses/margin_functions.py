"""Functions of an angle given by its cosine, with finite gradients, and the margin formulas built on them."""

from collections.abc import Callable
from math import cos, inf, pi, sin
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.common.arrays import Array, match_input_type, widen
from spherecf.errors import InputError

Gradient = Literal["exact", "straight"]


def rotate(cosine: Tensor, margin: Tensor | float) -> Tensor:
    """cos(theta + m) = cos theta cos m - sin theta sin m, for every theta and m.

    The derivative in the cosine, sin(theta + m) / sin theta, is unbounded at theta = 0 and pi. It is
    therefore capped: a cosine that has rounded to 1 or more has the derivative of the largest float below 1
    (sin theta = 3.5e-4 in float32, 1.5e-8 in float64), and likewise at -1. Values and all other derivatives
    are exact.
    """
    if isinstance(margin, Tensor):
        return cosine * torch.cos(margin) - _sine(cosine) * torch.sin(margin)
    return cosine * cos(margin) - _sine(cosine) * sin(margin)


def multiply_angle(cosine: Tensor, factor: float, margin: float) -> Tensor:
    """cos(phi), phi = factor theta + margin, continued beyond pi to decrease with theta without a jump:

        (-1)^k cos(phi) - 2 k,    k = floor(phi / pi).

    The derivative is capped as in `rotate`.
    """
    return _multiply_angle(cosine, factor, margin)


def apply_margin(function: Callable[[Tensor], Tensor], cosine: Tensor, gradient: Gradient) -> Tensor:
    """function(cosine), with its own derivative in the cosine ("exact") or with derivative 1 ("straight").

    Derivatives in other variables of the function are unchanged. Half precision is widened to float32.
    """
    cosine = widen(cosine, "cosine")
    if gradient == "exact":
        return function(cosine)
    if gradient == "straight":
        constant = cosine.detach()
        return function(constant) + (cosine - constant)  # the bracket is 0 and has derivative 1
    raise InputError(f"gradient: expected one of {get_args(Gradient)}, got {gradient!r}.")


class _Sine(torch.autograd.Function):
    """sin theta = sqrt(1 - cos^2), without cancellation; derivative -cos / sin."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cosine: Tensor) -> Tensor:
        return ((1 - cosine) * (1 + cosine)).clamp(min=0).sqrt()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (cosine,) = ctx.saved_tensors
        slope: Tensor = -cosine / _sine(cosine).clamp(min=torch.finfo(cosine.dtype).eps ** 0.5)
        return grads[0] * slope


class _MultiplyAngle(torch.autograd.Function):
    """`multiply_angle`; its derivative is factor |sin phi| / sin theta."""

    generate_vmap_rule = True

    @staticmethod
    def forward(cosine: Tensor, factor: float, margin: float) -> Tensor:
        phi = factor * torch.acos(cosine.clamp(-1, 1)) + margin
        k = torch.floor(phi / torch.pi)
        return (1 - 2 * (k % 2)) * torch.cos(phi) - 2 * k

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        cosine, ctx.factor, ctx.margin = inputs
        ctx.save_for_backward(cosine)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (cosine,) = ctx.saved_tensors
        # Both sines come from the same clamped cosine, so that their ratio is right where both vanish.
        below_one = 1 - torch.finfo(cosine.dtype).eps / 2
        inside = cosine.clamp(-below_one, below_one)
        phi = ctx.factor * torch.acos(inside) + ctx.margin
        return grads[0] * ctx.factor * torch.sin(phi).abs() / _sine(inside), None, None


_sine: Callable[[Tensor], Tensor] = _Sine.apply
_multiply_angle: Callable[[Tensor, float, float], Tensor] = _MultiplyAngle.apply


def arcface(
    cosine: Float[Array, "*batch"], margin: float | int = 0.5, gradient: Gradient = "exact"
) -> Float[Array, "*batch"]:
    """The target logit of ArcFace, a margin added to the angle (Deng et al., CVPR 2019, eq. 3):

        cos(theta + m)         for theta < pi - m,
        cos(theta) - m sin m   for larger theta, where cos(theta + m) would increase again.

    It decreases with theta everywhere, but is not continuous: at pi - m it jumps from -1 down to -cos m - m
    sin m (-1.117 for m = 0.5), by about m^2 / 2. The exact derivative in the cosine is sin(theta + m) / sin
    theta before the jump and 1 after it. As theta goes to 0 it grows like sin m / theta, while the derivative
    of the cosine in the embedding shrinks like theta, so that their product stays bounded. A cosine that has
    rounded to 1 or more has the derivative of the largest float below 1.

    Args:
        cosine: cosine to the true prototype, any shape, a tensor or a NumPy array. Half precision is computed
            in float32.
        margin: m in radians, 0 <= m < pi.
        gradient: "exact", or "straight": the same values with derivative 1, as in code that changes the
            cosine in place without recording the change for autograd.

    Raises:
        InputError: the margin is out of range, the gradient is unknown, or the cosines are no floats.

    Example:
        >>> arcface(torch.tensor([1.0, 0.5, -0.9]))
        tensor([ 0.8776,  0.0236, -1.1397])
    """
    if not 0 <= margin < pi:
        raise InputError(f"arcface: expected a margin in radians, 0 <= margin < pi, got {margin}.")
    c = widen(cosine, "cosine")
    return match_input_type(apply_margin(lambda c: add_angle(c, float(margin)), c, gradient), cosine)


def cosface(cosine: Float[Tensor, "*batch"], margin: float | int = 0.35) -> Float[Tensor, "*batch"]:
    """The target logit of CosFace, cos(theta) - m (H. Wang et al., CVPR 2018, eq. 4); its derivative is 1.

    Args:
        cosine: cosine to the true prototype, any shape.
        margin: m, a cosine, 0 <= m < inf.

    Raises:
        InputError: the margin is out of range.

    Example:
        >>> cosface(torch.tensor([1.0, 0.5]))
        tensor([0.6500, 0.1500])
    """
    if not 0 <= margin < inf:
        raise InputError(f"cosface: expected a margin >= 0, got {margin}.")
    return widen(cosine, "cosine") - margin


def combined(
    cosine: Float[Tensor, "*batch"],
    m1: float | int = 1.0,
    m2: float | int = 0.3,
    m3: float | int = 0.2,
    gradient: Gradient = "exact",
) -> Float[Tensor, "*batch"]:
    """The target logit with all three margins, cos(m1 theta + m2) - m3 (Deng et al., CVPR 2019, eq. 4).

    For phi = m1 theta + m2 beyond pi it continues as in `arcface` if m1 = 1, and otherwise as in SphereFace
    (Liu et al., CVPR 2017, eq. 7): (-1)^k cos(phi) - 2 k - m3 with k = floor(phi / pi), which is continuous
    and has the derivative m1 |sin phi| / sin theta in the cosine.

    Args:
        cosine: cosine to the true prototype, any shape.
        m1: factor of the angle, > 0; SphereFace is (m1, 0, 0).
        m2: angle in radians, 0 <= m2 < pi; ArcFace is (1, m2, 0).
        m3: a cosine, >= 0; CosFace is (1, 0, m3).
        gradient: as in `arcface`.

    Raises:
        InputError: a margin is out of range.

    Example:
        >>> combined(torch.tensor([1.0, 0.5]), m1=1.35, m2=0, m3=0)  # SphereFace
        tensor([1.0000, 0.1564])
    """
    if not 0 < m1 < inf:
        raise InputError(f"combined: expected a finite factor m1 > 0 of the angle, got {m1}.")
    if m1 == 1:
        return cosface(arcface(cosine, m2, gradient), m3)
    if not 0 <= m2 < pi:
        raise InputError(f"combined: expected m2 in radians, 0 <= m2 < pi, got {m2}.")
    return cosface(apply_margin(lambda c: multiply_angle(c, float(m1), float(m2)), cosine, gradient), m3)


def add_angle(cosine: Tensor, margin: Tensor | float) -> Tensor:
    """The formula of `arcface` for one margin, or for one margin per sample."""
    if isinstance(margin, Tensor):
        lower, offset = -torch.cos(margin), margin * torch.sin(margin)  # cos(pi - m), m sin m
        return torch.where(cosine > lower, rotate(cosine, margin), cosine - offset)
    return torch.where(cosine > -cos(margin), rotate(cosine, margin), cosine - margin * sin(margin))


NORM_RANGE = (1e-3, 100.0)
"""The range to which AdaFace clamps the norms before any other computation."""


def adaface(
    cosine: Float[Tensor, "*batch"],
    norm: Float[Tensor, "*batch"],
    mean: Float[Tensor, ""] | float | int,
    std: Float[Tensor, ""] | float | int,
    margin: float | int = 0.4,
    h: float | int = 0.333,
    gradient: Gradient = "exact",
) -> Float[Tensor, "*batch"]:
    """The target logit of AdaFace, whose margin depends on the image's quality.

    From Kim et al., CVPR 2022, section 3.3. Quality is measured by the norm of the raw embedding,
    standardised by the running statistics:

        z = clip((|x| - mean) / (std / h), -1, 1)
        cos(theta + g_angle) - g_add,    g_angle = -m z,    g_add = m z + m

    z = -1 gives ArcFace, z = 0 CosFace, and z = 1 a negative angular margin, so that hard samples have more
    weight if their quality is high. theta + g_angle is clipped to [0, pi]; where it is clipped, the exact
    derivative is 0. z is treated as a constant: no gradient flows to the norm.

    Args:
        cosine: cosine to the true prototype, any shape.
        norm: norm of the raw embedding, the same shape; clamped to [0.001, 100].
        mean, std: running mean and standard deviation of the norms.
        margin: m, 0 <= m < pi.
        h: h > 0; z is not clipped within 1/h standard deviations of the mean.
        gradient: as in `arcface`.

    Raises:
        InputError: the margin or h is out of range.

    Example:
        >>> adaface(torch.full((3,), 0.5), torch.tensor([0.0, 20.0, 40.0]), mean=20.0, std=5.0)
        tensor([ 0.1233,  0.1000, -0.0022])
    """
    if not (0 <= margin < torch.pi and h > 0):
        raise InputError(f"adaface: expected 0 <= margin < pi and h > 0, got {margin} and {h}.")
    deviation = (widen(norm, "norm").detach().clamp(*NORM_RANGE) - mean) * h
    tiny = torch.finfo(deviation.dtype).tiny
    z = (deviation / torch.as_tensor(std).clamp(min=tiny).to(deviation)).clamp(-1, 1)
    return apply_margin(lambda c: _clipped_angle(c, -margin * z) - margin * (z + 1), cosine, gradient)


def _clipped_angle(cosine: Tensor, angle: Tensor) -> Tensor:
    """cos(clip(theta + angle, 0, pi)) for |angle| < pi."""
    cos_angle, one = torch.cos(angle), torch.ones_like(cosine)
    # theta + angle < 0 means cos(theta) > cos(angle), theta + angle > pi means cos(theta) < -cos(angle).
    rotated = torch.where((angle < 0) & (cosine > cos_angle), one, rotate(cosine, angle))
    return torch.where((angle > 0) & (cosine < -cos_angle), -one, rotated)


def magface(
    cosine: Float[Tensor, "*batch"],
    norm: Float[Tensor, "*batch"],
    lower_margin: float | int = 0.45,
    upper_margin: float | int = 0.8,
    lower_norm: float | int = 10.0,
    upper_norm: float | int = 110.0,
    gradient: Gradient = "exact",
) -> Float[Tensor, "*batch"]:
    """The target logit of MagFace: ArcFace with a margin that grows with the norm a of the raw embedding.

        cos(theta + m(a)),    m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a),    a clamped to [l_a, u_a]

    (Meng et al., CVPR 2021, section 3.2). Beyond pi - m(a) it continues as in `arcface`. The gradient in the
    norm, -m'(a) sin(theta + m), is part of the method (0 where the norm is clamped); "straight" changes only
    the gradient in the cosine. Add `magface_penalty` to the loss: without it the norms only shrink.

    Args:
        cosine: cosine to the true prototype, any shape.
        norm: norm a of the raw embedding, the same shape.
        lower_margin, upper_margin: l_m and u_m in radians, 0 <= l_m <= u_m < pi.
        lower_norm, upper_norm: l_a and u_a, 0 < l_a < u_a.
        gradient: as in `arcface`.

    Raises:
        InputError: a margin or norm is out of range.

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
    margin = lower_margin + slope * (widen(norm, "norm").clamp(lower_norm, upper_norm) - lower_norm)
    return apply_margin(lambda c: add_angle(c, margin), cosine, gradient)


def magface_penalty(
    norm: Float[Tensor, "*batch"], lower_norm: float | int = 10.0, upper_norm: float | int = 110.0
) -> Float[Tensor, "*batch"]:
    """The penalty of MagFace, g(a) = 1 / a + a / u_a^2 with a clamped to [l_a, u_a].

    From Meng et al., CVPR 2021, section 3.2. It decreases up to u_a and so makes norms grow, small ones most.

    Args:
        norm: norm a of the raw embedding, any shape.
        lower_norm, upper_norm: l_a and u_a, 0 < l_a < u_a.

    Example:
        >>> magface_penalty(torch.tensor([10.0, 110.0]))
        tensor([0.1008, 0.0182])
    """
    a = widen(norm, "norm").clamp(lower_norm, upper_norm)
    return 1 / a + a / upper_norm**2


def curricularface_others(
    cosine: Float[Tensor, "batch classes"],
    target_cosine: Float[Tensor, " batch"],
    t: Float[Tensor, ""] | float | int,
    margin: float | int = 0.5,
) -> Float[Tensor, "batch classes"]:
    """The logits of the other classes in CurricularFace (Huang et al., CVPR 2020, section 3.2):

        cos_j             if cos_j <= T   (easy),
        cos_j (t + cos_j) if cos_j > T    (hard),    T = arcface(cos_y, m).

    t, the running mean of the target cosines, starts at 0, so that hard negatives have little weight at first
    and more later. No gradient flows through the choice between the two cases.

    Args:
        cosine: cosines to the prototypes of other classes, (batch, classes).
        target_cosine: cosine to the true prototype, (batch,).
        t: running mean of the target cosines.
        margin: m of the target logit, which is `arcface`.

    Example:
        >>> curricularface_others(torch.tensor([[0.1, 0.4]]), torch.tensor([0.6]), t=0.3)
        tensor([[0.1000, 0.2800]])
    """
    cosine = widen(cosine, "cosine")
    hard = cosine > arcface(widen(target_cosine, "target_cosine").detach(), margin).unsqueeze(-1)
    return torch.where(hard, cosine * (t + cosine), cosine)
