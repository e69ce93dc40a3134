"""Do all ways to run a model agree? The largest differences of mu and log kappa on real faces.

    python benchmarks/agreement.py [--model MODEL --backbone FILE] [--images N] [--compiled]
    python benchmarks/agreement.py [--model MODEL --backbone FILE] --pairs PAIRS.bin --images N [--compiled]

The reference is onnxruntime on all images at once. It is compared with other batch sizes, with torch in
float32 and bfloat16, and with the files written by `spherecf export onnx`. The images are ORL faces, detected
and aligned. With --pairs they are evenly spaced pairs of a pair file, and the ten-fold accuracy of both
scores is printed as well.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from spherecf.data import ImageError, PairBin, orl_faces
from spherecf.evaluation import tenfold
from spherecf.export import export_onnx
from spherecf.faces import AlignedFaces
from spherecf.models import ConfidenceModel, load
from spherecf.scoring import cosine_score, mutual_likelihood_score

Images = NDArray[np.uint8]
Outputs = tuple[Tensor, Tensor]  # mu, log kappa
Run = Callable[[Images], Outputs]
COLUMNS = "way to run it | angle of mu, mean / largest | smallest cosine | log kappa, mean / largest"
ACCURACIES = "accuracy, cosine | accuracy, MLS"


def orl(count: int) -> Images:
    """This many evenly spaced ORL images, aligned; images in which no face is detected are left out."""
    source, images = AlignedFaces(orl_faces()), []
    for index in np.unique(np.linspace(0, len(source) - 1, count).astype(int)):
        try:
            images.append(source.image(int(index)))
        except ImageError:
            continue
    return np.stack(images)


def by_batches(run: Run, size: int, images: Images) -> Outputs:
    """Run a function on batches of this size."""
    parts = [run(images[start : start + size]) for start in range(0, len(images), size)]
    mu, log_kappa = zip(*parts, strict=True)
    return torch.cat(mu), torch.cat(log_kappa)


def exported(model: ConfidenceModel, preprocessing: str, images: Images) -> Outputs:
    """Outputs of the exported file under plain onnxruntime, with preprocessing "inside" or "outside"."""
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(model, Path(folder) / "model.onnx", preprocessing=preprocessing).path
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = images if preprocessing == "inside" else model.backbone.preprocessing(images).contiguous().numpy()
    mu, log_kappa = session.run(["embedding", "log_kappa"], {"image": x})
    return torch.from_numpy(mu), torch.from_numpy(log_kappa)


def ways(open_model: Callable[..., ConfidenceModel], compiled: bool) -> Iterator[tuple[str, Run]]:
    """Names and functions; the first one is the reference."""
    reference = open_model(engine="onnxruntime")
    yield "onnxruntime", reference.embed
    for size in (1, 7):
        yield f"onnxruntime, {size} at a time", partial(by_batches, reference.embed, size)
    for engine in ("torch", "compiled") if compiled else ("torch",):
        for dtype in ("float32", "bfloat16"):
            embed = open_model(engine=engine, dtype=dtype).embed
            yield f"{engine} {dtype}", embed
            yield f"{engine} {dtype}, 7 at a time", partial(by_batches, embed, 7)
    for preprocessing in ("inside", "outside"):
        run = partial(exported, reference, preprocessing)
        yield f"exported, preprocessing {preprocessing}", partial(by_batches, run, 64)


def degrees(mu: Tensor, other: Tensor) -> Tensor:
    """Angles between unit vectors, from the chord, because the arc cosine is inaccurate for small angles."""
    chord = torch.linalg.vector_norm(mu.double() - other.double(), dim=1)
    return torch.rad2deg(2 * torch.arcsin(chord / 2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="default: the shipped model")
    parser.add_argument("--backbone", type=Path, help="its recogniser, if that is not SFace")
    parser.add_argument("--images", type=int, default=100, help="number of images, or of pairs with --pairs")
    parser.add_argument("--pairs", type=Path, help="a pair .bin file")
    parser.add_argument("--compiled", action="store_true", help="also run torch.compile: a minute per type")
    options = parser.parse_args()
    accuracy = None
    if options.pairs is None:
        images = orl(options.images)
        print(f"{len(images)} ORL faces\n")
    else:
        source = PairBin(options.pairs)
        rows = np.unique(np.linspace(0, len(source.pairs) - 1, options.images).astype(int))
        images = np.stack([source.image(2 * row + side) for row in rows for side in (0, 1)])
        accuracy = partial(tenfold, mated=source.pairs.mated[rows], folds=source.pairs.fold[rows])
        print(f"{len(rows)} pairs of {options.pairs.name}\n")
    header = f"| {COLUMNS} |" + (f" {ACCURACIES} |" if accuracy else "")
    print(header + "\n" + "|---" * (header.count("|") - 1) + "|")
    open_model = partial(load, options.model, options.backbone)
    radius, reference = open_model().radius, None
    for name, run in ways(open_model, options.compiled):
        mu, log_kappa = run(images)
        reference = reference or (mu, log_kappa)
        angle, change = degrees(mu, reference[0]), (log_kappa - reference[1]).abs()
        cells = [
            name, f"{angle.mean():.4f}° / {angle.max():.4f}°", f"{torch.deg2rad(angle.max()).cos():.7f}",
            f"{change.mean():.1e} / {change.max():.1e}",
        ]  # fmt: skip
        if accuracy:
            kappa = log_kappa.double().exp()
            mls = mutual_likelihood_score(mu[::2], kappa[::2], mu[1::2], kappa[1::2], radius)
            for scores in (cosine_score(mu[::2], mu[1::2]), mls):
                result = accuracy(scores.numpy())
                cells.append(f"{result.mean:.4f} +- {result.std:.4f}")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
