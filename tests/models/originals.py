"""Checks that a network of ours is the original, key by key and number by number."""

import torch
from tests.reference.original_networks import original

from spherecf.models import make_backbone


def check_keys(name: str) -> None:
    """At full size: the same keys and shapes, so the same number of parameters."""
    with torch.device("meta"):
        table, _ = original(name)
        ours = make_backbone(name).state_dict()
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in table.items()}


def check_outputs(name: str) -> None:
    """At an eighth of the width: the same embedding and map in evaluation mode, and not always the same."""
    torch.manual_seed(0)
    table, forward = original(name, width=0.125, dim=32, side=2)
    ours = make_backbone(name, dim=32, size=32, width=0.125).eval()
    ours.load_state_dict(table)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        embedding, features = ours(images)
        expected = forward(images)
    assert features.shape[1:] == ours.feature_shape and embedding.shape == (2, 32)
    for got, wanted in ((embedding, expected[0]), (features, expected[1])):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
        assert float((got[0] - got[1]).abs().max()) > 1e-3 * float(got.abs().max())
