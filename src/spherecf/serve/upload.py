"""Read forms with photos in memory.

Starlette's own parser writes parts above 1 MB to temporary files, which photos of faces should not be.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from fastapi import HTTPException, Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from spherecf.common.parsing import composed
from spherecf.serve.access import Limits

# It logs each damaged form, of which any caller can send as many as fill a disk; they are answered instead.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

_FIELD_BYTES = 4096
_MAX_FIELDS = 20
_NAME_LENGTH = 120


@dataclass(frozen=True)
class Upload:
    """An uploaded photo: its file name, without folders and control characters, and its bytes."""

    name: str
    content: bytes


@dataclass
class Form:
    """Fields and photos of one request, by the name of the field."""

    fields: dict[str, str] = field(default_factory=dict)
    photos: dict[str, list[Upload]] = field(default_factory=dict)


async def read_form(request: Request, limits: Limits, wanted: Mapping[str, tuple[int, int]]) -> Form:
    """Read a multipart form.

    Args:
        request: its body must not have been read yet.
        limits: sizes, number of photos and time.
        wanted: (minimum, maximum) number of photos for each field with photos.

    Raises:
        HTTPException: 400 not a form, 408 too slow, 413 too large, 415 wrong media type, 422 missing photos.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise HTTPException(415, "Expected a form with photos (multipart/form-data).")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limits.max_request_bytes:
        raise _too_large(limits)
    parts = _Parts(limits, frozenset(wanted))
    try:
        async with asyncio.timeout(limits.upload_seconds):
            await _feed(parts, options[b"boundary"], request.stream(), limits)
    except FormParserError as error:
        raise HTTPException(400, "The form is damaged: it is not well-formed multipart/form-data.") from error
    except TimeoutError as error:
        raise HTTPException(408, f"The photos did not arrive within {limits.upload_seconds:g} s.") from error
    for name, (minimum, maximum) in wanted.items():
        _check_count(name, len(parts.form.photos.get(name, [])), minimum, min(maximum, limits.max_files))
    return parts.form


async def _feed(parts: "_Parts", boundary: bytes, stream: AsyncIterator[bytes], limits: Limits) -> None:
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": parts.begin,
            "on_header_field": parts.header_name,
            "on_header_value": parts.header_value,
            "on_header_end": parts.header_end,
            "on_headers_finished": parts.headers_end,
            "on_part_data": parts.data,
            "on_part_end": parts.end,
        },
    )
    arrived = 0
    async for chunk in stream:
        arrived += len(chunk)
        if arrived > limits.max_request_bytes:
            raise _too_large(limits)
        parser.write(chunk)
    parser.finalize()
    if not parts.ended:
        raise FormParserError("the last part has no end")


class _Parts:
    """Collects the parts of a form from the parser's callbacks."""

    def __init__(self, limits: Limits, wanted: frozenset[str]) -> None:
        self.form, self.ended = Form(), True
        self._limits, self._wanted = limits, wanted
        self._count = 0

    def begin(self) -> None:
        self.ended, self._count = False, self._count + 1
        self._header, self._value, self._disposition = b"", b"", b""
        self._content = bytearray()
        if self._count > self._limits.max_files + _MAX_FIELDS:
            raise HTTPException(413, f"Too many parts; at most {self._limits.max_files} photos at once.")

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise HTTPException(400, "A part of the form has no name.")
        self._name = options[b"name"].decode("utf-8", "replace")
        self._file = _file_name(options[b"filename"]) if b"filename" in options else None
        if (self._file is not None) != (self._name in self._wanted):
            expected = "photos in " + " and ".join(sorted(self._wanted))
            raise HTTPException(422, f"The field {self._name!r} is not expected here: expected {expected}.")

    def data(self, data: bytes, start: int, end: int) -> None:
        limit = _FIELD_BYTES if self._file is None else self._limits.max_file_bytes
        if len(self._content) + end - start > limit:
            what = f"The field {self._name!r}" if self._file is None else f"The photo {self._file!r}"
            raise HTTPException(413, f"{what} is too large: at most {_size(limit)}.")
        self._content += data[start:end]

    def end(self) -> None:
        self.ended = True
        if self._file is not None:
            photos = self.form.photos.setdefault(self._name, [])
            photos.append(Upload(self._file or "photo", bytes(self._content)))
            if len(photos) > self._limits.max_files:
                raise HTTPException(413, f"Too many photos: at most {self._limits.max_files} at once.")
        elif self._name in self.form.fields:
            raise HTTPException(422, f"The field {self._name!r} occurs twice in the form.")
        else:
            self.form.fields[self._name] = self._content.decode("utf-8", "replace").strip()


def _file_name(raw: bytes) -> str:
    """The last part of the given path, printable and of limited length. It is shown, never opened."""
    text = composed(raw.decode("utf-8", "replace"))
    last = re.split(r"[/\\]", text)[-1]
    return "".join(character for character in last if character.isprintable())[-_NAME_LENGTH:].strip()


def _check_count(name: str, count: int, minimum: int, maximum: int) -> None:
    if count < minimum:
        one = minimum == maximum == 1
        expected = "a photo" if one else f"at least {minimum} photo{'s' * (minimum > 1)}"
        raise HTTPException(422, f"The field {name!r} is missing: expected {expected} in it.")
    if count > maximum:
        raise HTTPException(422, f"The field {name!r} has {count} photos: expected at most {maximum}.")


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"The request is too large: at most {_size(limits.max_request_bytes)} at once.")


def _size(count: int) -> str:
    return f"{count / 1e6:g} MB" if count >= 1e5 else f"{count:,} bytes"
