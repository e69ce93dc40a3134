"""Hostile photos: decompression bombs, and scripts in names and metadata."""

import gzip
import struct
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from tests.faces.pictures import jpeg, png_of_size

from spherecf.data import IdentityFolder, encode_image

WIDTH, HEIGHT = 300, 200
SCRIPT = "<script>alert(1)</script>"


def replacements(layout: str, height_first: bool = False) -> list[tuple[bytes, bytes]]:
    """The bytes of the image size in a format, and those of the maximum size, up to 60,000 pixels."""
    sides = (HEIGHT, WIDTH) if height_first else (WIDTH, HEIGHT)
    return [(struct.pack(layout, *sides), struct.pack(layout, 60_000, 60_000))]


PATCHES = {
    ".jpg": replacements(">HH", height_first=True),
    ".gif": replacements("<HH"),
    ".bmp": replacements("<ii"),
    ".webp": [(struct.pack("<HH", WIDTH, HEIGHT), struct.pack("<HH", 16_383, 16_383))],
    ".jp2": [*replacements(">II"), *replacements(">II", height_first=True)],
    ".avif": replacements(">II"),
    ".ppm": [(b"300 200", b"60000 60000")],
    ".tiff": [
        (struct.pack("<HHII", tag, kind, 1, side), struct.pack("<HHII", tag, 4, 1, 60_000))
        for tag, side in ((0x100, WIDTH), (0x101, HEIGHT))
        for kind in (3, 4)
    ],
}


def bomb(suffix: str) -> bytes:
    """A small image whose header claims a huge size."""
    if suffix == ".png":
        return png_of_size(60_000, 60_000)
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    data = encode_image(image, suffix)
    if suffix == ".webp":  # lossy, as in cameras: the size is in the first frame
        cv2 = pytest.importorskip("cv2")
        data = cv2.imencode(".webp", image, [cv2.IMWRITE_WEBP_QUALITY, 50])[1].tobytes()
    harmful = data
    for small, large in PATCHES[suffix]:
        harmful = harmful.replace(small, large)
    assert harmful != data
    return harmful


@pytest.mark.parametrize("suffix", [".png", *PATCHES])
def test_decompression_bombs_are_refused_before_decoding(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def decode(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the bomb was decoded")

    monkeypatch.setattr("spherecf.faces.photo.decode_image", decode)
    photo = client.post("/api/quality", files={"photo": (f"bomb{suffix}", bomb(suffix))}).json()
    assert photo["failure"] == "too_large" and "megapixels" in photo["reason"]


def test_compressed_bodies_are_not_decompressed(client: TestClient) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n' + bytes(50_000_000)
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"}
    refused = client.post("/api/quality", content=gzip.compress(form), headers=headers)
    assert refused.status_code == 400 and "malformed" in refused.json()["error"]


def test_scripts_in_names_and_metadata_are_not_executed(client: TestClient, people: IdentityFolder) -> None:
    """Every answer is JSON, and contains none of the photo's metadata."""
    text = SCRIPT.encode() + b"\0"
    tiff = b"MM\0*" + struct.pack(">IHHHIII", 8, 1, 0x010E, 2, len(text), 26, 0) + text
    exif = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    plain = jpeg(people.image(0))
    name = f"{SCRIPT[:-10]}.jpg"  # without the slash, which would separate folders
    photo = client.post("/api/quality", files={"photo": (name, plain[:2] + exif + plain[2:])})
    assert photo.json()["faces"] and photo.json()["photo"] == name and SCRIPT not in photo.text
    missing = client.post("/api/quality", files={SCRIPT: (name, b"x")})
    unknown_path = client.get(f"/{SCRIPT}")
    for answer in (photo, missing, unknown_path):
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self'" in answer.headers["content-security-policy"]
