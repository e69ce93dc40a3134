"""Version of the package, and of everything that a result depends on."""

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__version__ = "0.1.0"

_RECORDED = ("torch", "numpy", "onnx", "onnxruntime", "opencv-python-headless", "safetensors")


@cache
def environment() -> dict[str, str]:
    """Versions to record with a result, and the git commit if run from a checkout."""
    facts = {"spherecf": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in _RECORDED:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "absent"
    source = Path(__file__).resolve().parent
    if (source.parents[2] / ".git").exists():
        command = ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
            if result.returncode == 0:
                facts["git"] = result.stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            pass  # git is not installed: record the version only
    return facts
