"""Claim: ten-fold verification of 6,000 pairs takes less than 0.1 s and equals a slow direct loop.

python benchmarks/tenfold.py
"""

import sys
import time
from pathlib import Path

import numpy as np

from spherecf.evaluation import bootstrap_subjects, tenfold
from spherecf.evaluation.rates import eer_rates, sort_pairs, tmr_rates

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "reference"))
import tenfold_slow


def main() -> None:
    rng = np.random.default_rng(0)
    mated = np.arange(6000) // 300 % 2 == 0
    folds, scores = np.arange(6000) // 600, rng.normal(mated * 3.0, 1)
    tenfold(scores, mated, folds)
    start = time.perf_counter()
    fast = tenfold(scores, mated, folds)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    accuracies, thresholds = tenfold_slow.tenfold(scores.tolist(), mated.tolist(), folds.tolist())
    slow = time.perf_counter() - start
    same = np.allclose(fast.accuracies, accuracies) and fast.thresholds == thresholds
    print(f"6,000 pairs, ten folds: {1000 * seconds:.1f} ms; slow loop {slow:.1f} s; equal: {same}")

    pairs = sort_pairs(scores, mated)
    left = rng.integers(0, 500, 6000)
    right = np.where(mated, left, rng.integers(0, 500, 6000))

    def rates(weights: np.ndarray) -> dict[str, np.ndarray]:
        curve = pairs.curve(weights)
        return {"eer": eer_rates(curve), "tmr": tmr_rates(curve, 1e-2)}

    start = time.perf_counter()
    bootstrap_subjects(rates, left, right)
    print(f"1,000 bootstrap draws over 500 subjects, EER and TMR: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
