"""Text from outside: parsers' errors become ours, JSON is checked before use, names have one form."""

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


_SUFFIX = re.compile(
    r"\.(?:jpe?g|jpe|jfif|png|bmp|dib|p[bgnp]m|webp|tiff?|gif|jp2|avif|hei[cf])$", re.IGNORECASE
)
_NAMED = 3  # names in a message


def composed(name: str) -> str:
    """The name in its composed Unicode form (NFC), in which two spellings of one name are equal.

    Example:
        >>> composed("Jose\u0301") == composed("Jos\u00e9")
        True
    """
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def spelt(name: str) -> str:
    r"""A path as a name: composed, separated by slashes, without ``.`` and double slashes.

    Example:
        >>> spelt(r".\ann\1.jpg")
        'ann/1.jpg'
    """
    text = composed(name).replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    return "/" * text.startswith("/") + "/".join(parts)


def has_image_suffix(name: str) -> bool:
    """Whether the name ends as those of picture files do.

    Example:
        >>> has_image_suffix("Ann/1.JPG"), has_image_suffix("Ann/v1.2")
        (True, False)
    """
    return _SUFFIX.search(name) is not None


def identity_order(names: Iterable[str]) -> list[str]:
    """Every name once: in numeric order if all are whole numbers, else in alphabetical order.

    Example:
        >>> identity_order(["10", "9", "10"]), identity_order(["10", "9", "ann"])
        (['9', '10'], ['10', '9', 'ann'])
    """
    known = set(names)
    return sorted(known, key=lambda name: (int(name), name)) if all(map(is_whole, known)) else sorted(known)


def is_whole(text: str) -> bool:
    """Whether the text is a whole number, not longer than Python reads.

    Example:
        >>> is_whole("-7"), is_whole("7.0"), is_whole("--7")
        (True, False, False)
    """
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) < 4000


def is_number(text: str) -> bool:
    """Whether the text is a number as lists and dumps have them, NaN and infinity among them.

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
    """Row in ``keys`` of the wanted names that are there.

    An equal key counts first. Otherwise Unicode form, separator and the suffix of an image may differ. If no
    name is there that way, one folder may come before all names, or before all keys.

    Args:
        wanted: names of images, as a list gives them.
        keys: unique names.
        name: of the list, for messages.

    Raises:
        InputError: a name fits several keys, several names fit one key, or several folders fit.

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
        index.setdefault(_bare(key), []).append(row)
    forms = {each: _bare(each) for each in names}
    if not rows and not any(form in index for form in forms.values()):
        forms = _below_one_root(forms, index, name)
    for each, form in forms.items():
        if each not in rows and form in index:
            rows[each] = _only(each, index[form], keys, name)
    _refuse_shared(rows, keys, name)
    return rows


def _bare(name: str) -> str:
    return _SUFFIX.sub("", spelt(name))


def _only(each: str, rows: list[int], keys: Sequence[str], name: str) -> int:
    """The row that is meant, of several that differ in suffix or spelling."""
    same = [row for row in rows if spelt(keys[row]) == spelt(each)] if len(rows) > 1 else rows
    if len(same) == 1:
        return same[0]
    shown = ", ".join(repr(keys[row]) for row in rows[:_NAMED])
    raise InputError(
        f"{name}: {each!r} could be any of {len(rows)} images: {shown}. Write its name in the list as it is "
        "there, or remove the copies."
    )


def _refuse_shared(rows: dict[str, int], keys: Sequence[str], name: str) -> None:
    first: dict[int, str] = {}
    for each, row in rows.items():
        if spelt(first.setdefault(row, each)) != spelt(each):
            raise InputError(
                f"{name}: {first[row]!r} and {each!r} are two images in the list, but only {keys[row]!r} is "
                "there. Bring the other one, or remove its lines."
            )


def _below_one_root(forms: dict[str, str], index: dict[str, list[int]], name: str) -> dict[str, str]:
    """The forms with one folder added or removed before all of them, if there is just one that fits best."""
    by_file: dict[str, list[str]] = {}
    for form in index:
        by_file.setdefault(form.rpartition("/")[2], []).append(form)
    roots: dict[tuple[str, str], int] = {}  # (removed, added) to the number of names that are there then
    for form in forms.values():
        for other in by_file.get(form.rpartition("/")[2], ()):
            if other.endswith("/" + form.lstrip("/")):
                roots["", other[: -len(form.lstrip("/"))]] = 0
            elif form.endswith("/" + other):
                roots[form[: -len(other)], ""] = 0
        if roots:
            break
    for removed, added in roots:
        roots[removed, added] = sum(_moved(form, removed, added) in index for form in forms.values())
    best = [root for root, count in roots.items() if count == max(roots.values())]
    if not best:
        return forms
    if len(best) > 1:
        shown = ", ".join(repr(removed or added) for removed, added in best[:_NAMED])
        raise InputError(
            f"{name}: its names fit below several folders: {shown}. Give the images of one of them, or the "
            "whole paths in the list."
        )
    return {each: _moved(form, *best[0]) for each, form in forms.items()}


def _moved(form: str, removed: str, added: str) -> str:
    return added + form.removeprefix(removed) if form.startswith(removed) else ""
