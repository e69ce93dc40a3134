"""Small real photos in many formats, made from ORL faces."""

import struct
import zlib

import cv2
import numpy as np

from spherecf.data import encode_image, orl_faces


def portrait(index: int = 0, scale: float = 2.0) -> np.ndarray:
    """One ORL face, enlarged."""
    return cv2.resize(orl_faces().image(index), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def jpeg(picture: np.ndarray) -> bytes:
    return encode_image(picture, ".jpg")


def lying_jpeg(picture: np.ndarray) -> bytes:
    """A JPEG rotated anticlockwise, with the Exif tag that corrects it."""
    lying = jpeg(cv2.rotate(picture, cv2.ROTATE_90_COUNTERCLOCKWISE))
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    tag = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    return lying[:2] + tag + lying[2:]


def turned(picture: np.ndarray, degrees: int) -> np.ndarray:
    """Rotated clockwise, as by a camera that writes no orientation tag."""
    return np.ascontiguousarray(np.rot90(picture, -degrees // 90))


def animation(suffix: str, *pictures: np.ndarray) -> bytes:
    frames = cv2.Animation()
    frames.frames = [np.ascontiguousarray(picture[..., ::-1]) for picture in pictures]
    frames.durations = [100] * len(pictures)
    return bytes(cv2.imencodeanimation(suffix, frames)[1])


def png_of_size(width: int, height: int) -> bytes:
    """A PNG header declaring a large image, followed by hardly any data: a decompression bomb."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def iso_box(name: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), name) + body


def derived_heic(
    kind: bytes, canvas: tuple[int, int], coded: bytes = b"", setup: bytes = b"", in_idat: bool = True
) -> bytes:
    """A HEIC whose image is one 64x64 tile on a canvas: a grid ("grid") or an overlay ("iovl").

    The file declares 64x64 pixels; only the content of the item has the size of the canvas. To be decodable,
    it needs a coded image with its decoder set-up, the box `hvcC`.
    """
    full = bytes(4)  # version and flags
    layout = bytes([0, 1, 0, 0]) if kind == b"grid" else bytes([0, 1, *[0] * 6, 255, 255])
    content = layout + struct.pack(">II", *canvas) + bytes(8 if kind == b"iovl" else 0)
    item = b"\2\0\0\0\0%c\0\0%s\0"
    size = iso_box(b"ispe", full, struct.pack(">II", 64, 64))

    def file(media: int) -> bytes:
        """The file, with the coded image at this position."""
        method, derived = (1, 0) if in_idat else (0, media + len(coded))
        places = [
            struct.pack(">HHHHII", 1, 0, 0, 1, media, len(coded)),
            struct.pack(">HHHHII", 2, method, 0, 1, derived, len(content)),
        ]
        meta = iso_box(
            b"meta",
            full,
            iso_box(b"hdlr", full, bytes(4), b"pict", bytes(13)),
            iso_box(b"pitm", full, b"\0\2"),
            iso_box(b"iinf", full, b"\0\2", *(iso_box(b"infe", item % i) for i in ((1, b"hvc1"), (2, kind)))),
            iso_box(b"iref", full, iso_box(b"dimg", b"\0\2\0\1\0\1")),
            iso_box(
                b"iprp",
                iso_box(b"ipco", size, setup or iso_box(b"hvcC")),
                iso_box(b"ipma", full, struct.pack(">I", 2), b"\0\1\2\1\x82", b"\0\2\1\1"),
            ),
            iso_box(b"iloc", b"\1\0\0\0\x44\0\0\2", *places),
            iso_box(b"idat", content),
        )
        return iso_box(b"ftyp", b"heic", bytes(4), b"mif1heic") + meta + iso_box(b"mdat", coded, content)

    return file(len(file(0)) - len(coded) - len(content))
