"""Photos: arbitrary bytes give upright RGB pixels of the reported size, or a failure with a reason."""

import struct
from collections.abc import Sequence

import cv2
import numpy as np
from tests.faces.pictures import animation, derived_heic, jpeg, lying_jpeg
from tests.fuzz.harness import fuzz

from spherecf.data import encode_image
from spherecf.faces import Face, Failure, acquire, read_photo

_IMAGE = cv2.resize(np.arange(36, dtype=np.uint8).reshape(3, 4, 3) * 7, (48, 40))
_ROTATED = bytes.fromhex("49492a000800000001001201030001000000060000000000")  # an Exif block: orientation 6


def photos() -> dict[str, bytes]:
    """One small image in every format that phones and cameras save."""
    deep = _IMAGE.astype(np.uint16) * 257
    seeds = {
        "JPEG": jpeg(_IMAGE),
        "JPEG, progressive": _encoded(".jpg", _IMAGE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "JPEG with Exif": lying_jpeg(_IMAGE),
        "PNG": encode_image(_IMAGE),
        "PNG, 16 bits": _encoded(".png", deep),
        "PNG with Exif": _with_chunk(encode_image(_IMAGE), b"eXIf", _ROTATED),
        "PNG, animated": animation(".png", _IMAGE, _IMAGE[::-1]),
        "WebP": encode_image(_IMAGE, ".webp", 80),
        "WebP, lossless": _encoded(".webp", _IMAGE, cv2.IMWRITE_WEBP_QUALITY, 101),
        "WebP, animated": animation(".webp", _IMAGE, _IMAGE[::-1]),
        "TIFF": encode_image(_IMAGE, ".tif"),
        "TIFF, 16 bits": _encoded(".tif", deep),
        "BMP": encode_image(_IMAGE, ".bmp"),
        "GIF": encode_image(_IMAGE, ".gif"),
        "GIF, animated": animation(".gif", _IMAGE, _IMAGE[::-1]),
        "PPM": encode_image(_IMAGE, ".ppm"),
        "PGM": b"P5 # grey\n4 3 255\n" + bytes(range(12)),
        "PBM": b"P1\n3 2\n1 0 1\n0 1 0\n",
        "JPEG 2000": encode_image(_IMAGE, ".jp2"),
        "AVIF": _encoded(".avif", _IMAGE),
    }
    return seeds | _heic()


def _encoded(suffix: str, image: np.ndarray, *settings: int) -> bytes:
    encoded, data = cv2.imencode(suffix, image, settings)
    assert encoded
    return data.tobytes()


def _with_chunk(png: bytes, name: bytes, body: bytes) -> bytes:
    import zlib

    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return png[:33] + chunk + png[33:]  # after the header


def _heic() -> dict[str, bytes]:
    try:
        import pillow_heif
    except ImportError:
        return {}
    import io

    stream, tile = io.BytesIO(), io.BytesIO()
    pillow_heif.from_bytes("RGB", (48, 40), _IMAGE.tobytes()).save(stream, quality=50)
    pillow_heif.from_bytes("RGB", (64, 64), bytes(64 * 64 * 3)).save(tile, quality=50)
    data = tile.getvalue()
    start, media = data.index(b"hvcC") - 4, data.index(b"mdat") + 4
    setup = data[start : start + int.from_bytes(data[start : start + 4])]
    derived = {
        f"HEIC, {kind.decode()}": derived_heic(kind, (64, 64), data[media:], setup)
        for kind in (b"grid", b"iovl")
    }
    return {"HEIC": stream.getvalue(), **derived}


def _no_face(pixels: np.ndarray) -> Sequence[Face]:
    return ()


@fuzz(photos, name="photos")
def test_photos(data: bytes) -> None:
    acquired = acquire(data, _no_face, name="it")  # a bad photo is a result, never an exception
    assert acquired.failure is not None and acquired.reason
    photo = read_photo(data, name="it")
    assert acquired.failure is Failure.NO_FACE and photo.pixels.dtype == np.uint8
    height, width, channels = photo.pixels.shape
    assert channels == 3 and min(height, width) > 0 and min(photo.size) > 0
    if photo.scale == 1:
        assert photo.size == (width, height)
