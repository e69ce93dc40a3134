"""Distributed training: ranks, collectives with and without gradients, synchronised batch normalisation."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# Import this module before a process group exists: its functions have the current group as default arguments.
# If it is imported later (the optimizers import it through torch's compiler), it keeps the group alive after
# `destroy_process_group`, and the group's threads can abort the process when the interpreter exits.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from spherecf.common.progress import hide_bars
from spherecf.errors import InputError, RankError, SpherecfError

T = TypeVar("T")

_JOIN_TIMEOUT = timedelta(minutes=10)  # torchrun starts all ranks together
_TIMEOUT = timedelta(hours=3)  # the other ranks wait while one rank reads data or validates


@dataclass(frozen=True)
class Ranks:
    """One of ``size`` processes with one device each; by default a single process without communication.

    Attributes:
        rank: index of this process, 0 .. size - 1; rank 0 logs and writes files.
        size: number of processes.
        device: of this process.

    Example:
        >>> ranks = Ranks()
        >>> ranks.is_main, ranks.share(10), ranks.sum_(torch.ones(2)).tolist()
        (True, slice(0, 10, None), [1.0, 1.0])
        >>> ranks.any(True, False)
        (True, False)
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which logs and writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The contiguous share of ``count`` items for this rank; the shares of all ranks are nearly equal.

        Example:
            >>> [Ranks(rank, 3).share(8) for rank in range(3)]
            [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
        """
        items, remainder = divmod(count, self.size)
        start = self.rank * items + min(self.rank, remainder)
        return slice(start, start + items + (self.rank < remainder))

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            with self.guard():
                dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """Maximum over ranks, in place."""
        if self.size > 1:
            with self.guard():
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag, whether it is set on any rank; does not wait for GPUs."""
        if self.size == 1:
            return flags
        return tuple(map(bool, self.max_(torch.tensor(flags, dtype=torch.uint8)).tolist()))

    def counts(self, count: int) -> list[int]:
        """The counts of all ranks, in rank order; does not wait for GPUs."""
        if self.size == 1:
            return [count]
        counts = torch.zeros(self.size, dtype=torch.int64)  # on the CPU, to avoid waiting for a GPU
        counts[self.rank] = count
        gathered: list[int] = self.sum_(counts).tolist()
        return gathered

    def gather(self, rows: Tensor, counts: list[int] | None = None) -> Tensor:
        """Concatenate the rows (n_r, ...) of all ranks in rank order, (n, ...); without gradients."""
        if self.size == 1:
            return rows
        counts = counts or self.counts(len(rows))
        # all_gather needs tensors of equal shape: pad with zeros to the largest n_r.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])  # (max n_r, ...)
        padded[: len(rows)] = rows.detach()
        gathered = [torch.empty_like(padded) for _ in counts]
        with self.guard():
            dist.all_gather(gathered, padded)
        return torch.cat([part[:count] for part, count in zip(gathered, counts)])  # (sum n_r, ...)

    def broadcast_object(self, value: T) -> T:
        """Send rank 0's value, any picklable object, to every rank."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        with self.guard():
            dist.broadcast_object_list(values, src=0)
        received: T = values[0]
        return received

    def all_gather_object(self, value: T) -> list[T]:
        """Collect the values of all ranks, any picklable objects, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self.guard():
            dist.all_gather_object(values, value)
        return values

    def run_on_all(self, work: Callable[[], T], description: str) -> T:
        """Run ``work`` on every rank; if it fails on one, raise on all, so that no rank waits for it.

        Raises:
            RankError: another rank failed. The rank that failed raises its own error.
        """
        error: Exception | None = None
        try:
            result = work()
        except Exception as raised:
            error = raised
        failed = [rank for rank, bad in enumerate(self.counts(int(error is not None))) if bad]
        if error is not None:
            raise error
        if failed:
            raise RankError(f"{description}: rank {failed[0]} of {self.size} failed; see its error message")
        return result

    def run_on_main(self, work: Callable[[], object], description: str) -> None:
        """Run ``work`` on rank 0 while the others wait; raises as `run_on_all`."""
        self.run_on_all(work if self.is_main else lambda: None, description)

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Report a rank that is lost during a collective, also one that torch starts, with the remedy.

        Raises:
            RankError: another rank has ended or does not respond.
        """
        try:
            yield
        except RuntimeError as error:  # the exception for a lost rank depends on the backend
            text = str(error).strip().partition("\n")[0][:200]
            by_name = any(name in str(error) for name in ("gloo", "NCCL", "Connection closed"))
            lost = self.size > 1 and (by_name or isinstance(error, dist.DistError))
            if isinstance(error, SpherecfError) or not lost:
                raise
            raise RankError(
                f"rank {self.rank} of {self.size}: another rank is gone or did not respond ({text}). See its "
                "message. The last checkpoint is intact: run the same command again, with any number of "
                "ranks, to resume from it."
            ) from error


@contextmanager
def join_ranks(device: str = "auto") -> Iterator[Ranks]:
    """Join the ranks started by ``torchrun``, by its environment variables; without them, a single process.

    CPUs communicate through Gloo, GPUs through NCCL, with Gloo for values in CPU memory. Local rank r of a
    machine uses GPU r.

    Args:
        device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        InputError: no such device.
        RankError: the ranks cannot connect within ten minutes.

    Example:
        >>> with join_ranks("cpu") as ranks:
        ...     ranks.size
        1
    """
    local, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local_device = _device(device, local)
    if size == 1:
        yield Ranks(device=local_device)
        return
    if local_device.type == "cuda":
        torch.cuda.set_device(local_device)
    ranks = Ranks(int(os.environ.get("RANK", 0)), size, local_device)  # torch refuses to join without RANK
    if not ranks.is_main:
        hide_bars()
    try:
        # Gloo in addition to NCCL: counts, flags and objects are exchanged without waiting for a GPU.
        backend = "cpu:gloo,cuda:nccl" if local_device.type == "cuda" else "gloo"
        # As `init_process_group` does by itself, but not with hours to wait for a rank that never started.
        store, rank, _ = next(rendezvous("env://", timeout=_JOIN_TIMEOUT))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
        store.set_timeout(_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise RankError(f"rank {ranks.rank} of {size} cannot join the others: {error}") from error
    try:
        yield ranks
    finally:
        dist.destroy_process_group()


def _device(name: str, local: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cpu":
        return device
    if device.type != "cuda" or not torch.cuda.is_available():
        raise InputError(
            f"device {name!r} is not available: this machine has no GPU, or torch was built without CUDA"
        )
    index = local if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise InputError(
            f"GPU {index} is not available: this machine has {torch.cuda.device_count()}; start fewer ranks"
        )
    return torch.device("cuda", index)


def gather_rows(rows: Tensor, ranks: Ranks, *, replicated: bool) -> Tensor:
    """Concatenate the rows (n_r, ...) of all ranks, (n, ...), with gradients to each rank's rows.

    Args:
        rows: of this rank.
        ranks: that gather together.
        replicated: True if every rank computes the *same* loss of all rows, so that the incoming gradient is
            complete. False if each rank computes a *part* of the loss (that of its classes), so that
            gradients must be summed over ranks.
    """
    if ranks.size == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows, ranks, replicated)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, replicated: bool) -> Tensor:
        counts = ranks.counts(len(rows))
        start = sum(counts[: ranks.rank])
        ctx.ranks, ctx.local, ctx.replicated = ranks, slice(start, start + len(rows)), replicated
        return ranks.gather(rows, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        if not ctx.replicated:
            grad = ctx.ranks.sum_(grad.contiguous().clone())
        return grad[ctx.local], None, None  # (n_r, ...)


class _Sum(torch.autograd.Function):
    """The sum over ranks; its gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum_(values.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum_(grads[0].contiguous().clone()), None


class RankBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation with mean and variance over the images of all ranks, which may differ in number.

    For the CPU, which torch's `SyncBatchNorm` does not support.
    """

    ranks: Ranks

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, channels, ...) over all dimensions except the channels."""
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        per_channel = (1, -1, *[1] * (x.ndim - 2))
        # float64, because the variance E[x^2] - E[x]^2 suffers from cancellation. One collective for all.
        wide = x.double()
        count = x.new_tensor([x.numel() / x.shape[1]], dtype=torch.float64)
        local_sums = torch.cat([wide.sum(axes), wide.square().sum(axes), count])  # (2 channels + 1,)
        sums: Tensor = _Sum.apply(local_sums, self.ranks)  # type: ignore[no-untyped-call]
        channels, total = x.shape[1], sums[-1].detach()
        mean = sums[:channels] / total  # (channels,)
        variance = (sums[channels:-1] / total - mean.square()).clamp_min(0)  # (channels,)
        # As in torch: the batch is normalised by the biased variance; the running variance is unbiased.
        self._update_running(mean.detach(), variance.detach() * total / (total - 1))
        scale = torch.rsqrt(variance + self.eps)
        y = ((wide - mean.view(per_channel)) * scale.view(per_channel)).to(x.dtype)
        if self.affine:
            y = y * self.weight.to(x.dtype).view(per_channel) + self.bias.to(x.dtype).view(per_channel)
        return y

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        # The networks of `NETWORKS` have running statistics with a momentum.
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


def synchronize_batch_norm(module: nn.Module, ranks: Ranks) -> nn.Module:
    """Synchronise every batch normalisation of a module over ranks; names and state are unchanged."""
    if ranks.size == 1:
        return module
    if ranks.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-any-return, no-untyped-call]
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            # The subclass adds no state, so changing the class in place keeps all references to the module.
            child.__class__ = RankBatchNorm
            child.ranks = ranks  # type: ignore[assignment]
    return module
