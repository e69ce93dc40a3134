"""Claim: memory, open files and threads do not grow during an hour of training, embedding or gallery changes.

    python benchmarks/long_runs.py [stage1 stage2 embedding gallery] [--minutes 60] [--every 5]
                                   [--out runs/long.json] [--plot runs/long.png]

The sections run one after the other, each in its own process, on synthetic data: training of a recogniser;
training of a head, with SFace as backbone in every epoch; `embed` with the shipped model, file after file;
and a gallery of 5,000 people in which one person after another is enrolled, enrolled again with a second
image, identified and removed. From the first unit of work on, the resident memory, open files and threads of
the process and its children are read from /proc (Linux) every few seconds. The medians of the first and the
last quarter of the run are compared: the exit code is 1 if memory grew by more than 5 % and 16 MiB, or files
or threads by more than 4. The rate is reported but not checked, because other work on the machine affects it.
Results of other sections in an existing output file are kept, and checked too. The section ``leak`` must
fail; it runs only if it is named.
"""

import argparse
import itertools
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spherecf.data import SyntheticImages

# Tolerated growth: factor and MiB of memory (both must be exceeded), number of files or threads.
MAX_FACTOR, MAX_MIB, MAX_COUNT = 1.05, 16, 4
PAGE_MIB = 4096 / 2**20
DIM, PEOPLE = 512, 5_000

Count = Callable[[int], None]  # called with the number of finished units of work


@dataclass(frozen=True)
class Sample:
    """Resources of a process and its children, ``seconds`` after the first of ``done`` units of work."""

    seconds: float
    done: int
    memory_mib: float
    files: int
    threads: int


class CountedImages(SyntheticImages):
    """Synthetic images that count each read."""

    def __init__(self, count: Count, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._count = count

    def image(self, index: int, size: tuple[int, int] | None = None) -> Any:
        self._count(1)
        return super().image(index, size)


def stage1(folder: Path, count: Count) -> None:
    """Training of a small recogniser, with a checkpoint every minute; counts images read."""
    from spherecf.training import BackboneConfig, train_backbone

    settings: dict[str, Any] = {
        "network": {"name": "r18", "dim": 128, "options": {"size": 32, "width": 0.25}},
        "fit": {"epochs": 100_000, "batch_size": 64},
        "engine": {"save_minutes": 1.0},
    }
    source = CountedImages(count, 20_000, 500, size=(32, 32))
    train_backbone(source, folder / "run", BackboneConfig.from_dict(settings))


def stage2(folder: Path, count: Count) -> None:
    """Training of a head, with a checkpoint every minute; counts the views of each step."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from spherecf.models import FrozenBackbone
    from spherecf.training import ConfidenceConfig, train_confidence

    settings: dict[str, Any] = {
        "features": {"source": "stream"},
        "fit": {"epochs": 100_000, "batch_size": 32},
        "engine": {"save_minutes": 1.0},
    }
    # Count steps rather than reads: images are also read to initialise the head.
    register_optimizer_step_post_hook(lambda *_: count(32))
    config = ConfidenceConfig.from_dict(settings)
    train_confidence(FrozenBackbone.default(), SyntheticImages(200, 20), folder / "run", config)


def embedding(folder: Path, count: Count) -> None:
    """Embedding of 256 images per file, each file replacing the one before; counts images."""
    import spherecf
    from spherecf.extract import embed

    model = spherecf.load()
    for seed in itertools.count():
        embed(model, CountedImages(count, 256, 32, seed=seed), folder / "out.safetensors", flip=True)


def gallery(folder: Path, count: Count) -> None:
    """Enrolment, second enrolment, identification and removal; reopens the gallery for every 100 people."""
    from spherecf.gallery import Gallery

    rng = np.random.default_rng(0)

    def unit(people: int) -> np.ndarray:
        mu = rng.standard_normal((people, DIM), dtype=np.float32)
        return mu / np.linalg.norm(mu, axis=1, keepdims=True)

    names = [f"person {number}" for number in range(PEOPLE)]
    for batch in itertools.count():
        with Gallery.open(folder / "people", model="0" * 64, dim=DIM, radius=64.0) as people:
            if not batch:
                people.enrol_many(names, unit(PEOPLE), np.full(PEOPLE, 300.0))
            for number in range(100 * batch, 100 * (batch + 1)):
                name, mu = f"guest {number}", unit(1)
                people.enrol(name, mu, [300.0], media=["a"], sources=["a.jpg"])
                people.enrol(name, unit(1), [200.0], media=["b"], sources=["b.jpg"], add=True)
                people.identify(mu[0], 300.0, threshold=0.0)
                people.remove(name)
                count(1)
            people.compact()


def leak(folder: Path, count: Count) -> None:
    """Leaks memory and files, which the check must detect."""
    leaked = []
    for number in itertools.count():
        leaked.append((bytearray(b"x" * 2**18), (folder / f"{number % 4}").open("w")))
        count(1)
        time.sleep(0.01)


SECTIONS = (stage1, stage2, embedding, gallery)


def _work(section: Callable[[Path, Count], None], folder: str, counter: Any) -> None:
    def count(n_units: int) -> None:
        with counter.get_lock():
            counter.value += n_units

    section(Path(folder), count)


def sample_resources(process: int, seconds: float, done: int) -> Sample:
    """Read the resources of a process and its children from /proc; those that end meanwhile are ignored."""
    memory, files, threads = 0, 0, 0
    pending = [process]
    for process_id in pending:  # grows during the loop
        folder = Path(f"/proc/{process_id}")
        try:
            tasks = list((folder / "task").iterdir())
            pending += [int(child) for task in tasks for child in (task / "children").read_text().split()]
            pages = int((folder / "statm").read_text().split()[1])
            open_files = len(list((folder / "fd").iterdir()))
        except OSError:
            continue
        memory, files, threads = memory + pages, files + open_files, threads + len(tasks)
    return Sample(round(seconds, 2), done, round(memory * PAGE_MIB, 1), files, threads)


def watch(section: Callable[[Path, Count], None], minutes: float, every: float) -> list[Sample]:
    """Run a section for some minutes after its first unit of work, and sample its resources.

    Raises:
        RuntimeError: if the section ended by itself.
    """
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with tempfile.TemporaryDirectory(prefix="spherecf-long-") as folder:
        child = context.Process(target=_work, args=(section, folder, counter))
        child.start()
        samples: list[Sample] = []
        try:
            while child.is_alive() and not counter.value:
                child.join(0.05)
            start, first = time.monotonic(), counter.value
            while child.is_alive() and (elapsed := time.monotonic() - start) < 60 * minutes:
                samples.append(sample_resources(child.pid or 0, elapsed, counter.value - first))
                child.join(every)
            if not child.is_alive():
                raise RuntimeError(f"{section.__name__} ended by itself, with exit code {child.exitcode}")
        finally:
            child.kill()
            child.join()
    return samples


def summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    """Medians and rates per second of the first and last quarter, and the resources that ``grew`` too much.

    Raises:
        ValueError: if there are fewer than 8 samples.
    """
    if len(samples) < 8:
        raise ValueError(f"expected 8 samples or more, got {len(samples)}: run longer, or sample more often")
    quarter = len(samples) // 4
    parts = samples[: quarter + 1], samples[-quarter - 1 :]
    facts: dict[str, Any] = {"minutes": round(samples[-1].seconds / 60, 1), "done": samples[-1].done}
    for name in ("memory_mib", "files", "threads"):
        facts[name] = [float(np.median([getattr(sample, name) for sample in part])) for part in parts]
    facts["per_second"] = [
        round((part[-1].done - part[0].done) / (part[-1].seconds - part[0].seconds), 1) for part in parts
    ]
    before, after = facts["memory_mib"]
    facts["grew"] = ["memory_mib"] if after > max(MAX_FACTOR * before, before + MAX_MIB) else []
    facts["grew"] += [name for name in ("files", "threads") if facts[name][1] > facts[name][0] + MAX_COUNT]
    return facts


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with a row for each section: first quarter → last quarter."""
    lines = [
        "| section | minutes | done | a second | memory, MiB | open files | threads | grew |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, facts in results.items():
        pairs = [
            " → ".join(f"{value:,g}" for value in facts[key])
            for key in ("per_second", "memory_mib", "files", "threads")
        ]
        cells = [name, facts["minutes"], f"{facts['done']:,}", *pairs, ", ".join(facts["grew"]) or "nothing"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Plot the memory and rate of each section over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.7 * len(results)), layout="constrained")
    axes = figure.subplots(len(results), 2, squeeze=False)
    for (memory, rate), (name, facts) in zip(axes, results.items()):
        samples = [Sample(**record) for record in facts["samples"]]
        times = np.array([sample.seconds for sample in samples]) / 60
        memory_mib = [sample.memory_mib for sample in samples]
        memory.plot(times, memory_mib, linewidth=0.8)
        memory.set(title=f"{name}: memory, MiB", ylim=(0, 1.1 * max(memory_mib)), xlabel="minutes")
        step = max(1, len(samples) // 60)
        done = np.array([sample.done for sample in samples])[::step]
        rate.plot(times[::step][1:], np.diff(done) / np.diff(times[::step]) / 60, linewidth=0.8)
        rate.set(title=f"{name}: done a second", ylim=(0, None), xlabel="minutes")
    figure.savefig(path, dpi=56)


def main(arguments: Sequence[str] | None = None) -> int:
    sections = {section.__name__: section for section in (*SECTIONS, leak)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=sections)
    parser.add_argument("--minutes", type=float, default=60, help="duration of each section")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    parser.add_argument("--out", type=Path, default="runs/long.json")
    parser.add_argument("--plot", type=Path, default="runs/long.png")
    options = parser.parse_args(arguments)
    for path in (options.out, options.plot):
        path.parent.mkdir(parents=True, exist_ok=True)
    for name in options.sections or [section.__name__ for section in SECTIONS]:
        samples = watch(sections[name], options.minutes, options.every)
        results = json.loads(options.out.read_text()) if options.out.exists() else {}
        results[name] = summarise(samples) | {"samples": [asdict(sample) for sample in samples]}
        options.out.write_text(json.dumps(results))
        plot(results, options.plot)
    print(table(results))
    return int(any(facts["grew"] for facts in results.values()))


if __name__ == "__main__":
    sys.exit(main())
