import pytest
import torch
from tests.training.rank_jobs import (
    BATCH,
    DIM,
    IDENTITIES,
    MARGINS,
    classifier_case,
    run,
)

from spherecf.errors import InputError
from spherecf.losses import make_margin, margin_softmax_loss
from spherecf.training import OptimizerSettings, Ranks, ShardedClassifier
from spherecf.training.classifier import initial_prototypes

SETTINGS = OptimizerSettings(name="sgd", lr=0.1, weight_decay=0.01, decay_vectors=True)


def sampled_rows(seed: int, step: int, labels: torch.Tensor) -> torch.Tensor:
    """Rows that a step with sample rate one half samples."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    is_sampled = torch.rand(IDENTITIES, generator=generator) < 0.5
    is_sampled[labels] = True
    return torch.nonzero(is_sampled).flatten()


def plain_step(kind: str, rate: float) -> dict[str, torch.Tensor]:
    """The reference: one process, the full matrix, autograd through `margin_softmax_loss`."""
    embedding, labels = classifier_case(kind)
    embedding.requires_grad_()
    weight = initial_prototypes(IDENTITIES, DIM, seed=3)
    rows = torch.arange(IDENTITIES) if rate == 1 else sampled_rows(3, 5, labels)
    part = weight[rows].requires_grad_()
    loss = margin_softmax_loss(embedding, part, torch.searchsorted(rows, labels), make_margin(kind))
    loss.backward()
    updated = weight.clone()
    updated[rows] = (part - 0.1 * (part.grad + 0.01 * part)).detach()
    return {"value": loss.detach(), "grad": embedding.grad, "weight": updated}


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow), 3])
def rank_results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    run("classifier", folder, request.param)
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("one_block", [True, False])
@pytest.mark.parametrize("rate", [1.0, 0.5])
@pytest.mark.parametrize("kind", MARGINS)
def test_a_sharded_step_equals_a_softmax_in_one_process(
    rank_results: dict, kind: str, rate: float, one_block: bool
) -> None:
    expected = plain_step(kind, rate)
    for name, value in expected.items():
        torch.testing.assert_close(rank_results[kind, rate, one_block][name], value, rtol=2e-4, atol=2e-6)


def test_initial_prototypes_do_not_depend_on_the_sharding() -> None:
    full = initial_prototypes(3000, 4, seed=1)
    parts = [initial_prototypes(3000, 4, seed=1, part=Ranks(rank, 3).share(3000)) for rank in range(3)]
    assert torch.equal(torch.cat(parts), full) and 0.0099 < float(full.std()) < 0.0101


@pytest.mark.parametrize("name, momentum", [("sgd", 0.9), ("sgd", 0.0), ("adamw", 0.9)])
def test_rows_not_sampled_stay_unchanged(name: str, momentum: float) -> None:
    """Neither the rows nor their momentum change."""
    settings = OptimizerSettings(name=name, lr=0.1, momentum=momentum, weight_decay=0.01)
    classifier = ShardedClassifier(IDENTITIES, DIM, make_margin("softmax"), Ranks(), settings, 0.5, seed=3)
    initial = classifier.rows.weight.clone()
    for step in range(3):
        embedding, labels = classifier_case("x" * step)
        rows = classifier.begin(labels, step)
        start = classifier.rows.weight.clone()
        classifier.loss(embedding, labels, rows).backward.backward()
        classifier.rows.optimizer.step()
        classifier.end()
        not_sampled = torch.ones(IDENTITIES, dtype=torch.bool)
        not_sampled[rows] = False
        assert torch.equal(classifier.rows.weight[not_sampled], start[not_sampled]) and bool(
            not_sampled.any()
        )
        assert not torch.equal(classifier.rows.weight[rows], start[rows])
    assert not torch.equal(initial, classifier.rows.weight)


def test_sampling_all_rows_equals_the_ordinary_optimizer() -> None:
    settings = OptimizerSettings(name="adamw", lr=0.1, weight_decay=0.01)
    sampled, ordinary = (
        ShardedClassifier(IDENTITIES, DIM, make_margin("arcface"), Ranks(), settings, rate, seed=3)
        for rate in (1 - 1e-9, 1.0)
    )
    for step in range(3):
        for classifier in (sampled, ordinary):
            classifier.rows.optimizer.zero_grad()
            embedding, labels = classifier_case("x" * step)
            rows = classifier.begin(labels, step)
            classifier.loss(embedding, labels, rows).backward.backward()
            classifier.rows.optimizer.step()
            classifier.end()
    torch.testing.assert_close(sampled.rows.weight, ordinary.rows.weight)


def test_bfloat16_products_change_the_loss_only_by_rounding() -> None:
    results = []
    for products in (torch.float32, torch.bfloat16):
        classifier = ShardedClassifier(
            IDENTITIES, DIM, make_margin("arcface"), Ranks(), SETTINGS, seed=3, products=products
        )
        embedding, labels = classifier_case("arcface")
        loss = classifier.loss(embedding, labels, classifier.begin(labels, 0))
        loss.backward.backward()
        results.append((loss.value, classifier.rows.active.grad))
    (value, grad), (rounded_value, rounded_grad) = results
    assert value != rounded_value
    torch.testing.assert_close(rounded_value, value, rtol=1e-2, atol=0)
    assert (rounded_grad - grad).norm() < 0.05 * grad.norm()


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(InputError, match=r"sample_rate must be in \(0, 1\], got 0"):
        ShardedClassifier(IDENTITIES, DIM, make_margin("softmax"), Ranks(), SETTINGS, 0.0)
    with pytest.raises(InputError, match="needs 2 identities or more, got 1"):
        ShardedClassifier(1, DIM, make_margin("softmax"), Ranks(), SETTINGS)
    assert BATCH > 3  # so three ranks get unequal parts
