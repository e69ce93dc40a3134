"""Shared fixtures: real faces and models next to the checkout; without them, tests are skipped."""

import os
import shutil
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("SPHERECF_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with LFW, CFP and the 512-d model (see docs/data.md); tests are skipped if it is absent."""
    if not (SHARED / "data" / "lfw.bin").exists():
        pytest.skip(f"no real faces in {SHARED} (set SPHERECF_SHARED to the folder that holds data/lfw.bin)")
    return SHARED


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    """The CPU and, if there is one, a GPU."""
    import torch

    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU, or torch without CUDA")
    return str(request.param)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `compiler` if torch.compile cannot work."""
    if item.get_closest_marker("compiler") and not shutil.which(os.environ.get("CXX", "g++")):
        pytest.skip("torch.compile on the CPU needs a C++ compiler: install g++ or set CXX")
