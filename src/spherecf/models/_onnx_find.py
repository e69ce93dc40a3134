"""Find, in any recogniser's graph, the embedding and the last convolutional map."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from spherecf.errors import ModelError
from spherecf.models._onnx_file import Node
from spherecf.models._onnx_graph import OnnxGraph, Shape, evaluate, image_tensors, inferred_shapes, reads
from spherecf.models._onnx_layers import DEQUANTISED

SMALLEST_DIM = 32  # below this a row of numbers is a class score, an age, a box: not an embedding
CLASSIFIER_ENDS = ("Softmax", "LogSoftmax", "Sigmoid", "ArgMax")
CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv")
# Operations that only rename or reorder a map: the map itself is what stands before them.
PASSING = ("Dropout", "Identity", "Transpose", "Cast", "QuantizeLinear", "DynamicQuantizeLinear")


@dataclass(frozen=True)
class Found:
    """Names of the two tensors SphereCF needs, with their shapes per image."""

    embedding: str
    features: str
    dim: int
    feature_shape: tuple[int, int, int]


def find(
    graph: OnnxGraph, size: tuple[int, int], embedding: str | None = None, features: str | None = None
) -> Found:
    """The embedding output (n, dim) and the last map (n, C, H, W), H and W > 1, on the way to it.

    Walking back from the embedding through flatten, dense, normalisation, pooling and global depthwise
    layers, all of which see at most 1x1 maps, the first tensor that still has spatial extent is the last map.

    Args:
        graph: a repaired graph.
        size: (height, width) of the images.
        embedding: name of the embedding tensor, where the search would fail.
        features: name of the map, likewise.

    Raises:
        ModelError: no embedding or no convolution (a detector, a classifier, ...), or several candidates.
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
    return Found(embedding, features, *_checked_shapes(graph, embedding, features, shapes))


def _shapes(graph: OnnxGraph, size: tuple[int, int]) -> dict[str, Shape]:
    """Shapes of all tensors for one image: inferred, or measured where a graph computes its own."""
    shapes = inferred_shapes(graph, size)
    unknown = sorted(image_tensors(graph) - set(shapes) - {graph.image})
    if not unknown:
        return shapes
    blank = {graph.image: np.zeros((1, 3, *size), np.float32)}
    measured = evaluate(graph, graph.model.graph.node, unknown, blank)
    return {**shapes, **{name: np.shape(value) for name, value in measured.items()}}


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
        f"{graph.name}: not a recogniser: expected an output (n, dim) with dim >= {SMALLEST_DIM}, found "
        f"{listing}{what}; if the embedding is another tensor, pass embedding= with its name"
    )


def _is_row(shape: Shape | None) -> bool:
    return (
        shape is not None and len(shape) in (2, 4) and shape[1] >= SMALLEST_DIM and shape[2:] in ((), (1, 1))
    )


def _find_features(
    graph: OnnxGraph, embedding: str, shapes: dict[str, Shape], producers: dict[str, Node], alive: set[str]
) -> str:
    layer, seen = [embedding], {embedding}
    while layer:
        deeper: list[str] = []
        for name in layer:
            shape, node = shapes.get(name, ()), producers.get(name)
            if node is None:
                continue
            if len(shape) == 4 and min(shape[2:]) > 1 and node.op_type not in PASSING:
                if _after_convolution(name, producers):
                    return name
                break
            deeper += [i for i in reads(node) if i in alive and i not in seen]
            seen.update(reads(node))
        layer = deeper
    raise ModelError(
        f"{graph.name}: not a convolutional recogniser: no map (n, channels, height, width) that a "
        f"convolution made was found on the way to {embedding}; if there is one, pass features= with its name"
    )


def _after_convolution(name: str, producers: dict[str, Node]) -> bool:
    pending, seen = [name], {name}
    while pending:
        node = producers.get(pending.pop())
        if node is None:
            continue
        if node.op_type in CONVOLUTIONS:
            return True
        pending += [i for i in reads(node) if i not in seen]
        seen.update(reads(node))
    return False


def _checked_shapes(
    graph: OnnxGraph, embedding: str, features: str, shapes: dict[str, Shape]
) -> tuple[Any, Any]:
    row, layer = shapes.get(embedding), shapes.get(features)
    if not _is_row(row):
        raise ModelError(f"{graph.name}: the embedding {embedding} should be (n, dim), found {row}")
    if layer is None or len(layer) != 4:
        raise ModelError(
            f"{graph.name}: the map {features} should be (n, channels, height, width), found {layer}"
        )
    assert row is not None
    return row[1], layer[1:]
