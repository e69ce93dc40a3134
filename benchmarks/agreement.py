"""Does every way to run a model say the same? The largest differences of mu and log kappa on real faces.

    python benchmarks/agreement.py [--model MODEL --backbone FILE] [--images N] [--compiled]
    python benchmarks/agreement.py [--model MODEL --backbone FILE] --pairs PAIRS.bin --images N [--compiled]

onnxruntime on all images at once is compared with other batch sizes, with torch in float32 and bfloat16, and
with the files that `spherecf export onnx` writes. Faces are the ORL ones, found and aligned; with --pairs
those of a pair file, evenly spaced over it, and the ten-fold accuracy of both scores is printed, too.
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
Said = tuple[Tensor, Tensor]
Run = Callable[[Images], Said]
COLUMNS = "way to run it | angle of mu, mean / largest | smallest cosine | log kappa, mean / largest"
ACCURACIES = "accuracy, cosine | accuracy, MLS"


def orl(count: int) -> Images:
    """That many ORL faces, evenly spaced; those without a face found are left out."""
    source, found = AlignedFaces(orl_faces()), []
    for index in np.unique(np.linspace(0, len(source) - 1, count).astype(int)):
        try:
            found.append(source.image(int(index)))
        except ImageError:
            continue
    return np.stack(found)


def by_batches(run: Run, size: int, images: Images) -> Said:
    """The same, that many images at a time."""
    parts = [run(images[start : start + size]) for start in range(0, len(images), size)]
    mu, log_kappa = zip(*parts, strict=True)
    return torch.cat(mu), torch.cat(log_kappa)


def exported(model: ConfidenceModel, place: str, images: Images) -> Said:
    """What the exported file says under plain onnxruntime."""
    with tempfile.TemporaryDirectory() as folder:
        path = export_onnx(model, Path(folder) / "model.onnx", preprocessing=place).path
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = images if place == "inside" else model.backbone.preprocessing(images).contiguous().numpy()
    mu, log_kappa = session.run(["embedding", "log_kappa"], {"image": x})
    return torch.from_numpy(mu), torch.from_numpy(log_kappa)


def ways(open_model: Callable[..., ConfidenceModel], compiled: bool) -> Iterator[tuple[str, Run]]:
    """Names and functions, the first one being what the others are compared with."""
    reference = open_model(engine="onnxruntime")
    yield "onnxruntime", reference.embed
    for size in (1, 7):
        yield f"onnxruntime, {size} at a time", partial(by_batches, reference.embed, size)
    for engine in ("torch", "compiled") if compiled else ("torch",):
        for dtype in ("float32", "bfloat16"):
            embed = open_model(engine=engine, dtype=dtype).embed
            yield f"{engine} {dtype}", embed
            yield f"{engine} {dtype}, 7 at a time", partial(by_batches, embed, 7)
    for place in ("inside", "outside"):
        run = partial(exported, reference, place)
        yield f"exported, preprocessing {place}", partial(by_batches, run, 64)


def degrees(mu: Tensor, other: Tensor) -> Tensor:
    """Between rows of unit vectors, from the chord: an arc cosine cannot tell small angles."""
    chord = torch.linalg.vector_norm(mu.double() - other.double(), dim=1)
    return torch.rad2deg(2 * torch.arcsin(chord / 2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="default: the one that ships with SphereCF")
    parser.add_argument("--backbone", type=Path, help="its recogniser, where that is not SFace")
    parser.add_argument("--images", type=int, default=100, help="faces, or pairs with --pairs")
    parser.add_argument("--pairs", type=Path, help="a pair .bin file")
    parser.add_argument("--compiled", action="store_true", help="torch.compile too: a minute per type")
    options = parser.parse_args()
    accuracy = None
    if options.pairs is None:
        images = orl(options.images)
        print(f"{len(images)} ORL faces\n")
    else:
        source = PairBin(options.pairs)
        chosen = np.unique(np.linspace(0, len(source.pairs) - 1, options.images).astype(int))
        images = np.stack([source.image(2 * i + side) for i in chosen for side in (0, 1)])
        accuracy = partial(tenfold, mated=source.pairs.mated[chosen], folds=source.pairs.fold[chosen])
        print(f"{len(chosen)} pairs of {options.pairs.name}\n")
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
