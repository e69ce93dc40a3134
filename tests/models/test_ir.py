import pytest
import torch
from tests.models.originals import check_keys, check_outputs

from spherecf.models import NETWORKS, make_backbone

NAMES = [name for name in NETWORKS if "ir-" in name]


@pytest.mark.parametrize("name", NAMES)
def test_parameter_names_equal_the_original(name: str) -> None:
    check_keys(name)


@pytest.mark.parametrize("name", ["ir-50", "ir-se-50", "tface-ir-18", "tface-ir-se-50", "tface-ir-se-152"])
def test_outputs_equal_the_original(name: str) -> None:
    check_outputs(name)


def test_images_of_other_sizes_are_accepted() -> None:
    """The reference accepts 112 and 224 pixels, with maps of 7x7 and 14x14."""
    for size, side in ((112, 7), (224, 14), (100, 7)):
        network = make_backbone("ir-18", size=size, width=0.125)
        embedding, features = network(torch.randn(2, 3, size, size))
        assert features.shape[1:] == network.feature_shape == (64, side, side)
        assert embedding.shape == (2, 512)


def test_initialisation_equals_the_original() -> None:
    torch.manual_seed(0)
    network = make_backbone("ir-18", dim=64, size=32, width=0.25)
    dense = network.output_layer[3]
    for weight, fan_out in ((dense.weight, 64), (network.body[-1].res_layer[1].weight, 128 * 9)):
        torch.testing.assert_close(weight.std(), torch.tensor((2 / fan_out) ** 0.5), rtol=0.1, atol=0)
    assert not bool(dense.bias.any())
