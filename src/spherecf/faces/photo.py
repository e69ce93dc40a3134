"""One photo to upright RGB pixels, whatever it was saved as, its header read first; or the reason why not."""

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

_PNG = b"\x89PNG\r\n\x1a\n"
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


@dataclass(frozen=True)
class Header:
    """Facts from the first bytes of a picture.

    Attributes:
        kind: "JPEG", "PNG", "GIF", "WebP", "BMP", "TIFF", "PNM", "JPEG 2000", "AVIF" or "HEIC".
        width, height: in pixels as stored, before any Exif turn; of HEIC as coded: the decoder crops to the
            visible part, and what bounds its memory is the coded size.
        frames: of an animation, pages of a TIFF.
        bits: per sample.
        cmyk: four inks rather than three lights.
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
    """The header of an encoded picture; None where the format is unknown or the header is not whole.

    Example:
        >>> read_header(b"P5 640 480 255 ")
        Header(kind='PNM', width=640, height=480, frames=1, bits=8, cmyk=False, orientation=1)
    """
    try:
        header = _read(data)
    except (struct.error, IndexError, KeyError, ValueError):
        return None
    # No format counts beyond 32 bits but PNM, which writes its numbers as text.
    return header if header and 0 < header.width < 2**32 and 0 < header.height < 2**32 else None


def _read(data: bytes) -> Header | None:
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(_PNG):
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[:6] in (b"GIF87a", b"GIF89a"):
        width, height = struct.unpack("<HH", data[6:10])
        return Header("GIF", width, height, _gif_frames(data))
    if data[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(data)
    if data[4:8] == b"ftyp":
        return _isobmff(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    if data[4:12] == b"jP  \r\n\x87\n":
        at = data.index(b"ihdr") + 4
        height, width, _, bits = struct.unpack(">IIHB", data[at : at + 11])
        return Header("JPEG 2000", width, height, bits=(bits & 127) + 1)
    pnm = re.match(
        rb"P([1-6])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:(?:\s|#[^\n]*\n)+(\d+))?\s", data
    )
    if pnm is None:
        return None
    deep = pnm[1] not in b"14" and int(pnm[4] or 0) > 255
    return Header("PNM", int(pnm[2]), int(pnm[3]), bits=16 if deep else 8)


def _jpeg(data: bytes) -> Header | None:
    at, orientation = 2, 1
    while True:
        at = data.index(b"\xff", at)
        while data[at] == 0xFF:  # any number of fill bytes
            at += 1
        marker = data[at]
        at += 1
        if marker in (0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            continue  # markers without a length
        if marker in (0xD9, 0xDA):
            return None  # the picture begins before its size is stated
        (length,) = struct.unpack(">H", data[at : at + 2])
        if marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
            orientation = _orientation(data[at + 8 : at + length])
        if marker in _SOF:
            bits, height, width, channels = struct.unpack(">BHHB", data[at + 2 : at + 8])
            return Header("JPEG", width, height, 1, bits, channels == 4, orientation)
        at += length


def _png(data: bytes) -> Header:
    width, height, bits = struct.unpack(">IIB", data[16:25])
    frames = orientation = 1
    at = 8
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if name == b"acTL":
            (frames,) = struct.unpack(">I", data[at + 8 : at + 12])
        elif name == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + length])
        at += 12 + length
    return Header("PNG", width, height, frames, max(bits, 8), False, orientation)


def _webp(data: bytes) -> Header | None:
    size, frames, orientation = (0, 0), 0, 1
    at = 12
    while at + 8 <= len(data):
        name, length = struct.unpack("<4sI", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
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
        at += 8 + length + length % 2
    return Header("WebP", *size, max(frames, 1), 8, False, orientation)


def _gif_frames(data: bytes) -> int:
    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 128 else 0

    def blocks(at: int) -> int:
        while data[at]:
            at += 1 + data[at]
        return at + 1

    at, frames = 13 + table(data[10]), 0
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C:  # a picture
            frames += 1
            at += 10 + table(data[at + 9]) + 1
        else:  # an extension
            at += 2
        try:
            at = blocks(at)
        except IndexError:  # it stops early: the decoder will say so
            break
    return max(frames, 1)


def _bmp(data: bytes) -> Header:
    if struct.unpack("<I", data[14:18])[0] == 12:
        return Header("BMP", *struct.unpack("<HH", data[18:22]))
    width, height = struct.unpack("<ii", data[18:26])
    return Header("BMP", width, abs(height))


def _tiff(data: bytes) -> Header:
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
    """Tag to first value of every directory of a TIFF structure, whole numbers only."""
    order = "<" if data[:2] == b"II" else ">"
    (at,) = struct.unpack(order + "I", data[4:8])
    seen: set[int] = set()
    while at and at not in seen and len(seen) < 10_000:
        seen.add(at)
        (count,) = struct.unpack(order + "H", data[at : at + 2])
        values_by_tag = {}
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack(order + "HHI", data[entry : entry + 8])
            width = {1: "B", 3: "H", 4: "I"}.get(kind)
            if width is None:
                continue
            size = struct.calcsize(width)
            where = entry + 8
            if values * size > 4:
                (where,) = struct.unpack(order + "I", data[where : where + 4])
            if where + size <= len(data):
                (values_by_tag[tag],) = struct.unpack(order + width, data[where : where + size])
        yield values_by_tag
        end = at + 2 + 12 * count
        (at,) = struct.unpack(order + "I", data[end : end + 4])


def _isobmff(data: bytes) -> Header | None:
    (length,) = struct.unpack(">I", data[:4])
    brands = {data[at : at + 4] for at in (8, *range(16, min(length, 256), 4))}
    if not brands & (_HEIC_BRANDS | {b"avif", b"avis"}):
        return None  # a film
    kind = "AVIF" if brands & {b"avif", b"avis"} else "HEIC"
    sizes = [  # of the picture, its tiles and its thumbnail: the largest is the picture
        struct.unpack(">II", data[match.end() + 4 : match.end() + 12])
        for match in re.finditer(b"ispe", data[: 1 << 20])
    ]
    return Header(kind, *max(sizes, key=lambda size: size[0] * size[1]))


_LOCK = threading.Lock()  # the log level is the process's: the first to enter lowers it, the last restores it
_inside, _before = 0, 0


@contextmanager
def silence_opencv() -> Iterator[None]:
    """No log lines of OpenCV while the block runs, from any thread."""
    global _inside, _before
    with _LOCK:
        if not _inside:
            _before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside:
                cv2.utils.logging.setLogLevel(_before)


class Failure(StrEnum):
    """Failure to acquire, by kind; the reason beside it states what was found and what to do."""

    UNREADABLE = "unreadable"
    """The file cannot be opened or read."""
    EMPTY = "empty"
    """There are no bytes."""
    NOT_AN_IMAGE = "not_an_image"
    """The bytes are of no picture format that is known here."""
    UNSUPPORTED = "unsupported"
    """A picture, but nothing installed decodes it."""
    TRUNCATED = "truncated"
    """A picture that stops early or is damaged."""
    TOO_LARGE = "too_large"
    """More pixels than the limit; not decoded."""
    NO_FACE = "no_face"
    """A sound picture in which no face was found."""
    TURNED = "turned"
    """The face is upside down or lies on its side, and the file has no orientation tag for it."""


class PhotoError(ImageError):
    """A photo that cannot be used; ``kind`` is the reason in one word."""

    def __init__(self, kind: Failure, where: str, problem: str, hint: str = "") -> None:
        super().__init__(where, problem, hint)
        self.kind = kind

    def __reduce__(self) -> tuple[type["PhotoError"], tuple[Failure, str, str, str]]:  # type: ignore[override]
        return type(self), (self.kind, self.where, self.problem, self.hint)


MAX_PIXELS = 200_000_000
"""Larger pictures are refused before they are decoded: the largest cameras of phones make 200 megapixels."""

TURNED_BY_TAG = "turned by its Exif tag"

_DECODED = 25_000_000  # pixels kept at most: 75 MB; a face 100 px wide in a photo of 100 megapixels keeps 50
_MAX_BYTES = 1 << 30
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r", b"RIFF", b"GIF8", b"II*\0", b"MM\0*", b"BM")
_LATER = (b"ftypavif", b"ftypheic", b"ftypmif1", b"jP  \r\n\x87\n")
_LARGE = threading.Lock()  # formats that decode only in full: one large picture at a time


@dataclass(frozen=True, eq=False)
class Photo:
    """A decoded photo.

    Attributes:
        name: its path, or what the caller calls it.
        pixels: (height, width, 3) RGB, upright, perhaps smaller than the original.
        scale: pixels per pixel of the original: 1, or 1/2, 1/4, 1/8 of a huge picture.
        notes: what was done to it, in words: "turned by its Exif tag", "first of 12 frames",
            "16 bits reduced to 8", "CMYK", "decoded at 1/2 of its size".
        size: (width, height) of the original, upright.
    """

    name: str
    pixels: NDArray[np.uint8]
    scale: float = 1.0
    notes: tuple[str, ...] = ()
    size: tuple[int, int] = (0, 0)


def read_photo(
    source: str | Path | bytes, *, name: str = "", max_pixels: int = MAX_PIXELS, decoded: int = _DECODED
) -> Photo:
    """Read and decode one photo: JPEG, PNG, WebP, TIFF, GIF, BMP, PNM, AVIF, JPEG 2000; HEIC with the extra.

    The size is read from the header and checked before anything is decoded. Pictures of more than ``decoded``
    pixels are decoded at a half, a quarter or an eighth (JPEG without ever holding the whole). Exif
    orientation is applied; grey, CMYK, palettes and 16 bits become RGB of 8 bits, transparency is dropped; of
    an animation or a file of many pages the first is taken. ``notes`` lists all of it.

    Args:
        source: a path, or the bytes of the file.
        name: what to call it; by default the path.
        max_pixels: a larger picture is refused.
        decoded: maximum number of pixels to keep.

    Raises:
        PhotoError: unreadable, empty, no image, unsupported, truncated or too large; ``kind`` tells which.

    Example:
        >>> photo = read_photo(b"P5 2 1 255 " + bytes([0, 255]), name="dots")
        >>> photo.pixels.tolist(), photo.size, photo.notes
        ([[[0, 0, 0], [255, 255, 255]]], (2, 1), ())
    """
    name = name or ("photo" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else _bytes(Path(source), name)
    if not data:
        raise PhotoError(Failure.EMPTY, name, "the file is empty.", "Copy it again.")
    header = _checked(data, name, max_pixels)
    pixels = header.width * header.height
    reduce = next((by for by in (1, 2, 4) if pixels <= decoded * by * by), 8)
    image, size = _decoded(data, name, header, reduce)
    return Photo(name, image, 1 / reduce, _notes(header, reduce), size)


def _bytes(path: Path, name: str) -> bytes:
    try:
        if not path.is_file():  # also a device or a pipe, which would never end
            problem = "is a folder" if path.is_dir() else "is no file" if path.exists() else "no such file"
            raise PhotoError(Failure.UNREADABLE, name, f"cannot be read: {problem}.")
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise PhotoError(Failure.TOO_LARGE, name, f"{size} bytes, more than the limit of {_MAX_BYTES}.")
        return path.read_bytes()
    except PhotoError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path no system takes
        reason = getattr(error, "strerror", None) or str(error)
        raise PhotoError(Failure.UNREADABLE, name, f"cannot be read: {reason}.") from error


def _checked(data: bytes, name: str, max_pixels: int) -> Header:
    header = read_header(data)
    if header is None:
        if data.startswith(_BEGINNINGS) or data[4:12] in _LATER:
            raise PhotoError(Failure.TRUNCATED, name, f"{len(data)} bytes, its header is not whole.")
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
            Failure.UNSUPPORTED, name, f"{header.kind} with {header.bits} bits per sample.", "Save it with 8."
        )
    return header


def _decoded(
    data: bytes, name: str, header: Header, reduce: int
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """The upright pixels, reduced, and (width, height) of the whole picture."""
    whole = reduce > 1 and header.kind != "JPEG"
    try:
        with silence_opencv(), _LARGE if whole else nullcontext():
            if header.kind == "HEIC":
                return _heic(data, name, reduce)
            image = decode_image(data, name, upright=True, reduce=reduce)
    except PhotoError:
        raise
    except ImageError as error:
        raise PhotoError(Failure.TRUNCATED, name, error.problem, error.hint) from error
    width, height = image.shape[1], image.shape[0]
    if reduce == 1:
        return image, (width, height)
    # A reduced side is rounded, so the size is the header's, which does not know which way is up.
    turned = (header.width > header.height) != (width > height)
    return image, (header.height, header.width) if turned else (header.width, header.height)


def _heic(data: bytes, name: str, reduce: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    try:
        import pillow_heif
    except ImportError as error:
        raise PhotoError(
            Failure.UNSUPPORTED, name, "HEIC, which needs a decoder:", 'pip install "spherecf[heic]"'
        ) from error
    try:
        image = pillow_heif.open_heif(data, convert_hdr_to_8bit=True)
        pixels = np.asarray(image)
    except Exception as error:  # damaged files raise whatever they hit in there, IndexError among it
        raise PhotoError(Failure.TRUNCATED, name, f"HEIC that cannot be decoded ({error}).") from error
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, 2)
    rgb = np.ascontiguousarray(pixels[..., :3], np.uint8)
    height, width = rgb.shape[:2]  # the header's size is that of the coded blocks, before they are cropped
    if reduce > 1:
        side = (-(-width // reduce), -(-height // reduce))
        rgb = np.asarray(cv2.resize(rgb, side, interpolation=cv2.INTER_AREA), np.uint8)
    return rgb, (width, height)


def _notes(header: Header, reduce: int) -> tuple[str, ...]:
    what = "pages" if header.kind == "TIFF" else "frames"
    notes = {
        TURNED_BY_TAG: header.orientation > 1,
        f"first of {header.frames} {what}": header.frames > 1,
        f"{header.bits} bits reduced to 8": header.bits > 8,
        "CMYK": header.cmyk,
        f"decoded at 1/{reduce} of its size": reduce > 1,
    }
    return tuple(note for note, true in notes.items() if true)
