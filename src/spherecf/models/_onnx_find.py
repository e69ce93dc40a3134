"""Find, in any recogniser's graph, the embedding and the last convolutional map."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from spherecf.errors import ModelError
from spherecf.models._onnx_graph import Node, OnnxGraph, image_tensors

Shape = tuple[int, ...]

SMALLEST_DIM = 32  # below this a row of numbers is a class score, an age, a box: not an embedding
CLASSIFIER_ENDS = ("Softmax", "LogSoftmax", "Sigmoid", "ArgMax")
# Operations that only rename or reorder a map: the map itself is what stands before them.
PASSING = ("Dropout", "Identity", "Transpose", "Cast")


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
    embedding = embedding or _find_embedding(graph, shapes, producers)
    alive = image_tensors(graph)
    for role, name in (("embedding", embedding), ("features", features)):
        if name is not None and name not in alive:
            raise ModelError(
                f"{graph.name}: {role}={name!r} is no tensor of this graph that depends on the image"
            )
    features = features or _find_features(graph, embedding, shapes, producers, alive)
    return Found(embedding, features, *_checked_shapes(graph, embedding, features, shapes))


def _shapes(graph: OnnxGraph, size: tuple[int, int]) -> dict[str, Shape]:
    """Shapes of all tensors for one image, as far as ONNX can infer them."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    dims = model.graph.input[0].type.tensor_type.shape.dim
    for dim, length in zip(dims, (1, 3, *size), strict=True):
        dim.Clear()
        dim.dim_value = length
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception as error:
        raise ModelError(f"{graph.name}: inconsistent graph, shapes cannot be inferred: {error}") from error
    shapes = {}
    for value in (*inferred.value_info, *inferred.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    unknown = sorted(image_tensors(graph) - set(shapes) - {graph.image})
    return {**shapes, **_measured(graph, size, unknown)} if unknown else shapes


def _measured(graph: OnnxGraph, size: tuple[int, int], names: list[str]) -> dict[str, Shape]:
    """Shapes as onnxruntime finds them on a blank image, where a graph computes its own."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        results = session.run(names, {graph.image: np.zeros((1, 3, *size), np.float32)})
    except Exception as error:  # onnxruntime's errors have no common base
        raise ModelError(f"{graph.name}: onnxruntime refuses the graph: {str(error).strip()}") from error
    return {name: result.shape for name, result in zip(names, results, strict=True)}


def _find_embedding(graph: OnnxGraph, shapes: dict[str, Shape], producers: dict[str, Node]) -> str:
    outputs: list[str] = [o.name for o in graph.model.graph.output]
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
            deeper += [i for i in node.input if i in alive and i not in seen]
            seen.update(node.input)
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
        if node.op_type == "Conv":
            return True
        pending += [i for i in node.input if i not in seen]
        seen.update(node.input)
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
