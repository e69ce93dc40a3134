"""A model and its frozen backbone behave like torch modules."""

import copy

import pytest
import torch
from tests.models import graphs
from tests.models.conftest import TINY, noise
from torch import nn

import spherecf
from spherecf.errors import InputError
from spherecf.models import ConfidenceModel, FrozenBackbone
from spherecf.models.heads import ConvHead


@pytest.fixture(params=["torch", "onnxruntime"])
def model(request: pytest.FixtureRequest) -> ConfidenceModel:
    torch.manual_seed(0)
    backbone = FrozenBackbone.from_onnx(graphs.iresnet(), preprocessing=TINY, engine=request.param)
    return ConfidenceModel(backbone, ConvHead(*backbone.feature_shape))


def test_calling_a_model_gives_its_outputs(model: ConfidenceModel) -> None:
    images = noise(3)
    called, outputs = model(images), model.outputs(images)
    assert torch.equal(called.mu, outputs.mu) and torch.equal(called.log_kappa, model.embed(images)[1])
    assert spherecf.load == ConfidenceModel.load


def test_training_mode_and_gradients_affect_only_the_head(model: ConfidenceModel) -> None:
    assert model.train() is model and model.head.training and not model.backbone.training
    assert not any(layer.training for layer in model.backbone.modules())
    learnt = {name for name, value in model.named_parameters() if value.requires_grad}
    assert learnt == {f"head.{name}" for name, _ in model.head.named_parameters()}
    assert not model.eval().head.training


def test_the_state_dictionary_contains_everything_that_torch_runs(model: ConfidenceModel) -> None:
    inside = [name for name in model.state_dict() if name.startswith("backbone.network.")]
    assert bool(inside) == (model.backbone.network is not None)
    twin = copy.deepcopy(model) if inside else model
    with torch.no_grad():
        twin.head.final.bias += 1
    twin.load_state_dict(model.state_dict())
    assert twin.fingerprint() == model.fingerprint()


def test_head_and_backbone_move_together_if_the_engine_allows(model: ConfidenceModel) -> None:
    assert model.to("cpu") is model and model.backbone.device == torch.device("cpu")
    if model.backbone.network is None:
        with pytest.raises(InputError, match=r"onnxruntime runs on cpu, got meta.*engine='torch'"):
            model.to("meta")
    else:
        model.to("meta")
        assert model.backbone.device == torch.device("meta")
    devices = {value.device for value in model.head.parameters()}
    assert devices == {model.backbone.device}


def test_the_floating_point_type_cannot_change_after_loading(model: ConfidenceModel) -> None:
    if model.backbone.network is not None:
        with pytest.raises(InputError, match=r"keeps its type torch.float32, got torch.float64"):
            model.double()
        assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_the_repr_is_short() -> None:
    model = spherecf.load()
    lines = repr(model).splitlines()
    assert len(lines) == 6 and max(map(len, lines)) < 240
    assert "sface" in lines[1] and "LightHead" in lines[2] and "201 knots" in lines[4]


class _BatchDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if len(x) > 1:  # depends on the batch, so images run one by one
            x = x + 1
        return x.mean((2, 3)), x


def test_a_backbone_running_images_one_by_one_is_a_module() -> None:
    backbone = FrozenBackbone.from_module(_BatchDependent(), TINY)
    assert backbone.repairs and isinstance(backbone.network, _BatchDependent)
    assert backbone.device == torch.device("cpu")
