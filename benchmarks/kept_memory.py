"""How much faster is stage 1 on the CPU if the C library keeps the memory that a step frees?

    python benchmarks/kept_memory.py

By default glibc returns large blocks to the system, which clears every page again at the next step. Both ways
take turns.
"""

import resource
import statistics
import tempfile
import time
from contextlib import nullcontext
from unittest.mock import patch

import torch

from spherecf.common.progress import hide_bars
from spherecf.data import SyntheticImages
from spherecf.training import BackboneConfig, loop, train_backbone

BATCH, STEPS, ROUNDS = 40, 6, 3
RECIPE = {
    "network": {"name": "mbf", "dim": 128},
    "fit": {"epochs": 1, "batch_size": BATCH},
    "engine": {"workers": 1},
}


def train(keep: bool) -> tuple[float, float, list[dict[str, float]]]:
    """(seconds, page faults, history) of a short training."""
    manager = loop.freed_memory_kept if keep else nullcontext
    faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, patch.object(loop, "freed_memory_kept", manager):
        source = SyntheticImages(BATCH * STEPS, BATCH)
        trained = train_backbone(source, folder, BackboneConfig.from_dict(RECIPE))
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults, trained.history


def main() -> None:
    hide_bars()
    runs: dict[bool, list[tuple[float, float, list[dict[str, float]]]]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for keep in runs:
            runs[keep].append(train(keep))
    assert all(run[2] == runs[True][0][2] for part in runs.values() for run in part)
    kept, default = ([statistics.median(run[i] for run in runs[keep]) for i in (0, 1)] for keep in runs)
    threads = torch.get_num_threads()
    print(f"MobileFaceNet, {STEPS} steps of {BATCH} images, {threads} threads, median of {ROUNDS}")
    print(f"kept:    {kept[0]:6.1f} s, {kept[1]:9,.0f} page faults")
    ratio = default[0] / kept[0]
    print(f"default: {default[0]:6.1f} s, {default[1]:9,.0f} page faults, {ratio:.2f} times as long")


if __name__ == "__main__":
    main()
