"""Parsing of untrusted text: uniform errors, JSON that is checked before use, and matching of image names."""

import json
import math
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from spherecf.errors import FileFormatError, InputError, SpherecfError

T = TypeVar("T")

_MAX_MISTAKES = 3  # mistakes quoted in a message
_MAX_REASON = 200  # characters quoted from another library's message


@contextmanager
def reading(path: str | Path, kind: str, hint: str = "") -> Iterator[None]:
    """Convert any exception that a parser raises in the block to a `FileFormatError` with file and kind.

    This library's own errors and interrupts are not converted. Use it around third-party parsers of untrusted
    bytes whose exceptions are not fully documented; code of this library should check its input instead.

    Raises:
        FileFormatError: in place of any other exception.

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
            path, f"reading it as {kind} needs more memory than is available.", hint
        ) from error
    except Exception as error:
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        raise FileFormatError(path, f"not readable as {kind}: {reason.rstrip('.')}.", hint) from error


def parse_json(text: str | bytes, path: str | Path, kind: str, hint: str = "") -> Any:
    """Parse JSON with finite numbers only, nested at most 200 levels deep.

    The result can be written again by ``json.dumps(..., allow_nan=False)``.

    Raises:
        FileFormatError: the text is not JSON, has NaN or infinite numbers, or is nested too deeply.

    Example:
        >>> parse_json('{"radius": 64.0}', "head.safetensors", "a header")
        {'radius': 64.0}
    """
    with reading(path, kind, hint):
        value = from_json(text, allow_inf_nan=False)
        if not _finite(value):  # 1e999 parses to infinity, and integers may have any length
            raise ValueError("a number is beyond the range of float64")
        return value


def checked(kind: type[T], facts: Any, name: str) -> T:
    """Build a dataclass (or any type that pydantic supports) from plain JSON values, with strict types.

    Raises:
        InputError: fields are missing or of another type (with the path of each), or the class itself rejects
            the values.

    Example:
        >>> from spherecf.calibration import KappaScale
        >>> checked(KappaScale, {"dim": "large"}, "kappa")
        Traceback (most recent call last):
        spherecf.errors.InputError: kappa: dim: Input should be a valid integer; ...
    """
    try:
        # Strict validation of JSON, unlike that of Python values, accepts a list for a tuple.
        text = json.dumps(facts)
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
        more = f"; {len(mistakes) - _MAX_MISTAKES} more" if len(mistakes) > _MAX_MISTAKES else ""
        summary = "; ".join(mistakes[:_MAX_MISTAKES]).replace("Value error, ", "")
        raise InputError(f"{name}: {summary}{more}") from error


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


_SUFFIX = re.compile(
    r"\.(?:jpe?g|jpe|jfif|png|bmp|dib|p[bgnp]m|webp|tiff?|gif|jp2|avif|hei[cf])$", re.IGNORECASE
)
_NAMED = 3  # names in a message


def composed(name: str) -> str:
    """The name in composed Unicode form (NFC), so that names that look the same compare equal.

    Example:
        >>> composed("Jose\u0301") == composed("Jos\u00e9")
        True
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def normalised_path(name: str) -> str:
    r"""A path in normal form: composed (NFC), with slashes, without ``.`` parts and double slashes.

    Example:
        >>> normalised_path(r".\ann\1.jpg")
        'ann/1.jpg'
    """
    text = composed(name).replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    return "/" * text.startswith("/") + "/".join(parts)


def has_image_suffix(name: str) -> bool:
    """Whether the name has the extension of an image file.

    Example:
        >>> has_image_suffix("Ann/1.JPG"), has_image_suffix("Ann/v1.2")
        (True, False)
    """
    return _SUFFIX.search(name) is not None


def identity_order(names: Iterable[str]) -> list[str]:
    """The distinct names, in numeric order if all are whole numbers, otherwise in alphabetical order.

    Example:
        >>> identity_order(["10", "9", "10"]), identity_order(["10", "9", "ann"])
        (['9', '10'], ['10', '9', 'ann'])
    """
    distinct = set(names)
    return (
        sorted(distinct, key=lambda name: (int(name), name))
        if all(map(is_whole, distinct))
        else sorted(distinct)
    )


def is_whole(text: str) -> bool:
    """Whether the text is a whole number, of a length that Python can parse.

    Example:
        >>> is_whole("-7"), is_whole("7.0"), is_whole("--7")
        (True, False, False)
    """
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) < 4000


def is_number(text: str) -> bool:
    """Whether the text is a number as in lists and dumps, including NaN and infinity.

    Example:
        >>> is_number("-7.0e3"), is_number("nan"), is_number("1_000")
        (True, True, False)
    """
    try:
        float(text)
    except ValueError:
        return False
    return text.isascii() and "_" not in text


def match_keys(wanted: Iterable[str], keys: Sequence[str], name: str) -> dict[str, int]:
    """Find the rows in ``keys`` of the wanted names; names without a match are left out.

    An equal key takes precedence. Otherwise Unicode form, separator and image extension may differ. If no
    name matches in this way, one parent folder may be missing from all names, or from all keys.

    Args:
        wanted: names of images, as in a list.
        keys: unique names.
        name: name of the list, for messages.

    Raises:
        InputError: a name fits several keys, several names fit one key, or several parent folders fit.

    Example:
        >>> match_keys(["Ann/1.jpg", "Bo/2.jpg"], ["lfw/Bo/2.png", "lfw/Ann/1.png"], "pairs")
        {'Ann/1.jpg': 1, 'Bo/2.jpg': 0}
    """
    names = dict.fromkeys(wanted)
    rows = {key: row for row, key in enumerate(keys) if key in names}
    if len(rows) == len(names):
        return rows
    index: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        index.setdefault(_normal_form(key), []).append(row)
    normal_forms = {wanted_name: _normal_form(wanted_name) for wanted_name in names}
    if not rows and not any(form in index for form in normal_forms.values()):
        normal_forms = _with_common_root(normal_forms, index, name)
    for wanted_name, form in normal_forms.items():
        if wanted_name not in rows and form in index:
            rows[wanted_name] = _single_match(wanted_name, index[form], keys, name)
    _check_one_to_one(rows, keys, name)
    return rows


def _normal_form(name: str) -> str:
    return _SUFFIX.sub("", normalised_path(name))


def _single_match(wanted_name: str, rows: list[int], keys: Sequence[str], name: str) -> int:
    """The single matching row, of several that differ in extension or spelling."""
    matches = (
        [row for row in rows if normalised_path(keys[row]) == normalised_path(wanted_name)]
        if len(rows) > 1
        else rows
    )
    if len(matches) == 1:
        return matches[0]
    candidates = ", ".join(repr(keys[row]) for row in rows[:_NAMED])
    raise InputError(
        f"{name}: {wanted_name!r} could be any of {len(rows)} images: {candidates}. Write the exact name in "
        "the list, or remove the other images."
    )


def _check_one_to_one(rows: dict[str, int], keys: Sequence[str], name: str) -> None:
    first_names: dict[int, str] = {}
    for wanted_name, row in rows.items():
        if normalised_path(first_names.setdefault(row, wanted_name)) != normalised_path(wanted_name):
            raise InputError(
                f"{name}: {first_names[row]!r} and {wanted_name!r} are two images in the list, but both "
                f"match the one image {keys[row]!r}. Add the other image, or remove its lines from the list."
            )


def _with_common_root(normal_forms: dict[str, str], index: dict[str, list[int]], name: str) -> dict[str, str]:
    """The names with one parent folder added to or removed from all of them, if one fits best."""
    by_file: dict[str, list[str]] = {}
    for form in index:
        by_file.setdefault(form.rpartition("/")[2], []).append(form)
    roots: dict[tuple[str, str], int] = {}  # (removed, added) folder: number of names that then match
    for form in normal_forms.values():
        for other in by_file.get(form.rpartition("/")[2], ()):
            if other.endswith("/" + form.lstrip("/")):
                roots["", other[: -len(form.lstrip("/"))]] = 0
            elif form.endswith("/" + other):
                roots[form[: -len(other)], ""] = 0
        if roots:
            break
    for removed, added in roots:
        roots[removed, added] = sum(
            _change_root(form, removed, added) in index for form in normal_forms.values()
        )
    best = [root for root, count in roots.items() if count == max(roots.values())]
    if not best:
        return normal_forms
    if len(best) > 1:
        folders = ", ".join(repr(removed or added) for removed, added in best[:_NAMED])
        raise InputError(
            f"{name}: the names in the list match images in several folders: {folders}. Pass the images of "
            "one of these folders only, or write whole paths in the list."
        )
    return {wanted_name: _change_root(form, *best[0]) for wanted_name, form in normal_forms.items()}


def _change_root(form: str, removed: str, added: str) -> str:
    return added + form.removeprefix(removed) if form.startswith(removed) else ""
