"""Strips and tables check what they are given."""

import cv2
import numpy as np
import pytest

from spherecf.embeddings import Embeddings
from spherecf.errors import InputError
from spherecf.evaluation import Strip, Table, strip_by_kappa

PNG = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
JPEG = cv2.imencode(".jpg", np.zeros((4, 4, 3), np.uint8))[1].tobytes()


def test_strip_is_sorted_and_spread_by_rank() -> None:
    kappa = np.array([9.5, 1000.0, 50.0, 3.0, 7.0, 200.0])
    e = Embeddings(np.eye(6), np.log(kappa), list("abcdef"))
    asked: list[str] = []

    def picture(key: str) -> bytes:
        asked.append(key)
        return PNG

    strip = strip_by_kappa("faces", e, picture, count=3)
    assert asked == ["d", "a", "b"] or asked == ["d", "c", "b"]
    assert strip.captions[0] == "κ 3" and strip.captions[-1] == "κ 1,000" and len(strip.images) == 3
    some = strip_by_kappa("faces", e, picture, keys=["a", "a", "b", "gone"])
    assert some.captions == ["κ 9.5", "κ 1,000"]


def test_bad_input() -> None:
    e = Embeddings(np.eye(2), np.zeros(2), ["a", "b"])
    with pytest.raises(InputError, match="nothing to show"):
        strip_by_kappa("faces", e, lambda key: PNG, keys=["c"])
    with pytest.raises(
        InputError, match=r"'faces', image 0: expected an encoded PNG or JPEG, got bytes .*<svg"
    ):
        Strip("faces", [b"<svg onload=x>"], ["x"])
    with pytest.raises(InputError, match="2 images, 1 captions"):
        Strip("faces", [PNG, JPEG], ["x"])
    with pytest.raises(InputError, match="row 1 has 1 entries, the header 2"):
        Table("t", ["a", "b"], [["1", "2"], ["3"]])
