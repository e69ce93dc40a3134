"""Image lists and .lst files: every line is an image, or the list is refused."""

import cv2
import numpy as np
from tests.fuzz.harness import fuzz, write

from spherecf.data import ImageError, describe, open_source

_IMAGE = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
_NAMES = ("a/1.png", "a/2.png", "b/1.png", "b c/1.png", "Jos\u00e9/1.png")


def _lines(template: str) -> bytes:
    return "".join(template.format(name, row // 2, row) + "\n" for row, name in enumerate(_NAMES)).encode()


_SEEDS = {
    "blanks": b"# images\r\n" + _lines("{0} p{1}"),
    "tabs": b"\xef\xbb\xbf" + _lines("{0}\t{1}\r"),
    "floats": _lines("{0}\t{1}.000000"),
    "csv": b"path,label\n" + _lines('"{0}",{1}'),
    "backslashes": _lines("{0} {1}").replace(b"/", b"\\"),
    "mxnet": _lines("{2}\t{1}.000000\t{0}"),
    "two labels": _lines("{2}\t{1}\t7.5\t{0}"),
    "insightface": _lines("1\t{0}\t{1}"),
    "landmarks": _lines("0\t{0}\t{1}" + "\t4" * 14),
}


@fuzz(_SEEDS, name="image lists", tokens=[b"a/1.png", b"a\\1.png", b"-1.000000", b"C:\\a\\1.png", b'"', b";"])
def test_lists(data: bytes) -> None:
    for name in _NAMES:
        write(f"lists/{name}", _IMAGE)
    source = open_source(write("lists/list.txt", data))
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    lines = [line for line in text.split("\n") if line.strip() and not line.strip().startswith("#")]
    assert len(source) == len(source.keys) == len(set(source.keys)) and 0 <= len(lines) - len(source) <= 1
    assert len(set(source.identities)) == len(source.identities)
    numbers = [int(name) for name in source.identities if name.lstrip("-").isdecimal()]
    assert len(numbers) < len(source.identities) or numbers == sorted(numbers)
    for row in range(min(len(source), 50)):
        try:
            assert source.image(row).shape == (4, 4, 3)
        except ImageError:
            assert source.keys[row] not in _NAMES
    describe(source)
