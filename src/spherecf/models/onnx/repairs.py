"""Repair parts of a recogniser's graph that runtimes reject, and report each repair."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, inliner, numpy_helper

from spherecf.errors import ModelError
from spherecf.models.network import Shape
from spherecf.models.onnx.graph import (
    MAX_BYTES,
    NEWEST_IR,
    OLDEST_IR,
    OLDEST_OPSET,
    ONNX_INPUT_KEY,
    SAFE_OPSET,
    Model,
    Node,
    OnnxGraph,
    as_array,
    attributes,
    constants,
    image_tensors,
    inferred_shapes,
    opset_of,
    read_onnx,
    reads,
    replace_nodes,
    subgraphs,
    type_name,
)

NARROW = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")  # attributes that set the type of an operation's result


def accept_image(graph: OnnxGraph) -> str:
    """Convert the graph's input to float32 (n, 3, height, width).

    Raises:
        ModelError: the input is not a batch of colour images.
    """
    image = graph.model.graph.input[0]
    tensor = image.type.tensor_type
    dims, kind = image_dims(image), tensor.elem_type
    channels_last = len(dims) == 4 and dims[3] == 3 and dims[1] != 3
    has_colours = len(dims) == 4 and (channels_last or dims[1] in (3, None))
    if not has_colours or kind not in (TensorProto.FLOAT, TensorProto.UINT8, *NARROW):
        raise ModelError(
            f"{graph.name}: not a recogniser of colour images: expected an input (n, 3, height, width) or "
            f"(n, height, width, 3) of floating-point numbers or uint8, found {image.name} {dims} of type "
            f"{type_name(kind)}"
        )
    graph.image = image.name
    height, width = dims[1:3] if channels_last else dims[2:]
    graph.size = (height, width) if height and width else None
    messages = []
    if kind in NARROW:
        _widen(graph, kind)
        messages.append(f"{NARROW[kind]} input: all {NARROW[kind]} tensors converted to float32")
    if kind == TensorProto.UINT8:
        graph.takes_bytes = True
        messages.append("uint8 input: a cast inserted before it")
    if channels_last:
        messages.append("channels-last input (n, height, width, 3): a transpose inserted before it")
    if channels_last or graph.takes_bytes:
        _insert_before_input(graph, dims, channels_last)
    return "; ".join(messages)


def image_dims(value: Any) -> list[int | None]:
    """Dimensions of a graph's input, None if arbitrary."""
    return [d.dim_value or None for d in value.type.tensor_type.shape.dim]


def _insert_before_input(graph: OnnxGraph, dims: list[int | None], channels_last: bool) -> None:
    """Add a float32 (n, 3, h, w) input, with a transpose or a cast to the original one.

    If the graph begins with the inverse transpose, runtimes cancel the two.
    """
    body, name = graph.model.graph, f"{graph.image}_planes"
    steps, tensor = [], name
    if channels_last:
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
    """Convert everything of this type to float32: weights, casts, constants, inputs and outputs."""
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
            pending += subgraphs(node)


def _widen_tensor(graph: OnnxGraph, tensor: Any, kind: int) -> None:
    if tensor.data_type == kind:
        array = as_array(tensor, graph.name).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


DEFAULT_SIZE = (112, 112)
DENSE = ("Gemm", "MatMul", "Flatten")

# Quantised operations, with the input positions of their result's scale and zero point.
QUANTISED = {
    "QLinearConv": (6, 7), "QLinearMatMul": (6, 7), "QLinearAdd": (6, 7), "QLinearMul": (6, 7),
    "QGemm": (7, 8), "QLinearConcat": (0, 1), "QLinearLeakyRelu": (3, 4), "QLinearSigmoid": (3, 4),
    "QLinearAveragePool": (3, 4), "QLinearGlobalAveragePool": (3, 4),
}  # fmt: skip
DEQUANTISED = "_dequantised"  # suffix of the dequantised copy of a tensor


def infer_only(graph: OnnxGraph) -> str:
    """Set dropout and batch normalisation to inference mode, whatever mode the file was saved in."""
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
    """Rewrite batch normalisations with ``spatial=0`` (before opset 9), whose statistics are (C, H, W).

    MXNet also wrote ``spatial=0`` for statistics (C,), which are per channel and need no rewriting.

    Raises:
        ModelError: the statistics are computed by the graph.
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
    return f"{changed} batch normalisations per position (spatial=0) rewritten as factor and shift"


def _per_position(graph: OnnxGraph, node: Node, stored: list[np.ndarray | None]) -> list[Node]:
    """Nodes for y = x a + (b - mean a) with a = scale / sqrt(variance + epsilon), all of shape (C, H, W)."""
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
        if graph.model.ir_version < 4:  # which requires initialisers among the inputs
            body.input.append(helper.make_tensor_value_info(name, tensor.data_type, value.shape))
    broadcast: dict[str, Any] = {"broadcast": 1} if opset_of(graph.model) < 7 else {}
    return [
        helper.make_node("Mul", [node.input[0], names[0]], [names[1]], f"{label}_factor", **broadcast),
        helper.make_node("Add", [names[1], names[2]], [node.output[0]], label, **broadcast),
    ]


def shape_slopes(graph: OnnxGraph) -> str:
    """Reshape the PReLU slopes of maps, one per channel, to (C, 1, 1), as ONNX's broadcasting requires.

    MXNet, Caffe and others store (C,), which in ONNX means one slope per column of the map. If the map is as
    wide as it has channels, both readings fit; they are then read as one per channel, since no recogniser has
    slopes per column.
    """
    shaped = {t.name for t in graph.model.graph.initializer if len(t.dims) > 2}
    layers = [node for node in graph.model.graph.node if node.op_type == "PRelu"]
    nodes = [node for node in layers if len(node.input) == 2 and node.input[1] not in shaped]
    if not nodes:
        return ""
    shapes = inferred_shapes(graph, graph.size or DEFAULT_SIZE)
    dense = {o for n in graph.model.graph.node if n.op_type in DENSE for o in n.output}
    reshaped, ambiguous, channels_of = 0, 0, {}
    for node in nodes:
        slope = shapes.get(node.input[1])
        layer = shapes.get(node.input[0], (1, 2) if node.input[0] in dense else None)
        channels = int(np.prod(slope)) if slope is not None else 1
        if slope is None or len(slope) > 2 or channels == 1 or (layer is not None and len(layer) != 4):
            continue
        if layer is not None and layer[1] != channels:
            continue  # one slope per row or column, as ONNX defines it
        ambiguous += layer is not None and all(
            a in (1, b) for a, b in zip(slope[::-1], layer[::-1], strict=False)
        )
        reshaped += 1
        channels_of[node.output[0]] = channels
    _insert_reshapes(graph, channels_of)
    if not reshaped:
        return ""
    doubt = f", {ambiguous} of them on maps as wide or high as they have channels" if ambiguous else ""
    return f"{reshaped} PReLU slopes reshaped from (C,) to (C, 1, 1){doubt}"


def _insert_reshapes(graph: OnnxGraph, channels_of: dict[str, int]) -> None:
    """Reshape the slopes of the PReLU layers with these outputs to (C, 1, 1)."""
    body, nodes = graph.model.graph, []
    for node in body.node:
        if node.op_type == "PRelu" and node.output[0] in channels_of:
            shape, name = f"{node.output[0]}_slope_shape", f"{node.output[0]}_slope_per_channel"
            sizes = np.array([channels_of[node.output[0]], 1, 1])
            body.initializer.append(numpy_helper.from_array(sizes, shape))
            nodes.append(helper.make_node("Reshape", [node.input[1], shape], [name], name))
            node.input[1] = name
        nodes.append(node)
    replace_nodes(graph, nodes)


def quantised_maps(graph: OnnxGraph) -> str:
    """Add a dequantised copy of every quantised result (QLinearConv and others)."""
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
    return ""  # no repair: the graph's results are unchanged


def _drop_attributes(node: Node, *names: str) -> None:
    for attribute in [a for a in node.attribute if a.name in names]:
        node.attribute.remove(attribute)


def free_batch(graph: OnnxGraph) -> str:
    """Make the batch size dynamic: name the batch dimension, and adapt constants that depend on it."""
    body = graph.model.graph
    first = body.input[0].type.tensor_type.shape.dim[0]
    fixed = first.dim_value
    try:
        shapes = inferred_shapes(graph, None) if fixed else {}
    except ModelError:
        shapes = {}  # an inconsistent graph is reported where shapes are needed
    first.Clear()
    first.dim_param = "batch"
    del body.value_info[:]
    for output in body.output:
        output.type.tensor_type.ClearField("shape")
    if not fixed:
        return ""
    dependent = image_tensors(graph)
    reshapes = _free_reshapes(graph, fixed, dependent, shapes)
    tokens = _repeat_tokens(graph, fixed, dependent, shapes)
    repeated = f", {tokens} constant tokens repeated" if tokens else ""
    return f"fixed batch of {fixed} made dynamic ({reshapes} reshapes rewritten{repeated})"


def _free_reshapes(graph: OnnxGraph, fixed: int, dependent: set[str], shapes: Mapping[str, Shape]) -> int:
    """Rewrite constant shapes that begin with a multiple of the batch size; return their number."""
    body = graph.model.graph
    nodes = [n for n in body.node if n.op_type == "Reshape" and len(n.input) == 2 and n.input[0] in dependent]
    values, changed = constants(graph, {node.input[1] for node in nodes}), 0
    for number, node in enumerate(nodes):
        value = values.get(node.input[1])
        if value is None or value.dtype != np.int64 or value.ndim != 1 or not value.size:
            continue
        sizes = [int(side) for side in value]
        if sizes[0] < 1 or (sizes[0] != fixed and min(sizes) < 1):
            continue
        total = math.prod(shapes.get(node.input[0], (0,)))
        if 0 < total <= MAX_BYTES and sizes.count(-1) == 1 and 0 not in sizes:
            sizes[sizes.index(-1)] = total // abs(math.prod(sizes))
        if min(sizes) < 1 and attributes(node).get("allowzero", 0):
            continue  # a 0 would mean an empty batch here, and -1 is taken
        sizes[0] = 0 if min(sizes) < 1 else -1
        name = f"{node.input[1]}_any_batch_{number}"
        body.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), name))
        node.input[1] = name
        changed += 1
    return changed


def _repeat_tokens(graph: OnnxGraph, fixed: int, dependent: set[str], shapes: Mapping[str, Shape]) -> int:
    """Repeat constants that are joined to a sequence, such as a class token, for each image of the batch."""
    body = graph.model.graph
    joins = [n for n in body.node if n.op_type == "Concat" and attributes(n).get("axis", 0)]
    values = constants(graph, {name for node in joins for name in node.input if name not in dependent})
    sources = {n.output[0]: n.input[0] for n in body.node if n.op_type == "Expand" and n.input and n.output}
    nodes: list[Node] = []
    changed = 0
    for node in body.node:
        sequence = next((name for name in node.input if name in dependent), "") if node in joins else ""
        for position, name in enumerate(node.input if sequence else ()):
            if name in dependent:
                continue
            row, value, repeated = sources.get(name, name), values.get(name), f"{name}/any_batch_{changed}"
            if value is not None and value.ndim and len(value) == fixed > 1 and (value == value[:1]).all():
                row, rank = f"{repeated}/row", value.ndim
                body.initializer.append(numpy_helper.from_array(value[:1], row))
            elif shapes.get(row, ())[:1] == (1,):
                rank = len(shapes.get(name) or shapes[row])
            else:
                continue
            nodes += _repeat_nodes(graph, row, sequence, repeated, rank)
            node.input[position], changed = repeated, changed + 1
        nodes.append(node)
    if changed:
        replace_nodes(graph, nodes)
    return changed


def _repeat_nodes(graph: OnnxGraph, row: str, sequence: str, repeated: str, rank: int) -> list[Node]:
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


MAX_NODES = 1_000_000  # operations in a graph after its functions are inlined


def load_graph(source: str | Path | Model) -> OnnxGraph:
    """Read, repair and describe a model file (or an ``onnx.ModelProto``, which is not modified).

    Raises:
        ModelError: not an ONNX file, truncated, without exactly one image input, or impossible to repair; see
            `read_onnx`.
    """
    file = read_onnx(source)
    if not file.model.graph.node:
        raise ModelError(f"{file.name}: expected an ONNX recogniser, found a file without any graph node")
    graph = OnnxGraph(file.model, file.name, file.sha256, file.former_sha256)
    for repair in REPAIRS:
        message = repair(graph)
        if message:
            graph.repairs.append(message)
    return graph


def _inline_functions(graph: OnnxGraph) -> str:
    """Inline local functions, in which newer versions of torch export layers."""
    functions = graph.model.functions
    count, sizes = len(functions), dict[tuple[str, str], int]()
    if not count:
        return ""
    for _ in functions:  # one pass per function resolves any depth of nested functions
        for function in functions:
            calls = (sizes.get((node.domain, node.op_type), 1) for node in function.node)
            sizes[function.domain, function.name] = min(sum(calls), MAX_NODES + 1)
    if sum(sizes.get((node.domain, node.op_type), 1) for node in graph.model.graph.node) > MAX_NODES:
        raise ModelError(f"{graph.name}: its {count} functions expand to more than {MAX_NODES} operations")
    try:
        graph.model = inliner.inline_local_functions(graph.model, convert_version=True)
    except Exception as error:  # the exceptions of onnx have no common base class
        raise ModelError(f"{graph.name}: its {count} functions cannot be inlined: {error}") from error
    return f"{count} local functions inlined"


def _dense_weights(graph: OnnxGraph) -> str:
    body = graph.model.graph
    count = len(body.sparse_initializer)
    for sparse in body.sparse_initializer:
        name, dims = sparse.values.name, list(sparse.dims)
        values = as_array(sparse.values, graph.name)
        indices = as_array(sparse.indices, graph.name)
        size = int(np.prod(dims, dtype=object)) if dims and min(dims) > 0 else 0
        flat = indices if indices.ndim == 1 else indices @ np.cumprod([1, *dims[:0:-1]])[::-1]
        fits = len(flat) == values.size and (not flat.size or 0 <= flat.min() <= flat.max() < size)
        if not fits or size * values.itemsize > MAX_BYTES:
            raise ModelError(f"{graph.name}: sparse tensor {name!r}: its positions are not within {dims}")
        dense = np.zeros(size, values.dtype)
        dense[flat] = values.ravel()
        body.initializer.append(numpy_helper.from_array(dense.reshape(dims), name))
    del body.sparse_initializer[:]
    return f"{count} sparse weights converted to dense ones" if count else ""


def _sort(graph: OnnxGraph) -> str:
    """Sort nodes topologically; a tensor that no node or more than one node computes is an error."""
    body = graph.model.graph
    available = {"", *(v.name for v in body.input), *(t.name for t in body.initializer)}
    pending, ordered = list(body.node), []
    while pending:
        waiting = []
        for node in pending:
            if available.issuperset(reads(node)):
                duplicates = available.intersection(node.output) - {""}
                if duplicates:
                    raise ModelError(f"{graph.name}: tensor {duplicates.pop()!r} is computed twice")
                available.update(node.output)
                ordered.append(node)
            else:
                waiting.append(node)
        if len(waiting) == len(pending):
            missing = sorted(set(reads(waiting[0])) - available)
            raise ModelError(
                f"{graph.name}: {waiting[0].op_type} (node {waiting[0].name or waiting[0].output[:1]}) reads "
                f"{missing[0]!r}, which no node before it computes: the graph is damaged or has a cycle"
            )
        pending = waiting
    missing = [o.name for o in body.output if o.name not in available]
    if missing:
        raise ModelError(f"{graph.name}: no node computes its output {missing[0]!r}")
    if all(a is b for a, b in zip(ordered, body.node, strict=True)):
        return ""
    replace_nodes(graph, ordered)
    return "nodes sorted in the order of computation"


def _start_at_network(graph: OnnxGraph) -> str:
    """Remove the preprocessing that `spherecf export onnx` put inside the file: it is applied outside."""
    body, start = graph.model.graph, graph.metadata.get(ONNX_INPUT_KEY, "")
    producers = {name: node for node in body.node for name in node.output}
    if start not in producers:
        return ""
    pending, removed = [start], set[str]()
    while pending:
        name = pending.pop()
        removed.add(name)
        pending += [i for i in reads(producers[name]) if i in producers and i not in removed]
    replace_nodes(graph, [node for node in body.node if not removed.intersection(node.output)])
    del body.input[:]
    body.input.append(helper.make_tensor_value_info(start, onnx.TensorProto.FLOAT, ["batch", 3, "h", "w"]))
    return ""


def _modernise(graph: OnnxGraph) -> str:
    model, messages = graph.model, []
    old = opset_of(model)
    if old < OLDEST_OPSET:
        graph.model = model = _converted(graph, old)
        messages.append(f"opset {old} converted to {SAFE_OPSET}")
    if not OLDEST_IR <= model.ir_version <= NEWEST_IR:
        old, model.ir_version = model.ir_version, min(max(model.ir_version, OLDEST_IR), NEWEST_IR)
        messages.append(f"IR version {old} changed to {model.ir_version}")
    return "; ".join(messages)


def _converted(graph: OnnxGraph, opset: int) -> Model:
    """Convert the model to a current opset, with batch size one, as the converter needs all sizes."""
    sizes = {v.name: v.type.tensor_type.shape.dim for v in graph.model.graph.input}
    dynamic = [name for name, dims in sizes.items() if dims and not dims[0].HasField("dim_value")]
    for name in dynamic:
        sizes[name][0].dim_value = 1
    try:
        model = onnx.version_converter.convert_version(graph.model, SAFE_OPSET)
    except Exception as error:
        raise ModelError(
            f"{graph.name}: opset {opset} is too old and could not be converted: {error}"
        ) from error
    for value in model.graph.input:
        if value.name in dynamic:
            value.type.tensor_type.shape.dim[0].Clear()
    return model


def _drop_false_inputs(graph: OnnxGraph) -> str:
    """Keep the image as the only input: drop stored weights and tensors that no node reads."""
    body = graph.model.graph
    stored = {t.name for t in body.initializer}
    used = {name for node in body.node for name in reads(node)}
    orphans = [i.name for i in body.input if i.name not in stored and i.name not in used]
    images = [i for i in body.input if i.name not in stored and i.name in used]
    if len(images) != 1:
        listing = ", ".join(f"{i.name} {image_dims(i)}" for i in images) or "none"
        raise ModelError(f"{graph.name}: expected one image input, found {len(images)}: {listing}")
    del body.input[:]
    body.input.append(images[0])
    names = ", ".join(orphans[:3]) + (", ..." if len(orphans) > 3 else "")
    return f"{len(orphans)} unused graph inputs dropped ({names})" if orphans else ""


REPAIRS: tuple[Callable[[OnnxGraph], str], ...] = (
    _inline_functions,
    _dense_weights,
    _sort,
    _start_at_network,
    norms_per_position,
    _modernise,
    _drop_false_inputs,
    accept_image,
    infer_only,
    shape_slopes,
    quantised_maps,
    free_batch,
)
