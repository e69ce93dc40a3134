"""Claim: with two workers RecordIO comes at 80 % of the pure JPEG decode rate, lists and folders at 70 %.

    python benchmarks/data_speed.py RECORDS [--images N] [--workers N] [--batch N] [--rounds N]

RECORDS is a RecordIO set of JPEG crops; a folder and a list are written from it into a temporary place.
Pure is `cv2.imdecode` of the same bytes, in memory already, by as many threads, nothing kept. The readers
give shuffled batches of uint8 images through `iter_images`. All in turn; rates are the median of the rounds,
the ratio is the median over the rounds of the ratio within each, so that a busy machine does little harm.
Files are in the page cache, as they are from the second epoch on where memory is large enough.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from spherecf.data import ImageSource, RecordFile, iter_images, write_folder, write_list


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pure(encoded: list[bytes], workers: int) -> None:
    """Decode, and throw away."""

    def decode(part: list[bytes]) -> None:
        for data in part:
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(decode, [encoded[first::workers] for first in range(workers)]))


def read(source: ImageSource, rows: np.ndarray, batch: int, workers: int) -> None:
    """One shuffled epoch."""
    count = sum(len(found.rows) for found in iter_images(source, rows, batch=batch, workers=workers))
    assert count == len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    records = RecordFile(options.records)
    rng = np.random.default_rng(0)
    part = records.subset(rng.permutation(len(records))[: options.images])
    with tempfile.TemporaryDirectory() as place:
        sources: dict[str, ImageSource] = {
            "RecordIO": records,
            "list": write_list(part, Path(place) / "list"),
            "folder": write_folder(part, Path(place) / "folder"),
        }
        encoded = [part.read(row) for row in range(len(part))]
        times: list[list[float]] = []
        for _ in range(options.rounds + 1):  # the first one warms up
            order = rng.permutation(len(part))
            works = [lambda: pure(encoded, options.workers)]
            for source in sources.values():
                rows = part.indices[order] if source is records else order
                works.append(
                    lambda source=source, rows=rows: read(source, rows, options.batch, options.workers)
                )
            times.append([seconds(work) for work in works])
    table = np.array(times[1:])
    print(
        f"{len(part)} JPEG crops of {records.name}, {options.workers} workers, batches of {options.batch}, "
        f"{os.cpu_count()} cores, {options.rounds} rounds\n"
    )
    print("| source | images/s | pure decoding, images/s | ratio | lowest, highest ratio |")
    print("|---|---|---|---|---|")
    for name, own in zip(sources, table.T[1:]):
        ratios = table[:, 0] / own
        rate, ceiling = (len(part) / np.median(column) for column in (own, table[:, 0]))
        spread = f"{ratios.min():.2f}, {ratios.max():.2f}"
        print(f"| {name} | {rate:,.0f} | {ceiling:,.0f} | {np.median(ratios):.2f} | {spread} |")


if __name__ == "__main__":
    main()
