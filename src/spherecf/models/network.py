"""The base of all trainable backbones: options, exact last layers, and recomputation in the backward pass."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from spherecf.errors import InputError
from spherecf.models.preprocessing import Preprocessing

STRIDE = 16  # of convolutional networks: a map has 1/16 of the image's side, rounded up
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


def map_shape(shape: Shape) -> Shape:
    """Of one image's features as they come, the (C, H, W) that `as_map` makes of them.

    Example:
        >>> map_shape((144, 512)), map_shape((7, 7, 768)), map_shape((512, 7, 7))
        ((512, 144, 1), (768, 7, 7), (512, 7, 7))
    """
    order = map_order(shape)
    return (*(shape[axis] for axis in order), *[1] * (3 - len(order))) if order else shape


def as_map(features: Tensor) -> Tensor:
    """Features of n images as a map (n, C, H, W): the one place that knows in which forms they come.

    Tokens (n, T, C) become a map one column wide, (n, C, T, 1), a class token being one of its positions. A
    map with its channels last, (n, H, H, C) as Swin transformers give it, becomes (n, C, H, H). Any other
    map stays what it is.

    Example:
        >>> tuple(as_map(torch.zeros(2, 144, 512)).shape), tuple(as_map(torch.zeros(2, 512, 7, 7)).shape)
        ((2, 512, 144, 1), (2, 512, 7, 7))
    """
    order = map_order(tuple(int(side) for side in features.shape[1:]))  # traced, sides are tensors
    if not order:
        return features
    turned = features.permute(0, *(axis + 1 for axis in order))
    return turned if turned.ndim == 4 else turned[..., None]


def map_order(shape: Shape) -> tuple[int, ...]:
    """The axes of one image's features in a map's order; none where they stand so already, see `as_map`."""
    if len(shape) == 2:
        return 1, 0
    # Square images have square maps, so that equal sides are height and width; a column is one already.
    return (2, 0, 1) if len(shape) == 3 and shape[0] == shape[1] != shape[2] > 1 else ()


class Network(nn.Module):
    """Base of the trainable backbones: pixels (n, 3, h, w) to (embedding (n, dim), last map (n, C, H, W)).

    A subclass defines `convolve`, `embed` and `measure`, `side` if it is no sixteenth, and names its modules
    as the original does, so that state dictionaries go both ways.

    Args:
        dim: length of the embedding.
        size: side of the square images in pixels.
        width: factor on all numbers of channels; 1 in the originals, less for small experiments. Below 0.25
            layers have fewer than 16 channels, where torch 2.13 corrupts memory on some CPUs (docs/LOG.md).
        dropout: probability before the last linear layer (in a transformer all along).
        checkpointing: recompute the residual blocks in the backward pass: less memory, the same numbers.

    Attributes:
        name: its name in `NETWORKS`.
        preprocessing: what it was trained with, where a checkpoint tells it.
        remarks: one sentence each on what a checkpoint holds beside it.
        dim, size, width, dropout_rate, checkpointing: as given.
        feature_shape: (C, H, W) of the map.
        anchor: a key that only this family's state dictionaries hold.
        training_only: parameters that training alone uses; a state dictionary may lack them.
        foreign: parts of keys that tell a relative which this family is not, each with what to say of it.

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
        if dim < 1 or size < 1 or not width > 0 or not 0 <= dropout < 1:
            raise InputError(
                f"backbone: expected dim, size and width above 0 and dropout in [0, 1), got dim={dim}, "
                f"size={size}, width={width}, dropout={dropout}"
            )
        self.name = type(self).__name__
        self.remarks: list[str] = []
        self.dim, self.size, self.width = dim, size, width
        self.dropout_rate, self.checkpointing = dropout, checkpointing

    @property
    def side(self) -> int:
        """Height and width of the map."""
        return math.ceil(self.size / STRIDE)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the last map."""
        return self.map_channels, self.side, self.side

    def channels(self, count: int) -> int:
        """The original's number of channels, scaled by ``width``."""
        return max(1, round(count * self.width))

    def config(self) -> dict[str, Any]:
        """The options, JSON-able: ``make_backbone(network.name, **network.config())`` is its twin."""
        return {
            "dim": self.dim,
            "size": self.size,
            "width": self.width,
            "dropout": self.dropout_rate,
            "checkpointing": self.checkpointing,
        }

    @classmethod
    def measure(cls, shapes: Shapes) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a state dictionary's shapes say: (the architecture, as in `NETWORKS`; the options).

        Raises:
            KeyError: a tensor that tells is missing.
        """
        raise NotImplementedError

    def convolve(self, x: Tensor) -> Tensor:
        """The last map."""
        raise NotImplementedError

    def embed(self, features: Tensor) -> Tensor:
        """The embedding from the map."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(embedding (n, dim), features (n, C, H, W)); the types are plain for torch.compile's sake.

        The embedding is computed in the parameters' own type even under autocast: a linear layer over
        25,088 inputs and the statistics after it lose too much in sixteen bits.
        """
        features = self.convolve(x)
        with torch.autocast(x.device.type, enabled=False):
            embedding = self.embed(features.to(next(self.parameters()).dtype))
        return embedding, features

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        """One residual block, recomputed in the backward pass if ``checkpointing``."""
        if self.checkpointing and torch.is_grad_enabled():
            # A compiled step has no side effects left to repeat, and its compiler takes no contexts.
            contexts: dict[str, Any] = (
                {} if torch.compiler.is_compiling() else {"context_fn": partial(_contexts, block)}
            )
            result: Tensor = checkpoint(block, x, use_reentrant=False, **contexts)
            return result
        return block(x)  # type: ignore[no-any-return]


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The recomputation normalises by the batch again, but must not count that batch a second time.

    With momentum 0 the running statistics stay bit for bit what they are; a copy of the counter counts.
    """
    kept = [(m, m.momentum, m.num_batches_tracked) for m in block.modules() if isinstance(m, _BatchNorm)]
    for norm, _, counter in kept:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if counter is None else counter.clone()
    try:
        yield
    finally:
        for norm, momentum, counter in kept:
            norm.momentum, norm.num_batches_tracked = momentum, counter


class SqueezeExcite(nn.Module):
    """Channels weighted by x * sigmoid(W2 relu(W1 mean(x))) (J. Hu et al., CVPR 2018), W1 to 1/16 of them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 16)
        self.fc1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.fc2 = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The same map, its channels weighted."""
        weights = self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(weights)


def initialize(network: nn.Module, convolution: Callable[[Tensor], Any]) -> None:
    """Convolutions by ``convolution``; batch normalisations start as the identity, as torch makes them."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            convolution(module.weight)


def kaiming(weight: Tensor) -> Tensor:
    """Normal with variance 2 / fan-out (K. He et al., ICCV 2015)."""
    return nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
