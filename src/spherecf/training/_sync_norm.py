"""Batch normalisation over the whole batch, however many ranks it lies on."""

import torch
from torch import Tensor, nn

from spherecf.training._collectives import sum_over_ranks
from spherecf.training._ranks import Ranks


class RankBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation whose mean and variance are those of all ranks' images; ranks may differ in number.

    torch's own `SyncBatchNorm` does the same on GPUs, and only there.
    """

    ranks = Ranks()

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, channels, ...) over all but the channels."""
        if not self.training or self.ranks.size == 1:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        column = (1, -1, *[1] * (x.ndim - 2))
        # Twice the precision: the variance is a difference of sums.
        wide = x.double()
        count = x.new_tensor([x.numel() / x.shape[1]], dtype=torch.float64)
        sums = torch.cat([wide.sum(axes), wide.square().sum(axes), count])
        sums = sum_over_ranks(sums, self.ranks)
        channels, total = x.shape[1], sums[-1].detach()
        mean = sums[:channels] / total
        variance = (sums[channels:-1] / total - mean.square()).clamp_min(0)
        self._follow(mean.detach(), variance.detach() * total / (total - 1))
        scale = torch.rsqrt(variance + self.eps)
        y = ((wide - mean.view(column)) * scale.view(column)).to(x.dtype)
        if self.affine:
            y = y * self.weight.to(x.dtype).view(column) + self.bias.to(x.dtype).view(column)
        return y

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


def synchronize_batch_norm(module: nn.Module, ranks: Ranks) -> nn.Module:
    """Let every batch normalisation in a module see the whole batch; names and state stay as they are."""
    if ranks.size == 1:
        return module
    if ranks.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-any-return, no-untyped-call]
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            # The subclass adds behaviour, no state: changing the class keeps every reference to the module.
            child.__class__ = RankBatchNorm
            child.ranks = ranks  # type: ignore[assignment]
    return module
