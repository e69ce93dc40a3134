"""Convolutional backbones with the layouts of insightface, SCF and TFace, and all backbones by name."""

import difflib
from collections.abc import Callable
from functools import partial
from itertools import groupby, pairwise
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from spherecf.errors import ModelError
from spherecf.models.network import STRIDE, Network, Shapes, SqueezeExcite, initialize, kaiming
from spherecf.models.transformer import TRANSFORMERS, VisionTransformer

_IRESNET_WIDTHS = (64, 64, 128, 256, 512)  # stem, then the four stages; each stage halves the map


class Block(nn.Module):
    """Residual block: norm, 3x3, norm, PReLU, 3x3, norm (the "IR" unit; J. Deng et al., CVPR 2019)."""

    def __init__(self, inputs: int, channels: int, stride: int, se: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.se_block = SqueezeExcite(channels) if se else nn.Identity()
        self.downsample = nn.Identity() if stride == 1 else nn.Sequential(
            nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to the next map."""
        inner = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        result: Tensor = self.se_block(self.bn3(self.conv2(inner))) + self.downsample(x)
        return result


class IResNet(Network):
    """Four stages of `Block`; the map is normalised (``bn2``), flattened and projected (``fc``).

    State dictionaries are compatible with arcface_torch's ``iresnet.py`` and, with ``se``, with the
    repositories that add a ``se_block`` to it. The feature map is the output of ``bn2``, 512x7x7 for 112x112
    images.

    Args:
        depths: blocks in each stage.
        se: squeeze-and-excitation in every block.
        options: see `Network`.
    """

    anchor = "layer4.0.prelu.weight"

    def __init__(self, *, depths: tuple[int, ...], se: bool = False, **options: Any) -> None:
        super().__init__(**options)
        widths = [self.channels(w) for w in _IRESNET_WIDTHS]
        self.map_channels = widths[-1]
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        stages = [
            nn.Sequential(
                Block(before, after, 2, se), *(Block(after, after, 1, se) for _ in range(depth - 1))
            )
            for (before, after), depth in zip(pairwise(widths), depths, strict=True)
        ]
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.bn2 = nn.BatchNorm2d(widths[-1])
        self.dropout = nn.Dropout(self.dropout_rate)
        channels, height, width = self.feature_shape
        self.fc = nn.Linear(channels * height * width, self.dim)
        self.features = nn.BatchNorm1d(self.dim)
        self.features.weight.requires_grad = False  # the margin loss ignores the embedding's scale
        initialize(self, partial(nn.init.normal_, std=0.1))

    @classmethod
    def measure(cls, shapes: Shapes) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Network.measure`."""
        stages = [k.split(".")[0] for k in shapes if k.startswith("layer") and k.count(".") == 3
                  and k.endswith(".conv1.weight")]  # fmt: skip
        depths = tuple(stages.count(f"layer{i}") for i in range(1, 5))
        dim, inputs = shapes["fc.weight"]
        (channels,) = shapes["bn2.weight"]
        architecture = {"depths": depths, "se": "layer1.0.se_block.fc1.weight" in shapes}
        size = STRIDE * isqrt(inputs // channels)
        return architecture, {
            "dim": dim,
            "size": size,
            "width": shapes["conv1.weight"][0] / _IRESNET_WIDTHS[0],
        }

    def convolve(self, x: Tensor) -> Tensor:
        """The feature map: the output of ``bn2``."""
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = self.run(block, x)
        return self.bn2(x)  # type: ignore[no-any-return]

    def embed(self, features: Tensor) -> Tensor:
        """Dropout, linear layer, batch normalisation."""
        return self.features(self.fc(self.dropout(torch.flatten(features, 1))))  # type: ignore[no-any-return]


_IR_WIDTHS = (64, 128, 256, 512)
EXPANSION = 4  # output channels of a bottleneck over its inner channels


def residual(kind: str, inputs: int, channels: int, stride: int, se: bool) -> nn.Sequential:
    """The layers of one residual branch, in the original's order, so that the keys agree.

    Args:
        kind: ``"plain"``: norm, 3x3, PReLU, 3x3, norm (the SCF reference). ``"normed"``: with another norm
            after the first convolution (TFace, AdaFace, CVLface). ``"bottleneck"``: 1x1 to a quarter of the
            channels, 3x3, 1x1 (TFace, AdaFace and CVLface with 152 layers or more).
        inputs: input channels.
        channels: output channels.
        stride: of the last convolution.
        se: add squeeze-and-excitation.
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
    """Residual block: `residual` plus the input, which is subsampled or projected if the shape changes."""

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
        """Map (n, C, H, W) to the next map."""
        result: Tensor = self.res_layer(x) + self.shortcut_layer(x)
        return result


class IR(Network):
    """The SCF reference's network; the feature map is the output of ``body``, before its normalisation.

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
        stem = self.channels(_IR_WIDTHS[0])
        factor = EXPANSION if block == "bottleneck" else 1
        widths = [stem, *(self.channels(w * factor) for w in _IR_WIDTHS)]
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
        options = {"dim": dim, "size": STRIDE * side, "width": stem / _IR_WIDTHS[0]}
        return {"depths": depths, "block": block, "se": se}, options

    def convolve(self, x: Tensor) -> Tensor:
        """The feature map: the output of ``body``."""
        x = self.input_layer(x)
        for unit in self.body:
            x = self.run(unit, x)
        return x

    def embed(self, features: Tensor) -> Tensor:
        """The output layer: norm, dropout, linear layer, norm without scale or bias."""
        return self.output_layer(features)  # type: ignore[no-any-return]


STEM = 64  # channels of the first two stages at scale 1; the other stages have twice as many
EXPANDED = (128, 256, 512, 256)  # inner channels of the stages at any scale
LAST = 512  # channels of the feature map


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation and, unless ``linear``, PReLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *,
        padding: int = 0, groups: int = 1, linear: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
        if not linear:
            self.layers.append(nn.PReLU(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to the next map."""
        return self.layers(x)  # type: ignore[no-any-return]


class InvertedBlock(nn.Module):
    """1x1 to ``inner`` channels, depthwise 3x3, 1x1 back; residual if the map keeps its size."""

    def __init__(self, inputs: int, outputs: int, inner: int, stride: int) -> None:
        super().__init__()
        self.added = stride == 1
        self.layers = nn.Sequential(
            ConvNorm(inputs, inner),
            ConvNorm(inner, inner, 3, stride, padding=1, groups=inner),
            ConvNorm(inner, outputs, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to the next map."""
        inner: Tensor = self.layers(x)
        return x + inner if self.added else inner


class Repeated(nn.Module):
    """Several `InvertedBlock`s of the same size, under the original's key ``layers``."""

    def __init__(self, channels: int, inner: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(InvertedBlock(channels, channels, inner, 1) for _ in range(depth)))


class GlobalDepthwise(nn.Module):
    """Depthwise convolution with a kernel as large as the map, then the projection to the embedding."""

    def __init__(self, channels: int, side: int, dim: int, dropout: float) -> None:
        super().__init__()
        dense = nn.Linear(channels, dim, bias=False)
        self.layers = nn.Sequential(
            ConvNorm(channels, channels, side, groups=channels, linear=True),
            nn.Sequential(nn.Flatten(), nn.Dropout(dropout)), dense, nn.BatchNorm1d(dim),
        )  # fmt: skip
        kaiming(dense.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to embedding (n, dim)."""
        return self.layers(x)  # type: ignore[no-any-return]


class MobileFaceNet(Network):
    """A small network of inverted blocks; the feature map is the input of its global depthwise layer.

    Args:
        depths: number of blocks at 1/2, 1/4, 1/8 and 1/16 of the image's side. A first stage of one block is
            a plain depthwise convolution.
        scale: factor on the stages' channels, but not on inner channels: 2 in ``mbf``, 4 in ``mbf-large``.
        options: see `Network`; the original has no dropout.
    """

    anchor = "conv_sep.layers.0.weight"

    def __init__(self, *, depths: tuple[int, ...], scale: int = 2, **options: Any) -> None:
        super().__init__(**options)
        low, high = self.channels(STEM * scale), self.channels(2 * STEM * scale)
        first, second, third, fourth = (self.channels(c) for c in EXPANDED)
        self.map_channels = self.channels(LAST)
        start = self.channels(STEM)
        stem = ConvNorm(3, low, 3, 2, padding=1)
        single = depths[0] == 1
        early = ConvNorm(low, low, 3, padding=1, groups=start) if single else Repeated(low, first, depths[0])
        self.layers = nn.ModuleList([stem, early])
        for before, after, inner, repeated, depth in (
            (low, low, first, first, depths[1]),
            (low, high, second, second, depths[2]),
            (high, high, third, fourth, depths[3]),
        ):
            self.layers.append(InvertedBlock(before, after, inner, 2))
            self.layers.append(Repeated(after, repeated, depth))
        self.conv_sep = ConvNorm(high, self.map_channels)
        self.features = GlobalDepthwise(self.map_channels, self.feature_shape[1], self.dim, self.dropout_rate)
        initialize(self, kaiming)

    @classmethod
    def measure(cls, shapes: Shapes) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `Network.measure`."""
        counts = [
            sum(
                k.startswith(f"layers.{i}.layers.") and k.endswith(".layers.0.layers.0.weight")
                for k in shapes
            )
            for i in (1, 3, 5, 7)
        ]
        width = shapes["conv_sep.layers.0.weight"][0] / LAST
        scale = round(shapes["layers.0.layers.0.weight"][0] / (STEM * width))
        dim = shapes["features.layers.2.weight"][0]
        side = shapes["features.layers.0.layers.0.weight"][2]
        depths = (counts[0] or 1, *counts[1:])
        return {"depths": depths, "scale": scale}, {"dim": dim, "size": STRIDE * side, "width": width}

    def convolve(self, x: Tensor) -> Tensor:
        """The feature map: the output of ``conv_sep``."""
        for layer in self.layers:
            for block in layer.layers if isinstance(layer, Repeated) else [layer]:
                x = self.run(block, x)
        return self.conv_sep(x)  # type: ignore[no-any-return]

    def embed(self, features: Tensor) -> Tensor:
        """Global depthwise convolution, linear layer, batch normalisation."""
        return self.features(features)  # type: ignore[no-any-return]


_DEPTHS = {
    18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 152: (3, 8, 36, 3),
    200: (6, 26, 60, 6),
}  # fmt: skip
_TFACE = {**_DEPTHS, 101: _DEPTHS[100], 200: (3, 24, 36, 3)}  # TFace calls the 100-layer network 101


def _tface(layers: int, se: bool) -> Callable[..., Network]:
    block = "normed" if layers <= 101 else "bottleneck"
    return partial(IR, depths=_TFACE[layers], block=block, se=se)


NETWORKS: dict[str, Callable[..., Network]] = {
    **{f"r{n}": partial(IResNet, depths=_DEPTHS[n], se=False) for n in (18, 34, 50, 100, 200)},
    **{f"r{n}-se": partial(IResNet, depths=_DEPTHS[n], se=True) for n in (18, 34, 50, 100, 200)},
    "mbf": partial(MobileFaceNet, depths=(1, 4, 6, 2), scale=2),
    "mbf-large": partial(MobileFaceNet, depths=(2, 8, 12, 4), scale=4),
    **{f"ir-{n}": partial(IR, depths=_DEPTHS[n], block="plain", se=False) for n in (18, 34, 50, 100, 152)},
    **{f"ir-se-{n}": partial(IR, depths=_DEPTHS[n], block="plain", se=True) for n in (50, 100, 152)},
    **{f"tface-ir-{n}": _tface(n, se=False) for n in (18, 34, 50, 101, 152, 200)},
    **{f"tface-ir-se-{n}": _tface(n, se=True) for n in (50, 101, 152, 200)},
    **{name: partial(VisionTransformer, **arguments) for name, arguments in TRANSFORMERS.items()},
}
"""Constructor of each network by name: ``r*``, ``mbf*`` and ``vit_*`` are insightface's arcface_torch,
``ir-*`` the SCF reference, ``tface-ir-*`` TFace, AdaFace and CVLface (where they are called ``ir_*``),
``transface_*`` TransFace, and ``cvlface_*`` CVLface's transformers."""


def make_backbone(name: str, dim: int = 512, **options: Any) -> Network:
    """Create a network by name, with the original's initialisation and parameter names.

    Args:
        name: one of `NETWORKS`.
        dim: dimension of the embedding.
        options: ``dropout``, ``checkpointing``, ``size`` (of the images, 112) and ``width``, see `Network`;
            for transformers also ``drop_path`` and ``mask``, see `VisionTransformer`.

    Returns:
        A module in training mode that maps pixels (n, 3, size, size) to (embedding (n, dim), feature map (n,
        C, H, W)).

    Raises:
        ModelError: unknown name (the message suggests similar ones), or unknown options.
        InputError: an option out of range.

    Example:
        >>> import torch
        >>> network = make_backbone("r18", dim=64, size=32, width=0.125)
        >>> embedding, features = network(torch.zeros(2, 3, 32, 32))
        >>> tuple(embedding.shape), tuple(features.shape)
        ((2, 64), (2, 64, 2, 2))
    """
    if name not in NETWORKS:
        by_spelling = {n.replace("_", "-"): n for n in NETWORKS}
        spelling = name.lower().replace("_", "-")
        suffixed = [n for n in by_spelling if n.endswith(spelling)]
        similar = [by_spelling[n] for n in suffixed or difflib.get_close_matches(spelling, by_spelling)]
        hint = f"did you mean {' or '.join(similar)}? All" if similar else "the networks"
        raise ModelError(f"unknown network {name!r}; {hint} are {', '.join(NETWORKS)}")
    try:
        network = NETWORKS[name](dim=dim, **options)
    except TypeError as error:
        raise ModelError(f"network {name}: options {options} do not fit: {error}") from error
    network.name = name
    return network
