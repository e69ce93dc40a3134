"""MobileFaceNet (S. Chen et al., CCBR 2018) as insightface's arcface_torch builds and names it."""

from typing import Any

from torch import Tensor, nn

from spherecf.models._network import STRIDE, Network, Shapes, initialize, kaiming

STEM = 64  # channels of the first stages at scale 1; the later ones have twice as many
EXPANDED = (128, 256, 512, 256)  # inner channels of the stages, whatever the scale
LAST = 512


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation, and PReLU unless it is ``linear``."""

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
        """The next map."""
        return self.layers(x)  # type: ignore[no-any-return]


class InvertedBlock(nn.Module):
    """1x1 to ``inner`` channels, 3x3 in each, 1x1 back; the input added where the map keeps its size."""

    def __init__(self, inputs: int, outputs: int, inner: int, stride: int) -> None:
        super().__init__()
        self.added = stride == 1
        self.layers = nn.Sequential(
            ConvNorm(inputs, inner),
            ConvNorm(inner, inner, 3, stride, padding=1, groups=inner),
            ConvNorm(inner, outputs, linear=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The next map."""
        inner: Tensor = self.layers(x)
        return x + inner if self.added else inner


class Repeated(nn.Module):
    """Several `InvertedBlock` of one size, under the key ``layers`` as in the original."""

    def __init__(self, channels: int, inner: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(InvertedBlock(channels, channels, inner, 1) for _ in range(depth)))


class GlobalDepthwise(nn.Module):
    """One kernel as large as the map for each channel, then the embedding."""

    def __init__(self, channels: int, side: int, dim: int, dropout: float) -> None:
        super().__init__()
        dense = nn.Linear(channels, dim, bias=False)
        self.layers = nn.Sequential(
            ConvNorm(channels, channels, side, groups=channels, linear=True),
            nn.Sequential(nn.Flatten(), nn.Dropout(dropout)), dense, nn.BatchNorm1d(dim),
        )  # fmt: skip
        kaiming(dense.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The embedding."""
        return self.layers(x)  # type: ignore[no-any-return]


class MobileFaceNet(Network):
    """A small network of inverted blocks; the map is what its global depthwise convolution reads, 512x7x7.

    Args:
        depths: blocks at 1/2, 1/4, 1/8 and 1/16 of the image's side; a first stage of one is a plain
            depthwise convolution.
        scale: 2 in ``mbf``, 4 in ``mbf-large``: multiplies the stages' channels, not the inner ones.
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
        """The output of ``conv_sep``."""
        for layer in self.layers:
            for block in layer.layers if isinstance(layer, Repeated) else [layer]:
                x = self.run(block, x)
        return self.conv_sep(x)  # type: ignore[no-any-return]

    def embed(self, features: Tensor) -> Tensor:
        """Global depthwise convolution, linear layer, batch normalisation."""
        return self.features(features)  # type: ignore[no-any-return]
