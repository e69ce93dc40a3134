"""Photos: whatever the bytes promise, upright RGB pixels of the size that is told, or a reason."""

import struct
from collections.abc import Sequence

import cv2
import numpy as np
from tests.faces.pictures import animation, jpeg, lying_jpeg
from tests.fuzz.harness import fuzz

from spherecf.data import encode_image
from spherecf.faces import Face, Failure, acquire, read_photo

_PICTURE = cv2.resize(np.arange(36, dtype=np.uint8).reshape(3, 4, 3) * 7, (48, 40))
_TURNED = bytes.fromhex("49492a000800000001001201030001000000060000000000")  # an Exif block: orientation 6


def photos() -> dict[str, bytes]:
    """One small picture as everything that phones and cameras save."""
    deep = _PICTURE.astype(np.uint16) * 257
    seeds = {
        "JPEG": jpeg(_PICTURE),
        "JPEG, progressive": _encoded(".jpg", _PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "JPEG with Exif": lying_jpeg(_PICTURE),
        "PNG": encode_image(_PICTURE),
        "PNG, 16 bits": _encoded(".png", deep),
        "PNG with Exif": _with_chunk(encode_image(_PICTURE), b"eXIf", _TURNED),
        "PNG, moving": animation(".png", _PICTURE, _PICTURE[::-1]),
        "WebP": encode_image(_PICTURE, ".webp", 80),
        "WebP, lossless": _encoded(".webp", _PICTURE, cv2.IMWRITE_WEBP_QUALITY, 101),
        "WebP, moving": animation(".webp", _PICTURE, _PICTURE[::-1]),
        "TIFF": encode_image(_PICTURE, ".tif"),
        "TIFF, 16 bits": _encoded(".tif", deep),
        "BMP": encode_image(_PICTURE, ".bmp"),
        "GIF": encode_image(_PICTURE, ".gif"),
        "GIF, moving": animation(".gif", _PICTURE, _PICTURE[::-1]),
        "PPM": encode_image(_PICTURE, ".ppm"),
        "PGM": b"P5 # grey\n4 3 255\n" + bytes(range(12)),
        "PBM": b"P1\n3 2\n1 0 1\n0 1 0\n",
        "JPEG 2000": encode_image(_PICTURE, ".jp2"),
        "AVIF": _encoded(".avif", _PICTURE),
    }
    return seeds | _heic()


def _encoded(suffix: str, picture: np.ndarray, *settings: int) -> bytes:
    done, data = cv2.imencode(suffix, picture, settings)
    assert done
    return data.tobytes()


def _with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    import zlib

    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return png[:33] + chunk + png[33:]  # behind the header


def _heic() -> dict[str, bytes]:
    try:
        import pillow_heif
    except ImportError:
        return {}
    import io

    out = io.BytesIO()
    pillow_heif.from_bytes("RGB", (48, 40), _PICTURE.tobytes()).save(out, quality=50)
    return {"HEIC": out.getvalue()}


def _no_face(pixels: np.ndarray) -> Sequence[Face]:
    return ()


@fuzz(photos, name="photos")
def test_photos(data: bytes) -> None:
    acquired = acquire(data, _no_face, name="it")  # a bad photo is an outcome, never an error
    assert acquired.failure is not None and acquired.reason
    photo = read_photo(data, name="it")
    assert acquired.failure is Failure.NO_FACE and photo.pixels.dtype == np.uint8
    height, width, channels = photo.pixels.shape
    assert channels == 3 and min(height, width) > 0 and min(photo.size) > 0
    if photo.scale == 1:
        assert photo.size == (width, height)
