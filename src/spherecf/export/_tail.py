"""What is written before and behind a recogniser's network, as modules to trace."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from spherecf.calibration import KappaScale
from spherecf.models import ConfidenceHead, Preprocessing

Columns = tuple[Tensor, ...]


class Pixels(nn.Module):
    """uint8 RGB faces (n, height, width, 3) to a network's input (n, 3, height, width)."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._preprocessing = preprocessing

    def forward(self, images: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
        """As `Preprocessing` does it."""
        return self._preprocessing(images)


class Direction(nn.Module):
    """A raw embedding, (n, dim) or (n, dim, 1, 1), to the unit ``mu`` (n, dim)."""

    def forward(self, embedding: Float[Tensor, "n dim ..."]) -> Float[Tensor, "n dim"]:
        """Over its norm."""
        rows = embedding.flatten(1)
        mu: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return mu


class Percentile(nn.Module):
    """`KappaScale.percentile` in float32: linear between knots of log kappa, 0 below them, 100 above.

    With knots x, percents y, slopes s it is y_1 + sum_i s_i min(max(log kappa - x_i, 0), x_(i+1) - x_i): sums
    instead of a search. Knots that float32 cannot tell apart become one, with the last one's percent.

    Example:
        >>> scale = KappaScale.fit([10.0, 20.0, 40.0, 80.0], dim=128, population="four faces")
        >>> Percentile(scale)(torch.tensor([5.0, 10.0, 28.2843, 80.0, 99.0]).log()).round(decimals=1).tolist()
        [0.0, 12.5, 50.0, 87.5, 100.0]
    """

    knots: Tensor
    widths: Tensor
    slopes: Tensor

    def __init__(self, scale: KappaScale) -> None:
        super().__init__()
        x, y = np.array(scale.log_kappa, np.float32), np.array(scale.percent, np.float32)
        last = np.diff(x, append=np.inf) > 0
        x, y = x[last], y[last]
        widths = np.diff(x)
        # One more piece of no width, so that a scale of a single knot has one, too.
        self.register_buffer("knots", torch.from_numpy(x))
        self.register_buffer("widths", torch.from_numpy(np.append(widths, np.float32(0))))
        self.register_buffer("slopes", torch.from_numpy(np.append(np.diff(y) / widths, np.float32(0))))
        self.first = float(y[0])

    def forward(self, log_kappa: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Percent (n,) of the reference population that is less sure."""
        inside = torch.minimum((log_kappa[:, None] - self.knots).relu(), self.widths)
        percent = self.first + (inside * self.slopes).sum(1)
        percent = torch.where(log_kappa < self.knots[0], 0.0, percent)
        return torch.where(log_kappa > self.knots[-1], 100.0, percent)


class Confidence(nn.Module):
    """(embedding, map) to mu, log kappa, percentile (if there is a scale), log precisions (if any)."""

    def __init__(self, head: ConfidenceHead, scale: KappaScale | None) -> None:
        super().__init__()
        self.head, self.direction = head, Direction()
        self.percentile = None if scale is None else Percentile(scale)

    @property
    def names(self) -> list[str]:
        """Of the outputs, in order."""
        names = ["embedding", "log_kappa"]
        names += [] if self.percentile is None else ["kappa_percentile"]
        return names + (["log_precision"] if self.head.outputs > 1 else [])

    def forward(
        self, embedding: Float[Tensor, "n dim ..."], features: Float[Tensor, "n channels height width"]
    ) -> Columns:
        """The outputs, as `names` has them."""
        said = self.head(self.head.summarize(features, embedding.flatten(1)))
        log_kappa = self.head.to_log_kappa(said)
        columns = [self.direction(embedding), log_kappa]
        columns += [] if self.percentile is None else [self.percentile(log_kappa)]
        return tuple(columns + ([said] if said.ndim == 2 else []))
