"""Shapes and types of every module that declares shapes are checked at run time while tests run."""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers of pytest-xdist share the processors already

import torch
from jaxtyping import install_import_hook

if not torch.cuda.is_available():
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # before anything imports triton: kernels of a GPU as NumPy

SOURCE = Path(__file__).parent / "src"
# Beneath the hook Python finds no bytecode, so what our modules import from others is imported before it.
OTHERS = (
    "cv2", "fastapi", "onnx", "onnxruntime", "pymilvus", "rich.progress", "safetensors.torch",
    "torch._dynamo", "torch.distributed", "torch.onnx", "torch.utils.data", "typer",
)  # fmt: skip

for name in OTHERS:
    import_module(name)
collect_ignore = ["tests/mutants.py"]  # needs what only `make mutants` does
if not find_spec("triton"):
    collect_ignore.append("src/spherecf/losses/blockwise_kernels.py")
install_import_hook(
    [
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCE.rglob("*.py")
        if "jaxtyping" in path.read_text()
    ],
    "beartype.beartype",
)
