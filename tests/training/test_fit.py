from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.conftest import make_cache
from torch import Tensor

from spherecf import vmf
from spherecf.errors import FileFormatError, InputError, SpherecfError
from spherecf.models import ConfidenceHead, make_head
from spherecf.training import (
    CachedFeatures,
    ConfidenceConfig,
    FeatureCache,
    GivenPrototypes,
    Monitor,
    Targets,
    fit_head,
)
from spherecf.training.heads import ConfidenceTask

DIM, ROWS = 64, 3000
CONFIG = ConfidenceConfig.from_dict(
    {
        "fit": {"epochs": 6, "batch_size": 64, "held_out": 0.2},
        "optimizer": {"lr": 3e-3, "weight_decay": 0.0},
    }
)


def problem(folder: Path) -> tuple[CachedFeatures, np.ndarray]:
    """Summaries that contain the true kappa, and cosines drawn around A_d(kappa)."""
    rng = np.random.default_rng(0)
    log_kappa = rng.uniform(3, 6, ROWS)
    # The summary of 2 channels of 1x1: mean, deviation, maximum; only the means carry information.
    summary = np.stack(
        [log_kappa, rng.normal(size=ROWS), 0 * log_kappa, 0 * log_kappa, *rng.normal(size=(2, ROWS))], 1
    )
    rho = vmf.mean_resultant_length(torch.from_numpy(np.exp(log_kappa)), DIM).numpy()
    cosine = np.clip(rho + 0.02 * rng.normal(size=ROWS), -1, 1).astype(np.float32)
    labels = np.arange(ROWS) // 10
    mu = np.eye(1, DIM, dtype=np.float32).repeat(ROWS, 0)
    cache = make_cache(folder / "cache", labels, mu, summary)
    return CachedFeatures(cache, targets(cache, cosine, labels)), log_kappa


def targets(cache: FeatureCache, cosine: np.ndarray, labels: np.ndarray) -> Targets:
    """Targets with given cosines; the losses in this file do not use the prototypes."""
    prototypes = GivenPrototypes(cache.source, torch.eye(1, DIM).expand(ROWS // 10, DIM), DIM)
    return Targets(np.arange(ROWS), cosine, labels, [], prototypes)


def light(seed: int = 0) -> ConfidenceHead:
    torch.manual_seed(seed)
    return make_head("light", channels=2, height=1, width=1)


def altered(change: Callable[[Tensor], Tensor]) -> ConfidenceHead:
    """A light head whose output is changed."""
    head = light()
    head.register_forward_hook(lambda _head, _inputs, output: change(output))
    return head


def test_the_fit_recovers_the_true_kappa(tmp_path: Path) -> None:
    features, truth = problem(tmp_path)
    config = replace(CONFIG, fit=replace(CONFIG.fit, epochs=25))
    result = fit_head(light(), features, config)
    fitted = features.cache.log_kappa(result.head)
    assert np.corrcoef(fitted, truth)[0, 1] > 0.98
    assert np.abs(fitted - truth).mean() < 0.15
    assert result.history[-1]["held_out_loss"] < result.history[0]["held_out_loss"]
    assert 1 <= result.best_epoch <= 25
    assert result.counts["train_identities"] == 240 and result.counts["held_out_identities"] == 60


def test_the_released_loss_overestimates_small_kappas(tmp_path: Path) -> None:
    features, truth = problem(tmp_path)
    # At d = 64 the released epsilon distorts small kappas; at larger d, nearly all.
    kappas = {}
    for variant in ("exact", "released"):
        fit, loss = replace(CONFIG.fit, epochs=15), replace(CONFIG.loss, variant=variant)
        config = replace(CONFIG, fit=fit, loss=loss)
        kappas[variant] = np.exp(features.cache.log_kappa(fit_head(light(), features, config).head))
    is_small = truth < 3.7
    assert np.median(kappas["released"][is_small]) > 1.05 * np.median(kappas["exact"][is_small])


def test_equal_seeds_give_identical_heads(tmp_path: Path) -> None:
    features, _ = problem(tmp_path)
    first, repeated = (fit_head(light(), features, CONFIG).head.state_dict() for _ in range(2))
    other_seed = fit_head(light(), features, CONFIG.with_seed(1)).head.state_dict()
    assert all(torch.equal(first[name], repeated[name]) for name in first)
    assert not all(torch.equal(first[name], other_seed[name]) for name in first)


@pytest.mark.parametrize("stopped_after", [1, 4])
def test_a_resumed_fit_gives_the_identical_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    features, _ = problem(tmp_path)
    uninterrupted = fit_head(light(), features, CONFIG, tmp_path / "whole")
    load, calls = ConfidenceTask.load, []

    def interrupted(task: ConfidenceTask, epoch: int, parts: Any) -> Any:
        if len(calls) == stopped_after:
            raise KeyboardInterrupt
        calls.append(epoch)
        return load(task, epoch, parts)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ConfidenceTask, "load", interrupted)
        fit_head(light(), features, CONFIG, tmp_path / "cut")
    resumed = fit_head(light(seed=9), features, CONFIG, tmp_path / "cut")
    assert resumed.history == uninterrupted.history and resumed.best_epoch == uninterrupted.best_epoch
    a, b = uninterrupted.head.state_dict(), resumed.head.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    lines = [(tmp_path / name / "history.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1] and len(lines[0].splitlines()) == CONFIG.fit.epochs


def test_a_finished_fit_is_repeated_only_for_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, _ = problem(tmp_path)
    fit_head(light(), features, CONFIG, tmp_path / "run")
    monkeypatch.setattr(ConfidenceTask, "load", lambda *_: 1 / 0)
    assert len(fit_head(light(), features, CONFIG, tmp_path / "run").history) == CONFIG.fit.epochs
    with pytest.raises(ZeroDivisionError):  # a new fit begins
        fit_head(light(), features, CONFIG.with_seed(5), tmp_path / "run")


def test_a_damaged_checkpoint_is_reported_by_name(tmp_path: Path) -> None:
    features, _ = problem(tmp_path)
    fit_head(light(), features, CONFIG, tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    (newest / "common.pt").write_bytes(b"half a file")
    with pytest.raises(FileFormatError, match=r"common\.pt: damaged.*Delete .* previous checkpoint"):
        fit_head(light(), features, CONFIG, tmp_path / "run")


def test_a_non_finite_loss_is_reported_with_its_batch(tmp_path: Path) -> None:
    features, _ = problem(tmp_path)
    with pytest.raises(SpherecfError, match=r"epoch 1, batch 1: the loss is nan.*\.jpg"):
        fit_head(altered(lambda output: output + torch.nan), features, CONFIG)


def test_a_gradient_that_is_not_finite_is_reported_with_its_batch(tmp_path: Path) -> None:
    features, _ = problem(tmp_path)
    kinked = altered(lambda output: output + (output - output).abs().sqrt())  # + 0, not differentiable
    with pytest.raises(SpherecfError, match=r"epoch 1, batch 1: the gradient is not finite.*\.jpg"):
        fit_head(kinked, features, CONFIG)


def test_an_error_in_the_backward_pass_is_not_taken_for_a_lost_rank(tmp_path: Path) -> None:
    features, _ = problem(tmp_path)

    def fail_backward(output: Tensor) -> Tensor:
        if output.requires_grad:
            output.register_hook(lambda grad: grad @ grad[:2])  # shapes that do not fit
        return output

    with pytest.raises(RuntimeError, match="size") as error:
        fit_head(altered(fail_backward), features, CONFIG)
    assert not isinstance(error.value, SpherecfError)


def test_a_fit_in_another_thread_is_the_same(tmp_path: Path) -> None:
    """There it cannot be interrupted by signals, which only the main thread receives."""
    features, _ = problem(tmp_path)
    short = replace(CONFIG, fit=replace(CONFIG.fit, epochs=1))
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(lambda: fit_head(light(), features, short).history).result()
    assert found == fit_head(light(), features, short).history


@pytest.mark.parametrize("objective", ["scf-gaussian", "pfe-gaussian"])
def test_cosines_of_1_have_no_best_precision(tmp_path: Path, objective: str) -> None:
    features, _ = problem(tmp_path)
    perfect = targets(features.cache, np.ones(ROWS, np.float32), np.arange(ROWS) // 10)
    config = replace(CONFIG, loss=replace(CONFIG.loss, objective=objective))
    outputs = DIM if objective == "pfe-gaussian" else 1
    head = make_head("light", channels=2, height=1, width=1, outputs=outputs)
    with pytest.raises(InputError, match=r"the mean cosine to the prototypes is 1\.0000, expected within"):
        fit_head(head, CachedFeatures(features.cache, perfect), config)


def test_a_single_view_is_not_enough(tmp_path: Path) -> None:
    features, _ = problem(tmp_path)
    single = replace(features._targets, rows=np.arange(1), cosine=np.full(1, 0.5, np.float32))
    single = replace(single, identities=np.zeros(1, np.int64))
    config = replace(CONFIG, fit=replace(CONFIG.fit, held_out=0.0))
    with pytest.raises(InputError, match="expected at least 2 views to train on, got 1"):
        fit_head(light(), CachedFeatures(features.cache, single), config)


def test_a_cache_for_another_kind_of_head_is_refused(tmp_path: Path) -> None:
    features, _ = problem(tmp_path)
    with pytest.raises(
        InputError, match=r"linear head: expected summaries \(2, 1, 1\), but the cache contains \(6,\)"
    ):
        fit_head(make_head("linear", channels=2, height=1, width=1), features, CONFIG)


def test_one_identity_cannot_be_split(tmp_path: Path) -> None:
    features, _ = problem(tmp_path)
    single_identity = targets(features.cache, np.full(ROWS, 0.5, np.float32), np.zeros(ROWS, np.int64))
    with pytest.raises(InputError, match="at least 2 identities to split, got 1"):
        fit_head(light(), CachedFeatures(features.cache, single_identity), CONFIG)


def test_tensorboard_events_can_be_read(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    features, _ = problem(tmp_path)
    result = fit_head(light(), features, CONFIG, tmp_path / "run", monitor=Monitor(tensorboard=True))
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "runs"))
    events.Reload()
    values = [event.value for event in events.Scalars("epoch/held_out_loss")]
    np.testing.assert_allclose(values, [epoch["held_out_loss"] for epoch in result.history], rtol=1e-6)


def test_tensorboard_requires_a_folder(tmp_path: Path) -> None:
    features, _ = problem(tmp_path)
    with pytest.raises(InputError, match="need a folder"):
        fit_head(light(), features, CONFIG, monitor=Monitor(tensorboard=True))


def test_a_head_fitted_in_16_bits_is_as_good(tmp_path: Path) -> None:
    """On a GPU the automatic precision is bfloat16, or float16 with a loss scaler."""
    features, _ = problem(tmp_path)
    losses = {}
    for precision in ("float32", "bfloat16", "float16"):
        settings = CONFIG.to_dict()
        settings["optimizer"] |= {"fused": True}
        settings["engine"] |= {"read_every": 20, "precision": precision}
        result = fit_head(light(), features, ConfidenceConfig.from_dict(settings), tmp_path / precision)
        losses[precision] = result.history[-1]["held_out_loss"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.02)
    assert losses["float16"] == pytest.approx(losses["float32"], abs=0.02)
