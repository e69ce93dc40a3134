"""SphereFace2: one logistic question per class, is it this one or not, instead of one softmax over all."""

from math import exp, log, sqrt

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from spherecf.errors import InputError
from spherecf.losses._angles import Gradient, apply_margin
from spherecf.losses._margin import Margin, Number


def sphereface2_logit(
    cosine: Float[Tensor, "*batch"],
    genuine: bool,
    margin: float | int = 0.4,
    t: float | int = 3.0,
    gradient: Gradient = "exact",
) -> Float[Tensor, "*batch"]:
    """g(cos) - m for the true class, g(cos) + m for the others, with g(c) = 2 ((c + 1) / 2)^t - 1.

    g spreads the cosines, most of which are near 0, over more of [-1, 1] (Wen et al., ICLR 2022, section 3;
    with the additive margin, SphereFace2-C).

    Args:
        cosine: cosines to a prototype, any shape.
        genuine: whether it is the prototype of the true class.
        margin: m >= 0, a cosine.
        t: exponent, >= 1.
        gradient: "exact", or "straight": derivative 1 instead of t ((c + 1) / 2)^(t-1), as the authors' code.

    Example:
        >>> sphereface2_logit(torch.tensor([1.0, 0.0]), genuine=True)
        tensor([ 0.6000, -1.1500])
    """
    if not (margin >= 0 and t >= 1):
        raise InputError(f"sphereface2: expected margin >= 0 and t >= 1, got {margin} and {t}.")
    shift = -margin if genuine else margin
    return apply_margin(lambda c: 2 * ((c + 1) / 2).clamp(min=0) ** t - 1 + shift, cosine, gradient)


def sphereface2(
    cosine: Float[Tensor, "*batch"],
    genuine: bool,
    bias: Float[Tensor, ""] | float | int = 0.0,
    scale: float | int = 40.0,
    margin: float | int = 0.4,
    balance: float | int = 0.7,
    t: float | int = 3.0,
    gradient: Gradient = "exact",
) -> Float[Tensor, "*batch"]:
    """SphereFace2 of Wen et al., ICLR 2022, section 3: the loss of each cosine; a sample's loss is the sum.

        l/r log(1 + exp(-r (g(cos) - m) - b))        for the true class,
        (1 - l)/r log(1 + exp(r (g(cos) + m) + b))   for each of the others, g as in `sphereface2_logit`.

    Args:
        cosine: cosines to a prototype, any shape.
        genuine: whether it is the prototype of the true class.
        bias: b, learned; where to start is `sphereface2_bias`.
        scale: r > 0.
        margin, t, gradient: as in `sphereface2_logit`.
        balance: l in (0, 1), the weight of the true class.

    Example:
        >>> sphereface2(torch.tensor([0.9, 0.1]), genuine=True)
        tensor([5.9603e-08, 7.4708e-01])
    """
    if not (scale > 0 and 0 < balance < 1):
        raise InputError(f"sphereface2: expected scale > 0 and 0 < balance < 1, got {scale} and {balance}.")
    logit = scale * sphereface2_logit(cosine, genuine, margin, t, gradient) + bias
    weight = balance if genuine else 1 - balance
    return -weight / scale * logsigmoid(logit if genuine else -logit)


def sphereface2_bias(
    identities: int,
    scale: float | int = 40.0,
    margin: float | int = 0.4,
    balance: float | int = 0.7,
    t: float | int = 3.0,
) -> float:
    """The bias that minimises `sphereface2` while all cosines are 0, as they are when training starts.

    With z = l / ((1 - l) (identities - 1)) and the logits y and o of the true and the other classes at cosine
    0, the slope vanishes where u = e^b solves e^(y+o) u^2 + e^o (1 - z) u - z = 0.

    Example:
        >>> round(sphereface2_bias(85742), 3)
        3.488
    """
    if identities < 2:
        raise InputError(f"sphereface2_bias: expected at least 2 identities, got {identities}.")
    z = balance / ((1 - balance) * (identities - 1))
    middle = 2 * 0.5**t - 1
    y, o = scale * (middle - margin), scale * (middle + margin)
    # The positive root, written so that nothing cancels where z is small, nor where it is large.
    root = sqrt((1 - z) ** 2 + 4 * z * exp(y - o))
    if z <= 1:
        return log(2 * z / (1 - z + root)) - o
    return log((z - 1 + root) / 2) - y


class SphereFace2(Margin):
    """`sphereface2` with its learned bias: Wen et al., ICLR 2022.

    ``weight`` multiplies the loss, whose gradients are far smaller than a softmax's at scale 64; the authors
    train with 50. The bias starts at ``start``: pass ``sphereface2_bias(identities)``.

    Example:
        >>> SphereFace2(start=sphereface2_bias(1000)).bias
        Parameter containing:
        tensor(7.9429, requires_grad=True)
    """

    kind = "sphereface2"
    binary = True

    def __init__(
        self,
        margin: Number = 0.4,
        balance: Number = 0.7,
        t: Number = 3.0,
        start: Number = 0.0,
        weight: Number = 50.0,
        scale: Number = 40.0,
        gradient: Gradient = "exact",
    ) -> None:
        super().__init__(scale, gradient)
        self.margin, self.balance, self.t, self.start, self.weight = margin, balance, t, start, weight
        self.bias = nn.Parameter(torch.tensor(float(start)))

    def positive(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Loss of the true class."""
        return self._loss(cosine, True)

    def negative(self, cosine: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
        """Loss of each other class."""
        return self._loss(cosine, False)

    def _loss(self, cosine: Tensor, genuine: bool) -> Tensor:
        options = (self.scale, self.margin, self.balance, self.t, self.gradient)
        return self.weight * sphereface2(cosine, genuine, self.bias, *options)
