"""One model on every engine, with real faces: the same mu and log kappa within stated tolerances."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from spherecf.data import orl_faces
from spherecf.export import TOLERANCE, export_onnx
from spherecf.faces import AlignedFaces
from spherecf.models import ConfidenceModel, FrozenBackbone, load, make_head

BFLOAT16 = 0.05, 0.15  # tolerances of ||mu - mu'|| (3 degrees) and of log kappa

COMPILED = """
import sys
import numpy as np
from spherecf.models import load
mu, log_kappa = load(engine="compiled").embed(np.load(sys.argv[1] + "/faces.npy"))
np.savez(sys.argv[1] + "/outputs.npz", mu=mu.numpy(), log_kappa=log_kappa.numpy())
"""

Output = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def faces() -> NDArray[np.uint8]:
    """Eight aligned ORL faces of different people."""
    source = AlignedFaces(orl_faces())
    return np.stack([source.image(index) for index in range(0, 400, 50)])


@pytest.fixture(scope="module")
def reference(faces: NDArray[np.uint8]) -> Output:
    return load(engine="onnxruntime").embed(faces)


def assert_agree(actual: Output, expected: Output, mu: float = TOLERANCE.mu, log_kappa: float = 2e-4) -> None:
    assert torch.linalg.vector_norm(actual[0] - expected[0], dim=1).max() <= mu
    assert (actual[1] - expected[1]).abs().max() <= log_kappa


def run(path: Path, images: NDArray[np.generic]) -> Output:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    mu, log_kappa = session.run(["embedding", "log_kappa"], {"image": images})
    return torch.from_numpy(mu), torch.from_numpy(log_kappa)


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
@pytest.mark.parametrize("size", [1, 3, 8])
def test_engines_and_batch_sizes_agree(
    engine: str, size: int, faces: NDArray[np.uint8], reference: Output
) -> None:
    model = load(engine=engine)
    parts = [model.embed(faces[start : start + size]) for start in range(0, len(faces), size)]
    assert_agree((torch.cat([mu for mu, _ in parts]), torch.cat([k for _, k in parts])), reference)


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_the_exported_file_agrees(
    place: str, faces: NDArray[np.uint8], reference: Output, tmp_path: Path
) -> None:
    model = load()
    path = export_onnx(model, tmp_path / "sface.onnx", preprocessing=place).path
    images = faces if place == "inside" else model.backbone.preprocessing(faces).contiguous().numpy()
    assert_agree(run(path, images), reference)
    reloaded = FrozenBackbone.from_onnx(path)
    assert_agree((reloaded(faces).mu, reference[1]), reference)


def test_bfloat16_agrees_approximately(faces: NDArray[np.uint8], reference: Output) -> None:
    assert_agree(load(engine="torch", dtype="bfloat16").embed(faces), reference, *BFLOAT16)


@pytest.mark.slow
@pytest.mark.compiler
def test_the_compiled_engine_agrees(faces: NDArray[np.uint8], reference: Output, tmp_path: Path) -> None:
    np.save(tmp_path / "faces.npy", faces)
    command = [
        sys.executable,
        "-c",
        COMPILED,
        str(tmp_path),
    ]  # in a process without shape checks, which cannot be compiled
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    outputs = np.load(tmp_path / "outputs.npz")
    actual = torch.from_numpy(outputs["mu"]), torch.from_numpy(outputs["log_kappa"])
    assert_agree(actual, reference)


@pytest.mark.slow
def test_a_recogniser_exported_for_one_image_agrees(
    shared: Path, faces: NDArray[np.uint8], tmp_path: Path
) -> None:
    """A published MobileFaceNet: opset 9, fixed batch of one."""
    backbone = FrozenBackbone.from_onnx(shared / "models" / "mobilefacenet-512.onnx")
    channels, height, width = backbone.feature_shape
    torch.manual_seed(0)
    head = make_head("conv", channels=channels, height=height, width=width)
    model = ConfidenceModel(backbone, head)
    path = export_onnx(model, tmp_path / "mobilefacenet.onnx").path
    assert_agree(run(path, faces), model.embed(faces))
    assert_agree(
        (FrozenBackbone.from_onnx(path)(faces).mu, torch.zeros(1)), (backbone(faces).mu, torch.zeros(1))
    )
