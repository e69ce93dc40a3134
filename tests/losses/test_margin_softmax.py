"""The complete loss against 50-digit values, one sample and one class at a time."""

import inspect
import subprocess
import sys

import pytest
import torch
from tests.reference import margins_slow as slow

from spherecf.errors import InputError
from spherecf.losses import MARGINS, MarginSoftmaxLoss, make_margin, margin_softmax_loss

TARGETS = {
    "softmax": lambda c, n: slow.mpf(c),
    "arcface": lambda c, n: slow.arcface(c),
    "cosface": lambda c, n: slow.cosface(c),
    "combined": lambda c, n: slow.combined(c, 1, 0.3, 0.2),
    "sphereface": lambda c, n: slow.combined(c, 1.35, 0, 0),
    "adaface": lambda c, n: slow.adaface(c, n, 20, 100),
    "magface": lambda c, n: slow.magface(c, n),
    "curricularface": lambda c, n: slow.arcface(c),
}


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    embedding = 8 * torch.randn(5, 4, generator=generator, dtype=torch.float64)
    prototypes = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    return embedding.requires_grad_(), prototypes.requires_grad_(), torch.tensor([0, 3, 3, 6, 1])


def expected_loss(kind, cosine, norm, label):
    if kind == "sphereface2":
        return 50 * sum(slow.sphereface2(c, j == label) for j, c in enumerate(cosine))
    logits = [slow.mpf(c) for c in cosine]
    if kind == "curricularface":
        logits = [slow.curricularface_other(c, cosine[label], 0) for c in cosine]
    logits[label] = TARGETS[kind](cosine[label], norm)
    penalty = 35 * slow.magface_penalty(norm) if kind == "magface" else 0
    return slow.softmax_loss([64 * v for v in logits], label) + penalty


@pytest.mark.parametrize("kind", MARGINS)
def test_value_of_every_margin(kind, batch):
    embedding, prototypes, labels = batch
    margin = make_margin(kind).double().eval()
    got = margin_softmax_loss(embedding, prototypes, labels, margin, reduction="none")
    norm = embedding.norm(dim=1)
    cosine = (embedding / norm[:, None]) @ (prototypes / prototypes.norm(dim=1, keepdim=True)).T
    rows = zip(cosine.tolist(), norm.tolist(), labels.tolist())
    expected = [float(expected_loss(kind, *row)) for row in rows]
    assert got.tolist() == pytest.approx(expected, rel=1e-10)
    mean = margin_softmax_loss(embedding, prototypes, labels, margin)
    torch.testing.assert_close(mean, got.mean())
    torch.testing.assert_close(margin_softmax_loss(embedding, prototypes, labels, margin, "sum"), got.sum())


@pytest.mark.parametrize("kind", MARGINS)
def test_gradient_of_every_margin(kind, batch):
    embedding, prototypes, labels = batch
    margin = make_margin(kind, scale=4.0).double().eval()
    if kind == "adaface":
        embedding = embedding.detach()  # its z is a constant by definition: not the derivative in the norm
    arguments = (embedding, prototypes, *margin.parameters())
    loss = lambda x, w, *_: margin_softmax_loss(x, w, labels, margin)  # noqa: E731
    assert torch.autograd.gradcheck(loss, arguments)


def test_no_margin_is_cross_entropy_of_cosines(batch):
    embedding, prototypes, labels = batch
    cosine = torch.cosine_similarity(embedding[:, None], prototypes[None], dim=2)
    plain = torch.nn.functional.cross_entropy(64 * cosine, labels)
    for kind, config in (("softmax", {}), ("arcface", {"margin": 0}), ("cosface", {"margin": 0.0})):
        torch.testing.assert_close(
            margin_softmax_loss(embedding, prototypes, labels, make_margin(kind, **config)), plain
        )


def test_a_margin_increases_the_loss_and_statistics_change_only_in_training_mode(batch):
    embedding, prototypes, labels = batch
    losses = [
        margin_softmax_loss(embedding, prototypes, labels, make_margin("arcface", margin=m)) for m in (0, 0.5)
    ]
    assert losses[1] > losses[0]
    margin = make_margin("curricularface")
    margin_softmax_loss(embedding, prototypes, labels, margin.eval())
    assert margin.t == 0
    margin_softmax_loss(embedding, prototypes, labels, margin.train())
    assert margin.t != 0


def test_learns_to_tell_identities_apart():
    torch.manual_seed(0)
    labels = torch.arange(6).repeat(4)
    for kind in MARGINS:
        embedding, prototypes = torch.randn(24, 8).requires_grad_(), torch.randn(6, 8).requires_grad_()
        margin = make_margin(kind)
        optimizer = torch.optim.Adam([embedding, prototypes, *margin.parameters()], lr=0.05)
        for _ in range(80):
            optimizer.zero_grad()
            margin_softmax_loss(embedding, prototypes, labels, margin).backward()
            optimizer.step()
        cosine = torch.cosine_similarity(embedding[:, None], prototypes[None], dim=2)
        assert (cosine.argmax(1) == labels).all(), kind


def test_compiles_in_one_piece():
    """In a separate process without the run-time checks of annotations, which cannot be traced."""
    code = """
import torch
from spherecf.losses import make_margin, margin_softmax_loss as loss
compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
x, w = torch.randn(5, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
for kind in ("adaface", "sphereface2"):
    options = torch.tensor([0, 3, 3, 6, 1]), make_margin(kind).eval()
    values = [f(x, w, *options) for f in (compiled, loss)]
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*(torch.autograd.grad(v, (x, w)) for v in values))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_half_precision():
    embedding, prototypes = torch.randn(3, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    labels, margin = torch.tensor([0, 1, 3], dtype=torch.int32), make_margin("arcface")
    loss = margin_softmax_loss(embedding, prototypes, labels, margin)
    assert loss.dtype == torch.float32
    assert loss == margin_softmax_loss(embedding.float(), prototypes.float(), labels, margin)


def test_bad_arguments(batch):
    embedding, prototypes, labels = batch
    margin = make_margin("arcface")
    labels = labels.clone()
    labels[1], labels[2], labels[3] = -1, 7, 90
    message = r"labels in 0\.\.6.* of 5 labels 1 are negative and 2 too large \(from -1 to 90\)"
    with pytest.raises(InputError, match=message):
        margin_softmax_loss(embedding, prototypes, labels, margin)
    with pytest.raises((InputError, TypeError)):
        margin_softmax_loss(embedding, prototypes[:, :3], labels, margin)


def test_the_module_holds_the_classifier_and_the_margins_state() -> None:
    torch.manual_seed(0)
    module, embedding, labels = (
        MarginSoftmaxLoss(6, 4, make_margin("adaface")),
        torch.randn(5, 4),
        torch.arange(5),
    )
    module.eval()
    expected = margin_softmax_loss(embedding, module.weight, labels, module.margin)
    torch.testing.assert_close(module(embedding, labels), expected, rtol=0, atol=0)
    other = MarginSoftmaxLoss(6, 4, make_margin("adaface")).eval()
    other.load_state_dict(module.train().state_dict())
    assert "weight" in module.state_dict() and len(module.state_dict()) > 1
    torch.testing.assert_close(other(embedding, labels), expected, rtol=0, atol=0)
    with pytest.raises(InputError, match="at least 1"):
        MarginSoftmaxLoss(0, 4, make_margin("arcface"))


def test_the_module_checks_its_options() -> None:
    with pytest.raises((InputError, TypeError), match="reduction"):
        MarginSoftmaxLoss(10, 4, make_margin("arcface"), reduction="average")  # type: ignore[arg-type]
    with pytest.raises((InputError, TypeError), match="margin"):
        MarginSoftmaxLoss(10, 4, "arcface")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "labels", [torch.tensor([0.7, 1.0]), torch.tensor([True, False]), torch.tensor([[0], [1]])]
)
def test_labels_that_are_not_one_integer_per_sample_are_refused(labels: torch.Tensor) -> None:
    """Without the checks of the test suite, which would refuse them first."""
    loss = inspect.unwrap(margin_softmax_loss)
    with pytest.raises(InputError, match="labels"):
        loss(torch.ones(2, 4), torch.eye(4), labels, make_margin("arcface"))


@pytest.mark.parametrize("kind", MARGINS)
def test_the_prototypes_may_have_another_type(kind: str, batch) -> None:  # type: ignore[no-untyped-def]
    (embedding, prototypes, labels), margin = batch, make_margin(kind).eval()
    expected = margin_softmax_loss(embedding, prototypes.float().double(), labels, margin)
    loss = margin_softmax_loss(embedding, prototypes.float(), labels, margin)
    assert loss.dtype == torch.float64 and torch.equal(loss, expected)
