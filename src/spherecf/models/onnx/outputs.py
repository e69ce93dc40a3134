"""What a recogniser's graph gives, embedding and last map or tokens, and what it does to pixels first."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spherecf.errors import ModelError
from spherecf.models.network import Shape, map_shape
from spherecf.models.onnx.graph import (
    Node,
    OnnxGraph,
    attributes,
    evaluate,
    image_tensors,
    inferred_shapes,
    reads,
)
from spherecf.models.onnx.repairs import DEQUANTISED
from spherecf.models.preprocessing import Preprocessing

MIN_DIM = 32  # below this a row of numbers is a class score, an age, a box: not an embedding
CLASSIFIER_ENDS = ("Softmax", "LogSoftmax", "Sigmoid", "ArgMax")
# Operations that only rename or reorder: the map, or the tokens, are what stands before them.
PASSING = ("Dropout", "Identity", "Transpose", "Cast", "QuantizeLinear", "DynamicQuantizeLinear")
RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv")
LEARNING = (*CONVOLUTIONS, "Softmax", "LayerNormalization", "Attention")  # one made a map or tokens worth it
PRODUCTS = ("MatMul", "Einsum")
SPLITTING = ("Transpose", "Mul", "Div", "Squeeze", "Gather", "Split", "Slice")  # q, k and v of one tensor


@dataclass(frozen=True)
class GraphOutputs:
    """Names of the two tensors SphereCF needs, with their shapes per image.

    ``feature_shape`` is (C, H, W) as a map, ``given_shape`` as the graph has it: (T, C) of tokens.
    """

    embedding: str
    features: str
    dim: int
    feature_shape: tuple[int, int, int]
    given_shape: Shape = field(default=(), compare=False)


def find_outputs(
    graph: OnnxGraph, size: tuple[int, int], embedding: str | None = None, features: str | None = None
) -> GraphOutputs:
    """The embedding output (n, dim) and the last tensor on the way to it that still has positions.

    That is a map (n, C, H, W), H and W > 1, or tokens (n, T, C), T and C > 1. Walking back from the embedding
    through flatten, dense, normalisation, pooling and global depthwise layers and the choice of a class
    token, none of which sees more than one position, it is the first such tensor. What only renames or
    reorders is passed by, and so are the operands of an attention, (n, heads, T, T) among them. Maps may have
    their channels last.

    Args:
        graph: a repaired graph.
        size: (height, width) of the images.
        embedding: name of the embedding tensor, where the search would fail.
        features: name of the map or the tokens, likewise.

    Raises:
        ModelError: no embedding, no convolution or attention (a detector, a classifier, ...), or several
            candidates.
    """
    shapes = _shapes(graph, size)
    producers = {name: node for node in graph.model.graph.node for name in node.output}
    alive = image_tensors(graph)
    embedding = embedding or _find_embedding(graph, shapes, producers, alive)
    for role, name in (("embedding", embedding), ("features", features)):
        if name is not None and name not in alive:
            raise ModelError(
                f"{graph.name}: {role}={name!r} is no tensor of this graph that depends on the image"
            )
    features = features or _find_features(graph, embedding, shapes, producers, alive)
    embedding, features = (  # of a quantised tensor its floating point form
        name + DEQUANTISED if name + DEQUANTISED in alive else name for name in (embedding, features)
    )
    dim, given = _checked_shapes(graph, embedding, features, shapes)
    channels, height, width = map_shape(given)
    return GraphOutputs(embedding, features, dim, (channels, height, width), given)


def _shapes(graph: OnnxGraph, size: tuple[int, int]) -> dict[str, Shape]:
    """Shapes of all tensors for one image: inferred, or measured where a graph computes its own."""
    shapes = inferred_shapes(graph, size)
    unknown = sorted(image_tensors(graph) - set(shapes) - {graph.image})
    if not unknown:
        return shapes
    blank = {graph.image: np.zeros((1, 3, *size), np.float32)}
    measured = evaluate(graph, graph.model.graph.node, unknown, blank)
    arrays = {name: value for name, value in measured.items() if isinstance(value, np.ndarray)}
    return shapes | {name: value.shape for name, value in arrays.items()}


def _find_embedding(
    graph: OnnxGraph, shapes: dict[str, Shape], producers: dict[str, Node], alive: set[str]
) -> str:
    outputs: list[str] = [o.name for o in graph.model.graph.output if o.name in alive - {graph.image}]
    listing = ", ".join(f"{name} {shapes.get(name, 'of unknown shape')}" for name in outputs)
    rows = [n for n in outputs if _is_row(shapes.get(n)) and producers[n].op_type not in CLASSIFIER_ENDS]
    if len(rows) > 1:
        rows = [n for n in rows if "embed" in n.lower() or n.lower() in ("fc1", "feature")] or rows
    if len(rows) == 1:
        return rows[0]
    if rows:
        raise ModelError(
            f"{graph.name}: several outputs could be the embedding ({', '.join(rows)}); pass embedding= "
            f"with one's name"
        )
    ends = sorted({producers[n].op_type for n in outputs if n in producers} & set(CLASSIFIER_ENDS))
    what = f" and it ends in {', '.join(ends)}, as a classifier or detector does" if ends else ""
    raise ModelError(
        f"{graph.name}: not a recogniser: expected an output (n, dim) with dim >= {MIN_DIM}, found "
        f"{listing}{what}; if the embedding is another tensor, pass embedding= with its name"
    )


def _is_row(shape: Shape | None) -> bool:
    return shape is not None and len(shape) in (2, 4) and shape[1] >= MIN_DIM and shape[2:] in ((), (1, 1))


def _find_features(
    graph: OnnxGraph, embedding: str, shapes: dict[str, Shape], producers: dict[str, Node], alive: set[str]
) -> str:
    operands = _operands(graph, shapes)
    layer, seen = [embedding], {embedding}
    while layer:
        deeper: list[str] = []
        for name in layer:
            node = producers.get(name)
            if node is None or node.op_type == "Shape":
                continue
            if _has_positions(name, producers, shapes, operands):
                if _is_learned(name, producers):
                    return name
                break
            deeper += [i for i in reads(node) if i in alive and i not in seen]
            seen.update(reads(node))
        layer = deeper
    raise ModelError(
        f"{graph.name}: neither a convolutional recogniser nor a transformer: no map (n, channels, height, "
        f"width) and no tokens (n, tokens, channels) that a convolution or an attention made were found on "
        f"the way to {embedding}; if there are, pass features= with their name"
    )


def _operands(graph: OnnxGraph, shapes: dict[str, Shape]) -> set[str]:
    """What attentions multiply, (n, heads, T, d) and (n, heads, T, T), and what such parts are taken from."""
    operands: set[str] = set()
    for node in reversed(graph.model.graph.node):
        ranks = [len(shapes.get(name, ())) for name in node.input]
        inner = node.op_type in SPLITTING and operands.intersection(node.output)
        if inner or (node.op_type in PRODUCTS and 2 not in ranks):
            operands.update(name for name, rank in zip(node.input, ranks, strict=True) if rank > 3)
    return operands


def _has_positions(
    name: str, producers: dict[str, Node], shapes: dict[str, Shape], operands: set[str]
) -> bool:
    """Whether it is a map or tokens, no mere renaming or reordering of one, and not inside an attention."""
    shape, node = shapes.get(name, ()), producers.get(name)
    if node is None or len(shape) not in (3, 4) or shape[0] != 1 or min(shape[-2:]) <= 1:
        return False
    before = producers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    if before is not None and before.op_type == "QuantizeLinear":  # the two are what was quantised
        return _has_positions(before.input[0], producers, shapes, operands)
    if node.op_type == "Transpose":  # of what has the sequence first, only the result has images first
        return list(attributes(node).get("perm", ()))[:1] != [0]
    if node.op_type in RESHAPING:
        return len(shape) == 4 and len(shapes.get(node.input[0], ())) != 3 and name not in operands
    return node.op_type not in PASSING and not (len(shape) == 4 and name in operands)


def _is_learned(name: str, producers: dict[str, Node]) -> bool:
    pending, seen = [name], {name}
    while pending:
        node = producers.get(pending.pop())
        if node is None:
            continue
        if node.op_type in LEARNING:
            return True
        pending += [i for i in reads(node) if i not in seen]
        seen.update(reads(node))
    return False


def _checked_shapes(
    graph: OnnxGraph, embedding: str, features: str, shapes: dict[str, Shape]
) -> tuple[int, Shape]:
    row, layer = shapes.get(embedding), shapes.get(features)
    if not _is_row(row):
        raise ModelError(f"{graph.name}: the embedding {embedding} should be (n, dim), found {row}")
    if layer is None or len(layer) not in (3, 4):
        raise ModelError(
            f"{graph.name}: the features {features} should be a map (n, channels, height, width) or tokens "
            f"(n, tokens, channels), found {layer}"
        )
    if layer[0] != 1:
        raise ModelError(
            f"{graph.name}: the features {features} are {layer} for one image: images must come first, and "
            "neither windows nor the sequence; pass features= with the name of another tensor"
        )
    assert row is not None
    return row[1], layer[1:]


def needed_nodes(graph: OnnxGraph, wanted: set[str]) -> list[Node]:
    """The nodes that lead to these tensors, in order."""
    wanted, needed = set(wanted), []
    for node in reversed(graph.model.graph.node):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(reads(node))
    return needed[::-1]


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
