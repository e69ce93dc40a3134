"""Layers that runtimes interpret differently from their exporter, and integer layers."""

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from tests.models import graphs
from tests.models.conftest import TINY, noise

from spherecf.errors import ModelError
from spherecf.models import FrozenBackbone


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 0.9, shape).astype(np.float32)


def with_layer(
    kind: str, parameters: list[np.ndarray], *, size: int = 16, opset: int = 13, **attributes: object
) -> onnx.ModelProto:
    """A graph: conv - layer on a map (8, size, size) - flatten - dense."""
    make = graphs.Maker(20)
    x = make.conv("image", "conv", 3, 8, strides=[16 // size] * 2)
    x = make.node(
        kind, [x, *(make.stored(f"p{i}", p) for i, p in enumerate(parameters))], "layer", **attributes
    )
    x = make.node("Flatten", [x], "flat", axis=1) if opset < 9 else make.node("Flatten", [x], "flat")
    make.dense(x, "embedding", 8 * size * size, 32)
    return make.model(["embedding"], opset=opset)


def features(model: onnx.ModelProto, name: str) -> torch.Tensor:
    return FrozenBackbone.from_onnx(model, preprocessing=TINY, features=name)(noise(3)).features


@pytest.mark.parametrize(("opset", "ir_version"), [(6, 3), (6, 8), (7, 8), (8, 3), (8, 8)])
def test_statistics_per_position_are_applied(opset: int, ir_version: int) -> None:
    scale, shift, mean, variance = (random(8, 16, 16, seed=i) for i in range(4))
    extra = {"is_test": 1} if opset < 7 else {}
    model = with_layer("BatchNormalization", [scale, shift, mean, variance], opset=opset, spatial=0, **extra)
    if ir_version < 4:  # in which stored tensors are inputs as well
        model.ir_version = ir_version
        model.graph.input.extend(
            helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
        )
    backbone = FrozenBackbone.from_onnx(model, preprocessing=TINY, features="layer")
    assert any("spatial=0" in message for message in backbone.repairs)
    x = features(model, "conv").numpy()
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + shift
    np.testing.assert_allclose(backbone(noise(3)).features.numpy(), expected, atol=1e-4)


def test_per_channel_statistics_marked_spatial_0_are_read_per_channel() -> None:
    """MXNet's exporter wrote spatial=0 even for statistics with one number per channel."""
    parameters = [random(8, seed=i) for i in range(4)]
    marked = with_layer("BatchNormalization", parameters, opset=8, spatial=0)
    assert torch.equal(
        features(marked, "layer"), features(with_layer("BatchNormalization", parameters, opset=8), "layer")
    )


def test_computed_statistics_per_position_are_refused() -> None:
    model = with_layer(
        "BatchNormalization", [random(8, 16, 16, seed=i) for i in range(4)], opset=8, spatial=0
    )
    model.graph.node.insert(0, helper.make_node("Identity", ["p0"], ["computed"]))
    next(n for n in model.graph.node if n.op_type == "BatchNormalization").input[1] = "computed"
    with pytest.raises(ModelError, match="spatial=0"):
        FrozenBackbone.from_onnx(model, preprocessing=TINY)


def prelu(x: torch.Tensor, slope: np.ndarray) -> torch.Tensor:
    return torch.where(x < 0, x * torch.from_numpy(slope), x)


@pytest.mark.parametrize("shape", [(8,), (8, 1), (1, 8), (8, 1, 1), (1, 8, 1, 1)])
@pytest.mark.parametrize("size", [16, 8])  # 8: the width equals the number of channels
@pytest.mark.parametrize("origin", ["stored", "Constant", "Identity"])
@pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
def test_slopes_are_applied_per_channel(shape: tuple[int, ...], size: int, origin: str, engine: str) -> None:
    slope = random(*shape)
    model = with_layer("PRelu", [slope], size=size)
    layer = next(n for n in model.graph.node if n.op_type == "PRelu")
    if origin == "Constant":
        model.graph.node.insert(
            0, helper.make_node("Constant", [], ["s"], value=numpy_helper.from_array(slope))
        )
        layer.input[1] = "s"
    elif origin == "Identity":
        model.graph.node.insert(0, helper.make_node("Identity", ["p0"], ["s"]))
        layer.input[1] = "s"
    backbone = FrozenBackbone.from_onnx(model, preprocessing=TINY, features="layer", engine=engine)
    expected = prelu(features(copy.deepcopy(model), "conv"), slope.reshape(8, 1, 1))
    torch.testing.assert_close(backbone(noise(3)).features, expected)
    assert any("PReLU" in m for m in backbone.repairs) == (len(shape) < 3)
    assert any("as wide" in m for m in backbone.repairs) == (len(shape) < 3 and size == 8)


@pytest.mark.parametrize("shape", [(16,), (16, 1), (16, 16), (8, 16, 16), (1,), ()])
@pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
def test_slopes_broadcast_as_in_the_onnx_standard(shape: tuple[int, ...], engine: str) -> None:
    slope = np.asarray(random(*shape))
    model = with_layer("PRelu", [slope])
    backbone = FrozenBackbone.from_onnx(model, preprocessing=TINY, features="layer", engine=engine)
    torch.testing.assert_close(backbone(noise(3)).features, prelu(features(model, "conv"), slope))
    assert backbone.repairs == [] and (engine != "auto" or backbone.engine == "torch")


def test_one_slope_serves_a_map_and_an_embedding() -> None:
    """One stored tensor serves two layers, of which only one is a map."""
    make = graphs.Maker(21)
    slope = make.stored("slope", random(32))
    x = make.node("PRelu", [make.conv("image", "conv", 3, 32), slope], "layer")
    x = make.dense(make.node("Flatten", [x], "flat"), "dense", 32 * 256, 32)
    make.node("PRelu", [x, slope], "embedding")
    backbone = FrozenBackbone.from_onnx(make.model(["embedding"]), preprocessing=TINY)
    assert backbone.engine == "torch" and any(m.startswith("1 PReLU") for m in backbone.repairs)


class Faces:
    """Calibration data for the quantiser of onnxruntime."""

    def __init__(self) -> None:
        self._remaining = [
            {"image": np.random.default_rng(i).normal(0, 1, (1, 3, 16, 16)).astype(np.float32)}
            for i in range(4)
        ]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self._remaining.pop() if self._remaining else None


@pytest.mark.parametrize("method", ["dynamic", "operators", "pairs"])
def test_quantised_recognisers_approximate_the_original(method: str, tmp_path: Path) -> None:
    from onnxruntime import quantization

    source, target = tmp_path / "float.onnx", tmp_path / "int8.onnx"
    onnx.save(graphs.iresnet(), source)
    if method == "dynamic":
        quantization.quantize_dynamic(source, target, weight_type=quantization.QuantType.QUInt8)
    else:
        form = quantization.QuantFormat.QOperator if method == "operators" else quantization.QuantFormat.QDQ
        quantization.quantize_static(source, target, Faces(), quant_format=form)
    quantised = FrozenBackbone.from_onnx(target, preprocessing=TINY)
    original = FrozenBackbone.from_onnx(source, preprocessing=TINY)
    assert quantised.feature_shape == original.feature_shape
    output, expected = quantised(noise(6)), original(noise(6))
    assert float((output.mu * expected.mu).sum(1).min()) > 0.9
    a, b = (o.features.flatten() - o.features.mean() for o in (output, expected))
    assert float(a @ b / (a.norm() * b.norm())) > 0.9  # the same map, on the same scale
    assert float(a.norm() / b.norm()) == pytest.approx(1, abs=0.2)
    reloaded = FrozenBackbone.from_onnx(target, preprocessing=TINY, features=quantised.feature_name)
    assert reloaded.feature_name == quantised.feature_name
