"""Confidence heads: small networks that predict log kappa from the last feature map or the last tokens."""

import math
from importlib import import_module
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spherecf.errors import InputError, ModelError
from spherecf.models.network import as_map

MAX_PARAMETERS = 2**31  # of a linear head, 8.6 GB: with more, training would run out of memory


class ConfidenceHead(nn.Module):
    """Base class of all heads: ``log_kappa = forward(pool_features(features, embedding))``.

    `pool_features` has no parameters: its result, the summary, can be cached once per image to train the head
    on. A subclass sets ``kind``, ``summary_shape`` and ``final`` (its last linear layer) and defines
    `forward`, `config` and, unless the summary is the feature map itself, `pool_features`.

    Attributes:
        kind: its name in `HEADS` and in saved files.
        summary_kind: identifies the computation of `pool_features`; heads with equal ``summary_kind`` and
            shape share a cache.
        feature_shape: (C, H, W) of its feature maps.
        summary_shape: shape of one image's summary, (s,) or (C, H, W).
        outputs: numbers per image: 1 is log kappa; more are log precisions, whose mean precision serves as
            kappa.
        final: the layer that computes them.

    Example:
        >>> from torch import Tensor, nn
        >>> class MeanHead(ConfidenceHead):  # register it: HEADS["mean"] = "my_package.heads:MeanHead"
        ...     kind = "mean"
        ...
        ...     def __init__(self, channels: int, height: int, width: int) -> None:
        ...         super().__init__(channels, height, width)
        ...         self.summary_shape, self.final = (channels,), nn.Linear(channels, 1)
        ...
        ...     def pool_features(self, features: Tensor, embedding: Tensor) -> Tensor:
        ...         return self.check_features(features).mean((2, 3))
        ...
        ...     def forward(self, summary: Tensor) -> Tensor:
        ...         return self.final(summary).squeeze(1)
        >>> tuple(MeanHead(8, 7, 7).log_kappa(torch.rand(5, 8, 7, 7), torch.rand(5, 4)).shape)
        (5,)
    """

    kind: ClassVar[str]
    summary_kind: ClassVar[str] = "map"
    feature_shape: tuple[int, int, int]
    summary_shape: tuple[int, ...]
    final: nn.Linear

    def __init__(self, channels: int, height: int, width: int, outputs: int = 1) -> None:
        super().__init__()
        if min(channels, height, width) < 1:
            raise InputError(
                f"head: expected a feature map of positive size, got {(channels, height, width)}"
            )
        if outputs < 1:
            raise InputError(f"head: expected one output or more, got {outputs}")
        self.outputs = outputs
        self.feature_shape = (channels, height, width)
        self.summary_shape = self.feature_shape

    def config(self) -> dict[str, Any]:
        """The constructor's arguments: ``make_head(head.kind, **head.config())`` builds a similar head."""
        channels, height, width = self.feature_shape
        config: dict[str, Any] = {"channels": channels, "height": height, "width": width}
        return config | ({"outputs": self.outputs} if self.outputs > 1 else {})

    def pool_features(
        self, features: Float[Tensor, "n ..."], embedding: Float[Tensor, "n dim"]
    ) -> Float[Tensor, "n ..."]:
        """Compute the head's input, the summary, from a backbone's output; by default the feature map itself.

        Tokens (n, T, C) are accepted too; `check_features` converts them to a map (n, C, T, 1).
        """
        return self.check_features(features)

    def forward(self, summary: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Log kappa (n,), or log precisions (n, outputs), from summaries (n, *summary_shape)."""
        raise NotImplementedError

    def read_out(self, hidden: Float[Tensor, "n h"]) -> Float[Tensor, "n ..."]:
        """Apply the last layer: (n,) for one output, (n, outputs) for several."""
        with torch.autocast(hidden.device.type, enabled=False):  # 16 bits are too few for log kappa
            output: Tensor = self.final(hidden.to(self.final.weight.dtype))
        return output.squeeze(1) if self.outputs == 1 else output

    def to_log_kappa(self, output: Float[Tensor, "n ..."]) -> Float[Tensor, "n"]:
        """Log kappa (n,) from the output of `forward`: itself, or the log of the mean precision."""
        return output if output.ndim == 1 else torch.logsumexp(output, 1) - math.log(output.shape[1])

    def log_kappa(
        self, features: Float[Tensor, "n ..."], embedding: Float[Tensor, "n dim"]
    ) -> Float[Tensor, "n"]:
        """Log kappa (n,) from a backbone's output; ``features`` is a map (n, C, H, W) or tokens (n, T, C).

        Raises:
            InputError: a map of the wrong size, or values that are not finite.
        """
        return self.to_log_kappa(self(self.pool_features(features, embedding)))

    def fit_normalisation(self, summaries: Float[Tensor, "n ..."]) -> None:
        """Fit the input normalisation to the training summaries before the first step; by default none."""

    def check_features(self, features: Tensor) -> Tensor:
        """Convert features to a map (n, C, H, W) and check its size and that its values are finite.

        Values are checked on the CPU only, since on a GPU every batch would have to wait for the result.
        `FrozenBackbone` has already checked its features.

        Raises:
            InputError: wrong size, or values that are not finite; the message lists the images.
        """
        if tuple(features.shape[1:]) != self.feature_shape:
            features = as_map(features)
        if features.ndim != 4 or tuple(features.shape[1:]) != self.feature_shape:
            raise InputError(
                f"{self.kind} head: expected feature maps (n, {', '.join(map(str, self.feature_shape))}), "
                f"got {tuple(features.shape)}; was the head trained for another backbone?"
            )
        if features.device.type != "cpu":
            return features
        finite = torch.isfinite(features).flatten(1).all(1)
        if not bool(finite.all()):
            bad = torch.nonzero(~finite).flatten().tolist()
            raise InputError(
                f"{self.kind} head: the feature maps of {len(bad)} of {len(features)} images contain NaN or "
                f"infinity (images {', '.join(map(str, bad[:10]))}); leave them out"
            )
        return features

    def init_constant(self, kappa: float) -> None:
        """Make the output constant, log(``kappa``) for every image, as the starting point of training.

        Example:
            >>> head = make_head("linear", channels=4, height=2, width=2)
            >>> head.init_constant(300.0)
            >>> head(torch.randn(2, 4, 2, 2)).exp().round().tolist()
            [300.0, 300.0]
        """
        if not (math.isfinite(kappa) and kappa > 0):
            raise InputError(f"init_constant: expected a finite positive kappa, got {kappa}")
        with torch.no_grad():
            self.final.weight.zero_()
            self.final.bias.fill_(math.log(kappa))

    @property
    def parameter_count(self) -> int:
        """Number of trainable values."""
        return sum(p.numel() for p in self.parameters())


class LinearHead(ConfidenceHead):
    """The paper's head: a flattened map of n values, then dense layers n - n/2 - n/4 - 1.

    25088-12544-6272-1 (393 M parameters) for the 512x7x7 map of an IResNet (S. Li et al., CVPR 2021). The
    tokens of a large transformer have three times as many values, which exceeds the limit.

    Raises:
        InputError: more than 2^31 parameters (8.6 GB).

    Example:
        >>> LinearHead(8, 4, 4).parameter_count
        10369
    """

    kind = "linear"

    def __init__(self, channels: int, height: int, width: int, outputs: int = 1) -> None:
        super().__init__(channels, height, width, outputs)
        size = channels * height * width
        half, quarter = max(1, size // 2), max(1, size // 4)
        if (count := size * half + half * quarter) > MAX_PARAMETERS:
            raise InputError(
                f"linear head: {count / 1e9:.1f} billion parameters ({4 * count / 1e9:.0f} GB) for features "
                f"{self.feature_shape} of {size} values; use the light head, which has {3 * channels} "
                "inputs, or the conv head"
            )
        self.hidden = nn.Sequential(
            nn.Flatten(), nn.Linear(size, half), nn.ReLU(), nn.Linear(half, quarter), nn.ReLU()
        )
        self.final = nn.Linear(quarter, outputs)

    def forward(self, summary: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n ..."]:
        """Log kappa (n,) from maps (n, C, H, W)."""
        return self.read_out(self.hidden(summary))


class ConvHead(ConfidenceHead):
    """TFace's head: three 3x3 convolutions, then dense layers C - C/2 - C/4 - 1 (512-256-128-1, about 7 M).

    Without padding, three such convolutions reduce a 7x7 map to one vector. Larger maps are averaged at the
    end; smaller ones are padded.

    Example:
        >>> ConvHead(512, 7, 7).parameter_count
        7244289
    """

    kind = "conv"

    def __init__(self, channels: int, height: int, width: int, outputs: int = 1) -> None:
        super().__init__(channels, height, width, outputs)
        padding = 0 if min(height, width) >= 7 else 1
        first, second, third = (
            nn.Conv2d(channels, channels, 3, padding=padding, bias=False) for _ in range(3)
        )
        half, quarter = max(1, channels // 2), max(1, channels // 4)
        self.convolutions = nn.Sequential(
            first, nn.ReLU(), second, nn.BatchNorm2d(channels), nn.ReLU(), third, nn.BatchNorm2d(channels),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.hidden = nn.Sequential(nn.Linear(channels, half), nn.ReLU(), nn.Linear(half, quarter), nn.ReLU())
        self.final = nn.Linear(quarter, outputs)

    def forward(self, summary: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n ..."]:
        """Log kappa (n,) from maps (n, C, H, W)."""
        return self.read_out(self.hidden(self.convolutions(summary)))


HEADS: dict[str, str] = {
    LinearHead.kind: f"{__name__}:LinearHead",
    ConvHead.kind: f"{__name__}:ConvHead",
    "light": "spherecf.models.heads:LightHead",
}
"""Class of each kind of head, as "module:class"; add your own to load files with such a head."""


def head_class(kind: str) -> type[ConfidenceHead]:
    """The class of a kind of head.

    Raises:
        ModelError: no head of that kind is registered.
    """
    if kind not in HEADS:
        raise ModelError(f"unknown kind of head {kind!r}; the kinds are {', '.join(sorted(HEADS))}")
    module, name = HEADS[kind].split(":")
    head: type[ConfidenceHead] = getattr(import_module(module), name)
    return head


def make_head(kind: str, **config: Any) -> ConfidenceHead:
    """Create a head by its kind, with its constructor's arguments.

    Raises:
        ModelError: unknown kind, or unknown arguments.

    Example:
        >>> make_head("conv", channels=16, height=7, width=7).kind
        'conv'
    """
    try:
        return head_class(kind)(**config)
    except TypeError as error:
        raise ModelError(f"{kind} head: arguments {config} do not fit: {error}") from error


_STATISTICS = 3
_HIDDEN = (64, 32)
_DROPOUT = 0.2


class LightHead(ConfidenceHead):
    """Mean, standard deviation and maximum of every channel, normalised, then dense layers 3 C - 64 - 32 - 1.

    The strength and variation of the channels depend on image quality. On held-out identities, a 3x3 grid of
    means, wider layers, or adding the embedding gained next to nothing (docs/LOG.md). A cache of these 3 C
    values is 16 times smaller than one of 7x7 maps.

    Example:
        >>> LightHead(512, 7, 7).parameter_count, LightHead(1024, 7, 7).parameter_count
        (100481, 198785)
    """

    kind = "light"
    summary_kind = "pooled-1"
    shift: Tensor
    scale: Tensor

    def __init__(self, channels: int, height: int, width: int, outputs: int = 1) -> None:
        super().__init__(channels, height, width, outputs)
        size = _STATISTICS * channels
        self.summary_shape = (size,)
        first, second = _HIDDEN
        self.register_buffer("shift", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.hidden = nn.Sequential(
            nn.Linear(size, first), nn.ReLU(), nn.Dropout(_DROPOUT), nn.Linear(first, second), nn.ReLU()
        )
        self.final = nn.Linear(second, outputs)

    def pool_features(
        self, features: Float[Tensor, "n ..."], embedding: Float[Tensor, "n dim"]
    ) -> Float[Tensor, "n s"]:
        """Mean, standard deviation and maximum of each channel over its positions, (n, 3 C)."""
        flat = self.check_features(features).flatten(2)
        return torch.cat([flat.mean(2), flat.std(2, correction=0), flat.amax(2)], 1)

    def fit_normalisation(self, summaries: Float[Tensor, "n s"]) -> None:
        """Normalise by the mean and standard deviation of the training summaries."""
        self.shift.copy_(summaries.mean(0))
        self.scale.copy_(1 / summaries.std(0, correction=0).clamp_min(1e-6))

    def forward(self, summary: Float[Tensor, "n s"]) -> Float[Tensor, "n ..."]:
        """Log kappa (n,) from summaries (n, 3 C)."""
        return self.read_out(self.hidden((summary - self.shift) * self.scale))
