"""Names of people and images as lists spell them: one form, one separator, look-ups that never guess."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from spherecf.errors import InputError

_SUFFIX = re.compile(
    r"\.(?:jpe?g|jpe|jfif|png|bmp|dib|p[bgnp]m|webp|tiff?|gif|jp2|avif|hei[cf])$", re.IGNORECASE
)
_SHOWN = 3  # names in a message


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
    shown = ", ".join(repr(keys[row]) for row in rows[:_SHOWN])
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
        shown = ", ".join(repr(removed or added) for removed, added in best[:_SHOWN])
        raise InputError(
            f"{name}: its names fit below several folders: {shown}. Give the images of one of them, or the "
            "whole paths in the list."
        )
    return {each: _moved(form, *best[0]) for each, form in forms.items()}


def _moved(form: str, removed: str, added: str) -> str:
    return added + form.removeprefix(removed) if form.startswith(removed) else ""
