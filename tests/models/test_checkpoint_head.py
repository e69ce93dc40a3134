from pathlib import Path

import pytest
import torch
from tests.reference.original_heads import conv_table, linear_table, log_kappa

from spherecf.errors import FileFormatError, InputError, ModelError
from spherecf.models import (
    ConfidenceModel,
    FrozenBackbone,
    load_confidence_head,
    make_head,
    original_head_state,
)
from spherecf.models.heads import ConvHead, LightHead, LinearHead

SHAPE = (512, 2, 2)


@pytest.fixture
def linear() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return linear_table(512 * 4)


@pytest.mark.parametrize("container", ["uncer_net_state_dict", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_heads_of_the_reference_are_read(
    tmp_path: Path, linear: dict[str, torch.Tensor], container: str | None, prefix: str
) -> None:
    state = {f"{prefix}{key}": tensor for key, tensor in linear.items()}
    torch.save({"epoch": 1, container: state} if container else state, tmp_path / "ckpt_e30.pt")
    head = load_confidence_head(tmp_path / "ckpt_e30.pt")
    assert isinstance(head, LinearHead) and head.feature_shape == SHAPE and not head.training
    features = torch.randn(5, *SHAPE)
    torch.testing.assert_close(head.log_kappa(features, torch.randn(5, 8)), log_kappa(linear, features))


def test_heads_of_tface_are_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = conv_table(32)
    torch.save({"state_dict": table}, tmp_path / "head.pth")
    head = load_confidence_head(tmp_path / "head.pth")
    assert isinstance(head, ConvHead) and head.feature_shape == (32, 7, 7)
    features = torch.randn(5, 32, 7, 7)
    torch.testing.assert_close(head.log_kappa(features, torch.randn(5, 8)), log_kappa(table, features))
    larger = load_confidence_head(tmp_path / "head.pth", feature_shape=(32, 14, 14))
    features = torch.randn(5, 32, 14, 14)
    torch.testing.assert_close(larger.log_kappa(features, torch.randn(5, 8)), log_kappa(table, features))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_heads_round_trip_with_the_original_names(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    head = make_head(kind, channels=16, height=7, width=7).eval()
    state = original_head_state(head)
    assert set(state) == set(linear_table(16 * 49) if kind == "linear" else conv_table(16))
    features = torch.randn(4, 16, 7, 7)
    torch.testing.assert_close(head(features), log_kappa(state, features))
    torch.save({"uncer_net_state_dict": state}, tmp_path / "ours.pt")
    reloaded = load_confidence_head(tmp_path / "ours.pt", feature_shape=(16, 7, 7))
    assert torch.equal(reloaded(features), head(features))


def test_heads_of_saved_models_are_read(tmp_path: Path, tiny: FrozenBackbone) -> None:
    head = LightHead(*tiny.feature_shape).eval()
    path = ConfidenceModel(tiny, head).save(tmp_path / "model.safetensors")
    loaded = load_confidence_head(path)
    summary = torch.randn(3, *head.summary_shape)
    assert loaded.kind == "light" and torch.equal(loaded(summary), head(summary))
    with pytest.raises(InputError, match=r"a head for maps .* feature_shape is \(9, 9, 9\)"):
        load_confidence_head(path, feature_shape=(9, 9, 9))


def test_files_without_a_matching_head_are_refused(tmp_path: Path, linear: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "head.pt"
    torch.save({"fc.weight": torch.ones(2, 2)}, path)
    with pytest.raises(FileFormatError, match=r"found 0; its first keys are fc.weight"):
        load_confidence_head(path)
    torch.save(linear, path)
    with pytest.raises(InputError, match=r"maps of 2048 values, which \(512, 7, 7\) does not match"):
        load_confidence_head(path, feature_shape=(512, 7, 7))
    vectors = {key: tensor.flatten() for key, tensor in linear.items()}
    torch.save(vectors, path)
    with pytest.raises(FileFormatError, match=r"expected a matrix .*, got \(\d+,\)"):
        load_confidence_head(path)
    torch.save({k: t for k, t in linear.items() if "4.bias" not in k}, path)
    with pytest.raises(ModelError, match=r"do not fit a linear head: .*final.bias"):
        load_confidence_head(path)
    with pytest.raises(ModelError, match="a light head has no original form"):
        original_head_state(make_head("light", channels=4, height=2, width=2))
