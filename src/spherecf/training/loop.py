"""The training loop of both stages: steps over all ranks, mixed precision, checkpoints, resuming.

A `Task` defines what is learnt: its network, its optimizers, its batches and the loss. Read `_Trainer.train`,
then `_train_epoch` and `_train_step`: they follow one another as they run.
"""

import contextlib
import json
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import chain
from operator import mul
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spherecf.common.files import held, write_atomically
from spherecf.common.progress import progress
from spherecf.errors import InputError, MissingDependencyError, SpherecfError, StorageError
from spherecf.models import float32_arithmetic
from spherecf.training.checkpoint import CheckpointWriter, load_checkpoint
from spherecf.training.classifier import ShardedClassifier
from spherecf.training.config import EngineSettings, OptimizerSettings, ScheduleSettings, lr_factor
from spherecf.training.distributed import Ranks, synchronize_batch_norm
from spherecf.training.optim import (
    bound_gradients,
    is_fused,
    keep_kernels,
    prepared,
    set_lr,
    step_where,
)

LOG_FILE = "history.jsonl"
_READ_EVERY = 20  # steps: a read costs a GPU some milliseconds, a bad batch is reported within seconds
_VARIANTS = 64  # of one class of blocks: by stage, training or not, one size of batches or several


Rows = NDArray[np.int64]
Forward = Callable[..., Any]


class Part(NamedTuple):
    """This rank's part of a (micro-)batch.

    Attributes:
        rows: (n,) of the images that could be used.
        data: input of the task's loss, for these rows.
        skipped: reason by key of the images that could not.
    """

    rows: Rows
    data: Any
    skipped: dict[str, str]


class Loss(NamedTuple):
    """Scalars on the device.

    Attributes:
        backward: this rank's share of the loss, to be summed over ranks.
        value: the batch's loss.
        measures: further means over the batch, for the log of every step.
    """

    backward: Tensor
    value: Tensor
    measures: Mapping[str, Tensor] = MappingProxyType({})


@runtime_checkable
class Task(Protocol):
    """What the loop trains."""

    @property
    def network(self) -> nn.Module:
        """Replicated on every rank; its gradients are summed over ranks."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Over the network's parameters."""
        ...

    @property
    def classifier(self) -> ShardedClassifier | None:
        """Sharded over the ranks; None if there is none."""
        ...

    def batches(self, epoch: int) -> list[Rows]:
        """The global batches of an epoch, the same on every rank."""
        ...

    def cut(self, batch: Rows, parts: int) -> list[Rows]:
        """A batch as micro-batches."""
        ...

    def load(self, epoch: int, parts: Iterable[Rows]) -> Generator[Part, None, None]:
        """This rank's part of each micro-batch, read ahead."""
        ...

    def begin(self, rows: Rows, step: int) -> None:
        """Called before a step, with the rows of the whole batch."""
        ...

    def loss(self, forward: Forward, part: Part) -> Loss:
        """The mean loss of a (micro-)batch; ``forward`` is the network in the engine's precision."""
        ...

    def keys(self, rows: Rows) -> list[str]:
        """Keys of the images of these rows."""
        ...

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Metrics of the network after an epoch, the same on every rank."""
        ...

    def state(self) -> dict[str, Any]:
        """State beyond network, optimizer and classifier, for the checkpoint."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore `state`."""
        ...


@dataclass(frozen=True)
class Run:
    """Settings of one training.

    Attributes:
        epochs: in total.
        seed: of dropout and other draws of the network.
        optimizer, schedule, engine: settings.
        folder: for checkpoints and logs; None writes neither.
        identity: hash of settings and data: a checkpoint of another identity is not resumed.
        name: shown beside the progress bar.
        tensorboard: also write event files.
        each_epoch: called on rank 0 with (epoch from 0, steps so far), before the epoch's checkpoint.
    """

    epochs: int
    seed: int
    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    engine: EngineSettings
    folder: Path | None
    identity: str
    name: str
    tensorboard: bool = False
    each_epoch: Callable[[int, int], None] | None = None


@dataclass
class Outcome:
    """``history``: metrics by epoch; ``skipped``: reason by key of images that could not be used."""

    history: list[dict[str, float]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def run_training(task: Task, run: Run, ranks: Ranks) -> Outcome:
    """Train, resuming from the newest checkpoint of the same identity if there is one.

    Raises:
        InputError: precision "tf32" without a GPU, or ``engine.read_every`` above 1 without fused optimizers.
        SpherecfError: the loss is not finite; the keys of the batch are saved.
        StorageError: a checkpoint could not be written; the previous one is intact. Or another process trains
            in this folder.
        RankError: another rank is gone.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written; at once after a second one.
    """
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    with ExitStack() as stack:
        if run.folder is not None:
            folder = run.folder
            ranks.run_on_main(lambda: stack.enter_context(held(folder, "this folder")), run.name)
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(float32_arithmetic(run.engine.precision, ranks.device))
        return _Trainer(task, run, ranks).train()


@dataclass
class _Progress:
    """``step`` of all epochs, ``batch`` of the current one, and the current one's sums so far."""

    step: int = 0
    batch: int = 0
    total: float = 0.0
    counted: int = 0
    seen: int = 0
    nan: int = 0
    overflows: int = 0


class _Numbers(NamedTuple):
    """What a step leaves on the device to be read later.

    Attributes:
        shares: of each micro-batch in the batch; none if no image could be used.
        losses, measures: scalars of each micro-batch.
        norm: of the gradient before clipping, a scalar; in float16 times the loss scale.
    """

    shares: list[float]
    losses: list[Tensor]
    measures: list[Mapping[str, Tensor]]
    norm: Tensor

    def scalars(self) -> list[Tensor]:
        """Losses, measures and norm."""
        measures = chain.from_iterable(named.values() for named in self.measures)
        return [*self.losses, *measures, self.norm]


class _Step(NamedTuple):
    """A step that was taken: ``epoch``, ``step`` and ``batch`` from 0, its ``rows`` and rate ``lr``."""

    epoch: int
    step: int
    batch: int
    rows: Rows
    lr: float
    numbers: _Numbers


class _Trainer:
    def __init__(self, task: Task, run: Run, ranks: Ranks) -> None:
        self.task, self.run, self.ranks = task, run, ranks
        self.progress, self.outcome = _Progress(), Outcome()
        engine, network = run.engine, task.network
        self._precision = engine.precision_on(ranks.device)
        if engine.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if engine.sync_batch_norm:
            synchronize_batch_norm(network, ranks)
        self.network = self._distribute(_compiled(network) if engine.compile else network)
        # Loss scaling, in float16 only: gradients below 6e-8 would be 0 there; bfloat16 has float32's range.
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=self._precision == "float16")
        self._saved = time.monotonic()
        self._resumed_rng = False
        self._buffers_before: list[Tensor] = []
        # Numbers of steps are read together, since a read waits for all that the device has still to do.
        self._read_every = engine.read_every or (1 if ranks.device.type == "cpu" else _READ_EVERY)
        self._unread: list[_Step] = []
        if self._read_every > 1 and not all(map(is_fused, self.optimizers)):
            raise InputError(
                f"engine.read_every = {self._read_every}: only fused optimizers pass over a bad step without "
                "reading it; set optimizer.fused = true, or engine.read_every = 1"
            )
        self._writer = None if run.folder is None else CheckpointWriter(
            run.folder, run.identity, ranks, engine.keep
        )  # fmt: skip

    def _distribute(self, network: Any) -> nn.Module:
        if self.ranks.size == 1:
            return network  # type: ignore[no-any-return]
        device = self.ranks.device
        # Buffers are not broadcast: batch statistics are synchronised already, or meant to differ. Newer
        # versions of torch have another name for the option.
        known = signature(DistributedDataParallel.__init__).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        wrapped = DistributedDataParallel(
            network,
            [device] if device.type == "cuda" else None,
            **{option: False},  # type: ignore[arg-type]
        )
        wrapped.register_comm_hook(None, _sum_bucket)
        return wrapped

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        classifier = self.task.classifier
        return [self.task.optimizer, *(classifier.optimizers if classifier else [])]

    def train(self) -> Outcome:
        run, ranks = self.run, self.ranks
        self._resume()
        history = self.outcome.history
        first = len(history)
        folder, tensorboard = run.folder if ranks.is_main else None, run.tensorboard and ranks.is_main
        with (
            self._bar(first) as advance,
            RunLog(folder, tensorboard, history, self.progress.step) as log,
            stop_requested() as stop,
            self._writer or contextlib.nullcontext(),
        ):
            for epoch in range(first, run.epochs):
                started, seen = time.monotonic(), self.progress.seen
                self._train_epoch(epoch, log, stop, advance)
                rate = (self.progress.seen - seen) / (time.monotonic() - started)

                # Validation, on all ranks; then the caller's hook, on rank 0 alone.
                self._gather_skipped()
                metrics = self._epoch_metrics(epoch)
                history.append(metrics)
                if run.each_epoch is not None:
                    ranks.run_on_main(
                        partial(run.each_epoch, epoch, self.progress.step), "the end of an epoch"
                    )

                # The log may be ahead of the checkpoint, which is still being written: a resumed run rewrites
                # the log from its checkpoint, not the reverse.
                self.progress = _Progress(step=self.progress.step)
                self._save()
                log.epoch(metrics, {"images_per_second": rate}, self.progress.step)
                loss = metrics.get("held_out_loss", metrics["train_loss"])
                advance(0, f"epoch {epoch + 1}/{run.epochs}, loss {loss:.4g}")
            if self._writer is not None:
                self._writer.wait()
        return self.outcome

    @contextmanager
    def _bar(self, epoch: int) -> Iterator[Callable[..., None]]:
        if not self.ranks.is_main:
            yield lambda count=1, note=None: None
            return
        per_epoch = sum(map(len, self.task.batches(epoch))) if epoch < self.run.epochs else 0
        done = per_epoch * epoch + self.progress.seen
        with progress(self.run.name, per_epoch * self.run.epochs, done) as advance:
            yield advance

    def _train_epoch(
        self, epoch: int, log: "RunLog", stop: threading.Event, advance: Callable[..., None]
    ) -> None:
        task, ranks, progress = self.task, self.ranks, self.progress
        # The batches depend on seed and epoch alone, so a resumed run skips those it has done.
        batches = task.batches(epoch)
        remaining = batches[progress.batch :]
        micro = [task.cut(batch, self.run.engine.accumulate) for batch in remaining]
        local = (rows[ranks.share(len(rows))] for cut in micro for rows in cut)
        # Dropout: other draws on each rank; a resumed rank goes on with its saved state, if it has one.
        if not self._resumed_rng:
            seed = self.run.seed * 1_000_003 + epoch + progress.batch * 7919 + ranks.rank * 104_729
            torch.manual_seed(seed)
        self._resumed_rng = False
        self.network.train()

        with closing(task.load(epoch, local)) as parts:
            for batch, cut in zip(remaining, micro):
                # Learning rate.
                done = epoch + progress.batch / len(batches)
                factor = lr_factor(self.run.schedule, self.run.epochs, done, self.outcome.history)
                lr = set_lr(self.optimizers, factor)

                # Data to optimiser.
                task.begin(batch, progress.step)
                numbers = self._train_step([(next(parts), len(rows)) for rows in cut])
                self._unread.append(_Step(epoch, progress.step, progress.batch, batch, lr, numbers))
                progress.step, progress.batch = progress.step + 1, progress.batch + 1
                progress.seen += len(batch)

                # Is a checkpoint due, did a signal come, could one not be written? Ranks see this at
                # different times, so they agree. The checkpoint at the end of an epoch is `train`'s.
                last, minutes = progress.batch == len(batches), (time.monotonic() - self._saved) / 60
                due = not last and minutes > self.run.engine.save_minutes
                failed = self._writer is not None and self._writer.failed
                save, interrupt, failed = ranks.any(due and ranks.is_main, stop.is_set(), failed)

                # Log, read from the device now and then.
                if last or save or interrupt or len(self._unread) >= self._read_every:
                    loss = self._read(log)
                    advance(len(batch), f"epoch {epoch + 1}/{self.run.epochs}, loss {loss:.4g}")
                else:
                    advance(len(batch))
                if save or interrupt:
                    self._save()
                if self._writer is not None and (failed or interrupt):
                    self._writer.wait()
                if interrupt:
                    raise KeyboardInterrupt

    def _train_step(self, parts: Sequence[tuple[Part, int]]) -> _Numbers:
        """One step of all optimizers; none where loss or gradient is not finite.

        Args:
            parts: of each micro-batch this rank's part, and its number of rows over all ranks.
        """
        task, classifier = self.task, self.task.classifier

        # Data: unreadable images are left out, and micro-batches for which no rank has a readable one.
        for part, _ in parts:
            self.outcome.skipped.update(part.skipped)
        usable = [(part, rows) for part, rows in parts if sum(self.ranks.counts(len(part.rows)))]
        rows_in_all = sum(rows for _, rows in usable)
        numbers = _Numbers([], [], [], torch.zeros((), device=self.ranks.device))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._keep_buffers()
        if not usable:
            return numbers

        for number, (part, rows) in enumerate(usable):
            # Reduce, of the replicated network: its hooks sum gradients over ranks during the backward pass,
            # once per step, so only in the last micro-batch.
            with self._sync_gradients(last=number == len(usable) - 1):
                # Forward: every rank has the same value, so all of them step, or none.
                loss = task.loss(self._forward, part)
                numbers.shares.append(rows / rows_in_all)
                numbers.losses.append(loss.value.detach())
                numbers.measures.append(loss.measures)

                # Backward: gradients of micro-batches accumulate to that of the batch's mean.
                self._backward(self.scaler.scale(loss.backward * numbers.shares[-1]))

        # Reduce, of the margin's parameters. Prototypes are sharded: each rank has its rows' whole gradient.
        if classifier:
            classifier.reduce_gradients()

        # Clip by the norm over replicated and sharded parameters.
        replicated = list(task.network.parameters())
        sharded = [classifier.rows.active] if classifier else []
        finite = torch.isfinite(torch.stack(numbers.losses)).all()
        unclipped = OptimizerSettings(clip_norm=0.0, clip_value=0.0)
        clipping = unclipped if self.scaler.is_enabled() else self.run.optimizer
        norm = bound_gradients(replicated, sharded, clipping, self.ranks)
        numbers = numbers._replace(norm=norm)
        # In float16 an overflow is expected now and then: the scaler skips the step and lowers its scale.
        if not self.scaler.is_enabled():
            finite &= torch.isfinite(norm)
        if self._read_every == 1 and not bool(finite):
            self._restore_buffers(finite)
            return numbers
        if self.scaler.is_enabled():
            self._share_overflow(norm + sum(numbers.losses))
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            bound_gradients(replicated, sharded, self.run.optimizer, self.ranks)

        # Optimiser: where not every step is read, a bad one is passed over on the device.
        for optimizer in self.optimizers:
            if self.scaler.is_enabled() or self._read_every == 1:
                self.scaler.step(prepared(optimizer))
            else:
                step_where(finite, optimizer)
        self.scaler.update()
        if self._read_every > 1:
            self._restore_buffers(finite)
        if classifier:
            classifier.end()
        return numbers

    def _read(self, log: "RunLog") -> float:
        """Read the numbers of the steps since the last read, the one place that waits for the device.

        Returns:
            The mean loss of the last batch; NaN where no step was taken.
        """
        progress, loss = self.progress, math.nan
        steps, self._unread = self._unread, []
        read = iter(torch.stack([scalar for step in steps for scalar in step.numbers.scalars()]).tolist())
        for step in steps:
            shares = step.numbers.shares
            losses = [next(read) for _ in shares]
            measures = [{name: next(read) for name in named} for named in step.numbers.measures]
            norm, problem = next(read), ""
            if bad := [value for value in losses if not math.isfinite(value)]:
                problem = f"the loss is {bad[0]}"
            elif not math.isfinite(norm) and self.scaler.is_enabled():
                progress.overflows += 1
            elif not math.isfinite(norm):
                problem = "the gradient is not finite"
            if problem:
                self._not_finite(step, problem)
            # A batch without a finite loss is not part of the epoch's mean.
            loss = math.nan if problem or not losses else sum(map(mul, shares, losses))
            if math.isfinite(loss):
                progress.total += loss * len(step.rows)
                progress.counted += len(step.rows)
            means = {
                name: sum(share * named[name] for share, named in zip(shares, measures))
                for name in (measures[0] if measures else ())
            }
            log.step(step.step + 1, {"loss": loss, "lr": step.lr}, means)
        return loss

    def _forward(self, *arguments: Any) -> Any:
        if self._precision in ("float32", "tf32"):
            return self.network(*arguments)
        with torch.autocast(self.ranks.device.type, getattr(torch, self._precision)):
            return self.network(*arguments)

    def _backward(self, loss: Tensor) -> None:
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # a peer may die inside the collectives of the backward pass
            if self.ranks.is_lost(error):
                raise self.ranks.lost(error) from error
            raise

    def _sync_gradients(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Ranks exchange gradients in the last micro-batch of a step only."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return contextlib.nullcontext()

    def _share_overflow(self, norm: Tensor) -> None:
        """Let all optimizers of all ranks skip a step that overflowed in one; a scaler sees each alone."""
        for optimizer in self.optimizers:
            parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
            for parameter in [p for p in parameters if p.grad is not None][:1]:
                parameter.grad.add_(norm * 0)  # NaN if the norm over all of them is not finite

    def _not_finite(self, step: _Step, problem: str) -> None:
        """Save the keys of the batch; then count it, as it was skipped, or stop."""
        keys, saved = self.task.keys(step.rows), ""
        if self.run.folder is not None and self.ranks.is_main:
            path = self.run.folder / f"not-finite-{step.step:09d}.json"
            facts = {"epoch": step.epoch + 1, "batch": step.batch + 1, "problem": problem, "keys": keys}
            write_atomically(path, lambda stream: stream.write(json.dumps(facts, indent=1).encode()))
            saved = f" (all {len(keys)} keys are in {path})"
        if self.run.engine.on_nan == "skip":
            self.progress.nan += 1
            return
        raise SpherecfError(
            f"epoch {step.epoch + 1}, batch {step.batch + 1}: {problem}, in a batch of {len(keys)} with "
            f"{', '.join(keys[:5])}, ...{saved}; the last checkpoint is kept. Lower optimizer.lr, look at "
            'these images, or set engine.on_nan = "skip".'
        )

    def _keep_buffers(self) -> None:
        # The forward pass updates batch statistics, also of a batch that is skipped afterwards.
        if self.run.engine.on_nan == "skip" and (buffers := self._buffers()):
            self._buffers_before = self._buffers_before or [torch.empty_like(buffer) for buffer in buffers]
            torch._foreach_copy_(self._buffers_before, buffers)

    def _restore_buffers(self, finite: Tensor) -> None:
        """Undo the statistics of the step unless it was ``finite``, a scalar on the device."""
        if self._buffers_before:
            pairs = zip(self._buffers(), self._buffers_before, strict=True)
            torch._foreach_copy_(self._buffers(), [torch.where(finite, now, before) for now, before in pairs])

    def _buffers(self) -> list[Tensor]:
        classifier = self.task.classifier
        return [*self.task.network.buffers(), *(classifier.margin.buffers() if classifier else ())]

    def _epoch_metrics(self, epoch: int) -> dict[str, float]:
        progress = self.progress
        if not progress.counted and progress.nan:
            raise SpherecfError(
                f"epoch {epoch + 1}: all of its {progress.nan} batches were skipped, "
                "as loss or gradient was not finite; the last checkpoint is kept. Lower optimizer.lr."
            )
        if not progress.counted:
            key, reason = next(iter(self.outcome.skipped.items()))
            raise InputError(
                f"epoch {epoch + 1}: none of its {progress.seen} images could be used. The first, {key}: "
                f"{reason}"
            )
        lr = float(self.task.optimizer.param_groups[0]["lr"])
        metrics: dict[str, float] = {"train_loss": progress.total / max(1, progress.counted), "lr": lr}
        counts = {"not_finite": progress.nan, "overflows": progress.overflows}
        metrics |= {name: float(count) for name, count in counts.items() if count}
        self.network.eval()
        return metrics | self.task.end_epoch(epoch)

    def _save(self) -> None:
        self._saved = time.monotonic()
        task, ranks = self.task, self.ranks
        if self._writer is None:
            return
        self._gather_skipped()
        rng = {"cpu": torch.get_rng_state()}
        if ranks.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(ranks.device)
        shard = {} if task.classifier is None else task.classifier.rows.state()
        self._writer.save(self.progress.step, common=self._common, private={"rng": rng}, shard=shard)

    def _common(self) -> Mapping[str, Any]:
        task = self.task
        return {
            "network": task.network.state_dict(),
            "optimizer": task.optimizer.state_dict(),
            "classifier": None if task.classifier is None else task.classifier.state(),
            "scaler": self.scaler.state_dict(),
            "task": task.state(),
            "place": vars(self.progress),  # the key of the first checkpoints
            "history": self.outcome.history,
            "skipped": self.outcome.skipped,
        }

    def _resume(self) -> None:
        run, task, ranks = self.run, self.task, self.ranks
        if run.folder is None:
            return
        classifier = task.classifier
        rows = None if classifier is None else slice(classifier.first, classifier.last)
        saved = load_checkpoint(run.folder, run.identity, ranks, rows)
        if saved is None:
            return
        common = saved.common
        task.network.load_state_dict(common["network"])
        task.optimizer.load_state_dict(keep_kernels(task.optimizer, common["optimizer"]))
        if classifier is not None:
            if classifier.margin_optimizer is not None:
                keep_kernels(classifier.margin_optimizer, common["classifier"]["margin_optimizer"])
            classifier.load_state(common["classifier"])
            classifier.rows.load({name: value.to(ranks.device) for name, value in saved.shard.items()})
        # A run may go on in another precision: then there is no state of a scaler, or no use for it.
        if self.scaler.is_enabled() and common["scaler"]:
            self.scaler.load_state_dict(common["scaler"])
        task.load_state(common["task"])
        self.progress = _Progress(**common["place"])
        self.outcome = Outcome(common["history"], common["skipped"])
        # Inside an epoch, and with as many ranks as before, dropout goes on to the bit.
        if saved.private is not None and self.progress.batch:
            torch.set_rng_state(saved.private["rng"]["cpu"])
            if "cuda" in saved.private["rng"]:
                torch.cuda.set_rng_state(saved.private["rng"]["cuda"], ranks.device)
            self._resumed_rng = True

    def _gather_skipped(self) -> None:
        for skipped in self.ranks.all_gather_object(self.outcome.skipped):
            self.outcome.skipped.update(skipped)


def _compiled(network: nn.Module) -> Any:
    """The network compiled block by block, in place, or as a whole if no kind of block repeats.

    Blocks of one kind and size share their code, so that the compiler's time is that of some blocks, whatever
    the depth.
    """
    kinds = Counter(type(module) for module in network.modules())
    blocks = _repeated(network, kinds)
    if not blocks or any(getattr(module, "checkpointing", False) for module in network.modules()):
        return torch.compile(network)
    limits = torch._dynamo.config  # torch 2.6 has this name only, later versions as an alias
    limits.cache_size_limit = max(limits.cache_size_limit, _VARIANTS)
    for block in blocks:
        block.compile()
        compiled: Any = block._compiled_call_impl
        block._compiled_call_impl = partial(_call_static, compiled)
    return network


def _repeated(module: nn.Module, kinds: Mapping[type, int]) -> list[nn.Module]:
    """The outermost modules with layers of their own and a class that occurs more than once."""
    blocks = []
    for child in module.children():
        block = kinds[type(child)] > 1 and not isinstance(child, nn.Sequential | nn.ModuleList)
        callable_ = type(child).forward is not nn.Module.forward and any(True for _ in child.children())
        blocks += [child] if block and callable_ else _repeated(child, kinds)
    return blocks


def _call_static(compiled: Callable[..., Any], *arguments: Any) -> Any:
    # Stages differ in the size of their maps, which must not make the code of all of them general; only the
    # number of images may vary.
    for x in arguments:
        if isinstance(x, Tensor):
            torch._dynamo.mark_static(x, list(range(1, x.ndim)))
    return compiled(*arguments)


def _sum_bucket(  # torch looks at these annotations
    state: object,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    # A sum, where torch has a mean by default: each rank's loss is its share of the batch's mean already.
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return summed


class RunLog:
    """Appends to ``folder/history.jsonl``, after writing the epochs that a resumed run has done already."""

    def __init__(
        self, folder: Path | None, tensorboard: bool, history: Sequence[Mapping[str, float]], step: int = 0
    ) -> None:
        self._epochs = 0
        self._path = None if folder is None else folder / LOG_FILE
        self._writer: Any = None
        if tensorboard:
            if folder is None:
                raise InputError("TensorBoard events need a folder to go to")
            self._writer = _event_writer(folder / "runs", step)
        lines = "".join(self._next(metrics) for metrics in history).encode()
        if self._path is not None:
            write_atomically(self._path, lambda stream: stream.write(lines))

    def step(
        self, step: int, metrics: Mapping[str, float], measures: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Write every tenth step as TensorBoard events; ``measures`` of every step, counted from 0."""
        if self._writer is None:
            return
        if step % 10 == 0:
            self._scalars("step/", metrics, step)
        self._scalars("", measures, step - 1)

    def epoch(self, metrics: Mapping[str, float], speed: Mapping[str, float], step: int) -> None:
        """Write the next epoch; its speed is an event only: the history is the same for every run."""
        self._line(metrics)
        if self._writer is not None:
            self._scalars("epoch/", {**metrics, **speed}, step)

    def _scalars(self, prefix: str, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{prefix}{name}", value, step)

    def _next(self, metrics: Mapping[str, float]) -> str:
        self._epochs += 1
        return json.dumps({"epoch": self._epochs, **metrics}) + "\n"

    def _line(self, metrics: Mapping[str, float]) -> None:
        line = self._next(metrics)
        if self._path is not None:
            with _storing(self._path), self._path.open("a") as stream:
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: could not be written ({error.strerror or error}); the last checkpoint is intact. "
            "Free some space, then run the same command again"
        ) from error


def _event_writer(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "TensorBoard is not installed: pip install 'spherecf[train]', or leave --tensorboard out"
        ) from error
    # Events after the checkpoint were written by steps that are now done again.
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


_SAME_REQUEST = 3.0  # seconds within which a further signal repeats the first one


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second signal, some seconds later, interrupts at once."""
    stop, requested = threading.Event(), [0.0]
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: object) -> None:
        # On Ctrl-C the terminal signals every process, and a launcher forwards the signal once more.
        if stop.is_set() and time.monotonic() - requested[0] > _SAME_REQUEST:
            raise KeyboardInterrupt
        if not stop.is_set():
            requested[0] = time.monotonic()
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError, TypeError):
                signal.signal(number, handler)
