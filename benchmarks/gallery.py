"""How fast is a gallery of N people: enrolling, opening, searching, removing; and how fast are others?

    python benchmarks/gallery.py [--people 100000] [--dim 512] [--probes 64] [--folder FOLDER] [--threads 2]
                                 [--rivals] [--processor]

Directions are random, kappas log-normal around 330. Half of the probes are of enrolled people (cosine about
0.6 to their template), half of strangers. ``brute_force`` scores everybody by the mutual likelihood in
float32; with ``--rivals`` faiss (flat, and IVF with a tenth of its lists) and usearch (exact, 8 bits), where
installed, look for the highest cosines only. Searches of all take turns, probe by probe. With ``--processor``
and one thread, times are those of the processor, for a machine that others use. One JSON line; nothing is
left behind.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spherecf.gallery import Gallery
from spherecf.scoring import mutual_likelihood_matrix

TOP, BATCH, PART, RADIUS, ROUNDS = 5, 32, 50_000, 64.0, 3

Search = Callable[[slice], Any]
clock = time.perf_counter


def unit(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    mu = rng.standard_normal((count, dim), dtype=np.float32)
    return mu / np.linalg.norm(mu, axis=1, keepdims=True)


def opened(file: Path, dim: int) -> Gallery:
    return Gallery.open(file, model="0" * 64, dim=dim, radius=RADIUS)


def seconds(call: Callable[[], Any]) -> float:
    begun = clock()
    call()
    return clock() - begun


def memory() -> int:
    """MiB at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def enrol(file: Path, people: int, dim: int) -> tuple[dict[str, Any], np.ndarray]:
    """Seconds and bytes, and some of the directions."""
    first, taken = np.empty((0, dim), np.float32), 0.0
    begun = clock()
    gallery = opened(file, dim)
    taken += clock() - begun
    for start in range(0, people, PART):
        rng = np.random.default_rng(start)
        count = min(PART, people - start)
        mu, kappa = unit(rng, count, dim), rng.lognormal(5.8, 0.35, count)
        first = mu[:1000].copy() if not start else first
        names = [f"person {start + i}" for i in range(count)]
        taken += seconds(lambda names=names, mu=mu, kappa=kappa: gallery.enrol_many(names, mu, kappa))
    taken += seconds(gallery.close)
    size = sum(part.stat().st_size for part in file.parent.iterdir())
    return {"enrol_s": round(taken, 1), "disk_mib": size >> 20}, first


def in_turn(searches: dict[str, Search], count: int) -> dict[str, Any]:
    """p50 and p99 of searches one by one, and milliseconds per probe of the fastest batch."""
    taken: dict[str, list[float]] = {name: [] for name in searches}
    whole = slice(0, min(count, BATCH))
    for search in searches.values():
        search(slice(0, 1)), search(whole)
    for i in range(count):
        for name, search in searches.items():
            taken[name].append(1e3 * seconds(lambda search=search, i=i: search(slice(i, i + 1))))
    batches: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(ROUNDS):
        for name, search in searches.items():
            batches[name].append(1e3 * seconds(lambda search=search: search(whole)) / whole.stop)
    return {
        name: {
            "p50_ms": round(float(np.median(taken[name])), 1),
            "p99_ms": round(float(np.percentile(taken[name], 99)), 1),
            "batch_ms_per_probe": round(min(batches[name]), 2),
        }
        for name in searches
    }


def rivals(everyone: np.ndarray, mu: np.ndarray, threads: int) -> dict[str, Search]:
    """Searches for the highest cosines by other libraries."""
    found: dict[str, Search] = {}
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(threads)
        flat = faiss.IndexFlatIP(everyone.shape[1])
        flat.add(everyone)
        found["faiss_flat"] = lambda rows: flat.search(mu[rows], TOP)
        lists = int(2 ** round(np.log2(4 * np.sqrt(len(everyone)))))
        inverted = faiss.index_factory(everyone.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        inverted.train(everyone[: 64 * lists])
        inverted.add(everyone)
        inverted.nprobe = lists // 10
        found["faiss_ivf"] = lambda rows: inverted.search(mu[rows], TOP)
    if find_spec("usearch"):
        from usearch.index import MetricKind, search

        codes, probes = (np.rint(one * 127 / np.abs(one).max()).astype(np.int8) for one in (everyone, mu))
        found["usearch_i8"] = lambda rows: search(
            codes, probes[rows], TOP, MetricKind.IP, exact=True, threads=threads
        )
    return found


def measure(gallery: Gallery, mu: np.ndarray, kappa: np.ndarray, asked: argparse.Namespace) -> dict[str, Any]:
    n = len(mu)
    ours: Search = lambda rows: gallery.search(mu[rows], kappa[rows], top=TOP)  # noqa: E731
    facts: dict[str, Any] = {"first_search_s": round(seconds(lambda: ours(slice(0, 1))), 2)}
    scored = [gallery.identify(mu[i], float(kappa[i]), top=TOP).scored for i in range(n)]
    facts |= {"scored_median": int(np.median(scored)), "scored_most": max(scored)}
    ours(slice(0, min(n, BATCH)))
    facts["memory_mib"] = memory()
    store = gallery._store
    people = store.people(store.rows())
    everyone, kappas = torch.from_numpy(people.mu), torch.from_numpy(people.kappa.astype(np.float32))
    probes, own = torch.from_numpy(mu), torch.from_numpy(kappa)

    def brute(rows: slice) -> Any:
        scores = mutual_likelihood_matrix(probes[rows], own[rows], everyone, kappas, RADIUS, compiled=False)
        return scores.topk(TOP)

    searches = {"exact": ours, "brute_force": brute}
    others = rivals(people.mu, mu, asked.threads) if asked.rivals else {}
    facts |= in_turn(searches | others, n)
    for figure in ("p50_ms", "p99_ms", "batch_ms_per_probe"):
        facts[f"times_faster_{figure}"] = round(facts["brute_force"][figure] / facts["exact"][figure], 2)
    found = [[one.template for one in hits] for hits in ours(slice(0, n))]
    everybody = [[people.ids[i] for i in brute(slice(i, i + 1)).indices[0].tolist()] for i in range(n)]
    facts["same_first"] = sum(a[0] == b[0] for a, b in zip(found, everybody)) / n
    return facts


def change(gallery: Gallery, dim: int) -> dict[str, Any]:
    """Enrolling one by one, removing, and compacting."""
    rng = np.random.default_rng(2)
    names, mu = [f"new {i}" for i in range(20)], unit(rng, 20, dim)

    def enrol_one(i: int) -> None:
        gallery.enrol(names[i], mu[i : i + 1], [300.0], media=["a"], sources=["a"])

    enrolled = [seconds(lambda i=i: enrol_one(i)) for i in range(20)]
    removed = [seconds(lambda i=i: gallery.remove(names[i])) for i in range(20)]
    return {
        "enrol_one_ms": round(1e3 * float(np.median(enrolled)), 1),
        "remove_one_ms": round(1e3 * float(np.median(removed)), 1),
        "compact_s": round(seconds(gallery.compact), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--people", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--probes", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--processor", action="store_true")
    asked = parser.parse_args()
    globals()["clock"] = time.process_time if asked.processor else time.perf_counter
    torch.set_num_threads(asked.threads)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        place = Path(folder) / "gallery"
        facts, first = enrol(place, asked.people, asked.dim)
        begun = clock()
        with opened(place, asked.dim) as gallery:
            facts["open_s"] = round(clock() - begun, 2)
            rng = np.random.default_rng(1)
            half = asked.probes // 2
            mated = first[:half] + 1.33 * unit(rng, half, asked.dim)
            mu = np.concatenate([mated, unit(rng, asked.probes - half, asked.dim)])
            mu = (mu / np.linalg.norm(mu, axis=1, keepdims=True)).astype(np.float32)
            kappa = rng.lognormal(5.6, 0.4, asked.probes).astype(np.float32)
            facts |= measure(gallery, mu, kappa, asked)
            facts |= change(gallery, asked.dim)
    print(
        json.dumps(
            {"people": asked.people, "dim": asked.dim, "threads": asked.threads, "clock": clock.__name__}
            | facts
        )
    )


if __name__ == "__main__":
    main()
