"""Text from outside: errors of parsers become our errors, JSON is checked before use."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from spherecf.errors import FileFormatError, InputError, SpherecfError

T = TypeVar("T")

_SHOWN = 3  # mistakes quoted in a message
_LENGTH = 200  # characters of another library's message that are passed on


@contextmanager
def reading(path: str | Path, kind: str, hint: str = "") -> Iterator[None]:
    """Whatever a parser raises in the block becomes a `FileFormatError` that names the file and its kind.

    Our own errors pass, and so do interrupts. For parsers that are fed bytes from outside and document no
    complete list of what they raise; code of ours that needs it has a check missing.

    Raises:
        FileFormatError: instead of any other exception.

    Example:
        >>> with reading("scores.npy", "a NumPy array"):
        ...     int("1e5")
        Traceback (most recent call last):
        spherecf.errors.FileFormatError: scores.npy: not readable as a NumPy array: invalid ...
    """
    try:
        yield
    except SpherecfError:
        raise
    except OSError as error:
        raise FileFormatError(path, f"cannot read the file ({error.strerror or error}).", hint) from error
    except MemoryError as error:
        raise FileFormatError(
            path, f"reading it as {kind} asks for more memory than there is.", hint
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:_LENGTH] or type(error).__name__
        raise FileFormatError(path, f"not readable as {kind}: {reason.rstrip('.')}.", hint) from error


def parse_json(text: str | bytes, path: str | Path, kind: str, hint: str = "") -> Any:
    """The value of a JSON text, with finite numbers only and nested at most 200 deep.

    So whatever is read can be written again by ``json.dumps(..., allow_nan=False)``.

    Raises:
        FileFormatError: no JSON, NaN or infinite numbers, or nested too deeply.

    Example:
        >>> parse_json('{"radius": 64.0}', "head.safetensors", "a header")
        {'radius': 64.0}
    """
    with reading(path, kind, hint):
        value = from_json(text, allow_inf_nan=False)
        if not _finite(value):  # 1e999 is infinite without being called so; whole numbers have any length
            raise ValueError("a number is beyond the range of float64")
        return value


def checked(kind: type[T], facts: Any, name: str) -> T:
    """A dataclass (or any type that pydantic knows) from plain JSON values, every field of the declared type.

    Raises:
        InputError: fields that are missing or of another type, with the path to each; or what the class
            itself refuses.

    Example:
        >>> from spherecf.calibration import KappaScale
        >>> checked(KappaScale, {"dim": "large"}, "kappa")
        Traceback (most recent call last):
        spherecf.errors.InputError: kappa: dim: Input should be a valid integer; ...
    """
    try:
        text = json.dumps(facts)  # in its JSON form a list is a tuple's own form, and true is no number
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name}: expected plain JSON values: {error}") from error
    try:
        value: T = _adapter(kind).validate_json(text, strict=True)  # type: ignore[arg-type]
        return value
    except ValidationError as error:
        mistakes = [
            f"{'.'.join(map(str, mistake['loc'])) or kind.__name__}: {mistake['msg']}"
            for mistake in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        more = f"; {len(mistakes) - _SHOWN} more" if len(mistakes) > _SHOWN else ""
        shown = "; ".join(mistakes[:_SHOWN]).replace("Value error, ", "")
        raise InputError(f"{name}: {shown}{more}") from error


@cache
def _adapter(kind: Any) -> Any:  # a TypeAdapter, which beartype cannot check
    return TypeAdapter(kind)


def _finite(value: Any) -> bool:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return False
        if isinstance(item, int) and abs(item) > sys.float_info.max:  # no message could format it
            return False
        pending.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
    return True
