"""Base class of all trainable backbones: options, full-precision last layers, activation checkpointing."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from spherecf.errors import InputError
from spherecf.models.preprocessing import Preprocessing

STRIDE = 16  # of convolutional networks: the map has 1/16 of the image's side, rounded up
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def map_shape(shape: Shape) -> Shape:
    """The shape (C, H, W) after `as_map`, given the shape of one image's features.

    Example:
        >>> map_shape((144, 512)), map_shape((7, 7, 768)), map_shape((512, 7, 7))
        ((512, 144, 1), (768, 7, 7), (512, 7, 7))
    """
    order = map_order(shape)
    return (*(shape[axis] for axis in order), *[1] * (3 - len(order))) if order else shape


def as_map(features: Tensor) -> Tensor:
    """Convert features of n images to a map (n, C, H, W).

    Tokens (n, T, C) become a map one column wide, (n, C, T, 1), in which a class token is one position. A map
    with channels last, (n, H, H, C) as from Swin transformers, becomes (n, C, H, H). Any other map is
    returned unchanged.

    Example:
        >>> tuple(as_map(torch.zeros(2, 144, 512)).shape), tuple(as_map(torch.zeros(2, 512, 7, 7)).shape)
        ((2, 512, 144, 1), (2, 512, 7, 7))
    """
    order = map_order(tuple(int(side) for side in features.shape[1:]))  # sides are tensors while tracing
    if not order:
        return features
    permuted = features.permute(0, *(axis + 1 for axis in order))
    return permuted if permuted.ndim == 4 else permuted[..., None]


def map_order(shape: Shape) -> tuple[int, ...]:
    """The permutation of one image's axes that `as_map` applies; empty if they are already in order."""
    if len(shape) == 2:
        return 1, 0
    # Images are square, so two equal sides are height and width. A last side of 1 is a map (C, T, 1) already.
    return (2, 0, 1) if len(shape) == 3 and shape[0] == shape[1] != shape[2] > 1 else ()


class Network(nn.Module):
    """Base class of trainable backbones: maps pixels (n, 3, h, w) to embedding (n, dim) and map (n, C, H, W).

    A subclass defines `convolve`, `embed`, `measure` and, if the map is not 1/16 of the image's side, `side`.
    It names its modules like the original implementation, so that state dictionaries can be exchanged.

    Args:
        dim: dimension of the embedding.
        size: side of the square images in pixels.
        width: factor on all channel counts: 1 in the originals, less for small experiments. Below 0.25 some
            layers have fewer than 16 channels, where torch 2.13 corrupts memory on some CPUs (docs/LOG.md).
        dropout: probability before the last linear layer; in a transformer, in every block.
        checkpointing: recompute the residual blocks in the backward pass, which saves memory and gives the
            same result.

    Attributes:
        name: its name in `NETWORKS`.
        preprocessing: the one it was trained with, if a checkpoint states or implies it.
        remarks: one sentence on each part of a checkpoint that was left out.
        dim, size, width, dropout_rate, checkpointing: as given.
        feature_shape: (C, H, W) of the feature map.
        anchor: a key that occurs only in this family's state dictionaries.
        training_only: parameters used in training only, which a state dictionary may lack.
        foreign: substrings of keys that identify a related but unsupported architecture, each with the reason
            for the error message.

    Raises:
        InputError: an option out of range.

    Example:
        >>> from spherecf.models import make_backbone
        >>> network = make_backbone("mbf", dim=128)  # makes a Network
        >>> network.feature_shape, network.config()["dim"]
        ((512, 7, 7), 128)
    """

    anchor: ClassVar[str]
    training_only: ClassVar[tuple[str, ...]] = ()
    foreign: ClassVar[Mapping[str, str]] = {}
    map_channels: int
    preprocessing: Preprocessing | None = None

    def __init__(
        self,
        *,
        dim: int = 512,
        size: int = 112,
        width: float = 1.0,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not (_is_count(dim) and _is_count(size) and width > 0 and 0 <= dropout < 1):
            raise InputError(
                "backbone: expected whole numbers dim and size above 0, width above 0 and dropout in [0, 1), "
                f"got dim={dim!r}, size={size!r}, width={width!r}, dropout={dropout!r}"
            )
        self.name = type(self).__name__
        self.remarks: list[str] = []
        self.dim, self.size, self.width = dim, size, width
        self.dropout_rate, self.checkpointing = dropout, checkpointing

    @property
    def side(self) -> int:
        """Height and width of the feature map."""
        return math.ceil(self.size / STRIDE)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the feature map."""
        return self.map_channels, self.side, self.side

    def channels(self, count: int) -> int:
        """Scale a channel count of the original by ``width``."""
        return max(1, round(count * self.width))

    def config(self) -> dict[str, Any]:
        """The options, JSON-serialisable; ``make_backbone(network.name, **network.config())`` rebuilds it."""
        return {
            "dim": self.dim,
            "size": self.size,
            "width": self.width,
            "dropout": self.dropout_rate,
            "checkpointing": self.checkpointing,
        }

    @classmethod
    def measure(cls, shapes: Shapes) -> tuple[dict[str, Any], dict[str, Any]]:
        """Infer the architecture, as in `NETWORKS`, and the options from a state dictionary's shapes.

        Raises:
            KeyError: a required tensor is missing.
        """
        raise NotImplementedError

    def convolve(self, x: Tensor) -> Tensor:
        """The feature map (n, C, H, W) of pixels (n, 3, h, w)."""
        raise NotImplementedError

    def embed(self, features: Tensor) -> Tensor:
        """The embedding (n, dim) of a feature map."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (embedding (n, dim), features (n, C, H, W)); a plain tuple, as torch.compile requires.

        The embedding is computed in the parameters' dtype even under autocast: a linear layer over 25,088
        inputs and the batch statistics after it lose too much precision in 16 bits.
        """
        features = self.convolve(x)
        with torch.autocast(x.device.type, enabled=False):
            embedding = self.embed(features.to(next(self.parameters()).dtype))
        return embedding, features

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """Run one residual block; with ``checkpointing`` it is recomputed in the backward pass."""
        if self.checkpointing and torch.is_grad_enabled():
            # A compiled step repeats no side effects, and torch.compile does not support context functions.
            contexts: dict[str, Any] = (
                {} if torch.compiler.is_compiling() else {"context_fn": partial(_contexts, block)}
            )
            result: Tensor = checkpoint(block, x, use_reentrant=False, **contexts)
            return result
        return block(x)  # type: ignore[no-any-return]


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _freeze_statistics(block)


@contextmanager
def _freeze_statistics(block: nn.Module) -> Iterator[None]:
    """Keep the running statistics fixed while a block is recomputed: each batch must count only once.

    Momentum 0 leaves the statistics bit-identical; the batch counter is replaced by a copy in the meantime.
    """
    saved = [(m, m.momentum, m.num_batches_tracked) for m in block.modules() if isinstance(m, _BatchNorm)]
    for norm, _, counter in saved:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if counter is None else counter.clone()
    try:
        yield
    finally:
        for norm, momentum, counter in saved:
            norm.momentum, norm.num_batches_tracked = momentum, counter


class SqueezeExcite(nn.Module):
    """Weight channels: x * sigmoid(W2 relu(W1 mean(x))), W1 to C / 16 channels (J. Hu et al., CVPR 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 16)
        self.fc1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.fc2 = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, C, H, W) to the map with weighted channels."""
        weights = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(weights)


def _is_count(value: Any) -> bool:
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_whole and int(value) > 0


def initialize(network: nn.Module, convolution: Callable[[Tensor], Any]) -> None:
    """Initialise the convolutions' weights by ``convolution``; other layers keep torch's initialisation."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            convolution(module.weight)


def kaiming(weight: Tensor) -> Tensor:
    """Draw weights from a normal distribution of variance 2 / fan-out (K. He et al., ICCV 2015)."""
    return nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
