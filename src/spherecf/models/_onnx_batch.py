"""Graphs made for a fixed number of images take any number: reshapes and class tokens follow the batch."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from spherecf.errors import ModelError
from spherecf.models._network import Shape
from spherecf.models._onnx_file import LARGEST, Node
from spherecf.models._onnx_graph import (
    OnnxGraph,
    attributes,
    constants,
    image_tensors,
    inferred_shapes,
    replace_nodes,
)


def free_batch(graph: OnnxGraph) -> str:
    """Let the graph take any number of images: a named batch dimension, and constants that follow it."""
    body = graph.model.graph
    first = body.input[0].type.tensor_type.shape.dim[0]
    fixed = first.dim_value
    try:
        shapes = inferred_shapes(graph, None) if fixed else {}
    except ModelError:
        shapes = {}  # whoever needs them says what is wrong with them
    first.Clear()
    first.dim_param = "batch"
    del body.value_info[:]
    for output in body.output:
        output.type.tensor_type.ClearField("shape")
    if not fixed:
        return ""
    alive = image_tensors(graph)
    reshapes = _free_reshapes(graph, fixed, alive, shapes)
    tokens = _repeat_tokens(graph, fixed, alive, shapes)
    repeated = f", {tokens} constant tokens repeated" if tokens else ""
    return f"fixed batch of {fixed} made dynamic ({reshapes} reshapes rewritten{repeated})"


def _free_reshapes(graph: OnnxGraph, fixed: int, alive: set[str], shapes: Mapping[str, Shape]) -> int:
    """Constant shapes that begin with the batch, or with the batch times a number of windows."""
    body = graph.model.graph
    nodes = [n for n in body.node if n.op_type == "Reshape" and len(n.input) == 2 and n.input[0] in alive]
    values, changed = constants(graph, {node.input[1] for node in nodes}), 0
    for number, node in enumerate(nodes):
        value = values.get(node.input[1])
        if value is None or value.dtype != np.int64 or value.ndim != 1 or not value.size:
            continue
        sizes = [int(side) for side in value]
        if sizes[0] < 1 or (sizes[0] != fixed and min(sizes) < 1):
            continue
        total = math.prod(shapes.get(node.input[0], (0,)))
        if 0 < total <= LARGEST and sizes.count(-1) == 1 and 0 not in sizes:
            sizes[sizes.index(-1)] = total // abs(math.prod(sizes))
        if min(sizes) < 1 and attributes(node).get("allowzero", 0):
            continue  # where 0 would be no image at all, and there is one -1 already
        sizes[0] = 0 if min(sizes) < 1 else -1
        name = f"{node.input[1]}_any_batch_{number}"
        body.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
        node.input[1] = name
        changed += 1
    return changed


def _repeat_tokens(graph: OnnxGraph, fixed: int, alive: set[str], shapes: Mapping[str, Shape]) -> int:
    """What a sequence is joined with, a class token for one, gets as many rows as there are images."""
    body = graph.model.graph
    joins = [n for n in body.node if n.op_type == "Concat" and attributes(n).get("axis", 0)]
    values = constants(graph, {name for node in joins for name in node.input if name not in alive})
    sources = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Expand" and n.input and n.output}
    nodes: list[Node] = []
    changed = 0
    for node in body.node:
        sequence = next((name for name in node.input if name in alive), "") if node in joins else ""
        for position, name in enumerate(node.input if sequence else ()):
            if name in alive:
                continue
            row, value, repeated = sources.get(name, name), values.get(name), f"{name}/any_batch_{changed}"
            if value is not None and value.ndim and len(value) == fixed > 1 and (value == value[:1]).all():
                row, rank = f"{repeated}/row", value.ndim
                body.initializer.append(numpy_helper.from_array(value[:1], row))
            elif shapes.get(row, ())[:1] == (1,):
                rank = len(shapes.get(name) or shapes[row])
            else:
                continue
            nodes += _repeated(graph, row, sequence, repeated, rank)
            node.input[position], changed = repeated, changed + 1
        nodes.append(node)
    if changed:
        replace_nodes(graph, nodes)
    return changed


def _repeated(graph: OnnxGraph, row: str, sequence: str, repeated: str, rank: int) -> list[Node]:
    """Nodes that repeat a tensor of one row for each row of the sequence."""
    sides, zero, rows, ones, shape = (
        f"{repeated}/{part}" for part in ("sides", "zero", "rows", "ones", "shape")
    )
    stored: dict[str, NDArray[np.int64]] = {zero: np.zeros(1, np.int64), ones: np.ones(rank - 1, np.int64)}
    graph.model.graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in stored.items()
    )
    return [
        helper.make_node("Shape", [sequence], [sides]),
        helper.make_node("Gather", [sides, zero], [rows], axis=0),
        helper.make_node("Concat", [rows, ones], [shape], axis=0),
        helper.make_node("Expand", [row, shape], [repeated]),
    ]
