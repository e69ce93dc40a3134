"""SphereCF: Sphere Confidence Face for PyTorch.

A face becomes a von Mises-Fisher distribution (mu, kappa): a direction and how sure we are of it.

    import spherecf as scf
    model = scf.load("head.safetensors")          # any frozen recogniser plus its confidence head
    mu, log_kappa = model.embed(images)           # images: (n, 112, 112, 3) uint8 RGB, aligned

Rooms (each imported on first use): `vmf`, `losses`, `models`, `data`, `training`, `embeddings`,
`scoring`, `evaluation`, `experiments`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spherecf._version import __version__

if TYPE_CHECKING:
    from spherecf.models import load

_ROOMS = (
    "vmf", "losses", "models", "data", "training", "embeddings", "extract", "scoring", "evaluation", "experiments",
    "errors",
)  # fmt: skip

__all__ = ["__version__", "load", *_ROOMS]


def __getattr__(name: str) -> Any:
    # Lazy, so that `import spherecf` and `spherecf --help` do not pay for torch and onnxruntime.
    if name == "load":
        return import_module("spherecf.models").load
    if name in _ROOMS:
        return import_module(f"spherecf.{name}")
    raise AttributeError(f"module 'spherecf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
