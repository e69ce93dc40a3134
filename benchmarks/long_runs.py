"""Claim: an hour of training, of embedding, of enrolment and removal needs no more memory than its beginning.

    python benchmarks/long_runs.py [stage1 stage2 embedding gallery] [--minutes 60] [--every 5]
                                   [--out runs/long.json] [--plot runs/long.png]

Each section is a process of its own, one after the other, on synthetic data: the training of a recogniser;
that of a head, for which SFace runs in every epoch; `embed` with the shipped model, file after file; and a
gallery of 5,000 people in which one is enrolled, enrolled again with a second image, identified and removed,
over and over. From the first piece of work on, /proc (Linux) is asked every few seconds for the resident
memory, the open files and the threads of the process and its children. Medians of the first and of the last
quarter of the time are compared: exit code 1 if memory grew by more than 5 % and 16 MiB, or files or threads
by more than 4. The rate is only told: other work on the machine changes it. Results of other sections that
are in the file already stay there, and are judged as well. ``leak`` is a section that must fail; it runs only
where it is named.
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

SHARE, MIB, COUNT = 1.05, 16, 4  # growth that is tolerated: of memory (both), of files and threads
PAGE = 4096 / 2**20
DIM, PEOPLE = 512, 5_000

Count = Callable[[int], None]  # is told how much work was done


@dataclass(frozen=True)
class Sample:
    """A process and its children, ``seconds`` after their first piece of work; ``done`` is what they did."""

    seconds: float
    done: int
    memory_mib: float
    files: int
    threads: int


class CountedImages(SyntheticImages):
    """Synthetic images that tell when one is read."""

    def __init__(self, count: Count, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._count = count

    def image(self, index: int, size: tuple[int, int] | None = None) -> Any:
        self._count(1)
        return super().image(index, size)


def stage1(folder: Path, count: Count) -> None:
    """Images read by the training of a small recogniser, with a checkpoint every minute."""
    from spherecf.training import BackboneConfig, train_backbone

    settings: dict[str, Any] = {
        "network": {"name": "r18", "dim": 128, "options": {"size": 32, "width": 0.25}},
        "fit": {"epochs": 100_000, "batch_size": 64},
        "engine": {"save_minutes": 1.0},
    }
    source = CountedImages(count, 20_000, 500, size=(32, 32))
    train_backbone(source, folder / "run", BackboneConfig.from_dict(settings))


def stage2(folder: Path, count: Count) -> None:
    """Views in the steps of the training of a head, with a checkpoint every minute."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from spherecf.models import FrozenBackbone
    from spherecf.training import ConfidenceConfig, train_confidence

    settings: dict[str, Any] = {
        "features": {"source": "stream"},
        "fit": {"epochs": 100_000, "batch_size": 32},
        "engine": {"save_minutes": 1.0},
    }
    register_optimizer_step_post_hook(lambda *_: count(32))  # the head's start needs many images
    config = ConfidenceConfig.from_dict(settings)
    train_confidence(FrozenBackbone.default(), SyntheticImages(200, 20), folder / "run", config)


def embedding(folder: Path, count: Count) -> None:
    """Images embedded, 256 a file; each file takes the place of the one before."""
    import spherecf
    from spherecf.extract import embed

    model = spherecf.load()
    for seed in itertools.count():
        embed(model, CountedImages(count, 256, 32, seed=seed), folder / "out.safetensors", flip=True)


def gallery(folder: Path, count: Count) -> None:
    """People enrolled, enrolled again, identified and removed; the gallery is opened anew for every 100."""
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
    """What every section must not do."""
    kept = []
    for number in itertools.count():
        kept.append((bytearray(b"x" * 2**18), (folder / f"{number % 4}").open("w")))
        count(1)
        time.sleep(0.01)


SECTIONS = (stage1, stage2, embedding, gallery)


def _work(section: Callable[[Path, Count], None], folder: str, counter: Any) -> None:
    def count(more: int) -> None:
        with counter.get_lock():
            counter.value += more

    section(Path(folder), count)


def look(process: int, seconds: float, done: int) -> Sample:
    """What /proc says of a process and its children; one that ends meanwhile does not count."""
    memory, files, threads = 0, 0, 0
    pending = [process]
    for one in pending:  # grows on the way
        place = Path(f"/proc/{one}")
        try:
            tasks = list((place / "task").iterdir())
            pending += [int(child) for task in tasks for child in (task / "children").read_text().split()]
            pages = int((place / "statm").read_text().split()[1])
            opened = len(list((place / "fd").iterdir()))
        except OSError:
            continue
        memory, files, threads = memory + pages, files + opened, threads + len(tasks)
    return Sample(round(seconds, 2), done, round(memory * PAGE, 1), files, threads)


def watch(section: Callable[[Path, Count], None], minutes: float, every: float) -> list[Sample]:
    """Run a section for some minutes from its first piece of work on.

    Raises:
        RuntimeError: it ended by itself.
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
            begun, first = time.monotonic(), counter.value
            while child.is_alive() and (passed := time.monotonic() - begun) < 60 * minutes:
                samples.append(look(child.pid or 0, passed, counter.value - first))
                child.join(every)
            if not child.is_alive():
                raise RuntimeError(f"{section.__name__} ended by itself, with exit code {child.exitcode}")
        finally:
            child.kill()
            child.join()
    return samples


def judge(samples: Sequence[Sample]) -> dict[str, Any]:
    """Medians of the first and last quarter of the samples, rates per second, and what ``grew`` too much.

    Raises:
        ValueError: there are fewer than 8 samples.
    """
    if len(samples) < 8:
        raise ValueError(f"expected 8 samples or more, got {len(samples)}: run longer, or look more often")
    quarter = len(samples) // 4
    parts = samples[: quarter + 1], samples[-quarter - 1 :]
    facts: dict[str, Any] = {"minutes": round(samples[-1].seconds / 60, 1), "done": samples[-1].done}
    for name in ("memory_mib", "files", "threads"):
        facts[name] = [float(np.median([getattr(one, name) for one in part])) for part in parts]
    facts["per_second"] = [
        round((part[-1].done - part[0].done) / (part[-1].seconds - part[0].seconds), 1) for part in parts
    ]
    before, after = facts["memory_mib"]
    facts["grew"] = ["memory_mib"] if after > max(SHARE * before, before + MIB) else []
    facts["grew"] += [name for name in ("files", "threads") if facts[name][1] > facts[name][0] + COUNT]
    return facts


def table(found: dict[str, dict[str, Any]]) -> str:
    """A Markdown row for each section: the first quarter and the last."""
    lines = [
        "| section | minutes | done | a second | memory, MiB | open files | threads | grew |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, facts in found.items():
        pairs = [
            " → ".join(f"{value:,g}" for value in facts[key])
            for key in ("per_second", "memory_mib", "files", "threads")
        ]
        cells = [name, facts["minutes"], f"{facts['done']:,}", *pairs, ", ".join(facts["grew"]) or "nothing"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Memory and rate of each section over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 1.7 * len(found)), layout="constrained")
    for (memory, rate), (name, facts) in zip(figure.subplots(len(found), 2, squeeze=False), found.items()):
        samples = [Sample(**one) for one in facts["samples"]]
        times = np.array([one.seconds for one in samples]) / 60
        used = [one.memory_mib for one in samples]
        memory.plot(times, used, linewidth=0.8)
        memory.set(title=f"{name}: memory, MiB", ylim=(0, 1.1 * max(used)), xlabel="minutes")
        step = max(1, len(samples) // 60)
        done = np.array([one.done for one in samples])[::step]
        rate.plot(times[::step][1:], np.diff(done) / np.diff(times[::step]) / 60, linewidth=0.8)
        rate.set(title=f"{name}: done a second", ylim=(0, None), xlabel="minutes")
    figure.savefig(path, dpi=56)


def main(arguments: Sequence[str] | None = None) -> int:
    sections = {section.__name__: section for section in (*SECTIONS, leak)}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=sections)
    parser.add_argument("--minutes", type=float, default=60, help="of each section")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    parser.add_argument("--out", type=Path, default="runs/long.json")
    parser.add_argument("--plot", type=Path, default="runs/long.png")
    asked = parser.parse_args(arguments)
    for path in (asked.out, asked.plot):
        path.parent.mkdir(parents=True, exist_ok=True)
    for name in asked.sections or [section.__name__ for section in SECTIONS]:
        samples = watch(sections[name], asked.minutes, asked.every)
        found = json.loads(asked.out.read_text()) if asked.out.exists() else {}
        found[name] = judge(samples) | {"samples": [asdict(one) for one in samples]}
        asked.out.write_text(json.dumps(found))
        plot(found, asked.plot)
    print(table(found))
    return int(any(facts["grew"] for facts in found.values()))


if __name__ == "__main__":
    sys.exit(main())
