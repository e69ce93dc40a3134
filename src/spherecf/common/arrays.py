"""Convert and check arguments that are tensors or NumPy arrays, and find out whether Triton kernels run."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from math import isfinite
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy import ndarray
from numpy.typing import NDArray
from torch import Tensor
from torch._C import _functorch as functorch  # torch has no public names for these
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from spherecf.errors import InputError

Array = TypeVar("Array", Tensor, ndarray)
"""Type of a function that returns arrays for arrays and tensors for tensors; mixed arguments give tensors."""
AnyArray = Tensor | ndarray
"""A tensor or an array."""


def as_tensor(values: Any, name: str, device: torch.device | None = None, *, kinds: str = "f") -> Tensor:
    """Return a tensor unchanged, and an array as a tensor of the same type, without a copy if possible.

    Args:
        values: a tensor or a NumPy array (or a NumPy scalar).
        name: name of the argument in messages.
        device: device that arrays are moved to.
        kinds: accepted kinds of numbers: "f" for floats, "i" for integers.

    Raises:
        InputError: ``values`` is neither a tensor nor an array, or has another type of numbers.

    Example:
        >>> as_tensor(np.ones(2, np.float16), "mu")
        tensor([1., 1.], dtype=torch.float16)
    """
    if not isinstance(values, Tensor):
        values = _shared_tensor(values, name, kinds)
        values = values if device is None else values.to(device)
    tensor: Tensor = values
    if tensor.is_floating_point():
        kind = "f"
    else:
        kind = "other" if tensor.is_complex() or tensor.dtype == torch.bool else "i"
    if kind not in kinds:
        raise _wrong_type(name, kinds, tensor.dtype)
    if tensor.dtype == torch.uint64 and values_known(tensor):
        signed = tensor.view(torch.int64)
        if bool((signed < 0).any()):
            raise _too_large(name, int(signed.min()) + 2**64, "torch.int64")
    return tensor


def as_tensors(**given: Any) -> list[Tensor]:
    """`as_tensor` of arguments of floats, by their names in messages; arrays go to the device of the tensors.

    Raises:
        InputError: as `as_tensor`, or tensors are on different devices.
    """
    device = next((values.device for values in given.values() if isinstance(values, Tensor)), None)
    tensors = [as_tensor(values, name, device) for name, values in given.items()]
    if any(tensor.device != tensors[0].device for tensor in tensors):
        listed = ", ".join(f"{name} is on {tensor.device}" for name, tensor in zip(given, tensors))
        raise InputError(f"{listed}; move them to the same device")
    return tensors


def widen(values: Any, name: str = "values") -> Tensor:
    """`as_tensor` in float32 or float64; half precision becomes float32."""
    tensor = as_tensor(values, name)
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def match_input_type(result: Tensor, *arguments: Array) -> Array:
    """Return a result as a NumPy array if all arguments are arrays, otherwise as a tensor."""
    converted: Any = result
    if not any(isinstance(values, Tensor) for values in arguments):
        converted = result.detach().numpy()
    return cast(Array, converted)


def _shared_tensor(values: Any, name: str, kinds: str) -> Tensor:
    if not isinstance(values, np.ndarray | np.generic):
        raise InputError(
            f"{name}: expected a torch tensor or a NumPy array, got {type(values).__name__}. "
            "Convert it with torch.tensor(...)."
        )
    array = np.asarray(values)
    if array.dtype.kind.replace("u", "i") not in kinds:
        raise _wrong_type(name, kinds, array.dtype)
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise _too_large(name, array.max())
    widest = np.dtype(np.float64 if array.dtype.kind == "f" else np.int64)
    native = array.dtype.newbyteorder("=")
    array = np.asarray(array, widest if native.itemsize > 8 or native.kind == "u" else native)
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array) if array.flags.writeable else torch.utils.dlpack.from_dlpack(array)
    except (BufferError, RuntimeError, ValueError):  # a packed field, or read-only memory in older versions
        return torch.from_numpy(array.copy())


def _too_large(name: str, number: Any, view: str = "np.int64") -> InputError:
    return InputError(
        f"{name}: expected integers below 2^63, got {number}. View hashes as signed numbers: "
        f"{name}.view({view})."
    )


def _wrong_type(name: str, kinds: str, dtype: Any) -> InputError:
    expected = "integers" if kinds == "i" else "floating-point numbers, e.g. float32"
    return InputError(f"{name}: expected {expected}, got {dtype}.")


def values_known(values: Any) -> bool:
    """Whether Python code may depend on the values of a tensor or array, so that they can be checked.

    It may not while torch.compile traces, under `torch.func.vmap`, and on the meta device.

    Example:
        >>> values_known(np.ones(2)), values_known(torch.ones(2, device="meta"))
        (True, False)
    """
    if torch.compiler.is_compiling():
        return False
    while isinstance(values, Tensor) and functorch.is_functorch_wrapped_tensor(values):
        if functorch.is_batchedtensor(values):
            return False
        values = functorch.get_unwrapped(values)
    return not (isinstance(values, Tensor) and values.is_meta)


UNIT_TOLERANCE = 1e-3
"""Maximum relative error of the length of a stored direction, or of a distribution's."""
SCORE_TOLERANCE = 2.0**-8
"""The same for scores: the maximum relative error from rounding to bfloat16; that of float16 is smaller."""

_BLOCK = 65536  # rows checked at once, so that a mapped file may be larger than memory


def check_directions(
    mu: Any,
    name: str,
    tolerance: float = UNIT_TOLERANCE,
    *,
    radius: float = 1.0,
    rows: NDArray[np.int64] | None = None,
    keys: Sequence[Any] | NDArray[Any] = (),
) -> None:
    """Reject rows that are NaN, zero, or not of length ``radius``; one message counts them all.

    Values are checked only if they are known (`values_known`).

    Args:
        mu: (..., dim) array or tensor of floats, dim >= 2.
        name: name of the argument in the message.
        tolerance: maximum relative error of a length.
        radius: expected length.
        rows: rows to check, of an array (n, dim); by default all.
        keys: names of all rows, if they have any.

    Raises:
        InputError: there are such rows (with their number and the first of each kind), or fewer than two
            coordinates.

    Example:
        >>> check_directions(np.array([[0.6, 0.8], [0, 0], [3, 4]]), "mu")
        Traceback (most recent call last):
        spherecf.errors.InputError: mu: 2 of 3 directions are not unit vectors: 1 zero (first row 1),
        1 of another length (first row 2, length 5); ...
    """
    if mu.ndim < 1 or mu.shape[-1] < 2:
        raise InputError(f"{name}: expected directions (..., dim) with dim >= 2, got shape {tuple(mu.shape)}")
    if not values_known(mu) or all(are_unit(block, tolerance, radius) for block in _blocks(mu, rows)):
        return
    lengths = [_as_array(_lengths(block, exact=True)).reshape(-1) for block in _blocks(mu, rows)]
    length = np.concatenate(lengths)
    relative = length / radius
    finite, zero = np.isfinite(relative), relative == 0
    other = finite & ~zero & ~(np.abs(relative - 1) <= tolerance)
    problems, count = [], 0
    for kind, mask in (("NaN or infinite", ~finite), ("zero", zero), ("of another length", other)):
        if mask.any():
            first, count = int(mask.argmax()), count + int(mask.sum())
            location = _row_name(first if rows is None else int(rows[first]), keys)
            value = f", length {length[first]:.4g}" if mask is other else ""
            problems.append(f"{int(mask.sum())} {kind} (first {location}{value})")
    if not count:  # within rounding of the tolerance
        return
    expected = "unit vectors" if radius == 1 else f"vectors of length {radius:g}"
    raise InputError(
        f"{name}: {count} of {length.size} directions are not {expected}: {', '.join(problems)}; "
        f"{_advice(mu, name, tolerance, radius, bool(other.any()))}"
    )


def are_unit(mu: Any, tolerance: float = UNIT_TOLERANCE, radius: float = 1.0) -> bool:
    """Whether all rows have length ``radius``: the quick test; `check_directions` explains a failure."""
    return bool(unit_rows(mu, tolerance, radius))


def unit_rows(mu: Any, tolerance: float = UNIT_TOLERANCE, radius: float = 1.0) -> Any:
    """`are_unit` as a 0-d array or tensor, without waiting for a GPU."""
    off = abs(_lengths(mu) - radius)
    return (off <= tolerance * radius).all()


def check_kappa(kappa: Any, name: str) -> None:
    """Reject NaN, negative and infinite concentrations or weights, if they are known (`values_known`).

    Raises:
        InputError: there are such values; the message has their number, the first one and its position.
    """
    if not values_known(kappa):
        return
    bad = ~((kappa >= 0) & (kappa < float("inf")))
    if bad.any():
        flat = _as_array(bad).reshape(-1)
        first = int(flat.argmax())
        raise InputError(
            f"{name}: {int(flat.sum())} of {flat.size} are NaN, negative or infinite, first "
            f"{float(kappa.reshape(-1)[first]):g} at {first}; expected finite values >= 0 (is this "
            "log_kappa?)"
        )


def checked_radius(radius: Any, name: str = "radius") -> float:
    """Convert the radius of a sphere to a float.

    Raises:
        InputError: it is not a single finite number > 0.
    """
    try:
        value = float("nan") if isinstance(radius, str) else float(radius)
    except (TypeError, ValueError, RuntimeError):
        value = float("nan")
    if not (isfinite(value) and value > 0):
        raise InputError(f"{name}: expected one finite number > 0 (64 in the paper), got {radius!r}")
    return value


def check_rgb(image: Any, where: str = "") -> None:
    """Refuse what is not a uint8 RGB image (height, width, 3); ``where`` begins the message."""
    is_array = isinstance(image, ndarray)
    if not is_array or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        given = f"{image.dtype} {image.shape}" if is_array else type(image).__name__
        raise InputError(f"{where}expected a uint8 RGB image (height, width, 3), got {given}")


def as_array(values: Any, name: str, dtype: Any = None) -> NDArray[Any]:
    """Convert anything that NumPy accepts, or a tensor of any device and type, to a NumPy array of numbers.

    Raises:
        InputError: the values are not real numbers, rows differ in length, or ``dtype`` is an integer type
            and some values are not integers.

    Example:
        >>> as_array([[1, 0], [0, 1]], "mu", np.float32).dtype
        dtype('float32')
    """
    try:
        array = _as_array(values)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected an array of real numbers: {error}") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: expected an array of real numbers: got {array.dtype}")
    if dtype in (None, array.dtype):
        return array
    with np.errstate(invalid="ignore", over="ignore"):  # NaN as an integer, and infinity for a large number
        converted = np.asarray(array, dtype)
    if array.dtype.kind == "f" and converted.dtype.kind == "i" and (fractions := converted != array).any():
        raise InputError(f"{name}: expected integers, got {array[fractions][0]}")
    if array.dtype.kind == "u" and converted.dtype.kind == "i" and (wrapped := converted < 0).any():
        raise _too_large(name, array[wrapped][0])
    return converted


def row_numbers(rows: Any, count: int, name: str = "rows") -> NDArray[np.int64]:
    """Numbers of selected rows, from integers or from a mask of ``count`` booleans.

    Raises:
        InputError: neither of these, or there are only ``count`` rows.

    Example:
        >>> row_numbers([True, False, True], 3), row_numbers([2, 0], 3)
        (array([0, 2]), array([2, 0]))
    """
    is_iterable = isinstance(rows, Iterable) and not hasattr(rows, "shape")
    given = as_array(list(rows) if is_iterable else rows, name)
    if given.dtype.kind == "b" and given.shape == (count,):
        return np.flatnonzero(given)
    numbers = as_array(given, name, np.int64)
    outside = (numbers < 0) | (numbers >= count)
    if given.dtype.kind == "b" or numbers.ndim != 1 or outside.any():
        got = f"{numbers[outside][0]}" if outside.any() else f"{given.dtype} of shape {given.shape}"
        raise InputError(f"{name}: expected numbers in 0..{count - 1} or {count} booleans, got {got}")
    return numbers


def _as_array(values: Any) -> NDArray[Any]:
    if isinstance(values, np.memmap):
        return values  # keep the subclass, which marks the array as memory-mapped
    if not hasattr(values, "detach"):
        return np.asarray(values)
    if functorch.is_functorch_wrapped_tensor(values):  # inside torch.func.grad, where numpy() fails
        while functorch.is_functorch_wrapped_tensor(values):
            values = functorch.get_unwrapped(values)
        with temporarily_clear_interpreter_stack():
            return _as_array(values)
    tensor = values.detach().cpu()
    if tensor.is_floating_point() and tensor.element_size() < 4:  # NumPy has no bfloat16
        tensor = tensor.float()
    array: NDArray[Any] = tensor.numpy()
    return array


def _blocks(mu: Any, rows: NDArray[np.int64] | None) -> Iterator[Any]:
    """Blocks of rows of a two-dimensional array; anything else is one block."""
    if not isinstance(mu, np.ndarray) or mu.ndim != 2:
        yield mu
        return
    for start in range(0, max(len(mu) if rows is None else len(rows), 1), _BLOCK):
        block = slice(start, start + _BLOCK)
        yield mu[block] if rows is None else mu[rows[block]]


def _lengths(mu: Any, exact: bool = False) -> Any:
    """(...) lengths of the rows; in float64 if ``exact``, so that squares do not overflow."""
    if isinstance(mu, np.ndarray):
        wide = mu.astype(np.float64 if exact else np.promote_types(mu.dtype, np.float32), copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            return np.sqrt(np.vecdot(wide, wide))
    from torch.linalg import vector_norm  # torch has been imported already if there is a tensor

    wide = mu.detach().double() if exact else mu.detach()
    return vector_norm(wide.float() if wide.element_size() < 4 else wide, dim=-1)


def _row_name(row: int, keys: Sequence[Any] | NDArray[Any]) -> str:
    if not len(keys):
        return f"row {row}"
    key = keys[row]
    return f"row {row}, {repr(key) if isinstance(key, str) else f'id {key}'}"


def _advice(mu: Any, name: str, tolerance: float, radius: float, wrong_length: bool) -> str:
    if not wrong_length:
        return "leave out images without an embedding, and look for NaN in the features"
    if radius != 1:
        return "multiply unit vectors by the radius"
    if mu.ndim == 2 and are_unit(mu.T, tolerance):
        return f"its columns are unit vectors: pass {name}.T"
    if isinstance(mu, np.ndarray):
        return f"normalise them: {name} / np.linalg.norm({name}, axis=-1, keepdims=True)"
    wide = f"{name}.float()" if mu.element_size() < 4 else name  # half precision rounds the length again
    return f"normalise them: torch.nn.functional.normalize({wide}, dim=-1)"


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device, without waiting for the work that is queued on a GPU.

    From memory that is not pinned, CUDA starts a copy of more than 64 KiB only when that work is done, and
    the CPU waits with it. So the values go through pinned memory, which torch keeps until the copy is over.
    """
    if device.type != "cuda":
        return tensor.to(device)
    return (tensor if tensor.is_cuda else tensor.pin_memory()).to(device, non_blocking=True)


class HostCopy:
    """An asynchronous copy from GPU to CPU, which can be awaited without waiting for later GPU work."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._copy = tensor
        if tensor.is_cuda:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(tensor.device))

    def wait(self) -> Tensor:
        """The copy, complete."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy


log = logging.getLogger(__name__)


@cache
def triton_runs_on(device: torch.device, capability: tuple[int, int] = (7, 0)) -> bool:
    """Whether Triton works on this device: an NVIDIA GPU of at least this capability, and a C compiler.

    If Triton fails on a suitable GPU, the log states why, once; the code used instead gives the same results.
    """
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < capability:
        return False
    try:
        from triton.runtime import driver

        driver.active.get_current_target()  # compiles the kernel launcher
    except Exception as error:  # the tool chain may raise anything
        reason = str(error).strip().splitlines()[:1]
        log.warning("Triton does not work here, so it is not used (slower, same results): %s", reason)
        return False
    return True
