import io

import cv2
import numpy as np
import pytest
from tests.faces.pictures import animation, lying_jpeg, png_of_size

from spherecf.data import encode_image
from spherecf.faces.photo import Header, read_header

PICTURE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
KINDS = {
    ".jpg": "JPEG", ".png": "PNG", ".webp": "WebP", ".bmp": "BMP", ".tiff": "TIFF", ".ppm": "PNM",
    ".gif": "GIF", ".jp2": "JPEG 2000", ".avif": "AVIF",
}  # fmt: skip


@pytest.mark.parametrize("suffix", KINDS)
def test_size_and_kind_of_every_format(suffix: str) -> None:
    assert read_header(encode_image(PICTURE, suffix)) == Header(KINDS[suffix], 90, 70)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".ppm", ".jp2"])
def test_sixteen_bits_are_seen(suffix: str) -> None:
    data = cv2.imencode(suffix, PICTURE.astype(np.uint16) * 257)[1].tobytes()
    header = read_header(data)
    assert header is not None and header.bits == 16


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_frames_are_counted(suffix: str) -> None:
    header = read_header(animation(suffix, PICTURE, 255 - PICTURE, PICTURE // 2))
    assert header is not None and (header.frames, header.width, header.height) == (3, 90, 70)


def test_pages_inks_and_orientation() -> None:
    image = pytest.importorskip("PIL.Image")
    picture, exif = image.fromarray(PICTURE), image.Exif()
    exif[0x0112] = 6

    def saved(kind: str, picture: object = picture, **how: object) -> Header | None:
        out = io.BytesIO()
        picture.save(out, kind, **how)  # type: ignore[attr-defined]
        return read_header(out.getvalue())

    assert saved("TIFF", save_all=True, append_images=[picture] * 4) == Header("TIFF", 90, 70, frames=5)
    assert saved("TIFF", picture.convert("CMYK")) == Header("TIFF", 90, 70, cmyk=True)
    assert saved("JPEG", picture.convert("CMYK")) == Header("JPEG", 90, 70, cmyk=True)
    assert saved("JPEG", progressive=True) == Header("JPEG", 90, 70)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        header = saved(kind, exif=exif)
        assert header is not None and (header.orientation, header.width) == (6, 90), kind
    for lossless in (True, False):
        assert saved("WEBP", lossless=lossless) == Header("WebP", 90, 70)


def test_sizes_that_no_machine_could_hold() -> None:
    assert read_header(png_of_size(60_000, 60_000)) == Header("PNG", 60_000, 60_000)
    assert read_header(png_of_size(0, 10)) is None


@pytest.mark.parametrize("suffix", KINDS)
def test_any_cut_and_any_damage_gives_a_header_or_none(suffix: str) -> None:
    data = encode_image(PICTURE, suffix)
    rng = np.random.default_rng(1)
    for end in range(0, min(len(data), 700), 7):
        read_header(data[:end])
    for _ in range(300):
        damaged = bytearray(data)
        for at in rng.integers(0, min(len(data), 400), 3):
            damaged[at] = rng.integers(256)
        read_header(bytes(damaged))
    assert read_header(lying_jpeg(PICTURE)).orientation == 6  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data", [b"", b"x", b"text that is no picture", b"\0\0\0\x18ftypmp42" + bytes(40), b"BM"]
)
def test_what_is_no_picture(data: bytes) -> None:
    assert read_header(data) is None


def test_blanks_without_end_cost_no_more_than_reading_them() -> None:
    """Each blank could be split from the next in two ways: 30 of them took longer than anybody waits."""
    assert read_header(b"P5" + b" " * 50_000 + b"x") is None
    assert read_header(b"P5" + b"#\n \n" * 5_000 + b"2 3 255 ") == read_header(b"P5 2 3 255 ")
    assert read_header(b"P5 " + b"9" * 400 + b" 4 255 ") is None
