"""Template protocols at the size of IJB-C: our 1:1 and 1:N against the loops the field uses.

    python benchmarks/ijb_scale.py [--scale 0.1]    processor time and peak memory, a process per row
    python benchmarks/ijb_scale.py --growth         up to a million templates, from and to mapped files

The rival is written as the field writes it: a Python loop over templates and media that finds the images
of a template by comparing all ids, products of gathered rows in batches of 100,000 pairs, scikit-learn's ROC
read off at the nearest point; for 1:N a loop over probes that sorts the whole gallery. Where the field's code
works in float64 by accident of a default, the rival works in float32, which is kinder to it.

All input is synthetic (`benchmarks/template_sets.py`), pairs stand in no order, every process has
one thread, and both sides begin with the features in a file and end with rates. Rows take turns; a stage
counts with the best of its rounds.
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


# What both sides start from.


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
    """Processor seconds of this process by stage, and its peak memory in MiB after each."""

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

    def told(self, **more: Any) -> dict[str, Any]:
        return {"stages": dict(self.stages), "total": sum(self.stages.values()), "peak": self.peak, **more}


# Ours.


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
        at = templates.positions(left), templates.positions(right)
        scores = score_template_pairs(templates, templates, *at, score)
    with clock.stage("rates"):
        tmr = ScoreSplit.of(scores, mated).tmr_at_fmr(TARGETS)
    told = clock.told(rates=[entry.tmr for entry in tmr])
    (subjects,) = read(folder, "subjects")
    with clock.stage("bootstrap"):
        bootstrap_tmr(scores, mated, subjects[at[0]], subjects[at[1]], TARGETS)
    return {**told, "bootstrap": clock.stages["bootstrap"], "bootstrap peak": clock.peak}


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
            at = mate[subjects[probes]]
            found = search(templates.select(probes), templates.select(gallery), at, "cosine", 64.0)
            cmc = [(found.rank[found.mated] <= rank).mean() for rank in (1, 5, 10)]
            scores = np.append(found.identified(1), found.best[~found.mated])
            split = ScoreSplit.of(scores, np.arange(scores.size) < found.mated.sum())
            rates.append([*cmc, *(entry.tmr for entry in split.tmr_at_fmr(FPIR))])
    return clock.told(rates=np.mean(np.array(rates, float), 0).tolist())


# The rival.


def rival_pool(folder: Path, normalize: Callable[[Any], Any]) -> tuple[Any, Any]:
    import numpy as np

    features, kappa, templates, media = read(folder, "mu", "kappa", "templates", "media")
    features *= kappa[:, None]
    ids = np.unique(templates)
    pooled = np.zeros((ids.size, features.shape[1]), np.float32)
    for row, name in enumerate(ids):
        (at,) = np.where(templates == name)
        own, own_media = features[at], media[at]
        parts = []
        for medium, count in zip(*np.unique(own_media, return_counts=True)):
            (frames,) = np.where(own_media == medium)
            parts.append(own[frames] if count == 1 else np.mean(own[frames], axis=0, keepdims=True))
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
        place = np.zeros(ids.max() + 1, int)
        for row, name in enumerate(ids):
            place[name] = row
        scores = np.zeros(left.size)
        for start in range(0, left.size, 100_000):
            batch = slice(start, start + 100_000)
            one, other = pooled[place[left[batch]]], pooled[place[right[batch]]]
            scores[batch] = np.sum(one * other, -1)
    with clock.stage("rates"):
        fmr, tmr, _ = roc_curve(mated, scores)
        table = [float(tmr[np.argmin(np.abs(fmr - target))]) for target in TARGETS]
    return clock.told(rates=table)


def rival_search(folder: Path) -> dict[str, Any]:
    import numpy as np
    from sklearn.preprocessing import normalize

    clock = Clock()
    with clock.stage("pool"):
        ids, pooled = rival_pool(folder, normalize)
    rates = []
    with clock.stage("search"):
        subjects, names = read(folder, "subjects", "probes")
        place = {name: row for row, name in enumerate(ids)}
        probes = [place[name] for name in names]
        for gallery in read(folder, "G1", "G2"):
            rows = np.array([place[name] for name in gallery])
            enrolled, faces = subjects[rows], pooled[rows]
            ranks, genuine, alone = [], [], []
            for probe in probes:
                scores = faces @ pooled[probe]
                order = np.argsort(scores)[::-1]
                (mate,) = np.where(enrolled[order] == subjects[probe])
                if mate.size:
                    ranks.append(mate[0] + 1)
                    genuine.append(scores[order[0]] if mate[0] == 0 else -np.inf)
                else:
                    alone.append(scores[order[0]])
            cmc = [np.mean(np.array(ranks) <= rank) for rank in (1, 5, 10)]
            highest = np.sort(alone)[::-1]
            limits = [highest[int(target * len(alone))] for target in FPIR]
            rates.append([*cmc, *(np.mean(np.array(genuine) > limit) for limit in limits)])
    return clock.told(rates=np.mean(rates, 0).tolist())


# A million templates.


def own_memory() -> float:
    """MiB of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return float("nan")


def grow(folder: Path) -> dict[str, Any]:
    """Pool into a mapped file, score random pairs from it, search a hundred probes in all of it."""
    import numpy as np
    from numpy.lib.format import open_memmap

    from spherecf.scoring import cosine_tiles, pool_templates, score_template_pairs

    most, done = [own_memory()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            most.append(own_memory())

    base, watcher = own_memory(), threading.Thread(target=watch)
    watcher.start()
    clock = Clock()
    (mu,) = read(folder, "mu", mmap_mode="r")
    kappa, owner, media, ids = read(folder, "kappa", "templates", "media", "ids")
    with clock.stage("pool"):
        out = open_memmap(folder / "pooled.npy", "w+", np.float32, (ids.size, mu.shape[1]))
        templates = pool_templates(mu, kappa, owner, media, out=out, checked=True)
    left, right, _ = pair_list(folder, "random")
    with clock.stage("score"):
        at = templates.positions(left), templates.positions(right)
        score_template_pairs(templates, templates, *at)
    with clock.stage("search"):
        for _, tile in cosine_tiles(templates.mu[:100], templates.mu):
            tile.max(1)
    done.set()
    watcher.join()
    (folder / "pooled.npy").unlink()
    return clock.told(own=max(most) - base, pairs=int(left.size), images=len(kappa), templates=int(ids.size))


PARTS: dict[str, Callable[..., dict[str, Any]]] = {
    "data": write_data, "ours": ours, "rival": rival, "ours-search": ours_search,
    "rival-search": rival_search, "grow": grow,
}  # fmt: skip


def run(part: str, *arguments: Any) -> dict[str, Any]:
    """A part in a process of its own, with one thread."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, __file__, "--part", part, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **one}, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(name: str, told: dict[str, Any], rival: dict[str, Any] | None = None) -> None:
    stages = " + ".join(f"{seconds:.2f}" for seconds in told["stages"].values())
    ratio = f"{rival['total'] / told['total']:.1f}" if rival else ""
    rates = " / ".join("-" if value is None else f"{value:.4f}" for value in told["rates"])
    print(
        f"| {name} | {stages} | {told['total']:.2f} | {ratio} | {told['peak']:,.0f} | {rates} |", flush=True
    )


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each stage the quickest round; the largest memory."""
    stages = {name: min(told["stages"][name] for told in rounds) for name in rounds[0]["stages"]}
    peaks = {name: max(told[name] for told in rounds) for name in rounds[0] if "peak" in name}
    extra = {name: min(told[name] for told in rounds) for name in rounds[0] if name == "bootstrap"}
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
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {task: [] for task in tasks}
    for _ in range(rounds):
        for task in tasks:
            found[task].append(run(task[0], folder, *task[1:]))
    told = {task: best(values) for task, values in found.items()}

    print("| 1:1 | pool + score + rates, s | all, s | speed-up | peak, MiB | TMR at FMR 1e-1 .. 1e-6 |")
    print("|---|---|---|---|---|---|")
    for kind in kinds:
        slow = told["rival", kind]
        row(f"loops, {kind} pairs, cosine", slow)
        for score in ("cosine", "mls"):
            row(f"ours, {kind} pairs, {score}", told["ours", kind, score], slow)
    columns = (
        "pool + search, s | all, s | speed-up | peak, MiB | rank 1 / 5 / 10, TPIR at FPIR 1e-1 .. 1e-3"
    )
    print(f"\n| 1:N | {columns} |")
    print("|---|---|---|---|---|---|")
    slow, quick = told["rival-search",], told["ours-search",]
    row("loop over probes", slow)
    row("ours", quick, slow)
    print("\n| other measurements | |\n|---|---|")
    print(f"| 1:N, search alone: speed-up | {slow['stages']['search'] / quick['stages']['search']:.1f} |")
    for kind in kinds:
        cosine, mls = told["ours", kind, "cosine"], told["ours", kind, "mls"]
        ratio = mls["stages"]["score"] / cosine["stages"]["score"]
        print(f"| {kind} pairs, scoring: mls over cosine | {ratio:.2f} |")
        print(f"| {kind} pairs: 1000 bootstrap draws, s | {mls['bootstrap']:.2f} |")
        print(f"| {kind} pairs: peak with the bootstrap, MiB | {mls['bootstrap peak']:,.0f} |")


def growth(folder: Path) -> None:
    print("| templates | images | pairs | pool, s | score, s | search, s | private memory, MiB | features, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for templates in GROWTH:
        run("data", folder, templates / 23_124, 2 * templates + 50, 16 * templates)
        told = run("grow", folder)
        seconds = " | ".join(f"{value:.1f}" for value in told["stages"].values())
        counts = " | ".join(f"{told[name]:,}" for name in ("templates", "images", "pairs"))
        print(f"| {counts} | {seconds} | {told['own']:,.0f} | {told['images'] / 512:,.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of subjects, templates and images")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--folder", type=Path, help="for the data, some GiB (default: a temporary one)")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        name, folder, *rest = chosen.part
        arguments = map(json.loads, rest) if name == "data" else rest
        print(json.dumps(PARTS[name](Path(folder), *arguments)))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        growth(Path(folder)) if chosen.growth else compare(Path(folder), chosen.scale, chosen.rounds)


if __name__ == "__main__":
    main()
