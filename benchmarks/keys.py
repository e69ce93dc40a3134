"""Claim: a million image names take little more memory than their bytes, unlike StringDType or a list.

    python benchmarks/keys.py [--keys 1000000]

Every row runs in a separate process and reports its anonymous memory (`RssAnon` of /proc/self/status, Linux
only): held afterwards, and the peak while the names are added one by one. A read is one name at a random row.
"""

import argparse
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.dtypes import StringDType

from spherecf.data.text import PackedKeys

BUILDERS: dict[str, Callable[[Iterator[str], int], Sequence[str] | Any]] = {
    "packed": lambda names, _: PackedKeys(names),
    "StringDType": lambda names, count: np.fromiter(names, StringDType(), count),
    "list": lambda names, _: list(names),
}


def anonymous() -> float:
    """Anonymous memory of this process, MiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


def measure(kind: str, count: int, length: int) -> tuple[float, float, float]:
    """(held MiB, peak MiB, microseconds of a read)."""
    before, peak, done = anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    keys = BUILDERS[kind]((f"{row:0{length}d}" for row in range(count)), count)
    done.set()
    watcher.join()
    rows = np.random.default_rng(0).integers(0, count, 100_000).tolist()
    start = time.perf_counter()
    for row in rows:
        keys[row]
    return anonymous() - before, peak[0] - before, (time.perf_counter() - start) * 1e6 / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    count = parser.parse_args().keys
    print("| bytes of a name | kept as | held, MiB | peak, MiB | one read, µs |")
    print("| --- | --- | --- | --- | --- |")
    for length in (14, 22, 46):
        for kind in BUILDERS:
            with ProcessPoolExecutor(1) as alone:
                held, peak, read = alone.submit(measure, kind, count, length).result()
            print(f"| {length} | {kind} | {held:.0f} | {peak:.0f} | {read:.1f} |")


if __name__ == "__main__":
    main()
