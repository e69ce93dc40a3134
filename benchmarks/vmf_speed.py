"""Claim: log C_d with its gradient A_d is 30 (eager) and 200 (compiled) times faster than the released code.

The claim is for dim 512 on one thread; the released code is an autograd function around scipy's Bessel
function. On a GPU the claim is different: at most 3 times torch.log with its gradient, eager and compiled.

Prints the table of docs/numerics.md: nanoseconds per element for a forward and a backward pass. The methods
take turns in every round; a row is the median over rounds. The time is CPU time of the thread, so that other
work on the machine does not count. On a GPU it is wall time, and scipy is left out.

    python benchmarks/vmf_speed.py
    python benchmarks/vmf_speed.py --device cuda --mebibytes 256
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import scipy
import torch
from torch import Tensor

from spherecf.training.loop import freed_memory_kept
from spherecf.vmf import log_normalizer

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "reference"))
from released_loss import released_log_normalizer

DIM = 512
FLOOR, RIVAL = "one torch.log, no gradient", "scipy-based, as released"
BOTH = "one torch.log and its gradient"


def with_gradient(function: Callable[[Tensor, int], Tensor], kappa: Tensor) -> Callable[[], object]:
    """Forward and backward pass, as in a training step."""
    kappa = kappa.detach().requires_grad_()
    ones = torch.ones_like(kappa)
    return lambda: torch.autograd.grad(function(kappa, DIM), kappa, ones)


def nanoseconds(
    methods: dict[str, tuple[Callable[[], object], int]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Time per element of each method, round by round; a turn lasts at least 20 ms."""
    times: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(rounds + 1):
        for name, (action, elements) in methods.items():
            action()  # restore caches after the previous method
            calls, start = 0, clock()
            while (elapsed := clock() - start) < 0.02 or calls < 2:
                action()
                calls += 1
            if round_:  # the first round is a warm-up
                times[name].append(elapsed / (calls * elements) * 1e9)
    return times


def clock_of(gpu: bool) -> Callable[[], float]:
    """CPU time, or wall time after synchronising with the GPU."""

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised if gpu else time.process_time


def measure(dtype: torch.dtype, elements: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Nanoseconds per element by method; kappa is log-uniform from 1 to 1e4."""
    kappa = 10 ** (4 * torch.rand(elements, generator=torch.Generator().manual_seed(0), dtype=dtype))
    gpu, kappa = device.type == "cuda", kappa.to(device)
    few = kappa[: elements // 32]  # scipy is slow, and no faster per element on larger arrays
    compiled = torch.compile(log_normalizer, fullgraph=True)
    methods = {
        FLOOR: (kappa.log, elements),
        BOTH: (with_gradient(lambda k, _: k.log(), kappa), elements),
        "compiled": (with_gradient(compiled, kappa), elements),
        "eager": (with_gradient(log_normalizer, kappa), elements),
    }
    if not gpu:
        methods |= {
            "scipy ive, forward only": (lambda: scipy.special.ive(DIM / 2 - 1, few.numpy()), len(few)),
            RIVAL: (with_gradient(released_log_normalizer, few), len(few)),
        }
    # Clearing pages of returned memory takes as long as these functions, and the next one would pay for it.
    with freed_memory_kept():
        times = nanoseconds(methods, rounds, clock_of(gpu))
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mebibytes", type=int, default=4, help="size of the tensor of kappas")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    gpu = arguments.device.type == "cuda"
    where = torch.cuda.get_device_name() if gpu else f"one thread, {torch.backends.cpu.get_cpu_capability()}"
    print(
        f"dim {DIM}, {arguments.mebibytes} MiB of values, {where}, torch {torch.__version__}, "
        f"scipy {scipy.__version__}, median of {arguments.rounds} rounds\n"
    )
    print(
        "| type | method | ns per element | times faster than scipy-based | times one torch.log "
        "| times that with its gradient |"
    )
    print("|---|---|---|---|---|---|")
    for dtype in (torch.float32, torch.float64):
        elements = (arguments.mebibytes << 20) // dtype.itemsize
        times = measure(dtype, elements, arguments.rounds, arguments.device)
        for name, value in times.items():
            faster = "" if gpu else f"{times[RIVAL] / value:.0f}"
            print(
                f"| {str(dtype)[6:]} | {name} | {value:.{4 if gpu else 1}f} | {faster} "
                f"| {value / times[FLOOR]:.1f} | {value / times[BOTH]:.1f} |"
            )


if __name__ == "__main__":
    main()
