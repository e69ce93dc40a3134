"""A pickle reader that runs nothing: every name in the file maps to a stand-in written here, all others are
refused.

Pair files come from the network, and a pickle can call any function. Images in them are byte strings or uint8
arrays, so only the few names that such data needs are known, in the spelling of Python 2 and 3 and of NumPy 1
and 2. Not even NumPy's own constructors are called: stand-ins note their arguments, and `numpy.frombuffer`
sees checked values only.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spherecf.errors import FileFormatError

_CODES = {"u1": np.uint8, "b1": np.bool_, "i8": np.int64, "i4": np.int32, "?": np.bool_, "B": np.uint8}


class _StandIn:
    """A function in the place of a named global; a pickle can call it and nothing else."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a state is set on a function")


class _Dtype:
    __slots__ = ("kind",)

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("latin-1") if isinstance(code, bytes) else str(code)
        if text.lstrip("|<=") not in (*_CODES, "O8", "O"):
            raise pickle.UnpicklingError(f"arrays of {text!r} are not pictures or flags")
        self.kind = _CODES.get(text.lstrip("|<="))

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: nothing that a byte array needs."""


class _Array:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
    if not isinstance(dtype, _Dtype):
        raise pickle.UnpicklingError("an array without a type")
    if dtype.kind is None:  # an array of objects keeps a list of them
        return list(content)
    return np.frombuffer(_bytes(content), dtype.kind).reshape(
        tuple(map(int, shape)), order="F" if order == "F" else "C"
    )


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
    array = _Array()
    array.value = _array(content, dtype, shape, order)
    return array


def _scalar(dtype: Any, content: Any) -> Any:
    return _array(content, dtype, (1,))[0]


def _bytes(*arguments: Any) -> bytes:
    """bytes(), bytearray(b"..."), bytearray("...", "latin-1"); never bytes(number), which asks for memory."""
    match arguments:
        case ():
            return b""
        case (bytes() | bytearray() as content,):
            return bytes(content)
        case (str() as text,) | (str() as text, "latin1" | "latin-1" | b"latin1" | b"latin-1"):
            return text.encode("latin-1")
    raise pickle.UnpicklingError("a byte string made of something else")


_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _bytes,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): lambda *_: None,
    **{(module, kind): _bytes for module in ("builtins", "__builtin__") for kind in ("bytes", "bytearray")},
    **{(module, "_reconstruct"): lambda *_: _Array() for module in _NUMPY},
    **{(module, "scalar"): _scalar for module in _NUMPY},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(
                f"the file asks for {module}.{name}, which pair files have no use for"
            )
        return _StandIn(_KNOWN[module, name])


def load_plain_pickle(path: Path) -> Any:
    """Lists, tuples, numbers, byte strings and uint8 arrays out of a pickle of Python 2 or 3.

    Raises:
        FileFormatError: the file names anything else (the message says what), is damaged, or is no pickle.
    """
    try:
        with path.open("rb") as stream:
            try:
                return plain(_Unpickler(stream, encoding="bytes").load())
            except Exception as error:  # a damaged pickle may raise nearly anything
                position = stream.tell()
                raise FileFormatError(
                    path,
                    f"refused as a pair file near byte {position}: {error or type(error).__name__}.",
                    "Expected a pickle of (list of encoded images, list of bool). Nothing in it was run.",
                ) from error
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror}).") from error


def plain(value: Any) -> Any:
    """The array inside a stand-in; everything else as it is."""
    return value.value if isinstance(value, _Array) else value
