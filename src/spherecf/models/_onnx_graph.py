"""A recogniser's graph, and questions about it: what depends on the image, shapes, values of its parts."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from spherecf.errors import ModelError
from spherecf.models._network import Shape
from spherecf.models._onnx_file import Model, Node, as_array, serialized

OLDEST_OPSET, SAFE_OPSET = 7, 13
OLDEST_IR, NEWEST_IR = 4, 10

INPUT_KEY = "spherecf.input"  # of a file with preprocessing inside: the tensor that the network itself reads

LONGEST_SHAPE = 64  # numbers in a stored tensor that a shape may be computed from


@dataclass
class OnnxGraph:
    """A repaired recogniser graph.

    Attributes:
        model: the ONNX model, batch dimension dynamic, its image float32 (n, 3, height, width).
        name: the file's stem, or the graph's name.
        sha256, former_sha256: see `OnnxFile`.
        image: name of the image input.
        size: (height, width) the graph was built for, None where it takes any.
        takes_bytes: the graph was made for pixels as uint8, so that only whole numbers 0..255 make sense.
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
        """Key-value pairs the file carries about itself."""
        return {entry.key: entry.value for entry in self.model.metadata_props}

    def serialized(self) -> bytes:
        """The repaired model, as runtimes read it."""
        return serialized(self.model, self.name)


def attributes(node: Node) -> dict[str, Any]:
    """A node's attributes as Python values (strings decoded, tensors as they are stored).

    Raises:
        ModelError: an attribute without a value, or text that is no UTF-8.
    """
    try:
        values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        return {k: v.decode() if isinstance(v, bytes) else v for k, v in values.items()}
    except ValueError as error:
        label = node.name or ", ".join(node.output)
        raise ModelError(f"{node.op_type} (node {label}): an attribute cannot be read: {error}") from error


def reads(node: Node) -> list[str]:
    """Tensors that a node needs: its inputs, and what graphs inside it (of If and Loop) take from outside."""
    names = list(node.input)
    for attribute in node.attribute:
        for inner in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())):
            made = {v.name for v in (*inner.input, *inner.initializer)}
            made.update(name for step in inner.node for name in step.output)
            needed = [name for step in inner.node for name in reads(step)] + [o.name for o in inner.output]
            names += [name for name in needed if name not in made]
    return names


def replace_nodes(graph: OnnxGraph, nodes: Sequence[Node]) -> None:
    """Make these the nodes of the graph."""
    kept, body = list(nodes), graph.model.graph
    del body.node[:]
    body.node.extend(kept)


def image_tensors(graph: OnnxGraph) -> set[str]:
    """Names of all tensors that depend on the image (the nodes of a repaired graph are sorted)."""
    alive = {graph.image}
    for node in graph.model.graph.node:
        if alive.intersection(reads(node)):
            alive.update(name for name in node.output if name)
    return alive


def constants(graph: OnnxGraph, names: Collection[str]) -> dict[str, NDArray[Any]]:
    """Values of those of the tensors that are initialisers or made by Constant nodes."""
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
    """Version of ONNX's own operators in an ``onnx.ModelProto``.

    Example:
        >>> empty = helper.make_graph([], "empty", [], [])
        >>> opset_of(helper.make_model(empty, opset_imports=[helper.make_opsetid("", 17)]))
        17
    """
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def inferred_shapes(graph: OnnxGraph, size: tuple[int, int] | None) -> dict[str, Shape]:
    """Shapes of all tensors, as far as ONNX can infer them.

    Args:
        graph: any.
        size: (height, width) of one image; None for the images that the graph's input declares.

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
    """The model with the shapes of its weights, but only the values that shapes are computed from."""
    bare = onnx.ModelProto(ir_version=model.ir_version)
    bare.opset_import.extend(model.opset_import)
    bare.graph.name = model.graph.name
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= LONGEST_SHAPE:
            bare.graph.initializer.append(tensor)
        else:
            bare.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return bare


def evaluate(
    graph: OnnxGraph, nodes: Sequence[Node], outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Values of some tensors as onnxruntime computes them by these nodes alone.

    Raises:
        ModelError: onnxruntime refuses them.
    """
    used = {name for node in nodes for name in reads(node)} | set(outputs)
    body = helper.make_graph(
        nodes, "part",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, v.shape) for name, v in feeds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        [tensor for tensor in graph.model.graph.initializer if tensor.name in used],
    )  # fmt: skip
    part = helper.make_model(body, opset_imports=graph.model.opset_import, ir_version=graph.model.ir_version)
    runtime = session(serialized(part, graph.name), graph.name)
    try:
        return dict(zip(outputs, runtime.run(list(outputs), dict(feeds)), strict=True))
    except Exception as error:  # onnxruntime's errors have no common base
        raise ModelError(f"{graph.name}: onnxruntime cannot run the graph: {str(error).strip()}") from error


def session(content: bytes, name: str, threads: int = 0) -> Any:
    """onnxruntime on the CPU, quiet.

    Raises:
        ModelError: it refuses the model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    try:
        return onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a dozen classes of its own without a common base
        raise ModelError(f"{name}: onnxruntime refuses the graph: {str(error).strip()}") from error
