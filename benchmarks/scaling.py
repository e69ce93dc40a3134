"""Formulas for memory, bytes moved, disk and time of both stages, compared with measurements on small runs.

    python benchmarks/scaling.py [--identities N]      formulas and measurements for 1, 2 and 3 gloo ranks
    python benchmarks/scaling.py --large               formulas for MS1MV2 and larger sets, on 8 GPUs
    python benchmarks/scaling.py --recipes             cost of each recipe, from the line in its header

There are C identities on R ranks, so c = C / R rows on each (rounded up); dimension d, batch B over all
ranks, sample rate q. Memory is the amount given out by torch's allocator on a rank; "moved" is the amount
that a rank passes to all_reduce and gets from all_gather, counted by wrapping both; disk is the size of the
files.
"""

import argparse
import math
import multiprocessing
import os
import re
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile

from spherecf.data import SyntheticImages, training_views
from spherecf.losses import make_margin
from spherecf.models import (
    ConfidenceHead,
    FrozenBackbone,
    Preprocessing,
    make_backbone,
    make_head,
    without_memory,
)
from spherecf.training import (
    BackboneConfig,
    OptimizerSettings,
    Ranks,
    ShardedClassifier,
    build_cache,
    cache_bytes,
    join_ranks,
    train_backbone,
)

ROOT = Path(__file__).resolve().parents[1]
MIB, GIB = 2**20, 2**30
SETS = {  # identities, images; the last set is hypothetical, with twenty images per person
    "MS1MV2": (85_742, 5_822_653),
    "Glint360K": (360_232, 17_091_657),
    "WebFace42M": (2_059_906, 42_474_557),
    "10 M people": (10_000_000, 200_000_000),
}
GPUS, BATCH, DIM = 8, 1024, 512
BLOCK = {"cpu": 16 * MIB, "cuda": 128 * MIB}  # logits of a block of identities
RATE = 2014  # images/s of R100 on 8 V100, DDP in fp16, as MagFace's repository reports


# Formulas.


def row_counts(identities: int, ranks: int, rate: float, batch: int) -> tuple[int, float]:
    """Rows on a rank, and rows used in a step: the sample, and the identities of the batch."""
    c = math.ceil(identities / ranks)
    return c, c if rate == 1 else rate * c + (1 - rate) * min(batch, identities) / ranks


def classifier_bytes(c: int, used: float, dim: int) -> float:
    """Held between steps: weight, momentum and gradient; with sampling, copies of weight and momentum."""
    return 4 * dim * (2 * c + (used if used == c else 3 * used))


def classifier_peak(c: int, used: float, dim: int, batch: int, block: int) -> float:
    """Peak in a step: the memory held, plus four times the embeddings, plus buffers for a block of rows.

    The buffers are three times the block's logits, or its derivatives and a gradient. This holds with the
    fused update, for tables larger than one block, and on a GPU for tables of any size.
    """
    rows = min(used, block // (4 * max(batch, dim)))
    blocks = 4 * rows * max(3 * batch, batch + dim)
    return classifier_bytes(c, used, dim) + 16 * batch * dim + blocks


@dataclass(frozen=True)
class Network:
    """Size of a network.

    Attributes:
        trainable: number of trainable parameters.
        state: number of values in the state dict, including buffers.
        channels: of each batch normalisation.
        multiply_adds: per image.
    """

    trainable: int
    state: int
    channels: list[int]
    multiply_adds: int

    @classmethod
    def of(cls, name: str, dim: int = DIM, **options: Any) -> "Network":
        with torch.device("meta"):
            network = make_backbone(name, dim, **options)
            channels = [
                m.num_features for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
            ]
            counts = []
            for module in network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.register_forward_hook(
                        lambda m, _, out: counts.append(out[0].numel() * m.weight[0].numel())
                    )
            network.eval().embed(network.convolve(torch.empty(1, 3, network.size, network.size)))
        trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
        state = sum(t.numel() for t in network.state_dict().values() if t.ndim)
        return cls(trainable, state, channels, sum(counts))


def moved_bytes(network: Network, batch: int, ranks: int, dim: int, gloo: bool) -> int:
    """Bytes moved by a rank in a step.

    These are the gradients; the embeddings and their gradients; labels, cosines, maximum and sum; sizes and
    flags. If batch normalisation runs over all ranks on the CPU (``gloo``), the channel sums and their
    gradients are added.
    """
    gradients, embeddings, scalars = 4 * network.trainable, 2 * 4 * batch * dim, (8 + 4 + 4 + 8) * batch
    flags = 2 * 8 * ranks + 4 + 4 + 8
    norms = sum(2 * 8 * (2 * channels + 1) for channels in network.channels) if gloo else 0
    return gradients + embeddings + scalars + flags + norms


def checkpoint_bytes(network: Network, identities: int, dim: int) -> int:
    """State and momentum of the network, prototypes and their momentum."""
    return 4 * (network.state + network.trainable) + 2 * 4 * identities * dim


# Measurements.


def classifier_job(ranks: Ranks, identities: int, dim: int, rate: float, batch: int) -> list[int]:
    """[bytes held after two steps, peak of the second step] from torch's allocator."""
    # Fused, as always on a GPU: torch's other updates copy the gradient once more.
    settings = OptimizerSettings(name="sgd", lr=0.1, weight_decay=5e-4, decay_vectors=True, fused=True)
    classifier = ShardedClassifier(identities, dim, make_margin("arcface"), ranks, settings, rate)
    labels = torch.arange(batch) * identities // batch
    part = ranks.share(batch)

    def step(number: int) -> None:
        rows = classifier.begin(labels, number)
        embedding = torch.randn(batch, dim)[part].requires_grad_()
        classifier.loss(embedding, labels[part], rows).backward.backward()
        classifier.rows.optimizer.step()
        classifier.end()

    def held() -> int:
        rows = classifier.rows
        moments = (
            t for s in rows.optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)
        )
        tensors = (*rows.state().values(), rows.active.detach(), rows.active.grad, *moments)
        return sum({t.data_ptr(): t.nbytes for t in tensors if t is not None}.values())

    step(0)
    classifier.rows.optimizer.zero_grad()
    classifier.rows.select_rows(None if rate == 1 else torch.arange(1))  # release the sample
    before = held()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(1)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return [held(), before + max(accumulate(changes))]


def training_job(
    ranks: Ranks, folder: str, name: str, options: dict[str, Any], batch: int, people: int
) -> list[int]:
    """[bytes moved in each step] of a small training."""
    moved, step_starts = [0], []
    reduce, gather, begin = dist.all_reduce, dist.all_gather, ShardedClassifier.begin

    def counted_reduce(tensor: torch.Tensor, *rest: Any, **more: Any) -> Any:
        moved[0] += tensor.nbytes
        return reduce(tensor, *rest, **more)

    def counted_gather(every: list[torch.Tensor], *rest: Any) -> Any:
        moved[0] += sum(tensor.nbytes for tensor in every)
        return gather(every, *rest)

    def recorded_begin(self: ShardedClassifier, *rest: Any) -> Any:
        step_starts.append(moved[0])
        return begin(self, *rest)

    dist.all_reduce, dist.all_gather, ShardedClassifier.begin = counted_reduce, counted_gather, recorded_begin
    source = SyntheticImages(4 * batch, people, size=(options["size"],) * 2)
    recipe = {
        "network": {"name": name, "dim": 64, "options": options},
        "fit": {"epochs": 1, "batch_size": batch},
    }
    train_backbone(source, folder, BackboneConfig.from_dict(recipe), ranks=ranks)
    return [b - a for a, b in pairwise(step_starts)]


def rank(
    number: int, size: int, port: int, job: Callable[..., Any], arguments: Sequence[Any], results: Any
) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(size), "LOCAL_RANK": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with join_ranks("cpu") as ranks:
        results.put((number, job(ranks, *arguments)))


def run(job: Callable[..., Any], size: int, *arguments: Any) -> list[Any]:
    """Results of all ranks, in rank order; each rank is a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = spawn.Queue()
    processes = [
        spawn.Process(target=rank, args=(number, size, port, job, arguments, results))
        for number in range(size)
    ]
    for process in processes:
        process.start()
    by_rank = dict(results.get() for _ in processes)
    for process in processes:
        process.join()
    return [by_rank[number] for number in range(size)]


def show(name: str, formula: float, measured: float) -> None:
    print(f"| {name} | {formula / MIB:.2f} | {measured / MIB:.2f} | {measured / formula:.3f} |", flush=True)


def check(identities: int) -> None:
    """Print formulas and measurements."""
    print(f"d = {DIM}; C identities on R ranks, of which a step uses the share q\n")
    print("| quantity | formula, MiB | measured, MiB | ratio |\n|---|---|---|---|")
    for rate, batch in ((1.0, 128), (1.0, 1024), (0.1, 128)):
        for size in (1, 2, 3):
            held, peak = max(run(classifier_job, size, identities, DIM, rate, batch))
            c, rows = row_counts(identities, size, rate, batch)
            name = f"C = {identities:,}, q = {rate:g}, B = {batch:,}, R = {size}"
            show(f"classifier, held between steps, {name}", classifier_bytes(c, rows, DIM), held)
            formula = classifier_peak(c, rows, DIM, batch, BLOCK["cpu"])
            show(f"classifier, peak of a step, {name}", formula, peak)
    options, batch, people = {"size": 32, "width": 0.25}, 24, 5000
    network = Network.of("r18", 64, **options)
    for size in (2, 3):
        with tempfile.TemporaryDirectory() as folder:
            moved = run(training_job, size, folder, "r18", options, batch, people)[0]
            formula = moved_bytes(network, batch, size, 64, gloo=True)
            show(f"moved in a step, r18 of width 0.25, R = {size}", formula, moved[-1])
            newest = max((Path(folder) / "checkpoints").iterdir())
            used = min(people, 4 * batch)  # identities that have an image
            disk = sum(file.stat().st_size for file in newest.iterdir())
            show(f"checkpoint of it, C = {used}, R = {size}", checkpoint_bytes(network, used, 64), disk)
    check_caches()


def check_caches() -> None:
    torch.manual_seed(0)
    network = make_backbone("r18", DIM, size=112, width=0.25)
    backbone = FrozenBackbone.from_module(network, Preprocessing.preset("insightface"))
    source = SyntheticImages(24, 6)
    for kind, dtype, flip in (
        ("light", "float16", False), ("light", "float16", True), ("light", "float32", True),
        ("conv", "float16", True), ("linear", "bfloat16", True),
    ):  # fmt: skip
        channels, height, width = backbone.feature_shape
        head = make_head(kind, channels=channels, height=height, width=width)
        views = training_views(0, flip=flip)
        with tempfile.TemporaryDirectory() as folder:
            build_cache(backbone, head, source, views, Path(folder) / "cache", dtype=dtype)
            disk = sum(file.stat().st_size for file in (Path(folder) / "cache").glob("*.bin"))
        rows = len(source) * len(views)
        name = f"cache, {kind} head, {channels}x{height}x{width}, {dtype}, {rows} rows"
        show(name, cache_bytes(head, backbone.dim, rows, dtype), disk)


# Estimates.


def large() -> None:
    """Print estimates for common data sets on a machine with eight GPUs."""
    network = Network.of("r100")
    print(
        f"R100 (P = {network.trainable:,}, {network.multiply_adds / 1e9:.1f} G multiply-adds), d = {DIM}, "
        f"{GPUS} GPUs, B = {BATCH:,}, {RATE:,} images/s\n"
    )
    print("| set | identities | q = 1: held | peak | q = 0.1: held | peak | checkpoint, GiB | an epoch, h |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (identities, images) in SETS.items():
        cells = [
            size / GIB
            for rate in (1.0, 0.1)
            for c, rows in [row_counts(identities, GPUS, rate, BATCH)]
            for size in (classifier_bytes(c, rows, DIM), classifier_peak(c, rows, DIM, BATCH, BLOCK["cuda"]))
        ]
        disk, hours = checkpoint_bytes(network, identities, DIM) / GIB, images / RATE / 3600
        values = " | ".join(f"{value:.2f}" for value in (*cells, disk, hours))
        print(f"| {name} | {identities:,} | {values} |")
    moved, gradients = moved_bytes(network, BATCH, GPUS, DIM, gloo=False) / MIB, 4 * network.trainable / MIB
    print(
        f"\nmoved by each GPU in a step: {moved:.1f} MiB, of which gradients of the network {gradients:.1f}"
    )
    print(f"arithmetic of classifier and network is equal at C q = {network.multiply_adds / DIM:,.0f}\n")
    print(
        "| set | images | light head | conv or linear head | directions | a pass, h | 30 epochs streamed, h |"
    )
    print("|---|---|---|---|---|---|---|")
    light, linear = (meta_head(kind) for kind in ("light", "linear"))
    for name, (_, images) in SETS.items():
        sizes = (*(cache_bytes(head, DIM, 2 * images) for head in (light, linear)), 4 * DIM * images)
        disk, hours = " | ".join(f"{size / GIB:,.0f}" for size in sizes), images / RATE / 3600
        print(f"| {name} | {images:,} | {disk} | {2 * hours:.1f} | {30 * hours:.0f} |")


def meta_head(kind: str) -> ConfidenceHead:
    """A head on torch's meta device, without memory for its weights."""
    with without_memory():
        return make_head(kind, channels=512, height=7, width=7)


COST = re.compile(
    r"^# Cost: ([\d,]+) images x (\d+) (epochs|views) / ([\d,]+) images/s = "
    r"([\d.]+) h on (\d+) GPUs, ([\d,]+) GPU hours$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Cost:
    """The cost line in the header of a recipe: images, epochs (or views), images/s, and the result."""

    images: int
    count: int
    unit: str
    rate: int
    hours: float
    gpus: int
    gpu_hours: int

    @classmethod
    def of(cls, text: str) -> "Cost | None":
        match = COST.search(text)
        if match is None:
            return None
        images, count, unit, rate, hours, gpus, gpu_hours = (word.replace(",", "") for word in match.groups())
        return cls(int(images), int(count), unit, int(rate), float(hours), int(gpus), int(gpu_hours))

    def computed(self) -> tuple[float, int]:
        """(hours, GPU hours) computed from the other numbers."""
        hours = self.images * self.count / self.rate / 3600
        return round(hours, 1), round(hours * self.gpus)


def recipes() -> None:
    print("| recipe | images | times | images/s | hours | GPUs | GPU hours |\n|---|---|---|---|---|---|---|")
    for path in sorted((ROOT / "recipes").glob("*.toml")):
        if cost := Cost.of(path.read_text()):
            hours, gpu_hours = cost.computed()
            work = f"{cost.images:,} | {cost.count} {cost.unit} | {cost.rate:,}"
            print(f"| {path.name} | {work} | {hours:.1f} | {cost.gpus} | {gpu_hours:,} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--identities", type=int, default=50_000)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--recipes", action="store_true")
    options = parser.parse_args()
    if options.large:
        large()
    elif options.recipes:
        recipes()
    else:
        check(options.identities)


if __name__ == "__main__":
    main()
