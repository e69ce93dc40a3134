"""Recognisers as ONNX files: each is read, repaired and run, or refused."""

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from tests.fuzz.harness import fuzz, write
from tests.models import graphs
from tests.tiny import TINY

from spherecf.models import FrozenBackbone

FACES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def small(kind: str) -> onnx.ModelProto:
    """conv - norm - PReLU - flatten - dense, with few weights, so that mutations hit the graph itself."""
    make = graphs.Maker(30)
    x = make.conv("image", "c", 3, 4, strides=[4, 4])
    if kind != "quantised":
        x = make.prelu(make.norm(x, "n", 4), "p", 4, spatial=kind != "mxnet")
    x = make.node("Dropout", [x], "d")
    x = make.node("Reshape", [x, make.stored("s", np.array([1, 64]))], "f") if kind == "fixed" else x
    make.dense(x if kind == "fixed" else make.node("Flatten", [x], "f", axis=1), "e", 64, 32)
    return make.model(["e"], batch=1 if kind == "fixed" else "n", opset=8 if kind == "mxnet" else 13)


def tokens() -> onnx.ModelProto:
    """One attention layer over patches and a class token; the batch size is fixed at one."""
    make = graphs.Maker(30)
    x = make.conv("image", "c", 3, 4, strides=[4, 4])
    x = make.node("Reshape", [x, make.stored("s", np.array([1, 4, -1]))], "r")
    x = make.node("Transpose", [x], "p", perm=[0, 2, 1])
    x = make.node("Concat", [make.weight("t", 1, 1, 4), x], "j", axis=1)
    y = make.node("LayerNormalization", [x, make.weight("g", 4)], "l")
    y = make.node("MatMul", [y, make.weight("w", 4, 12)], "m")
    thirds = make.stored("h", np.array([4, 4, 4]))
    make.nodes.append(helper.make_node("Split", [y, thirds], ["q", "k", "v"], axis=2))
    products = make.node("Einsum", ["q", "k"], "i", equation="nac,nbc->nab")
    attention = make.node("Softmax", [products], "a", axis=-1)
    x = make.node("Add", [x, make.node("MatMul", [attention, "v"], "o")], "u")
    make.dense(make.node("Gather", [x, make.stored("z", np.array(0))], "f", axis=1), "e", 4, 32)
    return make.model(["e"], batch=1, opset=17)


def channels_last() -> onnx.ModelProto:
    model = small("plain")
    model.graph.node.insert(0, helper.make_node("Transpose", ["x"], ["image"], perm=[0, 3, 1, 2]))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 16, 16, 3]))
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


def quantised() -> onnx.ModelProto:
    from onnxruntime import quantization

    folder = Path(tempfile.mkdtemp())
    onnx.save(small("quantised"), folder / "a.onnx")
    quantization.quantize_dynamic(folder / "a.onnx", folder / "b.onnx")
    return onnx.load(folder / "b.onnx")


def seeds() -> dict[str, bytes]:
    variants = {kind: small(kind) for kind in ("plain", "mxnet", "fixed")}
    variants |= {
        "channels last": channels_last(),
        "int8": quantised(),
        "view": graphs.traced_view(),
        "tokens": tokens(),
    }
    return {name: model.SerializeToString() for name, model in variants.items()}


@fuzz(seeds, name="ONNX files", tokens=[b"Conv", b"Gemm", b"Constant", b"image", b"group", b"If"], share=0.3)
def test_onnx(data: bytes) -> None:
    backbone = FrozenBackbone.from_onnx(write("r.onnx", data), preprocessing=TINY)
    output = backbone(FACES)
    assert output.embedding.shape == (3, backbone.dim)
    assert output.features.shape == (3, *backbone.feature_shape)
    single = torch.cat([backbone(face[None]).embedding for face in FACES])
    scale = single.abs().max()
    assert float((output.embedding - single).abs().max() / scale) < 1e-3


@cache
def external() -> tuple[bytes, bytes]:
    """(graph, weights in an external file)."""
    folder = Path(tempfile.mkdtemp())
    options = {"save_as_external_data": True, "size_threshold": 0, "location": "w"}
    onnx.save(small("plain"), folder / "r.onnx", **options)
    return (folder / "r.onnx").read_bytes(), (folder / "w").read_bytes()


@fuzz(
    lambda: {"graph": external()[0]},
    name="ONNX files, external weights",
    tokens=[b"location", b"offset"],
    share=0.2,
)
def test_onnx_with_external_weights(data: bytes) -> None:
    write("external/w", external()[1])
    backbone = FrozenBackbone.from_onnx(write("external/r.onnx", data), preprocessing=TINY)
    assert backbone(FACES).embedding.shape == (3, backbone.dim)
    json.dumps(backbone.repairs)
