"""Photos made to harm: larger than they look, or with script in their names and descriptions."""

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


def pairs(one: str, height_first: bool = False) -> list[tuple[bytes, bytes]]:
    """How a format writes both sides, and what a bomb has there: the most that fits, up to 60,000."""
    sides = (HEIGHT, WIDTH) if height_first else (WIDTH, HEIGHT)
    return [(struct.pack(one, *sides), struct.pack(one, 60_000, 60_000))]


PATCHES = {
    ".jpg": pairs(">HH", height_first=True),
    ".gif": pairs("<HH"),
    ".bmp": pairs("<ii"),
    ".webp": [(struct.pack("<HH", WIDTH, HEIGHT), struct.pack("<HH", 16_383, 16_383))],
    ".jp2": [*pairs(">II"), *pairs(">II", height_first=True)],
    ".avif": pairs(">II"),
    ".ppm": [(b"300 200", b"60000 60000")],
    ".tiff": [
        (struct.pack("<HHII", tag, kind, 1, side), struct.pack("<HHII", tag, 4, 1, 60_000))
        for tag, side in ((0x100, WIDTH), (0x101, HEIGHT))
        for kind in (3, 4)
    ],
}


def bomb(suffix: str) -> bytes:
    """A small picture whose header promises a huge one."""
    if suffix == ".png":
        return png_of_size(60_000, 60_000)
    picture = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    data = encode_image(picture, suffix)
    if suffix == ".webp":  # as lossy as a camera's: the sides stand in its first frame
        cv2 = pytest.importorskip("cv2")
        data = cv2.imencode(".webp", picture, [cv2.IMWRITE_WEBP_QUALITY, 50])[1].tobytes()
    harmful = data
    for small, large in PATCHES[suffix]:
        harmful = harmful.replace(small, large)
    assert harmful != data
    return harmful


@pytest.mark.parametrize("suffix", [".png", *PATCHES])
def test_a_bomb_of_any_format_is_refused_before_it_is_decoded(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def decode(*arguments: Any, **options: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("spherecf.faces.photo.decode_image", decode)
    photo = client.post("/api/quality", files={"photo": (f"bomb{suffix}", bomb(suffix))}).json()
    assert photo["failure"] == "too_large" and "megapixels" in photo["reason"]


def test_a_compressed_body_is_not_unpacked(client: TestClient) -> None:
    form = b'--b\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n' + bytes(50_000_000)
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"}
    refused = client.post("/api/quality", content=gzip.compress(form), headers=headers)
    assert refused.status_code == 400 and "malformed" in refused.json()["error"]


def test_script_stays_text(client: TestClient, people: IdentityFolder) -> None:
    """No answer is anything but JSON; what a photo says of itself is not in it."""
    text = SCRIPT.encode() + b"\0"
    tiff = b"MM\0*" + struct.pack(">IHHHIII", 8, 1, 0x010E, 2, len(text), 26, 0) + text
    exif = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    plain = jpeg(people.image(0))
    name = f"{SCRIPT[:-10]}.jpg"  # a slash would end a folder
    photo = client.post("/api/quality", files={"photo": (name, plain[:2] + exif + plain[2:])})
    assert photo.json()["faces"] and photo.json()["photo"] == name and SCRIPT not in photo.text
    missing = client.post("/api/quality", files={SCRIPT: (name, b"x")})
    nowhere = client.get(f"/{SCRIPT}")
    for answer in (photo, missing, nowhere):
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self'" in answer.headers["content-security-policy"]
