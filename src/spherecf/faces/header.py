"""The header of a picture file, read without decoding a pixel: format, size, frames, bits, orientation."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

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
    return header if header is not None and header.width > 0 and header.height > 0 else None


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
