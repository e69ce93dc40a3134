import json

import pytest
import torch
from tests.models.originals import check_keys
from tests.reference.original_networks import original

from spherecf.errors import InputError
from spherecf.models import NETWORKS, Network, make_backbone
from spherecf.models.transformer import TRANSFORMERS, DropPath

# Counted with insightface's arcface_torch `backbones/vit.py` and the arguments of its `backbones/__init__.py`
# (vit_l is vit_l_dp005_mask_005 there), and with `vit.py` of TransFace and CVLface; CVLface's model table
# lists ViT-Base with 114.87 M.
COUNTS = {
    "vit_t": 19_137_792, "vit_s": 76_023_296, "vit_b": 113_833_472, "vit_l": 255_684_352,
    "vit_h": 756_393_984, "transface_s": 86_660_864, "transface_b": 124_471_040, "transface_l": 271_630_336,
    "cvlface_vit_s": 95_952_896, "cvlface_vit_b": 114_870_272,
}  # fmt: skip


def tiny(name: str = "vit_t", **options: object) -> Network:
    torch.manual_seed(1)
    return make_backbone(name, **{"dim": 16, "size": 36, "width": 0.125, **options})


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_parameter_names_equal_the_original(name: str) -> None:
    check_keys(name)


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_equal_the_original(name: str) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in make_backbone(name).parameters()) == COUNTS[name]


@pytest.mark.parametrize("name", ["vit_t", "vit_b", "transface_s", "cvlface_vit_s", "cvlface_vit_b"])
def test_outputs_equal_the_original(name: str) -> None:
    """At an eighth of the width, with 2x2 patches."""
    torch.manual_seed(0)
    table, forward = original(name, width=0.125, dim=32, side=2)
    network = make_backbone(name, dim=32, size=20, width=0.125).eval()
    network.load_state_dict(table)
    images = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        for output, reference in zip(network(images), forward(images), strict=True):
            torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max()))
            assert float((output[0] - output[1]).abs().max()) > 1e-3 * float(output.abs().max())


def test_the_map_arranges_tokens_on_their_grid() -> None:
    network = tiny().eval()
    tokens: list[torch.Tensor] = []
    network.norm.register_forward_hook(lambda module, args, output: tokens.append(output))
    _, features = network(torch.randn(3, 3, 36, 36))
    assert features.shape[1:] == network.feature_shape == (32, 4, 4)
    assert torch.equal(features[:, :, 1, 2], tokens[0][:, 4 * 1 + 2])
    assert make_backbone("vit_t", width=0.125).feature_shape == (32, 12, 12)  # 112 // 9


def test_evaluation_is_deterministic_and_training_is_not() -> None:
    network, images = tiny(), torch.randn(4, 3, 36, 36)
    assert not torch.equal(network(images)[1], network(images)[1])
    network.eval()
    assert torch.equal(network(images)[1], network(images)[1])
    plain = tiny(drop_path=0.0, mask=0.0)
    assert torch.equal(plain(images)[1], plain(images)[1])


def test_masked_patches_are_skipped_and_replaced_by_the_mask_token() -> None:
    network = tiny(mask=0.5, drop_path=0.0)
    with torch.no_grad():
        network.mask_token.fill_(7.0)
    token_counts: list[int] = []
    network.blocks[0].register_forward_pre_hook(lambda module, args: token_counts.append(args[0].shape[1]))
    features = network(torch.randn(5, 3, 36, 36))[1]
    masked = (features == 7.0).all(1).flatten(1)
    assert token_counts == [8] and masked.sum(1).tolist() == [8] * 5
    assert len({tuple(row) for row in masked.tolist()}) > 1  # masks differ between images


def test_every_trainable_parameter_gets_a_gradient() -> None:
    """Distributed training would hang on parameters without a gradient."""
    for options in ({}, {"mask": 0.0}):
        network = tiny(**options)
        network(torch.randn(4, 3, 36, 36))[0].square().sum().backward()
        assert [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None] == []
        assert network.mask_token.requires_grad == bool(network.mask)


def test_drop_path_preserves_the_mean() -> None:
    torch.manual_seed(0)
    layer, branch = DropPath(0.25), torch.ones(20_000, 2, 2)
    dropped = layer(branch)
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0.0, 4 / 3])
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)
    assert torch.equal(dropped.amin((1, 2)), dropped.amax((1, 2))) and layer.eval()(branch) is branch


def test_initialisation_equals_the_original() -> None:
    network = tiny(width=0.5)
    assert network.blocks[3].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert network.pos_embed.std().item() == pytest.approx(0.02, rel=0.1)
    assert not bool(network.blocks[0].attn.proj.bias.any()) and bool((network.norm.weight == 1).all())
    rates = [block.drop_path.rate for block in network.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.1, 12).tolist())


def test_options_are_rebuilt_from_the_config_and_validated() -> None:
    network = tiny("vit_b_dp005_mask_005", dropout=0.2, checkpointing=True)
    twin = make_backbone(network.name, **json.loads(json.dumps(network.config())))
    assert twin.config() == network.config() and twin.mask == twin.drop_path == 0.05
    for options in ({"mask": 1.0}, {"drop_path": -0.1}, {"size": 8}):
        with pytest.raises(InputError, match="drop_path and mask in"):
            tiny(**options)
    assert set(TRANSFORMERS) < set(NETWORKS)


def test_original_state_dictionaries_load_unchanged() -> None:
    table, _ = original("vit_t", width=0.125, dim=16, side=4)
    network = tiny()
    network.load_state_dict(table)
    assert all(torch.equal(t, table[name]) for name, t in network.state_dict().items())
