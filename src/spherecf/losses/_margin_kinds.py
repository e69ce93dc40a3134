"""All margins by name."""

from typing import Any

import torch

from spherecf.errors import InputError
from spherecf.losses._adaptive_margins import AdaFace, CurricularFace, MagFace
from spherecf.losses._fixed_margins import ArcFace, Combined, CosFace, NormFace, SphereFace
from spherecf.losses._margin import Margin
from spherecf.losses._one_against_all import SphereFace2

MARGINS: dict[str, type[Margin]] = {
    margin.kind: margin
    for margin in (
        NormFace, ArcFace, CosFace, Combined, SphereFace, AdaFace, MagFace, CurricularFace, SphereFace2
    )
}  # fmt: skip
"""The class of each kind of margin; add your own."""


def make_margin(kind: str, **config: Any) -> Margin:
    """A new margin by its kind and its constructor's arguments.

    Raises:
        InputError: unknown kind, arguments it does not take, or values out of range.

    Example:
        >>> make_margin("cosface", margin=0.4)
        CosFace(margin=0.4, scale=64.0, gradient='exact')
    """
    if kind not in MARGINS:
        raise InputError(f"unknown kind of margin {kind!r}; there are {', '.join(MARGINS)}")
    try:
        margin = MARGINS[kind](**config)
    except TypeError as error:
        raise InputError(f"{kind} margin: arguments {config} do not fit: {error}") from error
    # Once through the formula, which checks its values: not in the first step of a training run.
    (margin.positive if margin.binary else margin.target)(torch.zeros(1), torch.ones(1))
    return margin
