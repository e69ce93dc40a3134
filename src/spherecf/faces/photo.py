"""Read one photo of any common format into upright RGB pixels, or state why it cannot be used."""

import os
import re
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from spherecf.data import ImageError, decode_image
from spherecf.errors import InputError

_PNG = b"\x89PNG\r\n\x1a\n"
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_MAX_BOXES = 10_000  # of one ISO box: photos have hundreds of tiles
_SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


@dataclass(frozen=True)
class Header:
    """Properties of an image file, read from its header.

    Attributes:
        kind: "JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF", "PNM", "JPEG 2000", "AVIF" or "HEIC".
        width, height: in pixels as stored, before rotation by Exif. For HEIC the coded size, which bounds the
            memory that decoding takes; the decoder crops it to the visible part.
        frames: number of frames of an animation, or pages of a TIFF.
        bits: bits per sample.
        cmyk: True for CMYK colours.
        orientation: the Exif tag, 1 (upright) to 8.
    """

    kind: str
    width: int
    height: int
    frames: int = 1
    bits: int = 8
    cmyk: bool = False
    orientation: int = 1


def read_header(data: bytes) -> Header | None:
    """The header of an encoded image; None if the format is unknown or the header is incomplete.

    Example:
        >>> read_header(b"P5 640 480 255 ")
        Header(kind='PNM', width=640, height=480, frames=1, bits=8, cmyk=False, orientation=1)
    """
    try:
        header = _parse_header(data)
    except (struct.error, IndexError, KeyError, ValueError):
        return None
    # Sizes have at most 32 bits in every format but PNM, which stores them as text.
    return header if header and 0 < header.width < 2**32 and 0 < header.height < 2**32 else None


def _parse_header(data: bytes) -> Header | None:
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_header(data)
    if data.startswith(_PNG):
        return _png_header(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_header(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack("<HH", data[6:10])
        return Header("GIF", width, height, _gif_frames(data))
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff_header(data)
    if data[4:8] == b"ftyp":
        return _isobmff_header(data)
    if data.startswith(b"BM"):
        return _bmp_header(data)
    if data[4:12] == b"jP  \r\n\x87\n":
        position = data.index(b"ihdr") + 4
        height, width, _, bits = struct.unpack(">IIHB", data[position : position + 11])
        return Header("JPEG 2000", width, height, bits=(bits & 127) + 1)
    pnm = re.match(
        rb"P([1-6])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:(?:\s|#[^\n]*\n)+(\d+))?\s", data
    )
    if pnm is None:
        return None
    deep = pnm[1] not in b"14" and int(pnm[4] or 0) > 255
    return Header("PNM", int(pnm[2]), int(pnm[3]), bits=16 if deep else 8)


def _jpeg_header(data: bytes) -> Header | None:
    position, orientation = 2, 1
    while True:
        position = data.index(b"\xff", position)
        while data[position] == 0xFF:  # any number of fill bytes
            position += 1
        marker = data[position]
        position += 1
        if marker in (0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            continue  # markers without a length
        if marker in (0xD9, 0xDA):
            return None  # the image data begin before the size is stated
        (length,) = struct.unpack(">H", data[position : position + 2])
        if marker == 0xE1 and data[position + 2 : position + 8] == b"Exif\0\0":
            orientation = _orientation(data[position + 8 : position + length])
        if marker in _SOF:
            bits, height, width, channels = struct.unpack(">BHHB", data[position + 2 : position + 8])
            return Header("JPEG", width, height, 1, bits, channels == 4, orientation)
        position += length


def _png_header(data: bytes) -> Header:
    width, height, bits = struct.unpack(">IIB", data[16:25])
    frames = orientation = 1
    position = 8
    while position + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[position : position + 8])
        if name == b"acTL":
            (frames,) = struct.unpack(">I", data[position + 8 : position + 12])
        elif name == b"eXIf":
            orientation = _orientation(data[position + 8 : position + 8 + length])
        position += 12 + length
    return Header("PNG", width, height, frames, max(bits, 8), False, orientation)


def _webp_header(data: bytes) -> Header | None:
    size, frames, orientation = (0, 0), 0, 1
    position = 12
    while position + 8 <= len(data):
        name, length = struct.unpack("<4sI", data[position : position + 8])
        body = data[position + 8 : position + 8 + length]
        if name == b"VP8X":
            size = (1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little"))
        elif name == b"VP8L" and not size[0]:
            packed = int.from_bytes(body[1:5], "little")
            size = (1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
        elif name == b"VP8 " and not size[0]:
            width, height = struct.unpack("<HH", body[6:10])
            size = (width & 0x3FFF, height & 0x3FFF)
        elif name == b"ANMF":
            frames += 1
        elif name == b"EXIF":
            orientation = _orientation(body.removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    return Header("WebP", *size, max(frames, 1), 8, False, orientation)


def _gif_frames(data: bytes) -> int:
    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 128 else 0

    def blocks(position: int) -> int:
        while data[position]:
            position += 1 + data[position]
        return position + 1

    position, frames = 13 + table(data[10]), 0
    while position < len(data) and data[position] != 0x3B:
        if data[position] == 0x2C:  # a frame
            frames += 1
            position += 10 + table(data[position + 9]) + 1
        else:  # an extension
            position += 2
        try:
            position = blocks(position)
        except IndexError:  # truncated: the decoder will report it
            break
    return max(frames, 1)


def _bmp_header(data: bytes) -> Header:
    if struct.unpack("<I", data[14:18])[0] == 12:
        return Header("BMP", *struct.unpack("<HH", data[18:22]))
    width, height = struct.unpack("<ii", data[18:26])
    return Header("BMP", width, abs(height))


def _tiff_header(data: bytes) -> Header:
    pages = list(_directories(data))
    first = pages[0]
    photometric = first.get(262, 2)
    return Header(
        "TIFF", first[256], first[257], len(pages), first.get(258, 8), photometric == 5, first.get(274, 1)
    )


def _orientation(exif: bytes) -> int:
    try:
        value = next(_directories(exif)).get(274, 1)
    except (struct.error, IndexError, StopIteration):
        return 1
    return value if 1 <= value <= 8 else 1


def _directories(data: bytes) -> Iterator[dict[int, int]]:
    """First value by tag for every directory of a TIFF structure, integer tags only."""
    order = "<" if data[:2] == b"II" else ">"
    (position,) = struct.unpack(order + "I", data[4:8])
    seen: set[int] = set()
    while position and position not in seen and len(seen) < 10_000:
        seen.add(position)
        (count,) = struct.unpack(order + "H", data[position : position + 2])
        values_by_tag = {}
        for entry in range(position + 2, position + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack(order + "HHI", data[entry : entry + 8])
            code = {1: "B", 3: "H", 4: "I"}.get(kind)
            if code is None:
                continue
            size = struct.calcsize(code)
            start = entry + 8
            if values * size > 4:
                (start,) = struct.unpack(order + "I", data[start : start + 4])
            if start + size <= len(data):
                (values_by_tag[tag],) = struct.unpack(order + code, data[start : start + size])
        yield values_by_tag
        end = position + 2 + 12 * count
        (position,) = struct.unpack(order + "I", data[end : end + 4])


def _isobmff_header(data: bytes) -> Header | None:
    (length,) = struct.unpack(">I", data[:4])
    brands = {data[at : at + 4] for at in (8, *range(16, min(length, 256), 4))}
    if not brands & (_HEIC_BRANDS | {b"avif", b"avis"}):
        return None  # a video
    kind = "AVIF" if brands & {b"avif", b"avis"} else "HEIC"
    boxes = {name: (start, end) for name, start, end in _boxes(data, 0, len(data))}
    start, end = boxes.get(b"meta", (0, min(len(data), 1 << 20)))  # a sequence may have none
    sizes = [  # of the image, its tiles and its thumbnail: the largest is the image
        struct.unpack(">II", data[start + match.end() + 4 : start + match.end() + 12])
        for match in re.finditer(b"ispe", data[start:end])
    ]
    meta = {name: (first, last) for name, first, last in _boxes(data, start + 4, end)}
    width, height = max([*sizes, *_canvas_sizes(data, meta)], key=lambda size: size[0] * size[1])
    frames = _movie_frames(data, *boxes[b"moov"]) if b"moov" in boxes else 1
    return Header(kind, width, height, frames, orientation=_item_orientation(data, meta))


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start and end of the content) of the first ISO boxes between two positions."""
    for _ in range(_MAX_BOXES):
        if start + 8 > end:
            return
        length, name = struct.unpack(">I4s", data[start : start + 8])
        head = 8
        if length == 1:
            length, head = struct.unpack(">Q", data[start + 8 : start + 16])[0], 16
        stop = min(start + length, end) if length else end
        yield name, start + head, stop
        start = max(stop, start + head)


_Ranges = dict[bytes, tuple[int, int]]
"""Start and end of the content of ISO boxes, by name."""


def _canvas_sizes(data: bytes, meta: _Ranges) -> Iterator[tuple[int, int]]:
    """Sizes of grids and overlays of items: a decoder allocates them, whatever size `ispe` declares."""
    if not {b"iinf", b"iloc"} <= meta.keys():
        return
    kinds: dict[int, bytes] = {}
    first, last = meta[b"iinf"]
    for _, at, _ in _boxes(data, first + (8 if data[first] else 6), last):
        id_end = at + (6 if data[at] < 3 else 8)
        kind = data[id_end + 2 : id_end + 6]
        if kind in (b"grid", b"iovl"):
            kinds[int.from_bytes(data[at + 4 : id_end])] = kind
    positions = [(item, at) for item, at in _item_positions(data, meta) if item in kinds]
    if kinds.keys() - dict(positions).keys():
        raise ValueError("a grid or an overlay without content")
    for item, at in positions:
        start = at + (4 if kinds[item] == b"grid" else 10)  # after rows and columns, or the background
        form = ">II" if data[at + 1] & 1 else ">HH"
        yield struct.unpack(form, data[start : start + struct.calcsize(form)])


def _item_positions(data: bytes, meta: _Ranges) -> Iterator[tuple[int, int]]:
    """(number, position in the file) of all items whose content is in one piece, from the `iloc` box."""
    at, end = meta[b"iloc"]
    version, sizes = data[at], (data[at + 4] >> 4, data[at + 4] & 15, data[at + 5] >> 4, data[at + 5] & 15)
    offset_bytes, length_bytes, base_bytes, index_bytes = sizes if version else (*sizes[:3], 0)
    at += 6

    def number(size: int) -> int:
        nonlocal at
        at += size
        return int.from_bytes(data[at - size : at])

    for _ in range(min(number(2 if version < 2 else 4), _MAX_BOXES)):
        item = number(2 if version < 2 else 4)
        method = number(2) & 15 if version else 0
        number(2)  # the file, always this one
        position, pieces = number(base_bytes), number(2)
        number(index_bytes)
        position += number(offset_bytes) + (meta[b"idat"][0] if method == 1 else 0)
        at += length_bytes + (pieces - 1) * (index_bytes + offset_bytes + length_bytes)
        if pieces == 1 and at <= end:
            yield item, position


def _movie_frames(data: bytes, start: int, end: int) -> int:
    """Number of samples of the first track."""
    position = data.find(b"stsz", start, end)
    return max(int.from_bytes(data[position + 12 : position + 16]), 1) if position >= 0 else 1


# Exif orientation by the anticlockwise quarter turns of `irot`, then the mirror axis of `imir`.
_ITEM_ORIENTATIONS = {
    (0, None): 1, (0, 1): 2, (2, None): 3, (0, 0): 4, (1, 0): 5, (3, None): 6, (3, 0): 7, (1, None): 8,
    (2, 0): 2, (2, 1): 4, (3, 1): 5, (1, 1): 7,
}  # fmt: skip


def _item_orientation(data: bytes, meta: _Ranges) -> int:
    """Orientation by the properties `irot` and `imir` of the primary item, as an Exif tag."""
    if not {b"pitm", b"iprp"} <= meta.keys():
        return 1
    item = data[slice(*meta[b"pitm"])]
    primary = int.from_bytes(item[4 : 8 if item[0] else 6])
    properties: list[tuple[bytes, int]] = []
    quarters, mirror = 0, None
    for name, first, last in _boxes(data, *meta[b"iprp"]):
        if name == b"ipco":
            properties = [(kind, data[at]) for kind, at, _ in _boxes(data, first, last)]
        elif name == b"ipma":
            for index in _associations(data[first:last], primary):
                kind, value = properties[index - 1] if 0 < index <= len(properties) else (b"", 0)
                quarters = value & 3 if kind == b"irot" else quarters
                mirror = value & 1 if kind == b"imir" else mirror
    return _ITEM_ORIENTATIONS[quarters, mirror]


def _associations(box: bytes, item: int) -> Iterator[int]:
    """Numbers of the properties of an item, from the content of an `ipma` box."""
    id_bytes, index_bytes = (4 if box[0] else 2), (2 if box[3] & 1 else 1)
    position = 8
    for _ in range(min(int.from_bytes(box[4:8]), _MAX_BOXES)):
        owner = int.from_bytes(box[position : position + id_bytes])
        position += id_bytes + 1
        stop = position + index_bytes * box[position - 1]
        if owner == item:
            mask = 0x7FFF if index_bytes == 2 else 0x7F
            for at in range(position, stop, index_bytes):
                yield int.from_bytes(box[at : at + index_bytes]) & mask
        position = stop


# The log level is global to the process: the first block to enter lowers it, the last to leave restores it.
_LOCK = threading.Lock()
_blocks, _previous_level = 0, 0


@contextmanager
def silence_opencv() -> Iterator[None]:
    """Suppress OpenCV's log messages, from all threads, while the block runs."""
    global _blocks, _previous_level
    with _LOCK:
        if not _blocks:
            _previous_level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        _blocks += 1
    try:
        yield
    finally:
        with _LOCK:
            _blocks -= 1
            if not _blocks:
                cv2.utils.logging.setLogLevel(_previous_level)


class Failure(StrEnum):
    """The kinds of failure to acquire; the reason next to it states what was found and what to do."""

    UNREADABLE = "unreadable"
    """The file cannot be opened or read."""
    EMPTY = "empty"
    """The file has no content."""
    NOT_AN_IMAGE = "not_an_image"
    """The file is not in a known image format."""
    UNSUPPORTED = "unsupported"
    """An image that no installed decoder can read."""
    TRUNCATED = "truncated"
    """An image that is incomplete or damaged."""
    TOO_LARGE = "too_large"
    """The image exceeds the limit on pixels or bytes; it is not decoded."""
    NO_FACE = "no_face"
    """A valid image in which no face was found."""
    TURNED = "turned"
    """The face is upside down or on its side, and the file has no orientation tag that corrects it."""


class PhotoError(ImageError):
    """A photo that cannot be used; ``kind`` is the kind of failure."""

    def __init__(self, kind: Failure, where: str, problem: str, hint: str = "") -> None:
        super().__init__(where, problem, hint)
        self.kind = kind

    def __reduce__(self) -> tuple[type["PhotoError"], tuple[Failure, str, str, str]]:  # type: ignore[override]
        return type(self), (self.kind, self.where, self.problem, self.hint)


MAX_PIXELS = 200_000_000
"""Larger images are rejected before they are decoded: the largest phone cameras have 200 megapixels."""

TURNED_BY_TAG = "turned by its Exif tag"

# Maximum number of decoded pixels (75 MB): in a photo of 100 megapixels, a face 100 px wide becomes 50 px.
_MAX_DECODED = 25_000_000
_MAX_BYTES = 1 << 30
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r", b"RIFF", b"GIF8", b"II*\0", b"MM\0*", b"BM")
_SIGNATURES_AT_4 = (b"ftypavif", b"ftypheic", b"ftypmif1", b"jP  \r\n\x87\n")
_LARGE_IMAGE_LOCK = threading.Lock()  # formats without reduced decoding: one large image at a time


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded photo.

    Attributes:
        name: path of the photo, or the name given by the caller.
        pixels: (height, width, 3) RGB, upright, possibly smaller than the original.
        scale: pixels per pixel of the original: 1, or 1/2, 1/4, 1/8 for a very large photo.
        notes: adjustments made in decoding: "turned by its Exif tag", "first of 12 frames", "16 bits reduced
            to 8", "CMYK", "decoded at 1/2 of its size".
        size: (width, height) of the upright original.
    """

    name: str
    pixels: NDArray[np.uint8]
    scale: float = 1.0
    notes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)


def read_photo(
    source: str | Path | bytes, *, name: str = "", max_pixels: int = MAX_PIXELS, decoded: int = _MAX_DECODED
) -> Photo:
    """Read and decode one photo: JPEG, PNG, WebP, TIFF, GIF, BMP, PNM, AVIF, JPEG 2000; HEIC with the extra
    ``heic``.

    The size is read from the header and checked before anything is decoded. Images of more than ``decoded``
    pixels are reduced to 1/2, 1/4 or 1/8 of their size (a JPEG is never decoded in full). Exif orientation is
    applied; grey, CMYK, CIELAB, palettes and 16 bits are converted to 8-bit RGB; transparency is dropped; of
    an animation or a file of several pages the first one is used. ``notes`` lists these adjustments.

    Args:
        source: a path, or the bytes of the file.
        name: name of the photo; by default its path.
        max_pixels: a larger image is rejected.
        decoded: maximum number of pixels to decode.

    Raises:
        PhotoError: unreadable, empty, not an image, unsupported, truncated or too large; see ``kind``.
        InputError: ``source`` is neither a path nor bytes.

    Example:
        >>> photo = read_photo(b"P5 2 1 255 " + bytes([0, 255]), name="dots")
        >>> photo.pixels.tolist(), photo.size, photo.notes
        ([[[0, 0, 0], [255, 255, 255]]], (2, 1), ())
    """
    if not isinstance(source, str | os.PathLike | bytes):
        raise InputError(f"expected a path, or a file's content as bytes, got {type(source).__name__}")
    name = name or ("photo" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else _read_bytes(Path(source), name)
    if not data:
        raise PhotoError(Failure.EMPTY, name, "the file is empty.", "Copy it again.")
    header = _checked_header(data, name, max_pixels)
    pixels = header.width * header.height
    reduce = next((by for by in (1, 2, 4) if pixels <= decoded * by * by), 8)
    image, size = _decode(data, name, header, reduce)
    return Photo(name, image, 1 / reduce, _notes(header, reduce), size)


def _read_bytes(path: Path, name: str) -> bytes:
    try:
        if not path.is_file():  # reading a device or a pipe might never end
            problem = "no such file"
            if path.exists():
                problem = "it is a folder" if path.is_dir() else "it is not a regular file"
            raise PhotoError(Failure.UNREADABLE, name, f"cannot be read: {problem}.")
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise PhotoError(
                Failure.TOO_LARGE,
                name,
                f"{size} bytes, more than the limit of {_MAX_BYTES}.",
                "Save it smaller.",
            )
        return path.read_bytes()
    except PhotoError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise PhotoError(Failure.UNREADABLE, name, f"cannot be read: {reason}.") from error


def _checked_header(data: bytes, name: str, max_pixels: int) -> Header:
    header = read_header(data)
    if header is None:
        if data.startswith(_SIGNATURES) or data[4:12] in _SIGNATURES_AT_4:
            raise PhotoError(
                Failure.TRUNCATED, name, f"its header is incomplete ({len(data)} bytes).", "Copy it again."
            )
        raise PhotoError(
            Failure.NOT_AN_IMAGE, name, f"not an image: {len(data)} bytes starting with {data[:12]!r}."
        )
    pixels = header.width * header.height
    if pixels > max_pixels:
        raise PhotoError(
            Failure.TOO_LARGE,
            name,
            f"{header.width}x{header.height} = {pixels / 1e6:.0f} megapixels, more than the limit of "
            f"{max_pixels / 1e6:g}; not decoded.",
            "Save it smaller, or raise the limit.",
        )
    if header.bits > 16:
        raise PhotoError(
            Failure.UNSUPPORTED,
            name,
            f"{header.kind} with {header.bits} bits per sample, more than the limit of 16.",
            "Save it with 8 bits.",
        )
    return header


def _decode(data: bytes, name: str, header: Header, reduce: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """(upright pixels at reduced size, (width, height) of the full image)."""
    full = reduce > 1 and header.kind != "JPEG"
    try:
        with silence_opencv(), _LARGE_IMAGE_LOCK if full else nullcontext():
            if header.kind == "HEIC":
                return _decode_heic(data, name, reduce)
            # OpenCV ignores the rotation and the mirroring of an AVIF.
            by_item = header.kind == "AVIF" and header.orientation > 1
            image = decode_image(data, name, upright=not by_item, reduce=reduce)
            if by_item:
                image = _upright(image, header.orientation)
    except PhotoError:
        raise
    except ImageError as error:
        raise PhotoError(Failure.TRUNCATED, name, error.problem, error.hint) from error
    width, height = image.shape[1], image.shape[0]
    if reduce == 1:
        return image, (width, height)
    # The sides of the reduced image are rounded, so use the header's size, swapped if the image was rotated.
    turned = (header.width > header.height) != (width > height)
    return image, (header.height, header.width) if turned else (header.width, header.height)


def _upright(image: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Rotate and mirror stored pixels by an Exif orientation, 1 to 8."""
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    if orientation > 4:
        image = image.transpose(1, 0, 2)
    return np.ascontiguousarray(image[rows, columns])


def _decode_heic(data: bytes, name: str, reduce: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    try:
        import pillow_heif
    except ImportError as error:
        raise PhotoError(
            Failure.UNSUPPORTED,
            name,
            "HEIC needs a decoder that is not installed:",
            'pip install "spherecf[heic]"',
        ) from error
    try:
        image = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
        pixels = np.asarray(image)
    except Exception as error:  # for a damaged file the decoder may raise anything, e.g. IndexError
        raise PhotoError(
            Failure.TRUNCATED, name, f"the HEIC file cannot be decoded ({error}).", "Copy it again."
        ) from error
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, 2)
    rgb = np.ascontiguousarray(pixels[..., :3], np.uint8)
    height, width = rgb.shape[:2]  # the size in the header is the coded size, before cropping
    if reduce > 1:
        side = (-(-width // reduce), -(-height // reduce))
        rgb = np.asarray(cv2.resize(rgb, side, interpolation=cv2.INTER_AREA), np.uint8)
    return rgb, (width, height)


def _notes(header: Header, reduce: int) -> tuple[str, ...]:
    unit = "pages" if header.kind == "TIFF" else "frames"
    notes = {
        TURNED_BY_TAG: header.orientation > 1,
        f"first of {header.frames} {unit}": header.frames > 1,
        f"{header.bits} bits reduced to 8": header.bits > 8,
        "CMYK": header.cmyk,
        f"decoded at 1/{reduce} of its size": reduce > 1,
    }
    return tuple(note for note, applies in notes.items() if applies)
