"""Each step from images to scores on every available device, compared with the CPU."""

import json
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.confidence_step import recogniser
from benchmarks.gpu import classifier_gradients, confidence_gradients, difference, margin_gradients
from tests.models import graphs
from tests.tiny import tiny_file, tiny_model, write_people
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn.functional import normalize
from typer.testing import CliRunner

import spherecf
from spherecf import vmf
from spherecf.cli import app
from spherecf.common.readers import Readers
from spherecf.data import SyntheticImages, batch_bytes, load_batch, open_source
from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.extract import embed
from spherecf.losses import gaussian_confidence_loss, sphere_confidence_loss
from spherecf.models import (
    PRESETS,
    ConfidenceModel,
    FrozenBackbone,
    Preprocessing,
    make_backbone,
    make_head,
    save_backbone,
)
from spherecf.scoring import cosine_matrix, mutual_likelihood_matrix, mutual_likelihood_score, pool
from spherecf.training import (
    BackboneConfig,
    ConfidenceConfig,
    GivenPrototypes,
    TrainedBackbone,
    join_ranks,
    train_backbone,
    train_confidence,
)
from spherecf.training.batches import on_device, to_part

CPU = torch.device("cpu")
OPTIONS = {"size": 32, "width": 0.25}
PIXELS = Preprocessing("rgb", 127.5, 127.5, (32, 32))
FUNCTIONS = [
    vmf.log_normalizer,
    vmf.log_normalizer_scaled,
    vmf.mean_resultant_length,
    vmf.mean_resultant_complement,
    vmf.mean_resultant_length_derivative,
]


def kappas(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.logspace(-2, 5, 200, dtype=dtype)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dim", [2, 512])
def test_vmf_functions_and_gradients_match_float64(device: str, function, dim: int) -> None:
    def value_and_gradient(kappa: Tensor) -> list[Tensor]:
        kappa.requires_grad_()
        value = function(kappa, dim)
        return [value.detach(), torch.autograd.grad(value.sum(), kappa)[0]]

    reference = value_and_gradient(kappas(torch.float64))
    for actual, expected in zip(value_and_gradient(kappas().to(device)), reference):
        assert actual.device.type == device
        error = (actual.cpu().double() - expected).abs()
        assert bool((error <= 2e-5 * expected.abs() + 2e-6 * expected.abs().max()).all())


@pytest.mark.parametrize("gradients", [confidence_gradients, margin_gradients])
def test_loss_gradients_match_float64(device: str, gradients) -> None:
    actual = gradients(torch.device(device), torch.float32)
    assert max(map(difference, actual, gradients(CPU, torch.float64))) < 1e-5


def test_sharded_classifier_gradients_match_the_cpu(device: str) -> None:
    actual = classifier_gradients(torch.device(device), torch.float32)
    assert max(map(difference, actual, classifier_gradients(CPU, torch.float32))) < 2e-2


def test_scores_match_the_cpu(device: str) -> None:
    torch.manual_seed(0)
    mu, kappa = normalize(torch.randn(60, 64)), 10 ** (1 + 3 * torch.rand(60))
    groups = torch.arange(60) // 3
    inputs = [x.to(device) for x in (mu, kappa, groups)]
    for score in (
        lambda m, k, g: cosine_matrix(m, m),
        lambda m, k, g: mutual_likelihood_matrix(m, k, m, k),
        lambda m, k, g: mutual_likelihood_score(m[:-1], k[:-1], m[1:], k[1:]),
        lambda m, k, g: pool(m, k, g).mu,
        lambda m, k, g: pool(m, k, g).kappa,
    ):
        actual, expected = score(*inputs), score(mu.double(), kappa.double(), groups)
        assert actual.device.type == device
        torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-4, atol=4e-3)


def test_default_model_matches_the_cpu(device: str) -> None:
    source = SyntheticImages(3, 2)
    faces = torch.stack([torch.from_numpy(source.image(row)) for row in range(len(source))])
    (mu, log_kappa), model = spherecf.load().embed(faces), spherecf.load(engine="torch", device=device)
    got_mu, got_kappa = model.embed(faces)
    assert {model.backbone.device.type, got_mu.device.type, got_kappa.device.type} == {device}
    torch.testing.assert_close(got_mu.cpu(), mu, rtol=0, atol=1e-4)
    torch.testing.assert_close(got_kappa.cpu(), log_kappa, rtol=0, atol=2e-4)


def test_tf32_is_reported_with_its_error(device: str) -> None:
    if device == "cpu":
        with pytest.raises(InputError, match="tf32 is arithmetic of GPUs"):
            FrozenBackbone.default(dtype="tf32")
        return
    backbone = FrozenBackbone.default(dtype="tf32", device=device)
    assert backbone.engine == "torch-tf32" and "runs in TF32: on two images" in backbone.repairs[-1]


def test_head_is_moved_to_the_device_of_the_backbone(device: str) -> None:
    backbone = FrozenBackbone.from_module(recogniser("r18", 32, **OPTIONS), PIXELS, device=device)
    channels, height, width = backbone.feature_shape
    model = ConfidenceModel(backbone, make_head("conv", channels=channels, height=height, width=width))
    assert {p.device.type for p in model.head.parameters()} == {device}
    mu, log_kappa = model.embed(np.zeros((2, 32, 32, 3), np.uint8))
    assert mu.device.type == log_kappa.device.type == device


def test_embeddings_files_match_the_cpu(device: str, tmp_path: Path) -> None:
    source = open_source(write_people(tmp_path))
    model = tiny_model(tmp_path)
    model.save(tmp_path / "model.safetensors")
    files = tmp_path / "model.safetensors", tmp_path / "tiny.onnx"
    device_model = spherecf.load(*files, engine="torch", device=device)
    expected = embed(model, source, tmp_path / "cpu.safetensors", flip=True)
    actual = embed(device_model, source, tmp_path / "there.safetensors", flip=True)
    np.testing.assert_allclose(actual.mu, expected.mu, atol=1e-4)
    np.testing.assert_allclose(actual.log_kappa, expected.log_kappa, atol=1e-3)


def test_stage_1_resumes_and_its_loss_matches_the_cpu(device: str, tmp_path: Path) -> None:
    recipe = {
        "network": {"name": "r18", "dim": 16, "options": OPTIONS},
        "margin": {"sample_rate": 0.5},
        "fit": {"epochs": 2, "batch_size": 8},
        "engine": {"workers": 1, "on_nan": "skip"},
    }
    source = SyntheticImages(16, 8, size=(32, 32))
    losses = {}
    for name in dict.fromkeys(["cpu", device]):
        norms: list[float] = []

        def validate(backbone: FrozenBackbone, norms: list[float] = norms) -> dict[str, float]:
            norms.append(float(backbone(np.stack([source.image(0)])).norm))
            if len(norms) == 2:  # in the second epoch of the first run
                raise KeyboardInterrupt
            return {"norm": norms[-1]}

        def train(folder: Path, name: str = name, validate: Any = validate) -> TrainedBackbone:
            with join_ranks(name) as ranks:
                config = BackboneConfig.from_dict(recipe)
                return train_backbone(source, folder, config, ranks=ranks, validate=validate)

        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / name)
        trained = train(tmp_path / name)
        assert len(norms) == 3, "the second run repeated the first epoch"
        losses[name] = [epoch["train_loss"] for epoch in trained.history]
        assert len(losses[name]) == 2 and trained.history[1]["norm"] > 0
        assert FrozenBackbone.from_checkpoint(trained.path, device=name).device.type == name
    # The network may compute in bfloat16, which changes the loss by 2e-3.
    assert losses[device][0] == pytest.approx(losses["cpu"][0], rel=1e-2)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_stage_1_in_16_bits_matches_float32(device: str, precision: str, tmp_path: Path) -> None:
    losses = []
    for name, kind in (("cpu", "float32"), (device, precision)):
        recipe = {
            "network": {"name": "r18", "dim": 16, "options": OPTIONS},
            "optimizer": {"lr": 1e-3},
            "fit": {"epochs": 4, "batch_size": 8},
            "engine": {"workers": 1, "precision": kind},
        }
        with join_ranks(name) as ranks:
            source = SyntheticImages(16, 8, size=(32, 32))
            trained = train_backbone(source, tmp_path / kind, BackboneConfig.from_dict(recipe), ranks=ranks)
        assert trained.record["precision"] == kind
        losses.append(trained.history[0]["train_loss"])
    assert all(bool(torch.isfinite(value).all()) for value in trained.network.state_dict().values())
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)


def test_batches_of_processes_reach_the_device_unchanged(device: str) -> None:
    """From memory that is shared with the processes, reused, and pinned for a GPU."""
    source, rows = SyntheticImages(64, 8, size=(32, 32)), np.arange(64).reshape(16, 4)
    readers = Readers(
        partial(load_batch, source, (32, 32)), processes=2, max_result_bytes=batch_bytes(4, (32, 32)),
        device=torch.device(device),
    )  # fmt: skip
    with closing(readers):
        for _ in range(2):
            with closing(readers(rows)) as loaded:
                parts = list(on_device(map(to_part, loaded), torch.device(device)))
    assert {part.data.device.type for part in parts} == {device}
    images = np.concatenate([part.data.cpu().numpy() for part in parts])
    assert np.array_equal(images, np.stack([source.image(row) for row in range(64)]))


def test_onnx_graphs_that_compute_a_shape_match_the_cpu(device: str) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    pixels, model = Preprocessing("rgb", 127.5, 127.5, (16, 16)), graphs.traced_view()
    expected = FrozenBackbone.from_onnx(model, preprocessing=pixels, engine="onnxruntime")(images)
    output = FrozenBackbone.from_onnx(model, preprocessing=pixels, engine="torch", device=device)(images)
    assert output.embedding.device.type == device
    torch.testing.assert_close(output.embedding.cpu(), expected.embedding, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["cache", "stream", "finetune"])
def test_stage_2_runs_and_its_loss_matches_the_cpu(device: str, mode: str, tmp_path: Path) -> None:
    network = recogniser("r18", 16, **OPTIONS)
    save_backbone(tmp_path / "backbone.safetensors", network, PIXELS, {})
    recipe = {
        "head": {"kind": "conv"},
        "views": {"degraded": 1},
        "features": {"source": "cache" if mode == "cache" else "stream", "finetune": mode == "finetune"},
        "fit": {"epochs": 1, "batch_size": 8, "held_out": 0.25},
        "engine": {"workers": 1},
    }
    source = SyntheticImages(16, 4, size=(32, 32))
    losses = {}
    for name in dict.fromkeys(["cpu", device]):
        backbone = FrozenBackbone.from_checkpoint(tmp_path / "backbone.safetensors", device=name)
        with join_ranks(name) as ranks:
            model = train_confidence(
                backbone, source, tmp_path / name, ConfidenceConfig.from_dict(recipe), ranks=ranks
            )
        losses[name] = model.record["history"][0]["train_loss"]
        mu, log_kappa = model.embed(np.stack([source.image(0)]))
        assert mu.device.type == log_kappa.device.type == name
    assert losses[device] == pytest.approx(losses["cpu"], rel=2e-2)


def test_head_can_be_trained_on_another_device_than_the_backbone(device: str, tmp_path: Path) -> None:
    """The frozen backbone stays on the CPU while the head is trained on `device`."""
    backbone = FrozenBackbone.from_module(recogniser("r18", 16, **OPTIONS), PIXELS)
    source = SyntheticImages(8, 4, size=(32, 32))
    recipe = {"views": {"degraded": 0}, "fit": {"epochs": 1, "batch_size": 8, "held_out": 0.0}}
    with join_ranks(device) as ranks:
        model = train_confidence(backbone, source, tmp_path, ConfidenceConfig.from_dict(recipe), ranks=ranks)
    assert model.embed(np.stack([source.image(0)]))[1].device.type == "cpu"


def test_prototypes_may_be_on_any_device(device: str) -> None:
    source = SyntheticImages(4, 2, size=(32, 32))
    prototypes = GivenPrototypes(source, torch.eye(2, device=device), 2)
    assert prototypes.of(np.array([1, 0])).tolist() == [[0, 1], [1, 0]] and len(prototypes.digest()) == 64


def test_embed_command_accepts_a_device(device: str, tmp_path: Path) -> None:
    """Option `--device` of `spherecf embed`."""
    tiny_model(tmp_path).save(tmp_path / "model.safetensors")
    people, out = write_people(tmp_path), tmp_path / "out.safetensors"
    arguments = ["embed", str(tmp_path / "model.safetensors"), str(people), str(out)]
    arguments += ["--backbone", str(tiny_file(tmp_path)), "--engine", "torch", "--device", device]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and json.loads(result.stdout)["images"] == len(Embeddings.load(out)) == 12


def test_commands_refuse_an_unknown_device(tmp_path: Path) -> None:
    people = write_people(tmp_path)
    photo = str(people / "p0" / "0.png")
    check = ["data", "check", str(people)]
    for arguments in (["demo"], ["quality", photo], ["compare", photo, photo], check):
        with pytest.raises(InputError, match="device 'gpu' cannot be used here"):
            CliRunner().invoke(
                app, [*arguments, "--device", "gpu"], catch_exceptions=False, standalone_mode=False
            )


def test_functions_keep_tensors_on_a_fake_gpu() -> None:
    """torch's fake tensors detect tensors on the wrong device and copies between devices without a GPU."""
    gpu = torch.device("cuda", 0)
    with FakeTensorMode(), torch.no_grad():
        kappa, mu = torch.rand(4, device=gpu), torch.randn(4, 512, device=gpu)
        for function in FUNCTIONS:
            for dtype in (torch.float32, torch.float64):
                assert function(kappa.to(dtype), 512).device == gpu
        assert vmf.inverse_mean_resultant_length(kappa, 512).device == gpu
        for variant in ("exact", "released"):
            assert sphere_confidence_loss(mu, kappa, mu, variant=variant).device == gpu
        assert gaussian_confidence_loss(mu, kappa, mu).device == gpu
        images = torch.zeros(2, 112, 112, 3, dtype=torch.uint8, device=gpu)
        for preset in (*PRESETS.values(), replace(PRESETS["scf"], mean=(1.0, 2.0, 3.0))):
            assert preset(images).device == gpu


@pytest.mark.parametrize("name", ["r18", "ir-50", "mbf"])
def test_networks_create_tensors_on_the_device_of_their_input(name: str) -> None:
    """The meta device stands in for a GPU: it refuses tensors of other devices."""
    with torch.device("meta"):
        network, x = make_backbone(name, dim=64), torch.randn(2, 3, 112, 112)
    features = network.convolve(x)  # `forward` needs a device that supports autocast
    embedding = network.embed(features)
    (embedding.sum() + features.sum()).backward()
    assert embedding.device.type == features.device.type == "meta"
