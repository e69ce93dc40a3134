"""Pair lists of all layouts: every line is a pair, folds have no gaps, and names match the right images."""

import re

import numpy as np
from tests.fuzz.harness import fuzz, write

from spherecf.data import PairList, open_pairs
from spherecf.errors import InputError

_LFW = b"2\t1\nAnn\t1\t4\nAnn\t2\tBo\t1\nCleo\t10\t2\nCleo\t1\tAnn\t1\n"
_PAIRS = "Ann/1.jpg Ann/2.jpg 1\nAnn/1.jpg Bo/1.jpg 0\nBo/1.jpg Bo/2.jpg 1\nBo/2.jpg Ann/2.jpg 0\n"
_ROWS = [line.split() for line in _PAIRS.splitlines()]
_CFP = "fold\tleft\tright\tmated\n" + "".join(
    f"{1 + row // 2}\t{left}\t{right}\t{mated}\n" for row, (left, right, mated) in enumerate(_ROWS)
)
_SEEDS = {
    "LFW": _LFW,
    "LFW, View 1": b"1\n" + b"\n".join(_LFW.splitlines()[1:3]) + b"\n",
    "CFP": _CFP.encode(),
    "blanks": _PAIRS.encode(),
    "tabs, Windows": b"\xef\xbb\xbf"
    + _PAIRS.replace(" ", "\t").replace("/", "\\").replace("\n", "\r\n").encode(),
    "csv": (
        "img1,img2,issame\n" + _PAIRS.replace(" 1\n", ",True\n").replace(" 0\n", ",False\n").replace(" ", ",")
    ).encode(),
    "signs": _PAIRS.replace(" 0\n", " -1\n").encode(),
    "label first": "".join(f"{mated};{left};{right}\n" for left, right, mated in _ROWS).encode(),
    "fold last": "".join(
        f"{left} {right} {mated} {1 + row // 2}\n" for row, (left, right, mated) in enumerate(_ROWS)
    ).encode(),
}
_KEYS = sorted({key for left, right, _ in _ROWS for key in (left, right)})
_OTHERS = [key.replace(".jpg", ".png") for key in _KEYS]
_ROOTED = [f"faces/{key}" for key in _OTHERS]


@fuzz(_SEEDS, name="pair lists", tokens=[b"1.0", b"same", b"False", b"Ann/1.png", b'"', b";", b"fold"])
def test_pairs(data: bytes) -> None:
    pairs = open_pairs(write("pairs.txt", data))
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    lines = [line for line in text.split("\n") if line.strip() and not line.strip().startswith("#")]
    assert 0 <= len(lines) - len(pairs) <= 1
    assert np.array_equal(np.unique(pairs.fold), np.arange(pairs.folds)) and len(pairs.left) == len(pairs)
    pairs.fingerprint()
    if pairs.subjects is not None:
        assert [left == right for left, right in zip(*pairs.subjects)] == pairs.mated.tolist()
    for keys in (_KEYS, _OTHERS, _ROOTED, [*_OTHERS, *_ROOTED], [*_KEYS, *_OTHERS]):
        try:
            rows = pairs.rows(keys)
        except InputError:
            continue
        for names, indices in zip((pairs.left, pairs.right), rows):
            for name, index in zip(names, indices):
                key, name = _normalised(keys[index]), _normalised(name)
                assert key.endswith(name) or name.endswith(key)


def _normalised(name: str) -> str:
    return re.sub(r"\.\w+$", "", "/".join(part for part in name.split("/") if part not in ("", ".")))


def test_pair_names_keep_their_folder() -> None:
    pairs = PairList("toy", ["a/1.jpg"], ["b/1.jpg"], np.array([True]), np.array([0]))
    assert _normalised(pairs.left[0]) == "a/1"
