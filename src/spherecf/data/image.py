"""Decode one image file to an array: always RGB, always uint8, never partly decoded."""

import re
from typing import Literal

import cv2
import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from spherecf.common.arrays import check_rgb
from spherecf.errors import FileFormatError, InputError

# IGNORE_ORIENTATION: an aligned crop is already upright; a left-over Exif tag must not rotate it.
_AS_STORED = cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}

_QUALITY_OPTIONS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe"), cv2.IMWRITE_JPEG_QUALITY),
    ".webp": cv2.IMWRITE_WEBP_QUALITY,
}

_JPEG_MARKER = re.compile(  # markers followed by a length, and the end marker FF D9
    rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL
)
_JPEG_FRAME = re.compile(rb"\xff[\xc0-\xc2]\x00[\x0b\x11\x14]\x08(..)(..)", re.DOTALL)
_JPEG, _PNG, _BMP = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM"
# (tag, value) of a TIFF for which libtiff changes the stored colours, and the value for which it does not: it
# multiplies them by alpha, and converts CIELAB for a display that is not sRGB.
_UNASSOCIATED_ALPHA, _CIELAB = (338, 2), (262, 8)
_AS_STORED_VALUES = {_UNASSOCIATED_ALPHA: 0, _CIELAB: 2}

IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".dib", ".pgm", ".ppm", ".pbm", ".pnm", ".webp", ".tif", ".tiff",
    ".jp2",
))  # fmt: skip


class ImageError(FileFormatError):
    """One image cannot be read or decoded; ``where`` is its source and key.

    Long jobs may skip the image, but must count and list it (`spherecf.data.Skipped`).
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
    """Decode JPEG, PNG, BMP, PGM/PPM, WebP, TIFF and any other format that OpenCV reads to RGB uint8.

    Grey images become three equal channels, CMYK and palettes become RGB, 16 bits are reduced to the high 8,
    alpha is dropped (colours that a TIFF stores multiplied by alpha stay so). A truncated file is rejected:
    decoders may fill the missing part with grey, and a half-grey face is worse than none. Damage in the
    middle of a JPEG of full length cannot be detected.

    Args:
        data: the encoded file.
        where: name of the image in error messages, e.g. ``"lfw:AJ_Cook/AJ_Cook_0001.jpg"``.
        size: (height, width) that the image must have; None accepts any.
        upright: rotate the image by its Exif tag, as photos need and aligned crops do not.
        reduce: decode at 1/2, 1/4 or 1/8 of the size.

    Raises:
        ImageError: the file is empty, truncated, not an image, or of another size.
        InputError: ``size`` or ``reduce`` is none of the values above.

    Example:
        >>> decode_image(b"P5 2 1 255 " + bytes([0, 255])).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    if reduce not in tuple(_REDUCED):
        raise InputError(f"reduce: expected 1, 2, 4 or 8, got {reduce!r}")
    if size is not None and np.shape(size) != (2,):
        raise InputError(f"size: expected (height, width), got {size!r}")
    if not data:
        raise ImageError(where, "expected an encoded image, but it is empty (0 bytes).")
    problem = _truncation(data)
    if problem:
        raise ImageError(where, f"truncated image ({len(data)} bytes): {problem}.", "Copy the file again.")
    try:
        # Only JPEG is decoded at a reduced size. OpenCV would reduce other formats afterwards, and squash a
        # turned TIFF by using its sides before the rotation.
        reduced = reduce if data.startswith(_JPEG) else 1
        flags = _REDUCED[reduced] | (0 if upright else _AS_STORED)
        stored, replaced = _with_stored_colours(data)
        image = cv2.imdecode(np.frombuffer(stored, np.uint8), flags)
    except cv2.error as error:  # damaged headers, absurd dimensions
        raise ImageError(where, f"not a decodable image ({len(data)} bytes): {error.err}.") from error
    if image is None or image.size == 0:
        raise ImageError(where, f"not an image: {len(data)} bytes starting with {data[:12]!r}, or damaged.")
    if _CIELAB in replaced:  # a and b are signed in a TIFF, and have an offset of 128 in OpenCV
        image = cv2.cvtColor(image[..., ::-1] ^ np.array([0, 128, 128], np.uint8), cv2.COLOR_LAB2BGR)
    if reduced != reduce:
        sides = (max(image.shape[1] // reduce, 1), max(image.shape[0] // reduce, 1))
        image = cv2.resize(image, sides, interpolation=cv2.INTER_LINEAR_EXACT)
    if size is not None and image.shape[:2] != tuple(size):
        got, expected = f"{image.shape[0]}x{image.shape[1]}", f"{size[0]}x{size[1]}"
        raise ImageError(
            where, f"expected an image of {expected} (height x width), got {got}.", "Align it first."
        )
    # IMREAD_COLOR_RGB would be shorter, but returns BGR for an AVIF with an alpha channel.
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def encode_image(
    image: UInt8[np.ndarray, "height width 3"], suffix: str = ".png", quality: int = 95
) -> bytes:
    """Encode an RGB image; ``.png`` is lossless, ``quality`` (0 to 100) applies to JPEG and ``.webp``.

    Raises:
        InputError: the image is not uint8 RGB, or OpenCV has no encoder for ``suffix``.

    Example:
        >>> grey = np.full((4, 4, 3), 128, np.uint8)
        >>> np.array_equal(decode_image(encode_image(grey)), grey)
        True
    """
    check_rgb(image)
    option = _QUALITY_OPTIONS.get(suffix.lower())
    settings = [] if option is None else [option, quality]
    try:
        succeeded, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    except cv2.error as error:
        raise InputError(f"cannot encode as {suffix!r} ({error.err}); use .png or .jpg") from error
    if not succeeded:  # e.g. JPEG 2000 for a very small image
        raise InputError(
            f"cannot encode {image.shape[1]}x{image.shape[0]} px as {suffix!r}; use .png or .jpg"
        )
    return data.tobytes()


def image_suffix(data: bytes) -> str:
    """``.jpg`` or ``.png``, by the first bytes; empty for any other format.

    Example:
        >>> image_suffix(encode_image(np.zeros((2, 2, 3), np.uint8), ".jpg"))
        '.jpg'
    """
    if data.startswith(_JPEG):
        return ".jpg"
    return ".png" if data.startswith(_PNG) else ""


def _with_stored_colours(data: bytes) -> tuple[bytes, set[tuple[int, int]]]:
    """(a TIFF that libtiff decodes to its stored colours, the tags replaced for that); others unchanged."""
    replaced: set[tuple[int, int]] = set()
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return data, replaced
    order: Literal["little", "big"] = "little" if data.startswith(b"II") else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], order)

    directory = number(4, 4)
    for entry in range(directory + 2, directory + 2 + 12 * number(directory, 2), 12):
        tag = (number(entry, 2), number(entry + 8, 2))
        if tag in _AS_STORED_VALUES and tag not in replaced:
            replaced.add(tag)
            data = data[: entry + 8] + _AS_STORED_VALUES[tag].to_bytes(2, order) + data[entry + 10 :]
    return data, replaced


def _truncation(data: bytes) -> str:
    """Why a file of a known format is truncated; empty if it is not."""
    if data.startswith(_JPEG):
        if not data.endswith(b"\xff\xd9") and not _has_jpeg_end(data):
            return "the JPEG end marker FF D9 is missing"
        return _jpeg_truncation(data)
    elif data.startswith(_PNG):
        return _png_truncation(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        expected = int.from_bytes(data[4:8], "little") + 8
        if len(data) < expected:
            return f"its WebP header declares {expected} bytes"
    elif data.startswith(_BMP) and len(data) > 6:
        expected = int.from_bytes(data[2:6], "little")
        if len(data) < expected:
            return f"its BMP header declares {expected} bytes"
    return ""


def _png_truncation(png: bytes) -> str:
    """Why a PNG is shorter than its header or chunks declare; empty if it is not.

    Decoders allocate the declared memory before they read the data, so a wrong header must be found first.
    Deflate compresses by a factor of up to 1032, and a pixel takes at least one bit.
    """
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    if len(png) * 1032 * 8 < width * height:
        return f"its PNG header declares an image of {height}x{width}"
    offset = len(_PNG)
    while png[offset + 4 : offset + 8] != b"IEND":
        if offset + 8 > len(png):
            return "the PNG end chunk IEND is missing"
        if not png[offset + 4 : offset + 8].isalpha():
            return f"the PNG chunk at byte {offset} is damaged"
        length = int.from_bytes(png[offset : offset + 4], "big")
        if offset + 12 + length > len(png):
            return f"the PNG chunk at byte {offset} declares {length} bytes"
        offset += 12 + length
    return ""


def _jpeg_truncation(jpeg: bytes) -> str:
    """Why a JPEG is too short for the size in its header; empty if it is not.

    Decoders fill a frame of any declared size with grey; each 8x8 block takes at least one bit.
    """
    frame = _JPEG_FRAME.search(jpeg)
    if frame and len(jpeg) * 512 < int.from_bytes(frame[1], "big") * int.from_bytes(frame[2], "big"):
        height, width = (int.from_bytes(side, "big") for side in frame.groups())
        return f"its JPEG header declares an image of {height}x{width}"
    return ""


def _has_jpeg_end(data: bytes) -> bool:
    """Whether the first image of a JPEG file has its end marker: phones append videos and depth maps."""
    offset = 2
    while match := _JPEG_MARKER.search(data, offset):
        if match[0] == b"\xff\xd9":
            return True
        offset = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    return False


def sharpness(image: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian of the grey image: higher for fine detail, but also for noise.

    Args:
        image: uint8 RGB (height, width, 3).

    Raises:
        InputError: it is not such an image.

    Example:
        >>> flat = np.full((112, 112, 3), 90, np.uint8)
        >>> sharpness(flat)
        0.0
    """
    check_rgb(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var())
