"""Does an exported file say what the model says? Both are asked about the same pictures."""

from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from spherecf.errors import ModelError
from spherecf.models import ConfidenceModel

BATCHES = (1, 2, 7)  # sizes that are tried, each with pictures of its own


@dataclass(frozen=True)
class Parity:
    """The largest differences between an exported file and the model, or how large they may be.

    Attributes:
        mu: of directions, the length of mu - mu': 1e-3 is 0.06 degrees, a cosine of 1 - 5e-7.
        log_kappa: of log kappa, which is the relative difference of kappa.
        percentile: of the percentile, in points of 0 .. 100.
        batches: sizes of the batches they were measured with.
    """

    mu: float
    log_kappa: float = 0.0
    percentile: float = 0.0
    batches: tuple[int, ...] = BATCHES

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self) | {"batches": list(self.batches)}


TOLERANCE = Parity(mu=1e-3, log_kappa=2e-3, percentile=0.5)
"""Beyond any of these a file is refused."""


def smooth_pictures(count: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Random pictures (count, height, width, 3) as smooth and as varied in contrast as faces are."""
    random = np.random.default_rng(seed)
    height, width = size
    pictures = np.empty((count, height, width, 3), np.uint8)
    for picture in pictures:
        coarse = random.normal(128, random.uniform(10, 70), (8, 8, 3)).astype(np.float32)
        fine = random.normal(0, random.uniform(0, 8), (height, width, 3))
        large = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        picture[:] = (large + fine).clip(0, 255)
    return pictures


def measure(model: ConfidenceModel, content: bytes) -> Parity:
    """The largest differences over `BATCHES`; the model judges all pictures at once, the file batch by batch.

    The percentile is compared with what the scale says of the file's own log kappa.

    Raises:
        ModelError: onnxruntime cannot run the file.
    """
    pictures = smooth_pictures(sum(BATCHES), model.backbone.preprocessing.size)
    said, got = model.outputs(pictures), _run(content, model, pictures)
    differences = {"mu": np.linalg.norm(got["embedding"] - said.mu.cpu().numpy(), axis=1)}
    if "log_kappa" in got:
        differences["log_kappa"] = np.abs(got["log_kappa"] - said.log_kappa.cpu().numpy())
    if "kappa_percentile" in got:
        assert model.calibration is not None and model.calibration.kappa is not None
        expected = model.calibration.kappa.percentile(np.exp(got["log_kappa"].astype(np.float64)))
        differences["percentile"] = np.abs(got["kappa_percentile"] - expected)
    largest = {name: float(values.max()) for name, values in differences.items()}
    return Parity(largest["mu"], largest.get("log_kappa", 0.0), largest.get("percentile", 0.0))


def _run(content: bytes, model: ConfidenceModel, pictures: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        names, image = [output.name for output in session.get_outputs()], session.get_inputs()[0]
        inside = image.type == "tensor(uint8)"
        images = pictures if inside else model.backbone.preprocessing(pictures).numpy()
        parts = np.split(np.ascontiguousarray(images), np.cumsum(BATCHES)[:-1])
        columns = zip(*(session.run(names, {image.name: part}) for part in parts), strict=True)
        return {name: np.concatenate(column) for name, column in zip(names, columns, strict=True)}
    except Exception as error:  # onnxruntime's errors have no common base
        raise ModelError(
            f"{model.backbone.name}: onnxruntime cannot run the exported file on {BATCHES} images, nothing "
            f"was written: {str(error).strip()}"
        ) from error


def require(parity: Parity, tolerance: Parity, name: str) -> None:
    """Refuse what differs by more than is tolerated, or is not a number.

    Raises:
        ModelError: with all differences, and how large they may be.
    """
    kinds = ("mu", "log_kappa", "percentile")
    if not all(getattr(parity, kind) <= getattr(tolerance, kind) for kind in kinds):
        listing = ", ".join(f"{k} {getattr(parity, k):.1e} ({getattr(tolerance, k):.0e})" for k in kinds)
        raise ModelError(
            f"{name}: the exported file, run by onnxruntime, does not agree with the model; nothing was "
            f"written. Largest differences (and allowed): {listing}"
        )
