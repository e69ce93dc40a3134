"""Repair what runtimes stumble over in a recogniser's graph, saying what was repaired."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper

from spherecf.errors import ModelError
from spherecf.models._onnx_batch import free_batch
from spherecf.models._onnx_file import LARGEST, Model, as_array, read_onnx
from spherecf.models._onnx_graph import (
    INPUT_KEY,
    NEWEST_IR,
    OLDEST_IR,
    OLDEST_OPSET,
    SAFE_OPSET,
    OnnxGraph,
    opset_of,
    reads,
    replace_nodes,
)
from spherecf.models._onnx_input import accept_image, image_dims
from spherecf.models._onnx_layers import infer_only, norms_per_position, quantised_maps, shape_slopes

MAX_NODES = 1_000_000  # operations in a graph with its functions written out


def load_graph(source: str | Path | Model) -> OnnxGraph:
    """Read, repair and describe a model file (or an ``onnx.ModelProto``, which is left untouched).

    Raises:
        ModelError: not an ONNX file, truncated, without one image input, or beyond repair; see `read_onnx`.
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
    """Newer exporters of torch keep layers as functions of the model's own."""
    functions = graph.model.functions
    count, sizes = len(functions), dict[tuple[str, str], int]()
    if not count:
        return ""
    for _ in functions:  # after as many rounds, functions of functions are counted whole
        for function in functions:
            calls = (sizes.get((node.domain, node.op_type), 1) for node in function.node)
            sizes[function.domain, function.name] = min(sum(calls), MAX_NODES + 1)
    if sum(sizes.get((node.domain, node.op_type), 1) for node in graph.model.graph.node) > MAX_NODES:
        raise ModelError(f"{graph.name}: its {count} functions stand for more than {MAX_NODES} operations")
    try:
        graph.model = inliner.inline_local_functions(graph.model, convert_version=True)
    except Exception as error:  # onnx's own errors have no common base
        raise ModelError(f"{graph.name}: its {count} functions cannot be written out: {error}") from error
    return f"{count} functions of the model's own written out"


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
        if not fits or size * values.itemsize > LARGEST:
            raise ModelError(f"{graph.name}: sparse tensor {name!r}: its positions are not within {dims}")
        dense = np.zeros(size, values.dtype)
        dense[flat] = values.ravel()
        body.initializer.append(numpy_helper.from_array(dense.reshape(dims), name))
    del body.sparse_initializer[:]
    return f"{count} sparse weights made dense" if count else ""


def _sort(graph: OnnxGraph) -> str:
    """Every node behind those it reads from; a tensor that nothing makes, or two nodes make, is an error."""
    body = graph.model.graph
    known = {"", *(v.name for v in body.input), *(t.name for t in body.initializer)}
    pending, ordered = list(body.node), []
    while pending:
        waiting = []
        for node in pending:
            if known.issuperset(reads(node)):
                twice = known.intersection(node.output) - {""}
                if twice:
                    raise ModelError(f"{graph.name}: tensor {twice.pop()!r} is made twice")
                known.update(node.output)
                ordered.append(node)
            else:
                waiting.append(node)
        if len(waiting) == len(pending):
            missing = sorted(set(reads(waiting[0])) - known)
            raise ModelError(
                f"{graph.name}: {waiting[0].op_type} (node {waiting[0].name or waiting[0].output[:1]}) reads "
                f"{missing[0]!r}, which nothing before it makes: the graph is damaged or runs in a circle"
            )
        pending = waiting
    absent = [o.name for o in body.output if o.name not in known]
    if absent:
        raise ModelError(f"{graph.name}: its output {absent[0]!r} is made by no node")
    if all(a is b for a, b in zip(ordered, body.node, strict=True)):
        return ""
    replace_nodes(graph, ordered)
    return "nodes put in the order they are computed"


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
        pending += [i for i in reads(producers[name]) if i in producers and i not in before]
    kept = [node for node in body.node if not before.intersection(node.output)]
    replace_nodes(graph, kept)
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
        messages.append(f"IR version {old} relabelled {model.ir_version}")
    return "; ".join(messages)


def _converted(graph: OnnxGraph, opset: int) -> Model:
    """The model in an opset of today; the converter wants to know all sizes, so it gets a batch of one."""
    sizes = {v.name: v.type.tensor_type.shape.dim for v in graph.model.graph.input}
    free = [name for name, dims in sizes.items() if dims and not dims[0].HasField("dim_value")]
    for name in free:
        sizes[name][0].dim_value = 1
    try:
        model = onnx.version_converter.convert_version(graph.model, SAFE_OPSET)
    except Exception as error:
        raise ModelError(
            f"{graph.name}: opset {opset} is too old and could not be converted: {error}"
        ) from error
    for value in model.graph.input:
        if value.name in free:
            value.type.tensor_type.shape.dim[0].Clear()
    return model


def _drop_false_inputs(graph: OnnxGraph) -> str:
    """Keep the image as the only input: stored weights and tensors that no node reads are none."""
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
    return f"{len(orphans)} orphan graph inputs dropped, no node reads them ({names})" if orphans else ""


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
