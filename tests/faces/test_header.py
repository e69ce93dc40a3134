import io
import struct

import cv2
import numpy as np
import pytest
from tests.faces.pictures import animation, derived_heic, jpeg, lying_jpeg, png_of_size

from spherecf.data import encode_image
from spherecf.faces import read_photo
from spherecf.faces.photo import Header, read_header

PICTURE = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
KINDS = {
    ".jpg": "JPEG", ".png": "PNG", ".webp": "WebP", ".bmp": "BMP", ".tiff": "TIFF", ".ppm": "PNM",
    ".gif": "GIF", ".jp2": "JPEG 2000", ".avif": "AVIF",
}  # fmt: skip


@pytest.mark.parametrize("suffix", KINDS)
def test_every_format_gives_its_kind_and_size(suffix: str) -> None:
    assert read_header(encode_image(PICTURE, suffix)) == Header(KINDS[suffix], 90, 70)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".ppm", ".jp2"])
def test_sixteen_bit_images_are_recognised(suffix: str) -> None:
    data = cv2.imencode(suffix, PICTURE.astype(np.uint16) * 257)[1].tobytes()
    header = read_header(data)
    assert header is not None and header.bits == 16


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".avif"])
def test_frames_are_counted(suffix: str) -> None:
    header = read_header(animation(suffix, PICTURE, 255 - PICTURE, PICTURE // 2))
    assert header is not None and (header.frames, header.width, header.height) == (3, 90, 70)


def test_pages_cmyk_and_orientation_are_read() -> None:
    image = pytest.importorskip("PIL.Image")
    picture, exif = image.fromarray(PICTURE), image.Exif()
    exif[0x0112] = 6

    def saved(kind: str, picture: object = picture, **options: object) -> Header | None:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)  # type: ignore[attr-defined]
        return read_header(stream.getvalue())

    assert saved("TIFF", save_all=True, append_images=[picture] * 4) == Header("TIFF", 90, 70, frames=5)
    assert saved("TIFF", picture.convert("CMYK")) == Header("TIFF", 90, 70, cmyk=True)
    assert saved("JPEG", picture.convert("CMYK")) == Header("JPEG", 90, 70, cmyk=True)
    assert saved("JPEG", progressive=True) == Header("JPEG", 90, 70)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        header = saved(kind, exif=exif)
        assert header is not None and (header.orientation, header.width) == (6, 90), kind
    for lossless in (True, False):
        assert saved("WEBP", lossless=lossless) == Header("WebP", 90, 70)


@pytest.mark.parametrize(
    "exif", [b"", b"II*\0", b"MM\0*\0\0\0\x08", b"II*\0" + bytes(4), b"MM\0*\xff\xff\xff\xff"]
)
def test_a_photo_with_damaged_exif_data_is_not_turned(exif: bytes) -> None:
    data = jpeg(PICTURE)
    segment = b"\xff\xe1" + struct.pack(">H", 8 + len(exif)) + b"Exif\0\0" + exif
    assert read_header(data[:2] + segment + data[2:]) == Header("JPEG", 90, 70)


def test_a_bitmap_of_os2_is_read() -> None:
    """Its header has sizes of 16 bits."""
    data = b"BM" + struct.pack("<IHHIIHHHH", 38, 0, 0, 26, 12, 3, 1, 1, 24) + bytes(range(9)) + bytes(3)
    assert read_header(data) == Header("BMP", 3, 1)
    assert read_photo(data).pixels.tolist() == [[[2, 1, 0], [5, 4, 3], [8, 7, 6]]]


def test_boxes_with_sizes_of_64_bits_are_followed() -> None:
    data = derived_heic(b"grid", (300, 200))
    start = data.index(b"meta") - 4
    length = struct.unpack(">I", data[start : start + 4])[0]
    long = struct.pack(">I4sQ", 1, b"meta", length + 8) + data[start + 8 :]
    assert read_header(data[:start] + long) == read_header(data) == Header("HEIC", 300, 200)


def test_huge_declared_sizes_are_read_and_zero_sizes_refused() -> None:
    assert read_header(png_of_size(60_000, 60_000)) == Header("PNG", 60_000, 60_000)
    assert read_header(png_of_size(0, 10)) is None


@pytest.mark.parametrize("kind", [b"grid", b"iovl"])
@pytest.mark.parametrize("in_idat", [True, False])
def test_the_canvas_of_a_heic_counts_whatever_size_the_file_declares(kind: bytes, in_idat: bool) -> None:
    """A decoder allocates the canvas: one of 30,000 x 30,000 took 2.6 GB for a file of 600 bytes."""
    assert read_header(derived_heic(kind, (60, 50), in_idat=in_idat)) == Header("HEIC", 64, 64)
    bomb = derived_heic(kind, (30_000, 20_000), in_idat=in_idat)
    assert read_header(bomb) == Header("HEIC", 30_000, 20_000)
    one_piece, two_pieces = b"\0\0\0\1" + bytes(4), b"\0\0\0\2" + bytes(4)
    if in_idat:  # content in several pieces is not followed, so the file is refused
        assert read_header(bomb.replace(one_piece, two_pieces)) is None


@pytest.mark.parametrize("suffix", KINDS)
def test_truncated_and_damaged_data_never_raise(suffix: str) -> None:
    data = encode_image(PICTURE, suffix)
    rng = np.random.default_rng(1)
    for end in range(0, min(len(data), 700), 7):
        read_header(data[:end])
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(0, min(len(data), 400), 3):
            damaged[position] = rng.integers(256)
        read_header(bytes(damaged))
    assert read_header(lying_jpeg(PICTURE)).orientation == 6  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data", [b"", b"x", b"text that is no image", b"\0\0\0\x18ftypmp42" + bytes(40), b"BM"]
)
def test_data_that_is_not_an_image_has_no_header(data: bytes) -> None:
    assert read_header(data) is None


def test_long_runs_of_whitespace_are_parsed_in_linear_time() -> None:
    """A pattern with nested repetition took exponential time: 30 spaces were already too many."""
    assert read_header(b"P5" + b" " * 50_000 + b"x") is None
    assert read_header(b"P5" + b"#\n \n" * 5_000 + b"2 3 255 ") == read_header(b"P5 2 3 255 ")
    assert read_header(b"P5 " + b"9" * 400 + b" 4 255 ") is None
