"""Fixed margins: the logit of the true class as a function of its cosine."""

from math import cos, inf, pi, sin

import torch
from jaxtyping import Float
from torch import Tensor

from spherecf.errors import InputError
from spherecf.losses._angles import Gradient, apply_margin, multiply, rotate, widen


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
