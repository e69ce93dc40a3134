"""Photos per second, time of each stage, and the cost of kappa.

    python benchmarks/photo_pipeline.py [--photos 60] [--size 1280x960] [--repeats 9] [--data FOLDER]

Without --data, ORL faces are pasted into JPEGs of --size in a temporary folder. The benchmark runs on one
thread. The same photos go through the same stages with and without the confidence head; the two versions take
turns batch by batch. The ratio is that of the CPU times of the whole pipelines, from the file to mu, or to mu
and kappa with its percentile. The target is at most 1.02.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.data import encode_image, orl_faces
from spherecf.faces import FaceDetector, acquire, align, read_photo
from spherecf.faces.alignment import capture_facts
from spherecf.faces.detection import find_faces
from spherecf.models import ConfidenceModel, load
from spherecf.photos import find_photos

BATCH = 32


def make_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Photos with one ORL face, a third of the image high, in front of blurred noise."""
    source, rng = orl_faces(), np.random.default_rng(0)
    width, height = size
    for row in range(count):
        wall = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3)).astype(np.uint8), (0, 0), 9)
        side = height // 3
        face = cv2.resize(source.image(row), (side * 92 // 112, side))
        top, left = (height - side) // 2, int(rng.integers(0, width - face.shape[1]))
        wall[top : top + side, left : left + face.shape[1]] = face
        (folder / f"{row:04}.jpg").write_bytes(encode_image(np.asarray(wall, np.uint8), ".jpg", 90))


class Stages:
    """CPU seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        start = time.process_time()
        yield
        self.seconds[name] += time.process_time() - start


def share_of_stages(paths: list[Path], detector: FaceDetector, model: ConfidenceModel) -> Stages:
    """CPU time of each stage."""
    stages = Stages()
    crops = []
    for path in paths:
        with stages.time("read and decode"):
            photo = read_photo(path)
        with stages.time("find faces"):
            faces = find_faces(photo.pixels, detector)
        with stages.time("align and facts"):
            crops.append(align(photo.pixels, faces[0].landmarks))
            capture_facts(faces[0], crops[-1], photo.size, scale=photo.scale)
    for start in range(0, len(crops), BATCH):
        batch = np.stack(crops[start : start + BATCH])
        with stages.time("recogniser"):
            output = model.backbone(batch)
            output.mu  # noqa: B018
        with stages.time("kappa: head and percentile"):
            percentile(model, model.predict_from_features(output).log_kappa)
    return stages


def percentile(model: ConfidenceModel, log_kappa: torch.Tensor) -> object:
    scale = None if model.calibration is None else model.calibration.kappa
    return None if scale is None else scale.percentile(log_kappa.exp().numpy())


def seconds_of(batch: list[Path], detector: FaceDetector, model: ConfidenceModel, kappa: bool) -> float:
    """CPU time of one batch through the whole pipeline."""
    start = time.process_time()
    photos = [acquire(path, detector) for path in batch]
    output = model.backbone(np.stack([photo.faces[0].crop for photo in photos if photo.faces]))
    if kappa:
        percentile(model, model.predict_from_features(output).log_kappa)
    else:
        output.mu  # noqa: B018
    return time.process_time() - start


def compare(
    paths: list[Path], detector: FaceDetector, model: ConfidenceModel, repeats: int
) -> NDArray[np.float64]:
    """(repeats, batches, 2) seconds without and with kappa; the order alternates between batches."""
    starts = range(0, len(paths), BATCH)
    seconds = np.zeros((repeats, len(starts), 2))
    for repeat in range(repeats):
        for number, start in enumerate(starts):
            for kappa in (True, False) if (repeat + number) % 2 else (False, True):
                elapsed = seconds_of(paths[start : start + BATCH], detector, model, kappa)
                seconds[repeat, number, int(kappa)] = elapsed
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--size", default="1280x960")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        if options.data is None:
            make_photos(Path(folder), options.photos, (width, height))
        photos = find_photos([options.data or folder]).photos[: options.photos]
        paths = [photo.path for photo in photos]
        detector, model = FaceDetector(), load()
        seconds_of(paths[:BATCH], detector, model, True)  # the first call prepares the networks
        stages = share_of_stages(paths, detector, model)
        seconds = compare(paths, detector, model, options.repeats)
    total = sum(stages.seconds.values())
    kind = "own" if options.data else options.size
    print(f"{len(paths)} photos ({kind}), {model.backbone.name} by {model.backbone.engine}, one thread\n")
    print("| stage | ms per photo | share |\n|---|---|---|")
    for name, elapsed in stages.seconds.items():
        print(f"| {name} | {1e3 * elapsed / len(paths):.2f} | {elapsed / total:.1%} |")
    without, with_kappa = seconds.min(0).sum(0)
    print(f"\nphotos per second of CPU time: {len(paths) / without:.1f} without kappa, "
          f"{len(paths) / with_kappa:.1f} with it")  # fmt: skip
    ratios = seconds[..., 1].sum(1) / seconds[..., 0].sum(1)
    print(f"with over without: {with_kappa / without:.3f} (fastest of {len(seconds)} rounds for each batch; "
          f"single rounds {ratios.min():.3f} to {ratios.max():.3f})")  # fmt: skip


if __name__ == "__main__":
    main()
