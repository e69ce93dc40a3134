from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tests.models import graphs
from tests.models.conftest import TINY, noise
from torch import nn

from spherecf.errors import ModelError
from spherecf.models import FrozenBackbone, opset_of, trace_onnx
from spherecf.models.onnx.module import _with_opset


def run(model: onnx.ModelProto, *inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


@pytest.mark.parametrize("opset", [9, 17, 20, 22])
def test_traced_modules_accept_any_batch_in_any_opset(opset: int) -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.9), nn.Softplus())
    model = trace_onnx(module, {"x": torch.zeros(2, 4)}, ["y"], opset)
    assert opset_of(model) == opset
    for rows in (1, 5):
        x = torch.randn(rows, 4)
        with torch.no_grad():
            assert run(model, x.numpy())[0] == pytest.approx(module(x).numpy(), abs=1e-6)


def test_modules_that_onnx_cannot_represent_are_refused() -> None:
    with pytest.raises(ModelError, match="opset 8 is older than 9"):
        trace_onnx(nn.Linear(4, 2), {"x": torch.zeros(2, 4)}, ["y"], 8)
    with torch.device("meta"):
        huge = nn.Linear(2**16, 2**14)
    with pytest.raises(ModelError, match="2 GiB at most"):
        trace_onnx(huge, {"x": torch.zeros(2, 2**16)}, ["y"])

    class Foreign(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.i0e(x)

    with pytest.raises(ModelError, match="torch cannot write this network as ONNX"):
        trace_onnx(Foreign(), {"x": torch.zeros(2, 4)}, ["y"])
    with pytest.raises(ModelError, match="opset 13 cannot be converted to 99"):
        _with_opset(graphs.iresnet(), 99)


@pytest.mark.parametrize("make", [graphs.iresnet, graphs.mobilefacenet, graphs.traced_view])
def test_an_onnx_backbone_exports_its_own_graph(make: object, tmp_path: Path) -> None:
    onnx.save(make(), path := tmp_path / "m.onnx")  # type: ignore[operator]
    backbone = FrozenBackbone.from_onnx(path, preprocessing=TINY, engine="onnxruntime")
    model = backbone.to_onnx()
    assert [o.name for o in model.graph.output] == [backbone.embedding_name, backbone.feature_name]
    embedding, features = run(model, TINY(noise(3)).contiguous().numpy())
    expected = backbone(noise(3))
    assert np.array_equal(embedding.reshape(3, -1), expected.embedding.numpy())
    assert np.array_equal(features, expected.features.numpy())


def test_nodes_not_needed_for_the_outputs_are_removed() -> None:
    model = graphs.iresnet()
    model.graph.node.append(onnx.helper.make_node("Relu", ["features"], ["more"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("more", onnx.TensorProto.FLOAT, None))
    backbone = FrozenBackbone.from_onnx(model, preprocessing=TINY, embedding="features")
    assert "Relu" not in {node.op_type for node in backbone.to_onnx().graph.node[-2:]}


def test_a_torch_module_is_traced() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 40))
    backbone = FrozenBackbone.from_module(module, TINY, features="1")
    embedding, features = run(backbone.to_onnx(), TINY(noise(3)).contiguous().numpy())
    expected = backbone(noise(3))
    assert embedding == pytest.approx(expected.embedding.numpy(), abs=1e-5)
    assert features == pytest.approx(expected.features.numpy(), abs=1e-5)
