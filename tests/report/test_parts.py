"""Strips and tables validate their input."""

import json

import cv2
import numpy as np
import pytest

from spherecf.errors import InputError
from spherecf.report import Plot, Section, Strip, Table

PNG = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
JPEG = cv2.imencode(".jpg", np.zeros((4, 4, 3), np.uint8))[1].tobytes()


def test_dictionaries_contain_text_but_no_images() -> None:
    strip = Strip("pairs", [PNG], ["κ 1"], [JPEG])
    section = Section(
        "s", ["n"], [Table("t", ["a"], [["1"]], "", ["sig"])], [Plot("<svg>", "c", "w")], [strip]
    )
    content = section.to_dict()
    assert content["plots"] == [{"caption": "c", "alt": "w"}] and content["notes"] == ["n"]
    assert content["strips"] == [{"title": "pairs", "captions": ["κ 1"]}]
    assert content["tables"][0]["signatures"] == ["sig"]
    json.dumps(content)


def test_bad_input_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"'faces', image 0: expected an encoded PNG or JPEG, got bytes .*<svg"
    ):
        Strip("faces", [b"<svg onload=x>"], ["x"])
    with pytest.raises(InputError, match="2 images, 1 captions"):
        Strip("faces", [PNG, JPEG], ["x"])
    with pytest.raises(InputError, match="2 captions, 1 images beside"):
        Strip("faces", [PNG, JPEG], ["x", "y"], [PNG])
    with pytest.raises(InputError, match=r"'faces', image 1: expected an encoded"):
        Strip("faces", [PNG], ["x"], [b"GIF"])
    with pytest.raises(InputError, match="row 1 has 1 entries, the header 2"):
        Table("t", ["a", "b"], [["1", "2"], ["3"]])
    with pytest.raises(InputError, match="'t': 1 rows, 2 signatures"):
        Table("t", ["a"], [["1"]], signatures=["x", "y"])
