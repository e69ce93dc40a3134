"""Claim: on data drawn from the model, confidences that use quality and gallery beat those with only one.

Also, computing the posterior of IJB-C's probes over its gallery takes seconds.

python benchmarks/open_set_rejection.py [--seeds 5]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from spherecf.evaluation import OpenSet, RejectionOptions, evaluate_rejection
from spherecf.scoring import open_set_posterior

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "reference"))
from open_world import open_world, unit

WORLDS = {
    "crowded, d = 32": {"dim": 32, "spread": 40.0, "kappas": (10.0, 300.0)},
    "roomy, d = 32": {"dim": 32, "spread": 150.0, "kappas": (8.0, 800.0)},
    "roomy, d = 64": {"dim": 64, "spread": 200.0, "kappas": (20.0, 2000.0)},
}
FPIRS = (0.05, 0.1, 0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    for name, world in WORLDS.items():
        reports = [
            evaluate_rejection(
                OpenSet(*open_world(seed, enrolled=200, strangers=200, each=10, **world)),
                RejectionOptions(draws=0, seed=seed),
                name="w",
            )
            for seed in range(seeds)
        ]
        print(
            f"\n{name}, gallery kappa {world['spread']:g}: PRR at FPIR .05 / .1 / .2, mean of {seeds} seeds"
        )
        for confidence in dict.fromkeys(entry.confidence for entry in reports[0].prr):
            values = np.array([[r.at(confidence, f).prr.value for f in FPIRS] for r in reports])
            means, spreads = values.mean(0), values.std(0)
            print(
                f"{confidence:20}"
                + "".join(f"{m:8.3f} ± {s:.3f}" for m, s in zip(means, spreads, strict=True))
            )
    rng = np.random.default_rng(0)
    gallery, probes = unit(rng.normal(size=(3531, 512))), unit(rng.normal(size=(19593, 512)))
    for label, kappa in (("mean directions", None), ("distributions", rng.uniform(100, 2000, len(probes)))):
        start = time.perf_counter()
        open_set_posterior(probes, gallery, 500.0, probe_kappa=kappa)
        print(f"\nposterior of 19,593 probes over 3,531 identities, 512-d, {label}: ", end="")
        print(f"{time.perf_counter() - start:.1f} s", end="")
    print()


if __name__ == "__main__":
    main()
