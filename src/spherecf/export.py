"""Export a confidence model as one ONNX file, for runtimes without torch or SphereCF."""

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor, nn

from spherecf.calibration import KappaScale
from spherecf.common.files import write_atomically
from spherecf.common.version import __version__
from spherecf.errors import InputError, ModelError
from spherecf.models import (
    ONNX_INPUT_KEY,
    PREPROCESSING_KEY,
    Centring,
    ConfidenceHead,
    ConfidenceModel,
    Preprocessing,
    opset_of,
    trace_onnx,
)

Columns = tuple[Tensor, ...]


class Pixels(nn.Module):
    """Convert uint8 RGB faces (n, height, width, 3) to the network's input (n, 3, height, width)."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        self._preprocessing = preprocessing

    def forward(self, images: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
        """See `Preprocessing.__call__`."""
        return self._preprocessing(images)


class Direction(nn.Module):
    """Normalise raw embeddings, (n, dim) or (n, dim, 1, 1), to directions ``mu`` (n, dim); centre them."""

    def __init__(self, centring: Centring | None = None) -> None:
        super().__init__()
        self.centring = centring

    def forward(self, embedding: Float[Tensor, "n dim ..."]) -> Float[Tensor, "n dim"]:
        """Divide by the L2 norm, then apply the centring, if any."""
        rows = embedding.flatten(1)
        mu: Tensor = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return mu if self.centring is None else self.centring(mu)


class Percentile(nn.Module):
    """`KappaScale.percentile` in float32: linear between knots, 0 below the first and 100 above the last.

    A sum of clipped segments replaces the search for the right interval, which ONNX lacks. With knots x,
    percentages y and slopes s the percentile is y_1 + sum_i s_i min(max(log kappa - x_i, 0), x_(i+1) - x_i).
    Knots that are equal in float32 are merged; the percentage of the last one is kept.

    Example:
        >>> scale = KappaScale.fit([10.0, 20.0, 40.0, 80.0], dim=128, population="four faces")
        >>> Percentile(scale)(torch.tensor([5.0, 10.0, 28.2843, 80.0, 99.0]).log()).round(decimals=1).tolist()
        [0.0, 12.5, 50.0, 87.5, 100.0]
    """

    knots: Tensor
    widths: Tensor
    slopes: Tensor

    def __init__(self, scale: KappaScale) -> None:
        super().__init__()
        x, y = np.array(scale.log_kappa, np.float32), np.array(scale.percent, np.float32)
        last = np.diff(x, append=np.inf) > 0
        x, y = x[last], y[last]
        widths = np.diff(x)
        # A final segment of zero width: a scale with a single knot would otherwise have none.
        self.register_buffer("knots", torch.from_numpy(x))
        self.register_buffer("widths", torch.from_numpy(np.append(widths, np.float32(0))))
        self.register_buffer("slopes", torch.from_numpy(np.append(np.diff(y) / widths, np.float32(0))))
        self.first = float(y[0])

    def forward(self, log_kappa: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """Percentage (n,) of the reference population with a lower kappa."""
        inside = torch.minimum((log_kappa[:, None] - self.knots).relu(), self.widths)
        percent = self.first + (inside * self.slopes).sum(1)
        percent = torch.where(log_kappa < self.knots[0], 0.0, percent)
        return torch.where(log_kappa > self.knots[-1], 100.0, percent)


class Confidence(nn.Module):
    """Map (embedding, features) to mu, log kappa and, where available, percentile and log precisions."""

    def __init__(self, head: ConfidenceHead, scale: KappaScale | None, direction: Direction) -> None:
        super().__init__()
        self.head, self.direction = head, direction
        self.percentile = None if scale is None else Percentile(scale)

    @property
    def names(self) -> list[str]:
        """Names of the outputs, in order."""
        names = ["embedding", "log_kappa"]
        names += [] if self.percentile is None else ["kappa_percentile"]
        return names + (["log_precision"] if self.head.outputs > 1 else [])

    def forward(
        self, embedding: Float[Tensor, "n dim ..."], features: Float[Tensor, "n channels height width"]
    ) -> Columns:
        """The outputs in the order of `names`."""
        outputs = self.head(self.head.pool_features(features, embedding.flatten(1)))
        log_kappa = self.head.to_log_kappa(outputs)
        columns = [self.direction(embedding), log_kappa]
        columns += [] if self.percentile is None else [self.percentile(log_kappa)]
        return tuple(columns + ([outputs] if outputs.ndim == 2 else []))


IMAGE = "image"


def assemble(model: ConfidenceModel, *, inside: bool, everything: bool) -> Any:
    """Join preprocessing, network and head, three graphs of the same opset, into one ``onnx.ModelProto``.

    The network's graph is used unchanged: the exported file gives the same results under onnxruntime as the
    original file. Its tensor names get a prefix to avoid collisions with the names of the outputs.

    Args:
        model: recogniser and head.
        inside: True if the input is uint8 faces, False if it is the preprocessed tensor.
        everything: True for all outputs, False for the embedding only.

    Raises:
        ModelError: the network or the head cannot be written as ONNX.
    """
    network = model.backbone.to_onnx()
    opset = opset_of(network)
    network = onnx.compose.add_prefix(network, "network/")
    start = network.graph.input[0].name
    first = _pixels(model, start, opset) if inside else _identity_graph(model, start)
    last = _confidence(model, [o.name for o in network.graph.output], opset, everything)
    body = helper.make_graph(
        [*first.node, *network.graph.node, *last.node], "spherecf", list(first.input), list(last.output),
        [*first.initializer, *network.graph.initializer, *last.initializer],
    )  # fmt: skip
    exported = helper.make_model(
        body, opset_imports=list(network.opset_import), ir_version=network.ir_version
    )
    if inside:
        helper.set_model_props(exported, {ONNX_INPUT_KEY: start})
    return exported


def _pixels(model: ConfidenceModel, end: str, opset: int) -> Any:
    size = model.backbone.preprocessing.size
    images = torch.zeros(2, *size, 3, dtype=torch.uint8)
    traced = trace_onnx(Pixels(model.backbone.preprocessing), {IMAGE: images}, [end], opset)
    return _prefixed(traced, "pixels/")


def _identity_graph(model: ConfidenceModel, end: str) -> Any:
    shape: list[str | int | None] = ["batch", 3, *model.backbone.preprocessing.size]
    image = helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, shape)
    same = helper.make_tensor_value_info(end, TensorProto.FLOAT, shape)
    return helper.make_graph([helper.make_node("Identity", [IMAGE], [end])], "identity", [image], [same])


def _confidence(model: ConfidenceModel, inputs: list[str], opset: int, everything: bool) -> Any:
    backbone, calibration = model.backbone, model.calibration
    shapes = (2, backbone.dim), (2, *backbone.feature_shape)
    examples = {name: torch.ones(shape) for name, shape in zip(inputs, shapes, strict=True)}
    # Copies leave the caller's device and mode unchanged.
    direction = Direction(copy.deepcopy(model.centring)).cpu()
    if everything:
        head = copy.deepcopy(model.head).cpu()
        tail = Confidence(head, None if calibration is None else calibration.kappa, direction)
        traced = trace_onnx(tail, examples, tail.names, opset)
    else:
        traced = trace_onnx(direction, {inputs[0]: examples[inputs[0]]}, ["embedding"], opset)
    return _prefixed(traced, "confidence/")


def _prefixed(model: Any, prefix: str) -> Any:
    """The model's graph with prefixed inner names; inputs and outputs keep theirs, which join the graphs."""
    return onnx.compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False).graph


BATCHES = (1, 2, 7)  # batch sizes to compare, each with different images


@dataclass(frozen=True)
class Parity:
    """The largest differences between an exported file and the model, or the tolerances for them.

    Attributes:
        mu: norm of mu - mu'; 1e-3 is an angle of 0.06 degrees, a cosine of 1 - 5e-7.
        log_kappa: difference of log kappa, which is the relative difference of kappa.
        percentile: difference of the percentile, in percentage points.
        batches: batch sizes that were compared.
    """

    mu: float
    log_kappa: float = 0.0
    percentile: float = 0.0
    batches: tuple[int, ...] = BATCHES

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-serialisable dictionary."""
        return asdict(self) | {"batches": list(self.batches)}


TOLERANCE = Parity(mu=1e-3, log_kappa=2e-3, percentile=0.5)
"""Default tolerances; a file that exceeds any of them is not written."""


def smooth_images(count: int, size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """Random images (count, height, width, 3) with the smoothness and contrast range of faces."""
    random = np.random.default_rng(seed)
    height, width = size
    images = np.empty((count, height, width, 3), np.uint8)
    for image in images:
        coarse = random.normal(128, random.uniform(10, 70), (8, 8, 3)).astype(np.float32)
        fine = random.normal(0, random.uniform(0, 8), (height, width, 3))
        large = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        image[:] = (large + fine).clip(0, 255)
    return images


def measure(model: ConfidenceModel, content: bytes) -> Parity:
    """Largest differences between the model, run on all images at once, and the file, run on `BATCHES`.

    The percentile is compared with the one computed from the file's log kappa.

    Raises:
        ModelError: onnxruntime cannot run the file.
    """
    images = smooth_images(sum(BATCHES), model.backbone.preprocessing.size)
    expected, got = model.outputs(images), _run(content, model, images)
    differences = {"mu": np.linalg.norm(got["embedding"] - expected.mu.cpu().numpy(), axis=1)}
    if "log_kappa" in got:
        differences["log_kappa"] = np.abs(got["log_kappa"] - expected.log_kappa.cpu().numpy())
    if "kappa_percentile" in got:
        assert model.calibration is not None and model.calibration.kappa is not None
        percentile = model.calibration.kappa.percentile(np.exp(got["log_kappa"].astype(np.float64)))
        differences["percentile"] = np.abs(got["kappa_percentile"] - percentile)
    largest = {name: float(values.max()) for name, values in differences.items()}
    return Parity(largest["mu"], largest.get("log_kappa", 0.0), largest.get("percentile", 0.0))


def _run(content: bytes, model: ConfidenceModel, images: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    try:
        session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
        names, graph_input = [output.name for output in session.get_outputs()], session.get_inputs()[0]
        inside = graph_input.type == "tensor(uint8)"
        values = images if inside else model.backbone.preprocessing(images).numpy()
        batches = np.split(np.ascontiguousarray(values), np.cumsum(BATCHES)[:-1])
        columns = zip(*(session.run(names, {graph_input.name: batch}) for batch in batches), strict=True)
        return {name: np.concatenate(column) for name, column in zip(names, columns, strict=True)}
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise ModelError(
            f"{model.backbone.name}: onnxruntime cannot run the exported file on {BATCHES} images; "
            f"nothing was written: {str(error).strip()}"
        ) from error


def require(parity: Parity, tolerance: Parity, name: str) -> None:
    """Check that no difference exceeds the tolerance or is NaN.

    Raises:
        ModelError: otherwise; the message lists all differences and tolerances.
    """
    fields = ("mu", "log_kappa", "percentile")
    if not all(getattr(parity, field) <= getattr(tolerance, field) for field in fields):
        listing = ", ".join(f"{f} {getattr(parity, f):.1e} ({getattr(tolerance, f):.0e})" for f in fields)
        raise ModelError(
            f"{name}: the exported file under onnxruntime disagrees with the model; nothing was written. "
            f"Largest differences (tolerance): {listing}"
        )


PreprocessingPlace = Literal["inside", "outside"]
Outputs = Literal["all", "embedding"]


@dataclass(frozen=True)
class ExportReport:
    """The exported file and its largest differences from the model.

    Attributes:
        path: the file.
        bytes, sha256: its size and hash.
        preprocessing: "inside" or "outside" the file.
        inputs, outputs: shape by name; the first dimension is any number of images.
        opset: ONNX operator set that the runtime must support.
        model: fingerprint of the model.
        parity: largest differences between the file under onnxruntime and the model.
        missing: reason by name of each output that the model cannot provide.
    """

    path: Path
    bytes: int
    sha256: str
    preprocessing: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    opset: int
    model: str
    parity: Parity
    missing: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-serialisable dictionary."""
        return asdict(self) | {"path": str(self.path), "parity": self.parity.to_dict()}


def export_onnx(
    model: ConfidenceModel,
    path: str | Path,
    *,
    preprocessing: PreprocessingPlace = "inside",
    outputs: Outputs = "all",
    tolerance: Parity = TOLERANCE,
) -> ExportReport:
    """Write a model as one ONNX file with a dynamic batch size, after checking that the two agree.

    Outputs: ``embedding`` (n, dim), the unit direction mu; ``log_kappa`` (n,); ``kappa_percentile`` (n,),
    0 .. 100, if the model is calibrated; ``log_precision`` (n, dim) if the head outputs one per coordinate.
    For a zero embedding, which has no direction, the file gives NaN, whereas the model raises an error.

    Args:
        model: in float32; its recogniser comes from an ONNX file, a checkpoint or a torch module.
        path: the file to write; its metadata contain fingerprints, preprocessing, radius and calibration.
        preprocessing: ``"inside"``: the input is aligned uint8 RGB faces (n, height, width, 3);
            ``"outside"``: the input is the network's float32 tensor (n, 3, height, width).
        outputs: ``"all"``, or ``"embedding"`` for programs that accept only one output.
        tolerance: maximum differences to accept.

    Raises:
        InputError: unknown ``preprocessing`` or ``outputs``.
        ModelError: the network takes one image at a time, cannot be written as ONNX, or runs in bfloat16 or
            TF32; the file would exceed 2 GiB; or a difference exceeds the tolerance. No file is written.
        StorageError: the folder is not writable or the disk is full; an older file is kept.

    Example:
        >>> from pathlib import Path
        >>> import tempfile, spherecf
        >>> report = export_onnx(spherecf.load(), Path(tempfile.mkdtemp()) / "sface.onnx")
        >>> report.inputs["image"], report.outputs["embedding"], report.parity.log_kappa < 1e-3
        ('uint8 (batch, 112, 112, 3)', 'float32 (batch, 128)', True)
    """
    _check_choice("preprocessing", preprocessing, get_args(PreprocessingPlace))
    _check_choice("outputs", outputs, get_args(Outputs))
    exported = assemble(model, inside=preprocessing == "inside", everything=outputs == "all")
    _add_metadata(exported, model, preprocessing)
    content = _serialized(exported, model)
    parity = measure(model, content)
    require(parity, tolerance, model.backbone.name)
    written = write_atomically(path, lambda stream: stream.write(content))
    return ExportReport(
        written, len(content), hashlib.sha256(content).hexdigest(), preprocessing,
        {value.name: _shape(value) for value in exported.graph.input},
        {value.name: _shape(value) for value in exported.graph.output},
        opset_of(exported), model.fingerprint(), parity, _missing_outputs(model, outputs),
    )  # fmt: skip


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _missing_outputs(model: ConfidenceModel, outputs: str) -> dict[str, str]:
    if outputs == "embedding" or (model.calibration is not None and model.calibration.kappa is not None):
        return {}
    reason = "the model is not calibrated: run `spherecf evaluate calibration --save` first"
    return {"kappa_percentile": reason}


def _add_metadata(exported: Any, model: ConfidenceModel, preprocessing: str) -> None:
    """Add everything to the metadata that a program needs to use the file by itself."""
    pixels, calibration = model.backbone.preprocessing, model.calibration
    facts = {
        "spherecf.version": __version__,
        "spherecf.model": model.fingerprint(),
        "spherecf.backbone": model.backbone.sha256,
        # File names may not be UTF-8, texts of ONNX must be.
        "spherecf.backbone_name": model.backbone.name.encode("utf-8", "backslashreplace").decode(),
        PREPROCESSING_KEY: json.dumps(pixels.to_dict()),
        "spherecf.preprocessing_place": preprocessing,
        "spherecf.radius": repr(float(model.radius)),
        "spherecf.calibration": "" if calibration is None else json.dumps(calibration.to_dict()),
    }
    facts |= {entry.key: entry.value for entry in exported.metadata_props}
    onnx.helper.set_model_props(exported, facts)
    exported.producer_name, exported.producer_version = "spherecf", __version__
    exported.doc_string = (
        "aligned uint8 RGB faces (n, height, width, 3)"
        if preprocessing == "inside"
        else f"aligned faces (n, 3, height, width), channels {pixels.color}, (pixel - mean) / std with mean "
        f"{pixels.mean} and std {pixels.std}"
    ) + " to unit embedding, log kappa and its percentile (von Mises-Fisher)"


def _serialized(exported: Any, model: ConfidenceModel) -> bytes:
    try:
        content: bytes = exported.SerializeToString()
        onnx.checker.check_model(content)
    except Exception as error:  # the exceptions of protobuf and onnx have no common base class
        raise ModelError(f"{model.backbone.name}: cannot be written as one ONNX file: {error}") from error
    return content


def _shape(value: Any) -> str:
    tensor = value.type.tensor_type
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    dims = [d.dim_param or str(d.dim_value) for d in tensor.shape.dim]
    return f"{kind} ({', '.join(dims)}{',' if len(dims) == 1 else ''})"


__all__ = ["export_onnx"]
