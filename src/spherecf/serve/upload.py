"""Read forms with photos in memory.

Starlette's own parser writes parts above 1 MB to temporary files. Photos of faces should not be written to
disk.
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

# The parser logs each malformed form, with which a client could fill the disk. The error response suffices.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)

_MAX_FIELD_BYTES = 4096
_MAX_FIELDS = 20
_MAX_NAME_LENGTH = 120


@dataclass(frozen=True)
class Upload:
    """An uploaded photo: its file name without folders and control characters, and its content."""

    name: str
    content: bytes


@dataclass
class Form:
    """Fields and photos of a request, by field name."""

    fields: dict[str, str] = field(default_factory=dict)
    photos: dict[str, list[Upload]] = field(default_factory=dict)


async def read_form(request: Request, limits: Limits, photo_counts: Mapping[str, tuple[int, int]]) -> Form:
    """Read a multipart form.

    Args:
        request: request whose body has not been read yet.
        limits: limits on sizes, the number of photos and time.
        photo_counts: (minimum, maximum) number of photos for each field with photos.

    Raises:
        HTTPException: 400 malformed form, 408 too slow, 413 too large, 415 wrong media type, 422 missing
            photos.
    """
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    if content_type != b"multipart/form-data" or not options.get(b"boundary"):
        raise HTTPException(415, "Expected a form with photos (multipart/form-data).")
    content_length = request.headers.get("content-length", "0")
    if content_length.isdecimal() and int(content_length) > limits.max_request_bytes:
        raise _too_large(limits)
    parts = _Parts(limits, frozenset(photo_counts))
    try:
        async with asyncio.timeout(limits.upload_seconds):
            await _feed(parts, options[b"boundary"], request.stream(), limits)
    except FormParserError as error:
        raise HTTPException(400, "The form is malformed: expected valid multipart/form-data.") from error
    except TimeoutError as error:
        raise HTTPException(408, f"The photos did not arrive within {limits.upload_seconds:g} s.") from error
    for name, (minimum, maximum) in photo_counts.items():
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
    received_bytes = 0
    async for chunk in stream:
        received_bytes += len(chunk)
        if received_bytes > limits.max_request_bytes:
            raise _too_large(limits)
        parser.write(chunk)
    parser.finalize()
    if not parts.ended:
        raise FormParserError("the last part is incomplete")


class _Parts:
    """Collects the parts of a form from the parser's callbacks."""

    def __init__(self, limits: Limits, photo_fields: frozenset[str]) -> None:
        self.form, self.ended = Form(), True
        self._limits, self._photo_fields = limits, photo_fields
        self._count = 0

    def begin(self) -> None:
        self.ended, self._count = False, self._count + 1
        self._header, self._value, self._disposition = b"", b"", b""
        self._content = bytearray()
        if self._count > self._limits.max_files + _MAX_FIELDS:
            raise HTTPException(
                413, f"The form has too many parts: expected at most {self._limits.max_files} photos."
            )

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
        if self._file is None and self._name in self._photo_fields:
            raise HTTPException(422, f"The field {self._name!r} is a text: expected a photo, sent as a file.")
        if self._file is not None and self._name not in self._photo_fields:
            expected = "photos in " + " and ".join(sorted(self._photo_fields))
            raise HTTPException(422, f"The field {self._name!r} is not expected here: expected {expected}.")

    def data(self, data: bytes, start: int, end: int) -> None:
        limit = _MAX_FIELD_BYTES if self._file is None else self._limits.max_file_bytes
        if len(self._content) + end - start > limit:
            part = f"The field {self._name!r}" if self._file is None else f"The photo {self._file!r}"
            raise HTTPException(413, f"{part} is too large: expected at most {_size(limit)}.")
        self._content += data[start:end]

    def end(self) -> None:
        self.ended = True
        if self._file is not None:
            photos = self.form.photos.setdefault(self._name, [])
            photos.append(Upload(self._file or "photo", bytes(self._content)))
            if len(photos) > self._limits.max_files:
                raise HTTPException(413, f"Too many photos: expected at most {self._limits.max_files}.")
        elif self._name in self.form.fields:
            raise HTTPException(422, f"The field {self._name!r} occurs twice in the form.")
        else:
            self.form.fields[self._name] = self._content.decode("utf-8", "replace").strip()


def _file_name(raw: bytes) -> str:
    """The last component of the path, with printable characters only. It is displayed, but never opened."""
    path = composed(raw.decode("utf-8", "replace"))
    name = re.split(r"[/\\]", path)[-1]
    return "".join(character for character in name if character.isprintable())[-_MAX_NAME_LENGTH:].strip()


def _check_count(name: str, count: int, minimum: int, maximum: int) -> None:
    if count < minimum:
        exactly_one = minimum == maximum == 1
        expected = "a photo" if exactly_one else f"at least {minimum} photo{'s' * (minimum > 1)}"
        raise HTTPException(422, f"The field {name!r} is missing: expected {expected} in it.")
    if count > maximum:
        raise HTTPException(422, f"The field {name!r} has {count} photos: expected at most {maximum}.")


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(
        413, f"The request is too large: expected at most {_size(limits.max_request_bytes)}."
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:g} MB" if n_bytes >= 1e5 else f"{n_bytes:,} bytes"
