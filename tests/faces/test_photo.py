import builtins
import inspect
import io
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.faces.pictures import animation, jpeg, lying_jpeg, png_of_size, portrait

from spherecf.data import encode_image
from spherecf.errors import InputError
from spherecf.faces import Failure, PhotoError, read_photo

FACE = portrait()


def refused(source: Any, **options: Any) -> PhotoError:
    with pytest.raises(PhotoError) as caught:
        read_photo(source, **options)
    return caught.value


def saved(kind: str, mode: str, **options: Any) -> bytes:
    image, stream = pytest.importorskip("PIL.Image"), io.BytesIO()
    image.fromarray(FACE).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".bmp", ".ppm"])
def test_lossless_formats_decode_exactly(suffix: str) -> None:
    photo = read_photo(encode_image(FACE, suffix), name="face")
    assert np.array_equal(photo.pixels, FACE)
    assert (photo.name, photo.scale, photo.notes, photo.size) == ("face", 1.0, (), (184, 224))


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".avif", ".jp2", ".gif"])
def test_lossy_formats_decode_approximately(suffix: str) -> None:
    difference = np.abs(read_photo(encode_image(FACE, suffix)).pixels.astype(int) - FACE).mean()
    assert difference < (20 if suffix == ".gif" else 4)  # GIF: eight bits per pixel, dithered


@pytest.mark.parametrize(
    ("kind", "mode", "notes"),
    [("JPEG", "L", ()), ("PNG", "LA", ()), ("PNG", "P", ()), ("PNG", "RGBA", ()), ("TIFF", "1", ())]
    + [(kind, "CMYK", ("CMYK",)) for kind in ("JPEG", "TIFF")],
)  # fmt: skip
def test_grey_palette_alpha_and_cmyk_become_rgb(kind: str, mode: str, notes: tuple[str, ...]) -> None:
    photo = read_photo(saved(kind, mode))
    assert photo.pixels.shape == FACE.shape and photo.notes == notes
    if mode != "1":
        assert np.abs(photo.pixels.astype(int) - FACE).mean() < (20 if mode == "P" else 4)  # dithered


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".ppm"])
def test_sixteen_bit_images_are_reduced_to_eight_bits(suffix: str) -> None:
    deep = cv2.imencode(suffix, FACE[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    photo = read_photo(deep)
    assert np.array_equal(photo.pixels, FACE) and photo.notes == ("16 bits reduced to 8",)
    floats = cv2.imencode(".tiff", FACE.astype(np.float32))[1].tobytes()
    assert refused(floats).kind is Failure.UNSUPPORTED


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".avif"])
def test_animations_give_their_first_frame(suffix: str) -> None:
    photo = read_photo(animation(suffix, FACE, 255 - FACE))
    assert photo.notes == ("first of 2 frames",)
    assert np.abs(photo.pixels.astype(int) - FACE).mean() < (20 if suffix == ".gif" else 4)


def test_multi_page_files_give_their_first_page() -> None:
    image = pytest.importorskip("PIL.Image")
    photo = read_photo(saved("TIFF", "RGB", save_all=True, append_images=[image.fromarray(255 - FACE)]))
    assert np.array_equal(photo.pixels, FACE) and photo.notes == ("first of 2 pages",)


def test_photos_are_rotated_by_their_exif_tag() -> None:
    photo = read_photo(lying_jpeg(FACE))
    assert photo.size == (184, 224) and photo.notes == ("turned by its Exif tag",)
    assert np.abs(photo.pixels.astype(int) - FACE).mean() < 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_made_upright(kind: str, orientation: int) -> None:
    """Against Pillow, which stores the orientation of an AVIF as its rotation and mirroring."""
    image = pytest.importorskip("PIL.Image")
    exif = image.Exif()
    exif[0x0112] = orientation
    tag = exif.tobytes()  # Pillow takes the orientation out of an object
    data = saved(kind, "RGB", exif=tag)
    turned_jpeg = image.open(io.BytesIO(saved("JPEG", "RGB", exif=tag)))
    expected = np.asarray(pytest.importorskip("PIL.ImageOps").exif_transpose(turned_jpeg))
    for photo in (read_photo(data), read_photo(data, decoded=20_000)):
        assert photo.size == expected.shape[1::-1]
        assert ("turned by its Exif tag" in photo.notes) == (orientation > 1)
        whole = cv2.resize(photo.pixels, photo.size)
        assert np.abs(whole.astype(int) - expected).mean() < 6


@pytest.mark.parametrize("source", [None, 3, bytearray(b"P5"), io.BytesIO(b"P5"), FACE.tolist()])
def test_sources_that_are_neither_paths_nor_bytes_are_refused(source: Any) -> None:
    with pytest.raises(InputError, match="expected a path"):
        inspect.unwrap(read_photo)(source)


def test_heic_is_read_with_its_decoder() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    pillow_heif.from_bytes("RGB", (184, 224), FACE.tobytes()).save(stream)
    photo = read_photo(stream.getvalue())
    assert np.abs(photo.pixels.astype(int) - FACE).mean() < 4 and photo.size == (184, 224)
    assert read_photo(stream.getvalue(), decoded=20_000).scale == 0.5
    assert refused(stream.getvalue()[:-2000]).kind is Failure.TRUNCATED
    assert refused(stream.getvalue(), max_pixels=1000).kind is Failure.TOO_LARGE


def test_a_grey_heic_becomes_rgb() -> None:
    pillow_heif, stream = pytest.importorskip("pillow_heif"), io.BytesIO()
    pillow_heif.from_bytes("L", (184, 224), FACE[..., 1].tobytes()).save(stream)
    pixels = read_photo(stream.getvalue()).pixels
    assert pixels.shape == FACE.shape and np.abs(pixels.astype(int) - FACE[..., 1:2]).mean() < 4


@pytest.mark.parametrize("size", [(64, 48), (300, 201), (1001, 667)])
def test_the_size_of_a_heic_is_its_visible_size(size: tuple[int, int]) -> None:
    """The HEIC header states the coded size, which is even and at least 64."""
    pillow_heif, stream = pytest.importorskip("pillow_heif"), io.BytesIO()
    pillow_heif.from_bytes("RGB", size, cv2.resize(FACE, size).tobytes()).save(stream)
    for decoded in (10**6, size[0] * size[1] // 2):
        photo = read_photo(stream.getvalue(), decoded=decoded)
        assert photo.size == size
    assert photo.scale == 0.5 and photo.pixels.shape == (-(-size[1] // 2), -(-size[0] // 2), 3)


def test_heic_without_its_decoder_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    pillow_heif, stream = pytest.importorskip("pillow_heif"), io.BytesIO()
    pillow_heif.from_bytes("RGB", (184, 224), FACE.tobytes()).save(stream)
    original_import = builtins.__import__

    def import_without_heif(name: str, *args: Any, **options: Any) -> Any:
        if name == "pillow_heif":
            raise ImportError(name)
        return original_import(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", import_without_heif)
    error = refused(stream.getvalue())
    assert error.kind is Failure.UNSUPPORTED and 'pip install "spherecf[heic]"' in str(error)


def test_large_photos_are_decoded_at_reduced_size() -> None:
    large = cv2.resize(FACE, (736, 896), interpolation=cv2.INTER_CUBIC)
    small = cv2.resize(large, (184, 224), interpolation=cv2.INTER_AREA)
    for data in (jpeg(large), encode_image(large), lying_jpeg(large)):
        photo = read_photo(data, decoded=60_000)
        assert (photo.scale, photo.size, photo.pixels.shape) == (0.25, (736, 896), (224, 184, 3))
        assert photo.notes[-1] == "decoded at 1/4 of its size"
        assert np.abs(photo.pixels.astype(int) - small).mean() < 6
    assert read_photo(jpeg(large), decoded=2_000).scale == 0.125


def test_a_photo_of_a_hundred_megapixels_is_decoded_at_half_size() -> None:
    """A uniform image, for speed: 10,000 x 10,000 pixels are decoded as 5,000 x 5,000."""
    data = cv2.imencode(".jpg", np.full((10_000, 10_000), 90, np.uint8))[1].tobytes()
    photo = read_photo(data)
    assert photo.size == (10_000, 10_000) and photo.pixels.shape == (5_000, 5_000, 3)
    error = refused(data, max_pixels=50_000_000)
    assert error.kind is Failure.TOO_LARGE
    assert "10000x10000 = 100 megapixels, more than the limit of 50" in str(error)


@pytest.mark.parametrize("sides", [(20_000, 20_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_by_their_header(sides: tuple[int, int]) -> None:
    assert refused(png_of_size(*sides)).kind is Failure.TOO_LARGE


def test_a_header_declaring_more_data_than_the_file_has_is_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(png_of_size(2_000, 2_000)).kind is Failure.TRUNCATED
    assert "WARN" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "suffix", [".jpg", ".png", ".webp", ".gif", ".tiff", ".bmp", ".ppm", ".jp2", ".avif"]
)
@pytest.mark.parametrize("part", [0.03, 0.5, 0.95])
def test_truncated_images_are_refused(suffix: str, part: float, capfd: pytest.CaptureFixture[str]) -> None:
    data = encode_image(FACE, suffix)
    error = refused(data[: int(len(data) * part)], name="holiday.jpg")
    assert error.kind is Failure.TRUNCATED and "holiday.jpg" in str(error)
    assert "OpenCV" not in capfd.readouterr().err


def test_failures_to_read_have_their_kind(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("This is text.")
    assert refused(tmp_path / "empty.jpg").kind is Failure.EMPTY
    assert refused(b"").kind is Failure.EMPTY
    text = refused(tmp_path / "text.jpg")
    assert text.kind is Failure.NOT_AN_IMAGE and "This is text"[:12] in str(text)
    for path in (tmp_path, tmp_path / "none.jpg", tmp_path / ("x" * 5000), "nul\0byte.jpg", "/dev/zero"):
        assert refused(path).kind is Failure.UNREADABLE, path


def test_missing_read_permission_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.jpg").write_bytes(jpeg(FACE))
    monkeypatch.setattr(Path, "read_bytes", deny)
    error = refused(tmp_path / "a.jpg")
    assert error.kind is Failure.UNREADABLE and "Permission denied" in str(error)


def test_files_above_the_size_limit_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as stream:
        stream.truncate(2**30 + 1)  # sparse: takes no disk space
    assert refused(tmp_path / "huge.jpg").kind is Failure.TOO_LARGE


def test_unicode_and_long_paths_are_read(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(9):  # close to the longest path that most systems allow
        folder = folder / ("тёща 面 🙂 " * 5).strip()
    folder.mkdir(parents=True)
    path = folder / "été [1].jpg"
    path.write_bytes(jpeg(FACE))
    assert read_photo(path).name == str(path) and read_photo(str(path)).size == (184, 224)


def test_errors_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(refused(b"")))
    assert error.kind is Failure.EMPTY and "photo: the file is empty" in str(error)
