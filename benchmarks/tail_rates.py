"""Extrapolated rules: how often they keep their FMR bound on simulated scores whose true tail is known.

The scores are those of all pairs of a few people, some of whom resemble many others; the true rate is that of
the whole population.

    python benchmarks/tail_rates.py
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t as student

from spherecf.calibration import DecisionRule
from spherecf.evaluation import extrapolated_rule, fit_tail

WORLDS, PEOPLE, SHARE, DRAWS = 100, 250, 5e-3, 200
LIKENESS = 0.3  # standard deviation of a person's general similarity to others
RATES = (1e-4, 1e-5, 1e-6, 1e-7)
COUNTED = DecisionRule("evidence", None, "kappa", 0.0, 0.0, 0.0, "fmr", 1e-3, 0.01)

Shape = tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], Callable[[float], float]]
SHAPES: dict[str, Shape] = {
    "normal": (lambda z: z, lambda score: float(norm.sf(score))),
    "exponential": (lambda z: -norm.logsf(z), lambda score: float(np.exp(-score))),
    "heavy (Student, 10 degrees)": (
        lambda z: student.isf(norm.sf(z), 10), lambda score: float(student.sf(score, 10)),
    ),
}  # fmt: skip
"""An increasing function of a normal score, and the share of pairs whose value exceeds a given score."""


def main() -> None:
    """Print the table."""
    left, right = np.triu_indices(PEOPLE, 1)
    print(f"{WORLDS} worlds of {PEOPLE} people, {left.size:,} pairs, tail of the largest {SHARE:.1%}")
    print(f"{'tail':28} {'FMR bound':>9} {'bound kept':>10} {'true FMR / bound, median':>26}")
    for name, (shape, truth) in SHAPES.items():
        ratios: dict[float, list[float]] = {rate: [] for rate in RATES}
        for seed in range(WORLDS):
            rng = np.random.default_rng(seed)
            likeness = rng.normal(0, LIKENESS, PEOPLE)
            noise = rng.normal(0, np.sqrt(1 - 2 * LIKENESS**2), left.size)
            scores = shape(noise + likeness[left] + likeness[right])
            tail = fit_tail(scores, left, right, share=SHARE, draws=DRAWS, seed=seed)
            for rate in RATES:
                rule = extrapolated_rule(COUNTED, [tail], rate)
                ratios[rate].append(truth(float(rule.accept or 0.0)) / rate)
        for rate, values in ratios.items():
            kept = np.mean(np.array(values) <= 1)
            print(f"{name:28} {rate:9g} {kept:10.2f} {np.median(values):26.3f}", flush=True)


if __name__ == "__main__":
    main()
