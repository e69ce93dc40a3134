"""Checkpoint files of many makers as plain tensors by dotted name; nothing in them is executed."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from spherecf.errors import FileFormatError

PICKLED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
SUFFIXES = (".safetensors", *PICKLED)


class Ignored:
    """Stands for a pickled object that is no weight: takes any arguments and state, and keeps none."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# What trainers put beside the weights: settings, callbacks, paths, numbers of NumPy. A name listed here is
# not imported but replaced: by a dictionary where it holds items, else by `Ignored`.
_DICTIONARIES = re.compile(r"(pytorch_lightning|lightning|lightning_fabric)\.[\w.]+\.AttributeDict")
_HARMLESS = re.compile(
    r"argparse\.Namespace|pathlib\.\w*Path|(pytorch_lightning|lightning)\.[\w.]*callbacks\.[\w.]+"
    r"|numpy\.(_?core\.multiarray\.scalar|dtype|dtypes\.\w+)|_codecs\.encode"
)


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file by dotted name, on the CPU; nested dictionaries are joined by dots.

    Args:
        path: ``.safetensors``, or a torch file (``.pt``, ``.pth``, ``.bin``, ``.ckpt``, ``.tar``), which is
            read with weights only; settings and callbacks that Lightning and argparse leave are skipped.

    Raises:
        FileFormatError: absent, truncated, of another kind, or it holds objects that only its own code could
            read (the first class is named).

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "last.pt"
        >>> torch.save({"epoch": 3, "state_dict": {"fc.weight": torch.zeros(2, 4)}}, path)
        >>> {name: tuple(tensor.shape) for name, tensor in read_checkpoint(path).items()}
        {'state_dict.fc.weight': (2, 4)}
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(path, "no such file.")
    if path.suffix not in SUFFIXES:
        raise FileFormatError(
            path, f"expected one of {', '.join(SUFFIXES)}, got {path.suffix or 'no suffix'}."
        )
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with safe_globals(_stand_ins(path)):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError) as error:
        raise FileFormatError(path, f"unreadable: {error}", "Is it complete?") from error
    except Exception as error:  # torch.load: pickle and zip errors of many classes
        raise FileFormatError(path, *_why(str(error))) from error
    return dict(_flatten(content))


def _stand_ins(path: Path) -> list[Any]:
    try:
        names = get_unsafe_globals_in_checkpoint(str(path))
    except (ValueError, RuntimeError):
        return []  # torch's format before 1.6, or no checkpoint at all: torch.load says which
    stand_ins: list[Any] = []
    for name in names:
        if _DICTIONARIES.fullmatch(name):
            stand_ins.append((dict, name))
        elif _HARMLESS.fullmatch(name):
            stand_ins.append((Ignored, name))
    return stand_ins


def _why(message: str) -> tuple[str, str]:
    if found := re.search(r"GLOBAL ([\w.]+)", message):
        return (
            f"it holds a pickled object of {found[1]}, which is not unpickled.",
            "Where you trust it, save its tensors alone: torch.save(model.state_dict(), ...).",
        )
    return f"not a checkpoint of plain tensors: {message.splitlines()[0] if message else 'empty'}", ""


def _flatten(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix, content.detach()
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flatten(value, f"{prefix}.{name}" if prefix else str(name))


def below(tensors: Mapping[str, Tensor], anchor: str) -> list[str]:
    """The prefixes under which a key stands: ``["state_dict.model."]`` for ``state_dict.model.<anchor>``."""
    return [name.removesuffix(anchor) for name in tensors if f".{name}".endswith(f".{anchor}")]


def stripped(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
