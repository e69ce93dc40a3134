"""Margins as modules with their published values as defaults, and the classification loss built on them."""

import inspect
from math import exp, inf, isfinite, log, sqrt
from numbers import Real
from typing import Any, ClassVar, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from spherecf.common.arrays import (
    AnyArray,
    Array,
    as_tensor,
    as_tensors,
    match_input_type,
    to_device,
    values_known,
    widen,
)
from spherecf.errors import InputError
from spherecf.losses.blockwise import blockwise_losses, rows_per_block
from spherecf.losses.margin_functions import (
    NORM_RANGE,
    Gradient,
    adaface,
    apply_margin,
    arcface,
    combined,
    cosface,
    curricularface_others,
    magface,
    magface_penalty,
)
from spherecf.losses.sphere_confidence import Reduction, _reduce, check_reduction

Number = float | int


class Margin(nn.Module):
    """Base class of all margins: turns cosines into unscaled logits.

    The loss of a sample is the cross-entropy of ``scale * [target, others]`` plus its `penalty`. For a
    ``binary`` margin it is `positive` of the true class plus the sum of `negative` over the other classes,
    plus the penalty.

    A subclass sets ``kind``, stores its constructor's arguments as attributes of the same names, and
    overrides the methods whose formula differs. Every method works on any subset of the rows and columns of
    the cosines, so that a classifier can be sharded over classes; only `update` needs the whole batch.

    Attributes:
        kind: the margin's name in `MARGINS`.
        binary: whether the loss is one logistic loss per class instead of a softmax.
        scale: s > 0, the factor of the logits.
        gradient: "exact", or "straight" for a derivative of 1 of the target logit with respect to its cosine.

    Example:
        >>> from torch import Tensor
        >>> class Squared(Margin):  # register it: MARGINS["squared"] = Squared
        ...     kind = "squared"
        ...
        ...     def target(self, cosine: Tensor, norm: Tensor) -> Tensor:
        ...         return cosine * cosine.abs()
        >>> Squared(scale=32).config()
        {'scale': 32, 'gradient': 'exact'}
    """

    kind: ClassVar[str]
    binary: ClassVar[bool] = False
    scale: Number
    gradient: Gradient

    def __init__(self, scale: Number = 64.0, gradient: Gradient = "exact") -> None:
        super().__init__()
        if not 0 < scale < float("inf"):
            raise InputError(f"{self.kind}: expected a finite scale > 0, got {scale}.")
        if gradient not in get_args(Gradient):
            raise InputError(f"gradient: expected one of {get_args(Gradient)}, got {gradient!r}.")
        self.scale, self.gradient = scale, gradient

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values: ``make_margin(m.kind, **m.config())`` copies ``m``.

        Running statistics and learned parameters are not among them; ``state_dict`` has those.
        """
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def extra_repr(self) -> str:
        """The constructor's arguments, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config().items())

    def update(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> None:
        """Update running statistics, once per step and before the logits; the base class has none.

        Args:
            cosine: cosines to the true prototypes (n,). They must cover the whole batch of all ranks, so that
                all ranks have the same statistics.
            norm: norms of the raw embeddings, in the same order (n,).
        """

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Unscaled logit of the true class; by default the cosine."""
        return cosine

    def others(
        self, cosine: Float[Tensor, "n classes"], target_cosine: Float[Tensor, " n"]
    ) -> Float[Tensor, "n classes"]:
        """Unscaled logits of some or all of the other classes; by default ``cosine`` itself, not a copy.

        ``target_cosine`` is the cosine to the true prototype without margin, detached.
        """
        return cosine

    @property
    def others_are_cosines(self) -> bool:
        """Whether `others` is that of the base class."""
        return type(self).others is Margin.others

    def penalty(self, norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The term added to each sample's loss; by default zero."""
        return torch.zeros_like(norm)

    def positive(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Loss of the true class; ``binary`` margins only."""
        raise NotImplementedError(f"{self.kind} is a softmax margin: use cross-entropy of target and others")

    def negative(self, cosine: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
        """Loss of each other class; ``binary`` margins only."""
        raise NotImplementedError(f"{self.kind} is a softmax margin: use cross-entropy of target and others")


class NormFace(Margin):
    """The normalised softmax without margin: F. Wang et al., ACM Multimedia 2017.

    Example:
        >>> import torch
        >>> NormFace().target(torch.tensor([0.5]), torch.tensor([20.0]))
        tensor([0.5000])
    """

    kind = "softmax"


class ArcFace(Margin):
    """`arcface`: Deng et al., CVPR 2019.

    Example:
        >>> import torch
        >>> ArcFace(margin=0.5).target(torch.tensor([0.5]), torch.tensor([20.0]))
        tensor([0.0236])
    """

    kind = "arcface"

    def __init__(self, margin: Number = 0.5, scale: Number = 64.0, gradient: Gradient = "exact") -> None:
        super().__init__(scale, gradient)
        self.margin = margin

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """cos(theta + m)."""
        return arcface(cosine, self.margin, self.gradient)


class CosFace(Margin):
    """`cosface`: H. Wang et al., CVPR 2018. The exact and the straight gradient are the same.

    Example:
        >>> import torch
        >>> CosFace(margin=0.4).target(torch.tensor([0.5]), torch.tensor([20.0]))
        tensor([0.1000])
    """

    kind = "cosface"

    def __init__(self, margin: Number = 0.35, scale: Number = 64.0, gradient: Gradient = "exact") -> None:
        super().__init__(scale, gradient)
        self.margin = margin

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """cos(theta) - m."""
        return cosface(cosine, self.margin)


class Combined(Margin):
    """`combined`: Deng et al., CVPR 2019, eq. 4. The defaults are the paper's CM1 (section 3.2).

    Example:
        >>> import torch
        >>> Combined().target(torch.tensor([0.5]), torch.tensor([20.0]))
        tensor([0.0217])
    """

    kind = "combined"

    def __init__(
        self,
        m1: Number = 1.0,
        m2: Number = 0.3,
        m3: Number = 0.2,
        scale: Number = 64.0,
        gradient: Gradient = "exact",
    ) -> None:
        super().__init__(scale, gradient)
        self.m1, self.m2, self.m3 = m1, m2, m3

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """cos(m1 theta + m2) - m3."""
        return combined(cosine, self.m1, self.m2, self.m3, self.gradient)


class SphereFace(Margin):
    """A multiple of the angle, `combined` with (m1, 0, 0): Liu et al., CVPR 2017, on normalised embeddings.

    The defaults, m1 = 1.35 and a fixed scale, are those of Deng et al., CVPR 2019.

    Example:
        >>> import torch
        >>> SphereFace().target(torch.tensor([0.5]), torch.tensor([20.0]))
        tensor([0.1564])
    """

    kind = "sphereface"

    def __init__(self, factor: Number = 1.35, scale: Number = 64.0, gradient: Gradient = "exact") -> None:
        super().__init__(scale, gradient)
        self.factor = factor

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """cos(m1 theta), continued monotonically as in `combined`."""
        return combined(cosine, self.factor, 0.0, 0.0, self.gradient)


def _checked_rate(rate: Number) -> Number:
    """The weight of a new batch, unless it is outside (0, 1]: the running statistics would diverge."""
    if not 0 < rate <= 1:
        raise InputError(f"rate: expected a weight of a new batch in (0, 1], got {rate}.")
    return rate


_RATE = 0.01  # weight of a new batch in the running statistics, as published for AdaFace and CurricularFace


class AdaFace(Margin):
    """`adaface` with running statistics of the norms, which start at mean 20, std 100: Kim et al., CVPR 2022.

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
        self.margin, self.h, self.rate = margin, h, _checked_rate(rate)
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("std", torch.tensor(100.0))

    @torch.no_grad()
    def update(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> None:
        """Move mean and standard deviation by ``rate`` towards those of the batch."""
        if len(norm) > 1:  # one sample has no standard deviation
            norm = widen(norm).clamp(*NORM_RANGE)
            _update_average(self.mean, norm.mean(), self.rate)
            _update_average(self.std, norm.std(), self.rate)

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """cos(theta + g_angle) - g_add."""
        return adaface(cosine, norm, self.mean, self.std, self.margin, self.h, self.gradient)


class MagFace(Margin):
    """`magface` with the penalty lambda_g `magface_penalty`: Meng et al., CVPR 2021.

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
        if not 0 <= lambda_g < inf:
            raise InputError(f"magface: expected a finite lambda_g >= 0, got {lambda_g}.")
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
    """`arcface` for the true class, `curricularface_others` for the other classes: Huang et al., CVPR 2020.

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
        self.rate = _checked_rate(rate)
        self.register_buffer("t", torch.tensor(0.0))

    @torch.no_grad()
    def update(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> None:
        """Move t by ``rate`` towards the batch's mean cosine to the true prototypes."""
        if len(cosine):
            _update_average(self.t, widen(cosine).mean(), self.rate)

    def others(
        self, cosine: Float[Tensor, "n classes"], target_cosine: Float[Tensor, " n"]
    ) -> Float[Tensor, "n classes"]:
        """Cosines of hard negatives are multiplied by (t + cos), the others unchanged."""
        return curricularface_others(cosine, target_cosine, self.t, self.margin)


def _update_average(statistic: Tensor, value: Tensor, rate: float) -> None:
    """One step of an exponential moving average, in place; skips NaN and infinity, which would persist."""
    statistic.copy_(torch.where(value.isfinite(), statistic.lerp(value.to(statistic), rate), statistic))


def sphereface2_logit(
    cosine: Float[Tensor, "*batch"],
    genuine: bool,
    margin: float | int = 0.4,
    t: float | int = 3.0,
    gradient: Gradient = "exact",
) -> Float[Tensor, "*batch"]:
    """Unscaled logits of SphereFace2: g(cos) - m for the true class, g(cos) + m for the others.

        g(c) = 2 ((c + 1) / 2)^t - 1

    spreads the cosines, most of which are near 0, over more of [-1, 1] (Wen et al., ICLR 2022, section 3;
    this additive margin is their SphereFace2-C).

    Args:
        cosine: cosines to a prototype, any shape.
        genuine: whether it is the prototype of the true class.
        margin: m >= 0, a cosine.
        t: exponent >= 1.
        gradient: "exact", or "straight" for a derivative of 1 instead of t ((c + 1) / 2)^(t-1), as in the
            authors' code.

    Raises:
        InputError: the margin or t is out of range.

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
    """The logistic loss of SphereFace2 for each cosine: Wen et al., ICLR 2022, section 3.

        l/r log(1 + exp(-r (g(cos) - m) - b))        for the true class,
        (1 - l)/r log(1 + exp(r (g(cos) + m) + b))   for each other class, g as in `sphereface2_logit`.

    The loss of a sample is the sum over the classes.

    Args:
        cosine: cosines to a prototype, any shape.
        genuine: whether it is the prototype of the true class.
        bias: b, learned; `sphereface2_bias` gives its initial value.
        scale: r > 0.
        margin, t, gradient: as in `sphereface2_logit`.
        balance: l in (0, 1), the weight of the true class.

    Raises:
        InputError: a value is out of range.

    Example:
        >>> sphereface2(torch.tensor([0.9, 0.1]), genuine=True)
        tensor([5.9603e-08, 7.4708e-01])
    """
    _check_sphereface2(scale, balance)
    logit = scale * sphereface2_logit(cosine, genuine, margin, t, gradient) + bias
    weight = balance if genuine else 1 - balance
    return -weight / scale * logsigmoid(logit if genuine else -logit)


def _check_sphereface2(scale: Number, balance: Number) -> None:
    if not (0 < scale < inf and 0 < balance < 1):
        raise InputError(f"sphereface2: expected scale > 0 and 0 < balance < 1, got {scale} and {balance}.")


def sphereface2_bias(
    identities: int,
    scale: float | int = 40.0,
    margin: float | int = 0.4,
    balance: float | int = 0.7,
    t: float | int = 3.0,
) -> float:
    """The initial bias of SphereFace2, which minimises `sphereface2` if all cosines are 0.

    Before training the cosines are close to 0. With z = l / ((1 - l) (identities - 1)) and the scaled logits
    y of the true class and o of the others at cosine 0, the derivative in b is zero where u = e^b solves
    e^(y+o) u^2 + e^o (1 - z) u - z = 0.

    Args:
        identities: number of classes, >= 2.
        scale, margin, balance, t: as in `sphereface2`.

    Raises:
        InputError: fewer than two identities, or another value is out of range.

    Example:
        >>> round(sphereface2_bias(85742), 3)
        3.488
    """
    if identities < 2:
        raise InputError(f"sphereface2_bias: expected at least 2 identities, got {identities}.")
    _check_sphereface2(scale, balance)
    z = balance / ((1 - balance) * (identities - 1))
    g_at_zero = 2 * 0.5**t - 1
    y, o = scale * (g_at_zero - margin), scale * (g_at_zero + margin)
    # The positive root, in the form that does not cancel: one for small z, the other for large z.
    root = sqrt((1 - z) ** 2 + 4 * z * exp(y - o))
    if z <= 1:
        return log(2 * z / (1 - z + root)) - o
    return log((z - 1 + root) / 2) - y


class SphereFace2(Margin):
    """`sphereface2` with its learned bias: Wen et al., ICLR 2022.

    ``weight`` multiplies the loss, whose gradients are far smaller than those of a softmax at scale 64; the
    authors train with 50. The bias is initialised to ``start``: pass ``sphereface2_bias(identities)``.

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
        if not (isfinite(start) and 0 < weight < inf):
            raise InputError(f"sphereface2: expected finite start and weight > 0, got {start} and {weight}.")
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


MARGINS: dict[str, type[Margin]] = {
    margin.kind: margin
    for margin in (
        NormFace, ArcFace, CosFace, Combined, SphereFace, AdaFace, MagFace, CurricularFace, SphereFace2
    )
}  # fmt: skip
"""The class of each kind of margin. Add a subclass of `Margin` here to use it by name."""


def make_margin(kind: str, **config: Any) -> Margin:
    """A new margin from its kind and its constructor's arguments.

    Args:
        kind: a key of `MARGINS`.
        config: the constructor's arguments; defaults are the published values.

    Raises:
        InputError: the kind is unknown, an argument does not exist, or a value is no number or out of range.

    Example:
        >>> make_margin("cosface", margin=0.4)
        CosFace(margin=0.4, scale=64.0, gradient='exact')
    """
    if kind not in MARGINS:
        raise InputError(f"unknown kind of margin {kind!r}; available: {', '.join(MARGINS)}")
    parameters = inspect.signature(MARGINS[kind]).parameters
    for name in config.keys() & parameters.keys():
        value = config[name]
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if isinstance(parameters[name].default, Real) and not is_number:
            raise InputError(f"{kind} margin: {name}: expected a number, got {value!r}")
    try:
        margin = MARGINS[kind](**config)
        # The formulas check their parameters: evaluate one now, so that a bad value fails before training.
        (margin.positive if margin.binary else margin.target)(torch.zeros(1), torch.ones(1))
    except TypeError as error:
        raise InputError(f"{kind} margin: arguments {config} do not fit: {error}") from error
    return margin


def margin_softmax_loss(
    embedding: Float[Array, "batch dim"],
    prototypes: Float[Array, "identities dim"],
    labels: Int[AnyArray, " batch"],
    margin: Margin,
    reduction: Reduction = "mean",
) -> Float[Array, "*out"]:
    """The margin softmax loss: cross-entropy of the scaled cosines after a margin has changed their logits.

        L_i = -log( e^(s T(cos_y)) / (e^(s T(cos_y)) + sum_{j != y} e^(s N(cos_j))) ) + penalty(|x_i|)

    cos_j is the cosine of embedding x_i to prototype j, y the true identity, T the margin's `target` and N
    its `others`. For a binary margin the loss is instead the sum over classes of `positive` and `negative`.
    If the margin is in training mode, its running statistics are updated first.

    If logits or prototypes take more than 16 MiB (128 MiB on a GPU), the logits are computed in blocks of
    identities, once in the forward and once in the backward pass, and never stored as a whole; apart from the
    gradients, memory is needed for a few blocks only. The loss can then be differentiated once, and under
    torch.autocast its products are in bfloat16, summed in float32. Under torch.compile all logits are stored,
    in one graph.

    Args:
        embedding: raw outputs of the backbone, (batch, dim).
        prototypes: raw rows of the classifier, (identities, dim).
        labels: identities, 0 <= label < identities, (batch,).
        margin: an instance of one of `MARGINS`.
        reduction: "mean", "sum" or "none" (one loss per sample).

    Raises:
        InputError: types, shapes or devices do not fit, the margin is none, or labels are out of range (not
            checked under torch.compile).

    Example:
        >>> from spherecf.losses import ArcFace
        >>> embedding, prototypes = torch.tensor([[3.0, 4.0]]), torch.eye(2)
        >>> margin_softmax_loss(embedding, prototypes, torch.tensor([1]), ArcFace(margin=0.5, scale=8))
        tensor(1.6889)
    """
    x, w = as_tensors(embedding=embedding, prototypes=prototypes)
    y = to_device(as_tensor(labels, "labels", kinds="i"), x.device)
    if x.ndim != 2 or w.shape[1:] != x.shape[1:] or y.shape != x.shape[:1]:
        raise InputError(
            "margin_softmax_loss: expected embedding (batch, dim), prototypes (identities, dim) and labels "
            f"(batch,), got {tuple(x.shape)}, {tuple(w.shape)} and {tuple(y.shape)}."
        )
    _check_labels(y, len(w))
    if not torch.compiler.is_compiling() and len(w) > rows_per_block(len(y), w.shape[1], w.device):
        products = torch.bfloat16 if torch.is_autocast_enabled(x.device.type) else None
        loss = blockwise_losses(x, w, y, margin, products).losses
    else:
        loss = _dense_losses(widen(x), w, y.long(), margin)
    return match_input_type(_reduce(loss, reduction), embedding, prototypes)


def _dense_losses(x: Tensor, prototypes: Tensor, labels: Tensor, margin: Margin) -> Tensor:
    """The losses (batch,) of raw embeddings x (batch, dim), from all logits at once."""
    norm = x.norm(dim=1)  # (batch,)
    rows = normalize(widen(prototypes).to(x.dtype), dim=1)
    cosine = widen(normalize(x, dim=1) @ rows.T)  # (batch, identities)
    column = labels.unsqueeze(1)  # (batch, 1)
    target_cosine = cosine.gather(1, column).squeeze(1)  # (batch,)
    if margin.training:
        margin.update(target_cosine.detach(), norm.detach())
    if margin.binary:
        others = margin.negative(cosine).scatter(1, column, 0.0).sum(1)
        loss = margin.positive(target_cosine, norm) + others
    else:
        others = margin.others(cosine, target_cosine.detach())
        logits = others.scatter(1, column, margin.target(target_cosine, norm).unsqueeze(1))
        loss = cross_entropy(margin.scale * logits, labels, reduction="none")
    return loss + margin.penalty(norm)


class MarginSoftmaxLoss(nn.Module):
    """`margin_softmax_loss` as a module that holds the classifier, one prototype per identity.

    Args:
        identities: number of classes.
        dim: dimension of the embedding.
        margin: an instance of one of `MARGINS`; its running statistics are part of the module's state.
        reduction: "mean", "sum" or "none".

    Attributes:
        weight: the prototypes, (identities, dim), initialised from a normal distribution with standard
            deviation 0.01.

    Raises:
        InputError: identities or dim is below 1, no margin, or an unknown reduction; when called, as
            `margin_softmax_loss`.

    Example:
        >>> from spherecf.losses import ArcFace
        >>> loss = MarginSoftmaxLoss(identities=10, dim=4, margin=ArcFace())
        >>> loss(torch.randn(3, 4), torch.tensor([0, 9, 2])).shape, list(loss.state_dict())
        (torch.Size([]), ['weight'])
    """

    def __init__(self, identities: int, dim: int, margin: Margin, reduction: Reduction = "mean") -> None:
        super().__init__()
        if identities < 1 or dim < 1:
            raise InputError(f"expected identities and dim of at least 1, got {identities} and {dim}")
        if not isinstance(margin, Margin):
            raise InputError(f"margin: expected an instance of one of MARGINS, got {margin!r}.")
        check_reduction(reduction)
        self.margin, self.reduction = margin, reduction
        self.weight = nn.Parameter(torch.empty(identities, dim).normal_(0, 0.01))

    def forward(
        self, embedding: Float[AnyArray, "batch dim"], labels: Int[AnyArray, " batch"]
    ) -> Float[Tensor, "*out"]:
        """The loss of raw embeddings (batch, dim) with the identities ``labels`` (batch,)."""
        x = as_tensor(embedding, "embedding", self.weight.device)
        return margin_softmax_loss(x, self.weight, labels, self.margin, self.reduction)


def _check_labels(labels: Tensor, identities: int) -> None:
    if not values_known(labels):
        return
    low, high = labels < 0, labels >= identities
    if bool((low | high).any()):
        raise InputError(
            f"margin_softmax_loss: expected labels in 0..{identities - 1}, one per row of prototypes; of "
            f"{len(labels)} labels {int(low.sum())} are negative and {int(high.sum())} too large (from "
            f"{int(labels.min())} to {int(labels.max())}). Leave out unlabelled samples, and check that "
            "prototypes and labels belong to the same data set."
        )
