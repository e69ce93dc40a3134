"""Training steps that never wait for the device: reads of values, bad steps, background checkpoints."""

import json
import platform
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ive
from tests.training.conftest import check_losses, inject_nan
from tests.training.rank_jobs import config, images, run
from tests.training.test_fit import CONFIG as FIT, light, problem
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import spherecf
from spherecf.common import compiling
from spherecf.common.compiling import compiled as compile_blocks
from spherecf.data import SyntheticImages, View
from spherecf.errors import InputError, SpherecfError, StorageError
from spherecf.models import FrozenBackbone, Preprocessing, make_backbone, make_head
from spherecf.models.engines import ModuleEngine
from spherecf.training import (
    ConfidenceConfig,
    GivenPrototypes,
    Monitor,
    Ranks,
    StreamedFeatures,
    checkpoint,
    fit_head,
    train_backbone,
)
from spherecf.training.backbone import _BackboneTask
from spherecf.training.checkpoint import CheckpointWriter, load_checkpoint
from spherecf.training.heads import ConfidenceTask
from spherecf.training.optim import keep_kernels, make_optimizer, step_if_finite

SOURCE = Path(spherecf.__file__).parent
aten = torch.ops.aten
# Operations that wait for the GPU: reads of values, and shapes that depend on values.
WAITING_OPS = {aten._local_scalar_dense, aten.nonzero, aten.equal, aten.masked_select, aten.is_nonzero}
WAITING_CALLS = {
    getattr(Tensor, name) for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__")
}


class Reads:
    """Context that records the file of this package (or this test) which reads a value from a tensor."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self._stack, self._inside = ExitStack(), False

    def record(self, call: Callable[[], Any]) -> Any:
        """Run a call that waits; nested calls are not counted separately."""
        if self._inside:
            return call()
        files = [Path(frame.filename) for frame in traceback.extract_stack()]
        self.places.append([Path(__file__).name, *(f.name for f in files if SOURCE in f.parents)][-1])
        self._inside = True
        try:
            return call()
        finally:
            self._inside = False

    def __enter__(self) -> "Reads":
        reads = self

        class Dispatch(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                masks = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_)
                masked = masks and any(t is not None and t.dtype == torch.bool for t in args[1])
                act = partial(func, *args, **(kwargs or {}))
                return reads.record(act) if func.overloadpacket in WAITING_OPS or masked else act()

        class Function(TorchFunctionMode):
            def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                act = partial(func, *args, **(kwargs or {}))
                return reads.record(act) if func in WAITING_CALLS else act()

        for mode in (Dispatch(), Function()):
            self._stack.enter_context(mode)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()


def count_between(monkeypatch: pytest.MonkeyPatch, task: type, first: int, last: int) -> Reads:
    """Record reads from the beginning of step ``first`` to the beginning of step ``last``."""
    begin, reads = task.begin, Reads()

    def counting(self: Any, rows: Any, step: int) -> None:
        if step == last:
            reads.__exit__()
        begin(self, rows, step)
        if step == first:
            reads.__enter__()

    monkeypatch.setattr(task, "begin", counting)
    return reads


def test_reads_are_recorded() -> None:
    with Reads() as reads:
        x = torch.arange(3.0)
        bool(x.sum() > 1), float(x[0]), x.tolist(), x[x > 1], x.nonzero(), x.cpu()
    assert reads.places == [Path(__file__).name] * 6


def test_stage_2_steps_read_no_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, _ = problem(tmp_path)
    settings = FIT.to_dict()
    settings["optimizer"] |= {"fused": True, "clip_value": 1.0, "clip_norm": 10.0}
    settings["engine"] |= {"read_every": 30, "on_nan": "skip", "accumulate": 2}
    reads = count_between(monkeypatch, ConfidenceTask, 2, 20)
    fit_head(light(), features, ConfidenceConfig.from_dict(settings), tmp_path / "run")
    # Only on the CPU do the Bessel functions read values to choose their formula.
    assert set(reads.places) <= {"kernels.py"}
    settings["engine"] |= {"read_every": 1}
    reads = count_between(monkeypatch, ConfidenceTask, 2, 3)
    fit_head(light(), features, ConfidenceConfig.from_dict(settings), tmp_path / "run-1")
    assert "loop.py" in reads.places


def test_stage_1_steps_read_no_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = count_between(monkeypatch, _BackboneTask, 1, 3)
    train_backbone(images(), tmp_path, config(**deferred(10)))
    # The classifier looks up the labels among the prototypes.
    assert set(reads.places) <= {"classifier.py"}


def deferred(every: int = 3, **changes: Any) -> dict[str, Any]:
    changes["optimizer"] = {"lr": 0.01, "fused": True, **changes.get("optimizer", {})}
    changes["engine"] = {"read_every": every, "on_nan": "skip", **changes.get("engine", {})}
    return changes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"name": "adamw", "lr": 1e-3}, "margin": {"sample_rate": 0.5}},
        {"engine": {"accumulate": 2}, "margin": {"kind": "adaface"}},
        {"engine": {"precision": "float16"}},
    ],
)
def test_skipping_a_bad_step_does_not_depend_on_the_read_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Includes the first step, where the optimizer has no momentum yet."""
    results = []
    for interval in (1, 3):
        with monkeypatch.context() as patch:
            inject_nan(patch, 0, 5)
            folder = tmp_path / str(interval)
            results.append(train_backbone(images(), folder, config(**deferred(interval, **changes))))
    immediate, delayed = results
    if changes.get("engine", {}).get("precision") != "float16":  # float16 also lowers the loss scale
        assert immediate.history == delayed.history
        ours, theirs = immediate.network.state_dict(), delayed.network.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(bool(torch.isfinite(value).all()) for value in delayed.network.state_dict().values())
    reports = [sorted((tmp_path / interval).glob("not-finite-*.json")) for interval in ("1", "3")]
    assert [path.read_text() for path in reports[0]] == [path.read_text() for path in reports[1]]
    assert len(reports[0]) == 2 and sum(facts.get("not_finite", 0) for facts in delayed.history) == 2


def test_a_stopped_run_reports_the_bad_batch_after_delayed_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject_nan(monkeypatch, 4)
    with pytest.raises(SpherecfError, match=r"epoch 2, batch 1: the loss is nan, in a batch of 12 with"):
        train_backbone(images(), tmp_path, config(**deferred(engine={"on_nan": "stop"})))
    (path,) = tmp_path.glob("not-finite-*.json")
    assert path.name == "not-finite-000000004.json" and len(json.loads(path.read_text())["keys"]) == 12
    (saved,) = (tmp_path / "checkpoints").iterdir()
    network = torch.load(saved / "common.pt")["network"]
    assert all(bool(torch.isfinite(value).all()) for value in network.values())


@pytest.mark.slow
def test_all_ranks_skip_a_bad_step(tmp_path: Path) -> None:
    single = train_backbone(images(), tmp_path / "one", config(**deferred()))
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "config.json").write_text(json.dumps(deferred()))
    run("backbone", tmp_path / "two", 2)
    lines = (tmp_path / "two" / "history.jsonl").read_text().splitlines()
    check_losses([json.loads(line) for line in lines], single.history)


def test_delayed_reading_requires_a_fused_optimizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"engine\.read_every = 3: only fused.*optimizer\.fused = true"):
        train_backbone(images(), tmp_path, config(engine={"read_every": 3}))


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizer_state_moves_from_plain_to_fused_kernels(name: str) -> None:
    settings = [config(optimizer={"name": name, "fused": fused}).optimizer for fused in (False, True)]
    weight = nn.Parameter(torch.ones(2, 2))
    plain, fused = (make_optimizer([weight], optimizer_settings) for optimizer_settings in settings)
    weight.grad = torch.ones(2, 2)
    plain.step()
    fused.load_state_dict(keep_kernels(fused, plain.state_dict()))
    initial = weight.detach().clone()
    step_if_finite(torch.tensor(False), fused)
    assert torch.equal(weight, initial)
    step_if_finite(torch.tensor(True), fused)
    assert not torch.equal(weight, initial) and fused.param_groups[0]["fused"]


def state(value: float) -> dict[str, Any]:
    return {"private": {}, "shard": {"weight": torch.full((2, 1), value)}}


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """File writes wait until this event is set."""
    write_atomically, writing_allowed = checkpoint.write_atomically, threading.Event()

    def write(path: Path, content: Any) -> Path:
        writing_allowed.wait(30)
        return write_atomically(path, content)

    monkeypatch.setattr(checkpoint, "write_atomically", write)
    yield writing_allowed
    writing_allowed.set()


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path, slow_disk: threading.Event) -> None:
    network = {"weight": torch.zeros(3)}
    with CheckpointWriter(tmp_path, "a" * 64, Ranks()) as writer:
        writer.save(1, common=lambda: {"network": network}, **state(1.0))
        assert load_checkpoint(tmp_path, "a" * 64, Ranks()) is None and not writer.failed
        network["weight"].fill_(7.0)  # changed by the next step
        slow_disk.set()
        writer.wait()
        saved = load_checkpoint(tmp_path, "a" * 64, Ranks(), slice(0, 2))
        assert saved is not None and saved.step == 1 and saved.common["network"]["weight"].tolist() == [0] * 3
        writer.save(2, common=lambda: {"network": network}, **state(2.0))
    # Leaving the block, even by an exception, completes the checkpoint.
    saved = load_checkpoint(tmp_path, "a" * 64, Ranks(), slice(0, 2))
    assert saved is not None and saved.step == 2 and saved.shard["weight"].tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize("failing", [1, 2])
def test_saving_a_step_twice_never_loses_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """An interruption may have saved the step that the end of the epoch saves as well."""
    with CheckpointWriter(tmp_path, "a" * 64, Ranks(), keep=1) as writer:
        writer.save(1, common=lambda: {"network": "first"}, **state(1.0))
        writer.wait()
        renames, rename = [], Path.rename

        def failing_rename(path: Path, target: Path) -> Path:
            renames.append(path)
            if len(renames) == failing:
                raise OSError(5, "Input/output error")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", failing_rename)
        writer.save(1, common=lambda: {"network": "second"}, **state(2.0))
        with pytest.raises(StorageError, match="Input/output error"):
            writer.wait()
    monkeypatch.setattr(Path, "rename", rename)
    CheckpointWriter(tmp_path, "a" * 64, Ranks())
    saved = load_checkpoint(tmp_path, "a" * 64, Ranks(), slice(0, 2))
    assert saved is not None and saved.common["network"] == "first"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000000001-aaaaaaaa"]


def test_a_failed_checkpoint_stops_training_at_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, write: Any) -> Path:
        raise StorageError(f"{path}: could not be written (No space left on device)")

    steps, begin = [], _BackboneTask.begin
    attempted = threading.Event()

    def begin_once_written(task: _BackboneTask, rows: Any, step: int) -> None:
        steps.append(step)
        if step == 1:
            attempted.wait(30)
        begin(task, rows, step)

    def fail_and_signal(path: Path, write: Any) -> Path:
        try:
            return full(path, write)
        finally:
            threading.Timer(0.1, attempted.set).start()

    monkeypatch.setattr(_BackboneTask, "begin", begin_once_written)
    monkeypatch.setattr(checkpoint, "write_atomically", fail_and_signal)
    with pytest.raises(StorageError, match="No space left"):
        train_backbone(images(), tmp_path, config(engine={"save_minutes": 1e-9, "keep": 1}))
    assert steps == [0, 1] and not list((tmp_path / "checkpoints").iterdir())


class MeanHead(type(light())):  # type: ignore[misc]
    """A light head whose summaries are computed without reading values."""

    def pool_features(self, features: Tensor, embedding: Tensor) -> Tensor:
        flat = features.flatten(2)
        return torch.cat([flat.mean(2), flat.std(2, correction=0), flat.amax(2)], 1)


def streamed(bad_row: int | None = None) -> StreamedFeatures:
    """Features of 20 images; the backbone outputs NaN for one of them."""
    torch.manual_seed(0)
    network = make_backbone("r18", dim=16, size=32, width=0.125)
    backbone = FrozenBackbone.from_module(network, Preprocessing("rgb", 127.5, 127.5, (32, 32)))
    source = SyntheticImages(20, 4, size=(32, 32))
    if bad_row is not None:
        mark = backbone.preprocessing(source.image(bad_row)[None])[0]

        def convolve(x: Tensor, plain: Any = network.convolve) -> Tensor:
            is_marked = (x == mark).flatten(1).all(1)
            return torch.where(is_marked[:, None, None, None], torch.nan, plain(x))

        network.convolve = convolve  # type: ignore[method-assign]
    prototypes = torch.nn.functional.normalize(torch.randn(4, 16), dim=1)
    head = MeanHead(*backbone.feature_shape)
    return StreamedFeatures(backbone, head, source, [View()], GivenPrototypes(source, prototypes, 16))


@pytest.mark.parametrize("bad_row", [None, 7])
def test_computing_one_batch_ahead_gives_the_same_samples(bad_row: int | None) -> None:
    features = streamed(bad_row)
    parts = np.array_split(np.arange(20), 4)
    plain = list(features.load(parts))
    features._ahead = 1
    for part, expected in zip(features.load(parts), plain, strict=True):
        assert part.rows.tolist() == expected.rows.tolist() and part.skipped == expected.skipped
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(part.data, expected.data))
    assert [part.rows.tolist() for part in features.load([np.array([7, 8])])] == [[8] if bad_row else [7, 8]]
    skipped = {key for part in plain for key in part.skipped}
    assert skipped == (set() if bad_row is None else {SyntheticImages(20, 4, size=(32, 32)).keys[bad_row]})


def test_a_streamed_batch_reads_only_its_validity_flags() -> None:
    features = streamed()
    features._ahead = 1
    with Reads() as reads:
        list(features.load(np.array_split(np.arange(20), 4)))
    # Only the flags, already on the CPU, are read; nothing in the backbone, the head or the cosines.
    assert reads.places == ["features.py"] * 4


@pytest.mark.parametrize("name", ["r18", "ir-50", "mbf", "vit_t"])
def test_repeated_blocks_are_compiled_one_by_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def count(function: Any) -> Any:
        def called(*arguments: Any) -> Any:
            calls.append(function)
            return function(*arguments)

        return called

    network = make_backbone(name, dim=16, size=32, width=0.125).eval()
    x = torch.randn(2, 3, 32, 32)
    plain = network(x)
    names = list(network.state_dict())
    monkeypatch.setattr(torch, "compile", count)
    compiled = compile_blocks(network)
    assert compiled is network and list(network.state_dict()) == names
    assert all(torch.equal(actual, expected) for actual, expected in zip(compiled(x), plain))
    depth = {"r18": 8, "ir-50": 24, "mbf": 13, "vit_t": 12}[name]
    assert len(calls) >= depth


def test_a_gpu_compiles_a_frozen_network_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "r18.pth", []

    def compile_untraced(function: Any, **_: Any) -> Any:
        def called(*arguments: Any) -> Any:
            assert not torch.jit.is_tracing()
            calls.append(function)
            return function(*arguments)

        return called

    torch.save(make_backbone("r18", dim=16, size=32, width=0.125).state_dict(), path)
    plain = FrozenBackbone.from_checkpoint(path)
    monkeypatch.setattr(torch, "compile", compile_untraced)
    with monkeypatch.context() as patch:
        patch.setattr(ModuleEngine, "device", property(lambda engine: torch.device("cuda", 0)))
        patch.setattr(FrozenBackbone, "from_module", lambda *args, **kwargs: copy(plain))
        backbone = FrozenBackbone.from_checkpoint(path, engine="compiled")
    images = np.zeros((3, 32, 32, 3), np.uint8)
    assert torch.equal(backbone(images).embedding, plain(images).embedding)
    assert backbone.engine == "compiled" and len(calls) == 2 * 8  # both share one network
    assert backbone.to_onnx().graph.node and backbone.differentiable()
    assert len(calls) == 2 * 8


def test_compiling_without_triton_on_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu(nn.Linear):
        def parameters(self, recurse: bool = True) -> Any:
            return iter([SimpleNamespace(device=torch.device("cuda", 0))])

    monkeypatch.setattr(compiling, "triton_runs_on", lambda device: False)
    with pytest.raises(InputError, match=r"cannot compile for cuda:0: .*Triton and a C compiler"):
        compile_blocks(OnGpu(1, 1))


def test_a_head_is_compiled_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = object()
    monkeypatch.setattr(torch, "compile", lambda network, dynamic: compiled)
    assert compile_blocks(make_head("light", channels=2, height=1, width=1)) is compiled


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc returns freed blocks at once")
def test_memory_freed_by_a_step_is_kept_until_training_ends() -> None:
    code = """
import resource, torch
from spherecf.training.loop import freed_memory_kept

def page_faults():
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(16 << 20)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start

page_faults()
before = page_faults()
with freed_memory_kept():
    page_faults()
    inside = page_faults()
print(before, inside, page_faults())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, inside, after = map(int, printed.split())
    assert inside * 10 < min(before, after)


def test_tensorboard_curves_match_the_reference(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    features, _ = problem(tmp_path)
    result = fit_head(light(), features, FIT, tmp_path / "run", monitor=Monitor(tensorboard="reference"))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "runs"), {"scalars": 0})
    events.Reload()
    tags = ["kappa", "neg_kappa_times_cos_theta", "neg_dim_scalar_times_log_kappa", "log_iv_kappa"]
    curves = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in [*tags, "total_loss"]
    }
    steps = [step for step, _ in curves["kappa"]]
    assert steps == list(range(len(steps))) and len(steps) % FIT.fit.epochs == 0
    kappa, cosine, log_kappa, bessel = (np.array([value for _, value in curves[tag]]) for tag in tags)
    # At the first step the head is still constant.
    order, initial = features.dim / 2 - 1, result.initial_kappa
    np.testing.assert_allclose(kappa[0], initial, rtol=1e-5)
    np.testing.assert_allclose(log_kappa[0], -order * np.log(initial), rtol=1e-5)
    np.testing.assert_allclose(bessel[0], np.log(ive(order, initial)) + initial, rtol=1e-4)
    assert -1 <= cosine[0] / initial < 0
    constant = features.dim / 2 * np.log(2 * np.pi * FIT.loss.radius**2)
    total = np.array([value for _, value in curves["total_loss"]])
    np.testing.assert_allclose(cosine + log_kappa + bessel + constant, total, rtol=1e-4)
    with pytest.raises(InputError, match="objective scf, got scf-gaussian"):
        other_objective = ConfidenceConfig.from_dict({**FIT.to_dict(), "loss": {"objective": "scf-gaussian"}})
        fit_head(
            light(), features, other_objective, tmp_path / "other", monitor=Monitor(tensorboard="reference")
        )
