"""One training loop for both stages: steps over all ranks, mixed precision, checkpoints, resuming.

What is learnt is a `Task`; the loop knows only its network, its optimizers and this rank's part of the loss.
"""

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from spherecf.common.files import write_atomically
from spherecf.common.progress import progress
from spherecf.errors import InputError, MissingDependencyError, SpherecfError, StorageError
from spherecf.training.checkpoint import load_checkpoint, save_checkpoint
from spherecf.training.classifier import ShardedClassifier
from spherecf.training.config import EngineSettings, OptimizerSettings, ScheduleSettings, lr_factor
from spherecf.training.distributed import Ranks, synchronize_batch_norm
from spherecf.training.optim import bound_gradients, set_lr

LOG_FILE = "history.jsonl"


class RunLog:
    """Appends to ``folder/history.jsonl``, which a resumed run first brings to what its state knows."""

    def __init__(
        self, folder: Path | None, tensorboard: bool, history: Sequence[Mapping[str, float]], step: int = 0
    ) -> None:
        self._done = 0
        self._path = None if folder is None else folder / LOG_FILE
        self._writer: Any = None
        if tensorboard:
            if folder is None:
                raise InputError("TensorBoard events need a folder to go to")
            self._writer = _event_writer(folder / "runs", step)
        if self._path is not None:
            with _storing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.write_text("")
        for facts in history:
            self._line(facts)

    def step(self, step: int, facts: Mapping[str, float]) -> None:
        """The facts of one step: events only, every tenth."""
        if self._writer is not None and step % 10 == 0:
            self._scalars("step", facts, step)

    def epoch(self, facts: Mapping[str, float], speed: Mapping[str, float], step: int) -> None:
        """Write down the next epoch; how fast it was is an event, not history: it differs from run to run."""
        self._line(facts)
        if self._writer is not None:
            self._scalars("epoch", {**facts, **speed}, step)

    def _scalars(self, kind: str, facts: Mapping[str, float], at: int) -> None:
        for name, value in facts.items():
            self._writer.add_scalar(f"{kind}/{name}", value, at)

    def _line(self, facts: Mapping[str, float]) -> None:
        self._done += 1
        if self._path is not None:
            with _storing(self._path), self._path.open("a") as stream:
                stream.write(json.dumps({"epoch": self._done, **facts}) + "\n")

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
            f"{path}: could not be written ({error.strerror or error}); the last checkpoint is whole. Free "
            "some space, then run the same command again"
        ) from error


def _event_writer(folder: Path, done: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingDependencyError(
            "TensorBoard is not installed: pip install 'spherecf[train]', or leave --tensorboard out"
        ) from error
    return SummaryWriter(str(folder), purge_step=done + 1 if done else None)


_SAME_WISH = 3.0  # seconds within which a second signal says nothing new


@contextmanager
def stop_asked() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set; a second one, some seconds later, interrupts at once."""
    stop, asked = threading.Event(), [0.0]
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: object) -> None:
        # A launcher passes on the Ctrl-C that the terminal has sent to all its processes already.
        if stop.is_set() and time.monotonic() - asked[0] > _SAME_WISH:
            raise KeyboardInterrupt
        if not stop.is_set():
            asked[0] = time.monotonic()
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError, TypeError):
                signal.signal(number, handler)


Rows = NDArray[np.int64]
Forward = Callable[..., Any]


class Part(NamedTuple):
    """This rank's part of a (micro-)batch.

    Attributes:
        rows: those that could be used.
        data: what the task's loss needs.
        skipped: reason by key of those that could not.
    """

    rows: Rows
    data: Any
    skipped: dict[str, str]


class Loss(NamedTuple):
    """``backward``: this rank's part of the loss, so that ranks add up; ``value``: the loss of the batch."""

    backward: Tensor
    value: Tensor


@runtime_checkable
class Task(Protocol):
    """What is learnt."""

    @property
    def network(self) -> nn.Module:
        """Held by every rank, its gradients summed over ranks."""
        ...

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Over the network's parameters."""
        ...

    @property
    def classifier(self) -> ShardedClassifier | None:
        """What each rank holds a part of, if anything."""
        ...

    def batches(self, epoch: int) -> list[Rows]:
        """The global batches of an epoch, the same on every rank."""
        ...

    def cut(self, batch: Rows, parts: int) -> list[Rows]:
        """A batch in parts to be taken one after the other."""
        ...

    def load(self, epoch: int, parts: Iterable[Rows]) -> Generator[Part, None, None]:
        """Read ahead this rank's parts."""
        ...

    def begin(self, rows: Rows, step: int) -> None:
        """Before a step over these rows, of all ranks."""
        ...

    def loss(self, forward: Forward, part: Part) -> Loss:
        """The mean loss of a (micro-)batch; ``forward`` is the network in the engine's precision."""
        ...

    def keys(self, rows: Rows) -> list[str]:
        """The images of these rows."""
        ...

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Look at the network after an epoch."""
        ...

    def state(self) -> dict[str, Any]:
        """What the task itself has to remember."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Undo `state`."""
        ...


@dataclass(frozen=True)
class Run:
    """How a task is run.

    Attributes:
        epochs: in all.
        seed: of everything random.
        optimizer, schedule, engine: settings.
        folder: for checkpoints and logs; None keeps nothing.
        identity: hash of settings and data: a checkpoint of another identity is not resumed.
        name: of the run, for the bar and the logs.
        tensorboard: also write event files.
        each_epoch: called on rank 0 with (epoch from 0, steps so far), before that epoch's checkpoint.
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
    """``history``: facts by epoch; ``skipped``: reason by key of images that could not be used."""

    history: list[dict[str, float]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass
class _Place:
    """How far the training is: ``step`` of all epochs, ``batch`` of this one, and this one's sums so far."""

    step: int = 0
    batch: int = 0
    total: float = 0.0
    counted: int = 0
    seen: int = 0
    nan: int = 0
    overflows: int = 0


def run_training(task: Task, run: Run, ranks: Ranks) -> Outcome:
    """Train, from the newest checkpoint of the same identity if there is one.

    Raises:
        SpherecfError: the loss is not finite; the keys of the batch are saved.
        StorageError: a checkpoint could not be written; the one before is whole.
        RankError: another rank is gone.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written; a second one does not wait.
    """
    with torch.random.fork_rng(devices=[ranks.device] if ranks.device.type == "cuda" else []):
        return _Loop(task, run, ranks).go()


class _Loop:
    def __init__(self, task: Task, run: Run, ranks: Ranks) -> None:
        self.task, self.run, self.ranks = task, run, ranks
        self.place, self.outcome = _Place(), Outcome()
        engine = run.engine
        network = task.network
        if engine.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if engine.sync_batch_norm:
            synchronize_batch_norm(network, ranks)
        self.network = self._distribute(torch.compile(network) if engine.compile else network)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=engine.precision == "float16")
        self._saved = time.monotonic()
        self._resumed_rng = False
        self._before: list[Tensor] = []

    def _distribute(self, network: Any) -> nn.Module:
        if self.ranks.size == 1:
            return network  # type: ignore[no-any-return]
        device = self.ranks.device
        # Statistics are the same on all ranks already, or meant to differ; torch has renamed the option.
        known = signature(DistributedDataParallel.__init__).parameters
        once = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        wrapped = DistributedDataParallel(
            network,
            [device] if device.type == "cuda" else None,
            **{once: False},  # type: ignore[arg-type]
        )
        wrapped.register_comm_hook(None, _sum_bucket)
        return wrapped

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        classifier = self.task.classifier
        return [self.task.optimizer, *(classifier.optimizers if classifier else [])]

    def go(self) -> Outcome:
        run, ranks = self.run, self.ranks
        self._resume()
        history = self.outcome.history
        first = len(history)
        with (
            self._bar(first) as advance,
            RunLog(
                run.folder if ranks.leads else None, run.tensorboard and ranks.leads, history, self.place.step
            ) as log,
            stop_asked() as stop,
        ):
            for epoch in range(first, run.epochs):
                started, before = time.monotonic(), self.place.seen
                self._epoch(epoch, log, stop, advance)
                rate = (self.place.seen - before) / (time.monotonic() - started)
                self._collect_skipped()
                facts = self._facts(epoch)
                history.append(facts)
                if run.each_epoch is not None:
                    ranks.lead(partial(run.each_epoch, epoch, self.place.step), "the end of an epoch")
                self.place = _Place(step=self.place.step)
                self._save()
                log.epoch(facts, {"images_per_second": rate}, self.place.step)
                loss = facts.get("held_out_loss", facts["train_loss"])
                advance(0, f"epoch {epoch + 1}/{run.epochs}, loss {loss:.4g}")
        return self.outcome

    @contextmanager
    def _bar(self, epoch: int) -> Iterator[Callable[..., None]]:
        if not self.ranks.leads:
            yield lambda count=1, note=None: None
            return
        per_epoch = sum(map(len, self.task.batches(epoch))) if epoch < self.run.epochs else 0
        done = per_epoch * epoch + self.place.seen
        with progress(self.run.name, per_epoch * self.run.epochs, done) as advance:
            yield advance

    def _epoch(self, epoch: int, log: RunLog, stop: threading.Event, advance: Callable[..., None]) -> None:
        task, ranks, place = self.task, self.ranks, self.place
        batches = task.batches(epoch)
        cuts = self.run.engine.accumulate
        micro = [task.cut(batch, cuts) for batch in batches[place.batch :]]
        mine = (part[ranks.share(len(part))] for batch in micro for part in batch)
        if not self._resumed_rng:
            torch.manual_seed(self.run.seed * 1_000_003 + epoch + place.batch * 7919 + ranks.rank * 104_729)
        self._resumed_rng = False
        self.network.train()
        with closing(task.load(epoch, mine)) as parts:
            for batch, pieces in zip(batches[place.batch :], micro):
                share = epoch + place.batch / len(batches)
                task.begin(batch, place.step)
                factor = lr_factor(self.run.schedule, self.run.epochs, share, self.outcome.history)
                lr = set_lr(self.optimizers, factor)
                value = self._step(epoch, batch, [(next(parts), len(piece)) for piece in pieces])
                place.step, place.batch = place.step + 1, place.batch + 1
                place.seen += len(batch)
                if math.isfinite(value):
                    place.total += value * len(batch)
                    place.counted += len(batch)
                log.step(place.step, {"loss": value, "lr": lr})
                advance(len(batch), f"epoch {epoch + 1}/{self.run.epochs}, loss {value:.4g}")
                self._pause(stop, place.batch < len(batches))

    def _step(self, epoch: int, batch: Rows, parts: Sequence[tuple[Part, int]]) -> float:
        """One step of the optimizers; the loss of the batch, NaN where there was no step."""
        task, value = self.task, 0.0
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        for part, _ in parts:
            self.outcome.skipped.update(part.skipped)
        usable = [(part, rows) for part, rows in parts if sum(self.ranks.counts(len(part.rows)))]
        self._remember_buffers()
        if not usable:  # all of its images are broken: listed, and nothing to learn
            return math.nan
        for number, (part, rows) in enumerate(usable):
            weight = rows / sum(rows for _, rows in usable)
            with self._gradients_meet(number == len(usable) - 1):
                loss = task.loss(self._forward, part)
                found = float(loss.value)
                if not math.isfinite(found):
                    return self._not_finite(epoch, batch, f"the loss is {found}")
                self._backward(self.scaler.scale(loss.backward * weight))
            value += weight * found
        if task.classifier:
            task.classifier.reduce_gradients()
        if not self._move():
            return self._not_finite(epoch, batch, "the gradient is not finite")
        if task.classifier:
            task.classifier.end()
        return value

    def _backward(self, loss: Tensor) -> None:
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if self.ranks.is_lost(error):
                raise self.ranks.lost(error) from error
            raise

    def _forward(self, *arguments: Any) -> Any:
        precision = self.run.engine.precision
        if precision == "float32":
            return self.network(*arguments)
        with torch.autocast(self.ranks.device.type, getattr(torch, precision)):
            return self.network(*arguments)

    @contextmanager
    def _gradients_meet(self, last: bool) -> Iterator[None]:
        """Ranks exchange gradients in the last micro-batch of a step only."""
        if isinstance(self.network, DistributedDataParallel) and not last:
            with self.network.no_sync():
                yield
        else:
            yield

    def _move(self) -> bool:
        """Clip and step; False where a gradient is not finite, except in half precision, which expects it."""
        replicated = list(self.task.network.parameters())
        sharded = [self.task.classifier.rows.active] if self.task.classifier else []
        if self.scaler.is_enabled():
            self._agree_on_overflow(replicated, sharded)
            for optimizer in self.optimizers:
                self.scaler.unscale_(optimizer)
        norm = bound_gradients(replicated, sharded, self.run.optimizer, self.ranks)
        if not self.scaler.is_enabled() and not bool(torch.isfinite(norm)):
            return False
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        return True

    def _agree_on_overflow(self, replicated: Sequence[nn.Parameter], sharded: Sequence[nn.Parameter]) -> None:
        """All ranks skip a step that overflowed on one of them: the scaler looks at a rank's own alone."""
        nothing = OptimizerSettings(clip_norm=0.0, clip_value=0.0)
        if bool(torch.isfinite(bound_gradients(replicated, sharded, nothing, self.ranks))):
            return
        self.place.overflows += 1
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.fill_(torch.inf)

    def _not_finite(self, epoch: int, batch: Rows, problem: str) -> float:
        place, keys = self.place, self.task.keys(batch)
        if self.run.engine.on_nan == "skip":
            place.nan += 1
        where = ""
        if self.run.folder is not None and self.ranks.leads:
            path = self.run.folder / f"not-finite-{place.step:09d}.json"
            facts = {"epoch": epoch + 1, "batch": place.batch + 1, "problem": problem, "keys": keys}
            write_atomically(path, lambda stream: stream.write(json.dumps(facts, indent=1).encode()))
            where = f" (all {len(keys)} keys are in {path})"
        if self.run.engine.on_nan == "skip":
            for buffer, before in zip(self._buffers(), self._before):
                buffer.copy_(before)
            return math.nan
        raise SpherecfError(
            f"epoch {epoch + 1}, batch {place.batch + 1}: {problem}, in a batch of {len(keys)} with "
            f"{', '.join(keys[:5])}, ...{where}; the last checkpoint is kept. Lower optimizer.lr, look at "
            'these images, or set engine.on_nan = "skip".'
        )

    def _remember_buffers(self) -> None:
        """Batch statistics follow also a batch that turns out to be skipped: keep what they were."""
        if self.run.engine.on_nan == "skip":
            self._before = [buffer.clone() for buffer in self._buffers()]

    def _buffers(self) -> list[Tensor]:
        classifier = self.task.classifier
        return [*self.task.network.buffers(), *(classifier.margin.buffers() if classifier else ())]

    def _facts(self, epoch: int) -> dict[str, float]:
        place = self.place
        if not place.counted and place.nan:
            raise SpherecfError(
                f"epoch {epoch + 1}: all of its {place.nan} batches were skipped, "
                "as loss or gradient was not finite; the last checkpoint is kept. Lower optimizer.lr."
            )
        if not place.counted:
            key, reason = next(iter(self.outcome.skipped.items()))
            raise InputError(
                f"epoch {epoch + 1}: none of its {place.seen} images could be used. The first, {key}: "
                f"{reason}"
            )
        lr = float(self.task.optimizer.param_groups[0]["lr"])
        facts: dict[str, float] = {"train_loss": place.total / max(1, place.counted), "lr": lr}
        counts = {"not_finite": place.nan, "overflows": place.overflows}
        facts |= {name: float(count) for name, count in counts.items() if count}
        self.network.eval()
        return facts | self.task.end_epoch(epoch)

    def _pause(self, stop: threading.Event, inside: bool) -> None:
        """Between two steps: save if it is time, and stop if asked; all ranks alike."""
        due = inside and time.monotonic() - self._saved > 60 * self.run.engine.save_minutes
        wishes = torch.tensor([float(due and self.ranks.leads), float(stop.is_set())])
        if self.ranks.size > 1:
            wishes = self.ranks.max_(wishes.to(self.ranks.device))
        due, stopping = (bool(wish) for wish in wishes.tolist())
        if due or stopping:
            self._save()
        if stopping:
            raise KeyboardInterrupt

    def _save(self) -> None:
        self._saved = time.monotonic()
        run, task, ranks = self.run, self.task, self.ranks
        if run.folder is None:
            return
        self._collect_skipped()
        rng = {"cpu": torch.get_rng_state()}
        if ranks.device.type == "cuda":
            rng["cuda"] = torch.cuda.get_rng_state(ranks.device)
        shard = {} if task.classifier is None else task.classifier.rows.state()
        save_checkpoint(
            run.folder, self.place.step, run.identity, ranks,
            common=self._common, own={"rng": rng}, shard=shard, keep=run.engine.keep,
        )  # fmt: skip

    def _common(self) -> Mapping[str, Any]:
        task = self.task
        return {
            "network": task.network.state_dict(),
            "optimizer": task.optimizer.state_dict(),
            "classifier": None if task.classifier is None else task.classifier.state(),
            "scaler": self.scaler.state_dict(),
            "task": task.state(),
            "place": vars(self.place),
            "history": self.outcome.history,
            "skipped": self.outcome.skipped,
        }

    def _resume(self) -> None:
        run, task, ranks = self.run, self.task, self.ranks
        if run.folder is None:
            return
        classifier = task.classifier
        part = None if classifier is None else slice(classifier.first, classifier.last)
        saved = load_checkpoint(run.folder, run.identity, ranks, part)
        if saved is None:
            return
        common = saved.common
        task.network.load_state_dict(common["network"])
        task.optimizer.load_state_dict(common["optimizer"])
        if classifier is not None:
            classifier.load_state(common["classifier"])
            classifier.rows.load({name: value.to(ranks.device) for name, value in saved.shard.items()})
        if self.scaler.is_enabled() and common["scaler"]:  # a run may go on in another precision
            self.scaler.load_state_dict(common["scaler"])
        task.load_state(common["task"])
        self.place = _Place(**common["place"])
        self.outcome = Outcome(common["history"], common["skipped"])
        if saved.own is not None and self.place.batch:
            torch.set_rng_state(saved.own["rng"]["cpu"])
            if "cuda" in saved.own["rng"]:
                torch.cuda.set_rng_state(saved.own["rng"]["cuda"], ranks.device)
            self._resumed_rng = True

    def _collect_skipped(self) -> None:
        """What each rank could not use, known to all."""
        for skipped in self.ranks.collect(self.outcome.skipped):
            self.outcome.skipped.update(skipped)


def _sum_bucket(  # torch looks at these annotations
    state: object,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """Gradients of ranks add up: each rank's loss is its part of the batch's, not a mean of its own."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    summed: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return summed
