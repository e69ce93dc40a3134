"""Template protocols at the size of IJB-C: 1:1 and 1:N of this package against the usual loops.

    python benchmarks/ijb_scale.py [--scale 0.1]    CPU time and peak memory, one process per row
    python benchmarks/ijb_scale.py --growth         up to a million templates, from and to mapped files

The baseline is written like the usual scripts: a Python loop over templates and media that finds the images
of a template by comparing all ids, products of gathered rows in batches of 100,000 pairs, and scikit-learn's
ROC read at the nearest point; for 1:N a loop over probes that sorts the whole gallery. Those scripts work in
float64 because of a default; the baseline works in float32, which favours it.

All input is synthetic (`benchmarks/template_sets.py`), pairs are in random order, every process has one
thread, and both implementations start with the features in a file and end with rates. Rows take turns; the
best round of each stage counts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TARGETS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FPIR = (1e-1, 1e-2, 1e-3)
GROWTH = (10_000, 30_000, 100_000, 300_000, 1_000_000)


# Input of both implementations.


def write_data(folder: Path, scale: float, images: int = 0, random: int = 0) -> dict[str, Any]:
    import numpy as np
    from template_sets import synthetic_templates

    world = synthetic_templates(scale, images=images or None, path=folder / "mu.npy")
    for name in ("kappa", "templates", "media", "ids", "subjects", "probes"):
        np.save(folder / f"{name}.npy", getattr(world, name))
    for name, gallery in world.galleries.items():
        np.save(folder / f"{name}.npy", gallery)
    lists = {} if random else {"protocol": world.pairs()}
    lists["random"] = world.random_pairs(random or lists["protocol"][0].size)
    for kind, columns in lists.items():
        for name, column in zip(("left", "right", "mated"), columns):
            np.save(folder / f"{kind}-{name}.npy", column)
    return {"images": len(world.kappa), "templates": world.ids.size, "pairs": columns[0].size}


def read(folder: Path, *names: str, **options: Any) -> list[Any]:
    import numpy as np

    return [np.load(folder / f"{name}.npy", **options) for name in names]


def pair_list(folder: Path, kind: str) -> list[Any]:
    return read(folder, f"{kind}-left", f"{kind}-right", f"{kind}-mated", mmap_mode="r")


class Clock:
    """CPU seconds of this process by stage, and its peak memory in MiB."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self.peak = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.stages[name] = time.process_time() - start
        import resource

        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def result(self, **more: Any) -> dict[str, Any]:
        return {"stages": dict(self.stages), "total": sum(self.stages.values()), "peak": self.peak, **more}


# This package ("ours").


def ours(folder: Path, kind: str, score: str) -> dict[str, Any]:
    from spherecf.evaluation import ScoreSplit, bootstrap_tmr
    from spherecf.scoring import pool_templates, score_template_pairs

    clock = Clock()
    with clock.stage("pool"):
        (mu,) = read(folder, "mu", mmap_mode="r")
        kappa, ids, media = read(folder, "kappa", "templates", "media")
        templates = pool_templates(mu, kappa, ids, media, checked=True)
    with clock.stage("score"):
        left, right, mated = pair_list(folder, kind)
        rows = templates.positions(left), templates.positions(right)
        scores = score_template_pairs(templates, templates, *rows, score)
    with clock.stage("rates"):
        tmr = ScoreSplit.of(scores, mated).tmr_at_fmr(TARGETS)
    result = clock.result(rates=[entry.tmr for entry in tmr])
    (subjects,) = read(folder, "subjects")
    with clock.stage("bootstrap"):
        bootstrap_tmr(scores, mated, subjects[rows[0]], subjects[rows[1]], TARGETS)
    return {**result, "bootstrap": clock.stages["bootstrap"], "bootstrap peak": clock.peak}


def ours_search(folder: Path) -> dict[str, Any]:
    import numpy as np

    from spherecf.evaluation import ScoreSplit
    from spherecf.evaluation.identification import search
    from spherecf.scoring import pool_templates

    clock = Clock()
    with clock.stage("pool"):
        (mu,) = read(folder, "mu", mmap_mode="r")
        templates = pool_templates(mu, *read(folder, "kappa", "templates", "media"), checked=True)
    rates = []
    with clock.stage("search"):
        subjects, names = read(folder, "subjects", "probes")
        probes = templates.positions(names)
        for name in ("G1", "G2"):
            gallery = templates.positions(read(folder, name)[0])
            mate = np.full(subjects.max() + 1, -1)
            mate[subjects[gallery]] = np.arange(gallery.size)
            mates = mate[subjects[probes]]
            result = search(templates.select(probes), templates.select(gallery), mates, "cosine", 64.0)
            cmc = [(result.rank[result.mated] <= rank).mean() for rank in (1, 5, 10)]
            scores = np.append(result.identified(1), result.best[~result.mated])
            split = ScoreSplit.of(scores, np.arange(scores.size) < result.mated.sum())
            rates.append([*cmc, *(entry.tmr for entry in split.tmr_at_fmr(FPIR))])
    return clock.result(rates=np.mean(np.array(rates, float), 0).tolist())


# The baseline ("loops").


def rival_pool(folder: Path, normalize: Callable[[Any], Any]) -> tuple[Any, Any]:
    import numpy as np

    features, kappa, templates, media = read(folder, "mu", "kappa", "templates", "media")
    features *= kappa[:, None]
    ids = np.unique(templates)
    pooled = np.zeros((ids.size, features.shape[1]), np.float32)
    for row, name in enumerate(ids):
        (rows,) = np.where(templates == name)
        images, image_media = features[rows], media[rows]
        parts = []
        for medium, count in zip(*np.unique(image_media, return_counts=True)):
            (frames,) = np.where(image_media == medium)
            parts.append(images[frames] if count == 1 else np.mean(images[frames], axis=0, keepdims=True))
        pooled[row] = np.sum(np.array(parts), axis=0)
    return ids, normalize(pooled)


def rival(folder: Path, kind: str) -> dict[str, Any]:
    import numpy as np
    from sklearn.metrics import roc_curve
    from sklearn.preprocessing import normalize

    clock = Clock()
    with clock.stage("pool"):
        ids, pooled = rival_pool(folder, normalize)
    with clock.stage("score"):
        left, right, mated = pair_list(folder, kind)
        row_of = np.zeros(ids.max() + 1, int)
        for row, name in enumerate(ids):
            row_of[name] = row
        scores = np.zeros(left.size)
        for start in range(0, left.size, 100_000):
            batch = slice(start, start + 100_000)
            left_mu, right_mu = pooled[row_of[left[batch]]], pooled[row_of[right[batch]]]
            scores[batch] = np.sum(left_mu * right_mu, -1)
    with clock.stage("rates"):
        fmr, tmr, _ = roc_curve(mated, scores)
        table = [float(tmr[np.argmin(np.abs(fmr - target))]) for target in TARGETS]
    return clock.result(rates=table)


def rival_search(folder: Path) -> dict[str, Any]:
    import numpy as np
    from sklearn.preprocessing import normalize

    clock = Clock()
    with clock.stage("pool"):
        ids, pooled = rival_pool(folder, normalize)
    rates = []
    with clock.stage("search"):
        subjects, names = read(folder, "subjects", "probes")
        row_of = {name: row for row, name in enumerate(ids)}
        probes = [row_of[name] for name in names]
        for gallery in read(folder, "G1", "G2"):
            rows = np.array([row_of[name] for name in gallery])
            enrolled, faces = subjects[rows], pooled[rows]
            ranks, mated, non_mated = [], [], []
            for probe in probes:
                scores = faces @ pooled[probe]
                order = np.argsort(scores)[::-1]
                (mate,) = np.where(enrolled[order] == subjects[probe])
                if mate.size:
                    ranks.append(mate[0] + 1)
                    mated.append(scores[order[0]] if mate[0] == 0 else -np.inf)
                else:
                    non_mated.append(scores[order[0]])
            cmc = [np.mean(np.array(ranks) <= rank) for rank in (1, 5, 10)]
            highest = np.sort(non_mated)[::-1]
            limits = [highest[int(target * len(non_mated))] for target in FPIR]
            rates.append([*cmc, *(np.mean(np.array(mated) > limit) for limit in limits)])
    return clock.result(rates=np.mean(rates, 0).tolist())


# A million templates.


def private_memory() -> float:
    """Anonymous memory of this process (not backed by a file), MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


def grow(folder: Path) -> dict[str, Any]:
    """Pool into a mapped file, score random pairs from it, and search a hundred probes in all of it."""
    import numpy as np
    from numpy.lib.format import open_memmap

    from spherecf.scoring import cosine_tiles, pool_templates, score_template_pairs

    memory, done = [private_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            memory.append(private_memory())

    base, watcher = private_memory(), threading.Thread(target=watch)
    watcher.start()
    clock = Clock()
    (mu,) = read(folder, "mu", mmap_mode="r")
    kappa, owner, media, ids = read(folder, "kappa", "templates", "media", "ids")
    with clock.stage("pool"):
        out = open_memmap(folder / "pooled.npy", "w+", np.float32, (ids.size, mu.shape[1]))
        templates = pool_templates(mu, kappa, owner, media, out=out, checked=True)
    left, right, _ = pair_list(folder, "random")
    with clock.stage("score"):
        rows = templates.positions(left), templates.positions(right)
        score_template_pairs(templates, templates, *rows)
    with clock.stage("search"):
        for _, tile in cosine_tiles(templates.mu[:100], templates.mu):
            tile.max(1)
    done.set()
    watcher.join()
    (folder / "pooled.npy").unlink()
    return clock.result(
        private=max(memory) - base, pairs=int(left.size), images=len(kappa), templates=int(ids.size)
    )


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "data": write_data, "ours": ours, "rival": rival, "ours-search": ours_search,
    "rival-search": rival_search, "grow": grow,
}  # fmt: skip


def run(part: str, *arguments: Any) -> dict[str, Any]:
    """Run a part in a separate process with one thread, and return its JSON result."""
    single_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--part", part, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **single_thread}, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def row(name: str, result: dict[str, Any], baseline: dict[str, Any] | None = None) -> None:
    stages = " + ".join(f"{seconds:.2f}" for seconds in result["stages"].values())
    ratio = f"{baseline['total'] / result['total']:.1f}" if baseline else ""
    rates = " / ".join("-" if value is None else f"{value:.4f}" for value in result["rates"])
    print(
        f"| {name} | {stages} | {result['total']:.2f} | {ratio} | {result['peak']:,.0f} | {rates} |",
        flush=True,
    )


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The shortest time of each stage over the rounds, and the largest peak."""
    stages = {name: min(result["stages"][name] for result in rounds) for name in rounds[0]["stages"]}
    peaks = {name: max(result[name] for result in rounds) for name in rounds[0] if "peak" in name}
    extra = {name: min(result[name] for result in rounds) for name in rounds[0] if name == "bootstrap"}
    return {**rounds[0], **peaks, **extra, "stages": stages, "total": sum(stages.values())}


def compare(folder: Path, scale: float, rounds: int) -> None:
    size = run("data", folder, scale)
    print(
        ", ".join(f"{count:,} {name}" for name, count in size.items())
        + f", 512 numbers each, one thread, best of {rounds} rounds\n"
    )
    kinds = ("protocol", "random")
    tasks: list[tuple[str, ...]] = [("rival-search",), ("ours-search",)]
    tasks += [(part, kind, *score) for kind in kinds for part, score in (
        ("rival", ()), ("ours", ("cosine",)), ("ours", ("mls",)))]  # fmt: skip
    runs: dict[tuple[str, ...], list[dict[str, Any]]] = {task: [] for task in tasks}
    for _ in range(rounds):
        for task in tasks:
            runs[task].append(run(task[0], folder, *task[1:]))
    results = {task: best(values) for task, values in runs.items()}

    print("| 1:1 | pool + score + rates, s | all, s | speed-up | peak, MiB | TMR at FMR 1e-1 .. 1e-6 |")
    print("|---|---|---|---|---|---|")
    for kind in kinds:
        slow = results["rival", kind]
        row(f"loops, {kind} pairs, cosine", slow)
        for score in ("cosine", "mls"):
            row(f"ours, {kind} pairs, {score}", results["ours", kind, score], slow)
    columns = "pool + search, s | all, s | speed-up | peak, MiB | rank 1 / 5 / 10, TPIR at FPIR 1e-1 .. 1e-3"
    print(f"\n| 1:N | {columns} |")
    print("|---|---|---|---|---|---|")
    slow, quick = results["rival-search",], results["ours-search",]
    row("loop over probes", slow)
    row("ours", quick, slow)
    print("\n| other measurements | |\n|---|---|")
    print(f"| 1:N, search alone: speed-up | {slow['stages']['search'] / quick['stages']['search']:.1f} |")
    for kind in kinds:
        cosine, mls = results["ours", kind, "cosine"], results["ours", kind, "mls"]
        ratio = mls["stages"]["score"] / cosine["stages"]["score"]
        print(f"| {kind} pairs, scoring: mls over cosine | {ratio:.2f} |")
        print(f"| {kind} pairs: 1000 bootstrap draws, s | {mls['bootstrap']:.2f} |")
        print(f"| {kind} pairs: peak with the bootstrap, MiB | {mls['bootstrap peak']:,.0f} |")


def growth(folder: Path) -> None:
    columns = (
        "templates | images | pairs | pool, s | score, s | search, s | private memory, MiB | features, MiB"
    )
    print(f"| {columns} |")
    print("|---|---|---|---|---|---|---|---|")
    for templates in GROWTH:
        run("data", folder, templates / 23_124, 2 * templates + 50, 16 * templates)
        result = run("grow", folder)
        seconds = " | ".join(f"{value:.1f}" for value in result["stages"].values())
        counts = " | ".join(f"{result[name]:,}" for name in ("templates", "images", "pairs"))
        memory = f"{result['private']:,.0f} | {result['images'] / 512:,.0f}"
        print(f"| {counts} | {seconds} | {memory} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of subjects, templates and images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--folder", type=Path, help="for the data, some GiB (default: a temporary one)")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        name, folder, *rest = options.part
        arguments = map(json.loads, rest) if name == "data" else rest
        print(json.dumps(PARTS[name](Path(folder), *arguments)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        growth(Path(folder)) if options.growth else compare(Path(folder), options.scale, options.rounds)


if __name__ == "__main__":
    main()
