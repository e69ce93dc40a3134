"""Layouts and types of the image input of a graph."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.models import graphs
from tests.models.conftest import TINY, noise

from spherecf.errors import ModelError
from spherecf.models import FrozenBackbone, Preprocessing

BYTES = Preprocessing("rgb", 0.0, 1.0, (16, 16))


def with_front(
    model: onnx.ModelProto, dims: list[object], kind: int, *steps: onnx.NodeProto
) -> onnx.ModelProto:
    """The network behind another input; the last step outputs ``image``."""
    nodes = [*steps, *model.graph.node]
    del model.graph.node[:], model.graph.input[:]
    model.graph.node.extend(nodes)
    model.graph.input.append(helper.make_tensor_value_info("x", kind, dims))
    return model


def channels_last(dims: list[object]) -> onnx.ModelProto:
    step = helper.make_node("Transpose", ["x"], ["image"], perm=[0, 3, 1, 2])
    return with_front(graphs.iresnet(), dims, TensorProto.FLOAT, step)


@pytest.mark.parametrize("dims", [["n", 16, 16, 3], [1, 16, 16, 3], [4, 16, 16, 3], ["n", "h", "w", 3]])
def test_channels_last_inputs_are_accepted(dims: list[object], tiny: FrozenBackbone) -> None:
    backbone = FrozenBackbone.from_onnx(channels_last(dims), preprocessing=TINY)
    assert any("channels-last" in message for message in backbone.repairs)
    torch.testing.assert_close(backbone(noise(3)).embedding, tiny(noise(3)).embedding, atol=1e-5, rtol=1e-4)
    assert (backbone.engine, backbone.feature_shape) == ("torch", tiny.feature_shape)
    (image,) = backbone.to_onnx().graph.input
    assert [d.dim_value for d in image.type.tensor_type.shape.dim[1:]][:1] == [3]


def narrow(kind: int, everything: bool) -> onnx.ModelProto:
    """The tiny recogniser with all tensors, or only its input, in another floating point type."""
    model = graphs.iresnet()
    if not everything:
        step = helper.make_node("Cast", ["x"], ["image"], to=TensorProto.FLOAT)
        return with_front(model, ["n", 3, 16, 16], kind, step)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    # One slope as a constant, and a gate that is computed in float32.
    slope = next(t for t in model.graph.initializer if t.name == "prelu1_slope")
    model.graph.initializer.remove(slope)
    model.graph.node.insert(0, helper.make_node("Constant", [], ["prelu1_slope"], value=slope))
    place, gate = next((i, n) for i, n in enumerate(model.graph.node) if n.name == "se_gate")
    (name,) = gate.output
    gate.input[0], gate.output[0] = "wide", "wide_gate"
    model.graph.node.insert(place, helper.make_node("Cast", ["se_up"], ["wide"], to=TensorProto.FLOAT))
    model.graph.node.insert(place + 2, helper.make_node("Cast", ["wide_gate"], [name], to=kind))
    return model


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
@pytest.mark.parametrize("everything", [True, False])
@pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
def test_other_floating_point_types_are_converted_to_float32(
    kind: int, everything: bool, engine: str, tiny: FrozenBackbone
) -> None:
    backbone = FrozenBackbone.from_onnx(narrow(kind, everything), preprocessing=TINY, engine=engine)
    output, expected = backbone(noise(3)), tiny(noise(3))
    assert output.embedding.dtype == output.features.dtype == torch.float32
    assert float((output.mu * expected.mu).sum(1).min()) > (0.9999 if kind != TensorProto.BFLOAT16 else 0.995)
    assert any("converted to float32" in message for message in backbone.repairs)
    assert backbone.to_onnx().graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def bytes_in(dims: list[object]) -> onnx.ModelProto:
    """A graph that normalises uint8 pixels itself."""
    model = graphs.iresnet()
    for name, value in (("mean", 127.5), ("std", 127.5)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    steps = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node(
            "Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2] if dims[3] == 3 else [0, 1, 2, 3]
        ),
        helper.make_node("Sub", ["planes", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "std"], ["image"]),
    ]
    return with_front(model, dims, TensorProto.UINT8, *steps)


@pytest.mark.parametrize("dims", [["n", 16, 16, 3], ["n", 3, 16, 16], [1, 16, 16, 3]])
def test_uint8_inputs_require_byte_preprocessing(dims: list[object], tiny: FrozenBackbone) -> None:
    backbone = FrozenBackbone.from_onnx(bytes_in(dims), preprocessing=BYTES)
    assert any("uint8" in message for message in backbone.repairs)
    torch.testing.assert_close(backbone(noise(3)).embedding, tiny(noise(3)).embedding, atol=1e-5, rtol=1e-4)
    with pytest.raises(ModelError, match="uint8"):
        FrozenBackbone.from_onnx(bytes_in(dims), preprocessing=TINY)
    with pytest.raises(ModelError, match="uint8"):
        FrozenBackbone.from_onnx(bytes_in(dims))


@pytest.mark.parametrize(
    ("dims", "kind"),
    [
        (["n", 3, 16, 16], TensorProto.INT8), (["n", 3, 16, 16], TensorProto.STRING), (["n", 1, 16, 16], 1),
        (["n", 3, 16], 1), ([], 1), (["n", 16, 16, 4], 1), (["n", 3, 16, 16], 0), (["n", 3, 16, 16], 99),
    ],
)  # fmt: skip
def test_inputs_that_are_not_images_are_refused_by_name(dims: list[object], kind: int) -> None:
    model = graphs.iresnet()
    with pytest.raises(ModelError, match=r"colour images.*image"):
        value = model.graph.input[0].type.tensor_type
        value.CopyFrom(helper.make_tensor_type_proto(max(kind % 99, 1), dims).tensor_type)
        value.elem_type = kind
        FrozenBackbone.from_onnx(model, preprocessing=TINY)


def test_graphs_without_a_fixed_size_use_the_preprocessing_size(tiny: FrozenBackbone) -> None:
    make = graphs.Maker(12)
    x = make.node("GlobalAveragePool", [make.conv("image", "map", 3, 8)], "pooled")
    make.dense(make.node("Flatten", [x], "flat", axis=1), "embedding", 8, 32)
    model = make.model(["embedding"])
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "hw", strict=True):
        dim.dim_param = name
    assert FrozenBackbone.from_onnx(model, preprocessing=TINY).feature_shape == (8, 16, 16)
