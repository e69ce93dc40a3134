"""Graphs and modules must give the same output for an image alone, in a batch, and in a repeated run."""

import numpy as np
import onnx
import pytest
import torch
from tests.models import graphs
from tests.models.conftest import TINY, noise
from torch import Tensor, nn
from torch.nn import functional

from spherecf.errors import ModelError
from spherecf.models import FrozenBackbone


class Net(nn.Module):
    """A convolution and a dense layer, whose output subclasses change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.dense = nn.Conv2d(3, 8, 4, 4), nn.Linear(8 * 16, 32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.conv(x)
        return self.change(self.dense(layer.flatten(1))), layer

    def change(self, embedding: Tensor) -> Tensor:
        return embedding


class Centred(Net):
    def change(self, embedding: Tensor) -> Tensor:
        return embedding - 0.5 * embedding.mean(0)


class BatchStatistics(Net):
    def change(self, embedding: Tensor) -> Tensor:
        return functional.batch_norm(embedding, None, None, training=True)


class LiveDropout(Net):
    def change(self, embedding: Tensor) -> Tensor:
        return functional.dropout(embedding, 0.1, training=True)


class Noisy(Net):
    def change(self, embedding: Tensor) -> Tensor:
        return embedding + 0.01 * torch.randn_like(embedding)


class Stateful(Net):
    last: Tensor | float = 0.0

    def change(self, embedding: Tensor) -> Tensor:
        shifted = embedding + self.last
        self.last = embedding.mean(0)
        return shifted


class AlwaysTraining(Net):
    """eval() is overridden, so that batch statistics keep changing."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(32, momentum=0.5)

    def train(self, mode: bool = True) -> "AlwaysTraining":
        return super().train(True)

    def change(self, embedding: Tensor) -> Tensor:
        return functional.batch_norm(
            embedding,
            self.norm.running_mean,
            self.norm.running_var,
            training=len(embedding) > 1,
            momentum=0.5,
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_module_that_depends_on_its_batch_runs_images_one_by_one(dtype: str) -> None:
    backbone = FrozenBackbone.from_module(Centred(), TINY, dtype=dtype)
    assert any("one by one" in message for message in backbone.repairs)
    images = noise(3)
    single = torch.cat([backbone(image[None]).mu for image in images])
    assert torch.equal(backbone(images).mu, single)
    with pytest.raises(ModelError):
        backbone.to_onnx()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_independent_module_runs_in_batches(dtype: str) -> None:
    assert FrozenBackbone.from_module(Net(), TINY, dtype=dtype).repairs == []


@pytest.mark.parametrize("network", [LiveDropout, Noisy, Stateful, AlwaysTraining])
def test_modules_with_varying_outputs_are_refused(network: type[Net]) -> None:
    with pytest.raises(ModelError, match="run again"):
        FrozenBackbone.from_module(network(), TINY)


def test_layers_left_in_training_mode_are_named() -> None:
    with pytest.raises(ModelError, match="norm"):
        FrozenBackbone.from_module(AlwaysTraining(), TINY)


def test_a_module_that_needs_a_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="one image alone"):
        FrozenBackbone.from_module(BatchStatistics(), TINY)


def test_errors_within_a_module_become_model_errors() -> None:
    class Larger(Net):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x[:, :, :8])

    with pytest.raises(ModelError, match="Larger"):
        FrozenBackbone.from_module(Larger(), TINY)


def noisy_graph(kind: str) -> onnx.ModelProto:
    make = graphs.Maker(11)
    x = make.node("Flatten", [make.conv("image", "map", 3, 4)], "flat", axis=1)
    x = make.dense(x, "dense", 4 * 256, 32)
    if kind == "noise":
        make.node("Add", [x, make.node("RandomNormalLike", [x], "noise", scale=0.1)], "embedding")
        return make.model(["embedding"])
    return make.model(["dense"])


@pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
def test_a_graph_with_a_noise_operation_is_refused(engine: str) -> None:
    with pytest.raises(ModelError, match="run again"):
        FrozenBackbone.from_onnx(noisy_graph("noise"), preprocessing=TINY, engine=engine)
    np.testing.assert_array_equal(
        *(FrozenBackbone.from_onnx(noisy_graph(""), preprocessing=TINY)(noise(2)).norm for _ in "ab")
    )
