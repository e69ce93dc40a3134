"""How images reach the training: identical for threads and processes, and copied ahead in order."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import BrokenImages
from tests.training.rank_jobs import config, images

from spherecf.common import readers
from spherecf.common.progress import begun_ahead
from spherecf.data import Degradation, View, training_views
from spherecf.extract import iter_batches
from spherecf.models import FrozenBackbone, Preprocessing, make_backbone
from spherecf.models.heads import LightHead
from spherecf.training import ConfidenceConfig, Ranks, StreamedFeatures, train_backbone
from spherecf.training.backbone import _BackboneTask
from spherecf.training.batches import SideStream, TrainingIdentities, on_device
from spherecf.training.features import GivenPrototypes
from spherecf.training.loop import Part


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use reading processes even for few images, on two cores."""
    monkeypatch.setattr(readers, "WORTHWHILE", 0)
    monkeypatch.setattr(readers, "count_cores", lambda: 2)


SEED, EPOCH = 7, 1
AUGMENT = {"flip": True, "degraded": 0.4, "recipe": "cross"}


def backbone_task(workers: int) -> _BackboneTask:
    source = BrokenImages(48, 6, size=(32, 32))
    settings = {"augment": AUGMENT, "engine": {"workers": workers}}
    recipe = config(**settings).with_seed(SEED)
    return _BackboneTask(source, TrainingIdentities.of(source, 1), recipe, Ranks(), None)


@pytest.mark.parametrize("workers", [1, 2])
def test_augmented_images_depend_only_on_seed_epoch_and_image(processes: None, workers: int) -> None:
    task = backbone_task(workers)
    assert task._readers.processes == (0 if workers == 1 else 2)
    batches = task.batches(EPOCH)
    parts = list(task.load(EPOCH, [*batches[2:], batches[0][::-1]]))
    task.close()
    source = images()
    draw = np.random.default_rng([SEED, EPOCH, 1]).random((2, 48), dtype=np.float32)
    degrade = Degradation("cross", SEED * 1000 + EPOCH)
    expected_batches = [*batches[2:], batches[0][::-1]]
    signatures = set()
    for part, rows in zip(parts, expected_batches, strict=True):
        assert part.rows.tolist() == [row for row in rows if row % 10 != 3]
        assert list(part.skipped) == [source.keys[row] for row in rows if row % 10 == 3]
        for image, row in zip(part.data.numpy(), part.rows.tolist(), strict=True):
            view = View(degrade if draw[1, row] < 0.4 else None, bool(draw[0, row] < 0.5))
            assert np.array_equal(image, view(source.image(row), source.keys[row]).image)
            signatures.add(view.signature)
    assert len(signatures) == 4


def test_processes_and_threads_give_the_same_training_even_if_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: None
) -> None:
    """Interrupted in the second epoch while processes read, then resumed with a single thread."""
    settings = {"augment": AUGMENT}
    uninterrupted = train_backbone(images(), tmp_path / "whole", config(**settings, engine={"workers": 1}))
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
    assert result.history == uninterrupted.history
    weights = result.network.state_dict()
    assert all(
        torch.equal(weights[name], value) for name, value in uninterrupted.network.state_dict().items()
    )


def streamed(workers: int, finetune: bool) -> StreamedFeatures:
    torch.manual_seed(0)
    network = make_backbone("r18", 16, size=32, width=0.25)
    backbone = FrozenBackbone.from_module(network, Preprocessing(size=(32, 32)))
    head = LightHead(*backbone.feature_shape)
    source = BrokenImages(48, 6, size=(32, 32))
    settings = {"engine": {"workers": workers}, "features": {"source": "stream", "finetune": finetune}}
    prototypes = GivenPrototypes(source, torch.eye(16)[:6], 16)
    recipe = ConfidenceConfig.from_dict(settings)
    return StreamedFeatures(backbone, head, source, training_views(1, flip=True), prototypes, config=recipe)


@pytest.mark.parametrize("finetune", [False, True])
def test_processes_and_threads_stream_the_same_entries(processes: None, finetune: bool) -> None:
    entries = [np.array([0, 3, 12, 13, 101]), np.array([14]), np.arange(160, 191)]
    by_thread, by_processes = streamed(1, finetune), streamed(2, finetune)
    assert (by_thread._readers.processes, by_processes._readers.processes) == (0, 2)
    for _ in range(2):  # epochs
        for left, right in zip(by_thread.load(entries), by_processes.load(entries), strict=True):
            assert left.rows.tolist() == right.rows.tolist() and left.skipped == right.skipped
            pairs = [(left.data, right.data)] if finetune else zip(left.data, right.data, strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        skipped = [list(part.skipped) for part in by_processes.load(entries)]
        assert skipped == [["3/3"], ["3/3"], ["1/43"]]
    by_processes.close()


def test_a_gpu_pass_reads_with_processes(processes: None, monkeypatch: pytest.MonkeyPatch) -> None:
    source, views = BrokenImages(25, 5, size=(32, 32)), training_views(1)
    cpu_batches = list(iter_batches(source, views, (32, 32), 4, 3))
    monkeypatch.setattr(readers, "count_cores", lambda: 3)  # two of which read
    started: list[int] = []
    start = readers.Readers._start
    monkeypatch.setattr(readers.Readers, "_start", lambda self: started.append(self.processes) or start(self))
    gpu_batches = list(iter_batches(source, views, (32, 32), 4, 3, torch.device("cuda")))
    assert len(cpu_batches) == len(gpu_batches) == 6 and started == [2]
    for expected, actual in zip(cpu_batches, gpu_batches):
        assert expected.keys == actual.keys and expected.skipped == actual.skipped
        for name in ("images", "valid", "severity", "sharpness"):
            assert np.array_equal(getattr(expected, name), getattr(actual, name))


class RecordingCopier:
    """A copier that records its calls."""

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


def test_each_part_is_copied_before_its_predecessor_is_used() -> None:
    copier = RecordingCopier()
    for part in begun_ahead(numbered(3), copier.start, copier.finish):
        copier.done.append(f"use {part.data}")
    assert copier.done == [
        "copy 0", "copy 1", "give 0", "use 0", "copy 2", "give 1", "use 1", "give 2", "use 2",
    ]  # fmt: skip
    assert list(begun_ahead(numbered(0), RecordingCopier().start, RecordingCopier().finish)) == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_an_error_is_raised_after_all_preceding_parts(count: int) -> None:
    parts = []
    with pytest.raises(OSError, match="gone"):
        for part in begun_ahead(
            numbered(count, OSError("gone")), RecordingCopier().start, RecordingCopier().finish
        ):
            parts.append(part.data)
    assert parts == list(range(count))


def test_parts_are_not_copied_on_the_cpu() -> None:
    part = Part(np.arange(2), torch.zeros(2), {})
    assert next(on_device(iter([part]), torch.device("cpu"))) is part


class FakeStream:
    """A GPU stream that records its calls by name."""

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


def test_the_gpu_waits_for_the_copy_and_keeps_its_source_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    side, main = FakeStream("side", calls), FakeStream("main", calls)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: side)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: main)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: calls.append("recorded"))
    original_to = torch.Tensor.to

    def to(tensor: torch.Tensor, device: torch.device, non_blocking: bool) -> torch.Tensor:
        calls.append(f"copies, {non_blocking=}")
        return original_to(tensor, device, copy=True)

    monkeypatch.setattr(torch.Tensor, "to", to)
    copier = SideStream(torch.device("cpu"))
    data = torch.arange(3)
    part = copier.finish(copier.start(Part(np.arange(3), data, {"a": "b"})))
    assert calls == [
        "on side", "copies, non_blocking=True", "side records", "off side", "main waits for side", "recorded",
    ]  # fmt: skip
    assert torch.equal(part.data, data) and part.data is not data and part.skipped == {"a": "b"}
    assert [held for _, held in copier._copying] == [data]
    side.copied = True
    copier.start(Part(np.arange(3), data, {}))
    assert not copier._copying
