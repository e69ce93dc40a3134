"""IR and IR-SE as the reference and TFace name them: ``input_layer``, ``body``, ``output_layer``."""

from itertools import groupby, pairwise
from math import isqrt
from typing import Any

from torch import Tensor, nn

from spherecf.models._network import STRIDE, Network, Shapes, SqueezeExcite, initialize, kaiming

WIDTHS = (64, 128, 256, 512)
EXPANSION = 4  # of a bottleneck


def residual(kind: str, inputs: int, channels: int, stride: int, se: bool) -> nn.Sequential:
    """The layers of one block, in the order, and so with the keys, of the original.

    ``"plain"``: norm, 3x3, PReLU, 3x3, norm (the SCF reference). ``"normed"``: another norm after the first
    convolution (TFace, AdaFace, CVLface). ``"bottleneck"``: 1x1 to a quarter, 3x3, 1x1 (theirs, 152 layers
    and up).
    """
    layers: list[nn.Module] = [nn.BatchNorm2d(inputs)]
    if kind == "bottleneck":
        inner = max(1, channels // EXPANSION)
        layers += [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.PReLU(inner)]
        layers += [nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner), nn.PReLU(inner)]
        layers += [nn.Conv2d(inner, channels, 1, stride, bias=False)]
    else:
        middle = [nn.BatchNorm2d(channels)] if kind == "normed" else []
        layers += [nn.Conv2d(inputs, channels, 3, padding=1, bias=False), *middle, nn.PReLU(channels)]
        layers += [nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)]
    sequence = nn.Sequential(*layers, nn.BatchNorm2d(channels))
    if se:
        sequence.add_module(str(len(sequence)) if kind == "plain" else "se_block", SqueezeExcite(channels))
    return sequence


class Unit(nn.Module):
    """One block: `residual` plus the input, subsampled or projected where the map changes."""

    def __init__(self, kind: str, inputs: int, channels: int, stride: int, se: bool) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if inputs != channels:
            projection = nn.Conv2d(inputs, channels, 1, stride, bias=False)
            self.shortcut_layer = nn.Sequential(projection, nn.BatchNorm2d(channels))
        else:
            self.shortcut_layer = nn.Identity() if stride == 1 else nn.MaxPool2d(1, stride)
        self.res_layer = residual(kind, inputs, channels, stride, se)

    def forward(self, x: Tensor) -> Tensor:
        """The next map."""
        result: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return result


class IR(Network):
    """The reference's network: the map is the output of ``body``, before ``output_layer`` normalises it.

    Args:
        depths: blocks in each of the four stages.
        block: kind of `residual`.
        se: squeeze-and-excitation in every block.
        options: see `Network`; the originals train with a dropout of 0.4.
    """

    anchor = "input_layer.0.weight"

    def __init__(
        self, *, depths: tuple[int, ...], block: str = "plain", se: bool = False, **options: Any
    ) -> None:
        super().__init__(**options)
        stem = self.channels(WIDTHS[0])
        factor = EXPANSION if block == "bottleneck" else 1
        widths = [stem, *(self.channels(w * factor) for w in WIDTHS)]
        self.map_channels = widths[-1]
        self.input_layer = nn.Sequential(
            nn.Conv2d(3, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.PReLU(stem)
        )
        units: list[nn.Module] = []
        for (before, after), depth in zip(pairwise(widths), depths, strict=True):
            units += [Unit(block, before, after, 2, se)]
            units += [Unit(block, after, after, 1, se) for _ in range(depth - 1)]
        self.body = nn.Sequential(*units)
        channels, height, width = self.feature_shape
        dense = nn.Linear(channels * height * width, self.dim)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(channels), nn.Dropout(self.dropout_rate), nn.Flatten(), dense,
            nn.BatchNorm1d(self.dim, affine=False),
        )  # fmt: skip
        initialize(self, kaiming)
        kaiming(dense.weight)
        nn.init.zeros_(dense.bias)

    @classmethod
    def measure(cls, shapes: Shapes) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Network.measure`."""
        stem, dim = shapes["input_layer.0.weight"][0], shapes["output_layer.3.weight"][0]
        block = "normed" if "body.0.res_layer.2.running_mean" in shapes else "plain"
        if "body.0.res_layer.8.weight" in shapes:
            block = "bottleneck"
        last = {"plain": 4, "normed": 5, "bottleneck": 8}[block]
        count = sum(k.endswith(f".res_layer.{last}.running_mean") for k in shapes)
        widths = [shapes[f"body.{i}.res_layer.{last}.running_mean"] for i in range(count)]
        depths = tuple(len(list(run)) for _, run in groupby(widths))
        se = any(k.endswith(".fc1.weight") for k in shapes)
        side = isqrt(shapes["output_layer.3.weight"][1] // shapes["output_layer.0.weight"][0])
        options = {"dim": dim, "size": STRIDE * side, "width": stem / WIDTHS[0]}
        return {"depths": depths, "block": block, "se": se}, options

    def convolve(self, x: Tensor) -> Tensor:
        """The output of ``body``."""
        x = self.input_layer(x)
        for unit in self.body:
            x = self.run(unit, x)
        return x

    def embed(self, features: Tensor) -> Tensor:
        """The output layer: norm, dropout, linear layer, norm without scale."""
        return self.output_layer(features)  # type: ignore[no-any-return]
