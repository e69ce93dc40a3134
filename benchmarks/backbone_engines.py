"""Which engine runs a recogniser fastest here: images per CPU-second, and agreement with onnxruntime.

    python benchmarks/backbone_engines.py [MODEL.onnx ...] [--compiled] [--images N] [--faces PAIRS.bin]

Without models: SFace from its wheel. CPU time, not wall time, so that other work here matters little;
threads as torch has them (OMP_NUM_THREADS). Each engine is warmed up, the best of five passes counts.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.data import PairBin
from spherecf.models import FrozenBackbone, default_recogniser_path

ENGINES = (("onnxruntime", "float32"), ("torch", "float32"), ("torch", "bfloat16"))
COMPILED = (("compiled", "float32"), ("compiled", "bfloat16"))


def faces(path: Path | None, count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Aligned faces of a pair file, or noise (the speed is the same, the differences are not)."""
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    source = PairBin(path)
    return np.stack([source.image(i) for i in range(count)])


def best_rate(backbone: FrozenBackbone, images: NDArray[np.uint8], passes: int = 5) -> float:
    """Images per CPU-second of this process."""
    backbone(images)
    seconds = []
    for _ in range(passes):
        start = time.process_time()
        backbone(images)
        seconds.append(time.process_time() - start)
    return len(images) / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--faces", type=Path, help="a pair .bin file to take real faces from")
    parser.add_argument("--compiled", action="store_true", help="torch.compile too: a minute per engine")
    options = parser.parse_args()
    kind = "real faces" if options.faces else "noise"
    print(f"threads {torch.get_num_threads()}, {options.images} images, {kind}\n")
    print("| model | engine | images per CPU-second | cosine to onnxruntime, mean / smallest |")
    print("|---|---|---|---|")
    for path in options.models or [default_recogniser_path()]:
        reference = None
        for engine, dtype in ENGINES + (COMPILED if options.compiled else ()):
            backbone = FrozenBackbone.from_onnx(path, engine=engine, dtype=dtype)
            images = faces(options.faces, options.images, backbone.preprocessing.size)
            mu = backbone(images).mu
            reference = mu if reference is None else reference
            cosine = (mu * reference).sum(1)
            rate = best_rate(backbone, images)
            agreement = f"{float(cosine.mean()):.6f} / {float(cosine.min()):.6f}"
            print(f"| {backbone.name} | {engine} {dtype} | {rate:.0f} | {agreement} |", flush=True)


if __name__ == "__main__":
    main()
