"""Read an ONNX file with all of its weights, compute its hash, and query and edit its graph."""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from spherecf.common.files import describe_content
from spherecf.errors import ModelError
from spherecf.models.network import Shape

Model = Any  # the generated classes onnx.ModelProto, onnx.NodeProto and onnx.TensorProto have no usable types
Node = Any
StoredTensor = Any

MAX_BYTES = 2**31 - 1  # of one file, a limit of the format
TYPE_NAMES: dict[int, str] = {number: name for name, number in TensorProto.DataType.items()}
# Bits per value of types that share bytes.
PACKED = {"INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2, "FLOAT4": 4, "FLOAT6": 6}


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX model before any repair.

    Attributes:
        model: contains all weights, also those from external files.
        name: the file's stem, or the graph's name.
        sha256: hash of the file's bytes. For a file with external weights, the hash of the same model in one
            file, as ``onnx.save(onnx.load(path), ...)`` writes it: names and layout of the external files do
            not matter.
        former_sha256: hash of the graph's file without external weights, by which earlier versions of
            SphereCF identified such a model; "" if there are none.
    """

    model: Model
    name: str
    sha256: str
    former_sha256: str = ""


def read_onnx(source: str | Path | Model) -> OnnxFile:
    """Read a model file, or copy an ``onnx.ModelProto``, and check the data of every tensor.

    Raises:
        ModelError: not an ONNX file, unreadable, truncated, or larger than 2 GiB with its weights; external
            weights that are missing, too short or outside the file's folder; or a tensor whose data do not
            fit its shape.
    """
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        name, former = source.graph.name or "model", ""
        external = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
        if external:
            raise ModelError(
                f"{name}: {len(external)} tensors ({external[0].name}, ...) are stored in other files, whose "
                f"folder a loaded model does not know; give the path of the file, or load it with its "
                f"weights by onnx.load(path)"
            )
        _check_names(model, name)
        sha256 = hashlib.sha256(serialized(model, name)).hexdigest()
    else:
        path, name, former = Path(source), Path(source).stem, ""
        try:
            if not path.is_file():
                raise ModelError(f"{path}: no such file; expected an ONNX file")
            content = path.read_bytes()
            model, sha256 = _parse(path, content), hashlib.sha256(content).hexdigest()
            _check_names(model, name)
            n_attached = _attach_weights(model, path)
        except OSError as error:
            raise ModelError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
        if n_attached:
            sha256, former = hashlib.sha256(serialized(model, name)).hexdigest(), sha256
    for tensor in _tensors(model):
        _check(tensor, name)
    return OnnxFile(model, name, sha256, former)


def serialized(model: Model, name: str) -> bytes:
    """Serialise a model with all of its weights.

    Raises:
        ModelError: it is larger than 2 GiB.
    """
    try:
        content: bytes = model.SerializeToString()
    except Exception as error:  # protobuf's EncodeError, which onnx does not export
        raise ModelError(f"{name}: larger than 2 GiB with its weights, which ONNX cannot hold") from error
    return content


def as_array(tensor: StoredTensor, owner: str) -> NDArray[Any]:
    """The values of a stored tensor; ``owner`` is the model's name for error messages.

    Raises:
        ModelError: its data do not fit its type and shape.

    Example:
        >>> as_array(helper.make_tensor("shape", TensorProto.INT64, [2], [1, 512]), "tiny").tolist()
        [1, 512]
    """
    _check(tensor, owner)
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:  # from NumPy, ml_dtypes or onnx: the data are invalid for the type
        raise ModelError(f"{owner}: tensor {_label(tensor)} cannot be read: {error}") from error


def _parse(path: Path, content: bytes) -> Model:
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's DecodeError, which onnx does not export
        raise ModelError(
            f"{path}: not a readable ONNX file ({len(content)} bytes): it is {describe_content(path)}, or "
            f"truncated; download or export it again"
        ) from error
    return model


def _check_names(model: Model, owner: str) -> None:
    """Reject names that are not valid UTF-8, which protobuf returns as bytes."""
    pending: list[Any] = [model]
    while pending:
        for descriptor, value in pending.pop().ListFields():
            values = [value] if isinstance(value, str | bytes) or hasattr(value, "ListFields") else value
            if descriptor.type == descriptor.TYPE_MESSAGE:
                pending += values
            elif descriptor.type == descriptor.TYPE_STRING:
                for text in values:
                    if isinstance(text, bytes):
                        raise ModelError(
                            f"{owner}: {descriptor.name} {text!r} is not valid UTF-8: the file is damaged"
                        )


def _tensors(model: Model) -> Iterator[StoredTensor]:
    """Yield every stored tensor: weights and constants, also those of subgraphs and functions."""
    pending: list[Any] = [model.graph, *model.functions]
    while pending:
        part = pending.pop()
        if isinstance(part, onnx.GraphProto):
            yield from part.initializer
            for sparse in part.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in part.node:
            for attribute in node.attribute:
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            pending += subgraphs(node)


def _attach_weights(model: Model, path: Path) -> int:
    """Read external weights into the model; return the number of tensors.

    The result is byte-identical to that of ``onnx.load``, which follows links and does not check sizes.
    """
    count, total = 0, 0
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        facts = {entry.key: entry.value for entry in tensor.external_data}
        file = _external_file(path, tensor, facts.get("location", ""))
        size, needed = file.stat().st_size, _byte_count(tensor, path.name)
        offset = _byte_entry(path, tensor, facts, "offset", 0)
        length = _byte_entry(path, tensor, facts, "length", size - offset)
        total += needed
        if offset + needed > size or length != needed:
            raise ModelError(
                f"{path}: tensor {_label(tensor)} of shape {tuple(tensor.dims)} needs {needed} bytes, but "
                f"{file} ({size} bytes) should have {length} of them from byte {offset}: the files do not "
                f"belong together, or one is truncated"
            )
        if total > MAX_BYTES:
            raise ModelError(f"{path}: at least {total} bytes of weights; an ONNX model holds 2 GiB at most")
        with file.open("rb") as stream:
            stream.seek(offset)
            tensor.raw_data = stream.read(needed)
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]
        count += 1
    return count


def _external_file(path: Path, tensor: StoredTensor, location: str) -> Path:
    """The file with a tensor's external weights, which must be in the graph's folder or below it."""
    subject = f"{path}: the weights of {_label(tensor)} are stored outside the file, in {location!r}"
    parts = {part for kind in (PurePosixPath, PureWindowsPath) for part in kind(location).parts}
    rooted = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    if not location or rooted or ".." in parts or "\0" in location:
        raise ModelError(f"{subject}, which is not inside its folder: such a file is not opened")
    file = path.parent / location
    try:
        regular = file.is_file()
    except OSError:  # a name that is too long
        regular = False
    if not regular:
        raise ModelError(f"{subject}, which is missing: copy that file next to it, under its original name")
    return file


def _byte_entry(path: Path, tensor: StoredTensor, facts: dict[str, str], key: str, default: int) -> int:
    text = facts.get(key, str(default))
    if not text.isdecimal() or len(text) > len(str(2**63)):
        raise ModelError(
            f"{path}: tensor {_label(tensor)}: expected a number of bytes as {key}, found {text!r}"
        )
    return int(text)


def _check(tensor: StoredTensor, owner: str) -> None:
    """Reject a tensor whose data do not match its shape in size; nothing is copied."""
    needed, count = _byte_count(tensor, owner), prod(tensor.dims)
    if tensor.HasField("raw_data"):
        stored, needed, unit = len(tensor.raw_data), needed, "bytes"
    elif tensor.data_type == TensorProto.STRING:
        stored, needed, unit = len(tensor.string_data), count, "texts"
    else:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        per_item = 2 if "COMPLEX" in type_name(tensor.data_type) else 1
        stored, needed, unit = len(getattr(tensor, field)), min(needed, count * per_item), "numbers"
    if stored != needed:
        raise ModelError(
            f"{owner}: tensor {_label(tensor)} of shape {tuple(tensor.dims)} should hold {needed} {unit}, "
            f"found {stored}: the file is damaged"
        )


def _byte_count(tensor: StoredTensor, owner: str) -> int:
    """Number of bytes of a tensor of this type and shape."""
    kind = type_name(tensor.data_type)
    if min(tensor.dims, default=0) < 0 or kind in ("UNDEFINED", "unknown"):
        raise ModelError(
            f"{owner}: tensor {_label(tensor)} has the shape {tuple(tensor.dims)} and the type {kind}: the "
            f"file is damaged, or needs a newer onnx than {onnx.__version__}"
        )
    unpacked = 8 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    bits = next((bits for start, bits in PACKED.items() if kind.startswith(start)), unpacked)
    return -(-int(prod(tensor.dims)) * bits // 8)


def type_name(kind: int) -> str:
    """ONNX's name of a tensor type.

    Example:
        >>> type_name(TensorProto.FLOAT16), type_name(99)
        ('FLOAT16', 'unknown')
    """
    return TYPE_NAMES.get(kind, "unknown")


def _label(tensor: StoredTensor) -> str:
    return repr(tensor.name) if tensor.name else "without a name"


OLDEST_OPSET, SAFE_OPSET = 7, 13
OLDEST_IR, NEWEST_IR = 4, 10

# Metadata key of a file with preprocessing inside: the tensor that is the network's input.
ONNX_INPUT_KEY = "spherecf.input"

MAX_SHAPE_VALUES = 64  # size of a stored tensor from which a shape may be computed


@dataclass
class OnnxGraph:
    """A repaired recogniser graph.

    Attributes:
        model: the ONNX model, with a dynamic batch size and a float32 input (n, 3, height, width).
        name: the file's stem, or the graph's name.
        sha256, former_sha256: see `OnnxFile`.
        image: name of the image input.
        size: (height, width) of the images, None if the graph takes any size.
        takes_bytes: whether the original graph takes uint8 pixels, so that only integers 0..255 make sense.
        repairs: one sentence per repair.
    """

    model: Model
    name: str
    sha256: str
    former_sha256: str = ""
    image: str = ""
    size: tuple[int, int] | None = None
    takes_bytes: bool = False
    repairs: list[str] = field(default_factory=list)

    @property
    def metadata(self) -> dict[str, str]:
        """The key-value metadata of the file."""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    def serialized(self) -> bytes:
        """The bytes of the repaired model."""
        return serialized(self.model, self.name)


def attributes(node: Node) -> dict[str, Any]:
    """A node's attributes as Python values (strings decoded, tensors unchanged).

    Raises:
        ModelError: an attribute without a value, or text that is not valid UTF-8.
    """
    try:
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
    except ValueError as error:
        label = node.name or ", ".join(node.output)
        raise ModelError(f"{node.op_type} (node {label}): an attribute cannot be read: {error}") from error


def reads(node: Node) -> list[str]:
    """Tensors that a node reads: its inputs, and outer tensors used by its subgraphs (of If and Loop)."""
    names = list(node.input)
    for inner in subgraphs(node):
        local = {v.name for v in (*inner.input, *inner.initializer)}
        local.update(name for step in inner.node for name in step.output)
        needed = [name for step in inner.node for name in reads(step)] + [o.name for o in inner.output]
        names += [name for name in needed if name not in local]
    return names


def subgraphs(node: Node) -> list[Any]:
    """The graphs inside a node (of If and Loop)."""
    return [graph for a in node.attribute for graph in (*a.graphs, *([a.g] if a.HasField("g") else ()))]


def replace_nodes(graph: OnnxGraph, nodes: Sequence[Node]) -> None:
    """Replace all nodes of the graph."""
    new_nodes, body = list(nodes), graph.model.graph  # a copy, since ``nodes`` may refer to the old ones
    del body.node[:]
    body.node.extend(new_nodes)


def image_tensors(graph: OnnxGraph) -> set[str]:
    """Names of all tensors that depend on the image (the nodes of a repaired graph are sorted)."""
    dependent = {graph.image}
    for node in graph.model.graph.node:
        if dependent.intersection(reads(node)):
            dependent.update(name for name in node.output if name)
    return dependent


def constants(graph: OnnxGraph, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Values of the named tensors that are initialisers or outputs of Constant nodes."""
    stored = (tensor for tensor in graph.model.graph.initializer if tensor.name in names)
    values = {tensor.name: as_array(tensor, graph.name) for tensor in stored}
    for node in graph.model.graph.node:
        if node.op_type == "Constant" and len(node.output) == 1 and node.output[0] in names:
            for key, value in attributes(node).items():
                if key.startswith("value"):
                    array = as_array(value, graph.name) if key == "value" else np.asarray(value)
                    values[node.output[0]] = array
    return values


def opset_of(model: Model) -> int:
    """Version of ONNX's standard operators in an ``onnx.ModelProto``.

    Example:
        >>> empty = helper.make_graph([], "empty", [], [])
        >>> opset_of(helper.make_model(empty, opset_imports=[helper.make_opsetid("", 17)]))
        17
    """
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def inferred_shapes(graph: OnnxGraph, size: tuple[int, int] | None) -> dict[str, Shape]:
    """Shapes of all tensors that ONNX can infer.

    Args:
        graph: any.
        size: (height, width) of one image; None for the shape that the graph's input declares.

    Raises:
        ModelError: operations that contradict each other.
    """
    model = _skeleton(graph.model)
    if size is not None:
        dims = model.graph.input[0].type.tensor_type.shape.dim
        for dim, length in zip(dims, (1, 3, *size), strict=True):
            dim.Clear()
            dim.dim_value = length
    try:
        body = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:
        raise ModelError(f"{graph.name}: inconsistent graph, shapes cannot be inferred: {error}") from error
    shapes: dict[str, Shape] = {v.name: tuple(v.dims) for v in graph.model.graph.initializer}
    for value in (*body.value_info, *body.input, *body.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes


def _skeleton(model: Model) -> Model:
    """The model without the values of its weights, except small tensors from which shapes are computed."""
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= MAX_SHAPE_VALUES:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare


def evaluate(
    graph: OnnxGraph, nodes: Sequence[Node], outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Compute the values of some tensors with onnxruntime, from these nodes only.

    Raises:
        ModelError: onnxruntime cannot run the nodes.
    """
    used = {name for node in nodes for name in reads(node)} | set(outputs)
    body = helper.make_graph(
        nodes, "part",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, v.shape) for name, v in feeds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [tensor for tensor in graph.model.graph.initializer if tensor.name in used],
    )  # fmt: skip
    subgraph = helper.make_model(
        body, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version
    )
    runtime = session(serialized(subgraph, graph.name), graph.name)
    try:
        return dict(zip(outputs, runtime.run(list(outputs), dict(feeds)), strict=True))
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise ModelError(f"{graph.name}: onnxruntime cannot run the graph: {str(error).strip()}") from error


def session(content: bytes, name: str, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU, without log messages.

    Raises:
        ModelError: onnxruntime rejects the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise ModelError(f"{name}: onnxruntime rejects the graph: {str(error).strip()}") from error
