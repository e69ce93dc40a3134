"""A share of the mean direction of all faces is subtracted from every direction."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.tiny import tiny_model

from spherecf.errors import FileFormatError, InputError
from spherecf.export import export_onnx
from spherecf.models import Centring, ConfidenceModel, load
from spherecf.models.model import read_header

DIM = 6


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def faces(n: int = 400) -> np.ndarray:
    """Directions with a common component."""
    return unit(np.random.default_rng(0).normal(size=(n, DIM)) + np.eye(DIM)[0])


def test_the_mean_is_subtracted_and_the_length_restored() -> None:
    mu, mean = faces(5), np.linspace(-0.3, 0.3, DIM)
    centred = Centring(mean)(torch.from_numpy(mu)).numpy()
    np.testing.assert_allclose(centred, unit(mu - mean), atol=1e-7)


def test_every_identity_has_the_same_weight() -> None:
    mu = faces()
    identities = np.where(np.arange(len(mu)) < 300, 0, np.arange(len(mu)) % 4 + 1)
    fitted = Centring.fit(mu, identities, 0.5).mean.numpy()
    means = [mu[identities == identity].mean(0) for identity in range(5)]
    np.testing.assert_allclose(fitted, 0.5 * np.mean(means, axis=0), atol=1e-7)


def test_different_people_are_less_similar_afterwards() -> None:
    mu = faces()
    centred = Centring.fit(mu, np.arange(len(mu)), 1.0)(torch.from_numpy(mu)).numpy()
    before, after = ((rows @ rows.T)[np.triu_indices(len(mu), 1)].mean() for rows in (mu, centred))
    assert before > 0.1 and abs(after) < 0.02


def test_rows_without_identity_are_not_used() -> None:
    mu = faces()
    labels = np.where(np.arange(len(mu)) < 300, np.arange(len(mu)), -1)
    torch.testing.assert_close(
        Centring.fit(mu, labels, 0.3).mean, Centring.fit(mu[:300], labels[:300], 0.3).mean
    )


@pytest.mark.parametrize("mean", [np.full(DIM, np.nan), np.ones(DIM), np.zeros((2, DIM)), 0.3])
def test_impossible_means_are_refused(mean: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"expected a mean direction \(dim,\) of length at most 0.999, got"):
        Centring(np.asarray(mean))


@pytest.mark.parametrize(
    ("labels", "share", "message"),
    [
        (np.arange(3), 0.5, r"got \(4, 4\) and \(3,\)"),
        (-np.ones(4, int), 0.5, "expected images with an identity"),
        (np.arange(4), 0.0, r"a share within \(0, 1\], got 0.0"),
        (np.arange(4), 1.1, r"a share within \(0, 1\], got 1.1"),
        (np.arange(4), float("nan"), "a share within"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused(labels: np.ndarray, share: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Centring.fit(np.eye(4), labels, share)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[ConfidenceModel, ConfidenceModel]:
    """The same model without and with centring."""
    plain = tiny_model(tmp_path)
    dim = plain.backbone.dim
    centring = Centring(np.linspace(-0.5, 0.5, dim) / dim**0.5)
    return plain, ConfidenceModel(plain.backbone, plain.head, plain.radius, centring=centring)


def test_a_model_with_centring_round_trips(
    pair: tuple[ConfidenceModel, ConfidenceModel], tmp_path: Path
) -> None:
    plain, model = pair
    path = model.save(tmp_path / "centred.safetensors")
    loaded = load(path, backbone=plain.backbone)
    height, width = plain.backbone.preprocessing.size
    images = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), np.uint8)
    mu, log_kappa = loaded.embed(images)
    raw, same = plain.embed(images)
    assert torch.equal(log_kappa, same) and torch.equal(mu, model.centring(raw))
    assert loaded.fingerprint() == model.fingerprint() != plain.fingerprint()
    assert (read_header(path)["version"], plain.header()["version"]) == (2, 1)
    assert "centring=yes" in repr(loaded) and "centring.mean" in loaded.state_dict()


@pytest.mark.parametrize("mean", [None, torch.zeros(3), torch.ones(DIM, 2)])
def test_a_saved_model_with_an_unusable_mean_is_refused(
    pair: tuple[ConfidenceModel, ConfidenceModel], tmp_path: Path, mean: torch.Tensor | None
) -> None:
    path = pair[1].save(tmp_path / "centred.safetensors")
    tensors = load_file(path)
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    del tensors["centring.mean"]
    save_file(tensors if mean is None else {**tensors, "centring.mean": mean}, path, metadata)
    message = rf"expected centring\.mean of shape \({pair[0].backbone.dim},\)"
    with pytest.raises(FileFormatError, match=message):
        load(path, backbone=pair[0].backbone)


@pytest.mark.parametrize("outputs", ["all", "embedding"])
def test_the_exported_file_centres_too(
    pair: tuple[ConfidenceModel, ConfidenceModel], tmp_path: Path, outputs: str
) -> None:
    assert export_onnx(pair[1], tmp_path / "centred.onnx", outputs=outputs).parity.mu < 1e-5
