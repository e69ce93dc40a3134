"""One encoded image to one array: always RGB, always uint8, never a half-grey picture."""

import cv2
import numpy as np
from jaxtyping import UInt8

from spherecf.errors import FileFormatError, InputError

# IGNORE_ORIENTATION: an aligned crop is already upright; turning it by a left-over Exif tag would spoil it.
_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION

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
    data: bytes, where: str = "image", size: tuple[int, int] | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Decode JPEG, PNG, BMP, PGM/PPM, WebP, TIFF and what else OpenCV reads into RGB uint8.

    Grey becomes three equal channels, CMYK and palettes become RGB, 16 bits become the high 8, alpha is
    dropped. Exif orientation is not applied. A truncated file is refused: decoders may fill the missing part
    with grey, and a half-grey face is worse than none. Damage in the middle of a JPEG of full length cannot
    be seen.

    Args:
        data: the encoded file.
        where: what to call it in an error, say ``"lfw:AJ_Cook/AJ_Cook_0001.jpg"``.
        size: (height, width) that the picture must have; None accepts any. Nothing is ever resized.

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
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _FLAGS)
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
        _, data = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings.get(suffix, []))
    except cv2.error as error:
        raise InputError(f"cannot encode as {suffix!r} ({error.err}); use .png or .jpg") from error
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
        # Fast path: the end marker is last. Otherwise it must come after the last start of scan, which tells
        # a trailer behind the picture from a picture that stops early (coded data never holds FF DA).
        if not data.endswith(b"\xff\xd9") and data.rfind(b"\xff\xd9") < max(data.rfind(b"\xff\xda"), 0):
            return "the JPEG end marker FF D9 is missing"
    elif data.startswith(_PNG):
        if data.rfind(b"IEND") < 0:
            return "the PNG end chunk IEND is missing"
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        expected = int.from_bytes(data[4:8], "little") + 8
        if len(data) < expected:
            return f"the WebP header promises {expected} bytes"
    elif data.startswith(_BMP) and len(data) > 6:
        expected = int.from_bytes(data[2:6], "little")
        if len(data) < expected:
            return f"the BMP header promises {expected} bytes"
    return ""
