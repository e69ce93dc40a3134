"""Whether a graph normalises pixels itself, and whether that fits the preprocessing in front of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.errors import ModelError
from spherecf.models.onnx.graph import OnnxGraph, evaluate, image_tensors, reads
from spherecf.models.onnx.module import needed_nodes
from spherecf.models.onnx.outputs import CONVOLUTIONS
from spherecf.models.preprocessing import Preprocessing

# What a graph may do to every pixel alike before its first layer.
SCALING = {"Add", "Sub", "Mul", "Div", "Neg", "BatchNormalization"}
MOVING = {"Cast", "Identity", "Transpose", "Gather", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze"}

BLIND = 0.05  # black and white are nearer than this: the recogniser sees one grey
LOST = 10.0  # or both are further from zero than this many times their distance
USUAL = (0.5, 20.0)  # their distance in recognisers as people train them


@dataclass(frozen=True)
class FirstSteps:
    """What a graph does to every pixel before its first layer: value = factor x + shift.

    Attributes:
        layer: operation of the first layer.
        operations: those that scale, in order; none if the graph leaves that to others.
        factor, shift: (3,), or of as many channels as there are.
        tensor: what the first layer reads.
    """

    layer: str
    operations: tuple[str, ...]
    factor: NDArray[Any]
    shift: NDArray[Any]
    tensor: str

    def __str__(self) -> str:
        return f"{_numbers(self.factor)} x + {_numbers(self.shift)} ({', '.join(self.operations)})"


def check_pixels(graph: OnnxGraph, pixels: Preprocessing) -> str:
    """A sentence about preprocessing that looks wrong before this graph, "" if it looks right.

    Raises:
        ModelError: graph and preprocessing both normalise, so that black and white arrive as nearly the same
            number; or the graph takes bytes and would get fractions.
    """
    plain = not np.any(pixels.mean) and np.all(np.asarray(pixels.std) == 1)
    given = f"preprocessing ({pixels.color}, mean {pixels.mean}, std {pixels.std})"
    if graph.takes_bytes and not plain:
        raise ModelError(
            f"{graph.name}: the graph takes pixels as uint8 and normalises them itself; {given} gives it "
            f"fractions; pass 'raw', or Preprocessing('bgr', 0.0, 1.0) if it was trained on BGR"
        )
    steps = first_steps(graph, pixels.size)
    if steps is None:
        return ""
    if not steps.operations:
        unsaid = plain and steps.layer in CONVOLUTIONS and not graph.takes_bytes
        return (
            f"neither the graph nor {given} normalises: its first {steps.layer} gets 0..255, which is right "
            f"only if it was trained so" if unsaid else ""
        )  # fmt: skip
    faces = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, *pixels.size, 3)
    black, white = _values(graph, steps.tensor, list(pixels(faces).numpy()))
    apart, middle = float(np.abs(white - black).max()), float(np.abs(white + black).max()) / 2
    arrive = f"with {given} black and white reach its first layer as {_numbers(black)} and {_numbers(white)}"
    trained = "BatchNormalization" in steps.operations
    if middle > LOST * apart or (apart < BLIND and not trained):
        raise ModelError(
            f"{graph.name}: pixels are normalised twice: the graph itself computes {steps}, and {arrive}, "
            f"nearly the same; pass 'raw' (RGB), or Preprocessing('bgr', 0.0, 1.0) if it was trained on BGR"
        )
    stretched = apart > USUAL[1] and np.abs(steps.factor).max() > 1.5  # made for numbers near one
    if apart < USUAL[0] or stretched:
        return f"the graph itself computes {steps}: {arrive}, which is unusual; is the preprocessing right?"
    return ""


def hint(graph: OnnxGraph) -> str:
    """What the graph says about its preprocessing, for an error message."""
    steps = first_steps(graph, graph.size or (112, 112))
    if graph.takes_bytes:
        return " The graph takes uint8 pixels and normalises them itself ('raw')."
    return f" The graph itself computes {steps}: it may want 'raw'." if steps and steps.operations else ""


def first_steps(graph: OnnxGraph, size: tuple[int, int]) -> FirstSteps | None:
    """What the graph does to every pixel alike before its first layer; None if that cannot be told."""
    alive, alike, ends = image_tensors(graph), {graph.image}, dict[str, str]()
    for node in graph.model.graph.node:
        inputs = alive.intersection(reads(node))
        if inputs and inputs <= alike and node.op_type in SCALING | MOVING:
            alike.update(node.output)
        elif inputs and node.op_type != "Shape":
            ends.update(dict.fromkeys(inputs & alike, node.op_type))
    if len(ends) != 1:
        return None
    ((tensor, layer),) = ends.items()
    nodes = needed_nodes(graph, {tensor})
    operations = tuple(node.op_type for node in nodes if node.op_type in SCALING)
    if not operations:
        return FirstSteps(layer, (), np.ones(1), np.zeros(1), tensor)
    zero, one, many = _values(graph, tensor, [np.full((3, *size), x, np.float32) for x in (0, 1, 255)])
    factor = one - zero
    straight = np.allclose(many, zero + 255 * factor, rtol=1e-2, atol=1e-2 * np.abs(many).max())
    return FirstSteps(layer, operations, factor, zero, tensor) if straight else None


def _values(graph: OnnxGraph, tensor: str, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """What the first layer gets of evenly coloured images, per channel (one number if there are not 3)."""
    nodes = needed_nodes(graph, {tensor})
    feeds = ({graph.image: np.ascontiguousarray(image[None])} for image in images)
    values = (evaluate(graph, nodes, [tensor], feed)[tensor].astype(np.float64) for feed in feeds)
    return [_channels(value) for value in values]


def _channels(value: NDArray[Any]) -> NDArray[Any]:
    axis = next((axis for axis in (1, -1) if value.ndim > 1 and value.shape[axis] == 3), None)
    if axis is None:
        return np.atleast_1d(value.mean())
    return np.asarray(np.moveaxis(value, axis, 0).reshape(3, -1).mean(1))


def _numbers(values: NDArray[Any]) -> str:
    """One number if all are the same, else a list."""
    texts = [f"{v:.4g}" for v in values]
    return texts[0] if len(set(texts)) == 1 else f"({', '.join(texts)})"
