import io
import pickle
import struct
from inspect import unwrap

import cv2
import numpy as np
import pytest

from spherecf.data import ImageError, decode_image, encode_image
from spherecf.data.image import image_suffix
from spherecf.errors import FileFormatError, InputError

GRADIENT = np.stack([np.tile(np.arange(0, 160, 10, np.uint8), (12, 1))] * 3, axis=-1) + np.array(
    [0, 40, 80], np.uint8
)


def encoded(suffix: str, image: np.ndarray = GRADIENT) -> bytes:
    return cv2.imencode(suffix, image[..., ::-1] if image.ndim == 3 else image)[1].tobytes()


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tiff"])
def test_lossless_formats_decode_to_the_same_rgb(suffix: str) -> None:
    assert np.array_equal(decode_image(encoded(suffix)), GRADIENT)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_decode_to_similar_rgb(suffix: str) -> None:
    assert np.abs(decode_image(encoded(suffix)).astype(int) - GRADIENT).mean() < 4


@pytest.mark.parametrize("suffix", [".png", ".pgm", ".jpg"])
def test_grey_images_get_three_equal_channels(suffix: str) -> None:
    image = decode_image(encoded(suffix, GRADIENT[..., 0]))
    assert image.shape == (12, 16, 3)
    assert (image[..., 0] == image[..., 1]).all() and (image[..., 0] == image[..., 2]).all()


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bit_images_keep_the_high_byte(suffix: str) -> None:
    deep = GRADIENT[..., 0].astype(np.uint16) * 256 + 17
    assert np.array_equal(decode_image(encoded(suffix, deep))[..., 0], GRADIENT[..., 0])


def test_alpha_is_dropped() -> None:
    alpha = np.dstack([GRADIENT[..., ::-1], np.full((12, 16), 9, np.uint8)])
    assert np.array_equal(decode_image(cv2.imencode(".png", alpha)[1].tobytes()), GRADIENT)
    for suffix in (".webp", ".avif"):  # for AVIF, OpenCV's own RGB exchanges red and blue
        opaque_half = np.dstack([alpha[..., :3], np.full((12, 16), 128, np.uint8)])
        image = decode_image(cv2.imencode(suffix, opaque_half)[1].tobytes())
        assert np.abs(image.mean((0, 1)) - GRADIENT.mean((0, 1))).max() < 3, suffix


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_colours_of_a_tiff_do_not_depend_on_its_alpha(mode: str) -> None:
    pil = pytest.importorskip("PIL.Image")
    picture = pil.fromarray(GRADIENT).convert(mode)
    expected = np.asarray(picture.convert("RGB"))
    picture.putalpha(100)
    stream = io.BytesIO()
    picture.save(stream, "TIFF")
    assert np.array_equal(decode_image(stream.getvalue()), expected)


def test_cielab_becomes_srgb() -> None:
    """Against the conversion of LittleCMS; a face must not turn greenish."""
    pil, cms = pytest.importorskip("PIL.Image"), pytest.importorskip("PIL.ImageCms")
    srgb, lab = cms.createProfile("sRGB"), cms.createProfile("LAB")
    skin = np.tile(np.array([[120, 80, 60], [230, 190, 170]], np.uint8), (12, 8, 1))
    stream = io.BytesIO()
    cms.profileToProfile(pil.fromarray(skin), srgb, lab, outputMode="LAB").save(stream, "TIFF")
    assert np.abs(decode_image(stream.getvalue()).astype(int) - skin).max() < 4
    assert decode_image(stream.getvalue(), reduce=2).shape == (6, 8, 3)


def test_the_quality_applies_to_every_suffix_of_jpeg() -> None:
    sizes = [len(encode_image(GRADIENT, suffix, 5)) for suffix in (".jpg", ".jpeg", ".jpe", ".JPG")]
    assert len(set(sizes)) == 1 and sizes[0] < len(encode_image(GRADIENT, ".jpeg", 100))


def test_palette_and_cmyk_become_rgb() -> None:
    pil = pytest.importorskip("PIL.Image")
    for mode, kind in (("P", "PNG"), ("CMYK", "JPEG")):
        stream = io.BytesIO()
        picture = pil.fromarray(GRADIENT).convert(mode)
        picture.save(stream, kind)
        expected = np.asarray(picture.convert("RGB")).astype(int)
        assert np.abs(decode_image(stream.getvalue()).astype(int) - expected).mean() < 6, mode


def test_exif_orientation_is_not_applied() -> None:
    jpeg = encoded(".jpg")
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"  # one Exif entry: orientation 6
    segment = b"\xff\xe1" + (len(tiff) + 8).to_bytes(2, "big") + b"Exif\0\0" + tiff
    turned = jpeg[:2] + segment + jpeg[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (16, 12)
    assert decode_image(turned).shape[:2] == (12, 16)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_truncated_images_are_refused(suffix: str, part: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(suffix, noise)
    with pytest.raises(ImageError, match=r"set:a.*truncated"):
        decode_image(data[: int(len(data) * part)], "set:a")


def test_a_png_without_its_end_chunk_is_refused() -> None:
    with pytest.raises(ImageError, match=r"truncated image .*: the PNG end chunk IEND is missing"):
        decode_image(encoded(".png")[:-12])


def test_jpeg_with_a_zeroed_end_is_refused() -> None:
    data = encoded(".jpg")
    with pytest.raises(ImageError, match="end marker"):
        decode_image(data[:-40] + bytes(40))


def test_jpeg_with_a_trailer_is_accepted() -> None:
    data = encoded(".jpg")
    assert np.array_equal(decode_image(data + b"camera notes"), decode_image(data))


def test_jpeg_with_an_appended_video_is_accepted() -> None:
    """Phones append videos, and a start-of-scan marker within the video must be ignored."""
    data = encoded(".jpg")
    assert np.array_equal(decode_image(data + b"film \xff\xd9 \xff\xda more"), decode_image(data))


def test_images_are_reduced_only_on_request() -> None:
    data = encoded(".jpg", np.repeat(np.repeat(GRADIENT, 4, 0), 4, 1))
    assert [decode_image(data, reduce=factor).shape[:2] for factor in (1, 2, 4, 8)] == [
        (48, 64),
        (24, 32),
        (12, 16),
        (6, 8),
    ]
    for factor in (2, 4, 8):
        difference = decode_image(data, reduce=factor).mean((0, 1)) - decode_image(data).mean((0, 1))
        assert np.abs(difference).max() < 3  # the channel order is still RGB


def test_a_turned_tiff_keeps_its_proportions_when_it_is_reduced() -> None:
    pil = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    pil.fromarray(np.repeat(np.repeat(GRADIENT, 4, 0), 4, 1)).save(stream, "TIFF", tiffinfo={0x0112: 6})
    whole = decode_image(stream.getvalue(), upright=True)
    half = decode_image(stream.getvalue(), upright=True, reduce=2)
    assert whole.shape == (64, 48, 3) and half.shape == (32, 24, 3)
    assert np.abs(half.astype(int) - whole[::2, ::2]).max() < 12


def test_truncated_jpeg_with_a_complete_thumbnail_is_refused() -> None:
    jpeg, thumbnail = encoded(".jpg"), encoded(".jpg", GRADIENT[:8, :8])
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    with_thumbnail = jpeg[:2] + segment + jpeg[2:]
    assert decode_image(with_thumbnail).shape == (12, 16, 3)
    with pytest.raises(ImageError, match="end marker"):
        decode_image(with_thumbnail[:-20])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"this is text named .jpg", "not an image.*this is text"),
        (bytes(500), "not an image"),
    ],
)
def test_data_that_is_not_an_image_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_image(data, "set:a")


def test_impossible_dimensions_are_refused() -> None:
    with pytest.raises(ImageError, match="not a"):
        decode_image(b"P5 4000000000 4000000000 255 " + bytes(64))
    with pytest.raises(ImageError, match=r"set:a: not a decodable image \(2000017 bytes\): .*WIDTH"):
        decode_image(b"P5 2000000 1 255 " + bytes(2_000_000), "set:a")  # more columns than OpenCV decodes


def test_a_wrong_size_is_refused_rather_than_resized() -> None:
    assert decode_image(encoded(".png"), size=(12, 16)).shape == (12, 16, 3)
    with pytest.raises(ImageError, match=r"expected an image of 16x12.*got 12x16"):
        decode_image(encoded(".png"), size=(16, 12))


def test_errors_keep_their_location_when_pickled() -> None:
    error = pickle.loads(pickle.dumps(ImageError("set:a", "problem.", "Hint.")))
    assert (
        isinstance(error, FileFormatError)
        and error.where == "set:a"
        and str(error) == "set:a: problem. Hint."
    )


def test_encoder_writes_known_formats_and_refuses_others() -> None:
    assert image_suffix(encode_image(GRADIENT)) == ".png"
    assert image_suffix(encode_image(GRADIENT, ".jpg")) == ".jpg"
    assert image_suffix(encode_image(GRADIENT, ".bmp")) == ""
    assert len(encode_image(GRADIENT, ".jpg", 20)) < len(encode_image(GRADIENT, ".jpg", 95))
    with pytest.raises(InputError, match="xyz"):
        encode_image(GRADIENT, ".xyz")
    with pytest.raises(InputError, match=r"cannot encode 16x12 px as '\.pgm'; use \.png or \.jpg"):
        encode_image(GRADIENT, ".pgm")  # a format of grey images


@pytest.mark.parametrize("options", [{"reduce": 3}, {"reduce": [2]}, {"size": 112}, {"size": (1, 2, 3)}])
def test_options_without_a_meaning_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: expected "):
        unwrap(decode_image)(encode_image(GRADIENT), **options)  # without the type checks of the tests


def test_declared_sizes_beyond_the_data_are_refused_before_decoding() -> None:
    grey = np.full((16, 16, 3), 128, np.uint8)
    jpeg, png = bytearray(encode_image(grey, ".jpg")), bytearray(encode_image(grey))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", 16000, 60000)
    chunk = png.index(b"IDAT") - 4
    png[chunk : chunk + 4] = struct.pack(">I", 0xCE000020)
    for data, problem in [(jpeg, "16000x60000"), (png, f"byte {chunk} declares 3456106528 bytes")]:
        with pytest.raises(ImageError, match=f"truncated.*{problem}"):
            decode_image(bytes(data))


@pytest.mark.parametrize("settings", [[], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_OPTIMIZE, 1]])
def test_a_highly_compressed_uniform_image_is_accepted(settings: list[int]) -> None:
    flat = np.full((4000, 4000, 3), 128, np.uint8)
    data = cv2.imencode(".jpg", flat, [cv2.IMWRITE_JPEG_QUALITY, 1, *settings])[1].tobytes()
    assert decode_image(data).shape == flat.shape


def test_a_png_declaring_too_many_pixels_is_refused() -> None:
    data = bytearray(encode_image(np.zeros((8, 8, 3), np.uint8), ".png"))
    data[16:24] = (20_000).to_bytes(4, "big") * 2
    with pytest.raises(ImageError, match="20000x20000"):
        decode_image(bytes(data))
