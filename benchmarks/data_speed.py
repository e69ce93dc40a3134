"""Claim: reading costs little more CPU time than decoding, and processes scale where threads do not.

    python benchmarks/data_speed.py RECORDS [--images N] [--batch N] [--rounds N] [--threads N]
                                            [--processes N ...]

RECORDS is a RecordIO set of JPEG crops; it is also written to a temporary folder as a list and as a folder.
"Pure" is `cv2.imdecode` of the same bytes, already in memory, without keeping the result. All other rows
produce shuffled batches of uint8 images. All rows take turns. Numbers are medians over the rounds, and a
ratio is the median over the rounds of the ratio within a round, so a busy machine has little influence. The
files are in the page cache, as from the second epoch of a training on if memory is large enough.

The first table compares `iter_images` with pure decoding by the same number of threads. With two threads the
claim is 80 % of it for RecordIO and 70 % for lists and folders. The second table compares the `Readers` of
training (RecordIO, half of the images mirrored) with pure decoding on one core. The claim is 60 % of that
times the number of processes if each has its own core. Otherwise, or on a busy machine, CPU time is more
informative: that of the reader processes, and that which they take from the training loop. The processes are
warmed up before timing.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from spherecf.common.readers import Readers
from spherecf.data import (
    ImageBatch,
    ImageSource,
    RecordFile,
    View,
    ViewRequest,
    batch_bytes,
    iter_images,
    load_batch,
    write_folder,
    write_list,
)

TICK = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """Seconds: wall time, CPU time of this process, and CPU time of its reader processes."""

    wall: float
    own: float
    readers: float


def of_processes(pids: list[int]) -> float:
    """CPU seconds of other processes so far."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / TICK


def measure(work: Callable[[], None], pids: list[int]) -> Cost:
    wall, own, readers = time.perf_counter(), time.process_time(), of_processes(pids)
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - own, of_processes(pids) - readers)


def pure(encoded: list[bytes], threads: int) -> None:
    """Decode and discard the result."""

    def decode(part: list[bytes]) -> None:
        for data in part:
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(decode, [encoded[first::threads] for first in range(threads)]))


def read(source: ImageSource, rows: np.ndarray, batch: int, threads: int) -> None:
    """One shuffled epoch."""
    count = sum(len(images.rows) for images in iter_images(source, rows, batch=batch, workers=threads))
    assert count == len(rows)


def read_as_training(readers: Readers[ViewRequest, ImageBatch], rows: np.ndarray, batch: int) -> None:
    """One shuffled epoch, every second image mirrored."""
    parts = (rows[start : start + batch] for start in range(0, len(rows), batch))
    shown = (ViewRequest(part, part, [View(), View(flip=True)], part % 2) for part in parts)
    assert sum(len(images.rows) for images in readers(shown)) == len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", "--workers", type=int, default=2)
    cores = len(os.sched_getaffinity(0))
    counts = sorted({1, 2, 4, 8, cores - 1, cores} & set(range(1, cores + 1)))
    parser.add_argument("--processes", type=int, nargs="*", default=counts)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    records = RecordFile(options.records)
    rng = np.random.default_rng(0)
    part = records.subset(rng.permutation(len(records))[: options.images])
    encoded = [part.read(row) for row in range(len(part))]
    size = part.image(0).shape[:2]
    load = partial(load_batch, records, size)
    readers = {"1 thread": Readers[ViewRequest, ImageBatch](load, threads=1)}
    for count in options.processes:
        name = f"{count} process" + "es" * (count > 1)
        readers[name] = Readers(load, processes=count, largest=batch_bytes(options.batch, size))
    table: list[list[Cost]] = []
    with tempfile.TemporaryDirectory() as place:
        sources: dict[str, ImageSource] = {
            "RecordIO": records,
            "list": write_list(part, Path(place) / "list"),
            "folder": write_folder(part, Path(place) / "folder"),
        }
        for _ in range(options.rounds + 1):  # the first round is a warm-up
            order = rng.permutation(len(part))
            works: list[tuple[Callable[[], None], list[int]]] = [
                (partial(pure, encoded, options.threads), []),
                (partial(pure, encoded, 1), []),
            ]
            for source in sources.values():
                rows = part.indices[order] if source is records else order
                works.append((partial(read, source, rows, options.batch, options.threads), []))
            for reader in readers.values():
                work = partial(read_as_training, reader, part.indices[order], options.batch)
                works.append((work, reader.pids))
            table.append([measure(work, pids) for work, pids in works])
    for reader in readers.values():
        reader.close()
    times = np.array(table[1:])  # (rounds, works, 3)
    report(times, list(sources), list(readers), options.threads, len(part))
    print(
        f"\n{len(part)} JPEG crops of {records.name}, batches of {options.batch}, {cores} cores, "
        f"{options.rounds} rounds"
    )


def report(times: np.ndarray, sources: list[str], readers: list[str], threads: int, images: int) -> None:
    walls = times[:, :, 0]
    print(
        f"| source, {threads} threads | images/s | pure decoding, images/s | ratio | lowest, highest ratio |"
    )
    print("|---|---|---|---|---|")
    for name, own in zip(sources, walls.T[2:]):
        ratios = walls[:, 0] / own
        rate, ceiling = (images / np.median(column) for column in (own, walls[:, 0]))
        spread = f"{ratios.min():.2f}, {ratios.max():.2f}"
        print(f"| {name} | {rate:,.0f} | {ceiling:,.0f} | {np.median(ratios):.2f} | {spread} |")
    print()
    print("| read by | images/s | of pure | for each of them | µs of readers | µs of this process |")
    print("|---|---|---|---|---|---|")
    rows = [("pure, 1 core", 1), *((name, int(name.split()[0])) for name in readers)]
    for (name, count), column in zip(rows, [1, *range(2 + len(sources), times.shape[1])]):
        wall, own, other = np.median(times[:, column], axis=0)
        ratio = float(np.median(walls[:, 1] / walls[:, column]))
        costs = " | ".join(f"{seconds / images * 1e6:.1f}" for seconds in (other, own))
        print(f"| {name} | {images / wall:,.0f} | {ratio:.2f} | {ratio / count:.2f} | {costs} |")


if __name__ == "__main__":
    main()
