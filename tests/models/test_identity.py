from pathlib import Path

import pytest
import torch
from tests.models.conftest import TINY, noise
from tests.models.test_onnx_file import save_with_external_weights
from torch import Tensor, nn

from spherecf.calibration import Calibration, KappaScale
from spherecf.errors import ModelError
from spherecf.models import ConfidenceModel, FrozenBackbone, load
from spherecf.models.backbone import Identity, file_identity, module_identity
from spherecf.models.heads import LinearHead


class Scaled(nn.Module):
    """A module whose embedding is scaled by a tensor outside its state dictionary."""

    def __init__(self, kind: str, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.dense = nn.Conv2d(3, 4, 4, 4), nn.Linear(64, 32)
        if kind == "buffer":
            self.register_buffer("scale", torch.tensor([scale]), persistent=False)
        else:
            self.scale = torch.tensor([scale])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        layer = self.conv(x)
        return self.dense(layer.flatten(1) ** 2 * self.scale), layer


@pytest.mark.parametrize("kind", ["buffer", "attribute"])
def test_tensors_outside_the_state_dictionary_change_the_identity(kind: str) -> None:
    first, repeated, rescaled = (module_identity(Scaled(kind, scale)) for scale in (1.0, 1.0, 2.0))
    assert first == repeated and first.sha256 != rescaled.sha256 and first.former == rescaled.former != ""


def test_the_hash_of_a_plain_module_is_pinned() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.copy_(torch.eye(2))
        module.bias.zero_()
    expected = "f7cd266d6ca7eb969cbf96f629d310e29326ddfc15e2746888e08945dc2a49cc"
    assert module_identity(module) == Identity(expected)


def saved_with_former_hash(folder: Path, calibrated: bool) -> tuple[Path, Path]:
    """A head saved when the hash covered only the graph file, and the file of its recogniser."""
    path = save_with_external_weights(folder)
    backbone = FrozenBackbone.from_onnx(path, preprocessing=TINY)
    backbone.identity = Identity(backbone.identity.former)
    model = ConfidenceModel(backbone, LinearHead(*backbone.feature_shape))
    if calibrated:
        kappa = KappaScale.fit([10.0, 20.0, 40.0, 80.0], dim=48, population="four faces")
        model = model.with_calibration(Calibration(model=model.fingerprint(), data="d", kappa=kappa))
    return model.save(folder / "head.safetensors"), path


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_head_with_a_former_hash_is_migrated_on_request(tmp_path: Path, calibrated: bool) -> None:
    head, path = saved_with_former_hash(tmp_path, calibrated)
    for backbone in (path, FrozenBackbone.from_onnx(path, preprocessing=TINY)):
        with pytest.raises(ModelError, match="migrate=True"):
            load(head, backbone)
    model = load(head, path, migrate=True)
    assert model.backbone.sha256 == file_identity(path).sha256
    assert (model.calibration is not None) == calibrated
    model.save(head)
    reloaded = load(head, path)
    assert reloaded.fingerprint() == model.fingerprint()
    assert torch.equal(reloaded.embed(noise(2))[1], model.embed(noise(2))[1])


def test_migration_refuses_another_recogniser(tmp_path: Path, tiny_file: Path) -> None:
    head, _ = saved_with_former_hash(tmp_path, False)
    with pytest.raises(ModelError, match="means nothing on another backbone"):
        load(head, tiny_file, migrate=True)
