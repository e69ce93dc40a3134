"""The training loop of both stages: distributed steps, mixed precision, checkpoints, resuming.

A `Task` defines what is trained: network, optimizers, batches and loss. To follow a run, read
`_Trainer.train`, `_train_epoch` and `_train_step`, in this order.
"""

import contextlib
import ctypes
import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import chain
from operator import mul
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spherecf.common.compiling import compiled
from spherecf.common.files import locked, write_atomically
from spherecf.common.progress import print_text, progress
from spherecf.errors import InputError, MissingDependencyError, SpherecfError, StorageError
from spherecf.models import float32_arithmetic
from spherecf.training.checkpoint import CheckpointWriter, load_checkpoint, other_checkpoints
from spherecf.training.classifier import ShardedClassifier
from spherecf.training.config import EngineSettings, OptimizerSettings, ScheduleSettings, lr_factor
from spherecf.training.distributed import Ranks, synchronize_batch_norm
from spherecf.training.optim import (
    clip_gradients,
    is_fused,
    keep_kernels,
    set_lr,
    step_if_finite,
    with_momentum,
)

LOG_FILE = "history.jsonl"
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of mallopt(3)
_READ_EVERY = 20  # steps between reads: a read costs a GPU milliseconds; bad batches surface within seconds


Rows = NDArray[np.int64]
Forward = Callable[..., Any]


class Part(NamedTuple):
    """This rank's part of a (micro-)batch.

    Attributes:
        rows: (n,) rows of the usable images.
        data: input of the task's loss for these rows.
        skipped: reason by key of the unusable images.
    """

    rows: Rows
    data: Any
    skipped: dict[str, str]


class Loss(NamedTuple):
    """Losses of a (micro-)batch, as scalars on the device.

    Attributes:
        backward: this rank's share of the loss; its gradients are summed over ranks.
        value: the loss over all ranks.
        measures: further means over the batch, logged in every step.
    """

    backward: Tensor
    value: Tensor
    measures: Mapping[str, Tensor] = MappingProxyType({})


@runtime_checkable
class Task(Protocol):
    """A training problem: network, optimizer, batches and loss."""

    @property
    def network(self) -> nn.Module:
        """Replicated on every rank; its gradients are summed over ranks."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of the network's parameters."""
        ...

    @property
    def classifier(self) -> ShardedClassifier | None:
        """The classifier, sharded over ranks; None if the task has none."""
        ...

    def batches(self, epoch: int) -> list[Rows]:
        """The global batches of an epoch, the same on every rank."""
        ...

    def cut(self, batch: Rows, parts: int) -> list[Rows]:
        """Divide a batch into micro-batches."""
        ...

    def load(self, epoch: int, parts: Iterable[Rows]) -> Generator[Part, None, None]:
        """Yield this rank's part of each micro-batch, read ahead."""
        ...

    def begin(self, rows: Rows, step: int) -> None:
        """Prepare a step, given the rows of the global batch."""
        ...

    def loss(self, forward: Forward, part: Part) -> Loss:
        """The mean loss of a (micro-)batch; ``forward`` is the network in the engine's precision."""
        ...

    def keys(self, rows: Rows) -> list[str]:
        """Keys of the images in these rows."""
        ...

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Validate after an epoch; return metrics, the same on every rank."""
        ...

    def state(self) -> dict[str, Any]:
        """Further state for the checkpoint, besides network, optimizer and classifier."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore `state`."""
        ...


@dataclass(frozen=True)
class Run:
    """Settings of a training run.

    Attributes:
        epochs: total number of epochs.
        seed: of dropout and other random numbers in the network.
        optimizer, schedule, engine: settings of the recipe.
        folder: for checkpoints and logs; None to write neither.
        identity: hash of settings and data; checkpoints of another identity are ignored.
        name: label of the progress bar.
        tensorboard: also write TensorBoard event files.
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
    """Result of a run.

    Attributes:
        history: metrics of each epoch.
        skipped: reason by key of unusable images.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def run_training(task: Task, run: Run, ranks: Ranks) -> Outcome:
    """Train a task, resuming from the newest checkpoint of the same identity if there is one.

    Raises:
        InputError: precision "tf32" without a GPU, or ``engine.read_every`` above 1 without fused optimizers.
        SpherecfError: the loss is not finite; the keys of the batch are saved.
        StorageError: a checkpoint could not be written (the previous one is intact), or another process
            trains in this folder.
        RankError: another rank has failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM, raised after a checkpoint is written; a second signal raises it
            immediately.
    """
    devices = [ranks.device] if ranks.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(ranks.guard())  # torch starts collectives in many places, too
        if run.folder is not None:
            folder = run.folder
            ranks.run_on_main(lambda: stack.enter_context(locked(folder, "this folder")), run.name)
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(float32_arithmetic(run.engine.precision, ranks.device))
        if ranks.device.type == "cpu":
            stack.enter_context(freed_memory_kept())
        return _Trainer(task, run, ranks).train()


@dataclass
class _Progress:
    """Position in the run, and sums over the current epoch. Saved in checkpoints.

    Attributes:
        step: steps in all epochs.
        batch: batches in this epoch.
        total: sum of the loss over ``counted`` images.
        counted: images with a finite loss.
        seen: images processed.
        nan: batches whose loss or gradient was not finite.
        overflows: float16 steps that the gradient scaler skipped.
    """

    step: int = 0
    batch: int = 0
    total: float = 0.0
    counted: int = 0
    seen: int = 0
    nan: int = 0
    overflows: int = 0


class _StepMetrics(NamedTuple):
    """Metrics of a step, on the device until they are read.

    Attributes:
        shares: fraction of the batch in each micro-batch; empty if no image was usable.
        losses, measures: scalars of each micro-batch.
        norm: norm of the gradient before clipping, a scalar; in float16 multiplied by the loss scale.
    """

    shares: list[float]
    losses: list[Tensor]
    measures: list[Mapping[str, Tensor]]
    norm: Tensor

    def scalars(self) -> list[Tensor]:
        """All scalars: losses, measures and norm."""
        measures = chain.from_iterable(named.values() for named in self.measures)
        return [*self.losses, *measures, self.norm]


class _StepRecord(NamedTuple):
    """A finished step with unread metrics; ``epoch``, ``step`` and ``batch`` count from 0."""

    epoch: int
    step: int
    batch: int
    rows: Rows
    lr: float
    metrics: _StepMetrics


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
        self.network = self._distribute(compiled(network) if engine.compile else network)
        # Loss scaling in float16 only, where gradients below 6e-8 vanish; bfloat16 has the range of float32.
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=self._precision == "float16")
        self._last_save = time.monotonic()
        self._resumed_rng = False
        self._buffers_before: list[Tensor] = []
        # Metrics of several steps are read together: a read waits for all work queued on the device.
        self._read_every = engine.read_every or (1 if ranks.device.type == "cpu" else _READ_EVERY)
        self._unread: list[_StepRecord] = []
        if self._read_every > 1 and not all(map(is_fused, self.optimizers)):
            raise InputError(
                f"engine.read_every = {self._read_every}: only fused optimizers can skip a bad step without "
                "reading it; set optimizer.fused = true, or engine.read_every = 1"
            )
        self._writer = None if run.folder is None else CheckpointWriter(
            run.folder, run.identity, ranks, engine.keep
        )  # fmt: skip

    def _distribute(self, network: Any) -> nn.Module:
        if self.ranks.size == 1:
            return network  # type: ignore[no-any-return]
        device = self.ranks.device
        # Do not broadcast buffers: batch statistics are either synchronised already or meant to differ. The
        # option has another name in later versions of torch.
        parameters = signature(DistributedDataParallel.__init__).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
        wrapped = DistributedDataParallel(
            network,
            [device] if device.type == "cuda" else None,
            **{option: False},  # type: ignore[arg-type]
        )
        wrapped.register_comm_hook(None, _sum_bucket)
        return wrapped

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers of the network and of the classifier."""
        classifier = self.task.classifier
        return [self.task.optimizer, *(classifier.optimizers if classifier else [])]

    def train(self) -> Outcome:
        """Run all epochs that remain."""
        run, ranks = self.run, self.ranks
        # Restore network, optimizers and progress from the newest checkpoint.
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

                # Validate on all ranks; then call the hook on rank 0.
                self._gather_skipped()
                metrics = self._epoch_metrics(epoch)
                history.append(metrics)
                if run.each_epoch is not None:
                    ranks.run_on_main(
                        partial(run.each_epoch, epoch, self.progress.step), "the end of an epoch"
                    )

                # Save a checkpoint in the background, and log. The log may be ahead of the checkpoint; a
                # resumed run rewrites it from the checkpoint.
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
        # Batches depend only on seed and epoch, so a resumed run skips the finished ones.
        batches = task.batches(epoch)
        remaining = batches[progress.batch :]
        micro = [task.cut(batch, self.run.engine.accumulate) for batch in remaining]
        local = (rows[ranks.share(len(rows))] for cut in micro for rows in cut)
        # Dropout differs between ranks. A resumed rank continues with its saved random state, if any.
        if not self._resumed_rng:
            seed = self.run.seed * 1_000_003 + epoch + progress.batch * 7919 + ranks.rank * 104_729
            torch.manual_seed(seed)
        self._resumed_rng = False
        self.network.train()

        with closing(task.load(epoch, local)) as parts:
            for batch, cut in zip(remaining, micro):
                # Learning rate.
                epochs_done = epoch + progress.batch / len(batches)
                factor = lr_factor(self.run.schedule, self.run.epochs, epochs_done, self.outcome.history)
                lr = set_lr(self.optimizers, factor)

                # Forward, backward, optimizer.
                task.begin(batch, progress.step)
                metrics = self._train_step([(next(parts), len(rows)) for rows in cut])
                self._unread.append(_StepRecord(epoch, progress.step, progress.batch, batch, lr, metrics))
                progress.step, progress.batch = progress.step + 1, progress.batch + 1
                progress.seen += len(batch)

                # Agree with the other ranks, which notice these events at different times: whether a
                # checkpoint is due, a stop signal arrived, or a checkpoint could not be written. `train`
                # saves the checkpoint at the end of an epoch.
                last, minutes = progress.batch == len(batches), (time.monotonic() - self._last_save) / 60
                due = not last and minutes > self.run.engine.save_minutes
                failed = self._writer is not None and self._writer.failed
                save, interrupt, failed = ranks.any(due and ranks.is_main, stop.is_set(), failed)

                # Log: read the metrics from the device every few steps.
                if last or save or interrupt or len(self._unread) >= self._read_every:
                    loss = self._read_metrics(log)
                    advance(len(batch), f"epoch {epoch + 1}/{self.run.epochs}, loss {loss:.4g}")
                else:
                    advance(len(batch))

                # Checkpoint and stop.
                if save or interrupt:
                    self._save()
                if self._writer is not None and (failed or interrupt):
                    self._writer.wait()
                if interrupt:
                    raise KeyboardInterrupt

    def _train_step(self, parts: Sequence[tuple[Part, int]]) -> _StepMetrics:
        """Take one step of all optimizers, unless the loss or the gradient is not finite.

        Args:
            parts: for each micro-batch, this rank's part and the number of rows over all ranks.
        """
        task, classifier = self.task, self.task.classifier

        # Data: leave out unreadable images, and micro-batches without a readable image on any rank.
        for part, _ in parts:
            self.outcome.skipped.update(part.skipped)
        usable = [(part, rows) for part, rows in parts if sum(self.ranks.counts(len(part.rows)))]
        total_rows = sum(rows for _, rows in usable)
        metrics = _StepMetrics([], [], [], torch.zeros((), device=self.ranks.device))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._snapshot_buffers()
        if not usable:
            return metrics

        for index, (part, rows) in enumerate(usable):
            # The network's hooks sum its gradients over ranks during the backward pass of the last
            # micro-batch, once per step.
            with self._sync_gradients(last=index == len(usable) - 1):
                # Forward. The loss is the same on every rank, so all ranks take the step or none does.
                loss = task.loss(self._forward, part)
                metrics.shares.append(rows / total_rows)
                metrics.losses.append(loss.value.detach())
                metrics.measures.append(loss.measures)

                # Backward. Gradients of the micro-batches add up to the gradient of the batch's mean loss.
                self.scaler.scale(loss.backward * metrics.shares[-1]).backward()  # type: ignore[no-untyped-call]

        # Sum the gradients of the margin's parameters over ranks. Prototypes are sharded: each rank already
        # has the complete gradient of its rows.
        if classifier:
            classifier.reduce_gradients()

        # Clip by the norm over replicated and sharded parameters.
        replicated = list(task.network.parameters())
        sharded = [classifier.rows.active] if classifier else []
        finite = torch.isfinite(torch.stack(metrics.losses)).all()
        unclipped = OptimizerSettings(clip_norm=0.0, clip_value=0.0)
        clipping = unclipped if self.scaler.is_enabled() else self.run.optimizer
        norm = clip_gradients(replicated, sharded, clipping, self.ranks)
        metrics = metrics._replace(norm=norm)
        # In float16 occasional overflows are expected: the scaler skips the step and lowers its scale.
        if not self.scaler.is_enabled():
            finite &= torch.isfinite(norm)
        if self._read_every == 1 and not bool(finite):
            self._restore_buffers(finite)
            return metrics
        if self.scaler.is_enabled():
            self._share_overflow(norm + sum(metrics.losses))
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
            clip_gradients(replicated, sharded, self.run.optimizer, self.ranks)

        # Optimizer. If not every step is read, a bad step is skipped on the device.
        for optimizer in self.optimizers:
            if self.scaler.is_enabled() or self._read_every == 1:
                self.scaler.step(with_momentum(optimizer))
            else:
                step_if_finite(finite, optimizer)
        self.scaler.update()
        if self._read_every > 1:
            self._restore_buffers(finite)
        if classifier:
            classifier.end()
        return metrics

    def _read_metrics(self, log: "RunLog") -> float:
        """Read and log the metrics of the steps since the last read; this waits for the device.

        Returns:
            The mean loss of the last batch; NaN if no step was taken.
        """
        progress, loss = self.progress, math.nan
        steps, self._unread = self._unread, []
        scalars = [scalar for step in steps for scalar in step.metrics.scalars()]
        values = iter(torch.stack(scalars).tolist())  # one copy for all steps
        for step in steps:
            shares = step.metrics.shares
            losses = [next(values) for _ in shares]
            measures = [{name: next(values) for name in named} for named in step.metrics.measures]
            norm, problem = next(values), ""
            if bad := [value for value in losses if not math.isfinite(value)]:
                problem = f"the loss is {bad[0]}"
            elif not math.isfinite(norm) and self.scaler.is_enabled():
                progress.overflows += 1
            elif not math.isfinite(norm):
                problem = "the gradient is not finite"
            if problem:
                self._handle_not_finite(step, problem)
            # The epoch's mean loss leaves out batches whose loss is not finite.
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

    def _sync_gradients(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Let ranks exchange gradients only in the last micro-batch of a step."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            return self.network.no_sync()
        return contextlib.nullcontext()

    def _share_overflow(self, norm: Tensor) -> None:
        """Make all optimizers of all ranks skip a step that overflowed in one; a scaler checks each alone."""
        for optimizer in self.optimizers:
            parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
            for parameter in [p for p in parameters if p.grad is not None][:1]:
                parameter.grad.add_(norm * 0)  # becomes NaN if the norm over all parameters is not finite

    def _handle_not_finite(self, step: _StepRecord, problem: str) -> None:
        """Save the keys of a bad batch; then count it as skipped, or stop."""
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

    def _snapshot_buffers(self) -> None:
        """Save the batch statistics, which the forward pass updates even if the batch is skipped later."""
        if self.run.engine.on_nan == "skip" and (buffers := self._buffers()):
            self._buffers_before = self._buffers_before or [torch.empty_like(buffer) for buffer in buffers]
            torch._foreach_copy_(self._buffers_before, buffers)

    def _restore_buffers(self, finite: Tensor) -> None:
        """Restore the batch statistics from before the step unless ``finite``, a scalar on the device."""
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
                f"epoch {epoch + 1}: all of its {progress.nan} batches were skipped, because the loss or the "
                "gradient was not finite; the last checkpoint is kept. Lower optimizer.lr."
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
        self._last_save = time.monotonic()
        task, ranks = self.task, self.ranks
        if self._writer is None:
            return
        self._gather_skipped()
        rng = {"cpu": torch.get_rng_state()}
        if ranks.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(ranks.device)
        shard = {} if task.classifier is None else task.classifier.rows.state()
        self._writer.save(self.progress.step, common=self._common_state, private={"rng": rng}, shard=shard)

    def _common_state(self) -> Mapping[str, Any]:
        """The state that is the same on all ranks."""
        task = self.task
        return {
            "network": task.network.state_dict(),
            "optimizer": task.optimizer.state_dict(),
            "classifier": None if task.classifier is None else task.classifier.state(),
            "scaler": self.scaler.state_dict(),
            "task": task.state(),
            "place": vars(self.progress),  # this key is part of the checkpoint format
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
            if others := ranks.is_main and other_checkpoints(run.folder, run.identity):
                self._say(
                    f"{run.name}: starting from the beginning, because the {others} checkpoints in "
                    f"{run.folder} are of other settings or data; they are kept"
                )
            return
        common = saved.common
        task.network.load_state_dict(common["network"])
        task.optimizer.load_state_dict(keep_kernels(task.optimizer, common["optimizer"]))
        if classifier is not None:
            if classifier.margin_optimizer is not None:
                keep_kernels(classifier.margin_optimizer, common["classifier"]["margin_optimizer"])
            classifier.load_state(common["classifier"])
            classifier.rows.load({name: value.to(ranks.device) for name, value in saved.shard.items()})
        # A run may resume in another precision, without a scaler or without saved state for it.
        if self.scaler.is_enabled() and common["scaler"]:
            self.scaler.load_state_dict(common["scaler"])
        task.load_state(common["task"])
        self.progress = _Progress(**common["place"])
        self.outcome = Outcome(common["history"], common["skipped"])
        epoch = len(self.outcome.history)
        place = "the end" if epoch >= run.epochs else f"epoch {epoch + 1} of {run.epochs}"
        self._say(f"{run.name}: resuming at {place}, after {saved.step} steps")
        # Within an epoch and with the same number of ranks, dropout continues bit-identically.
        if saved.private is not None and self.progress.batch:
            torch.set_rng_state(saved.private["rng"]["cpu"])
            if "cuda" in saved.private["rng"]:
                torch.cuda.set_rng_state(saved.private["rng"]["cuda"], ranks.device)
            self._resumed_rng = True

    def _say(self, text: str) -> None:
        if self.ranks.is_main:
            print_text(text)

    def _gather_skipped(self) -> None:
        for skipped in self.ranks.all_gather_object(self.outcome.skipped):
            self.outcome.skipped.update(skipped)


def _sum_bucket(  # torch checks these annotations
    state: object,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    # A sum instead of torch's default mean: each rank's loss is already its share of the batch's mean.
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return summed


class RunLog:
    """Writes ``folder/history.jsonl``, starting with the epochs that a resumed run has finished."""

    def __init__(
        self, folder: Path | None, tensorboard: bool, history: Sequence[Mapping[str, float]], step: int = 0
    ) -> None:
        self._epochs = 0
        self._path = None if folder is None else folder / LOG_FILE
        self._writer: Any = None
        if tensorboard:
            if folder is None:
                raise InputError("TensorBoard events need a folder to write to")
            # Discard events of steps after the checkpoint: these steps are repeated.
            purge_step = step + 1 if step else None
            self._writer = event_writer_class()(str(folder / "runs"), purge_step=purge_step)
        lines = "".join(self._next(metrics) for metrics in history).encode()
        if self._path is not None:
            write_atomically(self._path, lambda stream: stream.write(lines))

    def step(
        self, step: int, metrics: Mapping[str, float], measures: Mapping[str, float] = MappingProxyType({})
    ) -> None:
        """Write TensorBoard events: metrics every tenth step, measures every step (counted from 0)."""
        if self._writer is None:
            return
        if step % 10 == 0:
            self._scalars("step/", metrics, step)
        self._scalars("", measures, step - 1)

    def epoch(self, metrics: Mapping[str, float], speed: Mapping[str, float], step: int) -> None:
        """Write the next epoch; speeds are events only, so that equal runs write equal histories."""
        line = self._next(metrics)
        if self._path is not None:
            try:
                with self._path.open("a") as stream:
                    stream.write(line)
                    stream.flush()
                    os.fsync(stream.fileno())
            except OSError as error:
                raise StorageError(
                    f"{self._path}: could not be written ({error.strerror or error}); the last checkpoint is "
                    "intact. Free some space, then run the same command again"
                ) from error
        if self._writer is not None:
            self._scalars("epoch/", {**metrics, **speed}, step)

    def _scalars(self, prefix: str, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{prefix}{name}", value, step)

    def _next(self, metrics: Mapping[str, float]) -> str:
        self._epochs += 1
        return json.dumps({"epoch": self._epochs, **metrics}) + "\n"

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()


def event_writer_class() -> Any:
    """torch's `SummaryWriter`.

    Raises:
        MissingDependencyError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "TensorBoard is not installed: pip install 'spherecf[train]', or omit --tensorboard"
        ) from error
    return SummaryWriter


_SAME_REQUEST = 3.0  # seconds during which further signals count as the first one


@contextmanager
def stop_requested() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets; a second signal, some seconds later, interrupts immediately."""
    stop, requested = threading.Event(), [0.0]
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: object) -> None:
        # On Ctrl-C the terminal signals every process, and torchrun forwards the signal as well.
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


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep the memory that a step frees, for the next step; with glibc, on the CPU.

    By default glibc returns large blocks to the system, which clears every page again at the next step
    (benchmarks/kept_memory.py).
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library
        yield
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        mallopt(_M_MMAP_MAX, 65536)  # glibc's default
        mallopt(_M_TRIM_THRESHOLD, 1 << 26)  # the largest that glibc chooses itself
        trim(0)
