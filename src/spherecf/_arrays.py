"""Tensors or NumPy arrays: how functions on tensors take both, and answer in kind."""

from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from spherecf.errors import InputError

Array = TypeVar("Array", Tensor, ndarray)
"""Of a function that answers arrays with arrays and tensors with tensors; a mixture gives tensors."""
AnyArray = Tensor | ndarray
"""Either."""


def as_tensor(values: Any, name: str, device: torch.device | None = None, *, kinds: str = "f") -> Tensor:
    """A tensor as it is, an array as a tensor of its type: without a copy where torch can share its memory.

    Args:
        values: a tensor or a NumPy array (or a scalar of NumPy's).
        name: what messages call it.
        device: where to put arrays.
        kinds: of numbers that will do: "f" for floats, "i" for integers.

    Raises:
        InputError: neither a tensor nor an array, or of another type.

    Example:
        >>> as_tensor(np.ones(2, np.float16), "mu")
        tensor([1., 1.], dtype=torch.float16)
    """
    if not isinstance(values, Tensor):
        values = _shared(values, name, kinds)
        values = values if device is None else values.to(device)
    tensor: Tensor = values
    if tensor.is_floating_point():
        kind = "f"
    else:
        kind = "other" if tensor.is_complex() or tensor.dtype == torch.bool else "i"
    if kind not in kinds:
        raise _wrong_type(name, kinds, tensor.dtype)
    return tensor


def like(result: Tensor, *given: Array) -> Array:
    """The result as an array where everything given is one, else as the tensor it is."""
    answer: Any = result
    if not any(isinstance(values, Tensor) for values in given):
        answer = result.numpy()
    return cast(Array, answer)


def _shared(values: Any, name: str, kinds: str) -> Tensor:
    if not isinstance(values, np.ndarray | np.generic):
        raise InputError(
            f"{name}: expected a torch tensor or a NumPy array, got {type(values).__name__}. "
            "Convert it with torch.tensor(...)."
        )
    array = np.asarray(values)
    if array.dtype.kind.replace("u", "i") not in kinds:
        raise _wrong_type(name, kinds, array.dtype)
    widest = np.dtype(np.float64 if array.dtype.kind == "f" else np.int64)
    native = array.dtype.newbyteorder("=")
    array = np.asarray(array, widest if native.itemsize > 8 or native.kind == "u" else native)
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array) if array.flags.writeable else torch.utils.dlpack.from_dlpack(array)
    except (BufferError, RuntimeError):  # read-only, and a NumPy or torch that cannot share that
        return torch.from_numpy(array.copy())


def _wrong_type(name: str, kinds: str, dtype: Any) -> InputError:
    wanted = "integers" if kinds == "i" else "floating-point numbers, e.g. float32"
    return InputError(f"{name}: expected {wanted}, got {dtype}.")
