import pytest
import torch
from tests.conformance.heads import HeadConformance

from spherecf.errors import InputError, ModelError
from spherecf.models import HEADS, ConfidenceHead, make_head
from spherecf.models.heads import ConvHead, LinearHead


class TestLinear(HeadConformance):
    def make(self) -> ConfidenceHead:
        return LinearHead(16, 7, 7)


class TestConv(HeadConformance):
    def make(self) -> ConfidenceHead:
        return ConvHead(16, 7, 7)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (7, 7), (14, 14), (7, 5)])
def test_conv_accepts_maps_of_any_size(height: int, width: int) -> None:
    assert ConvHead(8, height, width).eval()(torch.randn(2, 8, height, width)).shape == (2,)


def test_linear_has_the_reference_shape() -> None:
    widths = [layer.in_features for layer in LinearHead(32, 7, 7).modules() if hasattr(layer, "in_features")]
    assert widths == [1568, 784, 392]


def test_unknown_kinds_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ModelError, match=r"'cubic'; the kinds are conv, light, linear"):
        make_head("cubic")
    assert set(HEADS) >= {"conv", "light", "linear"}


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(ModelError, match="linear head: arguments"):
        make_head("linear", size=3)
    with pytest.raises(InputError, match="positive size"):
        make_head("linear", channels=0, height=7, width=7)
    with pytest.raises(InputError, match="expected one output or more, got 0"):
        make_head("light", channels=4, height=7, width=7, outputs=0)


@pytest.mark.parametrize("kind", sorted(HEADS))
def test_tokens_are_treated_as_a_map_of_width_one(kind: str) -> None:
    torch.manual_seed(0)
    head = make_head(kind, channels=12, height=9, width=1).eval()
    tokens, embedding = torch.randn(3, 9, 12), torch.randn(3, 4)
    as_map = tokens.transpose(1, 2)[..., None]
    assert torch.equal(head.log_kappa(tokens, embedding), head.log_kappa(as_map, embedding))
    with pytest.raises(InputError, match=r"expected feature maps \(n, 12, 9, 1\), got \(3, 12, 8, 1\)"):
        head.log_kappa(tokens[:, 1:], embedding)


def test_linear_refuses_sizes_beyond_memory() -> None:
    with pytest.raises(InputError, match=r"3\.4 billion parameters \(14 GB\) .* use the light head"):
        LinearHead(512, 12, 12)
    with torch.device("meta"):
        assert LinearHead(1024, 7, 7).parameter_count < 2**31 and LinearHead(256, 12, 12).parameter_count
