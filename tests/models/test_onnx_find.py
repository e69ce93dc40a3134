from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.models import graphs, transformers
from torch import Tensor, nn

from spherecf.errors import ModelError
from spherecf.models import default_detector_path
from spherecf.models.network import Shape
from spherecf.models.onnx.outputs import GraphOutputs, find_outputs
from spherecf.models.onnx.repairs import load_graph
from spherecf.models.preprocessing import default_recogniser_path


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (graphs.iresnet(), GraphOutputs("features", "bn2", 48, (8, 8, 8))),
        (graphs.iresnet(batch=4), GraphOutputs("features", "bn2", 48, (8, 8, 8))),
        (graphs.mobilefacenet(batch=1), GraphOutputs("output", "last_map", 40, (16, 8, 8))),
        (graphs.mobilefacenet(batch="n"), GraphOutputs("output", "last_map", 40, (16, 8, 8))),
        (graphs.traced_view(), GraphOutputs("embedding", "last_map", 32, (8, 8, 8))),
    ],
)
def test_embedding_and_features_are_found(model: onnx.ModelProto, expected: GraphOutputs) -> None:
    assert find_outputs(load_graph(model), (16, 16)) == expected


def test_outputs_of_sface_are_found() -> None:
    outputs = find_outputs(load_graph(default_recogniser_path()), (112, 112))
    assert outputs == GraphOutputs("fc1", "bn1", 128, (1024, 7, 7))


def test_outputs_of_mobilefacenet_are_found(shared: Path) -> None:
    outputs = find_outputs(load_graph(shared / "models" / "mobilefacenet-512.onnx"), (112, 112))
    assert outputs == GraphOutputs("output", "507", 512, (512, 7, 7))


def test_embedding_and_features_can_be_specified() -> None:
    graph = load_graph(graphs.iresnet())
    assert find_outputs(graph, (16, 16), "fc", "b_prelu") == GraphOutputs("fc", "b_prelu", 48, (8, 16, 16))
    with pytest.raises(ModelError, match="embedding='nope' is not a tensor"):
        find_outputs(graph, (16, 16), embedding="nope")
    with pytest.raises(ModelError, match="features='conv1_w' is not a tensor"):
        find_outputs(graph, (16, 16), features="conv1_w")
    with pytest.raises(ModelError, match=r"fc should be a map .* or tokens .*, found \(1, 48\)"):
        find_outputs(graph, (16, 16), features="fc")
    with pytest.raises(ModelError, match=r"bn2 should be \(n, dim\), found \(1, 8, 8, 8\)"):
        find_outputs(graph, (16, 16), embedding="bn2", features="bn2")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (graphs.classifier(), r"not a recogniser.*found probabilities \(1, 100\).*Softmax.*classifier"),
        (graphs.detector(), r"not a recogniser.*boxes \(1, 4, 16, 16\), scores.*Sigmoid"),
        (graphs.dense_only(), "neither a convolutional recogniser nor a transformer"),
        (graphs.two_rows(), r"several outputs could be the embedding \(one, other\); pass embedding="),
    ],
)
def test_graphs_that_are_not_recognisers_are_refused_with_the_reason(
    model: onnx.ModelProto, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        find_outputs(load_graph(model), (16, 16))


def test_one_of_two_embeddings_can_be_specified() -> None:
    assert find_outputs(load_graph(graphs.two_rows()), (16, 16), embedding="other").features == "map"


@pytest.mark.parametrize("pixels_first", [True, False])
def test_pixels_beside_the_feature_map_are_passed_over(pixels_first: bool) -> None:
    """A pooled image that is joined to the map has positions as well, but nothing in it is learned."""
    make = graphs.Maker(9)
    small = make.node("AveragePool", ["image"], "small", kernel_shape=[2, 2], strides=[2, 2])
    flat = [make.node("Flatten", [x], f"flat_{x}", axis=1) for x in (small, make.conv("image", "map", 3, 4))]
    joined = make.node("Concat", flat if pixels_first else flat[::-1], "joined", axis=1)
    make.dense(joined, "embedding", 3 * 64 + 4 * 256, 32)
    outputs = find_outputs(load_graph(make.model(["embedding"])), (16, 16))
    assert outputs == GraphOutputs("embedding", "map", 32, (4, 16, 16))


def test_sizes_that_do_not_fit_the_image_are_refused() -> None:
    """They are computed from the image, so that only a run shows it."""
    make = graphs.Maker(9)
    total = make.node("ReduceSum", [make.conv("image", "map", 3, 4)], "total", keepdims=0)
    zero = make.node("Mul", [total, make.stored("none", np.float32(0))], "zero")
    zero = make.node("Cast", [zero], "whole", to=onnx.TensorProto.INT64)
    sizes = make.node("Add", [zero, make.stored("seven", np.array([-1, 7]))], "sizes")
    make.dense(make.node("Reshape", ["map", sizes], "flat"), "embedding", 7, 32)
    with pytest.raises(ModelError, match=r"tiny: onnxruntime cannot run the graph: .*Reshape"):
        find_outputs(load_graph(make.model(["embedding"])), (16, 16))


def test_a_real_detector_is_refused() -> None:
    with pytest.raises(ModelError, match="not a recogniser: expected an output"):
        graph = load_graph(default_detector_path())
        find_outputs(graph, graph.size or (320, 320))


class Probe(nn.Module):
    """Attention pooling: one learned query attends to all tokens; keys and values share a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = transformers.Pooled()
        self.query, self.joint = nn.Parameter(torch.randn(1, 3, 1, 8)), nn.Linear(24, 48)
        self.head = nn.Linear(24, 32)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.trunk.tokens(x)
        key, value = self.joint(tokens).reshape(x.shape[0], -1, 2, 3, 8).permute(2, 0, 3, 1, 4).unbind(0)
        attended = (self.query @ key.transpose(-2, -1)).softmax(-1) @ value
        return self.head(attended.transpose(1, 2).reshape(x.shape[0], 24))


class SequenceFirst(nn.Module):
    """torch's own transformer layers, with the sequence as first dimension inside."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, 4)
        layer = nn.TransformerEncoderLayer(24, 3, 48, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(24), enable_nested_tensor=False)
        self.head = nn.Linear(24, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).permute(2, 0, 1)).transpose(0, 1)[:, 0])


class BackToAMap(nn.Module):
    """Tokens between convolutions, as in hybrid networks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 24, 4, 4), transformers.Block()
        self.last, self.head = nn.Conv2d(24, 12, 3), nn.Linear(12 * 4, 32)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.block(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.last(tokens.transpose(1, 2).reshape(x.shape[0], 24, 4, 4)).flatten(1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "given_shape", "shape"),
    [
        (transformers.ClassToken, (17, 24), (24, 17, 1)),  # including the class token
        (transformers.Pooled, (16, 24), (24, 16, 1)),
        (lambda: transformers.Swin("pool"), (4, 4, 24), (24, 4, 4)),
        (lambda: transformers.Swin("map"), (4, 4, 24), (24, 4, 4)),
        (Probe, (16, 48), (48, 16, 1)),  # keys and values of the pooling are the last tensors with positions
        (SequenceFirst, (16, 24), (24, 16, 1)),
        (BackToAMap, (12, 2, 2), (12, 2, 2)),
    ],
)
def test_the_last_tokens_are_found(make: Callable[[], nn.Module], given_shape: Shape, shape: Shape) -> None:
    torch.manual_seed(0)
    outputs = find_outputs(load_graph(transformers.exported(make())), (16, 16))
    assert (outputs.dim, outputs.given_shape, outputs.feature_shape) == (32, given_shape, shape)


@pytest.mark.filterwarnings("ignore")
def test_tokens_can_be_specified() -> None:
    graph = load_graph(transformers.exported(transformers.ClassToken(), opset=13))
    tokens = [n.output[0] for n in graph.model.graph.node if n.op_type == "Add" and "blocks.0" in n.output[0]]
    assert find_outputs(graph, (16, 16), features=tokens[-1]) == GraphOutputs(
        "embedding", tokens[-1], 32, (24, 17, 1)
    )
    windows = load_graph(transformers.exported(transformers.Swin()))
    inside = [n.output[0] for n in windows.model.graph.node if n.op_type == "Softmax"]
    with pytest.raises(ModelError, match=r"\(4, 3, 16, 16\) for one image: the first dimension must be"):
        find_outputs(windows, (16, 16), features=inside[0])


@pytest.mark.filterwarnings("ignore")
def test_quantisation_nodes_do_not_move_the_features() -> None:
    """After a transpose to (n, C, T), the quantise-dequantise pair is skipped rather than read as a map."""
    model = transformers.exported(transformers.Swin())
    expected = find_outputs(load_graph(model), (16, 16)).features
    body = model.graph
    number, transposed = max((i, n.output[0]) for i, n in enumerate(body.node) if n.op_type == "Transpose")
    for node in body.node:
        node.input[:] = ["pair" if name == transposed else name for name in node.input]
    body.initializer.append(onnx.numpy_helper.from_array(np.array(0.1, np.float32), "scale"))
    body.initializer.append(onnx.numpy_helper.from_array(np.array(128, np.uint8), "zero"))
    steps = (("QuantizeLinear", transposed, "whole"), ("DequantizeLinear", "whole", "pair"))
    for position, (kind, source, result) in enumerate(steps, number + 1):
        body.node.insert(position, onnx.helper.make_node(kind, [source, "scale", "zero"], [result]))
    assert find_outputs(load_graph(model), (16, 16)).features == expected
