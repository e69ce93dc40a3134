"""The default head: pooled statistics of the last map, or the last tokens, and two small layers."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spherecf.models._heads import ConfidenceHead

_STATISTICS = 3
_HIDDEN = (64, 32)
_DROPOUT = 0.2


class LightHead(ConfidenceHead):
    """Mean, standard deviation and maximum of every channel, normalised, then layers 3 C - 64 - 32 - 1.

    A poor face shows in how strong and how varied the channels are. On held-out people a 3x3 grid of means,
    wider layers, and the embedding beside the statistics gained next to nothing (docs/LOG.md). A cache
    of these 3 C numbers is 16 times smaller than one of 7x7 maps.

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

    def summarize(
        self, features: Float[Tensor, "n ..."], embedding: Float[Tensor, "n dim"]
    ) -> Float[Tensor, "n s"]:
        """Mean, standard deviation and maximum over the positions of each channel, (n, 3 C)."""
        flat = self.check_features(features).flatten(2)
        return torch.cat([flat.mean(2), flat.std(2, correction=0), flat.amax(2)], 1)

    def adapt(self, summaries: Float[Tensor, "n s"]) -> None:
        """Normalise by the mean and deviation of the training summaries."""
        self.shift.copy_(summaries.mean(0))
        self.scale.copy_(1 / summaries.std(0, correction=0).clamp_min(1e-6))

    def forward(self, summary: Float[Tensor, "n s"]) -> Float[Tensor, "n ..."]:
        """Log kappa (n,) from summaries (n, 3 C)."""
        return self.read_out(self.hidden((summary - self.shift) * self.scale))
