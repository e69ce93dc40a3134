import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tests.models import graphs, transformers
from tests.models.conftest import TINY, noise

from spherecf.errors import ModelError
from spherecf.models import FrozenBackbone, import_onnx
from spherecf.models.engines import OnnxRuntimeEngine
from spherecf.models.onnx.outputs import find_outputs
from spherecf.models.onnx.repairs import load_graph
from spherecf.models.preprocessing import KNOWN_MODELS, default_recogniser_path


def check_another_device(module: torch.nn.Module, x: torch.Tensor) -> None:
    """The meta device stands in for a GPU: it refuses tensors of the CPU, and its values cannot be read."""
    shapes = [output.shape for output in module(x)]
    outputs = copy.deepcopy(module).to("meta")(x.to("meta"))
    assert [output.shape for output in outputs] == shapes
    assert {output.device.type for output in outputs} == {"meta"}


@pytest.mark.parametrize(
    "model",
    [graphs.iresnet(), graphs.iresnet(spatial_slopes=False), graphs.mobilefacenet(), graphs.traced_view()],
    ids=["iresnet", "mxnet slopes", "mobilefacenet", "view"],
)
def test_an_imported_graph_equals_onnxruntime(model: onnx.ModelProto) -> None:
    graph = load_graph(model)
    reference = OnnxRuntimeEngine(graph, find_outputs(graph, (16, 16)))
    x = torch.randn(3, 3, 16, 16)
    module = import_onnx(model)
    for network in (module, module.folded()):
        for output, expected in zip(network(x), reference(x), strict=True):
            torch.testing.assert_close(output, expected, atol=1e-4, rtol=1e-4)
    check_another_device(module, x)


@pytest.mark.parametrize("which", ["sface", "mobilefacenet-512"])
def test_imported_recognisers_equal_onnxruntime_on_real_faces(
    which: str, shared: Path, lfw_pairs: tuple[np.ndarray, np.ndarray]
) -> None:
    path = default_recogniser_path() if which == "sface" else shared / "models" / f"{which}.onnx"
    reference = FrozenBackbone.from_onnx(path, engine="onnxruntime")
    assert reference.name == which and reference.sha256 in KNOWN_MODELS
    images = lfw_pairs[0][:4]
    expected = reference(images)
    with torch.no_grad():
        embedding, features = import_onnx(path)(reference.preprocessing(images))
    torch.testing.assert_close(embedding, expected.embedding, atol=1e-4, rtol=0)
    torch.testing.assert_close(features, expected.features, atol=1e-4, rtol=0)


def test_an_imported_graph_can_be_trained_and_has_readable_names() -> None:
    module = import_onnx(graphs.iresnet()).train()
    names = dict(module.named_parameters())
    readable = ("conv1.weight", "bn1.bias", "prelu1.weight", "fc.weight")
    assert {f"network.{name}" for name in readable} <= set(names)
    x = torch.randn(4, 3, 16, 16)
    target = torch.randn(4, 48)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    losses = []
    for _ in range(10):
        loss = (module(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in module.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_folding_leaves_the_original_trainable() -> None:
    module = import_onnx(graphs.iresnet())
    parameter_count = sum(p.numel() for p in module.parameters())
    folded = module.folded()
    norms = [m for m in folded.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 3  # not foldable: before a convolution, after the addition, and of the embedding
    folded.requires_grad_(False)
    assert all(p.requires_grad for p in module.parameters())
    assert sum(p.numel() for p in module.parameters()) == parameter_count


def test_unsupported_operations_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"Celu \(node celu\): .*engine='onnxruntime'"):
        import_onnx(graphs.unimportable())


def _operation(kind: str, *constants: np.ndarray, **attributes: object) -> onnx.ModelProto:
    """A graph: conv - operation - flatten - dense; the other inputs of the operation are constants."""
    make = graphs.Maker(9)
    x = make.conv("image", "map", 3, 4)
    inputs = [make.stored(f"c{i}", value) for i, value in enumerate(constants)]
    x = make.node(kind, [x, *inputs], "result", **attributes)
    x = make.node("Flatten", [make.node("GlobalAveragePool", [x], "pooled")], "flat", axis=1)
    make.dense(x, "embedding", 4, 32)
    return make.model(["embedding"])


@pytest.mark.parametrize(
    "model",
    [
        _operation("Clip", np.float32(-0.1), np.float32(0.4)),
        _operation("LeakyRelu", alpha=0.2),
        _operation("HardSigmoid", alpha=0.3, beta=0.4),
        _operation("Pad", np.array([0, 0, 1, 2, 0, 0, 3, 0]), np.float32(0.5)),
        _operation("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        _operation("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        _operation("AveragePool", kernel_shape=[2, 2], strides=[2, 2], count_include_pad=1),
        _operation("Mul", np.full((4, 1, 1), 2.0, np.float32)),
        _operation("Sub", np.float32(3.0)),
        _operation("Transpose", perm=[0, 1, 3, 2]),
        _operation("Identity"),
        _operation("ReduceMean", axes=[2], keepdims=1),
        _operation("PRelu", np.float32([0.3])),
        _operation("LpNormalization", axis=1, p=1),
        _operation("LpNormalization"),
    ],
    ids=lambda model: model.graph.node[1].op_type,
)
def test_each_operation_equals_onnxruntime(model: onnx.ModelProto) -> None:
    graph = load_graph(model)
    outputs = find_outputs(graph, (16, 16), features="map")
    x = torch.randn(2, 3, 16, 16)
    actual, expected = import_onnx(model, features="map")(x), OnnxRuntimeEngine(graph, outputs)(x)
    torch.testing.assert_close(actual[0], expected[0], atol=1e-5, rtol=1e-5)


def _beside(kind: str, *inputs: str, opset: int = 13, **attributes: object) -> onnx.ModelProto:
    """A recogniser with an operation whose result, of any shape and type, is averaged and added.

    Its inputs are computed from the image: the "map" (n, 4, 16, 16), its sums "row" (4), their "size" (4),
    its values "rows" (n, 1024), "least" (a scalar 0) and the integers "zero" (1), "four" (1), "zeros" (8); or
    constants: "kernel", "matrix", "borders".
    """
    make = graphs.Maker(9)
    make.conv("image", "map", 3, 4)
    make.node("ReduceSum", ["map", make.stored("axes", np.array([0, 2, 3]))], "row", keepdims=0)
    make.node("Abs", ["row"], "size")
    make.node("Flatten", ["map"], "rows", axis=1)
    first = make.stored("first", np.array([0]))
    nothing = make.node("Mul", ["row", make.stored("none", np.zeros(4, np.float32))], "nothing")
    nothing = make.node("Cast", [make.node("ReduceSum", [nothing, first], "least", keepdims=0)], "no", to=7)
    for name, value in {"zero": [0], "four": [4], "zeros": [0] * 8}.items():
        make.node("Add", [nothing, make.stored(f"{name}_stored", np.array(value))], name)
    make.weight("kernel", 4, 4, 1, 1), make.weight("matrix", 1024, 4)
    make.stored("borders", np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    make.node(kind, list(inputs), "result", **attributes)
    number = make.node("ReduceMean", [make.node("Cast", ["result"], "float", to=1)], "number", keepdims=0)
    dense = make.dense("rows", "dense", 1024, 32)
    make.node("Add", [dense, number], "embedding")
    return make.model(["embedding"], opset=opset)


@pytest.mark.parametrize(
    "model, reason",
    [
        (_beside("Conv", "map", "map"), r"expected constant weights \(out, in, height, width\)"),
        (_beside("MaxPool", "map", kernel_shape=[3, 3], auto_pad="SAME_UPPER"), "auto_pad=SAME_UPPER is not"),
        (_beside("MaxPool", "map", kernel_shape=[3, 3], dilations=[2, 2]), "dilations are not supported"),
        (
            _beside("AveragePool", "map", kernel_shape=[3, 3], pads=[0, 0, 1, 1]),
            "different padding on opposite sides is not supported",
        ),
        (_beside("BatchNormalization", "map", "row", "row", "row", "size"), "one number per channel"),
        (_beside("PRelu", "map", "map"), "expected constant slopes"),
        (_beside("LayerNormalization", "rows", "rows", opset=17), "expected a constant scale"),
        (_beside("Cast", "map", to=onnx.TensorProto.FLOAT16), "a cast to FLOAT16 is not supported"),
        (_beside("Unsqueeze", "map", "zero"), "expected constant axes"),
        (_beside("Transpose", "map"), "expected perm"),
        (_beside("Split", "map", "four", axis=1), "expected constant sizes"),
        (_beside("Pad", "map", "zeros"), "only constant padding with fixed sizes is supported"),
        (_operation("Pad", np.array([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect"), "only constant padding"),
        (_beside("ReduceMean", "map"), "expected constant axes"),
        (_beside("Conv", "map", "kernel", "row", kernel_shape=[1, 1]), "expected a constant as input 3"),
        (_beside("Gemm", "rows", "matrix", "row"), "expected a constant as input 3"),
        (_beside("Clip", "map", "least"), "expected a constant as input 2"),
        (_beside("Clip", "map", "", "least"), "expected a constant as input 3"),
        (_beside("Pad", "map", "borders", "least"), "expected a constant as input 3"),
        (_beside("ReduceL2", "map", "zero", opset=18), "expected a constant as input 2"),
        (_beside("Gemm", "rows", "rows", transB=1), "expected a constant matrix and transA=0"),
    ],
    ids=lambda value: (
        next(n.op_type for n in value.graph.node if n.name == "result")
        if isinstance(value, onnx.ModelProto)
        else ""
    ),
)
def test_forms_that_cannot_be_imported_are_refused_with_the_reason(
    model: onnx.ModelProto, reason: str
) -> None:
    kind = next(node.op_type for node in model.graph.node if node.name == "result")
    with pytest.raises(ModelError, match=rf"{kind} \(node result\): .*{reason}.*engine='onnxruntime'"):
        import_onnx(model, features="map", embedding="embedding")
    assert FrozenBackbone.from_onnx(model, preprocessing=TINY, features="map").engine == "onnxruntime"


def test_an_error_of_torch_names_the_operation() -> None:
    with pytest.raises(
        ModelError, match=r"Clip \(node result\): cannot be imported \(.*engine='onnxruntime'"
    ):
        import_onnx(_operation("Clip", np.float32([0, 1])), features="map")


def test_second_outputs_are_left_to_onnxruntime() -> None:
    make = graphs.Maker(9)
    shape = {"kernel_shape": [2, 2], "strides": [2, 2]}
    make.node("MaxPool", [make.conv("image", "map", 3, 4)], "pool", **shape)
    make.nodes[-1].output.append("places")
    places = make.node("Cast", ["places"], "numbers", to=onnx.TensorProto.FLOAT)
    make.dense(make.node("Flatten", [places], "flat", axis=1), "embedding", 4 * 64, 32)
    model = make.model(["embedding"])
    reason = r"Cast \(node numbers\): its input places is a second output that cannot be imported"
    with pytest.raises(ModelError, match=reason):
        import_onnx(model)
    assert FrozenBackbone.from_onnx(model, preprocessing=TINY, features="map").engine == "onnxruntime"


def test_nodes_of_one_name_become_parameters_of_different_names() -> None:
    model = graphs.iresnet()
    for node in model.graph.node:
        node.name = "layer" if node.op_type == "Conv" else node.name
    module, x = import_onnx(model), torch.randn(2, 3, 16, 16)
    layers = [name for name, _ in module.named_parameters() if "layer" in name]
    assert layers[:3] == [f"network.layer{number}.weight" for number in ("", "_1", "_2")]
    assert torch.equal(module(x)[0], import_onnx(graphs.iresnet())(x)[0])


def test_uneven_padding_of_a_convolution_is_imported() -> None:
    make = graphs.Maker(10)
    make.nodes.append(
        onnx.helper.make_node(
            "Conv", ["image", make.weight("w", 4, 3, 3, 3)], ["map"], pads=[0, 1, 2, 0], strides=[2, 2]
        )
    )
    make.dense(make.node("Flatten", ["map"], "flat", axis=1), "embedding", 4 * 8 * 8, 32)
    model = make.model(["embedding"])
    graph = load_graph(model)
    x = torch.randn(2, 3, 16, 16)
    expected = OnnxRuntimeEngine(graph, find_outputs(graph, (16, 16)))(x)
    torch.testing.assert_close(import_onnx(model)(x), expected, atol=1e-5, rtol=1e-5)


class Block(torch.nn.Module):
    """The stem, one block and the head of an IResNet, written as in insightface."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Sequential(
            torch.nn.Conv2d(3, 8, 3, 1, 1), torch.nn.BatchNorm2d(8), torch.nn.PReLU(8)
        )
        self.block = torch.nn.Sequential(
            torch.nn.BatchNorm2d(8),
            torch.nn.Conv2d(8, 8, 3, 1, 1),
            torch.nn.PReLU(8),
            torch.nn.Conv2d(8, 8, 3, 2, 1),
        )
        self.short = torch.nn.Conv2d(8, 8, 1, 2)
        self.bn2, self.drop = torch.nn.BatchNorm2d(8), torch.nn.Dropout(0.4)
        self.fc, self.features = torch.nn.Linear(8 * 8 * 8, 32), torch.nn.BatchNorm1d(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.bn2(self.block(x) + self.short(x))
        return self.features(self.fc(self.drop(x).view(x.size(0), -1)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamic", [True, False])
def test_a_torch_export_is_imported_unchanged(tmp_path: Path, dynamic: bool) -> None:
    module, path = Block().eval(), tmp_path / "exported.onnx"
    axes = {"image": {0: "n"}} if dynamic else None
    x = torch.randn(3, 3, 16, 16)
    torch.onnx.export(module, (x[:1],), str(path), dynamo=False, dynamic_axes=axes, input_names=["image"])
    embedding, features = import_onnx(path)(x)
    torch.testing.assert_close(embedding, module(x), atol=1e-5, rtol=1e-5)
    assert features.shape == (3, 8, 8, 8)
    backbone = FrozenBackbone.from_onnx(path, preprocessing=TINY)
    assert backbone.engine == "torch" and not any("one by one" in message for message in backbone.repairs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make", [transformers.ClassToken, transformers.Pooled, transformers.Swin], ids=lambda make: make.__name__
)
@pytest.mark.parametrize(("opset", "batch"), [(12, 1), (17, None), (20, 2)])
def test_exported_transformers_are_imported(
    make: Callable[[], torch.nn.Module], opset: int, batch: int | None
) -> None:
    """For any opset, normalisation as one or many operators, and any exported batch size."""
    torch.manual_seed(0)
    network = make().eval()
    model = transformers.exported(network, opset, batch)
    backbone = FrozenBackbone.from_onnx(model, preprocessing=TINY)
    assert backbone.engine == "torch" and not any("one by one" in message for message in backbone.repairs)
    by_onnxruntime = FrozenBackbone.from_onnx(model, preprocessing=TINY, engine="onnxruntime")
    output, reference = backbone(noise(5)), by_onnxruntime(noise(5))
    with torch.no_grad():
        torch.testing.assert_close(output.embedding, network(TINY(noise(5))), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.embedding, reference.embedding, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.features, reference.features, atol=1e-4, rtol=1e-4)
    assert output.features.shape[1:] == backbone.feature_shape
    module = import_onnx(model)
    assert module(TINY(noise(2)))[1].shape[1:] == backbone.feature_shape
    check_another_device(module, TINY(noise(2)))


@pytest.mark.filterwarnings("ignore")
def test_a_transformer_with_an_unchangeable_batch_falls_back_to_onnxruntime() -> None:
    """A reshape mixes batch and heads, so that the batch dimension cannot be identified."""

    class Fixed(transformers.Pooled):
        def tokens(self, x: torch.Tensor) -> torch.Tensor:
            y = super().tokens(x).transpose(0, 1)
            return (y.reshape(16, x.shape[0] * 3, 8) * 2).reshape(16, x.shape[0], 24).transpose(0, 1)

    network = Fixed().eval()
    backbone = FrozenBackbone.from_onnx(transformers.exported(network, batch=1), preprocessing=TINY)
    assert backbone.engine == "onnxruntime"
    assert sum("one by one" in m or "run by onnxruntime" in m for m in backbone.repairs) == 2
    with torch.no_grad():
        torch.testing.assert_close(
            backbone(noise(3)).embedding, network(TINY(noise(3))), atol=1e-5, rtol=1e-5
        )


def _sequence(
    kind: str, *constants: np.ndarray, opset: int = 17, size: int = 1024, **attributes: object
) -> onnx.ModelProto:
    """A graph: conv - tokens (n, 256, 4) - operation - flatten - dense."""
    make = graphs.Maker(11)
    x = make.node(
        "Reshape", [make.conv("image", "map", 3, 4), make.stored("s", np.array([0, 4, 256]))], "row"
    )
    x = make.node("Transpose", [x], "tokens", perm=[0, 2, 1])
    inputs = [make.stored(f"c{i}", value) for i, value in enumerate(constants)]
    x = make.node(kind, [x, *inputs], "result", **attributes)
    x = make.node("Flatten", [x], "flat", axis=1)
    make.dense(x, "embedding", size, 32)
    return make.model(["embedding"], opset=opset)


@pytest.mark.parametrize(
    "model",
    [
        _sequence("LayerNormalization", np.float32([1, 2, 3, 4]), np.float32([0, 0, 1, 0]), epsilon=0.1),
        _sequence("LayerNormalization", np.ones((256, 4), np.float32), axis=1),
        _sequence("LayerNormalization", np.float32([1, 2, 3, 4]), axis=2),
        _sequence("Softmax", axis=1),
        _sequence("Softmax"),
        _sequence("Softmax", opset=11),
        _sequence("Gelu", opset=20, approximate="tanh"),
        _sequence(
            "Slice", np.array([9, -5]), np.array([2**60, -1]), np.array([1, 2]), np.array([2, 2]), size=248
        ),
        _sequence("Slice", np.array([-1]), np.array([-(2**62)]), np.array([-2]), np.array([-2]), size=512),
        _sequence("Slice", opset=9, starts=[9, -3], ends=[2**31, -1], axes=[1, 2], size=494),
        _sequence("Gather", np.array([-1, 0, 7]), axis=-2, size=12),
        _sequence("Expand", np.array([1, 256, 4])),
        _sequence("Einsum", equation="nic,njc->nij", size=256 * 256),
        _sequence("Where", np.float32(1.0), np.float32(1.0)),
        _sequence("ReduceMax", np.array([2]), opset=18, size=256),
        _sequence("Cast", to=onnx.TensorProto.FLOAT),
        _sequence("Div", np.float32(3.0)),
    ],
    ids=lambda model: model.graph.node[3].op_type,
)
def test_each_operation_on_tokens_equals_onnxruntime(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.name == "result")
    if node.op_type == "Einsum":
        node.input.append("tokens")
    if node.op_type == "Where":
        model.graph.node.insert(3, onnx.helper.make_node("Greater", ["tokens", "c0"], ["larger"]))
        node.input[:] = ["larger", "tokens", "c1"]
    graph = load_graph(model)
    outputs = find_outputs(graph, (16, 16), features="map")
    x = torch.randn(2, 3, 16, 16)
    actual, expected = import_onnx(model, features="map")(x), OnnxRuntimeEngine(graph, outputs)(x)
    torch.testing.assert_close(actual[0], expected[0], atol=1e-4, rtol=1e-4)
    check_another_device(import_onnx(model, features="map"), x)
