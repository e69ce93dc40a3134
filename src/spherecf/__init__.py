"""SphereCF: Sphere Confidence Face for PyTorch.

Each face becomes a von Mises-Fisher distribution (mu, kappa): a unit direction and its confidence.

    import spherecf as scf
    model = scf.load("head.safetensors")          # any frozen recogniser plus its confidence head
    mu, log_kappa = model.embed(images)           # images: (n, 112, 112, 3) uint8 RGB, aligned

Subpackages (each imported on first use): `vmf`, `losses`, `models`, `data`, `faces`, `extract`, `training`,
`audit`, `embeddings`, `calibration`, `scoring`, `evaluation`, `photos`, `gallery`, `export`, `serve`,
`report`, `demo`, `validation`, `doctor`, `errors`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from spherecf.common.version import __version__

# onnxruntime 1.29 and later report their use to Microsoft and keep an identifier below HOME, once they are
# imported. Only this variable prevents both; a value that is already set is kept.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from spherecf import (
        audit,
        calibration,
        data,
        demo,
        doctor,
        embeddings,
        errors,
        evaluation,
        export,
        extract,
        faces,
        gallery,
        losses,
        models,
        photos,
        report,
        scoring,
        serve,
        training,
        validation,
        vmf,
    )
    from spherecf.models import load

__all__ = [
    "__version__",
    "audit",
    "calibration",
    "data",
    "demo",
    "doctor",
    "embeddings",
    "errors",
    "evaluation",
    "export",
    "extract",
    "faces",
    "gallery",
    "load",
    "losses",
    "models",
    "photos",
    "report",
    "scoring",
    "serve",
    "training",
    "validation",
    "vmf",
]


def __getattr__(name: str) -> Any:
    # Lazy: `import spherecf` and `spherecf --help` must not spend seconds importing torch and onnxruntime.
    if name == "load":
        return import_module("spherecf.models").load
    if name in __all__:
        return import_module(f"spherecf.{name}")
    raise AttributeError(f"module 'spherecf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
