"""One encoded image to one array: always RGB, always uint8, never half decoded."""

import re

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from spherecf.errors import FileFormatError, InputError

# IGNORE_ORIENTATION: an aligned crop is already upright; turning it by a left-over Exif tag would spoil it.
_AS_STORED = cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}  # with IMREAD_COLOR_RGB they are not grey, and unlike IMREAD_REDUCED_COLOR_* not BGR either

_JPEG_MARKER = re.compile(
    rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL
)  # those that a length follows, and FF D9
_JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc2]\x00[\x0b\x11\x14]\x08(..)(..)", re.DOTALL)
_JPEG, _PNG, _BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"

IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".bmp",
        ".dib",
        ".pgm",
        ".ppm",
        ".pbm",
        ".pnm",
        ".webp",
        ".tif",
        ".tiff",
        ".jp2",
    )
)


class ImageError(FileFormatError):
    """One image cannot be read or decoded; ``where`` is its source and key.

    Long jobs may skip it, but must count and list it (`spherecf.data.Skipped`).
    """

    def __init__(self, where: str, problem: str, hint: str = "") -> None:
        super().__init__(where, problem, hint)
        self.where = where

    def __reduce__(self) -> tuple[type["ImageError"], tuple[str, str, str]]:
        return type(self), (self.where, self.problem, self.hint)


def decode_image(
    data: bytes,
    where: str = "image",
    size: tuple[int, int] | None = None,
    *,
    upright: bool = False,
    reduce: int = 1,
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode JPEG, PNG, BMP, PGM/PPM, WebP, TIFF and what else OpenCV reads into RGB uint8.

    Grey becomes three equal channels, CMYK and palettes become RGB, 16 bits become the high 8, alpha is
    dropped. A truncated file is refused: decoders may fill the missing part with grey, and a half-grey face
    is worse than none. Damage in the middle of a JPEG of full length cannot be seen.

    Args:
        data: the encoded file.
        where: what to call it in an error, say ``"lfw:AJ_Cook/AJ_Cook_0001.jpg"``.
        size: (height, width) that the picture must have; None accepts any.
        upright: turn it by its Exif tag, which photos need and crops must not have.
        reduce: decode at 1/2, 1/4 or 1/8 of the size.

    Raises:
        ImageError: empty, truncated, not an image, or of another size.

    Example:
        >>> decode_image(b"P5 2 1 255 " + bytes([0, 255])).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    if not data:
        raise ImageError(where, "expected an encoded image, got no bytes at all.")
    problem = _truncation(data)
    if problem:
        raise ImageError(where, f"truncated image ({len(data)} bytes): {problem}.", "Copy the file again.")
    try:
        flags = cv2.IMREAD_COLOR_RGB | _REDUCED[reduce] | (0 if upright else _AS_STORED)
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # damaged headers, absurd dimensions
        raise ImageError(where, f"not a decodable image ({len(data)} bytes): {error.err}.") from error
    if image is None or image.size == 0:
        raise ImageError(where, f"not an image: {len(data)} bytes starting with {data[:12]!r}, or damaged.")
    if size is not None and image.shape[:2] != tuple(size):
        got, wanted = f"{image.shape[0]}x{image.shape[1]}", f"{size[0]}x{size[1]}"
        raise ImageError(
            where, f"expected a picture of {wanted} (height x width), got {got}.", "Align it first."
        )
    return np.asarray(image, dtype=np.uint8)


def encode_image(
    image: UInt8[np.ndarray, "height width 3"], suffix: str = ".png", quality: int = 95
) -> bytes:
    """Encode an RGB picture; ``.png`` is lossless, ``quality`` (0 to 100) counts for ``.jpg`` and ``.webp``.

    Raises:
        InputError: OpenCV knows no encoder for ``suffix``.

    Example:
        >>> grey = np.full((4, 4, 3), 128, np.uint8)
        >>> np.array_equal(decode_image(encode_image(grey)), grey)
        True
    """
    settings = {".jpg": [cv2.IMWRITE_JPEG_QUALITY, quality], ".webp": [cv2.IMWRITE_WEBP_QUALITY, quality]}
    try:
        done, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings.get(suffix, []))
    except cv2.error as error:
        raise InputError(f"cannot encode as {suffix!r} ({error.err}); use .png or .jpg") from error
    if not done:  # say JPEG 2000 of a very small picture
        raise InputError(
            f"cannot encode {image.shape[1]}x{image.shape[0]} px as {suffix!r}; use .png or .jpg"
        )
    return data.tobytes()


def image_suffix(data: bytes) -> str:
    """``.jpg`` or ``.png`` by the first bytes; empty for every other format.

    Example:
        >>> image_suffix(encode_image(np.zeros((2, 2, 3), np.uint8), ".jpg"))
        '.jpg'
    """
    if data.startswith(_JPEG):
        return ".jpg"
    return ".png" if data.startswith(_PNG) else ""


def _truncation(data: bytes) -> str:
    """What is missing at the end of a known format, or an empty string."""
    if data.startswith(_JPEG):
        if not data.endswith(b"\xff\xd9") and not _jpeg_ends(data):
            return "the JPEG end marker FF D9 is missing"
        return _short_of_frame(data)
    elif data.startswith(_PNG):
        return _short_of_chunks(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        expected = int.from_bytes(data[4:8], "little") + 8
        if len(data) < expected:
            return f"the WebP header promises {expected} bytes"
    elif data.startswith(_BMP) and len(data) > 6:
        expected = int.from_bytes(data[2:6], "little")
        if len(data) < expected:
            return f"the BMP header promises {expected} bytes"
    return ""


def _short_of_chunks(png: bytes) -> str:
    """Decoders take the memory that header or chunks promise before they look for the bytes.

    Deflate packs 1032 bytes into one at most, and a pixel takes a bit at least.
    """
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    if len(png) * 1032 * 8 < width * height:
        return f"the PNG header promises a picture of {height}x{width}"
    at = len(_PNG)
    while png[at + 4 : at + 8] != b"IEND":
        if at + 8 > len(png):
            return "the PNG end chunk IEND is missing"
        if not png[at + 4 : at + 8].isalpha():
            return f"a PNG chunk at byte {at} is damaged"
        length = int.from_bytes(png[at : at + 4], "big")
        if at + 12 + length > len(png):
            return f"a PNG chunk at byte {at} promises {length} bytes"
        at += 12 + length
    return ""


def _short_of_frame(jpeg: bytes) -> str:
    """Decoders fill a frame of any size with grey; each of its 8x8 blocks takes a bit at least."""
    frame = _JPEG_FRAME.search(jpeg)
    if frame and len(jpeg) * 512 < int.from_bytes(frame[1], "big") * int.from_bytes(frame[2], "big"):
        height, width = (int.from_bytes(side, "big") for side in frame.groups())
        return f"the JPEG header promises a picture of {height}x{width}"
    return ""


def _jpeg_ends(data: bytes) -> bool:
    """Whether the first picture of a JPEG has its end marker: phones append films and depth maps to it."""
    at = 2
    while match := _JPEG_MARKER.search(data, at):
        if match[0] == b"\xff\xd9":
            return True
        at = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    return False


def sharpness(image: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of the grey image: grows with fine detail, also with noise.

    Args:
        image: uint8 RGB (height, width, 3).

    Example:
        >>> flat = np.full((112, 112, 3), 90, np.uint8)
        >>> sharpness(flat)
        0.0
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())
