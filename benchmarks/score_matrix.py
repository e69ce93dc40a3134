"""Claim: the mutual likelihood matrix, compiled, costs at most 1.6 times the plain cosine product, and works
in the memory of its result.

Prints the table of docs/scoring.md. The methods take turns; a time is the best of the rounds, by the clock.

    python benchmarks/score_matrix.py
"""

import argparse
import resource
import time
from collections.abc import Callable

import torch

from spherecf.scoring import cosine_matrix, mutual_likelihood_matrix


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak() -> float:
    """MiB this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--columns", type=int, default=20000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    mu_a, mu_b = (
        torch.nn.functional.normalize(torch.randn(n, chosen.dim), dim=1)
        for n in (chosen.rows, chosen.columns)
    )
    kappa_a, kappa_b = (10 ** (1 + 3 * torch.rand(n)) for n in (chosen.rows, chosen.columns))
    out = torch.zeros(chosen.rows, chosen.columns).add_(0)  # written to, so that its memory is there

    def score(compiled: bool) -> None:
        mutual_likelihood_matrix(mu_a, kappa_a, mu_b, kappa_b, out=out, compiled=compiled)

    methods: dict[str, Callable[[], object]] = {
        "cosine product": lambda: cosine_matrix(mu_a, mu_b, out),
        "mutual likelihood, eager": lambda: score(False),
        "mutual likelihood, compiled": lambda: score(True),
    }
    first: dict[str, float] = {}
    extra: dict[str, float] = {}
    for name, work in methods.items():
        before = peak()
        first[name] = seconds(work)
        extra[name] = peak() - before
    best = {name: first[name] for name in methods}
    for _ in range(chosen.rounds):
        for name, work in methods.items():
            best[name] = min(best[name], seconds(work))

    print(
        f"{chosen.rows} x {chosen.columns}, dim {chosen.dim}, {chosen.threads} threads, "
        f"torch {torch.__version__}, result {out.nbytes / 2**20:.0f} MiB, best of {chosen.rounds} rounds\n"
    )
    print("| method | seconds | times the product | first call, seconds | memory beside the result, MiB |")
    print("|---|---|---|---|---|")
    for name, value in best.items():
        ratio = value / best["cosine product"]
        print(f"| {name} | {value:.3f} | {ratio:.2f} | {first[name]:.1f} | {extra[name]:.0f} |")


if __name__ == "__main__":
    main()
