"""Claim: making the feature cache takes at most a tenth longer than the backbone alone, decoding included.

    python benchmarks/extract_overhead.py [--data FACES] [--backbone MODEL.onnx] [--images N] [--rounds N]

FACES is any data set of aligned crops that `spherecf data inspect` can read; the default is the ORL faces
from their wheel, aligned before timing starts. The baseline is the backbone on the same degraded images, in
memory, in the same batches. The pass reads and decodes every image, makes four views (clean and three
degraded ones), runs the backbone, computes the features for the default head and writes the cache. Both take
turns; times are the best round of each, and the ratio is the median over the rounds. Wall time is the waiting
time on an idle machine; CPU time, summed over threads, is also meaningful on a shared one.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from spherecf.data import IdentityFolder, ImageSource, encode_image, open_source, orl_faces, training_views
from spherecf.extract import iter_batches
from spherecf.faces import AlignedFaces
from spherecf.models import FrozenBackbone, make_head
from spherecf.training import build_cache

ROWS = 32  # per call of the backbone, as in training


def crops(folder: Path, count: int) -> ImageSource:
    """The first ORL faces as aligned JPEG files."""
    faces = AlignedFaces(orl_faces())
    for index in range(min(count, len(faces))):
        path = (folder / faces.keys[index]).with_suffix(".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_image(faces.image(index), ".jpg"))
    return IdentityFolder(folder)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--backbone", type=Path, help="an ONNX recogniser that can be loaded without options")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    path = options.backbone
    backbone = FrozenBackbone.default() if path is None else FrozenBackbone.from_onnx(path)
    channels, height, width = backbone.feature_shape
    head = make_head("light", channels=channels, height=height, width=width)
    views, size = training_views(3), backbone.preprocessing.size
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.data is None:
            source = crops(folder / "crops", options.images)
        else:
            source = open_source(options.data)
            source = source.subset(range(min(options.images, len(source))))

        def read() -> list[np.ndarray]:
            return [batch.images for batch in iter_batches(source, views, size, ROWS // len(views))]

        def bare() -> None:
            for images in shown:
                backbone(images)

        def whole() -> None:
            build_cache(backbone, head, source, views, folder / str(len(times)), batch_size=ROWS)

        shown = read()
        backbone(shown[0])
        times: list[tuple[tuple[float, float], ...]] = []
        for _ in range(options.rounds):
            times.append((timed(bare), timed(whole), timed(read)))
    best, ratio = np.array(times).min(0), np.median([np.divide(b, a) for a, b, _ in times], axis=0)
    rows = sum(map(len, shown))
    threads = f"{os.cpu_count()} cores, torch threads {torch.get_num_threads()}"
    print(
        f"{backbone.name} ({backbone.engine}), {source.name}, {rows} rows, {threads}, {len(times)} rounds\n"
    )
    print("| ms per row | wall | CPU |")
    print("|---|---|---|")
    for name, (wall, cpu) in zip(("backbone alone", "the pass", "reading and degrading alone"), best):
        print(f"| {name} | {1e3 * wall / rows:.2f} | {1e3 * cpu / rows:.2f} |")
    print(f"| pass over backbone, median | {ratio[0]:.3f} | {ratio[1]:.3f} |")


if __name__ == "__main__":
    main()
