import pytest
import torch
from tests.models.originals import check_keys, check_outputs

from spherecf.models import NETWORKS, make_backbone

NAMES = [name for name in NETWORKS if name.startswith("r")]


@pytest.mark.parametrize("name", NAMES)
def test_parameter_names_equal_arcface_torch(name: str) -> None:
    check_keys(name)


@pytest.mark.parametrize("name", ["r18", "r50", "r100", "r18-se"])
def test_outputs_equal_arcface_torch(name: str) -> None:
    check_outputs(name)


def test_initialisation_equals_the_original() -> None:
    torch.manual_seed(0)
    network = make_backbone("r18", dim=32, size=32, width=0.25)
    deviations = [m.weight.std() for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    torch.testing.assert_close(
        torch.stack(deviations), torch.full((len(deviations),), 0.1), rtol=0.15, atol=0
    )
    assert not network.features.weight.requires_grad and bool((network.features.weight == 1).all())
    assert all(p.requires_grad for n, p in network.named_parameters() if n != "features.weight")
