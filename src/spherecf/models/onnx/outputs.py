"""Find, in any recogniser's graph, the embedding and the last map or tokens."""

from dataclasses import dataclass, field

import numpy as np

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
