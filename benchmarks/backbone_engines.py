"""Which engine runs a recogniser fastest? Images per CPU-second, and agreement with onnxruntime.

    python benchmarks/backbone_engines.py [MODEL.onnx ...] [--compiled] [--images N] [--faces PAIRS.bin]
    python benchmarks/backbone_engines.py [MODEL.onnx ...] --faces PAIRS.bin --accuracy PAIRS

The default model is SFace from its wheel. CPU time is measured instead of wall time, so that other processes
have little influence; the number of threads is torch's (OMP_NUM_THREADS). After a warm-up, the best of five
passes counts.

The second form measures the loss by bfloat16: angles between bfloat16 and float32 embeddings, the largest
change of a pair's cosine, and the ten-fold accuracy of both on this many evenly spaced pairs of the file.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.data import PairBin
from spherecf.evaluation import tenfold
from spherecf.models import FrozenBackbone
from spherecf.models.preprocessing import default_recogniser_path

ENGINES = (("onnxruntime", "float32"), ("torch", "float32"), ("torch", "bfloat16"))
COMPILED = (("compiled", "float32"), ("compiled", "bfloat16"))


def faces(path: Path | None, count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Aligned faces of a pair file, or noise (same speed, but the agreement is not that of faces)."""
    if path is None:
        return np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype=np.uint8)
    source = PairBin(path)
    return np.stack([source.image(i) for i in range(count)])


def best_rate(backbone: FrozenBackbone, images: NDArray[np.uint8], passes: int = 5) -> float:
    """Images per CPU-second of this process, best of several passes."""
    backbone(images)
    seconds = []
    for _ in range(passes):
        start = time.process_time()
        backbone(images)
        seconds.append(time.process_time() - start)
    return len(images) / min(seconds)


def angles(mu: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Angles in degrees, from the chord, because the arc cosine is inaccurate for small angles."""
    chord = torch.linalg.vector_norm(mu.double() - other.double(), dim=1)
    return torch.rad2deg(2 * torch.arcsin(chord / 2))


def accuracy_lost(models: list[Path], faces_file: Path, count: int) -> None:
    """Print the table of the loss by bfloat16."""
    source = PairBin(faces_file)
    rows = np.unique(np.linspace(0, len(source.pairs) - 1, count).astype(int))
    images = np.stack([source.image(2 * row + side) for row in rows for side in (0, 1)])
    mated, folds = source.pairs.mated[rows], source.pairs.fold[rows]
    print(f"{len(rows)} pairs of {faces_file.name}, torch engine\n")
    print(
        "| model | type | ten-fold accuracy | angle to float32, mean / largest | largest change of a cosine |"
    )
    print("|---|---|---|---|---|")
    for path in models:
        exact = cosine_exact = None
        for dtype in ("float32", "bfloat16"):
            backbone = FrozenBackbone.from_onnx(path, engine="torch", dtype=dtype)
            mu = backbone(images).mu
            cosine = (mu[::2] * mu[1::2]).sum(1).numpy()
            result = tenfold(cosine, mated, folds)
            if exact is None or cosine_exact is None:
                exact, cosine_exact, loss = mu, cosine, "- | -"
            else:
                angle = angles(mu, exact)
                change = float(np.abs(cosine - cosine_exact).max())
                loss = f"{float(angle.mean()):.2f}° / {float(angle.max()):.2f}° | {change:.4f}"
            print(
                f"| {backbone.name} | {dtype} | {result.mean:.4f} +- {result.std:.4f} | {loss} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--faces", type=Path, help="a pair .bin file to take real faces from")
    parser.add_argument("--compiled", action="store_true", help="also run torch.compile: a minute per engine")
    parser.add_argument(
        "--accuracy", type=int, help="measure the loss by bfloat16 on this many pairs of --faces"
    )
    options = parser.parse_args()
    models = options.models or [default_recogniser_path()]
    if options.accuracy:
        if options.faces is None:
            parser.error("--accuracy needs the pairs of --faces")
        accuracy_lost(models, options.faces, options.accuracy)
        return
    kind = "real faces" if options.faces else "noise"
    print(f"threads {torch.get_num_threads()}, {options.images} images, {kind}\n")
    print("| model | engine | images per CPU-second | cosine to onnxruntime, mean / smallest |")
    print("|---|---|---|---|")
    for path in models:
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
