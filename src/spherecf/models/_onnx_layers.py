"""Repairs of single layers: training mode, statistics per position, slopes, integer maps."""

from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from spherecf.errors import ModelError
from spherecf.models._onnx_file import Node
from spherecf.models._onnx_graph import (
    OnnxGraph,
    attributes,
    constants,
    inferred_shapes,
    opset_of,
    replace_nodes,
)

DEFAULT_SIZE = (112, 112)
DENSE = ("Gemm", "MatMul", "Flatten")

# Operations on quantised numbers, with the positions of their result's scale and zero point.
QUANTISED = {
    "QLinearConv": (6, 7), "QLinearMatMul": (6, 7), "QLinearAdd": (6, 7), "QLinearMul": (6, 7),
    "QGemm": (7, 8), "QLinearConcat": (0, 1), "QLinearLeakyRelu": (3, 4), "QLinearSigmoid": (3, 4),
    "QLinearAveragePool": (3, 4), "QLinearGlobalAveragePool": (3, 4),
}  # fmt: skip
DEQUANTISED = "_dequantised"  # added to the name of a quantised tensor for its floating point form


def infer_only(graph: OnnxGraph) -> str:
    """Dropout and batch normalisation as at test time, whatever mode the file was saved in."""
    drops = [node for node in graph.model.graph.node if node.op_type == "Dropout"]
    values = constants(graph, {name for node in drops for name in node.input[2:]})
    changed = 0
    for node in graph.model.graph.node:
        if node.op_type == "Dropout":
            changed += bool(len(node.input) > 2 and np.any(values.get(node.input[2], node.input[2] != "")))
            del node.input[1:], node.output[1:]
        elif node.op_type == "BatchNormalization":
            changed += bool(attributes(node).get("training_mode", 0)) or len(node.output) > 1
            _drop_attributes(node, "training_mode")
            del node.output[1:]
    return f"{changed} layers saved in training mode set to inference" if changed else ""


def norms_per_position(graph: OnnxGraph) -> str:
    """Batch normalisation with ``spatial=0``: statistics (C, H, W), one per position (before opset 9).

    MXNet wrote ``spatial=0`` beside statistics (C,), which are per channel and stay as they are.

    Raises:
        ModelError: such statistics that the graph computes.
    """
    norms = [node for node in graph.model.graph.node if node.op_type == "BatchNormalization"]
    marked = [node for node in norms if attributes(node).get("spatial", 1) == 0]
    values, nodes, changed = constants(graph, {name for node in marked for name in node.input[1:5]}), [], 0
    for node in graph.model.graph.node:
        stored = [values.get(name) for name in node.input[1:5]] if node in marked else []
        if any(value is not None and value.ndim > 1 for value in stored) or (stored and stored[0] is None):
            nodes += _per_position(graph, node, stored)
            changed += 1
        else:
            nodes.append(node)
    for node in norms:
        _drop_attributes(node, "spatial")
    if not changed:
        return ""
    replace_nodes(graph, nodes)
    return f"{changed} batch normalisations per position (spatial=0) written as factor and shift"


def _per_position(graph: OnnxGraph, node: Node, stored: list[np.ndarray | None]) -> list[Node]:
    """y = x a + (b - mean a) with a = scale / sqrt(variance + epsilon), all of shape (C, H, W)."""
    label = node.name or node.output[0]
    arrays = [value for value in stored if value is not None]
    if len(arrays) != 4 or len({a.shape for a in arrays}) != 1:
        shapes = [None if value is None else value.shape for value in stored]
        raise ModelError(
            f"{graph.name}: BatchNormalization (node {label}) with spatial=0: expected four stored tensors "
            f"of one shape (channels, height, width), found {shapes}; export it with opset 9 or later"
        )
    scale, shift, mean, variance = (a.astype(np.float64) for a in arrays)
    factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
    names = [f"{node.output[0]}_{part}" for part in ("factor", "scaled", "shift")]
    body = graph.model.graph
    for name, value in ((names[0], factor), (names[2], shift - mean * factor)):
        tensor = numpy_helper.from_array(value.astype(arrays[0].dtype), name)
        body.initializer.append(tensor)
        if graph.model.ir_version < 4:  # which wants stored tensors among the inputs
            body.input.append(helper.make_tensor_value_info(name, tensor.data_type, value.shape))
    old: dict[str, Any] = {"broadcast": 1} if opset_of(graph.model) < 7 else {}
    return [
        helper.make_node("Mul", [node.input[0], names[0]], [names[1]], f"{label}_factor", **old),
        helper.make_node("Add", [names[1], names[2]], [node.output[0]], label, **old),
    ]


def shape_slopes(graph: OnnxGraph) -> str:
    """Slopes of PReLU on maps, one per channel, that lack the shape (C, 1, 1) of ONNX's broadcasting.

    MXNet, Caffe and others store (C,). ONNX reads it as one slope per column of the map, so where the map is
    as wide as it has channels both fit: it is taken as one per channel, as no recogniser has the other kind.
    """
    fine = {t.name for t in graph.model.graph.initializer if len(t.dims) > 2}
    layers = [node for node in graph.model.graph.node if node.op_type == "PRelu"]
    nodes = [node for node in layers if len(node.input) == 2 and node.input[1] not in fine]
    if not nodes:
        return ""
    shapes = inferred_shapes(graph, graph.size or DEFAULT_SIZE)
    dense = {o for n in graph.model.graph.node if n.op_type in DENSE for o in n.output}
    reshaped, ambiguous, steps = 0, 0, {}
    for node in nodes:
        slope = shapes.get(node.input[1])
        image = shapes.get(node.input[0], (1, 2) if node.input[0] in dense else None)
        channels = int(np.prod(slope)) if slope is not None else 1
        if slope is None or len(slope) > 2 or channels == 1 or (image is not None and len(image) != 4):
            continue
        if image is not None and image[1] != channels:
            continue  # one per row or column, as ONNX has it
        ambiguous += image is not None and all(
            a in (1, b) for a, b in zip(slope[::-1], image[::-1], strict=False)
        )
        reshaped += 1
        steps[node.output[0]] = channels
    _insert_reshapes(graph, steps)
    if not reshaped:
        return ""
    unsure = f", {ambiguous} of them on maps as wide or high as they have channels" if ambiguous else ""
    return f"{reshaped} PReLU slopes reshaped from (C,) to (C, 1, 1){unsure}"


def _insert_reshapes(graph: OnnxGraph, steps: dict[str, int]) -> None:
    """A reshape of its slopes to (C, 1, 1) before each of the layers that make these tensors."""
    body, nodes = graph.model.graph, []
    for node in body.node:
        if node.op_type == "PRelu" and node.output[0] in steps:
            shape, name = f"{node.output[0]}_slope_shape", f"{node.output[0]}_slope_per_channel"
            body.initializer.append(numpy_helper.from_array(np.array([steps[node.output[0]], 1, 1]), shape))
            nodes.append(helper.make_node("Reshape", [node.input[1], shape], [name], name))
            node.input[1] = name
        nodes.append(node)
    replace_nodes(graph, nodes)


def quantised_maps(graph: OnnxGraph) -> str:
    """Give every quantised result (QLinearConv and others) its floating point form beside it."""
    nodes = []
    for node in graph.model.graph.node:
        nodes.append(node)
        scale, zero = QUANTISED.get(node.op_type, (0, 0))
        if zero and len(node.input) > zero and node.input[scale] and node.output:
            name = node.output[0] + DEQUANTISED
            inputs = [node.output[0], node.input[scale], node.input[zero]]
            nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name))
    if len(nodes) > len(graph.model.graph.node):
        replace_nodes(graph, nodes)
    return ""  # nothing that the file computes has changed


def _drop_attributes(node: Node, *names: str) -> None:
    for attribute in [a for a in node.attribute if a.name in names]:
        node.attribute.remove(attribute)
