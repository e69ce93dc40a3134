"""Checks that a network equals the original: parameter names, shapes and outputs."""

import torch
from tests.reference.original_networks import original

from spherecf.models import make_backbone


def check_keys(name: str) -> None:
    """At full size: the same parameter names and shapes."""
    with torch.device("meta"):
        table, _ = original(name)
        ours = make_backbone(name).state_dict()
    assert {k: t.shape for k, t in ours.items()} == {k: t.shape for k, t in table.items()}


def check_outputs(name: str) -> None:
    """At an eighth of the width: the same embedding and map as the original, different for each image."""
    torch.manual_seed(0)
    table, forward = original(name, width=0.125, dim=32, side=2)
    ours = make_backbone(name, dim=32, size=32, width=0.125).eval()
    ours.load_state_dict(table)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        embedding, features = ours(images)
        expected = forward(images)
    assert features.shape[1:] == ours.feature_shape and embedding.shape == (2, 32)
    for output, reference in ((embedding, expected[0]), (features, expected[1])):
        torch.testing.assert_close(output, reference, rtol=1e-3, atol=1e-4 * float(reference.abs().max()))
        assert float((output[0] - output[1]).abs().max()) > 1e-3 * float(output.abs().max())
