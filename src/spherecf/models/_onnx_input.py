"""The image that a graph takes: any layout and type that a float32 image (n, 3, height, width) can become."""

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from spherecf.errors import ModelError
from spherecf.models._onnx_file import as_array, type_name
from spherecf.models._onnx_graph import OnnxGraph, replace_nodes

NARROW = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")  # of operations that name the type of their result


def accept_image(graph: OnnxGraph) -> str:
    """Make the graph's input float32 (n, 3, height, width).

    Raises:
        ModelError: it is no batch of colour images.
    """
    image = graph.model.graph.input[0]
    tensor = image.type.tensor_type
    dims, kind = image_dims(image), tensor.elem_type
    last = len(dims) == 4 and dims[3] == 3 and dims[1] != 3
    colours = len(dims) == 4 and (last or dims[1] in (3, None))
    if not colours or kind not in (TensorProto.FLOAT, TensorProto.UINT8, *NARROW):
        raise ModelError(
            f"{graph.name}: not a recogniser of colour images: expected an input (n, 3, height, width) or "
            f"(n, height, width, 3) of floating point numbers or uint8, found {image.name} {dims} of type "
            f"{type_name(kind)}"
        )
    graph.image = image.name
    height, width = dims[1:3] if last else dims[2:]
    graph.size = (height, width) if height and width else None
    messages = []
    if kind in NARROW:
        _widen(graph, kind)
        messages.append(f"{NARROW[kind]} input: all of its {NARROW[kind]} numbers made float32")
    if kind == TensorProto.UINT8:
        graph.takes_bytes = True
        messages.append("uint8 input: a cast put in front")
    if last:
        messages.append("channels last input (n, height, width, 3): a transpose put in front")
    if last or graph.takes_bytes:
        _put_in_front(graph, dims, last)
    return "; ".join(messages)


def image_dims(value: Any) -> list[int | None]:
    """Sizes of a graph's input, None where it takes any."""
    return [d.dim_value or None for d in value.type.tensor_type.shape.dim]


def _put_in_front(graph: OnnxGraph, dims: list[int | None], last: bool) -> None:
    """A new input; a transpose of the graph's own that follows undoes ours, which runtimes see and drop."""
    body, name = graph.model.graph, f"{graph.image}_planes"
    steps, tensor = [], name
    if last:
        tensor = graph.image if not graph.takes_bytes else f"{name}_last"
        steps.append(helper.make_node("Transpose", [name], [tensor], "channels_last", perm=[0, 2, 3, 1]))
    if graph.takes_bytes:
        steps.append(helper.make_node("Cast", [tensor], [graph.image], "to_uint8", to=TensorProto.UINT8))
    replace_nodes(graph, [*steps, *body.node])
    del body.input[:]
    height, width = graph.size or ("h", "w")
    shape = [dims[0] or "batch", 3, height, width]
    body.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    graph.image = name


def _widen(graph: OnnxGraph, kind: int) -> None:
    """Everything of this type becomes float32: weights, casts, constants, inputs and outputs."""
    pending: list[Any] = [graph.model.graph]
    while pending:
        body = pending.pop()
        for value in (*body.input, *body.output, *body.value_info):
            if value.type.tensor_type.elem_type == kind:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        for tensor in body.initializer:
            _widen_tensor(graph, tensor, kind)
        for node in body.node:
            for attribute in node.attribute:
                if attribute.name in TYPE_ATTRIBUTES and attribute.i == kind:
                    attribute.i = TensorProto.FLOAT
                for tensor in (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else ())):
                    _widen_tensor(graph, tensor, kind)
                pending += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else ())]


def _widen_tensor(graph: OnnxGraph, tensor: Any, kind: int) -> None:
    if tensor.data_type == kind:
        array = as_array(tensor, graph.name).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
