"""Claim: the mutual likelihood matrix costs at most 1.6 times the plain cosine product, and no more memory.

python benchmarks/score_matrix.py [rows columns dim]
"""

import resource
import sys
import time
from collections.abc import Callable

import torch

from spherecf.scoring import cosine_matrix, mutual_likelihood_matrix


def best_of(runs: int, work: Callable[[], object]) -> float:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    rows, columns, dim = (int(word) for word in sys.argv[1:4]) if len(sys.argv) > 3 else (2000, 20000, 512)
    torch.manual_seed(0)
    mu_a, mu_b = (torch.nn.functional.normalize(torch.randn(n, dim), dim=1) for n in (rows, columns))
    kappa_a, kappa_b = (10 ** (1 + 3 * torch.rand(n)) for n in (rows, columns))
    out = torch.empty(rows, columns)

    def score(compiled: bool) -> None:
        mutual_likelihood_matrix(mu_a, kappa_a, mu_b, kappa_b, out=out, compiled=compiled)

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    cosine = best_of(7, lambda: cosine_matrix(mu_a, mu_b, out))
    print(
        f"{rows} x {columns}, dim {dim}, {torch.get_num_threads()} threads, "
        f"result {out.nbytes / 2**20:.0f} MiB"
    )
    print(f"cosine matrix product        {cosine:7.3f} s")
    before = peak()
    eager = best_of(3, lambda: score(False))
    print(
        f"mutual likelihood, eager     {eager:7.3f} s  {eager / cosine:5.2f} x   "
        f"+{peak() - before:.0f} MiB peak"
    )
    start = time.perf_counter()
    score(True)
    first = time.perf_counter() - start
    fused, cosine = (
        best_of(7, lambda: score(True)),
        min(cosine, best_of(3, lambda: cosine_matrix(mu_a, mu_b, out))),
    )
    print(f"mutual likelihood, compiled  {fused:7.3f} s  {fused / cosine:5.2f} x   first call {first:.1f} s")


if __name__ == "__main__":
    main()
