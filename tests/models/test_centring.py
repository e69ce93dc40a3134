"""Directions are centred on the mean of all faces with the same kappa."""

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
OFFSET, SLOPE, LIMITS = np.full(DIM, 0.1), np.linspace(-0.1, 0.1, DIM), (2.0, 5.0)


@pytest.fixture
def centring() -> Centring:
    return Centring(OFFSET, SLOPE, LIMITS)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def faces(n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Directions whose mean turns with log kappa."""
    rng = np.random.default_rng(0)
    log_kappa = rng.uniform(2, 5, n)
    return unit(rng.normal(size=(n, DIM)) + np.outer(5 - log_kappa, np.eye(DIM)[0])), log_kappa


def test_the_mean_at_the_limits_is_subtracted_beyond_them(centring: Centring) -> None:
    mu = torch.from_numpy(unit(np.random.default_rng(0).normal(size=(4, DIM))))
    centred = centring(mu, torch.tensor([2.0, -9.0, 5.0, 40.0], dtype=torch.float64)).numpy()
    means = OFFSET + np.outer([2.0, 2.0, 5.0, 5.0], SLOPE)
    np.testing.assert_allclose(centred, unit(mu.numpy() - means), atol=1e-6)


def test_the_fit_is_the_weighted_regression_on_log_kappa() -> None:
    mu, log_kappa = faces()
    identities = (
        np.random.default_rng(1).integers(0, 40, len(mu)) // np.array([1, 39])[np.arange(len(mu)) % 2]
    )
    fitted = Centring.fit(mu, log_kappa, identities)
    root = np.sqrt(1 / np.bincount(identities)[identities])
    t = np.clip(log_kappa, *fitted.limits.numpy())
    design = np.stack([np.ones_like(t), t], 1) * root[:, None]
    offset, slope = np.linalg.lstsq(design, mu * root[:, None], rcond=None)[0]
    np.testing.assert_allclose(fitted.offset.numpy(), offset, atol=1e-6)
    np.testing.assert_allclose(fitted.slope.numpy(), slope, atol=1e-6)


@pytest.mark.parametrize("end", [slice(0, 400), slice(3600, 4000)])
def test_poor_and_good_faces_of_different_people_are_equally_similar(end: slice) -> None:
    mu, log_kappa = faces()
    rows = np.argsort(log_kappa)[end]
    centring = Centring.fit(mu, log_kappa, np.arange(len(mu)))
    centred = centring(torch.from_numpy(mu), torch.from_numpy(log_kappa)).numpy()[rows]
    cosines = (centred @ centred.T)[np.triu_indices(len(rows), 1)]
    assert abs(cosines.mean()) < 0.02


def test_rows_without_identity_are_not_used() -> None:
    mu, log_kappa = faces()
    labels = np.where(np.arange(len(mu)) < 3000, np.arange(len(mu)), -1)
    partial = Centring.fit(mu[:3000], log_kappa[:3000], labels[:3000])
    log_kappa[3000:] = np.nan
    torch.testing.assert_close(Centring.fit(mu, log_kappa, labels).state_dict(), partial.state_dict())


def test_equal_kappas_have_one_mean() -> None:
    mu, _ = faces(100)
    fitted = Centring.fit(mu, np.full(100, 3.0), np.arange(100))
    assert fitted.slope.abs().max() == 0
    np.testing.assert_allclose(fitted.offset.numpy(), mu.mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (OFFSET, SLOPE[:2], LIMITS),
            r"offset \(dim,\), slope \(dim,\) and limits \(2,\), got \(6,\), \(2,\)",
        ),
        ((OFFSET, SLOPE, (5.0, 2.0)), "ascending limits"),
        ((OFFSET, SLOPE, (2.0, np.inf)), "ascending limits"),
        ((OFFSET * np.nan, SLOPE, LIMITS), "length at most"),
        ((OFFSET * 10, SLOPE, LIMITS), "almost the same direction"),
    ],
)
def test_impossible_centrings_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Centring(*arguments)


@pytest.mark.parametrize(
    ("mu", "log_kappa", "labels", "message"),
    [
        (np.eye(3), np.ones(2), np.arange(3), r"got \(3, 3\), \(2,\) and \(3,\)"),
        (np.eye(3), np.ones(3), -np.ones(3, int), "with an identity"),
        (np.eye(3), [1.0, np.inf, 1.0], np.arange(3), "finite log kappa"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused(
    mu: np.ndarray, log_kappa: np.ndarray, labels: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Centring.fit(mu, log_kappa, labels)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[ConfidenceModel, ConfidenceModel]:
    """The same model with and without centring."""
    plain = tiny_model(tmp_path)
    dim = plain.backbone.dim
    centring = Centring(np.full(dim, 0.3 / dim**0.5), np.full(dim, 0.01 / dim**0.5), (0.0, 9.0))
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
    assert torch.equal(log_kappa, same) and torch.equal(mu, model.centring(raw, log_kappa))
    assert loaded.fingerprint() == model.fingerprint() != plain.fingerprint()
    assert (read_header(path)["version"], plain.header()["version"]) == (2, 1)
    assert "centring=yes" in repr(loaded) and "centring.slope" in loaded.state_dict()


def test_a_saved_centring_that_is_incomplete_is_refused(
    pair: tuple[ConfidenceModel, ConfidenceModel], tmp_path: Path
) -> None:
    path = pair[1].save(tmp_path / "centred.safetensors")
    tensors, dim = load_file(path), pair[0].backbone.dim
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    for changes, message in (
        ({"centring.slope": None}, "expected offset, slope and limits, got limits, offset"),
        ({"centring.more": torch.ones(1)}, "got limits, more, offset, slope"),
        (
            {"centring.offset": torch.zeros(3), "centring.slope": torch.zeros(3)},
            f"expected dimension {dim}, got 3",
        ),
    ):
        changed = {name: value for name, value in {**tensors, **changes}.items() if value is not None}
        save_file(changed, path, metadata)
        with pytest.raises(FileFormatError, match=message):
            load(path, backbone=pair[0].backbone)


@pytest.mark.parametrize("outputs", ["all", "embedding"])
def test_the_exported_file_centres_too(
    pair: tuple[ConfidenceModel, ConfidenceModel], tmp_path: Path, outputs: str
) -> None:
    assert export_onnx(pair[1], tmp_path / "centred.onnx", outputs=outputs).parity.mu < 1e-5
