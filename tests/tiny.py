"""A recogniser, a model and images small enough for tests of the whole path from images to embeddings."""

from pathlib import Path

import cv2
import numpy as np
import onnx
import torch
from tests.models import graphs

from spherecf.models import ConfidenceModel, FrozenBackbone, Preprocessing
from spherecf.models.heads import LinearHead

TINY = Preprocessing("rgb", 127.5, 127.5, (16, 16))


def tiny_file(folder: Path) -> Path:
    """An ONNX recogniser for 16x16 images, with 48-d embeddings."""
    path = folder / "tiny.onnx"
    onnx.save(graphs.iresnet(), path)
    return path


def tiny_model(folder: Path, seed: int = 0) -> ConfidenceModel:
    """The recogniser with an untrained head, whose kappa still differs between images."""
    torch.manual_seed(seed)
    backbone = FrozenBackbone.from_onnx(tiny_file(folder), preprocessing=TINY)
    return ConfidenceModel(backbone, LinearHead(*backbone.feature_shape))


def oblong_model(folder: Path) -> ConfidenceModel:
    """A recogniser for images of 8x32 in ``oblong.onnx``, with an untrained head."""
    onnx.save(graphs.oblong(), folder / "oblong.onnx")
    pixels = Preprocessing("rgb", 127.5, 127.5, (8, 32))
    backbone = FrozenBackbone.from_onnx(folder / "oblong.onnx", preprocessing=pixels)
    return ConfidenceModel(backbone, LinearHead(*backbone.feature_shape))


def picture(seed: int, size: int = 16) -> np.ndarray:
    """A smooth random image."""
    noise = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.5), np.uint8)


def write_people(folder: Path, people: int = 4, pictures: int = 3) -> Path:
    """Write ``people/pN/M.png``; all images are usable."""
    root = folder / "people"
    for person in range(people):
        for number in range(pictures):
            path = root / f"p{person}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", picture(100 * person + number))[1].tobytes())
    return root


def spoil(root: Path) -> dict[str, str]:
    """Make three images unusable, each in a different way; returns the expected reason by key."""
    content = (root / "p0" / "1.png").read_bytes()
    (root / "p0" / "1.png").write_bytes(content[: len(content) // 2])
    (root / "p1" / "0.png").write_text("this is text")
    (root / "p3" / "2.png").write_bytes(cv2.imencode(".png", picture(1, 20))[1].tobytes())
    return {
        "p0/1.png": "truncated image",
        "p1/0.png": "not an image",
        "p3/2.png": "expected an image of 16x16 (height x width), got 20x20",
    }
