"""What a margin softmax does to the cosines before the softmax: the interface of all margins."""

import inspect
from typing import Any, ClassVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spherecf.errors import InputError
from spherecf.losses._angles import Gradient

Number = float | int


class Margin(nn.Module):
    """Base of all margins: cosines in, unscaled logits out.

    The loss of a sample is the cross-entropy of ``scale * [target, others]`` plus its `penalty`; of a
    ``binary`` margin, `positive` of the true class plus the sum of `negative` over the others, plus the
    penalty. A subclass sets ``kind``, keeps its constructor's arguments as attributes of the same names, and
    overrides what it changes. Nothing here sees more than some rows and columns of the cosines, so a
    classifier may be sharded over classes; only `update` wants the whole batch.

    Attributes:
        kind: its name in `MARGINS`.
        binary: one logistic loss per class instead of a softmax.
        scale: s, what logits are multiplied with.
        gradient: "exact", or "straight": derivative 1 of the target logit in its cosine.

    Example:
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
        """The constructor's arguments, JSON-able: ``make_margin(m.kind, **m.config())`` is its twin."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config().items())

    def update(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> None:
        """Renew running statistics: once per step, before the logits; here there are none.

        Args:
            cosine: cosines to the true prototypes, of the whole batch of all ranks, so that all ranks keep
                the same statistics.
            norm: lengths of the raw embeddings, in the same order.
        """

    def target(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Unscaled logit of the true class: here the cosine."""
        return cosine

    def others(
        self, cosine: Float[Tensor, "n classes"], target_cosine: Float[Tensor, " n"]
    ) -> Float[Tensor, "n classes"]:
        """Unscaled logits of other classes, all or some: here the very tensor that came in.

        ``target_cosine`` is the cosine to the true prototype, without margin, detached.
        """
        return cosine

    def penalty(self, norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What is added to each sample's loss: here zeros."""
        return torch.zeros_like(norm)

    def positive(self, cosine: Float[Tensor, " n"], norm: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Loss of the true class; ``binary`` margins only."""
        raise NotImplementedError(f"{self.kind} is a softmax: take the cross-entropy of target and others")

    def negative(self, cosine: Float[Tensor, "n classes"]) -> Float[Tensor, "n classes"]:
        """Loss of each other class; ``binary`` margins only."""
        raise NotImplementedError(f"{self.kind} is a softmax: take the cross-entropy of target and others")
