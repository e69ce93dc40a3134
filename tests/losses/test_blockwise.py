"""Blockwise margin softmax: as exact as with all logits stored, in the memory of one block."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from spherecf.losses import (
    MARGINS,
    NormFace,
    blockwise,
    blockwise_losses,
    make_margin,
    margin_softmax_loss,
)

SAMPLES, IDENTITIES, DIM = 24, 1003, 32
BLOCK = 100  # identities, so that the last block is shorter

# Largest relative errors of the loss, and of the gradients in embeddings, prototypes and the bias.
BOUNDS = {torch.float64: (1e-10, 1e-10), torch.float32: (1e-6, 5e-6), torch.bfloat16: (2e-3, 1e-2)}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(blockwise._BLOCK_BYTES, "cpu", 4 * DIM * BLOCK)


def case(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings at some distance from their prototypes, and prototypes of other identities."""
    generator = torch.Generator().manual_seed(0)
    prototypes = 0.01 * torch.randn(IDENTITIES, DIM, generator=generator)
    labels = torch.randint(IDENTITIES, (SAMPLES,), generator=generator)
    labels[:4] = torch.tensor([0, 63, 64, IDENTITIES - 1])  # at the ends of blocks, which are of 64
    noise = normalize(torch.randn(SAMPLES, DIM, generator=generator))
    lengths = 10 + 40 * torch.rand(SAMPLES, 1, generator=generator)
    embedding = lengths * normalize(noise + 0.5 * normalize(prototypes[labels]))
    return embedding.to(dtype), prototypes.to(dtype), labels


def value_and_gradients(
    loss: Callable[[Tensor, Tensor], Tensor], embedding: Tensor, prototypes: Tensor, margin: torch.nn.Module
) -> list[Tensor]:
    inputs = embedding.clone().requires_grad_(), prototypes.clone().requires_grad_()
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, (*inputs, *margin.parameters()))]


@pytest.mark.parametrize("products", BOUNDS, ids=str)
@pytest.mark.parametrize("kind", MARGINS)
def test_error_of_every_margin_against_float64(
    kind: str, products: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, prototypes, labels = case(torch.float64)
    exact, margin = make_margin(kind).double(), make_margin(kind)
    whole = lambda x, w: margin_softmax_loss(x, w, labels, exact)  # noqa: E731
    expected = value_and_gradients(whole, embedding, prototypes, exact)

    monkeypatch.setitem(blockwise._BLOCK_BYTES, "cpu", 4 * DIM * BLOCK)
    embedding, prototypes, labels = case(torch.float64 if products == torch.float64 else torch.float32)
    margin.to(embedding.dtype)
    blocks = lambda x, w: blockwise_losses(x, w, labels, margin, products).losses.mean()  # noqa: E731
    results = value_and_gradients(blocks, embedding, prototypes, margin)

    errors = [float((a - b).norm() / b.norm()) for a, b in zip(results, expected)]
    assert errors[0] <= BOUNDS[products][0] and max(errors[1:]) <= BOUNDS[products][1], errors
    for name, buffer in margin.named_buffers():
        torch.testing.assert_close(buffer, exact.get_buffer(name), check_dtype=False)


@pytest.mark.usefixtures("small_blocks")
def test_the_cosine_is_that_to_the_true_prototype_and_0_if_it_is_on_another_rank() -> None:
    embedding, prototypes, labels = case(torch.float64)
    own = (normalize(embedding) * normalize(prototypes[labels])).sum(1)
    columns = torch.where(torch.arange(SAMPLES) % 3 == 0, -1, labels)
    columns[0] = 0
    results = blockwise_losses(embedding, prototypes, columns, make_margin("arcface")).cosine
    torch.testing.assert_close(results, torch.where(columns >= 0, own, 0.0))


class Watch(TorchDispatchMode):
    """Records names of operations and sizes of new tensors; views and in-place results are not new."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        old = {t.untyped_storage().data_ptr() for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        result = operation(*args, **(kwargs or {}))
        self.names.add(operation.overloadpacket.__name__)
        for made in tree_iter(result):
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in old:
                self.sizes.append(made.numel())
        return result


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("kind", MARGINS)
def test_only_one_gradient_is_larger_than_a_block_and_no_value_is_read(kind: str) -> None:
    embedding, prototypes, labels = case(torch.float32)
    embedding.requires_grad_(), prototypes.requires_grad_()
    margin = make_margin(kind)
    with Watch() as watch:
        blockwise_losses(embedding, prototypes, labels, margin).losses.mean().backward()
    *rest, largest = sorted(watch.sizes)
    assert largest == prototypes.numel() and max(rest) <= max(BLOCK * DIM, IDENTITIES)
    # What makes a GPU wait: values read by Python, and results whose shape depends on values.
    assert not watch.names & {"_local_scalar_dense", "nonzero", "masked_select", "item", "is_nonzero"}
    assert "mm" in watch.names


@pytest.mark.usefixtures("small_blocks")
def test_the_loss_uses_blocks_if_there_are_many_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    embedding, prototypes, labels = case(torch.float32)
    margin = make_margin("magface").eval()
    results = [
        margin_softmax_loss(embedding, prototypes, labels, margin, how) for how in ("none", "mean", "sum")
    ]
    half = margin_softmax_loss(embedding, prototypes.half(), labels, margin)
    with torch.autocast("cpu"):
        autocast = margin_softmax_loss(embedding, prototypes, labels, margin)
    in_bfloat16 = blockwise_losses(embedding, prototypes, labels, margin, torch.bfloat16).losses.mean()
    assert torch.equal(results[0], blockwise_losses(embedding, prototypes, labels, margin).losses)
    monkeypatch.setitem(blockwise._BLOCK_BYTES, "cpu", 2**24)
    whole = margin_softmax_loss(embedding, prototypes, labels, margin, "none")
    assert not torch.equal(results[0], whole)  # it was another computation
    for one, other in zip(results, (whole, whole.mean(), whole.sum())):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(half, whole.mean(), rtol=1e-3, atol=0)
    assert torch.equal(autocast, in_bfloat16) and not torch.equal(autocast, results[1])


@pytest.mark.usefixtures("small_blocks")
def test_half_precision_prototypes_have_gradients_of_their_type() -> None:
    embedding, prototypes, labels = case(torch.float32)
    margin = make_margin("arcface")
    loss = lambda x, w: blockwise_losses(x, w, labels, margin).losses.mean()  # noqa: E731
    _, _, full = value_and_gradients(loss, embedding, prototypes.bfloat16().float(), margin)
    _, _, half = value_and_gradients(loss, embedding, prototypes.bfloat16(), margin)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=2**-7, atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
def test_a_custom_margin_may_change_the_other_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cubic(NormFace):
        kind = "cubic"

        def others(self, cosine: Tensor, target_cosine: Tensor) -> Tensor:
            return cosine**3 + target_cosine[:, None]

    assert NormFace().others_are_cosines and not Cubic().others_are_cosines
    embedding, prototypes, labels = case(torch.float64)
    margin = Cubic()
    results = value_and_gradients(
        lambda x, w: blockwise_losses(x, w, labels, margin).losses.mean(), embedding, prototypes, margin
    )
    monkeypatch.setitem(blockwise._BLOCK_BYTES, "cpu", 2**24)
    whole = value_and_gradients(
        lambda x, w: margin_softmax_loss(x, w, labels, margin), embedding, prototypes, margin
    )
    torch.testing.assert_close(results, whole)


def test_the_loss_is_0_with_one_identity_and_cosines_are_0_without_prototypes() -> None:
    embedding, margin = torch.randn(2, 4).requires_grad_(), make_margin("softmax")
    one = torch.randn(1, 4).requires_grad_()
    losses, _ = blockwise_losses(embedding, one, torch.zeros(2, dtype=torch.int64), margin)
    losses.sum().backward()
    assert losses.tolist() == [0, 0] and not embedding.grad.any() and not one.grad.any()
    elsewhere = blockwise_losses(embedding, torch.empty(0, 4), torch.tensor([-1, -1]), margin)
    assert elsewhere.cosine.tolist() == [0, 0]


def test_kernels_are_the_same_in_tritons_interpreter() -> None:
    """In a separate process, because Triton reads the variable when a kernel is defined."""
    pytest.importorskip("triton")
    code = """
import torch
from spherecf.losses import blockwise, blockwise_kernels, make_margin
from tests.losses.test_blockwise import BLOCK, DIM, case, value_and_gradients

blockwise._BLOCK_BYTES["cpu"] = 4 * DIM * BLOCK
embedding, prototypes, labels = case(torch.float32)
labels[0] = -1  # as if another rank had it
margin = make_margin("arcface")
for products, bound in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):  # the interpreter cuts bfloat16 off
    results = []
    for kernels in (None, blockwise_kernels):
        blockwise._kernels = lambda device: kernels
        ops = blockwise._make_ops(margin, products, embedding[:, 0], embedding[:, 0])
        assert type(ops) is (blockwise._KernelOps if kernels else blockwise._ElementwiseOps)
        loss = lambda x, w: blockwise.blockwise_losses(x, w, labels, margin, products).losses.mean()
        results.append(value_and_gradients(loss, embedding, prototypes, margin))
    errors = [float((kernel - plain).norm() / plain.norm()) for plain, kernel in zip(*results)]
    assert errors[0] <= 1e-6 and max(errors) <= bound, (products, errors)
for kind in ("curricularface", "sphereface2"):
    ops = blockwise._make_ops(make_margin(kind), torch.float32, embedding[:, 0], embedding[:, 0])
    assert type(ops) is blockwise._ElementwiseOps
"""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("products", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", MARGINS)
def test_a_gpu_gives_the_same_result_without_synchronisation(
    kind: str, products: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedding, prototypes, labels = case(torch.float64)
    exact, margin = make_margin(kind).double(), make_margin(kind).cuda()
    whole = lambda x, w: margin_softmax_loss(x, w, labels, exact)  # noqa: E731
    expected = value_and_gradients(whole, embedding, prototypes, exact)

    monkeypatch.setitem(blockwise._BLOCK_BYTES, "cuda", 4 * DIM * BLOCK)
    embedding, prototypes, labels = (tensor.cuda() for tensor in case(torch.float32))
    blocks = lambda x, w: blockwise_losses(x, w, labels, margin, products).losses.mean()  # noqa: E731
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = value_and_gradients(blocks, embedding, prototypes, margin)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    errors = [float((a.cpu() - b).norm() / b.norm()) for a, b in zip(results, expected)]
    assert errors[0] <= BOUNDS[products][0] and max(errors[1:]) <= BOUNDS[products][1], errors
