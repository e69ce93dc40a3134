"""Claim: the ROC point nearest to an FMR target, which many papers report, often exceeds the target.

python benchmarks/nearest_point.py [--runs 100]

Scores are synthetic and normal, with the mean of 20,000 mated pairs 4.5 standard deviations higher. There are
150,000 non-mated pairs, or a random number from 100,000 to 200,000: the nearest point depends on how the
target times this number is rounded.
"""

import argparse
import time

import numpy as np

from spherecf.evaluation import roc
from spherecf.evaluation.rates import nearest_of_curve, tmr_of_curve

TARGETS = (1e-3, 1e-4, 1e-5)
MATED = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    runs = parser.parse_args().runs
    start = time.perf_counter()
    print("non-mated pairs     target   beyond it   FMR / target, mean   TMR gained, mean and max")
    for name, low, high in (("150,000", 150_000, 150_001), ("100,000 to 200,000", 100_000, 200_001)):
        for target, rows in draw(runs, low, high).items():
            ratio, gain = np.array(rows).T
            points = f"{100 * gain.mean():+.2f} and {100 * gain.max():+.2f} points"
            print(f"{name:18s} {target:7g} {np.mean(ratio > 1):11.0%} {ratio.mean():20.3f}   {points}")
    print(f"{2 * runs} runs in {time.perf_counter() - start:.0f} s")


def draw(runs: int, low: int, high: int) -> dict[float, list[tuple[float, float]]]:
    """target -> (FMR / target, gain over the TMR with FMR at most the target) of every run."""
    rng = np.random.default_rng(0)
    rows: dict[float, list[tuple[float, float]]] = {target: [] for target in TARGETS}
    for _ in range(runs):
        mated = np.arange(MATED + int(rng.integers(low, high))) < MATED
        curve = roc(rng.normal(mated * 4.5, 1), mated)
        for exact, near in zip(tmr_of_curve(curve, TARGETS), nearest_of_curve(curve, TARGETS)):
            assert exact.tmr is not None
            rows[near.target].append((near.fmr / near.target, near.tmr - exact.tmr))
    return rows


if __name__ == "__main__":
    main()
