"""Read an ONNX file and repair what runtimes stumble over, saying what was repaired."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from spherecf.errors import ModelError

Model = Any  # onnx.ModelProto and onnx.NodeProto are generated classes without usable types
Node = Any

OLDEST_OPSET, SAFE_OPSET = 7, 13
OLDEST_IR, NEWEST_IR = 4, 10

INPUT_KEY = "spherecf.input"  # of a file with preprocessing inside: the tensor that the network itself reads


@dataclass
class OnnxGraph:
    """A repaired recogniser graph.

    Attributes:
        model: the ONNX model, batch dimension dynamic.
        name: the file's stem, or the graph's name.
        sha256: of the file's bytes as they came.
        image: name of the image input.
        size: (height, width) the graph was built for, None where it takes any.
        repairs: one sentence per repair.
    """

    model: Model
    name: str
    sha256: str
    image: str = ""
    size: tuple[int, int] | None = None
    repairs: list[str] = field(default_factory=list)

    @property
    def metadata(self) -> dict[str, str]:
        """Key-value pairs the file carries about itself."""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    def hint(self) -> str:
        """What the graph's first steps say about its preprocessing, for an error message."""
        first = {node.op_type for node in self.model.graph.node[:6]} & {"Sub", "Mul", "Div"}
        return (
            f" The graph begins with {'/'.join(sorted(first))}: it may normalise itself ('raw')."
            if first
            else ""
        )

    def serialized(self) -> bytes:
        """The repaired model, as runtimes read it."""
        content: bytes = self.model.SerializeToString()
        return content


def load_graph(source: str | Path | Model) -> OnnxGraph:
    """Read, repair and describe a model file (or an ``onnx.ModelProto``, which is left untouched).

    Raises:
        ModelError: not an ONNX file, truncated, without one image input, or beyond repair.
    """
    graph = _read(source)
    for repair in REPAIRS:
        message = repair(graph)
        if message:
            graph.repairs.append(message)
    return graph


def _read(source: str | Path | Model) -> OnnxGraph:
    if isinstance(source, onnx.ModelProto):
        model = onnx.ModelProto()
        model.CopyFrom(source)
        name, sha256 = source.graph.name or "model", hashlib.sha256(source.SerializeToString()).hexdigest()
    else:
        path = Path(source)
        if not path.is_file():
            raise ModelError(f"{path}: expected an ONNX file, found no such file")
        content = path.read_bytes()
        name, sha256 = path.stem, hashlib.sha256(content).hexdigest()
        model = _parse(path, content)
    if not model.graph.node:
        raise ModelError(f"{source}: expected an ONNX recogniser, found a file without any graph node")
    return OnnxGraph(model, name, sha256)


def _parse(path: Path, content: bytes) -> Model:
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's DecodeError, which has no public home in onnx
        start = content[:8].hex(" ") or "nothing"
        raise ModelError(
            f"{path}: not a readable ONNX file ({len(content)} bytes, beginning with {start}): it is "
            f"truncated or of another kind; download or export it again"
        ) from error
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"{path}: its weights are kept outside the file and cannot be read ({error})"
        ) from error
    return model


def attributes(node: Node) -> dict[str, Any]:
    """A node's attributes as Python values (strings decoded, tensors as arrays)."""
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}


def image_tensors(graph: OnnxGraph) -> set[str]:
    """Names of all tensors that depend on the image (the nodes of an ONNX graph are sorted)."""
    alive = {graph.image}
    for node in graph.model.graph.node:
        if alive.intersection(node.input):
            alive.update(name for name in node.output if name)
    return alive


def constants(graph: OnnxGraph) -> dict[str, NDArray[Any]]:
    """Initialisers and the values of Constant nodes, by tensor name."""
    found = {t.name: t for t in graph.model.graph.initializer}
    values = {name: numpy_helper.to_array(t) for name, t in found.items()}
    for node in graph.model.graph.node:
        if node.op_type == "Constant":
            for key, value in attributes(node).items():
                array = numpy_helper.to_array(value) if key == "value" else np.asarray(value)
                values[node.output[0]] = array
    return values


def opset_of(model: Model) -> int:
    """Version of ONNX's own operators in an ``onnx.ModelProto``.

    Example:
        >>> empty = helper.make_graph([], "empty", [], [])
        >>> opset_of(helper.make_model(empty, opset_imports=[helper.make_opsetid("", 17)]))
        17
    """
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def _start_at_network(graph: OnnxGraph) -> str:
    """Take the preprocessing that `spherecf export onnx` put inside out again: it is applied here."""
    body, start = graph.model.graph, graph.metadata.get(INPUT_KEY, "")
    producers = {name: node for node in body.node for name in node.output}
    if start not in producers:
        return ""
    pending, before = [start], set[str]()
    while pending:
        name = pending.pop()
        before.add(name)
        pending += [i for i in producers[name].input if i in producers and i not in before]
    kept = [node for node in body.node if not before.intersection(node.output)]
    del body.node[:], body.input[:]
    body.node.extend(kept)
    body.input.append(helper.make_tensor_value_info(start, onnx.TensorProto.FLOAT, ["batch", 3, "h", "w"]))
    return ""


def _modernise(graph: OnnxGraph) -> str:
    model, messages = graph.model, []
    old = opset_of(model)
    if old < OLDEST_OPSET:
        try:
            graph.model = model = onnx.version_converter.convert_version(model, SAFE_OPSET)
        except Exception as error:
            raise ModelError(
                f"{graph.name}: opset {old} is too old and could not be converted: {error}"
            ) from error
        messages.append(f"opset {old} converted to {SAFE_OPSET}")
    if not OLDEST_IR <= model.ir_version <= NEWEST_IR:
        old, model.ir_version = model.ir_version, min(max(model.ir_version, OLDEST_IR), NEWEST_IR)
        messages.append(f"IR version {old} relabelled {model.ir_version}")
    return "; ".join(messages)


def _drop_false_inputs(graph: OnnxGraph) -> str:
    """Keep the image as the only input: stored weights and tensors that no node reads are none."""
    body = graph.model.graph
    stored = {t.name for t in body.initializer} | {t.values.name for t in body.sparse_initializer}
    used = {name for node in body.node for name in node.input}
    orphans = [i.name for i in body.input if i.name not in stored and i.name not in used]
    images = [i for i in body.input if i.name not in stored and i.name in used]
    if len(images) != 1:
        listing = ", ".join(f"{i.name} {_dims(i)}" for i in images) or "none"
        raise ModelError(f"{graph.name}: expected one image input, found {len(images)}: {listing}")
    _accept_image(graph, images[0])
    del body.input[:]
    body.input.append(images[0])
    names = ", ".join(orphans[:3]) + (", ..." if len(orphans) > 3 else "")
    return f"{len(orphans)} orphan graph inputs dropped, no node reads them ({names})" if orphans else ""


def _accept_image(graph: OnnxGraph, image: Any) -> None:
    dims = _dims(image)
    kind = image.type.tensor_type.elem_type
    if len(dims) != 4 or kind != onnx.TensorProto.FLOAT or dims[1] not in (3, None):
        layout = " (channels last graphs are not supported)" if len(dims) == 4 and dims[3] == 3 else ""
        raise ModelError(
            f"{graph.name}: not a recogniser of colour images: expected a float32 input (n, 3, height, "
            f"width), found {image.name} {dims} of type {onnx.TensorProto.DataType.Name(kind)}{layout}"
        )
    graph.image = image.name
    graph.size = (dims[2], dims[3]) if dims[2] and dims[3] else None


def _dims(value: Any) -> list[int | None]:
    return [d.dim_value or None for d in value.type.tensor_type.shape.dim]


def _infer_only(graph: OnnxGraph) -> str:
    """Dropout and batch normalisation as at test time, whatever mode the file was saved in."""
    values = constants(graph)
    changed = 0
    for node in graph.model.graph.node:
        if node.op_type == "Dropout":
            changed += bool(len(node.input) > 2 and np.any(values.get(node.input[2], False)))
            del node.input[1:], node.output[1:]
        elif node.op_type == "BatchNormalization":
            changed += bool(attributes(node).get("training_mode", 0)) or len(node.output) > 1
            stale = [a for a in node.attribute if a.name in ("training_mode", "spatial")]
            for attribute in stale:
                node.attribute.remove(attribute)
            del node.output[1:]
    return f"{changed} layers saved in training mode set to inference" if changed else ""


def _shape_slopes(graph: OnnxGraph) -> str:
    """MXNet's PReLU slopes (C,) mean one per channel, which is (C, 1, 1) in ONNX's broadcasting."""
    slopes = {n.input[1] for n in graph.model.graph.node if n.op_type == "PRelu"}
    fed_by_dense = {
        o for n in graph.model.graph.node if n.op_type in ("Gemm", "MatMul", "Flatten") for o in n.output
    }
    flat = {n.input[1] for n in graph.model.graph.node if n.op_type == "PRelu" and n.input[0] in fed_by_dense}
    changed = 0
    for tensor in graph.model.graph.initializer:
        if tensor.name in slopes - flat and len(tensor.dims) == 1 and tensor.dims[0] > 1:
            tensor.dims.extend([1, 1])
            changed += 1
    return f"{changed} PReLU slopes reshaped from (C,) to (C, 1, 1)" if changed else ""


def inferred_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors that ONNX can infer completely.

    Raises:
        ValueError: the graph contradicts itself.
    """
    try:
        body = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:  # of classes that onnx does not name
        raise ValueError(str(error)) from error
    shapes = {t.name: tuple(t.dims) for t in body.initializer}
    for value in (*body.value_info, *body.input, *body.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes


def _free_batch(graph: OnnxGraph) -> str:
    """Let the graph take any number of images: a named batch dimension, and constants that follow it."""
    body = graph.model.graph
    first = body.input[0].type.tensor_type.shape.dim[0]
    fixed = first.dim_value
    try:
        known = inferred_shapes(graph.model) if fixed else {}
    except ValueError:
        known = {}  # whoever needs the shapes says what is wrong with them
    first.Clear()
    first.dim_param = "batch"
    del body.value_info[:]
    for output in body.output:
        output.type.tensor_type.ClearField("shape")
    if not fixed:
        return ""
    alive = image_tensors(graph)
    reshapes = _free_reshapes(graph, fixed, alive, known)
    tokens = _repeat_tokens(graph, fixed, alive, known)
    repeated = f", {tokens} constant tokens repeated" if tokens else ""
    return f"fixed batch of {fixed} made dynamic ({reshapes} reshapes rewritten{repeated})"


def _free_reshapes(
    graph: OnnxGraph, fixed: int, alive: set[str], known: Mapping[str, tuple[int, ...]]
) -> int:
    """Constant shapes that begin with the batch, or with the batch times a number of windows."""
    values, changed = constants(graph), 0
    for number, node in enumerate(graph.model.graph.node):
        if node.op_type != "Reshape" or len(node.input) != 2:
            continue
        if node.input[0] not in alive or node.input[1] not in values:
            continue
        shape = values[node.input[1]].copy()
        if not shape.size or shape[0] < 1 or (shape[0] != fixed and (shape < 1).any()):
            continue
        if node.input[0] in known and (shape == -1).sum() == 1 and not (shape == 0).any():
            shape[shape == -1] = math.prod(known[node.input[0]]) // abs(int(shape.prod()))
        shape[0] = 0 if (shape < 1).any() else -1
        name = f"{node.input[1]}_any_batch_{number}"
        graph.model.graph.initializer.append(numpy_helper.from_array(shape, name))
        node.input[1] = name
        changed += 1
    return changed


def _repeat_tokens(
    graph: OnnxGraph, fixed: int, alive: set[str], known: Mapping[str, tuple[int, ...]]
) -> int:
    """What a sequence is joined with, a class token for one, gets as many rows as there are images."""
    body, values = graph.model.graph, constants(graph)
    wide = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Expand" and n.input and n.output}
    nodes: list[Node] = []
    changed = 0
    for node in body.node:
        sequence = next((name for name in node.input if name in alive), "")
        joins = node.op_type == "Concat" and sequence and attributes(node).get("axis", 0)
        for place, name in enumerate(node.input if joins else ()):
            row, value = wide.get(name, name), values.get(name)
            if name in alive:
                continue
            if value is not None and value.ndim and len(value) == fixed > 1 and (value == value[:1]).all():
                row = f"{name}/row"
                body.initializer.append(numpy_helper.from_array(value[:1], row))
            elif known.get(row, ())[:1] != (1,):
                continue
            made = f"{name}/any_batch_{changed}"
            nodes += _repeated(body, row, sequence, made, len(known.get(name) or known[row]))
            node.input[place], changed = made, changed + 1
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del body.node[:]
    body.node.extend(kept)
    return changed


def _repeated(body: Any, name: str, sequence: str, made: str, rank: int) -> list[Node]:
    """Nodes that repeat a tensor of one row for each row of the sequence."""
    parts = [f"{made}/{part}" for part in ("sides", "zero", "rows", "ones", "shape")]
    sides, zero, rows, ones, shape = parts
    body.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), zero))
    body.initializer.append(numpy_helper.from_array(np.ones(rank - 1, np.int64), ones))
    return [
        helper.make_node("Shape", [sequence], [sides]),
        helper.make_node("Gather", [sides, zero], [rows], axis=0),
        helper.make_node("Concat", [rows, ones], [shape], axis=0),
        helper.make_node("Expand", [name, shape], [made]),
    ]


REPAIRS: tuple[Callable[[OnnxGraph], str], ...] = (
    _start_at_network,
    _modernise,
    _drop_false_inputs,
    _infer_only,
    _shape_slopes,
    _free_batch,
)
