"""Claim: a RecordIO set takes a bounded number of bytes per record in memory, and no more while it is read.

    python benchmarks/record_memory.py [--records N N ...] [--batches N] [--workers N]

The script writes synthetic sets in the usual layout (header, images, identity records), opens each in a
separate process, and reads shuffled batches of 512 in two halves. It reports the anonymous memory of the
process (`RssAnon` of /proc/self/status, so Linux only), that is, everything except mapped pages of files,
which the system can reclaim. The peak is that of opening, sampled every millisecond.
"""

import argparse
import multiprocessing
import struct
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np

from spherecf.data import RecordFile, encode_image, iter_images

IDENTITY = 68  # images per identity, as in MS1MV2
BATCH = 512


def write(folder: Path, records: int) -> Path:
    """Write a set of ``records`` tiny images directly as bytes, which takes only seconds."""
    images = [encode_image(np.full((8, 8, 3), grey, np.uint8), ".jpg", 50) for grey in range(0, 256, 16)]
    folder.mkdir()
    ranges = [(at, min(at + IDENTITY, records + 1)) for at in range(1, records + 1, IDENTITY)]
    end = records + 1 + len(ranges)
    with (folder / "train.rec").open("wb") as stream, (folder / "train.idx").open("w") as index:

        def add(number: int, labels: tuple[float, ...], content: bytes = b"") -> None:
            index.write(f"{number}\t{stream.tell()}\n")
            flag, label = (0, labels[0]) if len(labels) == 1 else (len(labels), 0.0)
            payload = struct.pack("<IfQQ", flag, label, number, 0)
            payload += b"" if flag == 0 else struct.pack(f"<{flag}f", *labels)
            payload += content
            stream.write(struct.pack("<II", 0xCED7230A, len(payload)) + payload + bytes(-len(payload) % 4))

        add(0, (records + 1.0, float(end)))
        for number in range(1, records + 1):
            add(number, (float((number - 1) // IDENTITY),), images[number % len(images)])
        for number, (first, last) in enumerate(ranges, start=records + 1):
            add(number, (float(first), float(last)))
    (folder / "property").write_text(f"{len(ranges)},8,8")
    return folder


def anonymous() -> int:
    """Resident anonymous bytes of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measure(folder: Path, batches: int, workers: int) -> list[float]:
    """Seconds to open, then bytes at the peak of opening, once open, half read, all read."""
    # Warm up: thread pools and decoders allocate their memory before the measurement.
    warm = write(folder.with_name(f"warm{folder.name}"), 2048)
    list(iter_images(RecordFile(warm), batch=BATCH, workers=workers))
    before, peak, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    source = RecordFile(folder)
    opening = time.perf_counter() - start
    done.set()
    watcher.join()
    opened = anonymous()
    order = np.random.default_rng(0).permutation(len(source))
    reading = iter_images(source, order, batch=BATCH, workers=workers)
    used = []
    for _ in range(2):
        for _batch in islice(reading, batches // 2):
            pass
        used.append(anonymous() - order.nbytes)
    return [opening, max(peak[0], opened) - before, opened - before, *(now - before for now in used)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--batches", type=int, default=190)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")  # a fresh process that inherits nothing
    print(
        "| records | opening, s | opening, peak B/record | open, B/record | half read, MiB | all read, MiB |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as root:
        for records in options.records:
            folder = write(Path(root) / str(records), records)
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                work = process.submit(measure, folder, options.batches, options.workers)
                opening, peak, opened, half, end = work.result()
            each = f"{peak / records:.0f} | {opened / records:.0f}"
            print(f"| {records:,} | {opening:.2f} | {each} | {half / 2**20:.1f} | {end / 2**20:.1f} |")


if __name__ == "__main__":
    main()
