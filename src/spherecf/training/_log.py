"""What a run writes down while it goes: one JSON line per epoch, and TensorBoard events if asked for."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from spherecf.errors import InputError, MissingDependencyError, StorageError

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
