"""How exact float32 is on a GPU while a block runs: in full, or with operands rounded to TF32.

cuDNN convolves in TF32, with 10 bits of mantissa instead of 23, unless it is told otherwise, and what it is
told holds for the whole process. So a block says what it needs, and afterwards the process has back what it
had.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple

import torch

from spherecf.errors import InputError


class _Products:
    """torch's precision of matrix products as an attribute."""

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


class _Setting(NamedTuple):
    """One of torch's settings, and its values for full float32 and for TF32."""

    owner: Callable[[], Any]
    name: str
    full: bool | str
    tf32: bool | str

    def read(self) -> Any:
        return getattr(self.owner(), self.name)

    def write(self, value: Any) -> None:
        setattr(self.owner(), self.name, value)


# Of convolutions and of products, as every torch has them, and as torch 2.9 and later have them too: once
# somebody has written one of the latter, reading the former is an error.
_SETTINGS = (
    (
        _Setting(lambda: torch.backends.cudnn, "allow_tf32", False, True),
        _Setting(
            lambda: torch.backends.cudnn.conv,  # type: ignore[attr-defined]
            "fp32_precision",
            "ieee",
            "tf32",
        ),
    ),
    (
        _Setting(_Products, "precision", "highest", "high"),
        _Setting(lambda: torch.backends.cuda.matmul, "fp32_precision", "ieee", "tf32"),
    ),
)

_lock = threading.Lock()
_asked: dict[int, list[str]] = {}  # by thread, what its blocks ask for, the innermost last
_before: list[tuple[_Setting, Any]] = []  # what the process had when the first of them began


def check_arithmetic(precision: str, device: torch.device) -> None:
    """Refuse "tf32" where there is none.

    Raises:
        InputError: "tf32" on another device than a GPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise InputError(
            f"tf32 is arithmetic of GPUs, got the device {device}; use float32 or bfloat16 there"
        )


@contextmanager
def float32_arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Convolutions and matrix products of float32 tensors in full, or in TF32, while the block runs.

    Of nested blocks the innermost counts. Where threads ask for different arithmetic at the same time, all of
    them get full float32: never less exact than asked for.

    Args:
        precision: "tf32"; anything else is full float32 (types of sixteen bits are not concerned).
        device: where the block computes; only GPUs have such settings.

    Raises:
        InputError: "tf32" on another device than a GPU.

    Example:
        >>> with float32_arithmetic("float32", torch.device("cpu")):
        ...     float(torch.ones(2) @ torch.ones(2))
        2.0
    """
    check_arithmetic(precision, device)
    if device.type != "cuda":
        yield
        return
    _change(lambda blocks: blocks.append(precision))
    try:
        yield
    finally:
        _change(list.pop)


def _change(act: Callable[[list[str]], Any]) -> None:
    """Enter or leave a block of this thread, and set what all blocks together need."""
    with _lock:
        if not _asked:
            _before[:] = [_current(*spellings) for spellings in _SETTINGS]
        thread = threading.get_ident()
        act(_asked.setdefault(thread, []))
        if not _asked[thread]:
            del _asked[thread]
        tf32 = all(blocks[-1] == "tf32" for blocks in _asked.values())
        for setting, before in _before:
            wanted = before if not _asked else setting.tf32 if tf32 else setting.full
            now = setting.read()
            if now != wanted and not (now == "medium" and _asked and tf32):  # a name for TF32, too
                setting.write(wanted)


def _current(usual: _Setting, later: _Setting) -> tuple[_Setting, Any]:
    """The spelling that can be read, and what it says."""
    _hush()
    try:
        return usual, usual.read()
    except RuntimeError:
        return later, later.read()


@cache
def _hush() -> None:
    """Let torch 2.9 say unheard, as it does once in a process, that there is a new spelling: 2.8 lacks it."""
    with warnings.catch_warnings(), suppress(RuntimeError):
        warnings.simplefilter("ignore")
        _SETTINGS[0][0].read()
