"""Find a graph's embedding and last feature map or tokens, and check its preprocessing of pixels."""

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

MIN_DIM = 32  # shorter rows are class scores, ages or boxes, not embeddings
CLASSIFIER_ENDS = ("Softmax", "LogSoftmax", "Sigmoid", "ArgMax")
# Operations that only copy or reorder values: the map, or the tokens, are their input.
PASSING = ("Dropout", "Identity", "Transpose", "Cast", "QuantizeLinear", "DynamicQuantizeLinear")
RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")
CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv")
# A feature map or tokens must depend on one of these operations.
LEARNING = (*CONVOLUTIONS, "Softmax", "LayerNormalization", "Attention")
PRODUCTS = ("MatMul", "Einsum")
# Operations that extract queries, keys and values from a joint tensor.
SPLITTING = ("Transpose", "Mul", "Div", "Squeeze", "Gather", "Split", "Slice")


@dataclass(frozen=True)
class GraphOutputs:
    """Names of the two tensors that SphereCF needs, and their shapes per image.

    Attributes:
        embedding, features: the names.
        dim: dimension of the embedding.
        feature_shape: (C, H, W) of the features as a map.
        given_shape: shape of the features in the graph, (T, C) for tokens.
    """

    embedding: str
    features: str
    dim: int
    feature_shape: tuple[int, int, int]
    given_shape: Shape = field(default=(), compare=False)


def find_outputs(
    graph: OnnxGraph, size: tuple[int, int], embedding: str | None = None, features: str | None = None
) -> GraphOutputs:
    """Find the embedding output (n, dim) and the last feature map or tokens that it is computed from.

    The search walks back from the embedding, through flatten, dense, normalisation, pooling and global
    depthwise layers and the selection of a class token, whose outputs have no spatial positions. It selects
    the first tensor with positions: a map (n, C, H, W) with H and W > 1, possibly with channels last, or
    tokens (n, T, C) with T and C > 1. Operations that only copy or reorder values are skipped, and so are the
    operands of an attention, such as (n, heads, T, T).

    Args:
        graph: a repaired graph.
        size: (height, width) of the images.
        embedding: name of the embedding tensor, if the search fails.
        features: name of the map or the tokens, if the search fails.

    Raises:
        ModelError: no embedding, no convolution or attention (a detector, a classifier, ...), or several
            candidates.
    """
    shapes = _shapes(graph, size)
    producers = {name: node for node in graph.model.graph.node for name in node.output}
    dependent = image_tensors(graph)
    embedding = embedding or _find_embedding(graph, shapes, producers, dependent)
    for role, name in (("embedding", embedding), ("features", features)):
        if name is not None and name not in dependent:
            raise ModelError(
                f"{graph.name}: {role}={name!r} is not a tensor of this graph that depends on the image"
            )
    features = features or _find_features(graph, embedding, shapes, producers, dependent)
    embedding, features = (  # use the dequantised form of a quantised tensor
        name + DEQUANTISED if name + DEQUANTISED in dependent else name for name in (embedding, features)
    )
    dim, given = _checked_shapes(graph, embedding, features, shapes)
    channels, height, width = map_shape(given)
    return GraphOutputs(embedding, features, dim, (channels, height, width), given)


def _shapes(graph: OnnxGraph, size: tuple[int, int]) -> dict[str, Shape]:
    """Shapes of all tensors for one image: inferred or, if they depend on computed values, measured."""
    shapes = inferred_shapes(graph, size)
    unknown = sorted(image_tensors(graph) - set(shapes) - {graph.image})
    if not unknown:
        return shapes
    blank = {graph.image: np.zeros((1, 3, *size), np.float32)}
    measured = evaluate(graph, graph.model.graph.node, unknown, blank)
    arrays = {name: value for name, value in measured.items() if isinstance(value, np.ndarray)}
    return shapes | {name: value.shape for name, value in arrays.items()}


def _find_embedding(
    graph: OnnxGraph, shapes: dict[str, Shape], producers: dict[str, Node], dependent: set[str]
) -> str:
    outputs: list[str] = [o.name for o in graph.model.graph.output if o.name in dependent - {graph.image}]
    listing = ", ".join(f"{name} {shapes.get(name, 'of unknown shape')}" for name in outputs)
    rows = [n for n in outputs if _is_row(shapes.get(n)) and producers[n].op_type not in CLASSIFIER_ENDS]
    if len(rows) > 1:
        rows = [n for n in rows if "embed" in n.lower() or n.lower() in ("fc1", "feature")] or rows
    if len(rows) == 1:
        return rows[0]
    if rows:
        raise ModelError(
            f"{graph.name}: several outputs could be the embedding ({', '.join(rows)}); pass embedding= "
            f"with the name of one"
        )
    ends = sorted({producers[n].op_type for n in outputs if n in producers} & set(CLASSIFIER_ENDS))
    reason = f", and the graph ends in {', '.join(ends)}, like a classifier or detector" if ends else ""
    raise ModelError(
        f"{graph.name}: not a recogniser: expected an output (n, dim) with dim >= {MIN_DIM}, found "
        f"{listing}{reason}; if the embedding is another tensor, pass embedding= with its name"
    )


def _is_row(shape: Shape | None) -> bool:
    return shape is not None and len(shape) in (2, 4) and shape[1] >= MIN_DIM and shape[2:] in ((), (1, 1))


def _find_features(
    graph: OnnxGraph,
    embedding: str,
    shapes: dict[str, Shape],
    producers: dict[str, Node],
    dependent: set[str],
) -> str:
    """Breadth-first search from the embedding towards the image."""
    operands = _attention_operands(graph, shapes)
    layer, visited = [embedding], {embedding}
    while layer:
        next_layer: list[str] = []
        for name in layer:
            node = producers.get(name)
            if node is None or node.op_type == "Shape":
                continue
            if _has_positions(name, producers, shapes, operands):
                if _is_learned(name, producers):
                    return name
                continue  # such as a pooled image that is joined to the embedding's features
            next_layer += [i for i in reads(node) if i in dependent and i not in visited]
            visited.update(reads(node))
        layer = next_layer
    raise ModelError(
        f"{graph.name}: neither a convolutional recogniser nor a transformer: {embedding} does not depend on "
        f"a map (n, channels, height, width) or tokens (n, tokens, channels) of a convolution or an "
        f"attention; if it does, pass features= with the name"
    )


def _attention_operands(graph: OnnxGraph, shapes: dict[str, Shape]) -> set[str]:
    """Factors of attention products, (n, heads, T, d) and (n, heads, T, T), and their source tensors."""
    operands: set[str] = set()
    for node in reversed(graph.model.graph.node):
        ranks = [len(shapes.get(name, ())) for name in node.input]
        splits = node.op_type in SPLITTING and operands.intersection(node.output)
        if splits or (node.op_type in PRODUCTS and 2 not in ranks):
            operands.update(name for name, rank in zip(node.input, ranks, strict=True) if rank > 3)
    return operands


def _has_positions(
    name: str, producers: dict[str, Node], shapes: dict[str, Shape], operands: set[str]
) -> bool:
    """Whether a tensor is a map or tokens, but not a copy or reordering, and not inside an attention."""
    shape, node = shapes.get(name, ()), producers.get(name)
    if node is None or len(shape) not in (3, 4) or shape[0] != 1 or min(shape[-2:]) <= 1:
        return False
    quantised = producers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    if quantised is not None and quantised.op_type == "QuantizeLinear":  # a pair that changes nothing
        return _has_positions(quantised.input[0], producers, shapes, operands)
    if node.op_type == "Transpose":  # from sequence first to images first: only the result counts
        return list(attributes(node).get("perm", ()))[:1] != [0]
    if node.op_type in RESHAPING:
        return len(shape) == 4 and len(shapes.get(node.input[0], ())) != 3 and name not in operands
    return node.op_type not in PASSING and not (len(shape) == 4 and name in operands)


def _is_learned(name: str, producers: dict[str, Node]) -> bool:
    """Whether a tensor depends on one of the operations in `LEARNING`."""
    pending, visited = [name], {name}
    while pending:
        node = producers.get(pending.pop())
        if node is None:
            continue
        if node.op_type in LEARNING:
            return True
        pending += [i for i in reads(node) if i not in visited]
        visited.update(reads(node))
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
            f"{graph.name}: the features {features} have the shape {layer} for one image: the first "
            "dimension must be images, not windows or the sequence; pass features= with the name of another "
            "tensor"
        )
    assert row is not None
    return row[1], layer[1:]


def needed_nodes(graph: OnnxGraph, tensors: set[str]) -> list[Node]:
    """The nodes that these tensors depend on, in order."""
    required, needed = set(tensors), []
    for node in reversed(graph.model.graph.node):
        if required.intersection(node.output):
            needed.append(node)
            required.update(reads(node))
    return needed[::-1]


# Operations that a graph may apply to all pixels alike before its first layer.
SCALING = {"Add", "Sub", "Mul", "Div", "Neg", "BatchNormalization"}
MOVING = {"Cast", "Identity", "Transpose", "Gather", "Slice", "Split", "Concat", "Squeeze", "Unsqueeze"}

BLIND = 0.05  # a distance between black and white below which the recogniser sees only grey
LOST = 10.0  # ratio of their mean magnitude to their distance beyond which contrast is lost
USUAL = (0.5, 20.0)  # their usual distance in trained recognisers


@dataclass(frozen=True)
class FirstSteps:
    """The transformation of pixels before a graph's first layer: value = factor x + shift.

    Attributes:
        layer: operation of the first layer.
        operations: scaling operations, in order; empty if the graph expects normalised pixels.
        factor, shift: one value per channel.
        tensor: input of the first layer.
    """

    layer: str
    operations: tuple[str, ...]
    factor: NDArray[Any]
    shift: NDArray[Any]
    tensor: str

    def __str__(self) -> str:
        return f"{_numbers(self.factor)} x + {_numbers(self.shift)} ({', '.join(self.operations)})"


def check_pixels(graph: OnnxGraph, pixels: Preprocessing) -> str:
    """Check that preprocessing suits a graph: a warning if it looks wrong, "" if it looks right.

    Raises:
        ModelError: graph and preprocessing both normalise, which maps black and white to nearly the same
            value; or the graph takes uint8 pixels, but preprocessing gives fractions.
    """
    unscaled = not np.any(pixels.mean) and np.all(np.asarray(pixels.std) == 1)
    description = f"preprocessing ({pixels.color}, mean {pixels.mean}, std {pixels.std})"
    if graph.takes_bytes and not unscaled:
        raise ModelError(
            f"{graph.name}: the graph takes uint8 pixels and normalises them itself, but {description} gives "
            f"fractions; pass 'raw', or Preprocessing('bgr', 0.0, 1.0) if it was trained on BGR"
        )
    steps = first_steps(graph, pixels.size)
    if steps is None:
        return ""
    if not steps.operations:
        unnormalised = unscaled and steps.layer in CONVOLUTIONS and not graph.takes_bytes
        return (
            f"neither the graph nor {description} normalises: its first {steps.layer} gets 0..255, which is "
            f"right only if it was trained on 0..255" if unnormalised else ""
        )  # fmt: skip
    faces = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, *pixels.size, 3)
    black, white = _values(graph, steps.tensor, list(pixels(faces).numpy()))
    distance, mean = float(np.abs(white - black).max()), float(np.abs(white + black).max()) / 2
    values = (
        f"with {description} black and white reach its first layer as {_numbers(black)} and {_numbers(white)}"
    )
    learned_scale = "BatchNormalization" in steps.operations
    if mean > LOST * distance or (distance < BLIND and not learned_scale):
        raise ModelError(
            f"{graph.name}: pixels are normalised twice: the graph itself computes {steps}, and {values}, "
            f"nearly the same; pass 'raw' (RGB), or Preprocessing('bgr', 0.0, 1.0) if it was trained on BGR"
        )
    stretched = distance > USUAL[1] and np.abs(steps.factor).max() > 1.5  # expects values near one
    if distance < USUAL[0] or stretched:
        return f"the graph itself computes {steps}: {values}, which is unusual; is the preprocessing right?"
    return ""


def hint(graph: OnnxGraph) -> str:
    """A hint at the preprocessing that a graph expects, for an error message."""
    steps = first_steps(graph, graph.size or (112, 112))
    if graph.takes_bytes:
        return " The graph takes uint8 pixels and normalises them itself ('raw')."
    return f" The graph itself computes {steps}: it may need 'raw'." if steps and steps.operations else ""


def first_steps(graph: OnnxGraph, size: tuple[int, int]) -> FirstSteps | None:
    """The transformation of pixels before the first layer; None if it cannot be determined."""
    dependent = image_tensors(graph)
    pixelwise, first_layers = {graph.image}, dict[str, str]()
    for node in graph.model.graph.node:
        inputs = dependent.intersection(reads(node))
        if inputs and inputs <= pixelwise and node.op_type in SCALING | MOVING:
            pixelwise.update(node.output)
        elif inputs and node.op_type != "Shape":
            first_layers.update(dict.fromkeys(inputs & pixelwise, node.op_type))
    if len(first_layers) != 1:
        return None
    ((tensor, layer),) = first_layers.items()
    nodes = needed_nodes(graph, {tensor})
    operations = tuple(node.op_type for node in nodes if node.op_type in SCALING)
    if not operations:
        return FirstSteps(layer, (), np.ones(1), np.zeros(1), tensor)
    at_0, at_1, at_255 = _values(graph, tensor, [np.full((3, *size), x, np.float32) for x in (0, 1, 255)])
    factor = at_1 - at_0
    linear = np.allclose(at_255, at_0 + 255 * factor, rtol=1e-2, atol=1e-2 * np.abs(at_255).max())
    return FirstSteps(layer, operations, factor, at_0, tensor) if linear else None


def _values(graph: OnnxGraph, tensor: str, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Values of a tensor for images of uniform colour, per channel (the mean unless there are 3)."""
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
    """Format one number if all are equal, else a list."""
    texts = [f"{v:.4g}" for v in values]
    return texts[0] if len(set(texts)) == 1 else f"({', '.join(texts)})"
