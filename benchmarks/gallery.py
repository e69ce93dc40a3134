"""Measure how fast a gallery of N people enrols, opens, searches and removes, next to other libraries.

    python benchmarks/gallery.py [--people 100000] [--dim 512] [--probes 64] [--folder FOLDER] [--threads 2]
                                 [--rivals] [--processor]

Directions are random, kappas log-normal around 330. Half of the probes are of enrolled people (cosine to
their template about 0.6), half of people who are not enrolled. ``brute_force`` scores every enrolled person
by the mutual likelihood in float32. With ``--rivals``, faiss (flat, and IVF probing a tenth of its lists) and
usearch (exact, 8 bits), where installed, search for the highest cosines only. The searches take turns, probe
by probe. With ``--processor`` and one thread, processor time is measured, for a machine with other load.
Prints one JSON line; all files are removed.
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

TOP, BATCH, ENROL_BATCH, RADIUS, ROUNDS = 5, 32, 50_000, 64.0, 3

Search = Callable[[slice], Any]
clock = time.perf_counter


def unit(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    mu = rng.standard_normal((count, dim), dtype=np.float32)
    return mu / np.linalg.norm(mu, axis=1, keepdims=True)


def open_gallery(file: Path, dim: int) -> Gallery:
    return Gallery.open(file, model="0" * 64, dim=dim, radius=RADIUS)


def seconds(call: Callable[[], Any]) -> float:
    start = clock()
    call()
    return clock() - start


def peak_memory_mib() -> int:
    """Peak resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def enrol(file: Path, people: int, dim: int) -> tuple[dict[str, Any], np.ndarray]:
    """Enrol in batches; returns time and disk space, and the first 1,000 directions."""
    first_directions, elapsed = np.empty((0, dim), np.float32), 0.0
    open_start = clock()
    gallery = open_gallery(file, dim)
    elapsed += clock() - open_start
    for start in range(0, people, ENROL_BATCH):
        rng = np.random.default_rng(start)
        count = min(ENROL_BATCH, people - start)
        mu, kappa = unit(rng, count, dim), rng.lognormal(5.8, 0.35, count)
        first_directions = mu[:1000].copy() if not start else first_directions
        names = [f"person {start + i}" for i in range(count)]
        elapsed += seconds(lambda names=names, mu=mu, kappa=kappa: gallery.enrol_many(names, mu, kappa))
    elapsed += seconds(gallery.close)
    size = sum(part.stat().st_size for part in file.parent.iterdir())
    return {"enrol_s": round(elapsed, 1), "disk_mib": size >> 20}, first_directions


def time_in_turn(searches: dict[str, Search], count: int) -> dict[str, Any]:
    """p50 and p99 of single searches, and milliseconds per probe of the fastest batch."""
    single_ms: dict[str, list[float]] = {name: [] for name in searches}
    batch = slice(0, min(count, BATCH))
    for search in searches.values():
        search(slice(0, 1)), search(batch)
    for i in range(count):
        for name, search in searches.items():
            single_ms[name].append(1e3 * seconds(lambda search=search, i=i: search(slice(i, i + 1))))
    batch_ms: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(ROUNDS):
        for name, search in searches.items():
            batch_ms[name].append(1e3 * seconds(lambda search=search: search(batch)) / batch.stop)
    return {
        name: {
            "p50_ms": round(float(np.median(single_ms[name])), 1),
            "p99_ms": round(float(np.percentile(single_ms[name], 99)), 1),
            "batch_ms_per_probe": round(min(batch_ms[name]), 2),
        }
        for name in searches
    }


def rivals(enrolled: np.ndarray, mu: np.ndarray, threads: int) -> dict[str, Search]:
    """Search functions of other libraries, for the highest cosines."""
    searches: dict[str, Search] = {}
    if find_spec("faiss"):
        import faiss

        faiss.omp_set_num_threads(threads)
        flat = faiss.IndexFlatIP(enrolled.shape[1])
        flat.add(enrolled)
        searches["faiss_flat"] = lambda rows: flat.search(mu[rows], TOP)
        lists = int(2 ** round(np.log2(4 * np.sqrt(len(enrolled)))))
        inverted = faiss.index_factory(enrolled.shape[1], f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        inverted.train(enrolled[: 64 * lists])
        inverted.add(enrolled)
        inverted.nprobe = lists // 10
        searches["faiss_ivf"] = lambda rows: inverted.search(mu[rows], TOP)
    if find_spec("usearch"):
        from usearch.index import MetricKind, search

        codes, probes = (np.rint(x * 127 / np.abs(x).max()).astype(np.int8) for x in (enrolled, mu))
        searches["usearch_i8"] = lambda rows: search(
            codes, probes[rows], TOP, MetricKind.IP, exact=True, threads=threads
        )
    return searches


def measure(
    gallery: Gallery, mu: np.ndarray, kappa: np.ndarray, options: argparse.Namespace
) -> dict[str, Any]:
    n_probes = len(mu)
    exact: Search = lambda rows: gallery.search(mu[rows], kappa[rows], top=TOP)  # noqa: E731
    facts: dict[str, Any] = {"first_search_s": round(seconds(lambda: exact(slice(0, 1))), 2)}
    scored = [gallery.identify(mu[i], float(kappa[i]), top=TOP).scored for i in range(n_probes)]
    facts |= {"scored_median": int(np.median(scored)), "scored_most": max(scored)}
    exact(slice(0, min(n_probes, BATCH)))
    facts["memory_mib"] = peak_memory_mib()
    store = gallery._store
    people = store.people(store.rows())
    enrolled, kappas = torch.from_numpy(people.mu), torch.from_numpy(people.kappa.astype(np.float32))
    probes, probe_kappas = torch.from_numpy(mu), torch.from_numpy(kappa)

    def brute(rows: slice) -> Any:
        queries = probes[rows], probe_kappas[rows]
        scores = mutual_likelihood_matrix(*queries, enrolled, kappas, RADIUS, compiled=False)
        return scores.topk(TOP)

    searches = {"exact": exact, "brute_force": brute}
    rival_searches = rivals(people.mu, mu, options.threads) if options.rivals else {}
    facts |= time_in_turn(searches | rival_searches, n_probes)
    for figure in ("p50_ms", "p99_ms", "batch_ms_per_probe"):
        facts[f"times_faster_{figure}"] = round(facts["brute_force"][figure] / facts["exact"][figure], 2)
    exact_ids = [[match.template for match in matches] for matches in exact(slice(0, n_probes))]
    brute_ids = [[people.ids[i] for i in brute(slice(i, i + 1)).indices[0].tolist()] for i in range(n_probes)]
    facts["same_first"] = sum(a[0] == b[0] for a, b in zip(exact_ids, brute_ids)) / n_probes
    return facts


def change(gallery: Gallery, dim: int) -> dict[str, Any]:
    """Time single enrolments, single removals, and compaction."""
    rng = np.random.default_rng(2)
    names, mu = [f"new {i}" for i in range(20)], unit(rng, 20, dim)

    def enrol_one(i: int) -> None:
        gallery.enrol(names[i], mu[i : i + 1], [300.0], media=["a"], sources=["a"])

    enrol_seconds = [seconds(lambda i=i: enrol_one(i)) for i in range(20)]
    remove_seconds = [seconds(lambda i=i: gallery.remove(names[i])) for i in range(20)]
    return {
        "enrol_one_ms": round(1e3 * float(np.median(enrol_seconds)), 1),
        "remove_one_ms": round(1e3 * float(np.median(remove_seconds)), 1),
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
    options = parser.parse_args()
    globals()["clock"] = time.process_time if options.processor else time.perf_counter
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "gallery"
        facts, first_directions = enrol(path, options.people, options.dim)
        start = clock()
        with open_gallery(path, options.dim) as gallery:
            facts["open_s"] = round(clock() - start, 2)
            rng = np.random.default_rng(1)
            half = options.probes // 2
            mated = first_directions[:half] + 1.33 * unit(rng, half, options.dim)
            mu = np.concatenate([mated, unit(rng, options.probes - half, options.dim)])
            mu = (mu / np.linalg.norm(mu, axis=1, keepdims=True)).astype(np.float32)
            kappa = rng.lognormal(5.6, 0.4, options.probes).astype(np.float32)
            facts |= measure(gallery, mu, kappa, options)
            facts |= change(gallery, options.dim)
    print(
        json.dumps(
            {"people": options.people, "dim": options.dim, "threads": options.threads}
            | {"clock": clock.__name__}
            | facts
        )
    )


if __name__ == "__main__":
    main()
