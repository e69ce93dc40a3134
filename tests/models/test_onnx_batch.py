"""Graphs exported for a fixed batch, converted to any batch size."""

import numpy as np
import onnx
import pytest
import torch
from tests.models import graphs
from tests.models.conftest import TINY, noise

from spherecf.errors import ModelError
from spherecf.models import FrozenBackbone
from spherecf.models.onnx.repairs import load_graph


def joined(batch: int, *, sizes: tuple[int, ...] = (), **attributes: int) -> onnx.ModelProto:
    """Convolution tokens (n, 8, 16) between two constant tokens, which are the same for every image."""
    make = graphs.Maker(0)
    x = make.conv("image", "patches", 3, 8, strides=[4, 4])
    shape = make.stored("sizes", np.array(sizes or (batch, 8, 16)))
    x = make.node("Reshape", [x, shape], "rows", **attributes)
    token = np.linspace(-1, 1, 16, dtype=np.float32)
    row = make.stored("token", np.broadcast_to(token, (batch, 1, 16)))
    x = make.node("Softmax", [make.node("Concat", [row, x, row], "tokens", axis=1)], "seen", axis=-1)
    make.dense(make.node("Flatten", [x], "flat", axis=1), "embedding", 160, 32)
    return make.model(["embedding"], batch=batch, opset=14)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("sizes", [None, (8, 16), (-1, 16)])
@pytest.mark.parametrize("allowzero", [0, 1])
def test_tokens_and_reshapes_follow_the_batch(
    batch: int, sizes: tuple[int, ...] | None, allowzero: int
) -> None:
    model = joined(batch, sizes=(batch, *sizes) if sizes else (), allowzero=allowzero)
    backbone = FrozenBackbone.from_onnx(model, preprocessing=TINY)
    assert backbone.repairs == [
        f"fixed batch of {batch} made dynamic (1 reshapes rewritten, 2 constant tokens repeated)"
    ]
    output = backbone(noise(3)).embedding
    for face, row in zip(noise(3), output, strict=True):
        torch.testing.assert_close(backbone(face[None]).embedding[0], row, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("allowzero", [0, 1])
def test_a_reshape_to_an_inferred_and_a_zero_size_is_left_unchanged(allowzero: int) -> None:
    """A size is inferred already, and cannot be computed beforehand for images of any size."""
    model = joined(2, sizes=(2, 8, -1), allowzero=allowzero)
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "hw", strict=True):
        dim.dim_param = name
    (repair,) = load_graph(model).repairs
    assert f"({1 - allowzero} reshapes rewritten" in repair


def test_constants_that_differ_between_the_images_of_a_fixed_batch_are_refused() -> None:
    model = joined(2)
    token = next(tensor for tensor in model.graph.initializer if tensor.name == "token")
    rows = onnx.numpy_helper.to_array(token) + np.float32([0, 1])[:, None, None]
    token.CopyFrom(onnx.numpy_helper.from_array(rows, "token"))
    assert load_graph(model).repairs == ["fixed batch of 2 made dynamic (1 reshapes rewritten)"]
    with pytest.raises(ModelError, match=r"onnxruntime rejects the graph: .*\(tokens\)"):
        FrozenBackbone.from_onnx(model, preprocessing=TINY)


def test_overflowing_reshape_sizes_are_left_unchanged() -> None:
    """The product of the sizes is 0 in 64 bits."""
    load_graph(joined(2, sizes=(2, -1, 2**32, 2**32)))
