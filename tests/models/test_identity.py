from pathlib import Path

import pytest
import torch
from tests.models.conftest import TINY, noise
from tests.models.test_onnx_file import outside
from torch import Tensor, nn

from spherecf.calibration import Calibration, KappaScale
from spherecf.errors import ModelError
from spherecf.models import ConfidenceModel, FrozenBackbone, load
from spherecf.models.backbone import Identity, file_identity, module_identity
from spherecf.models.heads import LinearHead


class Scaled(nn.Module):
    """A number outside the state scales its embedding."""

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
def test_tensors_outside_a_modules_state_are_part_of_what_it_is(kind: str) -> None:
    one, same, other = (module_identity(Scaled(kind, scale)) for scale in (1.0, 1.0, 2.0))
    assert one == same and one.sha256 != other.sha256 and one.former == other.former != ""


def test_a_plain_module_keeps_its_hash() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.copy_(torch.eye(2))
        module.bias.zero_()
    known = "f7cd266d6ca7eb969cbf96f629d310e29326ddfc15e2746888e08945dc2a49cc"
    assert module_identity(module) == Identity(known)


def saved_before(folder: Path, calibrated: bool) -> tuple[Path, Path]:
    """(a head as it was saved when the hash was over the graph's file alone, the recogniser's file)."""
    path = outside(folder)
    backbone = FrozenBackbone.from_onnx(path, preprocessing=TINY)
    backbone.identity = Identity(backbone.identity.former)
    model = ConfidenceModel(backbone, LinearHead(*backbone.feature_shape))
    if calibrated:
        kappa = KappaScale.fit([10.0, 20.0, 40.0, 80.0], dim=48, population="four faces")
        model = model.with_calibration(Calibration(model=model.fingerprint(), data="d", kappa=kappa))
    return model.save(folder / "head.safetensors"), path


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_head_of_before_is_taken_over_on_request(tmp_path: Path, calibrated: bool) -> None:
    head, path = saved_before(tmp_path, calibrated)
    for given in (path, FrozenBackbone.from_onnx(path, preprocessing=TINY)):
        with pytest.raises(ModelError, match="migrate=True"):
            load(head, given)
    model = load(head, path, migrate=True)
    assert model.backbone.sha256 == file_identity(path).sha256
    assert (model.calibration is not None) == calibrated
    model.save(head)
    again = load(head, path)
    assert again.fingerprint() == model.fingerprint()
    assert torch.equal(again.embed(noise(2))[1], model.embed(noise(2))[1])


def test_migration_takes_no_other_recogniser(tmp_path: Path, tiny_file: Path) -> None:
    head, _ = saved_before(tmp_path, False)
    with pytest.raises(ModelError, match="means nothing on another backbone"):
        load(head, tiny_file, migrate=True)
