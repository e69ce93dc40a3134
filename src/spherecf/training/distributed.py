"""The processes that train together: collectives with and without gradients, shared statistics."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

# The default arguments of these functions hold the default group of the time of their import. Imported
# later (the optimisers do, by way of torch's compiler), they would keep the group beyond
# `destroy_process_group`, and its threads would meet the end of the interpreter, which now and then aborts
# the process.
import torch.distributed.nn.functional
from torch import Tensor, nn

from spherecf.common.progress import hide_bars
from spherecf.errors import InputError, RankError

Thing = TypeVar("Thing")

_TIMEOUT = timedelta(hours=3)  # a rank that is slow to read, or verifies after an epoch, is not dead


@dataclass(frozen=True)
class Ranks:
    """One of ``size`` processes, each with one device; alone by default, where every collective is free.

    Attributes:
        rank: 0 .. size - 1; rank 0 reports and writes.
        size: number of processes.
        device: where this one computes.

    Example:
        >>> ranks = Ranks()
        >>> ranks.leads, ranks.share(10), ranks.sum_(torch.ones(2)).tolist()
        (True, slice(0, 10, None), [1.0, 1.0])
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """This process speaks for all."""
        return self.rank == 0

    def share(self, count: int, of: int | None = None) -> slice:
        """The part of ``count`` things that this rank, or rank ``of``, takes: contiguous, nearly equal.

        Example:
            >>> [Ranks(rank, 3).share(8) for rank in range(3)]
            [slice(0, 3, None), slice(3, 6, None), slice(6, 8, None)]
        """
        rank = self.rank if of is None else of
        least, more = divmod(count, self.size)
        start = rank * least + min(rank, more)
        return slice(start, start + least + (rank < more))

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over ranks, in place."""
        if self.size > 1:
            with self._guard():
                dist.all_reduce(tensor)
        return tensor

    def max_(self, tensor: Tensor) -> Tensor:
        """Largest over ranks, in place."""
        if self.size > 1:
            with self._guard():
                dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def counts(self, count: int) -> list[int]:
        """What every rank says."""
        if self.size == 1:
            return [count]
        every = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        every[self.rank] = count
        counts: list[int] = self.sum_(every).tolist()
        return counts

    def gather(self, rows: Tensor, counts: list[int] | None = None) -> Tensor:
        """The rows (n_r, ...) of all ranks, in rank order; ranks may bring different numbers. No gradient."""
        if self.size == 1:
            return rows
        counts = counts or self.counts(len(rows))
        most = max(counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows.detach()
        every = [torch.empty_like(padded) for _ in counts]
        with self._guard():
            dist.all_gather(every, padded)
        return torch.cat([part[:count] for part, count in zip(every, counts)])

    def tell(self, thing: Thing) -> Thing:
        """What rank 0 holds, for all: any plain Python object."""
        if self.size == 1:
            return thing
        box: list[Any] = [thing]
        with self._guard():
            dist.broadcast_object_list(box, src=0, device=self.device)
        told: Thing = box[0]
        return told

    def collect(self, thing: Thing) -> list[Thing]:
        """What every rank holds: plain Python objects, in rank order."""
        if self.size == 1:
            return [thing]
        every: list[Any] = [None] * self.size
        with self._guard():
            dist.all_gather_object(every, thing)
        return every

    def together(self, work: Callable[[], Thing], what: str) -> Thing:
        """Do something on every rank, and know whether all of them could.

        Raises:
            RankError: another rank failed; a rank's own error is raised on that rank itself.
        """
        error: Exception | None = None
        try:
            done = work()
        except Exception as problem:
            error = problem
        failed = [rank for rank, bad in enumerate(self.counts(int(error is not None))) if bad]
        if error is not None:
            raise error
        if failed:
            raise RankError(f"{what}: rank {failed[0]} of {self.size} failed; its own message says why")
        return done

    def lead(self, work: Callable[[], object], what: str) -> None:
        """`together`, but the work is rank 0's alone: the others wait."""
        self.together(work if self.leads else lambda: None, what)

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # every backend has its own class for a peer that is gone
            raise self.lost(error) from error

    def is_lost(self, error: Exception) -> bool:
        """Whether an error inside autograd came from a collective, and not from arithmetic."""
        by_name = any(name in str(error) for name in ("gloo", "NCCL", "Connection closed"))
        return self.size > 1 and (by_name or isinstance(error, dist.DistError))

    def lost(self, error: Exception) -> RankError:
        """The error of a collective in words a person can act on."""
        return RankError(
            f"rank {self.rank} of {self.size}: another rank is gone or did not answer "
            f"({str(error).strip().splitlines()[0][:200]}). Look at its message. The last checkpoint is "
            "whole: run the same command again, with any number of ranks, to go on from it."
        )


@contextmanager
def join_ranks(device: str = "auto") -> Iterator[Ranks]:
    """Join the ranks that ``torchrun`` started, by its environment variables; without them, be alone.

    Gloo between CPUs, NCCL between GPUs; rank r of a machine takes its GPU number r.

    Args:
        device: ``"auto"`` (a GPU where there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        InputError: no such device.
        RankError: the others did not come.

    Example:
        >>> with join_ranks("cpu") as ranks:
        ...     ranks.size
        1
    """
    local, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = _device(device, local)
    if size == 1:
        yield Ranks(device=place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    ranks = Ranks(int(os.environ["RANK"]), size, place)
    if not ranks.leads:
        hide_bars()
    try:
        dist.init_process_group("nccl" if place.type == "cuda" else "gloo", timeout=_TIMEOUT)
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
        raise InputError(f"device {name!r} is not there; this machine has the CPU only, or torch no CUDA")
    index = local if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise InputError(
            f"GPU {index} is not there: this machine has {torch.cuda.device_count()}; start fewer ranks on it"
        )
    return torch.device("cuda", index)


def gather_rows(rows: Tensor, ranks: Ranks, *, replicated: bool) -> Tensor:
    """The rows of all ranks (n, ...), from each rank's (n_r, ...), with gradients back to each rank's own.

    Args:
        replicated: True where every rank goes on to compute the *same* loss of all rows: the gradient of its
            own rows is then whole. False where each rank computes a *part* of it (the classes it holds): the
            parts are summed over ranks.
    """
    if ranks.size == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows, ranks, replicated)  # type: ignore[no-untyped-call]
    return gathered


def sum_over_ranks(values: Tensor, ranks: Ranks) -> Tensor:
    """Sum over ranks; the gradient is the sum of all ranks' gradients."""
    if ranks.size == 1:
        return values
    total: Tensor = _Sum.apply(values, ranks)  # type: ignore[no-untyped-call]
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, replicated: bool) -> Tensor:
        counts = ranks.counts(len(rows))
        start = sum(counts[: ranks.rank])
        ctx.ranks, ctx.own, ctx.replicated = ranks, slice(start, start + len(rows)), replicated
        return ranks.gather(rows, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        if not ctx.replicated:
            grad = ctx.ranks.sum_(grad.contiguous().clone())
        return grad[ctx.own], None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.sum_(values.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.sum_(grads[0].contiguous().clone()), None


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
