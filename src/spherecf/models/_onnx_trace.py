"""A torch module as an ONNX graph."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from spherecf.errors import ModelError
from spherecf.models._network import map_order
from spherecf.models._onnx_file import LARGEST, Model
from spherecf.models._onnx_find import Found
from spherecf.models._onnx_graph import SAFE_OPSET, OnnxGraph, opset_of, reads
from spherecf.models._onnx_import import needed_nodes

TRACED_OPSETS = (9, 20)  # what torch writes; newer ones are converted from the last
BATCH = "batch"


def trace_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], opset_version: int = 17
) -> Model:
    """An ``onnx.ModelProto`` that does what the module does in evaluation mode, for any number of rows.

    The module is run once and what it does is written down, so that any module without decisions that depend
    on its input's values can be exported. The first dimension of all inputs and outputs becomes ``batch``.

    Args:
        module: takes the inputs in this order and returns the outputs as a tensor or a tuple.
        inputs: examples of at least two rows, by the names they get.
        outputs: names of the results.
        opset_version: of the graph, 9 or later.

    Raises:
        ModelError: torch cannot write an operation, or the result is larger than 2 GiB.

    Example:
        >>> model = trace_onnx(nn.Linear(4, 2), {"x": torch.zeros(2, 4)}, ["y"])
        >>> [node.op_type for node in model.graph.node], model.graph.output[0].name
        (['Gemm'], 'y')
    """
    oldest, newest = TRACED_OPSETS
    if opset_version < oldest:
        raise ModelError(f"opset {opset_version} is older than {oldest}, the oldest that torch writes")
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    if size > LARGEST:
        raise ModelError(f"{size} bytes of weights: an ONNX file holds 2 GiB at most; use a smaller head")
    stream: Any = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # Checks of the input become constants, which is meant; the other exporter needs one more package.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module.eval(), tuple(inputs.values()), stream, input_names=[*inputs],
                output_names=[*outputs], dynamic_axes={name: {0: BATCH} for name in (*inputs, *outputs)},
                opset_version=min(opset_version, newest), dynamo=False,
            )  # fmt: skip
        except (RuntimeError, torch.onnx.OnnxExporterError) as error:
            raise ModelError(f"torch cannot write this network as ONNX: {error}") from error
    model = onnx.load_model_from_string(stream.getvalue())
    return model if opset_of(model) == opset_version else _with_opset(model, opset_version)


def _with_opset(model: Model, version: int) -> Model:
    """The same graph in another opset.

    Raises:
        ModelError: onnx has no converter for one of its operations.
    """
    try:
        return onnx.version_converter.convert_version(model, version)
    except Exception as error:  # the converter raises RuntimeError and classes of its own
        found = f"{model.graph.name or 'the graph'}: opset {opset_of(model)}"
        raise ModelError(f"{found} cannot be converted to {version}: {error}") from error


def cut_graph(graph: OnnxGraph, found: Found) -> Model:
    """The part of a repaired graph that leads to (embedding, map), its new outputs, in opset 9 or later."""
    model, body = graph.model, graph.model.graph
    outputs = [found.embedding, _add_map(body, found)]
    kept = needed_nodes(graph, set(outputs))
    used = {name for node in kept for name in reads(node)}
    stored = [tensor for tensor in body.initializer if tensor.name in used]
    del body.node[:], body.initializer[:], body.output[:], body.value_info[:], model.metadata_props[:]
    body.node.extend(kept)
    body.initializer.extend(stored)
    body.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs
    )
    return model if opset_of(model) >= TRACED_OPSETS[0] else _with_opset(model, SAFE_OPSET)


def _add_map(body: Any, found: Found) -> str:
    """Name of the features as a map: where they come in another form, the graph gets `as_map` at its end."""
    order = map_order(found.given_shape)
    if not order:
        return found.features
    turned, name, sizes = (f"{found.features}/{part}" for part in ("turned", "map", "sizes"))
    axes, shape = [0, *(axis + 1 for axis in order)], np.array([-1, *found.feature_shape])
    body.initializer.append(onnx.numpy_helper.from_array(shape, sizes))
    body.node.append(onnx.helper.make_node("Transpose", [found.features], [turned], perm=axes))
    body.node.append(onnx.helper.make_node("Reshape", [turned, sizes], [name]))
    return name
