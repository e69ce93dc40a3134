"""Pair files (.bin): pickles of all protocols, of Python 2 and 3, with images as bytes, arrays or text."""

import io
import pickle
from typing import Any

import cv2
import numpy as np
from tests.fuzz.harness import fuzz, write

from spherecf.data import PairBin
from spherecf.errors import FileFormatError


def _image(seed: int) -> bytes:
    grey = np.full((6, 6, 3), 40 * seed, np.uint8)
    return cv2.imencode(".png", grey)[1].tobytes()


def _python2(images: list[bytes]) -> bytes:
    stream = io.BytesIO()
    stream.write(b"\x80\x02]q\x01(")
    for data in images:
        stream.write(b"U" + bytes([len(data)]) + data)
    stream.write(b"e]q\x02(\x88\x89e\x86q\x03.")
    return stream.getvalue()


def _seeds() -> dict[str, bytes]:
    images = [_image(seed) for seed in range(4)]
    arrays = [np.frombuffer(data, np.uint8) for data in images]
    contents: dict[str, Any] = {
        "bytes": (images, [True, False]),
        "bytearrays": ([bytearray(data) for data in images], [1, 0]),
        "arrays": (arrays, np.array([True, False])),
        "objects": (np.array([*arrays, None], object)[:-1], list(np.array([True, False]))),
        "text": ([data.decode("latin-1") for data in images], [1.0, 0.0]),
    }
    pickles = {
        f"{kind} {protocol}": pickle.dumps(content, protocol)
        for kind, content in contents.items()
        for protocol in (0, 2, 4, 5)
    }
    return pickles | {"python 2": _python2(images)}


_TOKENS = [
    b"c_codecs\nencode\n", b"cos\nsystem\n", b"R", b"b", b"(", b"\x85", b"\x86", b"\x94", b"\x8f", b"}", b"]",
    b"a", b"e", b"h\x00", b"q\x00", b"r\xff\xff\xff\x7f", b"j\x00\x00\x00\x00", b"\x8e", b"\x96", b"\x8b",
    b"B", b"\x95", b".",
]  # fmt: skip


@fuzz(_seeds, name="pair files (.bin)", tokens=_TOKENS)
def test_pairbin(data: bytes) -> None:
    source = PairBin(write("pairs.bin", data))
    assert len(source) == 2 * len(source.pairs) > 0
    assert sum(map(len, (source.read(row) for row in range(len(source))))) == source.sizes().sum()
    assert source.pairs.mated.dtype == bool and len(source.fingerprint()) == 64
    for row in range(min(len(source), 8)):
        try:
            source.image(row)
        except FileFormatError:
            continue
