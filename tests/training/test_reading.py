"""How images reach a training: the same by threads and by processes, and copied ahead in order."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.rank_jobs import config, images

from spherecf.common import readers
from spherecf.common.progress import begun_ahead
from spherecf.data import Degradation, ImageError, SyntheticImages, View, training_views
from spherecf.extract import iter_batches
from spherecf.models import FrozenBackbone, Preprocessing, make_backbone, make_head
from spherecf.training import ConfidenceConfig, Ranks, StreamedFeatures, train_backbone
from spherecf.training.backbone import _BackboneTask
from spherecf.training.batches import SideStream, TrainingIdentities, on_device
from spherecf.training.features import GivenPrototypes
from spherecf.training.loop import Part


class Spoilt(SyntheticImages):
    """Every tenth image cannot be read."""

    def image(self, index: int, size: tuple[int, int] | None = None) -> Any:
        if index % 10 == 3:
            raise ImageError(self.where(index), "truncated image.")
        return super().image(index, size)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are worth it for these few images too."""
    monkeypatch.setattr(readers, "WORTHWHILE", 0)
    monkeypatch.setattr(readers, "count_cores", lambda: 2)


SEED, EPOCH = 7, 1
AUGMENT = {"flip": True, "degraded": 0.4, "recipe": "cross"}


def backbone_task(workers: int) -> _BackboneTask:
    source = Spoilt(48, 6, size=(32, 32))
    settings = {"augment": AUGMENT, "engine": {"workers": workers}}
    recipe = config(**settings).with_seed(SEED)
    return _BackboneTask(source, TrainingIdentities.of(source, 1), recipe, Ranks(), None)


@pytest.mark.parametrize("workers", [1, 2])
def test_images_of_an_epoch_depend_on_seed_epoch_and_image_alone(processes: None, workers: int) -> None:
    task = backbone_task(workers)
    assert task._readers.processes == (0 if workers == 1 else 2)
    batches = task.batches(EPOCH)
    parts = list(task.load(EPOCH, [*batches[2:], batches[0][::-1]]))
    task.close()
    source = images()
    draw = np.random.default_rng([SEED, EPOCH, 1]).random((2, 48), dtype=np.float32)
    degrade = Degradation("cross", SEED * 1000 + EPOCH)
    wanted = [*batches[2:], batches[0][::-1]]
    flipped = set()
    for part, rows in zip(parts, wanted, strict=True):
        assert part.rows.tolist() == [row for row in rows if row % 10 != 3]
        assert list(part.skipped) == [source.keys[row] for row in rows if row % 10 == 3]
        for image, row in zip(part.data.numpy(), part.rows.tolist(), strict=True):
            view = View(degrade if draw[1, row] < 0.4 else None, bool(draw[0, row] < 0.5))
            assert np.array_equal(image, view(source.image(row), source.keys[row]).image)
            flipped.add(view.signature)
    assert len(flipped) == 4


def test_a_run_by_processes_is_that_by_threads_also_when_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: None
) -> None:
    """Interrupted inside the second epoch while processes read, then gone on with by a thread."""
    settings = {"augment": AUGMENT}
    whole = train_backbone(images(), tmp_path / "whole", config(**settings, engine={"workers": 1}))
    begin = _BackboneTask.begin

    def interrupted(task: _BackboneTask, rows: Any, step: int) -> None:
        if step == 5:
            assert task._readers.processes == 2
            signal.raise_signal(signal.SIGINT)
        begin(task, rows, step)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_BackboneTask, "begin", interrupted)
        train_backbone(images(), tmp_path / "cut", config(**settings, engine={"workers": 2}))
    result = train_backbone(images(), tmp_path / "cut", config(**settings, engine={"workers": 1}))
    assert result.history == whole.history
    weights = result.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in whole.network.state_dict().items())


def streamed(workers: int, finetune: bool) -> StreamedFeatures:
    torch.manual_seed(0)
    network = make_backbone("r18", 16, size=32, width=0.25)
    backbone = FrozenBackbone.from_module(network, Preprocessing(size=(32, 32)))
    head = make_head("light", **dict(zip(("channels", "height", "width"), backbone.feature_shape)))
    source = Spoilt(48, 6, size=(32, 32))
    settings = {"engine": {"workers": workers}, "features": {"source": "stream", "finetune": finetune}}
    prototypes = GivenPrototypes(source, torch.eye(16)[:6], 16)
    recipe = ConfidenceConfig.from_dict(settings)
    return StreamedFeatures(backbone, head, source, training_views(1, flip=True), prototypes, config=recipe)


@pytest.mark.parametrize("finetune", [False, True])
def test_streamed_entries_are_the_same_by_processes(processes: None, finetune: bool) -> None:
    entries = [np.array([0, 3, 12, 13, 101]), np.array([14]), np.arange(160, 191)]
    one, two = streamed(1, finetune), streamed(2, finetune)
    assert (one._readers.processes, two._readers.processes) == (0, 2)
    for _ in range(2):  # epochs
        for left, right in zip(one.load(entries), two.load(entries), strict=True):
            assert left.rows.tolist() == right.rows.tolist() and left.skipped == right.skipped
            pairs = [(left.data, right.data)] if finetune else zip(left.data, right.data, strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        skipped = [list(part.skipped) for part in two.load(entries)]
        assert skipped == [["3/3"], ["3/3"], ["1/43"]]
    two.close()


def test_a_pass_for_a_gpu_is_read_by_processes(processes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    source, views = Spoilt(25, 5, size=(32, 32)), training_views(1)
    here = list(iter_batches(source, views, (32, 32), 4, 3))
    monkeypatch.setattr(readers, "count_cores", lambda: 3)  # two of them read
    started: list[int] = []
    start = readers.Readers._start
    monkeypatch.setattr(readers.Readers, "_start", lambda self: started.append(self.processes) or start(self))
    there = list(iter_batches(source, views, (32, 32), 4, 3, torch.device("cuda")))
    assert len(here) == len(there) == 6 and started == [2]
    for one, two in zip(here, there):
        assert one.keys == two.keys and one.skipped == two.skipped
        for name in ("images", "valid", "severity", "sharpness"):
            assert np.array_equal(getattr(one, name), getattr(two, name))


class Fake:
    """A copier that writes down what is asked of it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def start(self, part: Part) -> Part:
        self.done.append(f"copy {part.data}")
        return part

    def finish(self, part: Part) -> Part:
        self.done.append(f"give {part.data}")
        return part


def numbered(count: int, error: Exception | None = None) -> Iterator[Part]:
    for number in range(count):
        yield Part(np.zeros(0, np.int64), number, {})
    if error is not None:
        raise error


def test_each_part_is_copied_before_the_one_before_it_is_used() -> None:
    copier = Fake()
    for part in begun_ahead(numbered(3), copier.start, copier.finish):
        copier.done.append(f"use {part.data}")
    assert copier.done == [
        "copy 0", "copy 1", "give 0", "use 0", "copy 2", "give 1", "use 1", "give 2", "use 2",
    ]  # fmt: skip
    assert list(begun_ahead(numbered(0), Fake().start, Fake().finish)) == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_error_comes_behind_the_parts_before_it(count: int) -> None:
    found = []
    with pytest.raises(OSError, match="gone"):
        for part in begun_ahead(numbered(count, OSError("gone")), Fake().start, Fake().finish):
            found.append(part.data)
    assert found == list(range(count))


def test_on_the_cpu_parts_are_given_on_as_they_are() -> None:
    part = Part(np.arange(2), torch.zeros(2), {})
    assert next(on_device(iter([part]), torch.device("cpu"))) is part


class FakeStream:
    """A stream of a GPU: what is asked of it, by its name."""

    def __init__(self, name: str, done: list[str]) -> None:
        self.name, self._done, self.copied = name, done, False

    def record_event(self) -> "FakeStream":
        self._done.append(f"{self.name} records")
        return self

    def query(self) -> bool:
        return self.copied

    def wait_event(self, event: "FakeStream") -> None:
        self._done.append(f"{self.name} waits for {event.name}")

    def __enter__(self) -> None:
        self._done.append(f"on {self.name}")

    def __exit__(self, *error: object) -> None:
        self._done.append(f"off {self.name}")


def test_a_gpu_waits_for_the_copy_and_its_source_stays_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    side, main = FakeStream("side", done), FakeStream("main", done)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: done.append("recorded"))
    real = torch.Tensor.to

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        done.append(f"copies, {non_blocking=}")
        return real(tensor, device, copy=True)

    monkeypatch.setattr(torch.Tensor, "to", to)
    copier = SideStream(torch.device("cpu"))
    data = torch.arange(3)
    part = copier.finish(copier.start(Part(np.arange(3), data, {"a": "b"})))
    assert done == [
        "on side", "copies, non_blocking=True", "side records", "off side", "main waits for side", "recorded",
    ]  # fmt: skip
    assert torch.equal(part.data, data) and part.data is not data and part.skipped == {"a": "b"}
    assert [held for _, held in copier._copying] == [data]
    side.copied = True
    copier.start(Part(np.arange(3), data, {}))
    assert not copier._copying
