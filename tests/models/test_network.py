import pytest
import torch
from torch import Tensor, nn

from spherecf.models import Network, make_backbone
from spherecf.models.network import as_map, map_shape

NAMES = ["r18-se", "ir-18", "tface-ir-18", "mbf", "vit_t", "transface_s"]


def tiny(name: str, **options: object) -> Network:
    torch.manual_seed(1)
    return make_backbone(name, dim=16, size=32, width=0.125, **options)


def step(network: Network, images: Tensor) -> list[Tensor]:
    """Outputs of one training step: results, gradients, and buffers afterwards."""
    torch.manual_seed(2)
    embedding, features = network(images)
    (embedding.square().sum() + features.mean()).backward()
    gradients = [p.grad for p in network.parameters() if p.requires_grad]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    return [embedding, features, *gradients, *network.buffers()]


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_does_not_change_results(name: str) -> None:
    images = torch.randn(4, 3, 32, 32)
    plain = tiny(name, dropout=0.4)
    checkpointed = tiny(name, dropout=0.4, checkpointing=True)
    for _ in range(2):
        for expected, actual in zip(step(plain, images), step(checkpointed, images), strict=True):
            assert torch.equal(actual, expected)
    assert {int(b) for n, b in checkpointed.named_buffers() if n.endswith("num_batches_tracked")} == {2}
    norms = [m for m in checkpointed.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {0.1}


def test_checkpointing_recomputes_the_blocks() -> None:
    """Each block runs twice, in the forward and in the backward pass."""
    network = tiny("ir-18", checkpointing=True)
    calls: list[nn.Module] = []
    network.body[3].register_forward_pre_hook(lambda module, args: calls.append(module))
    step(network, torch.randn(2, 3, 32, 32))
    assert len(calls) == 2
    network.eval()(torch.randn(2, 3, 32, 32))[0].sum().backward()
    with torch.no_grad():
        network(torch.randn(2, 3, 32, 32))
    assert len(calls) == 5


@pytest.mark.parametrize("name", NAMES)
def test_the_embedding_stays_float32_under_autocast(name: str) -> None:
    network = tiny(name).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        embedding, features = network(images)
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, network.embed(features.float()))
    with torch.no_grad():
        expected = network(images)[0]
    assert float(torch.cosine_similarity(embedding, expected).min()) > 0.99
    assert not torch.equal(embedding, expected)  # the convolutions did run in bfloat16
    half = network.to(torch.bfloat16)(images.bfloat16())[0]
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_memory_format_does_not_change_results(name: str) -> None:
    network = tiny(name).eval()
    images = torch.randn(3, 3, 32, 32)
    expected = network(images)
    outputs = network.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
    for output, reference in zip(outputs, expected):
        torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((16, 24), (24, 16, 1)),  # tokens
        ((16, 16), (16, 16, 1)),
        ((7, 7, 24), (24, 7, 7)),  # a map with channels last
        ((24, 7, 7), (24, 7, 7)),
        ((7, 7, 7), (7, 7, 7)),
        ((24, 7, 6), (24, 7, 6)),
        ((16, 16, 1), (16, 16, 1)),  # tokens that already form a map
    ],
)
def test_features_are_arranged_as_a_map(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    features = torch.randn(2, *shape)
    arranged = as_map(features)
    assert arranged.shape[1:] == map_shape(shape) == expected
    assert torch.equal(as_map(arranged), arranged)
    if len(shape) == 2:
        assert torch.equal(arranged[:, 3, 5, 0], features[:, 5, 3])
    elif shape != expected:
        assert torch.equal(arranged[:, 3, 5, 1], features[:, 5, 1, 3])


def test_dropout_is_applied_on_request_only() -> None:
    images = torch.randn(4, 3, 32, 32)
    network = tiny("r18", dropout=0.5)
    assert not torch.equal(network(images)[0], network(images)[0])
    deterministic = tiny("r18")
    assert torch.equal(deterministic(images)[0], deterministic(images)[0])


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.parametrize(("checkpointing", "backend"), [(False, "inductor"), (True, "aot_eager")])
def test_compiled_networks_give_the_same_results(checkpointing: bool, backend: str) -> None:
    images = torch.randn(4, 3, 32, 32)
    expected = step(tiny("r18", checkpointing=checkpointing), images)
    network = tiny("r18", checkpointing=checkpointing)
    compiled = torch.compile(network, backend=backend)
    torch.manual_seed(2)
    embedding, features = compiled(images)
    (embedding.square().sum() + features.mean()).backward()
    gradients = [p.grad for p in network.parameters() if p.requires_grad]
    for actual, reference in zip(
        [embedding, features, *gradients, *network.buffers()], expected, strict=True
    ):
        torch.testing.assert_close(actual, reference, rtol=1e-3, atol=1e-4)
