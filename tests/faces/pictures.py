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
