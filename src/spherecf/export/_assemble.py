"""Preprocessing, network and confidence as one ONNX graph."""

import copy
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

from spherecf.export._tail import Confidence, Direction, Pixels
from spherecf.models import ONNX_INPUT_KEY, ConfidenceModel, opset_of, trace_onnx

IMAGE = "image"


def assemble(model: ConfidenceModel, *, inside: bool, everything: bool) -> Any:
    """One ``onnx.ModelProto`` from three graphs of the same opset, chained by the names of tensors.

    The network's own graph is taken as it is, so that the file does what onnxruntime does with the original;
    its names get a prefix, so that none can meet those of the outputs.

    Args:
        model: recogniser and head.
        inside: start with uint8 faces, not with the network's numbers.
        everything: end with all outputs, not with the embedding alone.

    Raises:
        ModelError: the network or the head cannot be written as ONNX.
    """
    network = model.backbone.to_onnx()
    opset = opset_of(network)
    network = onnx.compose.add_prefix(network, "network/")
    start = network.graph.input[0].name
    first = _pixels(model, start, opset) if inside else _nothing(model, start)
    last = _confidence(model, [o.name for o in network.graph.output], opset, everything)
    body = helper.make_graph(
        [*first.node, *network.graph.node, *last.node], "spherecf", list(first.input), list(last.output),
        [*first.initializer, *network.graph.initializer, *last.initializer],
    )  # fmt: skip
    made = helper.make_model(body, opset_imports=list(network.opset_import), ir_version=network.ir_version)
    if inside:
        helper.set_model_props(made, {ONNX_INPUT_KEY: start})
    return made


def _pixels(model: ConfidenceModel, end: str, opset: int) -> Any:
    size = model.backbone.preprocessing.size
    images = torch.zeros(2, *size, 3, dtype=torch.uint8)
    traced = trace_onnx(Pixels(model.backbone.preprocessing), {IMAGE: images}, [end], opset)
    return _prefixed(traced, "pixels/")


def _nothing(model: ConfidenceModel, end: str) -> Any:
    shape: list[str | int | None] = ["batch", 3, *model.backbone.preprocessing.size]
    image = helper.make_tensor_value_info(IMAGE, TensorProto.FLOAT, shape)
    same = helper.make_tensor_value_info(end, TensorProto.FLOAT, shape)
    return helper.make_graph([helper.make_node("Identity", [IMAGE], [end])], "nothing", [image], [same])


def _confidence(model: ConfidenceModel, inputs: list[str], opset: int, everything: bool) -> Any:
    backbone, calibration = model.backbone, model.calibration
    shapes = (2, backbone.dim), (2, *backbone.feature_shape)
    examples = {name: torch.ones(shape) for name, shape in zip(inputs, shapes, strict=True)}
    if everything:
        head = copy.deepcopy(model.head).cpu()  # the caller's keeps its device and mode
        tail = Confidence(head, None if calibration is None else calibration.kappa)
        traced = trace_onnx(tail, examples, tail.names, opset)
    else:
        traced = trace_onnx(Direction(), {inputs[0]: examples[inputs[0]]}, ["embedding"], opset)
    return _prefixed(traced, "confidence/")


def _prefixed(model: Any, prefix: str) -> Any:
    """Its graph with names of its own inside; inputs and outputs are what the parts are joined by."""
    return onnx.compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False).graph
