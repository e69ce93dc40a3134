"""What the training loop runs: a task, how it is run, and what comes out."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spherecf.training._classifier import ShardedClassifier
from spherecf.training._settings import EngineSettings, OptimizerSettings, ScheduleSettings

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
