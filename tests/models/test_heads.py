import pytest
from tests.conformance.heads import HeadConformance

from spherecf.errors import InputError, ModelError
from spherecf.models import HEADS, ConfidenceHead, ConvHead, LinearHead, make_head


class TestLinear(HeadConformance):
    def make(self) -> ConfidenceHead:
        return LinearHead(16, 7, 7)


class TestConv(HeadConformance):
    def make(self) -> ConfidenceHead:
        return ConvHead(16, 7, 7)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (7, 7), (14, 14), (7, 5)])
def test_conv_takes_any_map(height: int, width: int) -> None:
    import torch

    assert ConvHead(8, height, width).eval()(torch.randn(2, 8, height, width)).shape == (2,)


def test_linear_has_the_reference_shape() -> None:
    widths = [layer.in_features for layer in LinearHead(32, 7, 7).modules() if hasattr(layer, "in_features")]
    assert widths == [1568, 784, 392]


def test_unknown_kind_lists_the_known() -> None:
    with pytest.raises(ModelError, match=r"'cubic'; there are conv, light, linear"):
        make_head("cubic")
    assert set(HEADS) >= {"conv", "light", "linear"}


def test_arguments_that_do_not_fit() -> None:
    with pytest.raises(ModelError, match="linear head: arguments"):
        make_head("linear", size=3)
    with pytest.raises(InputError, match="positive size"):
        make_head("linear", channels=0, height=7, width=7)
