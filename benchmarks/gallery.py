"""How fast is a gallery of N people: enrolling, opening, exact and approximate search, and scoring everybody.

    python benchmarks/gallery.py [--people 20000] [--dim 512] [--probes 60] [--folder FOLDER] [--threads 2]

Directions are random, kappas log-normal around 330. Half of the probes are of enrolled people (cosine about
0.6 to their template), half of strangers. One JSON line; nothing is left behind.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spherecf.gallery import Gallery
from spherecf.scoring import mutual_likelihood_matrix

TOP, BATCH, PART, RADIUS = 5, 32, 50_000, 64.0


def unit(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    mu = rng.standard_normal((count, dim), dtype=np.float32)
    return mu / np.linalg.norm(mu, axis=1, keepdims=True)


def opened(folder: Path, dim: int) -> Gallery:
    return Gallery.open(folder, model="0" * 64, dim=dim, radius=RADIUS)


def milliseconds(calls: list[Callable[[], Any]]) -> dict[str, float]:
    """p50 and p99 of calls made one after the other."""
    taken = []
    for call in calls:
        start = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - start))
    return {"p50_ms": round(float(np.median(taken)), 1), "p99_ms": round(float(np.percentile(taken, 99)), 1)}


def enrol(folder: Path, people: int, dim: int) -> tuple[dict[str, Any], np.ndarray]:
    """Seconds and bytes, and some of the directions."""
    first, seconds = np.empty((0, dim), np.float32), 0.0
    with opened(folder, dim) as gallery:
        for start in range(0, people, PART):
            rng = np.random.default_rng(start)
            count = min(PART, people - start)
            mu, kappa = unit(rng, count, dim), rng.lognormal(5.8, 0.35, count)
            first = mu[:1000] if not start else first
            begun = time.perf_counter()
            gallery.enrol_many([f"person {start + i}" for i in range(count)], mu, kappa)
            seconds += time.perf_counter() - begun
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"enrol_s": round(seconds, 1), "disk_mib": size >> 20}, first


def measure(gallery: Gallery, mu: np.ndarray, kappa: np.ndarray) -> dict[str, Any]:
    gallery.search(mu[:1], kappa[:1], top=TOP)  # orders the templates
    mirror, n = gallery._mirror, len(mu)  # what brute force multiplies is what the gallery holds
    everyone, kappas = torch.from_numpy(mirror.mu), torch.from_numpy(mirror.kappa)
    probes, own = torch.from_numpy(mu), torch.from_numpy(kappa)

    def brute(rows: slice) -> Any:
        scores = mutual_likelihood_matrix(probes[rows], own[rows], everyone, kappas, RADIUS, compiled=False)
        return scores.topk(TOP)

    def exact(rows: slice) -> Any:
        return gallery.search(mu[rows], kappa[rows], top=TOP)

    singles = [slice(i, i + 1) for i in range(n)]
    facts: dict[str, Any] = {
        "exact": milliseconds([lambda one=one: exact(one) for one in singles]),
        "brute_force": milliseconds([lambda one=one: brute(one) for one in singles]),
    }
    whole = slice(0, min(n, BATCH))
    for name, search in (("exact", exact), ("brute_force", brute)):
        begun = time.perf_counter()
        search(whole)
        facts[name]["batch_ms_per_probe"] = round(1e3 * (time.perf_counter() - begun) / whole.stop, 1)
    for figure in ("p50_ms", "p99_ms", "batch_ms_per_probe"):
        facts[f"times_faster_{figure}"] = round(facts["brute_force"][figure] / facts["exact"][figure], 2)
    found = [[one.template for one in hits] for hits in exact(slice(0, n))]
    brute_found = [mirror.keys[brute(one).indices[0].numpy()].tolist() for one in singles]
    facts["same_first"] = sum(a[0] == b[0] for a, b in zip(found, brute_found)) / n
    begun = time.perf_counter()
    gallery.identify(mu[0], float(kappa[0]), top=TOP, exact=False)
    facts["index_s"] = round(time.perf_counter() - begun, 1)
    near = [gallery.identify(mu[i], float(kappa[i]), top=TOP, exact=False) for i in range(n)]
    facts["approximate"] = milliseconds(
        [lambda i=i: gallery.identify(mu[i], float(kappa[i]), top=TOP, exact=False) for i in range(n)]
    )
    half = n // 2
    hits = [len(set(a) & {one.template for one in b.candidates}) / TOP for a, b in zip(found, near)]
    firsts = [a[0] == b.candidates[0].template for a, b in zip(found, near)]
    facts["approximate"] |= {
        "first_of_enrolled": float(np.mean(firsts[:half])),
        "recall_enrolled": round(float(np.mean(hits[:half])), 3),
        "recall_strangers": round(float(np.mean(hits[half:])), 3),
    }
    scored = [gallery.identify(mu[i], float(kappa[i]), top=TOP).scored for i in range(n)]
    return facts | {"scored_median": int(np.median(scored)), "scored_most": max(scored)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--people", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--probes", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        place = Path(folder) / "gallery"
        facts, first = enrol(place, asked.people, asked.dim)
        begun = time.perf_counter()
        with opened(place, asked.dim) as gallery:
            facts["open_s"] = round(time.perf_counter() - begun, 1)
            rng = np.random.default_rng(1)
            half = asked.probes // 2
            mated = first[:half] + 1.33 * unit(rng, half, asked.dim)
            mu = np.concatenate([mated, unit(rng, asked.probes - half, asked.dim)])
            mu = (mu / np.linalg.norm(mu, axis=1, keepdims=True)).astype(np.float32)
            kappa = rng.lognormal(5.6, 0.4, asked.probes).astype(np.float32)
            facts |= measure(gallery, mu, kappa)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(json.dumps({"people": asked.people, "dim": asked.dim, "threads": asked.threads,
                      "peak_memory_mib": memory} | facts))  # fmt: skip


if __name__ == "__main__":
    main()
