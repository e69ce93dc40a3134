"""Claim: a step of stage 2 is 3 times faster than the reference, and 60 times with the light head.

    python benchmarks/confidence_step.py [--steps N] [--rounds N] [--batch N]

The reference is rewritten here in plain torch after its train.py: an IR-100 in evaluation mode, but with
gradients, so that the backward pass goes through the whole network; the released loss with scipy's Bessel
function; 25088-12544-6272-1 layers; Adam, one tensor at a time; images in memory. "Ours" is the library's own
training loop, including data loading. Every row runs in a separate process, one at a time, in rotating order;
the peak is the process's maximum memory (`VmHWM`, Linux). The first step is a warm-up. Times are medians over
steps; ratios are medians over rounds of the ratio of medians within a round. Wall time is the waiting time on
an idle machine; CPU time, summed over threads, is also meaningful on a shared one.
"""

import argparse
import math
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spherecf.data import View, open_source
from spherecf.models import FrozenBackbone, Network, Preprocessing, make_backbone, make_head
from spherecf.training import (
    CachedFeatures,
    ConfidenceConfig,
    GivenPrototypes,
    Ranks,
    StreamedFeatures,
    build_cache,
    prototype_targets,
)
from spherecf.training.heads import ConfidenceTask
from spherecf.training.loop import Rows, Run, run_training

Moment = tuple[float, float]  # wall and CPU seconds
NETWORK, DIM, RADIUS = "ir-100", 512, 64.0
PEOPLE = 8
REFERENCE_RECIPE = {
    "optimizer": {"name": "adam", "lr": 3e-5, "weight_decay": 5e-4, "clip_norm": 0.0, "fused": True},
    "engine": {"workers": 1},
    "fit": {"held_out": 0.0},
}


def now() -> Moment:
    return time.perf_counter(), time.process_time()


def between(moments: list[Moment]) -> list[Moment]:
    """Seconds of each step, without the first one."""
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(moments[1:])]


class ReleasedBessel(torch.autograd.Function):
    """exp(-kappa) I_order(kappa) and its derivative, by scipy on the CPU."""

    @staticmethod
    def forward(ctx: Any, order: float, kappa: Tensor) -> Tensor:
        import scipy.special  # imported here because benchmarks/gpu.py uses `recogniser` without scipy

        ctx.order = order
        ctx.save_for_backward(kappa)
        return torch.from_numpy(scipy.special.ive(order, kappa.detach().double().numpy())).to(kappa)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor]:
        (kappa,) = ctx.saved_tensors
        ive, next_ive = ReleasedBessel.apply(ctx.order, kappa), ReleasedBessel.apply(ctx.order + 1, kappa)
        return None, grads[0] * (next_ive + ive * (ctx.order / kappa - 1))


def released_loss(mu: Tensor, kappa: Tensor, prototypes: Tensor) -> Tensor:
    order = DIM / 2 - 1
    bessel = torch.log(1e-6 + ReleasedBessel.apply(order, kappa)) + kappa
    rest = DIM / 2 * math.log(2 * math.pi * RADIUS**2)
    return -kappa * (mu * prototypes).sum(1) - order * torch.log(1e-6 + kappa) + bessel + rest


def recogniser(name: str = NETWORK, dim: int = DIM, size: int = 112, **options: Any) -> Network:
    """An untrained network, the same in every process, with batch statistics that keep activations normal."""
    torch.manual_seed(0)
    network = make_backbone(name, dim, size=size, **options)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        network(torch.randn(8, 3, size, size))
    return network.eval()


def reference(steps: int, batch: int, folder: Path) -> list[Moment]:
    """The steps of the published code."""
    network = recogniser()
    head = nn.Sequential(
        nn.Linear(25088, 12544), nn.ReLU(), nn.Linear(12544, 6272), nn.ReLU(), nn.Linear(6272, 1)
    )
    nn.init.zeros_(head[-1].weight)
    nn.init.constant_(head[-1].bias, math.log(1000.0))
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-5, weight_decay=5e-4, foreach=False)
    images = torch.rand(batch, 3, 112, 112) * 2 - 1
    prototypes = nn.functional.normalize(torch.randn(batch, DIM))
    moments = [now()]
    for _ in range(steps + 1):
        optimizer.zero_grad()
        embedding, features = network(images)
        mu = embedding / embedding.norm(dim=1, keepdim=True)
        kappa = head(features.flatten(1)).squeeze(1).exp()
        released_loss(mu, kappa, prototypes).mean().backward()
        optimizer.step()
        moments.append(now())
    return between(moments)


class Clock:
    """Wraps a task and records when each step begins."""

    def __init__(self, task: ConfidenceTask) -> None:
        self._task, self.moments = task, list[Moment]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def begin(self, rows: Rows, step: int) -> None:
        self.moments.append(now())
        self._task.begin(rows, step)


def ours(kind: str, cached: bool, steps: int, batch: int, folder: Path) -> list[Moment]:
    """Steps of the library's training loop, each from its beginning to the beginning of the next."""
    backbone = FrozenBackbone.from_module(recogniser(), Preprocessing.preset("scf"))
    source = open_source(f"synthetic:images={batch * (steps + 2)},identities={PEOPLE}")
    channels, height, width = backbone.feature_shape
    head = make_head(kind, channels=channels, height=height, width=width)
    prototypes = backbone(torch.stack([torch.from_numpy(source.image(i)) for i in range(PEOPLE)])).mu
    epochs, features = 1, None
    if cached:
        cache = build_cache(backbone, head, source, [View()], folder / "cache")
        features, epochs = CachedFeatures(cache, prototype_targets(cache, prototypes)), 50
    else:
        given = GivenPrototypes(source, prototypes, DIM)
        features = StreamedFeatures(
            backbone, head, source, [View()], given, config=ConfidenceConfig.from_dict(REFERENCE_RECIPE)
        )
    settings = {**REFERENCE_RECIPE, "fit": {"batch_size": batch, "epochs": epochs, "held_out": 0.0}}
    config = ConfidenceConfig.from_dict(settings)
    clock = Clock(ConfidenceTask(head, features, config, Ranks()))
    run = Run(epochs, 0, config.optimizer, config.schedule, config.engine, None, "", "benchmark")
    run_training(clock, run, Ranks())
    return between(clock.moments)


Variant = Callable[[int, int, Path], list[Moment]]


def linear_streamed(steps: int, batch: int, folder: Path) -> list[Moment]:
    return ours("linear", False, steps, batch, folder)


def light_streamed(steps: int, batch: int, folder: Path) -> list[Moment]:
    return ours("light", False, steps, batch, folder)


def light_cached(steps: int, batch: int, folder: Path) -> list[Moment]:
    return ours("light", True, steps, batch, folder)


VARIANTS: dict[str, Variant] = {
    "reference: 393 M head, backward through the backbone, plain Adam": reference,
    "ours: 393 M head, frozen backbone streamed, fused Adam": linear_streamed,
    "ours: light head, frozen backbone streamed": light_streamed,
    "ours: light head, features cached": light_cached,
}


def measure(variant: Variant, steps: int, batch: int, folder: Path, results: Any) -> None:
    """Run a variant in this process, and put its step times and peak memory in bytes into the queue."""
    times = variant(steps, batch, folder)
    lines = Path("/proc/self/status").read_text().splitlines()
    results.put((times, 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))))


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")  # a fresh process that inherits nothing
    names = list(VARIANTS)
    step_times: dict[str, list[list[Moment]]] = {name: [] for name in names}
    peaks: dict[str, int] = dict.fromkeys(names, 0)
    with tempfile.TemporaryDirectory() as temporary:
        folder, results = Path(temporary), spawn.Queue()
        light_cached(options.steps, options.batch, folder)  # fills the cache
        for number in range(options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                job = (VARIANTS[name], options.steps, options.batch, folder, results)
                process = spawn.Process(target=measure, args=job)
                process.start()
                times, peak = results.get()
                process.join()
                step_times[name].append(times)
                peaks[name] = max(peaks[name], peak)
    print(
        f"{NETWORK}, batch {options.batch}, {cpu_name()}, {os.cpu_count()} cores, torch threads "
        f"{torch.get_num_threads()}, {options.rounds} rounds of {options.steps} steps\n"
    )
    print("| step | wall, s | CPU, s | times as fast, wall | CPU | lowest, highest, CPU | peak memory, GiB |")
    print("|---|---|---|---|---|---|---|")
    base = np.array([np.median(moments, 0) for moments in step_times[names[0]]])
    for name in names:
        medians = np.array([np.median(moments, 0) for moments in step_times[name]])
        wall, cpu = np.median(np.concatenate(step_times[name]), 0)
        ratios = base / medians
        faster = " | ".join(f"{ratio:.1f}" for ratio in np.median(ratios, 0))
        spread = f"{ratios[:, 1].min():.1f}, {ratios[:, 1].max():.1f}"
        print(f"| {name} | {wall:.3g} | {cpu:.3g} | {faster} | {spread} | {peaks[name] / 2**30:.2f} |")


if __name__ == "__main__":
    main()
