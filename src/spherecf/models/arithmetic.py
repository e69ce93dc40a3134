"""The precision of float32 on a GPU inside a ``with`` block: full, or with operands rounded to TF32.

By default cuDNN convolves in TF32, with 10 bits of mantissa instead of 23, and the setting is global to the
process. A ``with`` block sets the precision it needs and restores the previous setting when it ends.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple

import torch

from spherecf.errors import InputError


class _Setting(NamedTuple):
    """One of torch's settings, and its values for full float32 and for TF32."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    full: bool | str
    tf32: bool | str


def _attribute(owner: Callable[[], Any], name: str, full: bool | str, tf32: bool | str) -> _Setting:
    """A setting that is an attribute; its owner may be missing in this version of torch."""
    return _Setting(lambda: getattr(owner(), name), lambda value: setattr(owner(), name, value), full, tf32)


# Settings for convolutions and for matrix products: first the name that every version of torch has, then the
# name added in torch 2.9. Once the new name has been written, reading the old one is an error.
_SETTINGS = (
    (
        _attribute(lambda: torch.backends.cudnn, "allow_tf32", False, True),
        _attribute(lambda: torch.backends.cudnn.conv, "fp32_precision", "ieee", "tf32"),  # type: ignore[attr-defined]
    ),
    (
        _Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest", "high"),
        _attribute(lambda: torch.backends.cuda.matmul, "fp32_precision", "ieee", "tf32"),
    ),
)

_lock = threading.Lock()
_requests: dict[int, list[str]] = {}  # thread -> precisions requested by its blocks, innermost last
_previous: list[tuple[_Setting, Any]] = []  # the settings before the first of these blocks


@contextmanager
def independent_of_defaults() -> Iterator[None]:
    """Ignore autocast and torch's default device inside a block, or in a function that this decorates.

    A recogniser runs in the type and on the device that were chosen when it was loaded. Without such defaults
    the block changes nothing, so that compiled code stays valid.

    Example:
        >>> with torch.device("meta"), independent_of_defaults():
        ...     torch.zeros(2).device
        device(type='cpu')
    """
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":  # get_default_device of torch 2.6 ignores `with torch.device`
            stack.enter_context(torch.device("cpu"))
        yield


def check_arithmetic(precision: str, device: torch.device) -> None:
    """Reject "tf32" on devices that do not support it.

    Raises:
        InputError: "tf32" on a device other than a GPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise InputError(
            f"tf32 is arithmetic of GPUs, got the device {device}; use float32 or bfloat16 there"
        )


@contextmanager
def float32_arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Run convolutions and matrix products of float32 tensors at full precision, or in TF32, inside a block.

    The innermost of nested blocks takes precedence. If threads request different precisions at the same time,
    all of them get full float32, so that no result is less accurate than requested.

    Args:
        precision: "tf32"; any other value means full float32 (16-bit dtypes are unaffected).
        device: where the block computes; only GPUs have these settings.

    Raises:
        InputError: "tf32" on a device other than a GPU.

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
    """Enter or leave a block of this thread, and apply the precision that all open blocks need."""
    with _lock:
        if not _requests:
            _previous[:] = [_current(*names) for names in _SETTINGS]
        thread = threading.get_ident()
        act(_requests.setdefault(thread, []))
        if not _requests[thread]:
            del _requests[thread]
        tf32 = all(blocks[-1] == "tf32" for blocks in _requests.values())
        for setting, previous in _previous:
            target = previous if not _requests else setting.tf32 if tf32 else setting.full
            current = setting.read()
            if current != target and not (current == "medium" and _requests and tf32):  # "medium" is TF32 too
                setting.write(target)


def _current(old_name: _Setting, new_name: _Setting) -> tuple[_Setting, Any]:
    """The setting under the name that can be read, and its value."""
    _silence_deprecation()
    try:
        return old_name, old_name.read()
    except RuntimeError:
        return new_name, new_name.read()


@cache
def _silence_deprecation() -> None:
    """Suppress torch 2.9's deprecation warning of the old name; torch 2.8 has no other name."""
    with warnings.catch_warnings(), suppress(RuntimeError):
        warnings.simplefilter("ignore")
        _SETTINGS[0][0].read()
