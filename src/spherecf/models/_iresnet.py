"""IResNet as insightface's arcface_torch names it: improved residual networks for faces, 18 to 200 layers."""

from functools import partial
from itertools import pairwise
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from spherecf.models._network import STRIDE, Network, Shapes, SqueezeExcite, initialize

WIDTHS = (64, 64, 128, 256, 512)  # stem, then the four stages; each stage halves the map


class Block(nn.Module):
    """norm, 3x3, norm, PReLU, 3x3, norm, and the input added (the "IR" unit; J. Deng et al., CVPR 2019)."""

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
        """The next map."""
        inner = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        result: Tensor = self.se_block(self.bn3(self.conv2(inner))) + self.downsample(x)
        return result


class IResNet(Network):
    """Four stages of `Block`; the map is normalised (``bn2``), flattened and made an embedding (``fc``).

    State dictionaries are those of arcface_torch's ``iresnet.py`` (and with ``se`` of the repositories that
    add a ``se_block`` to it). The map is the output of ``bn2``, 512x7x7 for 112x112 images.

    Args:
        depths: blocks in each stage.
        se: squeeze-and-excitation in every block.
        options: see `Network`.
    """

    anchor = "layer4.0.prelu.weight"

    def __init__(self, *, depths: tuple[int, ...], se: bool = False, **options: Any) -> None:
        super().__init__(**options)
        widths = [self.channels(w) for w in WIDTHS]
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
        self.features.weight.requires_grad = False  # the scale of an embedding means nothing to the margin
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
        return architecture, {"dim": dim, "size": size, "width": shapes["conv1.weight"][0] / WIDTHS[0]}

    def convolve(self, x: Tensor) -> Tensor:
        """The output of ``bn2``."""
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in stage:
                x = self.run(block, x)
        return self.bn2(x)  # type: ignore[no-any-return]

    def embed(self, features: Tensor) -> Tensor:
        """Dropout, linear layer, batch normalisation."""
        return self.features(self.fc(self.dropout(torch.flatten(features, 1))))  # type: ignore[no-any-return]
