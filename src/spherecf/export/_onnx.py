"""A confidence model as one ONNX file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx

from spherecf.common.files import write_atomically
from spherecf.common.version import __version__
from spherecf.errors import InputError, ModelError
from spherecf.export._assemble import assemble
from spherecf.export._parity import TOLERANCE, Parity, measure, require
from spherecf.models import PREPROCESSING_KEY, ConfidenceModel, opset_of

Place = Literal["inside", "outside"]
Outputs = Literal["all", "embedding"]


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from the model.

    Attributes:
        path: the file; ``bytes`` and ``sha256`` are its own.
        preprocessing: "inside" or "outside".
        inputs, outputs: names to shapes, the first dimension any number of images.
        opset: of ONNX's operators in it, which the runtime must know.
        model: fingerprint of the model.
        parity: the largest differences between the file under onnxruntime and the model.
        missing: outputs that could not be written, with the reason.
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
        """JSON-able."""
        return asdict(self) | {"path": str(self.path), "parity": self.parity.to_dict()}


def export_onnx(
    model: ConfidenceModel,
    path: str | Path,
    *,
    preprocessing: Place = "inside",
    outputs: Outputs = "all",
    tolerance: Parity = TOLERANCE,
) -> ExportReport:
    """Write a model as one ONNX file for any number of images, once it was seen to say what the model says.

    Outputs: ``embedding`` (n, dim), the unit mu; ``log_kappa`` (n,); ``kappa_percentile`` (n,), 0 .. 100, of
    a calibrated model; ``log_precision`` (n, dim) of a head that gives one per coordinate. An image without
    a direction (a zero embedding) gives NaN where the model raises an error.

    Args:
        model: float32; its recogniser from an ONNX file, a checkpoint or a torch module.
        path: the file to write; its metadata hold fingerprints, preprocessing, radius and calibration.
        preprocessing: ``"inside"``: aligned uint8 RGB faces (n, height, width, 3) go in; ``"outside"``: the
            network's own float32 (n, 3, height, width).
        outputs: ``"all"``, or ``"embedding"`` alone for programs that insist on one.
        tolerance: differences beyond which the file is refused.

    Raises:
        InputError: another word for ``preprocessing`` or ``outputs``.
        ModelError: a network that takes one image at a time, cannot be written as ONNX or runs in bfloat16; a
            file larger than 2 GiB; differences beyond the tolerance. No file is left behind.
        StorageError: the folder is not writable or the disk full; an older file is intact.

    Example:
        >>> import tempfile, spherecf
        >>> report = export_onnx(spherecf.load(), Path(tempfile.mkdtemp()) / "sface.onnx")
        >>> report.inputs["image"], report.outputs["embedding"], report.parity.log_kappa < 1e-3
        ('uint8 (batch, 112, 112, 3)', 'float32 (batch, 128)', True)
    """
    _check("preprocessing", preprocessing, get_args(Place))
    _check("outputs", outputs, get_args(Outputs))
    made = assemble(model, inside=preprocessing == "inside", everything=outputs == "all")
    _describe(made, model, preprocessing)
    content = _serialized(made, model)
    parity = measure(model, content)
    require(parity, tolerance, model.backbone.name)
    written = write_atomically(path, lambda stream: stream.write(content))
    return ExportReport(
        written, len(content), hashlib.sha256(content).hexdigest(), preprocessing,
        {value.name: _shape(value) for value in made.graph.input},
        {value.name: _shape(value) for value in made.graph.output},
        opset_of(made), model.fingerprint(), parity, _missing(model, outputs),
    )  # fmt: skip


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


def _missing(model: ConfidenceModel, outputs: str) -> dict[str, str]:
    if outputs == "embedding" or (model.calibration is not None and model.calibration.kappa is not None):
        return {}
    reason = "the model is not calibrated: run `spherecf evaluate calibration --save` first"
    return {"kappa_percentile": reason}


def _describe(made: Any, model: ConfidenceModel, preprocessing: str) -> None:
    """Everything a program needs to know that finds nothing but the file."""
    pixels, calibration = model.backbone.preprocessing, model.calibration
    facts = {
        "spherecf.version": __version__,
        "spherecf.model": model.fingerprint(),
        "spherecf.backbone": model.backbone.sha256,
        "spherecf.backbone_name": model.backbone.name,
        PREPROCESSING_KEY: json.dumps(pixels.to_dict()),
        "spherecf.preprocessing_place": preprocessing,
        "spherecf.radius": repr(float(model.radius)),
        "spherecf.calibration": "" if calibration is None else json.dumps(calibration.to_dict()),
    }
    facts |= {entry.key: entry.value for entry in made.metadata_props}
    onnx.helper.set_model_props(made, facts)
    made.producer_name, made.producer_version = "spherecf", __version__
    made.doc_string = (
        "aligned uint8 RGB faces (n, height, width, 3)"
        if preprocessing == "inside"
        else f"aligned faces (n, 3, height, width), channels {pixels.color}, (pixel - mean) / std with mean "
        f"{pixels.mean} and std {pixels.std}"
    ) + " to unit embedding, log kappa and its percentile (von Mises-Fisher)"


def _serialized(made: Any, model: ConfidenceModel) -> bytes:
    try:
        content: bytes = made.SerializeToString()
        onnx.checker.check_model(content)
    except Exception as error:  # protobuf's and onnx' errors have no common base
        raise ModelError(f"{model.backbone.name}: cannot be written as one ONNX file: {error}") from error
    return content


def _shape(value: Any) -> str:
    tensor = value.type.tensor_type
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    dims = [d.dim_param or str(d.dim_value) for d in tensor.shape.dim]
    return f"{kind} ({', '.join(dims)}{',' if len(dims) == 1 else ''})"
