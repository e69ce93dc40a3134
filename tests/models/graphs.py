"""Tiny recognisers, and graphs that are not recognisers, built node by node as ONNX models."""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Maker:
    """Collects nodes; every method returns the name of its output tensor."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self._random = np.random.default_rng(seed)

    def weight(self, name: str, *shape: int, scale: float = 0.3, shift: float = 0.0) -> str:
        value = (shift + scale * self._random.standard_normal(shape)).astype(np.float32)
        return self.stored(name, value)

    def stored(self, name: str, value: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def conv(
        self,
        x: str,
        name: str,
        c_in: int,
        c_out: int,
        kernel: int = 3,
        pad: int | None = None,
        **attributes: Any,
    ) -> str:
        group = attributes.get("group", 1)
        weight = self.weight(f"{name}_w", c_out, c_in // group, kernel, kernel)
        pad = kernel // 2 if pad is None else pad
        return self.node("Conv", [x, weight], name, kernel_shape=[kernel] * 2, pads=[pad] * 4, **attributes)

    def norm(self, x: str, name: str, channels: int) -> str:
        parts = [self.weight(f"{name}_{p}", channels, scale=0.1, shift=s) for p, s in zip("gbm", (1, 0, 0))]
        variance = self.stored(f"{name}_v", np.full(channels, 0.8, np.float32))
        return self.node("BatchNormalization", [x, *parts, variance], name, epsilon=1e-5)

    def prelu(self, x: str, name: str, channels: int, *, spatial: bool = True) -> str:
        shape = (channels, 1, 1) if spatial else (channels,)
        return self.node("PRelu", [x, self.weight(f"{name}_slope", *shape, scale=0.1, shift=0.25)], name)

    def dense(self, x: str, name: str, n_in: int, n_out: int) -> str:
        parts = [self.weight(f"{name}_w", n_out, n_in, scale=n_in**-0.5), self.weight(f"{name}_b", n_out)]
        return self.node("Gemm", [x, *parts], name, transB=1)

    def model(
        self,
        outputs: list[str],
        *,
        batch: int | str = "n",
        channels: int = 3,
        size: int = 16,
        opset: int = 13,
    ) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, channels, size, size])
        results = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs]
        graph = helper.make_graph(self.nodes, "tiny", [image], results, self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def iresnet(*, batch: int | str = "n", spatial_slopes: bool = True) -> onnx.ModelProto:
    """A small insightface network with squeeze and excitation: bn2 (8, 8, 8), fc, features; 48-d."""
    make = Maker()
    x = make.prelu(
        make.norm(make.conv("image", "conv1", 3, 8), "bn1", 8), "prelu1", 8, spatial=spatial_slopes
    )
    y = make.conv(make.norm(x, "b_bn1", 8), "b_conv1", 8, 8)
    y = make.prelu(make.norm(y, "b_bn2", 8), "b_prelu", 8, spatial=spatial_slopes)
    y = make.norm(make.conv(y, "b_conv2", 8, 8, strides=[2, 2]), "b_bn3", 8)
    gate = make.conv(make.node("GlobalAveragePool", [y], "se_pool"), "se_down", 8, 4, 1)
    gate = make.node(
        "Sigmoid", [make.conv(make.node("Relu", [gate], "se_relu"), "se_up", 4, 8, 1)], "se_gate"
    )
    y = make.node("Mul", [y, gate], "se")
    short = make.norm(make.conv(x, "short", 8, 8, 1, strides=[2, 2]), "short_bn", 8)
    x = make.norm(make.node("Add", [y, short], "b_add"), "bn2", 8)
    x = make.node("Flatten", [make.node("Dropout", [x], "drop")], "flat", axis=1)
    make.norm(make.dense(x, "fc", 8 * 8 * 8, 48), "features", 48)
    return make.model(["features"], batch=batch)


def oblong() -> onnx.ModelProto:
    """The network of `iresnet` for images of 8x32, whose last map has as many positions as that of 16x16."""
    model = iresnet()
    height, width = model.graph.input[0].type.tensor_type.shape.dim[2:]
    height.dim_value, width.dim_value = 8, 32
    return model


def mobilefacenet(*, batch: int | str = 1) -> onnx.ModelProto:
    """A MobileFaceNet head: last map (16, 8, 8), global depthwise and 1x1 convolution, constant reshape."""
    make = Maker(1)
    x = make.prelu(make.conv("image", "stem", 3, 16, strides=[2, 2]), "last_map", 16)
    x = make.conv(make.conv(x, "global", 16, 16, 8, 0, group=16), "project", 16, 40, 1)
    make.node("Reshape", [x, make.stored("shape", np.array([batch if batch == 1 else -1, 40]))], "output")
    return make.model(["output"], batch=batch, opset=11)


def traced_view(*, batch: int | str = "n") -> onnx.ModelProto:
    """``x.view(x.size(0), -1)`` as exported by torch: the new shape is computed from the input's."""
    make = Maker(2)
    x = make.node("Relu", [make.conv("image", "stem", 3, 8, strides=[2, 2])], "last_map")
    size = make.node("Shape", [x], "size")
    batch_size = make.node("Gather", [size, make.stored("zero", np.array(0))], "first", axis=0)
    batch_size = make.node("Unsqueeze", [batch_size, make.stored("axes", np.array([0]))], "first_1d")
    shape = make.node("Concat", [batch_size, make.stored("rest", np.array([-1]))], "shape", axis=0)
    flat = make.node("Reshape", [x, shape], "flat")
    make.node("MatMul", [flat, make.weight("w", 8 * 8 * 8, 32, scale=0.05)], "out")
    make.node("Add", ["out", make.weight("bias", 32)], "embedding")
    return make.model(["embedding"], batch=batch)


def classifier() -> onnx.ModelProto:
    """A network ending in a softmax."""
    make = Maker(3)
    x = make.node("Flatten", [make.conv("image", "conv", 3, 4)], "flat", axis=1)
    make.node("Softmax", [make.dense(x, "logits", 4 * 256, 100)], "probabilities")
    return make.model(["probabilities"])


def detector() -> onnx.ModelProto:
    """A network with maps of boxes and scores, and no embedding."""
    make = Maker(4)
    x = make.conv("image", "conv", 3, 8)
    make.conv(x, "boxes", 8, 4)
    make.node("Sigmoid", [make.conv(x, "raw_scores", 8, 1)], "scores")
    return make.model(["boxes", "scores"])


def dense_only() -> onnx.ModelProto:
    """An embedding of 64 numbers without any convolution."""
    make = Maker(5)
    make.dense(make.node("Flatten", ["image"], "flat", axis=1), "embedding", 3 * 256, 64)
    return make.model(["embedding"])


def two_rows() -> onnx.ModelProto:
    """A network with two outputs that could be the embedding."""
    make = Maker(6)
    x = make.node("Flatten", [make.conv("image", "map", 3, 4)], "flat", axis=1)
    make.dense(x, "one", 4 * 256, 32)
    make.dense(x, "other", 4 * 256, 32)
    return make.model(["one", "other"])


def unimportable() -> onnx.ModelProto:
    """A recogniser with an operation that the torch importer does not support."""
    make = Maker(7)
    x = make.node("Celu", [make.conv("image", "conv", 3, 8)], "celu")
    make.dense(make.node("Flatten", [x], "flat", axis=1), "embedding", 8 * 256, 32)
    return make.model(["embedding"])
