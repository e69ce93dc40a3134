import json
from typing import Any

import pytest
import torch

from spherecf.errors import InputError, ModelError
from spherecf.models import make_backbone

# Published parameter counts in millions: model tables of insightface and AdaFace; SCF reference (65.1 M).
PUBLISHED = {
    "r18": 24.0, "r34": 34.1, "r50": 43.6, "r100": 65.2, "mbf": 2.06, "ir-100": 65.1, "tface-ir-18": 24.0,
    "tface-ir-50": 43.6, "tface-ir-101": 65.2,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_equal_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in make_backbone(name).parameters()) / 1e6
    assert count == pytest.approx(PUBLISHED[name], abs=0.05 if PUBLISHED[name] > 10 else 0.005)


@pytest.mark.parametrize("name", ["r18-se", "tface-ir-18", "mbf"])
def test_a_network_is_rebuilt_from_its_config(name: str) -> None:
    network = make_backbone(name, dim=24, size=48, width=0.125, dropout=0.3, checkpointing=True)
    twin = make_backbone(network.name, **json.loads(json.dumps(network.config())))
    assert twin.config() == network.config() and twin.name == name
    twin.load_state_dict(network.state_dict())
    images = torch.randn(2, 3, 48, 48)
    for ours, theirs in zip(network.eval()(images), twin.eval()(images)):
        assert torch.equal(ours, theirs)


def test_unknown_networks_and_invalid_options_are_refused() -> None:
    with pytest.raises(ModelError, match=r"unknown network 'ir_101'; did you mean tface-ir-101. All are r18"):
        make_backbone("ir_101")
    with pytest.raises(ModelError, match=r"options \{'depth': 3\} do not fit"):
        make_backbone("r18", depth=3)
    wrong: list[dict[str, Any]] = [{"dim": 0}, {"dropout": 1.0}, {"size": 0}, {"width": 0.0}]
    for options in [*wrong, {"size": 112.0}, {"size": True}, {"size": "112"}]:
        with pytest.raises(InputError, match="expected whole numbers dim and size above 0, width above 0"):
            make_backbone("r18", **options)
